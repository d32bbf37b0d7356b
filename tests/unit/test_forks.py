"""What is open when a process forks stays the parent's: the child's writes were accepted, and silently ruined the image."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mdstore.device import forks
from mdstore.device.file import FileDevice
from mdstore.engines.lmdb import LmdbStore
from mdstore.errors import Forked, StoreClosed
from mdstore.limits import MIB
from mdstore.store.check import check
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction

HANG_S = 60


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns, or raises, in a child of this process."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(HANG_S)
        try:
            outcome: Any = work()
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        os.write(write_end, pickle.dumps(outcome))
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as answers:
        answer = answers.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the child hung, or died"
    return pickle.loads(answer)


def refused(*calls: Callable[[], Any]) -> list[str]:
    """The kinds of errors, one for each call."""
    kinds = []
    for call in calls:
        try:
            kinds.append(f"returned {call()!r}")
        except Exception as error:
            kinds.append(type(error).__name__)
    return kinds


def new(path: Path) -> Store:
    store = Store.create(FileDevice.create(path, 4 * MIB), background=False)
    store.apply(Transaction().create_collection("c").write("c", "o", 0, b"hello").map_set("c", "m", {b"k": b"v"}))
    return store


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_child_can_use_nothing_that_was_open_and_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "image"
    store = new(path)
    view, commit = store.map("c", "m"), store.submit(Transaction().write("c", "o", 0, b"not durable yet"))
    store.snapshot("s")
    snapshot, pending = store.open_snapshot("s"), store.submit(Transaction().touch("c", "pending"))
    device, before = store.device, digest(path)

    def work() -> list[str]:
        kinds = refused(
            lambda: store.read("c", "o"), lambda: store.apply(Transaction().touch("c", "n")), store.checkpoint, store.sync,
            store.statistics, lambda: view.get(b"k"), lambda: view.put(b"k", b"child"), lambda: view.delete(b"k"),
            lambda: view.update({b"k": b"child"}), lambda: view.setdefault(b"n", b""), lambda: list(view.items()),
            lambda: snapshot.read("c", "o"), lambda: store.open_snapshot("s"), lambda: device.read(0, 512),
            lambda: device.write(0, [bytes(512)]), device.flush, lambda: store.resize(8 * MIB), lambda: store.map("c", "m"),
        )  # fmt: skip
        kinds += refused(lambda: pending.wait())
        store.close()
        snapshot.close()
        device.close()
        return kinds

    kinds = in_child(work)
    assert set(kinds[:-1]) == {"Forked"}
    assert kinds[-1] == "StoreClosed"
    assert digest(path) == before
    view.put(b"k", b"parent")
    pending.wait()
    commit.wait()
    snapshot.close()
    store.close()
    with Store.open(FileDevice.open(path)) as again:
        assert check(again, deep=True) == []
        assert again.map("c", "m")[b"k"] == b"parent"


@contextmanager
def descriptors_used_up(but: int) -> Iterator[None]:
    """No more than `but` files can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(1)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken[0], *map(int, os.listdir("/proc/self/fd"))) + 16, hard))
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(1))
        for _ in range(but):
            os.close(taken.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


def test_a_child_without_a_free_descriptor_leaves_every_image_behind(tmp_path: Path) -> None:
    """No null device could be opened for the first; the hook ended there, and the child wrote to the others."""
    stores = [new(tmp_path / f"image-{number}") for number in range(4)]
    before = [digest(Path(store.device.name)) for store in stores]

    def work() -> tuple[list[str], list[bool]]:
        kinds = [kind for store in stores for kind in refused(
            lambda device=store.device: device.write(0, [bytes(512)]),
            lambda store=store: store.map("c", "m").put(b"k", b"child"),
        )]  # fmt: skip
        return kinds, [os.path.sameopenfile(number, null) for number in numbers]

    numbers = [store.device.fileno() for store in stores]
    with open(os.devnull, "rb") as nothing, descriptors_used_up(but=2):
        null = nothing.fileno()
        assert in_child(work) == (["Forked"] * 8, [True] * 4)
    assert [digest(Path(store.device.name)) for store in stores] == before
    for store in stores:
        store.map("c", "m").put(b"k", b"parent")
        store.close()


def test_a_child_without_a_null_device_leaves_every_image_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a chroot, say."""
    stores = [new(tmp_path / f"image-{number}") for number in range(2)]
    numbers = [store.device.fileno() for store in stores]
    monkeypatch.setattr(os, "devnull", "/nowhere/null")

    def work() -> list[str]:
        return refused(*(store.checkpoint for store in stores), *(partial(os.fstat, number) for number in numbers))

    assert in_child(work) == ["Forked", "Forked", "OSError", "OSError"]
    for store in stores:
        store.close()


def test_what_fails_to_be_left_behind_keeps_nothing_else_usable() -> None:
    class Broken:
        def left_behind(self, error: Forked) -> None:
            visited.append(str(error))
            raise OSError("broken")

    visited: list[str] = []
    things = [Broken() for _ in range(3)]
    for thing in things:
        forks.watch(thing)
    assert len(in_child(lambda: visited)) == 3


def test_a_child_does_not_wait_for_threads_that_it_does_not_have(tmp_path: Path) -> None:
    """Every lock was held by some thread of the parent when it forked."""
    store = new(tmp_path / "image")
    view, pending = store.map("c", "m"), store.submit(Transaction().touch("c", "pending"))
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with store.lock, store.journal._lock, view._turn:
            held.set()
            over.wait(HANG_S)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(HANG_S)
    try:
        kinds = in_child(
            lambda: refused(
                lambda: store.read("c", "o"), lambda: view.put(b"k", b"v"), lambda: view.delete(b"k"), pending.wait, store.close
            )
        )
    finally:
        over.set()
        holder.join()
    assert kinds == ["Forked", "Forked", "Forked", "StoreClosed", "returned None"]
    store.close()


def test_a_child_that_lives_on_does_not_hold_the_image(tmp_path: Path) -> None:
    """The lock belongs to the open file, which the child had too."""
    path = tmp_path / "image"
    store = new(path)
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(HANG_S)
        os.write(write_end, b"here")
        signal.pause()
    assert os.read(read_end, 4) == b"here"
    os.close(read_end)
    os.close(write_end)
    try:
        with pytest.raises(Exception, match="is open in this process"):
            FileDevice.open(path)
        store.close()
        Store.open(FileDevice.open(path)).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_child_may_open_the_image_itself_once_the_parent_has_closed_it(tmp_path: Path) -> None:
    path = tmp_path / "image"
    new(path).close()

    def work() -> bytes:
        with Store.open(FileDevice.open(path)) as store:
            store.apply(Transaction().write("c", "o", 0, b"child"))
            return store.read("c", "o")

    assert in_child(work) == b"child"
    with Store.open(FileDevice.open(path)) as store:
        assert store.read("c", "o") == b"child"


def _put(view: Any, answers: Any) -> None:
    try:
        view.put(b"k", b"child")
    except StoreClosed as error:
        answers.send(str(error))


def test_a_worker_of_multiprocessing_is_told(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    with new(tmp_path / "image") as store:
        here, there = context.Pipe()
        worker = context.Process(target=_put, args=(store.map("c", "m"), there))
        worker.start()
        assert here.poll(HANG_S)
        assert f"opened by process {os.getpid()}, which forked this one" in here.recv()
        worker.join(HANG_S)
        assert worker.exitcode == 0
        assert store.map("c", "m")[b"k"] == b"v"


SCRIPT = """
import os, sys
from mdstore.device import forks
from mdstore.device.file import FileDevice
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
with Store.create(FileDevice.create(sys.argv[1], 4 << 20)) as store:
    view = store.map("c", "m")
    for round in range(3):
        view.put(b"%d" % round, bytes(3000))
        rows = view.items()
        next(rows)
        before = open(sys.argv[1], "rb").read()
        child = os.fork()
        if child == 0:
            {leave}
        assert os.waitpid(child, 0)[1] == 0
        assert open(sys.argv[1], "rb").read() == before, "the child wrote"
        view.update({{b"%d-%d" % (round, key): bytes(100) for key in range(500)}})
        store.checkpoint()
"""


@pytest.mark.parametrize("leave", ["sys.exit(0)", "store.close(); del store, view, rows; sys.exit(0)", "os._exit(0)", "break"])
def test_a_child_that_leaves_a_with_or_ends_writes_nothing(tmp_path: Path, leave: str) -> None:
    """By itself, with all it has freed at the end of the interpreter."""
    path = tmp_path / "image"
    subprocess.run([sys.executable, "-c", SCRIPT.format(leave=leave), str(path)], check=True, timeout=HANG_S * 2)
    with Store.open(FileDevice.open(path)) as store:
        assert check(store, deep=True) == []
        assert len(store.map("c", "m")) == 3 * 501


def test_a_child_leaves_an_lmdb_environment_to_its_parent(tmp_path: Path) -> None:
    pytest.importorskip("lmdb")
    store = LmdbStore(tmp_path / "lmdb")
    store.apply(Transaction().create_collection("c").map_set("c", "m", {b"%04d" % key: bytes(100) for key in range(1000)}))
    rows = store.map_items("c", "m")
    first = next(rows)

    def work() -> list[str]:
        apply = lambda: store.apply(Transaction().noop())  # noqa: E731
        return refused(lambda: store.exists("c", "m"), apply, lambda: next(rows), store.close)

    assert in_child(work) == ["Forked", "Forked", "Forked", "returned None"]
    store.apply(Transaction().map_clear("c", "m"))
    assert [first, *rows] == [(b"%04d" % key, bytes(100)) for key in range(1000)]
    store.close()


def test_what_the_error_says() -> None:
    assert "open the image anew" in str(Forked(1))
