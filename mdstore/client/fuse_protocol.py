"""The kernel's FUSE protocol: operation codes, flags and the layout of every message (`docs/format/fuse.md`).

Everything is in the byte order of the machine, every structure is a multiple of eight bytes, and nothing is padded
implicitly. Sizes are asserted when this module is imported, so a wrong field shows before the first mount.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Final

from mdstore.errors import InvalidRequest, UnsupportedFormat

VERSION_MAJOR: Final = 7
VERSION_MINOR: Final = 38  # what this module speaks; the smaller of both sides counts
VERSION_MINOR_MIN: Final = 31  # Linux 5.4: negotiated page counts, cached symlinks, LSEEK and COPY_FILE_RANGE

ROOT_NODE: Final = 1
PAGE_SIZE: Final = 4096  # the unit of INIT's max_pages


class Opcode(IntEnum):
    """What the kernel asks for. A number that is not here is answered with ENOSYS."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52


OPCODE_TABLE_SIZE: Final = 64  # numbers from here on are unknown


class Notify(IntEnum):
    """What the server tells the kernel unasked: the `error` field of a reply header whose `unique` is 0."""

    INVAL_INODE = 2
    INVAL_ENTRY = 3
    DELETE = 6


class Init:
    """INIT flags; bits from 32 on travel in `flags2`."""

    ASYNC_READ: Final = 1 << 0
    POSIX_LOCKS: Final = 1 << 1
    ATOMIC_O_TRUNC: Final = 1 << 3
    BIG_WRITES: Final = 1 << 5
    FLOCK_LOCKS: Final = 1 << 10
    DO_READDIRPLUS: Final = 1 << 13
    READDIRPLUS_AUTO: Final = 1 << 14
    ASYNC_DIO: Final = 1 << 15
    WRITEBACK_CACHE: Final = 1 << 16
    DONT_MASK: Final = 1 << 6
    PARALLEL_DIROPS: Final = 1 << 18
    POSIX_ACL: Final = 1 << 20
    MAX_PAGES: Final = 1 << 22
    CACHE_SYMLINKS: Final = 1 << 23
    EXPLICIT_INVAL_DATA: Final = 1 << 25
    HANDLE_KILLPRIV_V2: Final = 1 << 28
    INIT_EXT: Final = 1 << 30


class SetAttrValid:
    """`setattr_in.valid`: which fields count."""

    MODE: Final = 1 << 0
    UID: Final = 1 << 1
    GID: Final = 1 << 2
    SIZE: Final = 1 << 3
    ATIME: Final = 1 << 4
    MTIME: Final = 1 << 5
    FH: Final = 1 << 6
    ATIME_NOW: Final = 1 << 7
    MTIME_NOW: Final = 1 << 8
    CTIME: Final = 1 << 10  # only the kernel's own write-back of cached times sets it
    KILL_SUIDGID: Final = 1 << 11


FOPEN_KEEP_CACHE: Final = 1 << 1
FOPEN_CACHE_DIR: Final = 1 << 3
WRITE_KILL_SUIDGID: Final = 1 << 2
RELEASE_FLOCK_UNLOCK: Final = 1 << 1
LK_FLOCK: Final = 1 << 0
FSYNC_DATA_ONLY: Final = 1 << 0


class Layout:
    """One structure of the protocol: `fields` is `name:code` in order, codes as in the struct module (`4x`: zeros)."""

    __slots__ = ("fields", "name", "pack", "size", "unpack_from")

    def __init__(self, name: str, size: int, fields: str) -> None:
        self.name = name
        self.fields = [(field.split(":")[0], field.split(":")[1]) for field in fields.split()]
        layout = struct.Struct("=" + "".join(code for _, code in self.fields))
        assert layout.size == size, f"{name} is {layout.size} bytes, the kernel's is {size}"
        self.size = size
        self.pack: Callable[..., bytes] = layout.pack
        self.unpack_from: Callable[..., tuple[Any, ...]] = layout.unpack_from


_ATTR = (
    "ino:Q size:Q blocks:Q atime:q mtime:q ctime:q atimensec:I mtimensec:I ctimensec:I "
    "mode:I nlink:I uid:I gid:I rdev:I blksize:I flags:I"
)
_LOCK = "start:Q end:Q type:I pid:I"

IN_HEADER = Layout(
    "in_header", 40, "len:I opcode:I unique:Q nodeid:Q uid:I gid:I pid:I total_extlen:H padding:2x"
)
OUT_HEADER = Layout("out_header", 16, "len:I error:i unique:Q")

