"""`Vfs`: the inode operations that every front shares (the mount, the command line).

A front parses and formats; the verb itself exists once, behind this protocol. Inodes are numbers, the root is `ROOT_INO`;
names are single path components as bytes. Every method raises `PosixError` with the errno POSIX gives for the case;
`CorruptionError` and `DeviceFailed` (EIO) come through from below. All methods are safe to call from many threads, and none
waits for the medium except `fsync`, `syncfs`, `close` and reads of what is not cached.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol, runtime_checkable

from mdstore.mds.locks import Lock

ROOT_INO = 1
RENAME_NOREPLACE = 1  # as in renameat2(2)
RENAME_EXCHANGE = 2
XATTR_CREATE = 1  # as in setxattr(2)
XATTR_REPLACE = 2


class Credentials(NamedTuple):
    """Who asks. `uid` 0 passes every permission check that POSIX lets a superuser pass. `umask`: bits that are taken from the
    mode of something new, unless the directory says by a default access control list what it is to have."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    pid: int = 0
    umask: int = 0


SUPERUSER = Credentials(0, 0)


class Attr(NamedTuple):
    """What stat(2) tells. Times are nanoseconds since 1970, signed; `blocks` counts 512 bytes."""

    ino: int
    mode: int  # type and permission bits, as st_mode
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int  # bytes; for a directory its number of entries
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    generation: int  # differs when a number is used again


