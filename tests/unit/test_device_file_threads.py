"""A file under several threads: flushes that overlap, closing beside calls, a fork in the middle of one."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest

from mdstore.device import file as file_module
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


CALLS: dict[str, tuple[object, str, Callable[[FileDevice], object]]] = {
    "read": (os, "pread", lambda device: device.read(0, 10)),
    "write": (os, "pwritev", lambda device: device.write(0, [b"0123456789"])),
    "flush": (os, "fdatasync", lambda device: device.flush()),
    "resize": (os, "fsync", lambda device: device.resize(2 * SIZE)),
    "uncache": (os, "posix_fadvise", lambda device: device.uncache(0, SIZE)),
    "write_behind": (file_module, "start_writing", lambda device: device.write_behind(0, SIZE)),
    "discard": (file_module, "punch", lambda device: device.discard(0, SIZE)),
}


@pytest.mark.parametrize("call", CALLS)
def test_closing_waits_for_the_call_that_is_under_way_and_gives_its_descriptor_back(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, inside, make = CALLS[call]
    image = tmp_path / "image"
    device, real = FileDevice.create(image, SIZE), getattr(module, inside)
    before = device.read(0, 10)
    closer = threading.Thread(target=device.close)

    def while_it_closes(*arguments: object) -> object:
        closer.start()
        while not device._closed:
            closer.join(0)
        assert descriptors_of(image) == 1
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, inside, while_it_closes)
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
    module, inside, make = CALLS[call]
    image = tmp_path / "image"
    device, real = FileDevice.create(image, SIZE), getattr(module, inside)
    before = device.read(0, 10)

    def closed_first(*arguments: object) -> object:
        device.close()
        assert descriptors_of(image) == 1
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, inside, closed_first)
        assert make(device) in (None, before)
    device.close()
    assert descriptors_of(image) == 0


class Watched:
    """In place of a lock; `is_wanted` is set when somebody has to wait for it."""

    def __init__(self) -> None:
        self.is_wanted = threading.Event()
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.is_wanted.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_of_two_closes_at_once_both_return_when_it_is_closed(tmp_path: Path) -> None:
    class Slow:
        def close(self) -> None:
            calls.append(threading.current_thread())
            if len(calls) == 1:
                second.start()
                while second.is_alive() and not closing.is_wanted.is_set():
                    second.join(0.001)
                assert outcomes == [], "the second close returned before the first"
                assert descriptors_of(image) == 1

    def close() -> None:
        device.close()
        outcomes.append(descriptors_of(image))

    image, calls, outcomes = tmp_path / "image", list[threading.Thread](), list[int]()
    device, borrower, closing = FileDevice.create(image, SIZE), Slow(), Watched()
    device._closing = closing  # type: ignore[assignment]
    device.lend(borrower)
    second = threading.Thread(target=close)
    close()
    second.join(HANG_S)
    assert outcomes == [0, 0]


@pytest.mark.parametrize("moment", ["asking back", "before unlocking", "after unlocking"])
def test_closing_in_the_middle_of_closing_gives_one_descriptor_back(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the handler of a signal does. The number was given back twice, the second time as the next image's, with its lock."""
    opened, moments = list[FileDevice](), [moment]

    def handle() -> None:
        device.close()
        opened.append(FileDevice.create(tmp_path / "other", SIZE))

    class Borrowing:
        def close(self) -> None:
            if moments and moments.pop() == "asking back":
                handle()

    def unlock(fd: int) -> None:
        monkeypatch.undo()
        if moment == "before unlocking":
            handle()
        file_module.unlock_image(fd)
        if moment == "after unlocking":
            handle()

    device, borrower = FileDevice.create(tmp_path / "image", SIZE), Borrowing()
    device.lend(borrower)
    if moment != "asking back":
        monkeypatch.setattr(file_module, "unlock_image", unlock)
    device.close()
    assert descriptors_of(tmp_path / "image") == locks_held(os.getpid(), str(tmp_path / "image")) == 0
    assert descriptors_of(tmp_path / "other") == locks_held(os.getpid(), str(tmp_path / "other")) == 1
    with pytest.raises(ImageBusy):
        FileDevice.open(tmp_path / "other")
    opened[0].close()


def test_an_interrupt_of_closing_keeps_no_descriptor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    device = FileDevice.create(tmp_path / "image", SIZE)
    with monkeypatch.context() as patch:
        patch.setattr(file_module, "unlock_image", interrupted)
        with pytest.raises(KeyboardInterrupt):
            device.close()
    device.close()
    assert descriptors_of(tmp_path / "image") == 0


def test_what_the_system_says_of_closing_is_a_failure_of_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device, real = FileDevice.create(tmp_path / "image", SIZE), os.close

    def close(fd: int) -> None:
        real(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close)
        with pytest.raises(DeviceFailed, match=r"close .*image: Input/output error"):
            device.close()
    device.close()
    assert descriptors_of(tmp_path / "image") == 0


@pytest.mark.parametrize("call", ["read", "write", "flush", "resize", "discard"])
def test_what_fails_beside_closing_is_said(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flush that lost writes said that the device was closed, which nobody does under a call."""
    module, inside, make = CALLS[call]
    device = FileDevice.create(tmp_path / "image", SIZE)
    closer = threading.Thread(target=device.close)

    def fail(*_: object) -> None:
        closer.start()
        while not device._closed:
            closer.join(0)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(module, inside, fail)
        with pytest.raises(DeviceFailed, match="Input/output error"):
            make(device)
    closer.join(HANG_S)
    assert (tmp_path / "image").stat().st_size == SIZE


def test_a_call_whose_descriptor_the_end_of_the_interpreter_took_finds_it_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finalizer closes the device in the middle of it."""
    device, real = FileDevice.create(tmp_path / "image", SIZE), os.pread

    def at_the_end(fd: int, length: int, offset: int) -> bytes:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "is_finalizing", lambda: True)
            device.close()
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", at_the_end)
    with pytest.raises(StoreClosed):
        device.read(0, 10)


def test_a_growth_that_closing_overtakes_leaves_the_old_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, real = tmp_path / "image", file_module._extend
    device = FileDevice.create(image, SIZE)
    closer = threading.Thread(target=device.close)

    def extend(fd: int, old_bytes: int, new_bytes: int, sparse: bool) -> None:
        real(fd, old_bytes, new_bytes, sparse)
        assert image.stat().st_size == 2 * SIZE
        closer.start()
        while not device._closed:
            closer.join(0)

    monkeypatch.setattr(file_module, "_extend", extend)
    with pytest.raises(StoreClosed):
        device.resize(2 * SIZE)
    closer.join(HANG_S)
    assert device.size_bytes == image.stat().st_size == SIZE


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