ATTR = Layout("attr", 88, _ATTR)
ENTRY_OUT = Layout(
    "entry_out", 128, f"nodeid:Q generation:Q entry_valid:Q attr_valid:Q entry_valid_nsec:I attr_valid_nsec:I {_ATTR}"
)
ATTR_OUT = Layout("attr_out", 104, f"attr_valid:Q attr_valid_nsec:I dummy:4x {_ATTR}")
INIT_IN = Layout("init_in", 16, "major:I minor:I max_readahead:I flags:I")  # 64 bytes where flags has INIT_EXT
INIT_IN_EXT = Layout("init_in_ext", 48, "flags2:I unused:44x")  # follows init_in
INIT_OUT = Layout(
    "init_out",
    64,
    "major:I minor:I max_readahead:I flags:I max_background:H congestion_threshold:H max_write:I time_gran:I "
    "max_pages:H map_alignment:H flags2:I unused:28x",
)
FORGET_IN = Layout("forget_in", 8, "nlookup:Q")
FORGET_ONE = Layout("forget_one", 16, "nodeid:Q nlookup:Q")
BATCH_FORGET_IN = Layout("batch_forget_in", 8, "count:I dummy:4x")
GETATTR_IN = Layout("getattr_in", 16, "getattr_flags:I dummy:4x fh:Q")
SETATTR_IN = Layout(
    "setattr_in",
    88,
    "valid:I padding:4x fh:Q size:Q lock_owner:Q atime:q mtime:q ctime:q atimensec:I mtimensec:I ctimensec:I "
    "mode:I unused4:4x uid:I gid:I unused5:4x",
)
MKNOD_IN = Layout("mknod_in", 16, "mode:I rdev:I umask:I padding:4x")
MKDIR_IN = Layout("mkdir_in", 8, "mode:I umask:I")
RENAME_IN = Layout("rename_in", 8, "newdir:Q")
RENAME2_IN = Layout("rename2_in", 16, "newdir:Q flags:I padding:4x")
LINK_IN = Layout("link_in", 8, "oldnodeid:Q")
OPEN_IN = Layout("open_in", 8, "flags:I open_flags:I")
CREATE_IN = Layout("create_in", 16, "flags:I mode:I umask:I open_flags:I")
OPEN_OUT = Layout("open_out", 16, "fh:Q open_flags:I padding:4x")
RELEASE_IN = Layout("release_in", 24, "fh:Q flags:I release_flags:I lock_owner:Q")
FLUSH_IN = Layout("flush_in", 24, "fh:Q unused:4x padding:4x lock_owner:Q")
READ_IN = Layout("read_in", 40, "fh:Q offset:Q size:I read_flags:I lock_owner:Q flags:I padding:4x")
WRITE_IN = Layout("write_in", 40, "fh:Q offset:Q size:I write_flags:I lock_owner:Q flags:I padding:4x")
WRITE_OUT = Layout("write_out", 8, "size:I padding:4x")
STATFS_OUT = Layout(
    "statfs_out", 80, "blocks:Q bfree:Q bavail:Q files:Q ffree:Q bsize:I namelen:I frsize:I padding:4x spare:24x"
)
FSYNC_IN = Layout("fsync_in", 16, "fh:Q fsync_flags:I padding:4x")
SETXATTR_IN = Layout("setxattr_in", 8, "size:I flags:I")
GETXATTR_IN = Layout("getxattr_in", 8, "size:I padding:4x")
GETXATTR_OUT = Layout("getxattr_out", 8, "size:I padding:4x")
LK_IN = Layout("lk_in", 48, f"fh:Q owner:Q {_LOCK} lk_flags:I padding:4x")
LK_OUT = Layout("lk_out", 24, _LOCK)
ACCESS_IN = Layout("access_in", 8, "mask:I padding:4x")
INTERRUPT_IN = Layout("interrupt_in", 8, "unique:Q")
FALLOCATE_IN = Layout("fallocate_in", 32, "fh:Q offset:Q length:Q mode:I padding:4x")
LSEEK_IN = Layout("lseek_in", 24, "fh:Q offset:Q whence:I padding:4x")
LSEEK_OUT = Layout("lseek_out", 8, "offset:Q")
COPY_FILE_RANGE_IN = Layout(
    "copy_file_range_in", 56, "fh_in:Q off_in:Q nodeid_out:Q fh_out:Q off_out:Q len:Q flags:Q"
)
DIRENT = Layout("dirent", 24, "ino:Q off:Q namelen:I type:I")  # the name follows, zeros up to a multiple of 8
INVAL_INODE_OUT = Layout("inval_inode_out", 24, "ino:Q off:q len:q")
INVAL_ENTRY_OUT = Layout("inval_entry_out", 16, "parent:Q namelen:I flags:I")  # name and a zero follow
DELETE_OUT = Layout("delete_out", 24, "parent:Q child:Q namelen:I padding:4x")  # name and a zero follow

