"""Whoever closes an image has its descriptor back at once: also from readers in other threads, which the kernel lets go on
without the interpreter's lock, from readers that nobody closed, and from every opening that failed.

A reader is held in the middle of a read by the kernel's own hook, with the descriptor in use."""

from __future__ import annotations

import _thread
import errno
import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import pytest

from mdstore.btree import Pager, Tree, read_blocks
from mdstore.device.file import FileDevice
from mdstore.engines.registry import open_store
from mdstore.errors import DeviceFailed, MdstoreError, StoreClosed
from mdstore.limits import MIB
from mdstore.store.scrub import Scrub
from mdstore.store.snapshots import SnapshotView, open_in_image
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from tests.commandline import Run
from tests.model.btree_world import World, filled, meeting
from tests.unit.open_files import descriptors_of

HANG_S = 60
DATA = b"x" * 300_000


class Reader:
    """Calls `read` in a thread of its own. `inside`: it is about to read by a descriptor, and goes on when `may_go`."""

    def __init__(self, read: Callable[[], object]) -> None:
        self.inside, self.may_go, self.somebody_waits = threading.Event(), threading.Event(), threading.Event()
        self.outcome: object = None
        self._read = read
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.outcome = self._read()
        except StoreClosed:
            self.outcome = StoreClosed

    def meet(self, place: str) -> None:
        if place == "file" and threading.current_thread() is self._thread and not self.inside.is_set():
            self.inside.set()
            assert self.may_go.wait(HANG_S)
        elif place == "wait" and threading.current_thread() is not self._thread:
            self.somebody_waits.set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """It is in the middle of its first read, and has its answer at the end."""
        with meeting(self.meet):
            self._thread.start()
            assert self.inside.wait(HANG_S)
            yield
            self.may_go.set()
            self._thread.join(HANG_S)
            assert not self._thread.is_alive()


def closed_meanwhile(image: Path, read: Callable[[], object], close: Callable[[], None]) -> object:
    """What `read` returned, and that the image was closed when it had."""
    reader, closer = Reader(read), threading.Thread(target=close)
    with reader.held():
        closer.start()
        assert reader.somebody_waits.wait(HANG_S)
        assert descriptors_of(image) == 1
    closer.join(HANG_S)
    assert descriptors_of(image) == 0
    return reader.outcome


def cold(image: Path, count: int) -> tuple[FileDevice, Tree]:
    """A tree with nothing of it in memory; its first value is long."""
    world = World(1, holes=False)
    tree, _ = filled(world, count)
    tree.put(b"000000", DATA)
    root = world.seal(tree)
    world.write()
    image.write_bytes(bytes(world.device.image))
    device = FileDevice.open(image)
    pager = Pager(device, page_size=256)
    pager.generation = world.pager.generation
    return device, Tree.open(pager, root)


READS: dict[str, tuple[int, Callable[[Tree], object], object]] = {
    "get": (4, lambda tree: tree.get(b"000003"), b"3" + b"." * 20),
    "get of a long value": (4, lambda tree: tree.get(b"000000"), StoreClosed),
    "get in a deep tree": (400, lambda tree: tree.get(b"000333"), StoreClosed),
    "a scan": (400, lambda tree: list(tree.items()), StoreClosed),
    "pages": (400, lambda tree: list(tree.pages()), StoreClosed),
    "put": (4, lambda tree: tree.put(b"000002", b"new"), True),
    "blocks": (4, lambda tree: read_blocks(tree.pager, 256, 256, 256) is not None, True),
}


@pytest.mark.parametrize("closes", ["device", "pager and device"])
@pytest.mark.parametrize("name", READS)
def test_closing_waits_for_the_read_that_is_under_way_and_refuses_the_next(name: str, closes: str, tmp_path: Path) -> None:
    """The number was kept as long as the device was remembered: a service that opened many images ran out of them."""
    count, read, expected = READS[name]
    device, tree = cold(tmp_path / "image", count)

    def close() -> None:
        if closes != "device":
            tree.pager.close()
        device.close()

    assert closed_meanwhile(tmp_path / "image", lambda: read(tree), close) == expected
    with pytest.raises(StoreClosed):
        tree.get(b"000000")


def test_who_comes_between_two_reads_of_a_scan_finds_it_closed(tmp_path: Path) -> None:
    device, tree = cold(tmp_path / "image", 400)
    records, closed = tree.items(), list[int]()
    next(records)

    def close(place: str) -> None:
        if place == "aside":
            device.close()
            closed.append(descriptors_of(tmp_path / "image"))

    with meeting(close), pytest.raises(StoreClosed):
        list(records)
    assert set(closed) == {0}


