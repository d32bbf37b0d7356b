"""The header of a directory object: docs/format/mds-directory.md.

It carries the directory's own inode (the only copy), where the directory hangs (its backtrace), its version and its
statistics. Fields are kept in the order of the structure.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from mdstore.errors import CorruptionError
from mdstore.limits import NAME_MAX
from mdstore.mds.records import InodeRecord, decode_inode, encode_inode

FNODE_VERSION: Final = 1
FNODE: Final = struct.Struct("<BBHIQQQQQqQQQq")
FNODE_SIZE: Final = 88
assert FNODE.size == FNODE_SIZE


class Fnode(NamedTuple):
    """A decoded directory header. `version` grows by one with every change of the directory or of an entry in it."""

    version: int
    parent: int  # the directory that holds it; the root's is itself
    rbytes: int  # of everything below: bytes of files, files, directories, latest change
    rfiles: int
    rdirs: int
    rctime: int
    accounted_bytes: int  # what of it the parent's statistics contain
    accounted_files: int
    accounted_dirs: int
    accounted_ctime: int
    name: bytes  # in the parent; the root's is empty
    inode: InodeRecord


def encode_fnode(fnode: Fnode) -> bytes:
    """The header's bytes: fixed part, name, inode record."""
    head = FNODE.pack(FNODE_VERSION, 0, len(fnode.name), 0, *fnode[:10])
    return head + fnode.name + encode_inode(fnode.inode)


def decode_fnode(raw: bytes, where: str, start: int = 0) -> Fnode:
    """The header that fills `raw` from `start`. CorruptionError names `where`."""
    if len(raw) - start < FNODE_SIZE:
        raise CorruptionError("directory header", where, f"at least {FNODE_SIZE} bytes", len(raw) - start)
    layout, zero, name_length, zero_too, version, parent, *statistics = FNODE.unpack_from(raw, start)
    if layout != FNODE_VERSION or zero or zero_too or name_length > NAME_MAX:
        raise CorruptionError("directory header", where, "version 1, zeros, a name", (layout, zero, zero_too, name_length))
    inode_at = start + FNODE_SIZE + name_length
    name = raw[start + FNODE_SIZE : inode_at]
    inode = decode_inode(raw, where, inode_at)
    if inode.mode >> 12 != 4:
        raise CorruptionError("directory header", where, "the inode of a directory", oct(inode.mode))
    rbytes, rfiles, rdirs, rctime, abytes, afiles, adirs, actime = statistics
    return Fnode(version, parent, rbytes, rfiles, rdirs, rctime, abytes, afiles, adirs, actime, name, inode)
