"""Finding inodes: in memory, else in the store; and letting go of them again.

Memory is bounded by `Limits.cache_bytes`. Only what can be read again is dropped: bytes of entries not yet written back
stay in `Directory.changed`, open inodes and directories with anything in memory below them stay whole. Eviction happens
between operations, never inside one, so an operation may hold on to what it found.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Final

from mdstore.engines.protocol import ObjectStore
from mdstore.errors import CorruptionError, MdstoreError, NotFound, PosixError
from mdstore.mds.around import read_around
from mdstore.mds.core import Core
from mdstore.mds.damage import note_damage
from mdstore.mds.fnode import decode_fnode
from mdstore.mds.inode import Directory, Inode
from mdstore.mds.layout import (
    BACKTRACE_ATTRIBUTE,
    DATA,
    HOME,
    INO_KEY,
    META,
    data_object,
    decode_backtrace,
    directory_object,
)
from mdstore.mds.records import Link, decode_entry, decode_inode
from mdstore.mds.vfs import ROOT_INO

NODE_BYTES: Final = 700  # what an inode, its numbers, its name and its two dictionary slots take, measured
INO_MAX: Final = (1 << 64) - 1
RECALLS_AT_ONCE: Final = 16384
Entry = Inode | int  # what a directory knows of a name: see inode.py, I3


class Cache:
    """The inodes in memory and the way to those that are not."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._nodes = core.nodes
        self._store = core.store
        self.nodes_max = max(64, core.limits.cache_bytes // NODE_BYTES)

    def look_in(self, store: ObjectStore) -> None:
        """From here on another store is the one to look into."""
        self._store = store

    # -- finding -------------------------------------------------------------------------------------------------------

    def find(self, directory: Directory, name: bytes) -> Entry | None:
        """The entry `name`, or None. Cost: one read of the store unless memory can tell."""
        entry = directory.entries.get(name)
        if entry is not None:
            return entry
        if name in directory.changed:
            raw = directory.changed[name]
        elif (directory.complete or not directory.stored) and not self._is_apart(directory):
            return None
        else:
            raw = self._read_entry(directory, name)
        return None if raw is None else self.adopt(directory, name, raw)

    def _is_apart(self, directory: Directory) -> bool:
        """A name that it does not know may belong where it cannot be written: the store is asked. Its error, where it was never
        written."""
        apart = self._core.apart.get(directory.ino)
        if apart is not None and not directory.stored:
            raise apart.error
        return apart is not None

    def adopt(self, directory: Directory, name: bytes, raw: bytes) -> Entry:
        """Take the value of an entry into memory."""
        try:
            found = decode_entry(raw, f"meta/{directory.ino:016x} entry {name!r}")
        except CorruptionError as error:
            note_damage(self._core, directory.ino, name, error)
            raise
        entry: Entry
        if isinstance(found, Link):
            entry = found.ino << 4 | found.file_type
        else:
            entry = Inode.from_record(found, directory.ino, name)
            self._nodes[found.ino] = entry
            self._core.where.pop(found.ino, None)
        directory.entries[name] = entry
        return entry

    def resolve(self, directory: Directory, name: bytes, entry: Entry) -> Inode:
        """The inode that the entry `name` means. CorruptionError, with a row in the damage table, where there is none."""
        if not isinstance(entry, int):
            return entry
        node = self._nodes.get(entry >> 4)
        return node if node is not None else self._follow(directory, name, entry >> 4)

    def _follow(self, directory: Directory, name: bytes, ino: int) -> Inode:
        try:
            return self._load(ino)
        except PosixError:
            where = f"meta/{directory.ino:016x} entry {name!r}"
            error = CorruptionError("directory entry", where, "an inode", f"number {ino}, which is nowhere")
        except CorruptionError as damaged:
            error = damaged
        note_damage(self._core, directory.ino, name, error)
        raise error

    def child(self, directory: Directory, name: bytes) -> Inode:
        """The inode of entry `name`; ENOENT."""
        entry = self.find(directory, name)
        if entry is None:
            raise PosixError(errno.ENOENT, name)
        return self.resolve(directory, name, entry)

    def holds_anything(self, directory: Directory) -> bool:
        """Whether there is an entry, readable or not, whatever the directory's own count says. Cost: nothing for a directory that
        memory knows whole; else the entries are read that were removed since it was last written back."""
        changed = directory.changed
        if directory.entries or any(raw is not None for raw in changed.values()):
            return True
        if directory.complete or not directory.stored:
            return False
        try:
            stored = self._store.map_items(META, directory_object(directory.ino))
            return any(changed.get(name, raw) is not None for name, raw in stored)
        except CorruptionError as error:
            note_damage(self._core, directory.ino, b"", error)
            raise

    def node(self, ino: int) -> Inode:
        """The inode of that number; ESTALE when there is none any more."""
        node = self._nodes.get(ino)
        return self._load(ino) if node is None else node

    def directory(self, ino: int) -> Directory:
        """The directory of that number; ENOTDIR when it is something else."""
        node = self._nodes.get(ino)
        if node is None:
            node = self._load(ino)
        if not isinstance(node, Directory):
            raise PosixError(errno.ENOTDIR, ino)
        return node

    def upward(self, directory: Directory) -> Iterator[Directory]:
        """The directory and all above it, the root last. CorruptionError where one lies inside itself, as in a forged image."""
        passed = set()
        while True:
            yield directory
            if directory.ino == ROOT_INO:
                return
            passed.add(directory.ino)
            if directory.parent in passed:
                where = f"meta/{directory.ino:016x}"
                raise CorruptionError("directory header", where, "a way to the root", f"parent {directory.parent}, below it")
            directory = self.directory(directory.parent)

    def parent(self, node: Inode) -> Directory:
        """The directory whose entry embeds `node`, or in which the directory `node` hangs."""
        return self.directory(node.parent)

    # -- loading -------------------------------------------------------------------------------------------------------

    def _load(self, ino: int) -> Inode:
        if not 0 < ino <= INO_MAX:
            raise PosixError(errno.ESTALE, ino)
        node = self._by_place(ino) or self._by_header(ino) or self._by_table(ino) or self._by_backtrace(ino)
        if node is None:
            raise PosixError(errno.ESTALE, ino)
        return node

    def _by_place(self, ino: int) -> Inode | None:
        place = self._core.where.get(ino)
        return None if place is None else self.at(ino, *place)

    def at(self, ino: int, parent: int, name: bytes) -> Inode | None:
        """The inode of that number, if it is the one embedded in the entry. ESTALE, ENOTDIR when there is no such directory."""
        entry = self.find(self.directory(parent), name)
        return entry if isinstance(entry, Inode) and entry.ino == ino else None

    def _by_header(self, ino: int) -> Directory | None:
        if ino in self._core.dirty:
            return None  # removed; its object goes with the next write-back
        self._core.counters.store_reads += 1
        try:
            raw = self._store.map_header(META, directory_object(ino))
            directory = Directory.from_header(decode_fnode(raw, f"meta/{ino:016x}"))
        except NotFound:
            return None
        except CorruptionError as error:
            note_damage(self._core, ino, b"", error)
            raise
        directory.stored = True
        directory.stored_version = directory.version
        if directory.unsettled and self._core.journal is not None:
            self._core.unsettled.add(ino, directory.parent)  # the server that wrote it could not read its parent until it ended
        self._nodes[ino] = directory
        return directory

    def _by_table(self, ino: int) -> Inode | None:
        key = INO_KEY.pack(ino)
        raw = self._core.inodes.get(key) or self._core.strays.get(key)
        if raw is None:
            return None
        node = Inode.from_record(decode_inode(raw, f"inode table {ino}", HOME.size), 0, b"")
        node.home = HOME.unpack_from(raw)[0]
        self._nodes[ino] = node
        return node

    def _by_backtrace(self, ino: int) -> Inode | None:
        try:
            raw = self._store.getattr(DATA, data_object(ino, 0), BACKTRACE_ATTRIBUTE)
            parent, name, _ = decode_backtrace(raw, f"data/{ino:016x}")
            return self.at(ino, parent, name)
        except (NotFound, PosixError):
            return None

    def _read_entry(self, directory: Directory, name: bytes) -> bytes | None:
        self._core.counters.store_reads += 1
        try:
            return self._store.map_get(META, directory_object(directory.ino), name)
        except CorruptionError as error:
            note_damage(self._core, directory.ino, name, error)
            raise

    def read_page(
        self, directory: Directory, after: bytes | None, limit: int
    ) -> tuple[list[tuple[bytes, bytes]], MdstoreError | None]:
        """Up to `limit` stored entries behind `after`, raw; and why some before the last of them, or behind it where they are
        fewer, cannot be read, with a row in the damage table."""
        start = None if after is None else after + b"\0"
        found, error = read_around(partial(self._store.map_items, META, directory_object(directory.ino)), start, limit)
        if error is not None:
            note_damage(self._core, directory.ino, b"", error)
        return found, error

    # -- letting go ----------------------------------------------------------------------------------------------------

    def refer(self, ino: int) -> None:
        """A front was handed the number."""
        references = self._core.references
        references[ino] = references.get(ino, 0) + 1

    def evict_excess(self) -> None:
        """`evict`, when there is more in memory than there should be."""
        if len(self._nodes) > self.nodes_max:
            self.evict()

    def evict(self) -> None:
        """Drop the inodes that came first until an eighth of the budget is free, as far as they can be dropped."""
        excess = len(self._nodes) - self.nodes_max + self.nodes_max // 8
        candidates = list(islice(self._nodes.values(), max(0, excess) * 2))
        for node in candidates:
            if excess <= 0:
                break
            if self._drop(node):
                excess -= 1
                self._core.counters.evicted += 1
            else:  # looked at last the next time
                del self._nodes[node.ino]
                self._nodes[node.ino] = node
        self.recall_excess()

    def recall_excess(self) -> None:
        """Where a front holds too many numbers, ask it to let go of those it has held longest and that are not in memory."""
        core = self._core
        excess = len(core.references) - core.limits.references_max
        if core.recall is None or excess <= 0:
            return
        core.recalls_open -= core.recalls_open // 64  # what is in use does not come back: ask for others, slowly
        wanted = min(excess - core.recalls_open, RECALLS_AT_ONCE)
        for ino, place in list(islice(core.where.items(), max(0, wanted))):
            if not core.recall(*place):
                return
            del core.where[ino]
            core.where[ino] = place  # asked last the next time
            core.recalls_open += 1
            core.counters.recalled += 1

    def drop_all(self) -> None:
        """Drop every inode that can be dropped, and then the directories that have become empty in memory."""
        for _ in range(2):
            for node in list(self._nodes.values()):
                if self._drop(node):
                    self._core.counters.evicted += 1

    def _drop(self, node: Inode) -> bool:
        if node.handles or node.file is not None or node.nlink == 0 or node.ino in self._core.stale_backtraces:
            return False
        if isinstance(node, Directory):
            return self._drop_directory(node)
        if node.parent:
            directory = self._nodes.get(node.parent)
            if isinstance(directory, Directory):
                directory.entries.pop(node.name, None)
                directory.complete = False
                directory.names = None
                directory.evictions += 1
            if node.ino in self._core.references:
                self._core.where[node.ino] = (node.parent, node.name)
        del self._nodes[node.ino]
        return True

    def _drop_directory(self, node: Directory) -> bool:
        if node.since >= 0 or node.ino == ROOT_INO:
            return False
        if any(isinstance(entry, Inode) for entry in islice(node.entries.values(), 16)):
            return False
        if any(isinstance(entry, Inode) for entry in node.entries.values()):
            return False
        del self._nodes[node.ino]
        return True
