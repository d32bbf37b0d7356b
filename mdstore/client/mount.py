"""Mounting a name space: `mount`, the session that serves it, and its end.

    session = mount(vfs, "/mnt/work", MountOptions(allow_other=True, source="work.img"))
    session.run()      # until SIGTERM, SIGINT or umount(8); the name space is closed when it returns

The end of a mount, whoever asks for it:

1. `umount` succeeds: the kernel sends what it holds, then ends the connection; the loop returns, workers are drained.
2. It is busy (a program has a file open or stands in it): the mount is taken out of sight (`umount -l`), a line says so, and
   it is served on until the last user lets go, at most `busy_timeout_s`, or until a second signal.
3. In every case `vfs.close()` runs before `run` returns, so what was acknowledged is on the medium.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from mdstore.client import mount_syscalls as system
from mdstore.client.fuse_session import FuseSession
from mdstore.client.fuse_xattrs import IMAGE, SERVER, process_space
from mdstore.client.mount_ending import tell_ending
from mdstore.client.mount_options import MountOptions
from mdstore.client.mount_syscalls import FuseUnavailable, MountRefused
from mdstore.errors import InvalidRequest, PosixError
from mdstore.mds.vfs import ROOT_INO, SUPERUSER, SetAttr, Vfs

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S: Final = 0.0001

__all__ = ["FuseUnavailable", "MountOptions", "MountRefused", "MountSession", "check_mountpoint", "is_dead", "mount", "unmount"]


class MountSession:
    """A mounted name space. `run` serves it; `unmount` ends it from any other thread."""

    def __init__(self, fuse: FuseSession, vfs: Vfs, mountpoint: str, options: MountOptions) -> None:
        self.fuse = fuse
        self.mountpoint = mountpoint
        self._vfs = vfs
        self._options = options
        self._ended = threading.Event()
        self._stop_asked = threading.Event()
        self._signals = 0

    def run(self) -> None:
        """Serve until the mount ends, then close the name space. In the main thread SIGTERM, SIGINT and SIGHUP unmount.
        On return everything acknowledged is durable. Errors of `vfs.close` come through, after the mount is gone."""
        watcher = threading.Thread(target=self._watch, name="mount-stop", daemon=True)
        watcher.start()
        try:
            with self._stop_signals(), _quick_turns():
                self.fuse.run()
        finally:
            self._ended.set()
            self._stop_asked.set()
            watcher.join()
            self._leave_no_dead_mount()
            self._close()

    def _close(self) -> None:
        """Close the name space, and tell whoever unmounts how that went, and what went wrong before."""
        try:
            self._vfs.close()
        except BaseException as error:
            tell_ending(self.mountpoint, str(error) or type(error).__name__)
            raise
        failure = getattr(self._vfs, "failure", None)
        tell_ending(self.mountpoint, None if failure is None else str(failure))

    def unmount(self) -> None:
        """Ask for the end described at the head of the module; returns at once. `run` returns when it is done."""
        self._stop_asked.set()

    def _on_signal(self, number: int, frame: Any) -> None:
        self._signals += 1
        if self._signals == 1:
            self._stop_asked.set()
        else:
            self.fuse.stop()

    def _watch(self) -> None:
        """Unmounting waits for requests that the loop must serve, so it needs a thread beside the loop."""
        self._stop_asked.wait()
        if self._ended.is_set():
            return
        try:
            system.unmount(self.mountpoint)
        except PosixError as error:
            if error.errno != errno.EBUSY:
                log.warning("%s: %s; the session ends", self.mountpoint, error)
                self.fuse.stop()
                return
            self._detach()

    def _detach(self) -> None:
        seconds = self._options.busy_timeout_s
        log.warning(
            "%s is busy: it is detached now, and served until its last user lets go, at most %g seconds "
            "(a second signal ends it at once)", self.mountpoint, seconds,
        )  # fmt: skip
        try:
            system.unmount(self.mountpoint, lazy=True)
        except PosixError as error:
            log.warning("%s cannot be detached: %s", self.mountpoint, error)
        if not self._ended.wait(seconds):
            log.warning("%s is still in use after %g seconds: the session ends", self.mountpoint, seconds)
            self.fuse.stop()

    def _leave_no_dead_mount(self) -> None:
        """After a session that was stopped rather than unmounted, programs must not find a dead mountpoint."""
        if is_dead(self.mountpoint):
            try:
                system.unmount(self.mountpoint, lazy=True)
            except PosixError as error:
                log.warning("%s cannot be cleaned: %s; run `umount -l %s`", self.mountpoint, error, self.mountpoint)

    @contextmanager
    def _stop_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, action in before.items():
                signal.signal(number, action)


@contextmanager
def _quick_turns() -> Iterator[None]:
    """While the loop serves, other Python threads (write-back, workers) give way sooner than after the usual 5 ms, which each
    request would otherwise wait for while one of them computes."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def mount(vfs: Vfs, mountpoint: str | os.PathLike[str], options: MountOptions | None = None) -> MountSession:
    """Mount `vfs` at a directory and answer the kernel's INIT: programs may use it when this returns, and are served as
    soon as `run` is called.

    A mountpoint that a killed server left behind is cleaned first, with a line in the log. The directory need not be empty.
    Errors: `FuseUnavailable` (says what to install), `MountRefused` (missing, not a directory, mounted already, no right),
    InvalidRequest (options that the name space cannot keep).
    The caller keeps `vfs` on an error; afterwards `run` closes it.
    """
    options = options or MountOptions()
    path = check_mountpoint(mountpoint)
    if options.session.server_locks and not hasattr(vfs, "wait_for_lock"):
        raise InvalidRequest("this name space keeps no locks of its own: mount it with locks=kernel")
    _own_root(vfs, options)
    acls = options.acls and options.allow_other and bool(getattr(vfs, "keeps_acls", False))
    session_options = dataclasses.replace(options.session, acls=acls, image=options.image)
    fd = _mounted_descriptor(path, options)
    fuse = FuseSession(fd, vfs, session_options)
    try:
        fuse.handshake()
    except BaseException:
        fuse.close()
        system.unmount(path, lazy=True)
        raise
    return MountSession(fuse, vfs, path, options)


