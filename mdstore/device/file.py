"""Files and block devices: the one module that hands bytes to the operating system.

Invariants:

1. A writable device holds the exclusive lock of its file from before the first byte is read or dropped until `close`;
   a read-only one holds the shared lock, unless it was opened with `lock=False`.
2. `size_bytes` never exceeds what the file held when it was opened, created or last resized.
3. After a flush has failed every later write and flush fails: the kernel forgets dirty pages it could not write, so a
   second fsync that says "fine" would be a lie about the first one's pages.
4. Flushes are made one at a time: the kernel tells of a lost write once for each open file, so of two that overlap the
   second would say "fine" before the first is known to have failed.
5. Nothing is written after `close` returns, and nothing is ever read or written through a descriptor that has become somebody
   else's: whoever uses it in a thread of its own is waited for, by the turns of `_calling` and by `lend`.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import threading
import weakref
from _thread import RLock
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from mdstore.device import forks
from mdstore.device.linux import block_device_geometry, preallocate, punch, start_writing
from mdstore.device.lock import find_holder, lock_image, unlock_image
from mdstore.device.protocol import Borrower, Buffer
from mdstore.device.ranges import check_growth, check_range, check_size, positioned, size_of
from mdstore.errors import (
    AlreadyExists,
    DeviceFailed,
    Forked,
    ImageBusy,
    InvalidRequest,
    MdstoreError,
    NoSpace,
    NotFound,
    ReadOnly,
    StoreClosed,
)

FILE_SECTOR_SIZE: Final = 512  # what the file lies on is not asked: 512 is the smallest any of it can be
IOV_MAX: Final = min(1024, os.sysconf("SC_IOV_MAX"))
ZERO_CHUNK: Final = bytes(1 << 20)


class FileDevice:
    """A regular file or a block device.

    All methods may be called from any thread. `close` waits for the calls that are under way; what comes later raises
    `StoreClosed`.

    Cost: `read` and `write` are one system call each up to 1024 buffers; `flush` is one fdatasync.
    """

    def __init__(self, fd: int, path: str, size_bytes: int, sector_size: int, *, read_only: bool, block: bool) -> None:
        """Takes over an open, locked descriptor; use `open` or `create`."""
        self._fd = fd
        self._path = path
        self._size_bytes = size_bytes
        self._sector_size = sector_size
        self._read_only = read_only
        self._is_block_device = block
        self._closed = False
        self._borrowers: set[weakref.ref[Borrower]] = set()
        self._begin_locks()
        self._flush_failure: OSError | None = None
        self._forked: Forked | None = None
        forks.watch(self)

    def _begin_locks(self) -> None:
        self._turns: dict[int, RLock] = {}
        self._calling = _Calling(self._turns)
        self._flushing = threading.Lock()
        self._closing = threading.RLock()

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, read_only: bool = False, lock: bool = True) -> FileDevice:
        """Open an existing file or block device.

        Takes the exclusive lock (read-only: the shared one); `lock=False` is for looking at an image that is in use,
        and is refused for writers. A block device that the system has mounted is refused as busy.

        Errors: `NotFound`, `InvalidRequest` (no permission, a directory, a socket, a terminal ...), `ReadOnly` (a
        writable open on a read-only file system), `ImageBusy`.
        """
        if not lock and not read_only:
            raise InvalidRequest("only a read-only open may go without the lock")
        name = _name_of(path)
        try:
            block = _kind_is_block(name)
            exclusive_device = os.O_EXCL if block and not read_only else 0
            fd = os.open(name, (os.O_RDONLY if read_only else os.O_RDWR) | exclusive_device)
        except OSError as error:
            raise _open_error(name, error, read_only) from error
        try:
            if lock:
                lock_image(fd, name, exclusive=not read_only)
            return cls._adopt(fd, name, read_only)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], size_bytes: int, *, exclusive: bool = True, sparse: bool = False
    ) -> FileDevice:
        """Make a file of `size_bytes` zeros, open for writing and locked.

        `exclusive`: an existing file is `AlreadyExists`; otherwise its content is dropped, once its lock is held. A block
        device is never created: open it.

        The blocks are reserved with fallocate(2) where the file system can, else (or with `sparse`) the file is sparse.
        Reserved, because an image then cannot meet a full file system halfway, and because a flush of a growing or
        sparse file also commits the file system's own records: measured on ext4, 4 KiB + fdatasync takes 390-570 us on a
        growing file, 320-400 us on a reserved one, 240-250 us where zeros were written before. (A log that is flushed
        for every commit is worth writing over with zeros once.)

        Durable on return: the file, its size and its name. Errors: as `open`, `AlreadyExists`, `NoSpace`.
        """
        name = _name_of(path)
        size_bytes = check_size(name, size_bytes)
        fd, is_new = _open_for_create(name, exclusive)
        try:
            lock_image(fd, name, exclusive=True)
            os.ftruncate(fd, 0)
            _extend(fd, 0, size_bytes, sparse)
            os.fsync(fd)
            sync_directory_of(name)
            return cls._adopt(fd, name, read_only=False)
        except BaseException as error:
            if is_new:
                with suppress(OSError):
                    os.unlink(name)
            os.close(fd)
            if isinstance(error, OSError):
                raise _create_error(name, error, size_bytes) from error
            raise

    @classmethod
    def _adopt(cls, fd: int, name: str, read_only: bool) -> FileDevice:
        status = os.fstat(fd)
        block = stat.S_ISBLK(status.st_mode)
        size_bytes, sector_size = block_device_geometry(fd) if block else (status.st_size, FILE_SECTOR_SIZE)
        return cls(fd, name, size_bytes, sector_size, read_only=read_only, block=block)

    @property
    def name(self) -> str:
        return self._path

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def sector_size(self) -> int:
        """A block device's logical sector; 512 for a file."""
        return self._sector_size

    @property
    def read_only(self) -> bool:
        return self._read_only

    @property
    def is_block_device(self) -> bool:
        return self._is_block_device

    def fileno(self) -> int:
        return -1 if self._closed else self._fd

    def lend(self, borrower: Borrower) -> int:
        self._borrowers.add(weakref.ref(borrower, self._borrowers.discard))
        return self.fileno()  # closed from now on, it finds the borrower

    def read(self, offset: int, length: int) -> bytes:
        with self._calling.turn:
            if self._closed or self._fd < 0:
                self._check_open()
            check_range(self._path, self._size_bytes, offset, length)
            try:
                data = os.pread(self._fd, length, offset)
                return data if len(data) == length else self._read_rest(offset, length, data)
            except OSError as error:
                raise self._failed("read", offset, length, error) from error

    def _read_rest(self, offset: int, length: int, first: bytes) -> bytes:
        """One pread moves at most 2 GiB; anything short beyond that is a file that has shrunk under us."""
        pieces, have = [first], len(first)
        while have < length:
            piece = os.pread(self._fd, length - have, offset + have)
            if not piece:
                raise DeviceFailed("read", self._where(offset, length), f"short read: the file ends at {offset + have}")
            pieces.append(piece)
            have += len(piece)
        return b"".join(pieces)

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        length = size_of(buffers[0]) if len(buffers) == 1 else sum(map(size_of, buffers))
        with self._calling.turn:
            if self._closed or self._fd < 0 or self._read_only or self._flush_failure is not None:
                self._check_writable()
            check_range(self._path, self._size_bytes, offset, length)
            try:
                if len(buffers) <= IOV_MAX:
                    self._write_batch(offset, buffers, length)
                else:
                    self._write_batches(offset, buffers)
            except OSError as error:
                raise self._failed("write", offset, length, error) from error

    def _write_batches(self, offset: int, buffers: Sequence[Buffer]) -> None:
        for start in range(0, len(buffers), IOV_MAX):
            batch = buffers[start : start + IOV_MAX]
            size = sum(map(size_of, batch))
            self._write_batch(offset, batch, size)
            offset += size

    def _write_batch(self, offset: int, buffers: Sequence[Buffer], length: int) -> None:
        written = os.pwritev(self._fd, buffers, offset)
        if written == length:
            return
        done = offset + written  # a short write (2 GiB at most go at once): finish buffer by buffer
        for at, buffer in positioned(offset, buffers):
            view = memoryview(buffer).cast("B")
            while done < at + len(view):
                moved = os.pwrite(self._fd, view[done - at :], done)
                if not moved:
                    raise OSError(errno.EIO, f"the medium took no byte at {done}")
                done += moved

    def flush(self) -> None:
        """Every write that has returned survives a crash of process, kernel or power. One fdatasync."""
        self._check_open()
        if self._read_only:
            return
        self._sync(os.fdatasync, "flush")

    def _sync(self, sync: Callable[[int], None], operation: str) -> None:
        """Whatever the kernel tells of lost writes here, it tells no other call."""
        with self._calling.turn, self._flushing:
            self._check_open()
            self._check_not_latched(operation)
            try:
                sync(self._fd)
            except OSError as error:
                self._flush_failure = error
                raise self._failed(operation, 0, self._size_bytes, error) from error

    def write_behind(self, offset: int, length: int) -> None:
        """The range was written and will not change soon: let the medium take it now, beside the caller, so that the next
        flush finds less to do. A hint: nothing is durable, and no error is reported before that flush."""
        with self._calling.turn:
            self._check_open()
            check_range(self._path, self._size_bytes, offset, length)
            start_writing(self._fd, offset, length)

    def uncache(self, offset: int, length: int) -> None:
        """Nobody will read these bytes again: let the system's cache have the memory for something else. A hint. Whole pages
        only; what is not on the medium yet stays."""
        with self._calling.turn:
            self._check_open()
            check_range(self._path, self._size_bytes, offset, length)
            with suppress(OSError):
                os.posix_fadvise(self._fd, offset, length, os.POSIX_FADV_DONTNEED)

    def discard(self, offset: int, length: int) -> None:
        """Punch the range out of a file, trim it on a block device (PUNCH_HOLE does both, and unlike BLKDISCARD
        promises zeros); where neither works, write zeros. Not durable until `flush`."""
        with self._calling.turn:
            self._check_writable()
            check_range(self._path, self._size_bytes, offset, length)
            rest = self._discard_whole_units(offset, length)
        for start, stop in rest:
            self._write_zeros(start, stop - start)

    def _discard_whole_units(self, offset: int, length: int) -> list[tuple[int, int]]:
        """What of the range is left to be written with zeros."""
        unit = self._sector_size if self._is_block_device else 1
        start, stop = -(-offset // unit) * unit, (offset + length) // unit * unit
        try:
            if start >= stop or not punch(self._fd, start, stop - start):
                start = stop = offset
        except OSError as error:
            raise self._failed("discard", offset, length, error) from error
        return [(offset, start), (stop, offset + length)]

    def _write_zeros(self, offset: int, length: int) -> None:
        for at in range(offset, offset + length, len(ZERO_CHUNK)):
            self.write(at, [memoryview(ZERO_CHUNK)[: offset + length - at]])

    def resize(self, size_bytes: int) -> None:
        """Grow a file, reserving blocks as `create` does. The new size is durable on return. `NoSpace` leaves the old
        size in force."""
        with self._calling.turn:
            self._check_writable()
            self._resize(size_bytes)

    def _resize(self, size_bytes: int) -> None:
        if self._is_block_device:
            raise InvalidRequest(f"{self._path} is a block device of {self._size_bytes} bytes: its size is fixed")
        check_growth(self._path, self._size_bytes, size_bytes)
        try:
            _extend(self._fd, self._size_bytes, size_bytes, sparse=False)
            self._sync(os.fsync, "resize")
        except BaseException as error:
            with suppress(OSError):  # it may have grown the file already, by a part or the whole
                os.ftruncate(self._fd, self._size_bytes)
            if not isinstance(error, OSError):
                raise
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise NoSpace(_no_space(self._path, error)) from error
            raise self._failed("resize", self._size_bytes, size_bytes - self._size_bytes, error) from error
        self._size_bytes = size_bytes

    def left_behind(self, error: Forked) -> None:
        """In a forked child. The descriptor's number stays taken, by nothing: whoever kept it reads no other file through it.
        Closed first, so that there is a descriptor for that; where there is no null device (a chroot), it stays closed, and
        whoever was lent it reads nothing."""
        self._forked = error
        self._begin_locks()  # whoever held one of the others is not there
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        with suppress(OSError):
            os.close(fd)
        with suppress(OSError):
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            if null != fd:
                os.dup2(null, fd, inheritable=False)
                os.close(null)
        self._ask_back()

    def close(self) -> None:
        """Release the file and its lock, once the calls that are under way have ended, and the reads of whoever was lent the
        descriptor: it is closed on return. Closing twice is fine, also from two threads, or after an interrupt. Closing does
        not flush.

        Inside a call of this very thread (in a signal's handler, or a finalizer), which it would wait for, it is begun in a
        thread of its own, and not waited for; inside `close` itself, that one ends it. At the end of the interpreter it waits for
        nobody: that has stopped all other threads.

        DeviceFailed where the system says that closing failed: it is closed all the same, and what was flushed is durable."""
        self._closed = True
        if sys.is_finalizing():
            self._abandon()
        elif self._calling.turn._is_owned():  # type: ignore[attr-defined]
            threading.Thread(target=self._close, name="mdstore-close").start()
        else:
            self._close()

    def _close(self) -> None:
        with self._closing:
            self._ask_back()
            for turn in list(self._turns.values()):
                with turn:
                    pass
            try:
                self._give_back()
            except OSError as error:
                raise DeviceFailed("close", self._path, _reason(error)) from error

    def _give_back(self) -> None:
        fd, self._fd = self._fd, -1  # first, since a handler may close once more; no interrupt comes between this and `try`
        if fd < 0:
            return
        try:
            with suppress(OSError):
                unlock_image(fd)  # at once, though a process that was forked keeps the file
        finally:
            os.close(fd)

    def _ask_back(self) -> None:
        for known in list(self._borrowers):
            borrower = known()
            if borrower is not None:
                borrower.close()

    def _abandon(self) -> None:
        """The number stays taken, by nothing: a thread that goes on without the interpreter's lock may be about to use it. Where
        no descriptor is to be had for that, it is closed."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        with suppress(OSError):
            unlock_image(fd)  # at once, though a call that is under way keeps the file
        try:
            nothing = os.open("/", os.O_PATH | os.O_CLOEXEC)
        except OSError:
            os.close(fd)
            return
        os.dup2(nothing, fd, inheritable=False)
        os.close(nothing)

    def _check_open(self) -> None:
        if self._closed or self._fd < 0:
            raise self._gone()

    def _gone(self) -> StoreClosed:
        return self._forked or StoreClosed(f"{self._path} is closed")

    def _check_writable(self) -> None:
        self._check_open()
        if self._read_only:
            raise ReadOnly(f"{self._path} is open read-only")
        self._check_not_latched("write")

    def _check_not_latched(self, operation: str) -> None:
        if self._flush_failure is not None:
            raise DeviceFailed(operation, self._path, f"an earlier flush failed ({self._flush_failure.strerror})")

    def _where(self, offset: int, length: int) -> str:
        return f"{self._path} bytes {offset}+{length}"

    def _failed(self, operation: str, offset: int, length: int, error: OSError) -> MdstoreError:
        if self._fd < 0:  # taken away in the middle of the call: by a handler that forks, or at the end of the interpreter
            return self._gone()
        cause = _no_space(self._path, error) if error.errno in (errno.ENOSPC, errno.EDQUOT) else _reason(error)
        return DeviceFailed(operation, self._where(offset, length), cause)


class _Calling(threading.local):
    """A lock for each thread that calls: threads do not wait for one another, and whoever takes all waits for every call.
    Left by the end of a `with`, it is left whatever interrupts the thread."""

    def __init__(self, known: dict[int, RLock]) -> None:
        """Once in each thread. It is kept until a later thread has the same number: a weak reference would be cleared for good
        when the device has become garbage, though a finalizer may have it live on."""
        self.turn: RLock = threading.RLock()
        known[threading.get_ident()] = self.turn


def _name_of(path: str | os.PathLike[str]) -> str:
    """TypeError for what is no path of text, InvalidRequest for one that no system takes."""
    name = os.fspath(path)
    if not isinstance(name, str):
        raise TypeError(f"a path is text, not {type(name).__name__}; os.fsdecode makes it so")
    if "\0" in name:
        raise InvalidRequest(f"{name!r} is no path: it holds a zero byte")
    return name


def _kind_is_block(path: str) -> bool:
    """True for a block device, False for a regular file; anything else is refused before it is opened (a fifo blocks)."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise InvalidRequest(f"{path} is neither a regular file nor a block device")
    return stat.S_ISBLK(mode)


def _open_for_create(path: str, exclusive: bool) -> tuple[int, bool]:
    """(descriptor, whether the file is new). An existing file keeps its content until its lock is held."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
    except FileExistsError:
        if exclusive:
            raise AlreadyExists("file", path) from None
    except FileNotFoundError as error:
        if not path:
            raise InvalidRequest("an empty name names no file") from None
        raise NotFound("parent directory", os.path.dirname(path) or ".") from error
    except OSError as error:
        raise _open_error(path, error, read_only=False) from error
    try:
        if _kind_is_block(path):
            raise InvalidRequest(f"{path} is a block device: open it instead of creating it")
        return os.open(path, os.O_RDWR), False
    except OSError as error:
        raise _open_error(path, error, read_only=False) from error


def _extend(fd: int, old_bytes: int, new_bytes: int, sparse: bool) -> None:
    if sparse or not preallocate(fd, old_bytes, new_bytes - old_bytes):
        os.ftruncate(fd, new_bytes)


def sync_directory_of(path: str) -> None:
    """The file's name is durable when this returns."""
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _no_space(path: str, error: OSError) -> str:
    return f"{_reason(error)} (the file system that holds {path} has no room for it)"


def _create_error(path: str, error: OSError, size_bytes: int) -> MdstoreError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpace(f"cannot make {path} of {size_bytes} bytes: {_no_space(path, error)}")
    return DeviceFailed("create", path, _reason(error))


def _open_error(path: str, error: OSError, read_only: bool) -> MdstoreError:
    """The one line a person sees, typed by what they can do."""
    if error.errno == errno.ENOENT:
        return NotFound("file", path)
    if error.errno == errno.EROFS:
        return ReadOnly(f"{path} lies on a read-only file system")
    if error.errno == errno.EBUSY:
        return ImageBusy(path, _holder_of_block_device(path))
    if error.errno in (errno.EIO, errno.ENXIO, errno.ENOSPC):
        return DeviceFailed("open", path, _reason(error))
    wanted = "reading" if read_only else "writing"
    refusal = InvalidRequest(f"cannot open {path} for {wanted}: {_reason(error)}")
    refusal.errno = error.errno or errno.EINVAL
    return refusal


def _holder_of_block_device(path: str) -> str:
    """Who keeps an exclusive open out: a process with our lock on it, or the kernel itself."""
    holder: str | None = None
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            holder = find_holder(fd)
        finally:
            os.close(fd)
    return holder or "the kernel (mounted, or part of another device)"