def test_closing_that_is_interrupted_refuses_the_next_read_and_can_be_done_again(tmp_path: Path) -> None:
    """Ctrl-C while the device is slow."""
    device, tree = cold(tmp_path / "image", 4)
    reader, waiting = Reader(lambda: tree.get(b"000003")), threading.Event()

    def waits() -> None:
        tree.pager.close()

    def interrupt(_: int, frame: FrameType | None) -> None:
        if frame is None or frame.f_code is not waits.__code__:
            return
        try:
            tree.get(b"000000")  # before it waits, it reads
        except StoreClosed:
            waiting.set()
            raise KeyboardInterrupt from None

    def press() -> None:
        while not waiting.is_set():
            _thread.interrupt_main()
            waiting.wait(0.001)

    before = signal.signal(signal.SIGINT, interrupt)
    pressing = threading.Thread(target=press)
    try:
        with reader.held():
            pressing.start()
            with pytest.raises(KeyboardInterrupt):
                waits()
            pressing.join(HANG_S)
            assert descriptors_of(tmp_path / "image") == 1
    finally:
        signal.signal(signal.SIGINT, before)
    assert reader.outcome == b"3" + b"." * 20
    tree.pager.close()
    device.close()
    assert descriptors_of(tmp_path / "image") == 0


def test_a_forked_child_closes_without_the_threads_of_its_parent(tmp_path: Path) -> None:
    """It would have waited for a read that nobody there makes."""
    device, tree = cold(tmp_path / "image", 4)
    reader = Reader(lambda: tree.get(b"000003"))
    with reader.held():
        child = os.fork()
        if not child:
            signal.alarm(HANG_S)  # a hang ends the child
            tree.pager.close()
            device.close()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert reader.outcome == b"3" + b"." * 20
    device.close()


def test_a_forked_child_reads_nothing_by_a_number_that_stands_for_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a null device the number is free there, and a tree read whatever the child opened next."""
    device, tree = cold(tmp_path / "image", 4)
    (tmp_path / "other").write_bytes((tmp_path / "image").read_bytes())
    number = device.fileno()
    monkeypatch.setattr(os, "devnull", str(tmp_path / "nowhere"))
    reader = Reader(lambda: tree.get(b"000003"))
    with reader.held():
        child = os.fork()
        if not child:
            signal.alarm(HANG_S)  # a hang ends the child
            os.dup2(os.open(tmp_path / "other", os.O_RDONLY), number)
            with suppress(BaseException):
                assert read_blocks(tree.pager, 0, 256, 256) is None
                try:
                    tree.get(b"000000")
                except StoreClosed:
                    os._exit(7)
            os._exit(1)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert reader.outcome == b"3" + b"." * 20
    device.close()


def new(image: Path) -> Store:
    store = Store.create(FileDevice.create(image, 2 * MIB), background=False)
    store.apply(Transaction().create_collection("c").write("c", "o", 0, DATA))
    store.snapshot("s")
    assert store.read("c", "o") == DATA  # its pages are in memory
    return store


class Kept:
    """Garbage whose finalizer has what it holds live on."""

    lives: ClassVar[list[Any]] = []

    def __init__(self, held: object) -> None:
        self.held, self.itself = held, self

    def __del__(self) -> None:
        Kept.lives.append(self.held)


def lives_again(make: Callable[[], object]) -> Any:
    """What `make` returns, after it was garbage."""
    Kept(make())
    gc.collect()
    return Kept.lives.pop()


def test_a_reader_that_was_garbage_and_lives_again_is_closed_with_its_device(tmp_path: Path) -> None:
    """The device had forgotten it, and it read the file that had the number next, whose blocks it gave out."""
    store = new(tmp_path / "image")
    number = store.device.fileno()
    view: SnapshotView = lives_again(lambda: store.open_snapshot("s"))
    store.close()
    other = os.open(tmp_path / "image", os.O_RDONLY)
    if other != number:
        os.dup2(other, number)
    try:
        assert read_blocks(view.tables.pager, 0, 4096, 4096) is None
        with pytest.raises(StoreClosed):
            view.read("c", "o")
    finally:
        for each in {other, number}:
            os.close(each)


def test_a_device_that_was_garbage_and_lives_again_waits_for_its_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a thread that had called it before."""
    image, real = tmp_path / "image", os.pread

    def used() -> FileDevice:
        device = FileDevice.create(image, 8192)
        device.write(0, [DATA[:10]])
        return device

    class Turn:
        """This thread's; `waiting` is set when somebody else wants it."""

        def __enter__(self) -> None:
            waiting.set()
            turn.acquire()

        def __exit__(self, *_: object) -> None:
            turn.release()

    device: FileDevice = lives_again(used)
    turn, waiting, me = device._calling.turn, threading.Event(), threading.get_ident()
    assert device._turns == {me: turn}
    device._turns[me] = Turn()  # type: ignore[assignment]
    closer = threading.Thread(target=device.close)

    def while_it_closes(fd: int, length: int, offset: int) -> bytes:
        closer.start()
        while closer.is_alive() and not waiting.is_set():
            closer.join(0.001)
        assert descriptors_of(image) == 1
        return real(fd, length, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", while_it_closes)
        assert device.read(0, 10) == DATA[:10]
    closer.join(HANG_S)
    assert descriptors_of(image) == 0


def test_a_store_whose_device_fails_to_close_says_so_once_and_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new(tmp_path / "image")
    number, real = store.device.fileno(), os.close

    def close(fd: int) -> None:
        real(fd)
        if fd == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close)
        with pytest.raises(DeviceFailed, match=r"close .*Input/output error"):
            store.close()
    store.close()
    assert descriptors_of(tmp_path / "image") == 0
    with Store.open(FileDevice.open(tmp_path / "image"), background=False) as again:
        assert again.read("c", "o") == DATA


