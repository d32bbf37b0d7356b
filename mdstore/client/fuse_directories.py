"""FUSE operations on open directories, as a table over a `Vfs`.

The kernel continues a listing by a number, the `Vfs` by a name: a table of cookies per listing translates. Cookies 1 and 2
stand after '.' and '..', later ones after the names handed out, in the order in which they were first met.

The kernel may also keep a whole listing and replay it to other readers, whose next request then carries a cookie that was
given to somebody else. So directories it may keep share one table among all their readers, for as long as the kernel may
still hold such a listing; large ones are not kept, and each reader packs its own.

Names that come and go while a directory stays open each get a number, so a table may outgrow its directory. It begins anew, with
numbers never given before, when its only reader is back at the first entry: where rewinddir(3) ends what telldir(3) said. Every
listing that the kernel completed from the old numbers is stale by then, or it would not have asked.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, Protocol

from mdstore.client.fuse_operation import Operation, OperationTable, Reply, always_slow
from mdstore.client.fuse_protocol import (
    DIRENT,
    ENTRY_OUT,
    FOPEN_CACHE_DIR,
    FOPEN_KEEP_CACHE,
    FSYNC_DATA_ONLY,
    FSYNC_IN,
    OPEN_OUT,
    READ_IN,
    RELEASE_IN,
    Opcode,
    dirent,
)
from mdstore.client.fuse_reply import ReplyEncoder
from mdstore.errors import MdstoreError, PosixError
from mdstore.mds.vfs import Credentials, DirEntry, Vfs

SHARED_ENTRIES_MAX: Final = 1 << 16  # a larger directory is listed without the kernel's listing cache
RETAINED_TABLES: Final = 256  # directories that nobody reads now, whose listing the kernel may still hold
RETAINED_NAMES: Final = 1 << 18  # in their tables, of about 150 bytes each
OUTGROWN: Final = 2 * SHARED_ENTRIES_MAX  # from so many names on a table may begin anew
FIRST_COOKIE: Final = 3
UNKNOWN_INO: Final = 0xFFFFFFFF  # d_ino of a damaged entry: programs skip those with 0
_NO_ENTRY: Final = bytes(ENTRY_OUT.size)  # '.', '..' and what is damaged, in READDIRPLUS: no inode is handed out
_NAME_SIZE_MAX: Final = 256
_DIRECTORY_TYPE: Final = 4  # DT_DIR


class Cookies(Protocol):
    """Numbers for names, from `FIRST_COOKIE` on; a number once given names the same for ever, or nothing any more."""

    def __len__(self) -> int: ...
    def assign(self, entries: list[DirEntry], after: int) -> list[int]:
        """A number for each entry; `after` is that of the name before the first, or one below `FIRST_COOKIE`."""
    def name(self, cookie: int) -> bytes:
        """IndexError for a number that names nothing."""
    def begin_anew(self) -> None:
        """Forget all names."""


class SharedCookies:
    """One number per name, whoever lists: for directories whose listing the kernel may keep."""

    def __init__(self) -> None:
        self.users = 0
        self._first = FIRST_COOKIE
        self._names: list[bytes] = []
        self._cookies: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._names)

    def assign(self, entries: list[DirEntry], after: int) -> list[int]:
        cookies, names, result = self._cookies, self._names, []
        for name, _attr in entries:
            cookie = cookies.get(name)
            if cookie is None:
                cookie = cookies[name] = self._first + len(names)
                names.append(name)
            result.append(cookie)
        return result

    def name(self, cookie: int) -> bytes:
        return self._names[_index(cookie, self._first)]

    def begin_anew(self) -> None:
        self._first += len(self._names)
        self._names.clear()
        self._cookies.clear()


class PackedCookies:
    """Numbers in the order of the listing, names packed by batches: about 20 bytes a name, for large directories. Names that are
    read again, in the same order, have the numbers they had."""

    BATCH = 1024

    def __init__(self) -> None:
        self._first = FIRST_COOKIE
        self._packed: list[bytes] = []
        self._open: list[bytes] = []

    def __len__(self) -> int:
        return len(self._packed) * self.BATCH + len(self._open)

    def assign(self, entries: list[DirEntry], after: int) -> list[int]:
        at = after - self._first + 1 if after >= self._first else 0
        again = 0
        for known, (name, _attr) in zip(self._names(at, len(entries)), entries):
            if known != name:
                break
            again += 1
        first = self._first + at
        result = list(range(first, first + again))
        if again < len(entries):
            first = self._first + len(self)
            result += range(first, first + len(entries) - again)
            for name, _attr in entries[again:]:
                self._append(name)
        return result

    def _append(self, name: bytes) -> None:
        self._open.append(name)
        if len(self._open) == self.BATCH:
            self._packed.append(b"/".join(self._open))
            self._open.clear()

    def _names(self, at: int, count: int) -> Iterator[bytes]:
        """The names from place `at` on, at most `count`."""
        batch, index = divmod(at, self.BATCH)
        while count > 0 and batch <= len(self._packed):
            names = self._batch(batch)[index : index + count]
            yield from names
            count -= len(names)
            batch, index = batch + 1, 0

    def _batch(self, batch: int) -> list[bytes]:
        return self._packed[batch].split(b"/") if batch < len(self._packed) else self._open

    def name(self, cookie: int) -> bytes:
        batch, index = divmod(_index(cookie, self._first), self.BATCH)
        if batch > len(self._packed):
            raise IndexError(cookie)
        return self._batch(batch)[index]

    def begin_anew(self) -> None:
        self._first += len(self)
        self._packed.clear()
        self._open.clear()


def _index(cookie: int, first: int) -> int:
    """The place of a number; IndexError where it is below the first that names something."""
    if cookie < first:
        raise IndexError(cookie)
    return cookie - first


class _Listing:
    """An open directory: its handle in the `Vfs`, its inode, and the meaning of its cookies."""

    __slots__ = ("cookies", "handle", "ino")

    def __init__(self, handle: int, ino: int, cookies: Cookies) -> None:
        self.handle = handle
        self.ino = ino
        self.cookies = cookies

    def after(self, cookie: int) -> bytes | None:
        """The name the listing goes on behind. EINVAL for a number nobody was given: programs may seek anywhere."""
        if cookie < FIRST_COOKIE:
            return None
        try:
            return self.cookies.name(cookie)
        except IndexError:
            raise PosixError(errno.EINVAL, self.ino, f"{cookie} is no place in this directory") from None


class DirectoryOperations:
    """Opendir to releasedir. `cache`: let the kernel keep listings (right while every change goes through it)."""

    def __init__(self, vfs: Vfs, replies: ReplyEncoder, *, cache: bool) -> None:
        self._vfs = vfs
        self._replies = replies
        self._cache = cache
        self._listings: dict[int, _Listing] = {}
        self._shared: OrderedDict[int, SharedCookies] = OrderedDict()  # by inode, least recently opened first
        self._retained = 0  # names in those of them that nobody uses

    def table(self) -> OperationTable:
        return {
            Opcode.OPENDIR: Operation(self.opendir, undo=self._undo_opendir),
            Opcode.READDIR: Operation(self.readdir),
            Opcode.READDIRPLUS: Operation(self.readdirplus, undo=self._undo_readdirplus),
            Opcode.RELEASEDIR: Operation(self.releasedir),
            Opcode.FSYNCDIR: Operation(always_slow, worker=self.fsyncdir),
        }

    def opendir(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        handle = self._vfs.opendir(cred, nodeid)
        cookies, flags = self._cookies_for(nodeid)
        self._listings[handle] = _Listing(handle, nodeid, cookies)
        return OPEN_OUT.pack(handle, flags)

    def readdir(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        handle, cookie, size, _, _, _ = READ_IN.unpack_from(body)
        return self._fill(self._listing(handle), cookie, size, plus=False)

    def readdirplus(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        handle, cookie, size, _, _, _ = READ_IN.unpack_from(body)
        return self._fill(self._listing(handle), cookie, size, plus=True)

    def releasedir(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        self._close(RELEASE_IN.unpack_from(body)[0])
        return b""

    def fsyncdir(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        handle, flags = FSYNC_IN.unpack_from(body)
        self._vfs.fsync(handle, data_only=bool(flags & FSYNC_DATA_ONLY))
        return b""

    def _fill(self, listing: _Listing, cookie: int, size: int, *, plus: bool) -> bytes:
        """Entries after `cookie`, at most `size` bytes of them.

        Batches are sized so that they fit even with the longest names: an entry that is read from the `Vfs` is sent, so
        that lookups are counted exactly and no attribute is older than the request.
        """
        parts: list[bytes] = []
        if cookie == 0:
            self._rewound(listing)
        size -= self._fill_dots(listing, cookie, size, parts, plus=plus)
        dots, after = len(parts), listing.after(cookie)
        head_size = DIRENT.size + (ENTRY_OUT.size if plus else 0)
        while (limit := size // (head_size + _NAME_SIZE_MAX)) > 0:
            try:
                entries = self._vfs.readdir(listing.handle, after, limit, count_lookups=plus)
            except MdstoreError:
                if len(parts) > dots:  # what was read is sent, and its lookups count; the next request meets the error
                    break
                raise
            places = listing.cookies.assign(entries, cookie)
            for (name, attr), place in zip(entries, places):
                entry = dirent(attr.ino or UNKNOWN_INO, place, attr.mode >> 12, name)
                if plus:
                    parts.append(self._replies.entry(attr) if attr.ino else _NO_ENTRY)
                    size -= ENTRY_OUT.size
                parts.append(entry)
                size -= len(entry)
            if len(entries) < limit:
                break
            after, cookie = entries[-1].name, places[-1]
        return b"".join(parts)

    def _rewound(self, listing: _Listing) -> None:
        """The reader is at the first entry: a table that has outgrown its directory begins anew, if nobody else reads by it."""
        cookies = listing.cookies
        alone = not isinstance(cookies, SharedCookies) or cookies.users == 1
        if alone and len(cookies) > OUTGROWN and len(cookies) > 2 * self._vfs.getattr(listing.ino).size:
            cookies.begin_anew()

    def _fill_dots(self, listing: _Listing, cookie: int, size: int, parts: list[bytes], *, plus: bool) -> int:
        """'.' and '..' where the listing begins; returns the bytes they take."""
        before = sum(map(len, parts))
        if cookie < 1:
            parts.append((_NO_ENTRY if plus else b"") + dirent(listing.ino, 1, _DIRECTORY_TYPE, b"."))
        if cookie < 2:
            parent = self._vfs.parent_of(listing.ino)
            parts.append((_NO_ENTRY if plus else b"") + dirent(parent, 2, _DIRECTORY_TYPE, b".."))
        return sum(map(len, parts)) - before

    def _cookies_for(self, ino: int) -> tuple[Cookies, int]:
        """The table a new reader of that directory uses, and what the kernel may keep."""
        if not self._cache:
            return PackedCookies(), 0
        shared = self._shared.get(ino)
        if shared is None:
            if self._vfs.getattr(ino).size > SHARED_ENTRIES_MAX:
                return PackedCookies(), 0
            shared = self._shared[ino] = SharedCookies()
            flags = FOPEN_CACHE_DIR  # and not KEEP_CACHE: whatever the kernel holds has cookies nobody knows
        else:
            self._shared.move_to_end(ino)
            self._retained -= len(shared) if shared.users == 0 else 0
            flags = FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE
        shared.users += 1
        self._retire()
        return shared, flags

    def _retire(self) -> None:
        """Forget tables that nobody uses, the oldest ones first, while there are too many of them or of names in them."""
        if len(self._shared) <= RETAINED_TABLES and self._retained <= RETAINED_NAMES:
            return
        for ino, shared in list(self._shared.items()):
            if len(self._shared) <= RETAINED_TABLES and self._retained <= RETAINED_NAMES:
                break
            if shared.users == 0:
                self._retained -= len(shared)
                del self._shared[ino]

    def _listing(self, handle: int) -> _Listing:
        listing = self._listings.get(handle)
        if listing is None:
            raise PosixError(errno.EBADF, handle, "not an open directory")
        return listing

    def _close(self, handle: int) -> None:
        listing = self._listing(handle)
        del self._listings[handle]
        shared = listing.cookies
        if isinstance(shared, SharedCookies):
            shared.users -= 1
            if shared.users == 0:
                self._retained += len(shared)
                self._retire()
        self._vfs.releasedir(handle)

    def _undo_opendir(self, nodeid: int, reply: bytes) -> None:
        self._close(OPEN_OUT.unpack_from(reply)[0])

    def _undo_readdirplus(self, nodeid: int, reply: bytes) -> None:
        offset = 0
        while offset < len(reply):
            ino = ENTRY_OUT.unpack_from(reply, offset)[0]
            if ino:
                self._vfs.forget(ino, 1)
            name_length = DIRENT.unpack_from(reply, offset + ENTRY_OUT.size)[2]
            offset += ENTRY_OUT.size + DIRENT.size + (name_length + 7 & ~7)
