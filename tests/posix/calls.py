"""Making system calls as somebody, and saying how they ended."""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

OWNER, OTHER, MEMBER = 61001, 61002, 61003  # uids; MEMBER is in GROUP by its supplementary groups only
GROUP, OTHER_GROUP = 62001, 62002

AT_FDCWD = -100
AT_SYMLINK_FOLLOW = 0x400
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_COLLAPSE_RANGE, FALLOC_ZERO_RANGE = 1, 2, 8, 16

_libc = ctypes.CDLL(None, use_errno=True)


def outcome(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """`OK`, or the name of the errno the call failed with."""
    try:
        result = call(*args, **kwargs)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    if isinstance(result, int) and call in (os.open,):
        os.close(result)
    return "OK"


def in_child(uid: int, gid: int, groups: list[int], directory: Path, call: Callable[[], Any]) -> Any:
    """`call()` in a forked process that has become that user and stands in `directory`; its result, or its OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read_end)
            os.fchdir(fd)
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            message: Any = (True, call())
        except OSError as error:
            message = (False, error)
        except BaseException:
            message = (False, RuntimeError(traceback.format_exc()))
        with os.fdopen(write_end, "wb") as pipe:
            pickle.dump(message, pipe)
        os._exit(0)
    os.close(fd)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        worked, result = pickle.load(pipe)
    os.waitpid(child, 0)
    if not worked:
        raise result
    return result


def outcomes_as(uid: int, directory: Path, calls: list[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[str]:
    """The `outcome` of each call, made by `uid` with paths relative to `directory`. MEMBER brings GROUP along."""
    groups = [GROUP] if uid == MEMBER else []
    result: list[str] = in_child(uid, uid, groups, directory, lambda: [outcome(call, *args) for call, args in calls])
    return result


def outcome_as(uid: int, directory: Path, call: Callable[..., Any], *args: Any) -> str:
    """One call made by `uid`, as in `outcomes_as`."""
    return outcomes_as(uid, directory, [(call, args)])[0]


def rename2(old: str | bytes | Path, new: str | bytes | Path, flags: int) -> None:
    """renameat2(2)."""
    _check(_libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags), old)


def link_descriptor(fd: int, new: str | Path) -> None:
    """linkat(2) of an open file, through its name in /proc."""
    _check(_libc.linkat(AT_FDCWD, b"/proc/self/fd/%d" % fd, AT_FDCWD, os.fsencode(new), AT_SYMLINK_FOLLOW), fd)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with its mode."""
    _check(_libc.fallocate(fd, mode, ctypes.c_longlong(offset), ctypes.c_longlong(length)), fd)


def syncfs(fd: int) -> None:
    """syncfs(2)."""
    _check(_libc.syncfs(fd), fd)


def _check(result: int, subject: object) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(subject))


def make(path: str | Path, content: bytes = b"", mode: int = 0o644) -> None:
    """A regular file with that content and exactly that mode."""
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        os.write(fd, content)
        os.fchmod(fd, mode)
    finally:
        os.close(fd)
