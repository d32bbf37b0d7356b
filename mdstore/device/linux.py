"""What a file device needs of Linux beyond the `os` module: fallocate(2), sync_file_range(2) and two ioctls of block devices."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from typing import Final

# From <linux/fs.h> and <linux/falloc.h>; the same on every architecture that encodes ioctls the common way.
BLKGETSIZE64: Final = 0x80081272  # answers a u64: bytes
BLKSSZGET: Final = 0x1268  # answers an int: bytes of a logical sector
FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
SYNC_FILE_RANGE_WRITE: Final = 0x02  # from <linux/fs.h>

UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.fallocate.restype = ctypes.c_int
_libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
_libc.sync_file_range.restype = ctypes.c_int


def preallocate(fd: int, offset: int, length: int) -> bool:
    """Reserve the range's blocks; the file grows to its end. False where the file system cannot.

    fallocate(2) itself and not `os.posix_fallocate`: where a file system has no such call the C library imitates it by
    writing into every block, which takes minutes for what a sparse file gives at once.
    """
    return _fallocate(fd, 0, offset, length)


def punch(fd: int, offset: int, length: int) -> bool:
    """Give the range's blocks back; it reads as zeros afterwards. False where the medium cannot promise both."""
    return _fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> bool:
    while length:
        if _libc.fallocate(fd, mode, offset, length) == 0:
            break
        number = ctypes.get_errno()
        if number in UNSUPPORTED:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True


def start_writing(fd: int, offset: int, length: int) -> None:
    """Begin to write the range's dirty pages to the medium, without waiting for it. Errors are left to the next fsync."""
    _libc.sync_file_range(fd, offset, length, SYNC_FILE_RANGE_WRITE)


def block_device_geometry(fd: int) -> tuple[int, int]:
    """(size in bytes, logical sector size in bytes) of an open block device."""
    size_bytes = struct.unpack("=Q", fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)))[0]
    sector_size = struct.unpack("=i", fcntl.ioctl(fd, BLKSSZGET, bytes(4)))[0]
    return int(size_bytes), int(sector_size)