REQUEST_OVERHEAD: Final = PAGE_SIZE  # headers in front of a WRITE's bytes; the kernel wants at least 80
READ_BUFFER_MIN: Final = 8192  # the kernel refuses to deliver into less

_ZEROS = bytes(8)


def dirent(ino: int, cookie: int, file_type: int, name: bytes) -> bytes:
    """One entry of a READDIR reply. `file_type` is `mode >> 12`; `cookie` names the place after this entry."""
    length = len(name)
    return DIRENT.pack(ino, cookie, length, file_type) + name + _ZEROS[: -length % 8]


def dirent_size(name: bytes) -> int:
    """Bytes that `dirent` gives for that name."""
    return DIRENT.size + (len(name) + 7 & ~7)


def request_body_minimum() -> list[int]:
    """By operation code, the fewest bytes that may follow the header; shorter requests are refused unread."""
    minimum = [0] * OPCODE_TABLE_SIZE
    for opcode, layout, name_bytes in _BODIES:
        minimum[opcode] = layout.size + name_bytes
    for opcode, name_bytes in ((Opcode.LOOKUP, 2), (Opcode.UNLINK, 2), (Opcode.RMDIR, 2), (Opcode.SYMLINK, 4)):
        minimum[opcode] = name_bytes
    minimum[Opcode.REMOVEXATTR] = 2
    return minimum


# Operation, fixed structure in front, bytes of names that must follow at the least (a character and a zero each).
_BODIES: Final[tuple[tuple[Opcode, Layout, int], ...]] = (
    (Opcode.FORGET, FORGET_IN, 0),
    (Opcode.GETATTR, GETATTR_IN, 0),
    (Opcode.SETATTR, SETATTR_IN, 0),
    (Opcode.MKNOD, MKNOD_IN, 2),
    (Opcode.MKDIR, MKDIR_IN, 2),
    (Opcode.RENAME, RENAME_IN, 4),
    (Opcode.LINK, LINK_IN, 2),
    (Opcode.OPEN, OPEN_IN, 0),
    (Opcode.READ, READ_IN, 0),
    (Opcode.WRITE, WRITE_IN, 0),
    (Opcode.RELEASE, RELEASE_IN, 0),
    (Opcode.FSYNC, FSYNC_IN, 0),
    (Opcode.SETXATTR, SETXATTR_IN, 2),
    (Opcode.GETXATTR, GETXATTR_IN, 2),
    (Opcode.LISTXATTR, GETXATTR_IN, 0),
    (Opcode.FLUSH, FLUSH_IN, 0),
    (Opcode.INIT, INIT_IN, 0),
    (Opcode.OPENDIR, OPEN_IN, 0),
    (Opcode.READDIR, READ_IN, 0),
    (Opcode.READDIRPLUS, READ_IN, 0),
    (Opcode.RELEASEDIR, RELEASE_IN, 0),
    (Opcode.FSYNCDIR, FSYNC_IN, 0),
    (Opcode.GETLK, LK_IN, 0),
    (Opcode.SETLK, LK_IN, 0),
    (Opcode.SETLKW, LK_IN, 0),
    (Opcode.ACCESS, ACCESS_IN, 0),
    (Opcode.CREATE, CREATE_IN, 2),
    (Opcode.INTERRUPT, INTERRUPT_IN, 0),
    (Opcode.BATCH_FORGET, BATCH_FORGET_IN, 0),
    (Opcode.FALLOCATE, FALLOCATE_IN, 0),
    (Opcode.RENAME2, RENAME2_IN, 4),
    (Opcode.LSEEK, LSEEK_IN, 0),
    (Opcode.COPY_FILE_RANGE, COPY_FILE_RANGE_IN, 0),
)


def name_at(body: memoryview, offset: int) -> bytes:
    """The zero-terminated name at `offset`. `InvalidRequest` where the zero is missing."""
    return names_at(body, offset, 1)[0]


def names_at(body: memoryview, offset: int, count: int) -> list[bytes]:
    """`count` zero-terminated names, one after another."""
    parts = body[offset:].tobytes().split(b"\0", count)
    if len(parts) != count + 1:
        raise InvalidRequest(f"a FUSE request ends inside a name: {count} expected, {len(parts) - 1} found")
    return parts[:count]


def check_version(major: int, minor: int) -> None:
    """`UnsupportedFormat` where the kernel's protocol is one we cannot speak (before Linux 5.4)."""
    if major != VERSION_MAJOR or minor < VERSION_MINOR_MIN:
        raise UnsupportedFormat(
            f"the kernel speaks FUSE {major}.{minor}, at least {VERSION_MAJOR}.{VERSION_MINOR_MIN} is needed "
            "(Linux 5.4 or newer)"
        )
