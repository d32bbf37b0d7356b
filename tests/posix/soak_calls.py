"""The system calls behind the operations of `soak_model`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final

from tests.posix.soak_model import Op, content_of


def perform(directory: str, op: Op) -> None:
    """Do the operation in `directory`; OSError as the system says."""
    verb, *arguments = op
    paths = 2 if verb in ("rename", "link") else 1
    whole = [os.path.join(directory, path) if path else directory for path in arguments[:paths]]
    _CALLS[verb](*whole, *arguments[paths:])


def _create(path: str, mode: int) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))


def _write(path: str, offset: int, length: int, seed: int) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, content_of(seed, length), offset)
    finally:
        os.close(fd)


def _fsync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _setxattr(path: str, name: str, value: str) -> None:
    os.setxattr(path, name, value.encode())


def _symlink(path: str, target: str) -> None:
    os.symlink(target, path)


_CALLS: Final[dict[str, Callable[..., Any]]] = {
    "create": _create, "write": _write, "fsync": _fsync, "setxattr": _setxattr, "symlink": _symlink, "mkdir": os.mkdir,
    "truncate": os.truncate, "rename": os.rename, "link": os.link, "unlink": os.unlink, "rmdir": os.rmdir, "chmod": os.chmod,
    "removexattr": os.removexattr,
}  # fmt: skip
