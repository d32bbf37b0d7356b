"""Inode records and the values of directory entries: docs/format/mds-inode.md.

An inode record is a fixed core followed by its tails: the target of a symlink and the extended attributes. The value of a
directory entry is a tag byte followed by an inode record (the entry owns the inode), or by a link to an inode that lives
elsewhere: a directory (in its own object) or an inode of several names (in the inode table).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from mdstore.errors import CorruptionError

INODE_VERSION: Final = 1
INODE_CORE: Final = struct.Struct("<BBHIQIIIIQQQqqqqQHHI")
CORE_SIZE: Final = 104
assert INODE_CORE.size == CORE_SIZE

XATTR_HEAD: Final = struct.Struct("<BI")
assert XATTR_HEAD.size == 5

LINK: Final = struct.Struct("<BBHQ")
assert LINK.size == 12

TAG_PRIMARY: Final = 1
TAG_REMOTE: Final = 2
TAG_DIRECTORY: Final = 3
PRIMARY: Final = bytes([TAG_PRIMARY])
PRIMARY_CORE: Final = struct.Struct("<B" + INODE_CORE.format[1:])  # an entry's tag and its inode's core in one call
assert PRIMARY_CORE.size == 1 + CORE_SIZE

FLAG_SPARSE: Final = 1  # the file may have holes; `allocated` counts its space
FLAG_DATA: Final = 2  # objects with its bytes may exist
KNOWN_FLAGS: Final = FLAG_SPARSE | FLAG_DATA

TYPE_DIRECTORY: Final = 4  # st_mode >> 12
FILE_TYPES: Final = frozenset({1, 2, 4, 6, 8, 10, 12})

INO_BITS: Final = 44  # of an inode's number; those above say in which snapshot it is looked at
INO_END: Final = 1 << INO_BITS


class InodeRecord(NamedTuple):
    """A decoded inode. Times are nanoseconds since 1970; `size` is bytes, of a directory its number of entries."""

    flags: int
    mode: int
    ino: int
    generation: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    allocated: int
    atime: int
    mtime: int
    ctime: int
    btime: int
    change: int
    target: bytes
    xattrs: dict[bytes, bytes] | None


class Link(NamedTuple):
    """A directory entry whose inode lives elsewhere: `file_type` is `st_mode >> 12`."""

    tag: int
    file_type: int
    ino: int


def encode_inode(record: InodeRecord) -> bytes:
    """The record's bytes: core, target, attributes."""
    xattrs = encode_xattrs(record.xattrs) if record.xattrs else b""
    core = INODE_CORE.pack(
        INODE_VERSION, record.flags, 0, record.mode, record.ino, record.generation, record.nlink, record.uid, record.gid,
        record.rdev, record.size, record.allocated, record.atime, record.mtime, record.ctime, record.btime, record.change,
        len(record.target), 0, len(xattrs),
    )  # fmt: skip
    return core + record.target + xattrs


def decode_inode(raw: bytes, where: str, start: int = 0) -> InodeRecord:
    """The inode record that fills `raw` from `start` to its end. CorruptionError names `where`."""
    if len(raw) - start < CORE_SIZE:
        raise CorruptionError("inode record", where, f"at least {CORE_SIZE} bytes", len(raw) - start)
    (version, flags, zero, mode, ino, generation, nlink, uid, gid, rdev, size, allocated, atime, mtime, ctime, btime,
     change, target_length, zero_too, xattr_length) = INODE_CORE.unpack_from(raw, start)  # fmt: skip
    if version != INODE_VERSION or flags & ~KNOWN_FLAGS or zero or zero_too:
        raise CorruptionError("inode record", where, "version 1, known flags, zeros", (version, flags, zero, zero_too))
    if mode >> 12 not in FILE_TYPES or not 0 < ino < INO_END:
        raise CorruptionError("inode record", where, "a file type and a number below 2^44", (oct(mode), ino))
    tail = start + CORE_SIZE
    if len(raw) != tail + target_length + xattr_length:
        raise CorruptionError("inode record", where, CORE_SIZE + target_length + xattr_length, len(raw) - start)
    target = raw[tail : tail + target_length]
    xattrs = decode_xattrs(raw[tail + target_length :], where) if xattr_length else None
    return InodeRecord(
        flags, mode, ino, generation, nlink, uid, gid, rdev, size, allocated, atime, mtime, ctime, btime, change, target, xattrs
    )


def encode_xattrs(xattrs: dict[bytes, bytes]) -> bytes:
    """Names in order, each with its value."""
    parts: list[bytes] = []
    for name in sorted(xattrs):
        value = xattrs[name]
        parts += (XATTR_HEAD.pack(len(name), len(value)), name, value)
    return b"".join(parts)


def decode_xattrs(raw: bytes, where: str) -> dict[bytes, bytes]:
    """The reverse of `encode_xattrs`; CorruptionError when the lengths do not add up or the names are out of order."""
    found: dict[bytes, bytes] = {}
    at = 0
    last = b""
    while at < len(raw):
        if len(raw) - at < XATTR_HEAD.size:
            raise CorruptionError("extended attributes", where, "a whole header", raw[at:])
        name_length, value_length = XATTR_HEAD.unpack_from(raw, at)
        at += XATTR_HEAD.size
        name = raw[at : at + name_length]
        end = at + name_length + value_length
        if end > len(raw) or name <= last:
            raise CorruptionError("extended attributes", where, "names in order within the record", name)
        found[name] = raw[at + name_length : end]
        at, last = end, name
    return found


def encode_link(tag: int, file_type: int, ino: int) -> bytes:
    """The value of an entry whose inode lives elsewhere."""
    return LINK.pack(tag, file_type, 0, ino)


def decode_entry(raw: bytes, where: str) -> InodeRecord | Link:
    """The value of a directory entry."""
    tag = raw[0] if raw else 0
    if tag == TAG_PRIMARY:
        record = decode_inode(raw, where, 1)
        if record.mode >> 12 == TYPE_DIRECTORY:
            raise CorruptionError("directory entry", where, "no directory inside an entry", oct(record.mode))
        return record
    if tag not in (TAG_REMOTE, TAG_DIRECTORY) or len(raw) != LINK.size:
        raise CorruptionError("directory entry", where, "tag 1, 2 or 3 and its length", raw[:LINK.size])
    _, file_type, zero, ino = LINK.unpack(raw)
    is_directory = file_type == TYPE_DIRECTORY
    if zero or not 0 < ino < INO_END or file_type not in FILE_TYPES or (tag == TAG_DIRECTORY) != is_directory:
        raise CorruptionError("directory entry", where, "a link to a number below 2^44", (tag, file_type, zero, ino))
    return Link(tag, file_type, ino)


def entry_ino(raw: bytes) -> int:
    """The inode number in the value of an entry, without decoding the rest."""
    at = 9 if raw[0] == TAG_PRIMARY else 4
    return int.from_bytes(raw[at : at + 8], "little")
