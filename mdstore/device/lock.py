"""One process at a time: the lock on an image, and the name of whoever holds it.

The lock is flock(2): it belongs to the open file, so it conflicts between two opens of one process, and dies with the last
descriptor, kill -9 included. A child that forks off lets go of it (mdstore/device/forks.py); the parent keeps it. Nothing is
written beside the image.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress

from mdstore.errors import ImageBusy


def lock_image(fd: int, path: str, *, exclusive: bool) -> None:
    """Take the image's lock on an open descriptor, or raise `ImageBusy` with the holder's name. Never waits."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise
        raise ImageBusy(path, find_holder(fd) or "another process") from None


def unlock_image(fd: int) -> None:
    """Let go of the lock while the descriptor, or a system call that uses it, still keeps the file open."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def find_holder(fd: int) -> str | None:
    """`process 1234 (mdstore mount)` for the process that holds a flock on the file behind `fd`; None if none shows.

    Open descriptors are asked first: /proc/locks keeps the number of the process that took the lock, which after a fork
    into the background is dead, or worse, somebody else. It is the second choice for holders whose descriptors this
    user may not list.
    """
    status = os.fstat(fd)
    pid = next(_holders_by_descriptor(status, fd), None) or _holder_by_lock_table(status)
    if pid is None:
        return None
    if pid == os.getpid():
        return "this process"
    command = _command_of(pid)
    return f"process {pid} ({command})" if command else f"process {pid}"


def locks_held(pid: int, path: str) -> int | None:
    """How many descriptors of a process hold the lock of the image at `path`, a shared one or not; 0 once it has ended. None
    where that cannot be seen: the image is gone, or the process is another user's."""
    try:
        status = os.stat(path)
        names = os.listdir(f"/proc/{pid}/fd") if os.path.exists(f"/proc/{pid}") else []
    except OSError:
        return None
    return sum(_descriptor_holds_lock(pid, name, status) for name in names)


def _holders_by_descriptor(status: os.stat_result, own_fd: int) -> Iterator[int]:
    for pid in _process_ids():
        with suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                if (pid, name) != (os.getpid(), str(own_fd)) and _descriptor_holds_lock(pid, name, status):
                    yield pid


def _descriptor_holds_lock(pid: int, name: str, status: os.stat_result) -> bool:
    with suppress(OSError):
        if not os.path.samestat(os.stat(f"/proc/{pid}/fd/{name}"), status):
            return False
        with open(f"/proc/{pid}/fdinfo/{name}", encoding="ascii", errors="replace") as info:
            return any(line.startswith("lock:") and " FLOCK " in line for line in info)
    return False


def _process_ids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return []


def _holder_by_lock_table(status: os.stat_result) -> int | None:
    """The first FLOCK in /proc/locks on the same device and inode: `1: FLOCK ADVISORY WRITE 1234 fe:00:2146376 0 EOF`."""
    wanted = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with suppress(OSError), open("/proc/locks", encoding="ascii", errors="replace") as table:
        for line in table:
            fields = line.split()
            if len(fields) >= 6 and fields[1] == "FLOCK" and fields[5] == wanted and fields[4].isdecimal():
                return int(fields[4]) or None  # 0: the holder lives in another process namespace
    return None


def _command_of(pid: int) -> str:
    """Program and first word after it, without the interpreter: `mdstore mount`; empty when it cannot be read."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as stream:
            words = [word.decode("utf-8", "replace") for word in stream.read().split(b"\0") if word]
    except OSError:
        return ""
    if len(words) > 1 and os.path.basename(words[0]).startswith("python"):
        words = words[2:] if words[1] == "-m" and len(words) > 2 else words[1:] if words[1][0] != "-" else words
    shown = [os.path.basename(word) for word in words[:1]]
    shown += [word for word in words[1:2] if word.isidentifier()]
    return " ".join(shown)
