"""Engines that work on files: their writes and flushes recorded beneath them, by a file system of ours that they are put on.

The engine runs in a process of its own, on a directory that this process serves through FUSE out of memory. Writes to the one
file that holds its data, and fsyncs of it, go to a `FaultyDevice` too, in the order in which the kernel asks for them. From its
log the crash states are built as for any device; each is handed to the engine as a file again, in a process that may die of it.

What is modelled is that one file: its bytes since the last fsync may be lost, torn, or arrive in any order. Taken for granted
are the directory entries that the engine made when it was set up, and that the file system keeps sizes and bytes apart as it
should. A file ends where its last page with anything in it ends, as it would when what lies behind was never written.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from mdstore.client.mount import MountOptions, MountSession, mount
from mdstore.device.explore import History, Workload
from mdstore.device.kill import verify_in_process
from mdstore.device.protocol import Device
from mdstore.device.subject import Script
from mdstore.engines.mem import MemStore
from mdstore.errors import InvalidRequest
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import Attr, Credentials, SetAttr
from mdstore.tools.crash.verify import Inconsistent

PAGE: Final = 4096  # in which the length of a file is reckoned after a crash
ANSWER_SECONDS: Final = 60.0  # an operation that takes longer hangs
ENGINE: Final = "engine"  # what the engine's file or directory is called

_processes = multiprocessing.get_context("fork")  # somebody else's engine need not be picklable


class RecordingServer(MetadataServer):
    """A name space in memory that passes on what is written to the file called `watched`."""

    def watch(self, device: Device, watched: bytes) -> None:
        """Before it is mounted."""
        self._device = device
        self._watched = watched
        self._inos: set[int] = set()
        self._opened: dict[int, int] = {}  # handle: inode

    def lookup(self, cred: Credentials, parent: int, name: bytes) -> Attr:
        return self._noted(name, super().lookup(cred, parent, name))

    def create(self, cred: Credentials, parent: int, name: bytes, mode: int, flags: int) -> tuple[Attr, int]:
        attr, handle = super().create(cred, parent, name, mode, flags)
        self._noted(name, attr)
        self._opened[handle] = attr.ino
        return attr, handle

    def open(self, cred: Credentials, ino: int, flags: int) -> int:
        handle = super().open(cred, ino, flags)
        self._opened[handle] = ino
        return handle

    def write(self, handle: int, offset: int, data: bytes | memoryview) -> int:
        if self._is_watched(handle):
            self._device.write(offset, [bytes(data)])
        return super().write(handle, offset, data)

    def fsync(self, handle: int, *, data_only: bool = False) -> None:
        if self._is_watched(handle):
            self._device.flush()

    def syncfs(self) -> None:
        self._device.flush()

    def setattr(self, cred: Credentials, ino: int, change: SetAttr) -> Attr:
        if ino in self._inos and change.size is not None:
            self._zero(change.size, self.getattr(ino).size - change.size)
        return super().setattr(cred, ino, change)

    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> None:
        if self._is_watched(handle) and mode & _PUNCH_OR_ZERO:
            self._zero(offset, length)
        super().fallocate(handle, mode, offset, length)

    def copy_file_range(self, source: int, source_offset: int, target: int, target_offset: int, length: int) -> int:
        data = self.read(source, source_offset, length)
        return self.write(target, target_offset, data)

    def release(self, handle: int) -> None:
        self._opened.pop(handle, None)
        super().release(handle)

    def _noted(self, name: bytes, attr: Attr) -> Attr:
        if name == self._watched and stat.S_ISREG(attr.mode):
            self._inos.add(attr.ino)
        return attr

    def _is_watched(self, handle: int) -> bool:
        return self._opened.get(handle) in self._inos

    def _zero(self, offset: int, length: int) -> None:
        end = min(offset + length, self._device.size_bytes)
        if offset < end:
            self._device.write(offset, [bytes(end - offset)])


_PUNCH_OR_ZERO: Final = 0x02 | 0x10  # FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE


def recorded_workload(subject: Any, script: Script) -> Workload:
    """The script on an engine in files, as a workload on the device that stands for its data file."""

    def run(device: Device, history: History) -> None:
        with _Worker(subject, script) as worker, _served(device, _data_file(subject)) as directory:
            worker.ask(f"{directory}/{ENGINE}")
            models = script.models()
            history.start(models[0])
            for number, model in enumerate(models[1:]):
                history.begin(model)
                history.acknowledge(worker.ask(number))
            worker.ask(None)

    return run


def reopen_recorded(subject: Any) -> Callable[[Device], object]:
    """Hand the device's bytes to the engine as its data file, and have a process of its own open and read them."""

    def reopen(device: Device) -> object:
        with tempfile.TemporaryDirectory(prefix="mdstore-crash-") as directory:
            path = Path(directory, ENGINE)
            file = path / _data_file(subject) if getattr(subject, "data_file", "") else path
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(without_empty_end(device.read(0, device.size_bytes)))
            found, error = verify_in_process(subject, str(path))
        if error:
            raise Inconsistent(error)
        return found

    return reopen


