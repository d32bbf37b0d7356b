"""A file under several threads: flushes that overlap, closing beside calls, a fork in the middle of one."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from mdstore.device.file import FileDevice
from mdstore.device.lock import locks_held
from mdstore.errors import DeviceFailed, ImageBusy, NoSpace, StoreClosed
from tests.unit.open_files import descriptors_of

SIZE = 1 << 16
HANG_S = 60


class Errseq:
    """How Linux tells of pages that were lost: to the first fsync(2) or fdatasync(2) of the open file that returns, to no other.
    The call of `first` returns when another one has, or has to wait for it."""

    def __init__(self, first: threading.Thread) -> None:
        self.untold = True
        self.first_is_in, self.first_may_return = threading.Event(), threading.Event()
        self._first = first
        self._lock = threading.Lock()

    def sync(self, _: int) -> None:
        if threading.current_thread() is self._first:
            self.first_is_in.set()
            assert self.first_may_return.wait(HANG_S)
        untold, self.untold = self.untold, False
        self.first_may_return.set()
        if untold:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def __enter__(self) -> None:
        """In place of the device's lock."""
        if not self._lock.acquire(blocking=False):
            self.first_may_return.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


@pytest.mark.parametrize("second", ["flush", "resize"])
def test_of_two_flushes_that_overlap_a_loss_neither_says_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    """The kernel told one of them, and the other acknowledged what it had lost."""
    image = tmp_path / "image"
    device, outcomes = FileDevice.create(image, SIZE), list[object]()

    def call(flush: Callable[[], None]) -> None:
        try:
            outcomes.append(flush())
        except DeviceFailed as error:
            outcomes.append(type(error))

    first = threading.Thread(target=call, args=(device.flush,))
    kernel = Errseq(first)
    device._flushing = kernel  # type: ignore[assignment]
    monkeypatch.setattr(os, "fdatasync", kernel.sync)
    monkeypatch.setattr(os, "fsync", kernel.sync)
    first.start()
    assert kernel.first_is_in.wait(HANG_S)
    call(device.flush if second == "flush" else lambda: device.resize(SIZE * 2))
    first.join(HANG_S)
    assert outcomes == [DeviceFailed] * 2
    assert device.size_bytes == image.stat().st_size == SIZE
    with pytest.raises(DeviceFailed, match="an earlier flush failed"):
        device.write(0, [b"x"])


def test_closing_waits_for_the_write_that_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The descriptor was closed under a thread that was about to write: its number, and the bytes, went to the next file."""
    device = FileDevice.create(tmp_path / "image", SIZE)
    writing, pwritev = threading.Event(), os.pwritev
    closer = threading.Thread(target=device.close)

    def while_it_closes(fd: int, buffers: list[bytes], offset: int) -> int:
        writing.set()
        closer.start()
        while not device._closed:
            writing.wait(0)
        other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
        try:
            written = pwritev(fd, buffers, offset)
            assert os.pread(other, 10, 0) == b""
        finally:
            os.close(other)
        assert locks_held(os.getpid(), str(tmp_path / "image")) == 1, "not released yet"
        return written

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", while_it_closes)
        device.write(0, [b"mine"])
    closer.join(HANG_S)
    assert (tmp_path / "image").read_bytes()[:4] == b"mine"
    assert descriptors_of(tmp_path / "image") == 0


CALLS: dict[str, tuple[str, Callable[[FileDevice], object]]] = {
    "read": ("pread", lambda device: device.read(0, 10)),
    "write": ("pwritev", lambda device: device.write(0, [b"0123456789"])),
    "flush": ("fdatasync", lambda device: device.flush()),
    "resize": ("fsync", lambda device: device.resize(2 * SIZE)),
    "uncache": ("posix_fadvise", lambda device: device.uncache(0, SIZE)),
}


@pytest.mark.parametrize("call", CALLS)
def test_closing_waits_for_the_call_that_is_under_way_and_gives_its_descriptor_back(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, make = CALLS[call]
    image = tmp_path / "image"
    device, real = FileDevice.create(image, SIZE), getattr(os, inside)
    before = device.read(0, 10)
    closer = threading.Thread(target=device.close)

    def while_it_closes(*arguments: object) -> object:
        closer.start()
        while not device._closed:
            closer.join(0)
        assert descriptors_of(image) == 1
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, inside, while_it_closes)
        assert make(device) in (None, before)
    closer.join(HANG_S)
    assert descriptors_of(image) == 0
    with pytest.raises(StoreClosed):
        make(device)


@pytest.mark.parametrize("call", CALLS)
def test_closing_in_the_middle_of_a_call_of_the_same_thread_waits_for_nothing(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the handler of a signal does, or a finalizer: it waited for itself. Whoever closes later waits for the end of it."""
    inside, make = CALLS[call]
    image = tmp_path / "image"
    device, real = FileDevice.create(image, SIZE), getattr(os, inside)
    before = device.read(0, 10)

    def closed_first(*arguments: object) -> object:
        device.close()
        assert descriptors_of(image) == 1
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, inside, closed_first)
        assert make(device) in (None, before)
    device.close()
    assert descriptors_of(image) == 0


def test_closing_needs_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that has as many open as it may."""
    device = FileDevice.create(tmp_path / "image", SIZE)

    def none_left(*_: object, **__: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", none_left)
        device.close()
    device.close()
    assert locks_held(os.getpid(), str(tmp_path / "image")) == 0
    with pytest.raises(StoreClosed):
        device.write(0, [b"x"])


def test_a_failed_open_keeps_no_descriptor(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with pytest.raises(NoSpace):
        FileDevice.create(image, 1 << 62, sparse=True)
    with closing(FileDevice.create(image, SIZE)) as device:
        for failing in (FileDevice.open, lambda path: FileDevice.create(path, SIZE, exclusive=False)):
            with pytest.raises(ImageBusy):
                failing(image)
            assert descriptors_of(image) == 1
    with pytest.raises(StoreClosed):
        device.read(0, 1)
    assert descriptors_of(image) == 0


@pytest.mark.parametrize(("call", "inside"), [("write", "pwritev"), ("flush", "fdatasync")])
def test_a_forked_child_waits_for_no_call_of_its_parents_threads(
    call: str, inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waited, in `close`, for the end of a write that nobody there makes."""
    device = FileDevice.create(tmp_path / "image", SIZE)
    under_way, over, real = threading.Event(), threading.Event(), getattr(os, inside)

    def stay(*arguments: object) -> object:
        under_way.set()
        assert over.wait(HANG_S)
        return real(*arguments)

    monkeypatch.setattr(os, inside, stay)
    thread = threading.Thread(target=device.flush if call == "flush" else lambda: device.write(0, [b"x"]))
    thread.start()
    assert under_way.wait(HANG_S)
    child = os.fork()
    if not child:
        signal.alarm(HANG_S)  # a hang ends the child
        with suppress(BaseException):
            device.close()
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    over.set()
    thread.join(HANG_S)
    assert status == 0
    device.close()
