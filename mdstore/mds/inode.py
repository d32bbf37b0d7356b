"""Inodes in memory.

Invariants

 I1  a regular inode's bytes in the log and on the medium are those its `record` gave when it was last journaled; what is
     newer (times and size of buffered writes) is only in memory, and `file` says so
 I2  `parent` and `name` say which directory entry embeds the inode; `parent` 0: it is a row of the inode table (several
     names) or of the stray table (none)
 I3  a directory's `entries` holds what is known of it: an `Inode` for an embedded one, an int `ino << 4 | file type` for a
     link; `changed` holds the bytes of entries not yet written back (None: removed), in the order of their oldest event
 I4  `complete`: what is neither in `entries` nor in `changed` does not exist
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from sortedcontainers import SortedList

from mdstore.mds.events import DIR_TOUCH
from mdstore.mds.fnode import FNODE, FNODE_VERSION, Fnode
from mdstore.mds.records import (
    FLAG_SPARSE,
    INODE_CORE,
    INODE_VERSION,
    PRIMARY_CORE,
    TAG_PRIMARY,
    InodeRecord,
    encode_xattrs,
)
from mdstore.mds.vfs import Attr

if TYPE_CHECKING:
    from mdstore.mds.filestate import FileState

MULTIPLE = 0  # the `parent` of an inode that no directory entry embeds


class Inode:
    """One inode. Fields as in `InodeRecord`."""

    __slots__ = (
        "allocated", "atime", "btime", "change", "ctime", "file", "flags", "generation", "gid", "handles", "home", "ino",
        "mode", "mtime", "name", "nlink", "parent", "rdev", "size", "target", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, ino: int, mode: int, uid: int, gid: int, now: int, parent: int, name: bytes) -> None:
        self.ino = ino
        self.mode = mode
        self.nlink = 1
        self.uid = uid
        self.gid = gid
        self.rdev = 0
        self.size = 0
        self.allocated = 0
        self.flags = 0
        self.generation = 1
        self.atime = self.mtime = self.ctime = self.btime = now
        self.change = 1
        self.target = b""
        self.xattrs: dict[bytes, bytes] | None = None
        self.parent = parent
        self.name = name
        self.home = parent  # the directory whose statistics count its bytes; 0: none
        self.handles = 0
        self.file: FileState | None = None

    @property
    def is_directory(self) -> bool:
        return self.mode >> 12 == 4

    def record(self) -> InodeRecord:
        """Everything that is kept of it."""
        return InodeRecord(
            self.flags, self.mode, self.ino, self.generation, self.nlink, self.uid, self.gid, self.rdev, self.size,
            self.allocated, self.atime, self.mtime, self.ctime, self.btime, self.change, self.target, self.xattrs,
        )  # fmt: skip

    def encode(self) -> bytes:
        """The bytes of its record."""
        xattrs = encode_xattrs(self.xattrs) if self.xattrs else b""
        core = INODE_CORE.pack(
            INODE_VERSION, self.flags, 0, self.mode, self.ino, self.generation, self.nlink, self.uid, self.gid, self.rdev,
            self.size, self.allocated, self.atime, self.mtime, self.ctime, self.btime, self.change, len(self.target), 0,
            len(xattrs),
        )  # fmt: skip
        return core + self.target + xattrs

    def entry_value(self) -> bytes:
        """The value of the directory entry that embeds it; the same bytes as tag + `encode`, in one call."""
        xattrs = encode_xattrs(self.xattrs) if self.xattrs else b""
        core = PRIMARY_CORE.pack(
            TAG_PRIMARY, INODE_VERSION, self.flags, 0, self.mode, self.ino, self.generation, self.nlink, self.uid,
            self.gid, self.rdev, self.size, self.allocated, self.atime, self.mtime, self.ctime, self.btime, self.change,
            len(self.target), 0, len(xattrs),
        )  # fmt: skip
        return core + self.target + xattrs if self.target or xattrs else core

    def attr(self) -> Attr:
        """What stat tells."""
        size = self.size
        space = size
        if self.flags & FLAG_SPARSE:
            space = self.allocated + (0 if self.file is None else self.file.buffer.size_bytes)
        return Attr(
            self.ino, self.mode, self.nlink, self.uid, self.gid, self.rdev, size, (space + 4095 >> 12) << 3, self.atime,
            self.mtime, self.ctime, self.generation,
        )  # fmt: skip

    def become_sparse(self) -> None:
        """From here on its space is counted and not taken from its size; so far there was no hole."""
        if not self.flags & FLAG_SPARSE:
            self.flags |= FLAG_SPARSE
            self.allocated = self.size if self.file is None else self.file.published

    def drop_set_id(self) -> None:
        """Somebody else's bytes, or another owner: set-user-id goes, and set-group-id where it is no lock mark."""
        mode = self.mode & ~stat.S_ISUID
        if mode & stat.S_IXGRP:
            mode &= ~stat.S_ISGID
        self.mode = mode

    def take(self, record: InodeRecord) -> None:
        """Become what the record says."""
        (self.flags, self.mode, self.ino, self.generation, self.nlink, self.uid, self.gid, self.rdev, self.size,
         self.allocated, self.atime, self.mtime, self.ctime, self.btime, self.change, self.target,
         self.xattrs) = record  # fmt: skip

    @classmethod
    def from_record(cls, record: InodeRecord, parent: int, name: bytes) -> Inode:
        """The inode that a record describes, embedded in entry `name` of `parent`."""
        node = cls(record.ino, record.mode, 0, 0, 0, parent, name)
        node.take(record)
        return node


