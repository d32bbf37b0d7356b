"""FUSE operations on open files, as a table over a `Vfs`."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from mdstore.client.fuse_credentials import Masks
from mdstore.client.fuse_operation import SLOW, Operation, OperationTable, Reply, always_slow
from mdstore.client.fuse_protocol import (
    COPY_FILE_RANGE_IN,
    CREATE_IN,
    ENTRY_OUT,
    FALLOCATE_IN,
    FOPEN_KEEP_CACHE,
    FSYNC_DATA_ONLY,
    FSYNC_IN,
    LSEEK_IN,
    LSEEK_OUT,
    OPEN_IN,
    OPEN_OUT,
    READ_IN,
    RELEASE_IN,
    WRITE_IN,
    WRITE_KILL_SUIDGID,
    WRITE_OUT,
    Opcode,
    name_at,
)
from mdstore.client.fuse_reply import ReplyEncoder
from mdstore.errors import InvalidRequest, PosixError
from mdstore.mds.vfs import SUPERUSER, Credentials, SetAttr, Vfs

COPY_MAX: Final = 1 << 30  # bytes one COPY_FILE_RANGE answers for; the reply counts in 32 bits
ReadCached = Callable[[int, int, int], "bytes | None"]


class FileOperations:
    """Open to release. With `writeback` the kernel keeps written pages and sends them when it likes.

    A `Vfs` may have `read_cached(handle, offset, length)`, which is `read` or, where that would wait for the medium, None;
    without it every READ goes to a worker thread. `masks`: given where the name space applies the umask.
    """

    def __init__(self, vfs: Vfs, replies: ReplyEncoder, masks: Masks | None = None, *, writeback: bool) -> None:
        self._vfs = vfs
        self._replies = replies
        self._writeback = writeback
        self._masks = masks
        self._read_cached: ReadCached | None = getattr(vfs, "read_cached", None)
        self._open_flags = FOPEN_KEEP_CACHE

    def table(self) -> OperationTable:
        return {
            Opcode.OPEN: Operation(self.open, undo=self._undo_open),
            Opcode.CREATE: Operation(self.create, undo=self._undo_create),
            Opcode.READ: Operation(self.read if self._read_cached else always_slow, worker=self.read_waiting),
            Opcode.WRITE: Operation(self.write),
            Opcode.RELEASE: Operation(self.release),
            Opcode.FSYNC: Operation(always_slow, worker=self.fsync),
            Opcode.SYNCFS: Operation(always_slow, worker=self.syncfs),
            Opcode.FALLOCATE: Operation(always_slow, worker=self.fallocate),
            Opcode.LSEEK: Operation(always_slow, worker=self.lseek),
            Opcode.COPY_FILE_RANGE: Operation(always_slow, worker=self.copy_file_range),
        }

    def open(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        flags, _ = OPEN_IN.unpack_from(body)
        return OPEN_OUT.pack(self._vfs.open(cred, nodeid, self._effective(flags)), self._open_flags)

    def create(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        flags, mode, umask, _ = CREATE_IN.unpack_from(body)
        name = name_at(body, CREATE_IN.size)
        if self._masks:
            cred = self._masks.of(cred, umask)
        attr, handle = self._vfs.create(cred, nodeid, name, mode, self._effective(flags))
        return self._replies.entry(attr) + OPEN_OUT.pack(handle, self._open_flags)

    def read(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        assert self._read_cached is not None
        handle, offset, size, _, _, _ = READ_IN.unpack_from(body)
        data = self._read_cached(handle, offset, size)
        return SLOW if data is None else data

    def read_waiting(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        handle, offset, size, _, _, _ = READ_IN.unpack_from(body)
        return self._vfs.read(handle, offset, size)

    def write(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        handle, offset, size, write_flags, _, _ = WRITE_IN.unpack_from(body)
        data = body[WRITE_IN.size : WRITE_IN.size + size]
        if len(data) != size:
            raise InvalidRequest(f"WRITE of {size} bytes carries {len(data)}")
        written = self._vfs.write(handle, offset, data)
        if write_flags & WRITE_KILL_SUIDGID:
            self._drop_privilege_bits(nodeid)
        return WRITE_OUT.pack(written)

    def release(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        self._vfs.release(RELEASE_IN.unpack_from(body)[0])
        return b""

    def fsync(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        handle, flags = FSYNC_IN.unpack_from(body)
        self._vfs.fsync(handle, data_only=bool(flags & FSYNC_DATA_ONLY))
        return b""

    def syncfs(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        self._vfs.syncfs()
        return b""

    def fallocate(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        handle, offset, length, mode = FALLOCATE_IN.unpack_from(body)
        self._vfs.fallocate(handle, mode, offset, length)
        return b""

    def lseek(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        handle, offset, whence = LSEEK_IN.unpack_from(body)
        try:
            return LSEEK_OUT.pack(self._vfs.lseek(handle, offset, whence))
        except PosixError as error:
            if error.errno == errno.EOPNOTSUPP:
                return errno.ENOSYS  # the kernel then treats every file as all data, as POSIX allows
            raise

    def copy_file_range(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        source, source_offset, _node, target, target_offset, length, _flags = COPY_FILE_RANGE_IN.unpack_from(body)
        length = min(length, COPY_MAX)
        return WRITE_OUT.pack(self._vfs.copy_file_range(source, source_offset, target, target_offset, length))

    def _effective(self, flags: int) -> int:
        """The flags a handle needs: with write-back the kernel itself appends, and reads pages it writes a part of."""
        if not self._writeback:
            return flags
        flags &= ~os.O_APPEND
        if flags & os.O_ACCMODE == os.O_WRONLY:
            flags = flags & ~os.O_ACCMODE | os.O_RDWR
        return flags

    def _drop_privilege_bits(self, ino: int) -> None:
        """A write by an ordinary user takes set-uid and effective set-gid from the file."""
        mode = self._vfs.getattr(ino).mode
        dropped = mode & (stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0))
        if dropped:
            self._vfs.setattr(SUPERUSER, ino, SetAttr(mode=stat.S_IMODE(mode & ~dropped)))

    def _undo_open(self, nodeid: int, reply: bytes) -> None:
        self._vfs.release(OPEN_OUT.unpack_from(reply)[0])

    def _undo_create(self, nodeid: int, reply: bytes) -> None:
        self._vfs.release(OPEN_OUT.unpack_from(reply, ENTRY_OUT.size)[0])
        self._vfs.forget(ENTRY_OUT.unpack_from(reply)[0], 1)
