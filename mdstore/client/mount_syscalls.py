"""The operating system's side of a mount: /dev/fuse, mount(2), umount2(2), fusermount3, /proc/self/mountinfo."""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import shutil
import socket
import stat
import subprocess
from typing import Final, NamedTuple

from mdstore.errors import MdstoreError, PosixError

DEVICE: Final = "/dev/fuse"
FILE_SYSTEM_TYPE: Final = "fuse.mdstore"

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_SYNCHRONOUS: Final = 16
MS_DIRSYNC: Final = 128
MS_NOATIME: Final = 1024
FLAG_WORDS: Final = {MS_NOEXEC: "noexec", MS_SYNCHRONOUS: "sync", MS_DIRSYNC: "dirsync", MS_NOATIME: "noatime"}
"""What fusermount3 may be told; nosuid and nodev it sets itself, whether it is told or not."""
MNT_FORCE: Final = 1
MNT_DETACH: Final = 2

_MOUNT_TIMEOUT_S: Final = 30


class FuseUnavailable(MdstoreError):
    """FUSE cannot be used here. The text says what to install or do; nothing was mounted."""

    errno = errno.ENODEV


class MountRefused(MdstoreError):
    """The mountpoint cannot be used as it is, or the system refuses to mount there. `errno` is the system's."""

    def __init__(self, mountpoint: str, number: int, reason: str) -> None:
        self.mountpoint = mountpoint
        self.errno = number
        super().__init__(f"cannot mount at {mountpoint}: {reason}")


class MountPoint(NamedTuple):
    """One line of the mount table."""

    path: str
    fs_type: str
    source: str


_libc = ctypes.CDLL(None, use_errno=True)


def mount_table() -> list[MountPoint]:
    """What is mounted in this process's view, in the order in which it was mounted."""
    result = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            left, _, right = line.partition(b" - ")
            fs_type, source, *_ = right.split(b" ")
            result.append(MountPoint(_unescaped(left.split(b" ")[4]), fs_type.decode(), _unescaped(source)))
    return result


def mounted_at(path: str) -> MountPoint | None:
    """What is mounted exactly at `path` (the topmost, where several are), or None. Works for a dead mount."""
    path = os.path.normpath(path)
    return next((entry for entry in reversed(mount_table()) if entry.path == path), None)


def open_device() -> int:
    """An open /dev/fuse. `FuseUnavailable` says what is missing."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise FuseUnavailable(
            f"{DEVICE} is not there: load the module (`modprobe fuse`), or give the container the device "
            "(`--device /dev/fuse --cap-add SYS_ADMIN`)"
        ) from None
    except PermissionError:
        raise FuseUnavailable(
            f"no permission to open {DEVICE}: mount as root, install fuse3 (for fusermount3), or join the group that owns it"
        ) from None
    except OSError as error:
        raise FuseUnavailable(f"{DEVICE} cannot be opened ({error.strerror}): is the kernel's fuse module loaded?") from None


def mount_as_root(mountpoint: str, source: str, flags: int, *, allow_other: bool) -> int:
    """mount(2); returns the descriptor of the mounted /dev/fuse. `MountRefused`, `FuseUnavailable`.

    The kernel checks permission bits wherever more than the superuser comes in. A mount that is the superuser's alone needs no
    such check, and without it the kernel need not ask for a directory's attributes again after each change in it.
    """
    fd = open_device()
    try:
        options = [
            f"fd={fd}", f"rootmode={stat.S_IFDIR:o}", f"user_id={os.getuid()}", f"group_id={os.getgid()}",
        ]  # fmt: skip
        if allow_other:
            options += ["allow_other", "default_permissions"]
        _mount(source, mountpoint, flags, ",".join(options))
    except BaseException:
        os.close(fd)
        raise
    return fd


def mount_as_user(mountpoint: str, source: str, options: list[str]) -> int:
    """Through the set-uid helper fusermount3, which passes the descriptor of the mounted /dev/fuse over a socket."""
    helper = shutil.which("fusermount3") or shutil.which("fusermount")
    if helper is None:
        raise FuseUnavailable("fusermount3 is not there, and only root mounts without it: install the package fuse3")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        text = ",".join([*options, f"fsname={_escaped_option(source)}", "subtype=mdstore", "default_permissions"])
        done = subprocess.run(
            [helper, "-o", text, "--", mountpoint],
            env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
            pass_fds=[theirs.fileno()], capture_output=True, timeout=_MOUNT_TIMEOUT_S, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise MountRefused(mountpoint, errno.EPERM, done.stderr.decode(errors="replace").strip() or "fusermount3 failed")
        return _received_descriptor(ours, mountpoint)


def unmount(path: str, *, lazy: bool = False, force: bool = False) -> None:
    """umount2(2), or fusermount3 for an ordinary user. `PosixError` with EBUSY where it is in use, EINVAL where nothing of
    the kind is mounted. `lazy`: out of sight now, gone when the last user closes; `force`: requests under way fail."""
    if os.geteuid() != 0:
        _unmount_as_user(path, lazy=lazy)
        return
    flags = (MNT_DETACH if lazy else 0) | (MNT_FORCE if force else 0)
    if _libc.umount2(os.fsencode(path), flags) != 0:
        raise PosixError(ctypes.get_errno(), path, "umount")


def _mount(source: str, mountpoint: str, flags: int, options: str) -> None:
    arguments = [os.fsencode(text) for text in (source, mountpoint, FILE_SYSTEM_TYPE)]
    if _libc.mount(*arguments, ctypes.c_ulong(flags), options.encode()) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.ENODEV:
        raise FuseUnavailable("the kernel has no FUSE: load the module (`modprobe fuse`)")
    hint = " (the right CAP_SYS_ADMIN is missing: run as root outside a container, or install fuse3)"
    raise MountRefused(mountpoint, number, os.strerror(number) + (hint if number == errno.EPERM else ""))


def _received_descriptor(ours: socket.socket, mountpoint: str) -> int:
    descriptors = array.array("i", [0])
    ours.settimeout(_MOUNT_TIMEOUT_S)
    _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(descriptors.itemsize))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and len(data) >= descriptors.itemsize:
            (fd,) = array.array("i", data[: descriptors.itemsize])
            os.set_inheritable(fd, False)
            return fd
    raise MountRefused(mountpoint, errno.EPROTO, "fusermount3 passed no descriptor")


def _unmount_as_user(path: str, *, lazy: bool) -> None:
    helper = shutil.which("fusermount3") or shutil.which("fusermount")
    if helper is None:
        raise FuseUnavailable("fusermount3 is not there: install the package fuse3, or unmount as root")
    command = [helper, "-u", *(["-z"] if lazy else []), "--", path]
    done = subprocess.run(command, capture_output=True, timeout=_MOUNT_TIMEOUT_S, check=False)
    if done.returncode != 0:
        text = done.stderr.decode(errors="replace").strip()
        raise PosixError(errno.EBUSY if "busy" in text.lower() else errno.EINVAL, path, text)


def _escaped_option(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")


def _unescaped(field: bytes) -> str:
    """mountinfo writes space, tab, newline and backslash as three octal digits."""
    parts = field.split(b"\\")
    result = parts[0]
    for part in parts[1:]:
        with contextlib.suppress(ValueError):
            result += bytes([int(part[:3], 8)]) + part[3:]
    return os.fsdecode(result)
