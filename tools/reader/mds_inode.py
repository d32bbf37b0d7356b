"""Inode records and directory entries: docs/format/mds-inode.md."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from mdstore.tools.reader.problems import Damage

ROOT: Final = 1
INO_END: Final = 1 << 44  # numbers from here on are those of snapshots looked into
FLAG_SPARSE: Final = 1
FLAG_DATA: Final = 2
TAG_PRIMARY: Final = 1
TAG_REMOTE: Final = 2
TAG_DIRECTORY: Final = 3
TYPE_DIRECTORY: Final = 4
TYPE_REGULAR: Final = 8
TYPE_SYMLINK: Final = 10
_TYPES: Final = frozenset({1, 2, 4, 6, 8, 10, 12})  # fifo, character, directory, block, regular, symlink, socket

INODE_CORE: Final = struct.Struct("<BBHIQIIIIQQQqqqqQHHI")
LINK: Final = struct.Struct("<BBHQ")
_XATTR: Final = struct.Struct("<BI")
assert (INODE_CORE.size, LINK.size, _XATTR.size) == (104, 12, 5)


class Inode(NamedTuple):
    """An inode record. `xattrs` is what the record holds, checked, not taken apart."""

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
    xattrs: bytes

    @property
    def type(self) -> int:
        """`st_mode >> 12`."""
        return self.mode >> 12


class Entry(NamedTuple):
    """The value of a directory entry: an inode of its own, or the number it leads to."""

    tag: int
    file_type: int
    ino: int
    inode: Inode | None


def decode_inode(data: bytes, at: int = 0) -> Inode:
    """The inode record from `at` to the end of `data`. Damage (`inode`)."""
    if len(data) - at < INODE_CORE.size:
        raise Damage("inode", "inode record cut short", f"at least {INODE_CORE.size} bytes", len(data) - at)
    (layout, flags, spare, mode, ino, generation, nlink, uid, gid, rdev, size, allocated, atime, mtime, ctime, btime, change,
     target_length, spare2, xattr_length) = INODE_CORE.unpack_from(data, at)  # fmt: skip
    end = at + INODE_CORE.size + target_length
    if layout != 1 or flags > 3 or spare or spare2 or not 0 < ino < INO_END or mode > 0xFFFF:
        raise Damage("inode", "inode record", "layout 1, known flags, spare bytes 0, a number below 2^44", data[at : at + 16])
    if end + xattr_length != len(data):
        raise Damage("inode", "inode record length", end + xattr_length - at, len(data) - at)
    target = data[end - target_length : end]
    inode = Inode(flags, mode, ino, generation, nlink, uid, gid, rdev, size, allocated, atime, mtime, ctime, btime, change,
                  target, data[end:])  # fmt: skip
    kind = mode >> 12
    if kind not in _TYPES or (target_length or size if kind == TYPE_SYMLINK else 0) != target_length:
        raise Damage(
            "inode", "inode type and target", "a known type, a target in a symbolic link only", f"mode {mode:o}"
        )
    if xattr_length:
        xattrs_of(inode)
    return inode


def xattrs_of(inode: Inode) -> dict[bytes, bytes]:
    """The extended attributes. Damage (`inode`)."""
    data, at, result = inode.xattrs, 0, {}
    last = b""
    while at < len(data):
        if at + _XATTR.size > len(data):
            raise Damage("inode", "extended attribute cut short", _XATTR.size, len(data) - at)
        name_length, value_length = _XATTR.unpack_from(data, at)
        at += _XATTR.size
        name, value = data[at : at + name_length], data[at + name_length : at + name_length + value_length]
        at += name_length + value_length
        if at > len(data) or name <= last:
            raise Damage("inode", "extended attributes", "names in rising order, lengths that fit", name)
        result[name] = value
        last = name
    return result


def decode_entry(value: bytes) -> Entry:
    """A directory entry's value. Damage (`entry`, `inode`)."""
    tag = value[0] if value else 0
    if tag == TAG_PRIMARY:
        inode = decode_inode(value, 1)
        if inode.mode >> 12 == TYPE_DIRECTORY:
            raise Damage("entry", "entry that owns an inode", "anything but a directory", f"mode {inode.mode:o}")
        return Entry(tag, inode.mode >> 12, inode.ino, inode)
    if tag not in (TAG_REMOTE, TAG_DIRECTORY) or len(value) != LINK.size:
        raise Damage("entry", "directory entry", "a known tag, 12 bytes of link", value[:16])
    _, file_type, spare, ino = LINK.unpack(value)
    if spare or not 0 < ino < INO_END or (file_type == TYPE_DIRECTORY) != (tag == TAG_DIRECTORY) or file_type not in _TYPES:
        raise Damage("entry", "link", "a number below 2^44, and type 4 exactly with tag 3", value)
    return Entry(tag, file_type, ino, None)


def is_name(name: bytes) -> bool:
    """Whether `name` may be the key of an entry."""
    return 0 < len(name) <= 255 and name not in (b".", b"..") and b"/" not in name and b"\0" not in name
