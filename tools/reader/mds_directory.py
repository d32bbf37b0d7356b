"""Directory headers: docs/format/mds-directory.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from mdstore.tools.reader.mds_inode import ROOT, TYPE_DIRECTORY, Inode, decode_inode
from mdstore.tools.reader.problems import Damage

COLLECTION: Final = b"meta"

DIRECTORY_HEADER: Final = struct.Struct("<BBHIQQQQQqQQQq")
assert DIRECTORY_HEADER.size == 88


@dataclass(frozen=True, slots=True)
class Header:
    """What a directory's map header says. Field names are those of the page."""

    version: int
    parent: int
    rbytes: int
    rfiles: int
    rdirs: int
    rctime: int
    accounted_bytes: int
    accounted_files: int
    accounted_dirs: int
    accounted_ctime: int
    name: bytes
    inode: Inode


def decode_header(data: bytes) -> Header:
    """A directory's header. Damage (`directory`, `inode`)."""
    if len(data) < DIRECTORY_HEADER.size:
        raise Damage("directory", "directory header cut short", f"at least {DIRECTORY_HEADER.size} bytes", len(data))
    layout, spare, name_length, spare2, *numbers = DIRECTORY_HEADER.unpack_from(data)
    if layout != 1 or spare or spare2:
        raise Damage("directory", "directory header", "layout 1, spare bytes 0", data[:8])
    end = DIRECTORY_HEADER.size + name_length
    inode = decode_inode(data, end)
    if inode.type != TYPE_DIRECTORY:
        raise Damage("directory", "directory's inode", "a directory", f"mode {inode.mode:o}")
    header = Header(*(*numbers, data[DIRECTORY_HEADER.size : end], inode))
    if (inode.ino == ROOT) != (not header.name) or (inode.ino == ROOT and header.parent != ROOT):
        raise Damage("directory", "directory's name and parent", "none in the root, one elsewhere", header.name)
    return header


def object_name(ino: int) -> bytes:
    """The object of a directory."""
    return b"%016x" % ino


def ino_of(name: bytes) -> int | None:
    """The directory that an object of `meta` is, or None for a table."""
    if len(name) != 16:
        return None
    try:
        ino = int(name, 16)
    except ValueError:
        return None
    return ino if object_name(ino) == name else None