class SetAttr(NamedTuple):
    """Which attributes to change; None leaves one as it is. `NOW` (-1 << 63) as a time means the server's clock."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None  # only for import and repair; POSIX calls never set it
    handle: int | None = None  # an open handle the size change comes through (ftruncate)


NOW = -1 << 63


class DirEntry(NamedTuple):
    """One entry of a directory, with its attributes (readdir and lookup in one). `attr.ino` 0: the entry is damaged, see
    `unreadable`."""

    name: bytes
    attr: Attr


def unreadable(file_type: int = 0) -> Attr:
    """What a listing says of a damaged entry, so that it hides none beside it: no inode, nothing counted as a lookup, the type
    (`st_mode >> 12`) where it is known. A lookup of the name tells what is wrong (EIO)."""
    return Attr(0, file_type << 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


class StatFs(NamedTuple):
    """What statvfs(3) tells. Sizes in blocks of `block_size` bytes."""

    block_size: int
    blocks: int
    blocks_free: int
    blocks_available: int
    files: int
    files_free: int
    name_max: int


class Vfs(Protocol):
    """A mounted name space."""

    # -- names ---------------------------------------------------------------------------------------------------------
    def lookup(self, cred: Credentials, parent: int, name: bytes) -> Attr: ...
    def create(self, cred: Credentials, parent: int, name: bytes, mode: int, flags: int) -> tuple[Attr, int]:
        """Make a regular file and open it (open(2) flags: O_EXCL, O_TRUNC, access mode); returns its attributes and a handle.
        Without O_EXCL an existing file is opened."""
    def mkdir(self, cred: Credentials, parent: int, name: bytes, mode: int) -> Attr: ...
    def mknod(self, cred: Credentials, parent: int, name: bytes, mode: int, rdev: int = 0) -> Attr:
        """Make a regular file (no handle), FIFO, socket or device."""
    def symlink(self, cred: Credentials, parent: int, name: bytes, target: bytes) -> Attr: ...
    def link(self, cred: Credentials, ino: int, parent: int, name: bytes) -> Attr: ...
    def unlink(self, cred: Credentials, parent: int, name: bytes) -> None: ...
    def rmdir(self, cred: Credentials, parent: int, name: bytes) -> None: ...
    def rename(
        self, cred: Credentials, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> None: ...

    # -- inodes --------------------------------------------------------------------------------------------------------
    def getattr(self, ino: int) -> Attr: ...
    def setattr(self, cred: Credentials, ino: int, change: SetAttr) -> Attr: ...
    def access(self, cred: Credentials, ino: int, mask: int) -> None:
        """Returns when `mask` (R_OK, W_OK, X_OK bits) is allowed, raises EACCES otherwise."""
    def readlink(self, ino: int) -> bytes: ...
    def setxattr(self, cred: Credentials, ino: int, name: bytes, value: bytes, flags: int = 0) -> None: ...
    def getxattr(self, cred: Credentials, ino: int, name: bytes) -> bytes: ...
    def listxattr(self, ino: int) -> list[bytes]: ...
    def removexattr(self, cred: Credentials, ino: int, name: bytes) -> None: ...
    def forget(self, ino: int, lookups: int) -> None:
        """The front drops that many references; lookup, create, mkdir, mknod, symlink, link and entries handed out by
        `readdir(..., count_lookups=True)` each took one. An unlinked inode lives until its references and handles are gone."""

    # -- files ---------------------------------------------------------------------------------------------------------
    def open(self, cred: Credentials, ino: int, flags: int) -> int:
        """A handle. O_TRUNC empties the file; O_APPEND writes go to the end."""
    def read(self, handle: int, offset: int, length: int) -> bytes: ...
    def write(self, handle: int, offset: int, data: bytes | memoryview) -> int: ...
    def fsync(self, handle: int, *, data_only: bool = False) -> None:
        """On return the file's bytes and attributes, and every name-space change made before the call, survive a crash."""
    def release(self, handle: int) -> None: ...
    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None: ...
    def lseek(self, handle: int, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE; ENXIO past the end."""
    def copy_file_range(self, source: int, source_offset: int, target: int, target_offset: int, length: int) -> int: ...

    # -- directories ---------------------------------------------------------------------------------------------------
    def opendir(self, cred: Credentials, ino: int) -> int: ...
    def readdir(
        self, handle: int, after: bytes | None, limit: int, *, count_lookups: bool = False
    ) -> list[DirEntry]:
        """Up to `limit` entries whose names come after `after` (None: from the first) in the byte order of names, '.' and '..'
        not among them. An entry that was there all the while is returned exactly once, whatever comes and goes beside it.
        Where some cannot be read all others are returned; then, instead of nothing, CorruptionError or DeviceFailed is raised,
        until the handle is read from the first again."""
    def parent_of(self, ino: int) -> int:
        """The directory that holds this directory ('..'); the root's is the root."""
    def releasedir(self, handle: int) -> None: ...

    # -- whole ---------------------------------------------------------------------------------------------------------
    def statfs(self) -> StatFs: ...
    def syncfs(self) -> None:
        """On return everything done before survives a crash."""
    def close(self) -> None:
        """Write everything back and stop. No handle may be used afterwards."""


@runtime_checkable
class Recalling(Protocol):
    """What a name space that bounds the numbers it has handed out has beside `Vfs`."""

    def recall_through(self, recall: Callable[[int, bytes], bool]) -> None:
        """`recall(directory, name)` will be called, with locks held, for what the front should let go of if nobody uses it:
        it then forgets the number. False: not now. It must return at once."""


@runtime_checkable
class StandingIn(Protocol):
    """What a name space has beside `Vfs` whose damaged names can be removed: a kernel looks a name up before it removes it."""

    def stand_in(self, cred: Credentials, parent: int, name: bytes) -> Attr | None:
        """For a name whose lookup failed: a directory in its place, `unreadable` but for its number, counted as a lookup. Its use
        is EIO; `rmdir` removes it. None where the name cannot be removed unread either. PosixError as from a lookup."""


class Locking(Protocol):
    """What a name space that keeps advisory locks itself has beside `Vfs`. None of it waits; `granted` is called when a lock that
    was waited for is held. POSIX record locks belong to the owner the front names (a process) and go with `drop_lock`, when that
    closes the file, or with the session's last handle of it; flock(2) locks (`flock`) belong to the open file, are on the whole
    of it, and go with its handle. All go with the session. Who is gone is granted nothing. An owner has 64 bits, a range lies
    within 0 to `RANGE_END`: InvalidRequest."""

    def test_lock(self, handle: int, wanted: Lock, *, flock: bool = False) -> Lock | None:
        """The lock in the way, if there is one."""
    def take_lock(self, handle: int, wanted: Lock, *, flock: bool = False) -> bool:
        """Take a lock, or change one; False where another's is in the way. flock(2) gives back one of the other kind first."""
    def wait_for_lock(
        self, handle: int, wanted: Lock, token: Hashable, granted: Callable[[], None], *, flock: bool = False
    ) -> bool:
        """`take_lock`, or wait for it: False, and `granted` is called once, perhaps before this returns. True: it is held, and
        `granted` is not called. `token`: the front's own name for the wait, which it has no other wait of. EDEADLK."""
    def cancel_lock(self, token: Hashable) -> bool:
        """Wait no longer; False where it is granted already, or the session has no such wait."""
    def drop_lock(self, handle: int, owner: int, start: int, end: int, *, flock: bool = False) -> None:
        """Give back a range, of which both ends are inside."""