class Directory(Inode):
    """A directory: `size` counts its entries, `parent` and `name` say where it hangs (the root: in itself)."""

    __slots__ = (
        "accounted_bytes", "accounted_ctime", "accounted_dirs", "accounted_files", "changed", "complete", "entries",
        "evictions", "listing", "names", "rbytes", "rctime", "rdirs", "rfiles", "since", "stored", "stored_version", "version",
    )  # fmt: skip

    def __init__(self, ino: int, mode: int, uid: int, gid: int, now: int, parent: int, name: bytes) -> None:
        super().__init__(ino, mode, uid, gid, now, parent, name)
        self.nlink = 2
        self.version = 1
        self.rbytes = self.rfiles = self.rdirs = 0
        self.rctime = now
        self.accounted_bytes = self.accounted_files = self.accounted_dirs = 0
        self.accounted_ctime = now
        self.entries: dict[bytes, Inode | int] = {}
        self.changed: dict[bytes, bytes | None] = {}
        self.since = -1  # log position before the oldest event not written back; -1: clean
        self.complete = False
        self.stored = False  # an object of it is in the store
        self.stored_version = 0  # what that object's header says; 0: nothing
        self.listing: tuple[dict[bytes, bytes | None], list[bytes]] | None = None  # `changed`, and its names in order
        self.names: SortedList[bytes] | None = None  # of a complete directory, in order, while somebody reads it
        self.evictions = 0

    def fnode(self) -> Fnode:
        """Its header."""
        return Fnode(
            self.version, self.parent, self.rbytes, self.rfiles, self.rdirs, self.rctime, self.accounted_bytes,
            self.accounted_files, self.accounted_dirs, self.accounted_ctime, self.name, self.record(),
        )  # fmt: skip

    def encode_header(self, version: int | None = None) -> bytes:
        """The bytes of its header; the same as `encode_fnode(self.fnode())`, without the detours. `version`: for another one."""
        head = FNODE.pack(
            FNODE_VERSION, 0, len(self.name), 0, self.version if version is None else version, self.parent, self.rbytes,
            self.rfiles, self.rdirs, self.rctime, self.accounted_bytes, self.accounted_files, self.accounted_dirs,
            self.accounted_ctime,
        )  # fmt: skip
        return head + self.name + self.encode()

    def take_header(self, fnode: Fnode) -> None:
        """Become what a header says; entries are not touched."""
        (self.version, self.parent, self.rbytes, self.rfiles, self.rdirs, self.rctime, self.accounted_bytes,
         self.accounted_files, self.accounted_dirs, self.accounted_ctime, self.name, inode) = fnode  # fmt: skip
        self.take(inode)

    @classmethod
    def from_header(cls, fnode: Fnode) -> Directory:
        """The directory a header describes, nothing known of its entries."""
        directory = cls(fnode.inode.ino, fnode.inode.mode, 0, 0, 0, 0, b"")
        directory.take_header(fnode)
        return directory

    def touch_record(self) -> bytes:
        """The event record of its counts and times."""
        return DIR_TOUCH.pack(
            1, 0, 0, self.nlink, self.ino, self.version, self.size, self.change, self.mtime, self.ctime, self.rbytes,
            self.rfiles, self.rdirs, self.rctime,
        )  # fmt: skip

    @property
    def unsettled(self) -> bool:
        """Whether the parent's statistics lack something of this directory's."""
        return (
            self.rbytes != self.accounted_bytes
            or self.rfiles != self.accounted_files
            or self.rdirs != self.accounted_dirs
            or self.rctime != self.accounted_ctime
        )
