"""Reading directories: pages of entries behind a name, in the byte order of names."""

from __future__ import annotations

import errno
from bisect import bisect_right
from itertools import islice
from operator import itemgetter
from typing import Final

from sortedcontainers import SortedList

from mdstore.errors import CorruptionError, MdstoreError, PosixError
from mdstore.mds.cache import Cache, Entry
from mdstore.mds.core import Core
from mdstore.mds.handles import DirectoryHandle, Handles
from mdstore.mds.inode import Directory, Inode
from mdstore.mds.permissions import R, require
from mdstore.mds.vfs import Attr, Credentials, DirEntry, unreadable

LIMIT_END: Final = 1 << 31  # of the entries of a page
_name = itemgetter(0)
Page = list[tuple[bytes, bytes | None]]  # names with stored values; None: memory has the entry


class Directories:
    """The operations. The caller holds the core's lock."""

    def __init__(self, core: Core, cache: Cache, handles: Handles) -> None:
        self._core = core
        self._cache = cache
        self._handles = handles

    def opendir(self, cred: Credentials, ino: int) -> int:
        """A handle. ENOTDIR, EACCES."""
        directory = self._cache.directory(ino)
        require(directory, cred, R)
        return self._handles.add(DirectoryHandle(directory, self._core.client))

    def readdir(self, number: int, after: bytes | None, limit: int, *, count_lookups: bool) -> list[DirEntry]:
        """See `Vfs.readdir`. Cost: one read of a range of the store, unless memory holds the whole directory; around damage more,
        see around.py."""
        handle = self._handles.directory(number)
        directory = handle.node
        if not 0 < limit < LIMIT_END:
            raise PosixError(errno.EINVAL, number, f"a page of {limit} entries")
        if directory.nlink == 0:
            return []
        if after is None:
            handle.unread = None
        if directory.complete:
            page: Page = [(name, None) for name in self._known_after(directory, after, limit)]
        else:
            page, error = self._merged(directory, after, limit)
            handle.unread = handle.unread or error
        if not page and handle.unread is not None:
            raise handle.unread
        found: list[DirEntry] = []
        for name, raw in page:
            entry = directory.entries.get(name)
            attr = entry.attr() if isinstance(entry, Inode) else self._attr(directory, name, entry, raw)
            found.append(DirEntry(name, attr))
        if not directory.complete:
            whole = handle.unread is None and all(attr.ino for _, attr in found)
            self._note_progress(handle, after, page, limit, whole=whole)
        if count_lookups:
            for _, attr in found:
                if attr.ino:
                    self._cache.refer(attr.ino)
        return found

    def _attr(self, directory: Directory, name: bytes, entry: Entry | None, raw: bytes | None) -> Attr:
        """What a listing says of an entry. A damaged one has its row in the damage table from here on."""
        try:
            if entry is None:
                entry = self._cache.find(directory, name) if raw is None else self._cache.adopt(directory, name, raw)
                assert entry is not None, "a name that is listed has an entry: nothing was let go of in between"
            return self._cache.resolve(directory, name, entry).attr()
        except CorruptionError:
            return unreadable(entry & 15 if isinstance(entry, int) else 0)

    def names_after(
        self, directory: Directory, after: bytes | None, limit: int
    ) -> tuple[list[bytes], MdstoreError | None]:
        """Up to `limit` names behind `after`, in order; and why some that lie there are not among them."""
        if directory.complete:
            return self._known_after(directory, after, limit), None
        page, error = self._merged(directory, after, limit)
        return [name for name, _ in page], error

    def _known_after(self, directory: Directory, after: bytes | None, limit: int) -> list[bytes]:
        names = self._sorted_names(directory)
        return list(islice(names.irange(after, None, inclusive=(False, True)), limit))

    def _sorted_names(self, directory: Directory) -> SortedList[bytes]:
        """Sorted once, and from then on kept so by whoever adds a name or takes one away."""
        if directory.names is None:
            known = set(directory.entries)
            known.update(name for name, raw in directory.changed.items() if raw is not None)
            directory.names = SortedList(known)
        return directory.names

    def _merged(self, directory: Directory, after: bytes | None, limit: int) -> tuple[Page, MdstoreError | None]:
        """Stored entries and changed ones in one order; a removed one is in neither. And why some stored ones are left out."""
        changed, names = directory.changed, self._changed_names(directory)
        at = 0 if after is None else bisect_right(names, after)
        page: Page = []
        unread: MdstoreError | None = None
        while len(page) < limit:
            stored: list[tuple[bytes, bytes]] = []
            if directory.stored:
                stored, error = self._cache.read_page(directory, after, limit)
                unread = unread or error
            newer = names[at : at + limit]
            ends = [stored[-1][0]] if len(stored) == limit else []
            ends += newer[-1:] if len(newer) == limit else []
            bound = min(ends, default=None)  # what lies behind it is not known of both
            merged: dict[bytes, bytes | None] = {name: raw for name, raw in stored if bound is None or name <= bound}
            for name in newer:
                if bound is not None and name > bound:
                    break
                at += 1
                raw = changed[name]
                if raw is None:
                    merged.pop(name, None)
                else:
                    merged[name] = raw
            page += sorted(merged.items(), key=_name)
            if bound is None:
                break
            after = bound
        return page[:limit], unread

    def _changed_names(self, directory: Directory) -> list[bytes]:
        """The names of changed entries in order, kept for the next page. New ones come last in `changed`: few are sorted in."""
        known = directory.listing
        if known is None or known[0] is not directory.changed:
            known = directory.listing = (directory.changed, sorted(directory.changed))
        names = known[1]
        if len(names) < len(directory.changed):
            names += islice(directory.changed, len(names), None)
            names.sort()
        return names

    def _note_progress(self, handle: DirectoryHandle, after: bytes | None, page: Page, limit: int, *, whole: bool) -> None:
        """When a handle has read from the first to the last name, all of them could be read (`whole`: of this page), and nothing
        was dropped from memory meanwhile, memory has the whole directory."""
        directory = handle.node
        if after is None:
            handle.evictions = directory.evictions
        elif handle.reached != after or handle.evictions != directory.evictions:
            handle.evictions = -1
        if not whole:
            handle.evictions = -1
        handle.reached = page[-1][0] if page else after
        if len(page) < limit and handle.evictions == directory.evictions:
            directory.complete = len(self._core.nodes) + len(page) < self._cache.nodes_max // 2