def unmount(mountpoint: str | os.PathLike[str], *, lazy: bool = False) -> None:
    """What `mdstore umount` does. `MountRefused` where no mount of ours is there, `PosixError` EBUSY where it is in use."""
    path = os.path.abspath(os.fspath(mountpoint))
    found = system.mounted_at(path)
    if found is None or found.fs_type != system.FILE_SYSTEM_TYPE:
        raise MountRefused(path, errno.EINVAL, "no mdstore name space is mounted there")
    system.unmount(path, lazy=lazy or is_dead(path))


def image_at(mountpoint: str) -> str | None:
    """The path of the image that is served there, asked of its server: the mount table shows what `fsname=` says. None where the
    server has gone, serves no image, or does not tell: it tells root and its own user."""
    try:
        return os.fsdecode(os.getxattr(mountpoint, IMAGE))
    except OSError:
        return None


def server_at(mountpoint: str) -> int | None:
    """The number of the process that serves that mount, asked as by `image_at`. None also where it is another container's."""
    try:
        pid, space = map(int, os.getxattr(mountpoint, SERVER).split())
    except (OSError, ValueError):
        return None
    return pid if space == process_space() != 0 else None


def check_mountpoint(mountpoint: str | os.PathLike[str]) -> str:
    """The absolute path, when something can be mounted there; a dead mount of ours is taken away first."""
    path = os.path.abspath(os.fspath(mountpoint))
    if is_dead(path):
        log.warning("%s was left mounted by a server that ended without unmounting: cleaned (umount -l)", path)
        system.unmount(path, lazy=True)
        return check_mountpoint(path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise MountRefused(path, errno.ENOENT, "there is no such directory; make it first (`mkdir -p`)") from None
    except OSError as error:
        raise MountRefused(path, error.errno or errno.EIO, error.strerror or str(error)) from None
    if not stat.S_ISDIR(mode):
        raise MountRefused(path, errno.ENOTDIR, "it is not a directory")
    path = os.path.realpath(path)
    found = system.mounted_at(path)
    if found is not None and found.fs_type == system.FILE_SYSTEM_TYPE:
        raise MountRefused(path, errno.EBUSY, f"{found.source} is mounted there already; `mdstore umount` it first")
    return path


def _mounted_descriptor(path: str, options: MountOptions) -> int:
    if os.geteuid() == 0:
        flags = options.flags | (system.MS_RDONLY if options.read_only else 0)
        return system.mount_as_root(path, options.source, flags, allow_other=options.allow_other)
    words = ["ro"] if options.read_only else []
    words += ["allow_other"] if options.allow_other else []
    words += [word for bit, word in system.FLAG_WORDS.items() if options.flags & bit]
    return system.mount_as_user(path, options.source, words)


def _own_root(vfs: Vfs, options: MountOptions) -> None:
    """`uid=` and `gid=` give the root directory of a fresh name space to whoever will work in it."""
    if options.uid is not None or options.gid is not None:
        vfs.setattr(SUPERUSER, ROOT_INO, SetAttr(uid=options.uid, gid=options.gid))


def is_dead(path: str) -> bool:
    """Whether the server of the mount there has ended. statfs(2) asks it every time; stat(2) may be answered from what the kernel
    kept of a dead one's root."""
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def in_background(serve: Callable[[Callable[[], None]], int]) -> int:
    """Run `serve(ready)` in a process of its own and return once it has called `ready`, or has ended.

    `serve` opens the image, mounts, calls `ready()` and runs the session; what it returns is its exit code. Call this before
    any thread is started. In the parent: returns 0 when the mount works, otherwise the child's exit code, after its messages
    have been printed on standard error. In the child: does not return.
    """
    assert threading.active_count() == 1, "a process with threads cannot be forked safely"
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        os._exit(_serve_detached(serve, write_end))
    os.close(write_end)
    with os.fdopen(read_end, "rb") as messages:
        said = messages.read()
    if said.endswith(_READY):
        sys.stderr.write(said[: -len(_READY)].decode(errors="replace"))
        return 0
    sys.stderr.write(said.decode(errors="replace"))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


_READY = b"\0ready\0"


def _serve_detached(serve: Callable[[Callable[[], None]], int], messages: int) -> int:
    """The child: its own session, no terminal; until `ready`, standard error goes to the waiting parent."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.dup2(messages, 2)
    os.chdir("/")

    def ready() -> None:
        sys.stderr.flush()
        os.write(messages, _READY)
        os.dup2(null, 2)
        os.close(messages)

    try:
        return serve(ready)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    except BaseException as error:
        sys.stderr.write(f"mdstore: {error}\n")
        return 1
    finally:
        sys.stderr.flush()