def without_empty_end(content: bytes) -> bytes:
    """The content up to the end of its last page that holds anything but zeros."""
    length = len(content.rstrip(b"\0"))
    return content[: -(-length // PAGE) * PAGE]


def _data_file(subject: Any) -> str:
    return str(getattr(subject, "data_file", "") or ENGINE)


# -- the process of the engine -----------------------------------------------------------------------------------------


class _Worker:
    """The engine's process. Forked before anything is mounted, so that it holds nothing of the mount; told what to do over a
    pipe: first a path, then numbers of operations, then None."""

    def __init__(self, subject: Any, script: Script) -> None:
        self._pipe, theirs = _processes.Pipe()
        self._process = _processes.Process(target=_work, args=(subject, script, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        """Ended here whatever happened: a mount in use cannot be taken away."""
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def ask(self, what: object) -> int:
        """Have it done; how many operations are acknowledged now. Inconsistent when the engine fails, dies or hangs."""
        self._pipe.send(what)
        try:
            answer: int | str = self._pipe.recv() if self._pipe.poll(ANSWER_SECONDS) else "the engine hangs"
        except EOFError:
            answer = "the engine's process died"
        if isinstance(answer, str):
            raise Inconsistent(answer)
        return answer


def _work(subject: Any, script: Script, pipe: Connection) -> None:
    try:
        session = subject.format(pipe.recv())
        pipe.send(0)
        while (number := pipe.recv()) is not None:
            session.apply(script.operations[number])
            pipe.send(session.acknowledged())
        session.close()
        pipe.send(len(script.operations))
    except Exception as error:  # whatever an engine raises is what the caller is told
        pipe.send(f"{type(error).__name__}: {error}")


# -- the directory it works in -----------------------------------------------------------------------------------------


@contextmanager
def _served(device: Device, watched: str) -> Iterator[str]:
    """A directory whose file `watched` is recorded on the device. FuseUnavailable, MountRefused."""
    if not shutil.which("fusermount3") and os.geteuid() != 0:
        raise InvalidRequest("to record what an engine writes, mount as root or install fuse3")
    store = MemStore()
    MetadataServer.format(store, now_ns=1, root_mode=0o777)
    server = RecordingServer.mount(store)
    assert isinstance(server, RecordingServer), "mount makes an object of the class it is called on"
    server.watch(device, os.fsencode(watched))
    directory = tempfile.mkdtemp(prefix="mdstore-crash-")
    try:
        session = mount(server, directory, MountOptions(source="mdstore-crash"))
        thread = threading.Thread(target=session.run, name="mdstore-crash-serve", daemon=True)
        thread.start()
        try:
            yield directory
        finally:
            _end(session, thread)
    finally:
        os.rmdir(directory)


def _end(session: MountSession, thread: threading.Thread) -> None:
    session.unmount()
    thread.join(ANSWER_SECONDS)