def test_a_transaction_that_finds_the_device_closed_says_that_it_is_closed(tmp_path: Path) -> None:
    """It blamed the operation."""
    new(tmp_path / "image").close()
    store = Store.open(FileDevice.open(tmp_path / "image"), cache_bytes=0, background=False)
    store.device.close()
    with pytest.raises(StoreClosed):
        store.apply(Transaction().write("c", "o", 1, b"x"))
    with suppress(DeviceFailed, StoreClosed):
        store.close()


def in_the_store(store: Store) -> object:
    return store.read("c", "o")


def in_a_view(store: Store) -> object:
    """That nobody closes."""
    return store.open_snapshot("s").read("c", "o")


def in_a_scrub(store: Store) -> object:
    return Scrub(store).run().complete


@pytest.mark.parametrize("read", [in_the_store, in_a_view, in_a_scrub])
def test_a_closed_store_has_no_descriptor_whoever_reads_it(read: Callable[[Store], object], tmp_path: Path) -> None:
    store = new(tmp_path / "image")
    assert closed_meanwhile(tmp_path / "image", lambda: read(store), store.close) is StoreClosed


def test_a_closed_store_has_no_descriptor_whatever_of_it_is_remembered(tmp_path: Path) -> None:
    store = new(tmp_path / "image")
    view, pairs = store.open_snapshot("s"), store.map("c", "m")
    for number in range(500):
        pairs.put(b"%d" % number, b"value")
    records = pairs.items()
    next(records)
    store.close()
    assert descriptors_of(tmp_path / "image") == 0
    for call in (lambda: view.read("c", "o"), lambda: store.read("c", "o")):
        with pytest.raises(StoreClosed):
            call()
    again = open_in_image(FileDevice.open(tmp_path / "image", read_only=True), "s")
    assert again.read("c", "o") == DATA
    again.close()
    assert descriptors_of(tmp_path / "image") == 0


def test_a_failed_opening_has_no_descriptor(tmp_path: Path) -> None:
    """With all that its error remembers, and no help of the garbage collector's."""
    image, errors = tmp_path / "image", list[MdstoreError]()
    new(image).close()
    whole = image.read_bytes()
    gc.disable()
    try:
        for content in (b"", b"no image" * 1000, whole[: len(whole) // 2], whole[:8192] + bytes(len(whole) - 8192)):
            image.write_bytes(content)
            for read_only in (False, True):
                try:
                    open_store(f"btree:{image}", read_only=read_only).close()
                except MdstoreError as error:
                    errors.append(error)
                assert descriptors_of(image) == 0
    finally:
        gc.enable()
    assert len(errors) == 8


COMMANDS = [
    "ls IMAGE /", "stat IMAGE", "fsck IMAGE", "scrub IMAGE", "dump IMAGE", "damage list IMAGE",
    "repair IMAGE", "journal inspect IMAGE", "journal events IMAGE", "snapshot list IMAGE", "copy IMAGE COPY", "compact IMAGE",
    "export IMAGE / COPY",
]  # fmt: skip


@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_leaves_no_descriptor(command: str, damaged: bool, tmp_path: Path, run: Run) -> None:
    image = tmp_path / "image"
    assert run("mkfs", image, "--size", "4M").code == 0
    if damaged:
        image.write_bytes(image.read_bytes()[:8192] + bytes(2 * MIB))
    words = {"IMAGE": str(image), "COPY": str(tmp_path / "copy")}
    ran = run(*(words.get(word, word) for word in command.split()))
    assert ran.code != 2 or command.startswith("fsck")
    assert damaged or ran.code == 0, ran
    assert descriptors_of(image) == 0
