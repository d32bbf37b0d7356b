"""The interpreter ends where a store is open: the process ends too, and the image is closed in order, or given up as it is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from weakref import WeakValueDictionary

import pytest

from mdstore.device.file import FileDevice
from mdstore.device.memory import MemoryDevice
from mdstore.limits import MIB
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.store import exiting
from mdstore.store.check import check
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction

HANG_S = 120

ABANDONED = """
import contextlib, gc, os, sys, threading, time
from mdstore.device.file import FileDevice
from mdstore.errors import DeviceFailed
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction

class Stopping(FileDevice):
    stay = None  # called in the next flush of a thread that is not the main one
    stay_reading = None

    def flush(self):
        if threading.current_thread() is not threading.main_thread():
            stay, self.stay = self.stay, None
            stay and stay()
        super().flush()

    def read(self, offset, length):
        stay, self.stay_reading = self.stay_reading, None
        stay and stay()
        return super().read(offset, length)

    def fileno(self):
        return -1  # so that everything is read through `read`

device = Stopping.create(sys.argv[1], 1 << 20)
store = Store.create(device, cache_bytes=0)
store.apply(Transaction().create_collection("c").write("c", "o", 0, b"x" * 100_000))
store.snapshot("s")
view = store.open_snapshot("s")
store.apply(Transaction().write("c", "p", 0, b"acknowledged"))
inside = threading.Event()

def until_the_end():
    inside.set()
    threading.Event().wait()

def until_checkpoints_are_settled():
    inside.set()
    while not store.checkpointer._stopping:
        time.sleep(0.001)

def checkpoint():
    device.stay = until_checkpoints_are_settled
    store.checkpointer.want()

def waiting():
    device.stay = until_the_end
    commit = store.submit(Transaction().write("c", "q", 0, b"not acknowledged"))
    threading.Thread(target=commit.wait, daemon=True).start()

def calling_back():
    device.stay = until_the_end
    store.submit(Transaction().write("c", "q", 0, b"not acknowledged")).add_done_callback(lambda _: None)

def reading():
    device.stay_reading = until_the_end
    threading.Thread(target=store.read, args=("c", "o"), daemon=True).start()

def in_a_transaction():
    store._applier.apply = lambda _: until_the_end()
    threading.Thread(target=store.apply, args=(Transaction().touch("c", "q"),), daemon=True).start()

def looking_at_a_snapshot():
    def stay(*_):
        del view._lookup
        until_the_end()

    view._lookup = stay
    threading.Thread(target=view.exists, args=("c", "o"), daemon=True).start()

def flushing_the_device():
    device.stay = lambda: setattr(os, "fdatasync", lambda _: until_the_end())
    threading.Thread(target=device.flush, daemon=True).start()

def writing_to_the_device():
    os.pwritev = lambda *_: until_the_end()
    threading.Thread(target=device.write, args=(0, [b"x"]), daemon=True).start()

def generator():
    with contextlib.closing(HELD) as held:
        yield held

class Holder:
    pass

class Ending:
    def __init__(self, call):  # what is done where this is closed
        self.call = call

    def close(self):
        for _ in range(2):
            try:
                self.call()
            except Exception as error:
                print(type(error).__name__, error)
            else:
                print("done")
        with contextlib.suppress(DeviceFailed):
            store.close()

def changing():
    store.apply(Transaction().touch("c", "r"))

commits = [store.submit(Transaction().write("c", "early", 0, b"not acknowledged"))]

def becoming_durable():
    commits[0].wait()

def telling():
    commits[0].add_done_callback(lambda error: print("told", type(error).__name__))

def using_threads():
    store.submit(Transaction().touch("c", "r")).add_done_callback(lambda error: print("told", error))
    store.submit(Transaction().touch("c", "s")).add_done_callback(lambda error: store.close())

if MOUNTED:
    from mdstore.mds.server import MetadataServer
    from mdstore.mds.vfs import ROOT_INO, SUPERUSER

    MetadataServer.format(store, now_ns=1)
    server = MetadataServer.mount(store)
    server.mkdir(SUPERUSER, ROOT_INO, b"acknowledged", 0o755)
    server.syncfs()
    server.mkdir(SUPERUSER, ROOT_INO, b"perhaps", 0o755)

def making_a_directory():
    server._core.append = lambda *_, **__: until_the_end()
    threading.Thread(target=server.mkdir, args=(SUPERUSER, ROOT_INO, b"b", 0o755), daemon=True).start()

def syncing_the_file_system():
    device.stay = until_the_end
    threading.Thread(target=server.syncfs, daemon=True).start()

def ticking():
    from mdstore.mds import driver

    class Told:  # the second tick is under way where threads are about to be stopped
        ticks = 0

        def tick(self, now_ns):
            self.ticks += 1
            if self.ticks == 2:
                with server._core.guard:
                    AT_THE_TICK()
            server.tick(now_ns)

        def background_work(self):
            return False

    global driving
    driving = driver.Driver(Told(), every_s=0.001, failed=lambda _: os._exit(9))
    driver.SETTLE_S = SETTLE_S
    driving.__enter__()

def until_ticks_are_settled():
    inside.set()
    while not driving._is_ended:
        time.sleep(0.001)

def letting_time_pass():
    driving.__exit__(None, None, None)
    server.close()

def another_driver():
    with type(driving)(server) as late:
        print(late.turn(), end=" ")

def resting():
    inside.set()

gc.disable()
holder = Holder()  # which only the end of the interpreter finds, and frees with it the generator, which closes the store
holder.itself, holder.held = holder, generator()
next(holder.held)
del holder
WORK()
inside.wait()
"""


def end_inside(
    work: str, path: Path, held: str = "store", *, mounted: bool = False,
    at_the_tick: str = "until_the_end", settle_s: float = HANG_S,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """In a process where only the end closes what is `held`."""
    program = ABANDONED.replace("WORK", work).replace("HELD", held).replace("MOUNTED", str(mounted))
    program = program.replace("AT_THE_TICK", at_the_tick).replace("SETTLE_S = SETTLE_S", f"SETTLE_S = {settle_s}")
    command = [sys.executable, "-c", program, str(path)]
    return subprocess.run(command, timeout=HANG_S, capture_output=True, text=True)


@pytest.mark.parametrize("work", ["checkpoint", "reading"])
def test_a_store_that_the_end_finds_at_rest_is_closed_in_order(work: str, tmp_path: Path) -> None:
    """A checkpoint in the background was stopped with its lock, for which closing the store waited for ever: the process never
    ended. Now it is done before threads are stopped. A read of data holds no lock."""
    ended = end_inside(work, tmp_path / "image")
    assert (ended.returncode, ended.stderr) == (0, "")
    with Store.open(FileDevice.open(tmp_path / "image"), background=False) as store:
        assert store.recovery.clean
        assert store.read("c", "p") == b"acknowledged"
        assert check(store, deep=True) == []


@pytest.mark.parametrize("work", ["waiting", "calling_back", "in_a_transaction"])
def test_a_store_inside_which_a_thread_was_stopped_is_given_up(work: str, tmp_path: Path) -> None:
    """Closing it waited for what that thread had held."""
    ended = end_inside(work, tmp_path / "image")
    assert ended.returncode == 0
    assert "DeviceFailed: lock failed" in ended.stderr
    assert "the interpreter ended while a thread was inside" in ended.stderr
    with Store.open(FileDevice.open(tmp_path / "image"), background=False) as store:
        assert not store.recovery.clean
        assert store.read("c", "p") == b"acknowledged"
        assert check(store, deep=True) == []


@pytest.mark.parametrize(
    ("held", "work"),
    [("view", "looking_at_a_snapshot"), ("device", "flushing_the_device"), ("device", "writing_to_the_device")],
)
def test_what_else_is_open_waits_for_no_stopped_thread_either(held: str, work: str, tmp_path: Path) -> None:
    ended = end_inside(work, tmp_path / "image", held)
    assert (ended.returncode, ended.stderr) == (0, "")
    with Store.open(FileDevice.open(tmp_path / "image"), background=False) as store:
        assert store.read("c", "p") == b"acknowledged"


GIVEN_UP = "the interpreter ended while a thread was inside"


@pytest.mark.parametrize("work", ["waiting", "in_a_transaction"])
@pytest.mark.parametrize(
    "call",
    ["changing", "becoming_durable", "telling", "store.sync", "store.checkpoint", "lambda: store.snapshot('t')",
     "lambda: store.delete_snapshot('s')", "store.statistics", "lambda: store.resize(2 << 20)"],
)  # fmt: skip
def test_no_call_of_a_store_waits_for_a_stopped_thread(call: str, work: str, tmp_path: Path) -> None:
    """Closing a store gave up; whatever else a finalizer asked of it waited for ever."""
    ended = end_inside(work, tmp_path / "image", f"Ending({call})")
    assert (ended.returncode, ended.stderr) == (0, "")
    said = ended.stdout.splitlines()
    assert len(said) == 2
    assert all(line.startswith("DeviceFailed lock failed") and GIVEN_UP in line for line in said), said
    with Store.open(FileDevice.open(tmp_path / "image"), background=False) as store:
        assert not store.recovery.clean
        assert store.read("c", "p") == b"acknowledged"
        assert check(store, deep=True) == []


def test_no_call_of_a_view_waits_for_a_stopped_thread(tmp_path: Path) -> None:
    ended = end_inside("looking_at_a_snapshot", tmp_path / "image", 'Ending(lambda: view.exists("c", "o"))')
    assert (ended.returncode, ended.stderr) == (0, "")
    said = ended.stdout.splitlines()
    assert len(said) == 2
    assert all(line.startswith("DeviceFailed lock failed") and GIVEN_UP in line for line in said), said


def test_a_store_at_rest_works_to_the_end_and_without_threads(tmp_path: Path) -> None:
    """Who asked to be called back waited for a thread to be started, of which there are no more."""
    ended = end_inside("resting", tmp_path / "image", "Ending(using_threads)")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines()[:2] == ["told None", "done"]
    with Store.open(FileDevice.open(tmp_path / "image"), background=False) as store:
        assert store.recovery.clean
        assert store.exists("c", "s")


@pytest.mark.parametrize("work", ["making_a_directory", "syncing_the_file_system", "in_a_transaction"])
@pytest.mark.parametrize("call", ["server.close", "server.syncfs", "lambda: server.getattr(ROOT_INO)"])
def test_no_call_of_a_metadata_server_waits_for_a_stopped_thread(call: str, work: str, tmp_path: Path) -> None:
    """Its lock, its log and the store below it: whichever a stopped thread held, closing the server waited for ever."""
    ended = end_inside(work, tmp_path / "image", f"Ending({call})", mounted=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    is_known, is_closed = ["done", "done"], ["DeviceFailed", "done"]
    by_itself = {"server.close": is_closed, "lambda: server.getattr(ROOT_INO)": is_known} if work == "in_a_transaction" else {}
    said = ended.stdout.splitlines()
    assert [line.partition(" ")[0] for line in said] == by_itself.get(call, ["DeviceFailed", "DeviceFailed"]), said
    assert all(GIVEN_UP in line for line in said if line != "done"), said
    with Store.open(FileDevice.open(tmp_path / "image"), background=False) as store:
        server = MetadataServer.mount(store)
        assert server.lookup(SUPERUSER, ROOT_INO, b"acknowledged")
        server.close()
        assert check(store, deep=True) == []


def test_a_metadata_server_at_rest_is_closed_in_order(tmp_path: Path) -> None:
    ended = end_inside("resting", tmp_path / "image", "Ending(server.close)", mounted=True)
    assert (ended.returncode, ended.stderr, ended.stdout) == (0, "", "done\ndone\n")
    with Store.open(FileDevice.open(tmp_path / "image"), background=False) as store:
        server = MetadataServer.mount(store)
        assert server.lookup(SUPERUSER, ROOT_INO, b"perhaps")
        assert not server.recovery.events
        server.close()


def test_a_driver_that_is_left_open_ends_its_tick_before_the_interpreter_ends(tmp_path: Path) -> None:
    """The tick was stopped with the server's lock, and what it was to make durable was given up."""
    ended = end_inside(
        "ticking", tmp_path / "image", "Ending(letting_time_pass)", mounted=True, at_the_tick="until_ticks_are_settled"
    )
    assert (ended.returncode, ended.stderr, ended.stdout) == (0, "", "done\ndone\n")
    with Store.open(FileDevice.open(tmp_path / "image"), background=False) as store:
        server = MetadataServer.mount(store)
        assert server.lookup(SUPERUSER, ROOT_INO, b"perhaps")
        assert not server.recovery.events
        server.close()


@pytest.mark.parametrize("call", ["letting_time_pass", "another_driver"])
def test_no_driver_waits_for_a_thread_where_there_is_none(call: str, tmp_path: Path) -> None:
    """One that is entered there waited for its thread to begin."""
    ended = end_inside("ticking", tmp_path / "image", f"Ending({call})", mounted=True, settle_s=0.01)
    assert (ended.returncode, ended.stderr) == (0, "")
    said = ended.stdout.splitlines()
    assert len(said) == 2
    assert all(line == "False done" if call == "another_driver" else GIVEN_UP in line for line in said), said
    with Store.open(FileDevice.open(tmp_path / "image"), background=False) as store:
        server = MetadataServer.mount(store)
        assert server.lookup(SUPERUSER, ROOT_INO, b"acknowledged")
        server.close()
        assert check(store, deep=True) == []


IN_GARBAGE = """
import gc, sys, threading
from mdstore.btree._kernel import call_where_threads_meet
from mdstore.device.file import FileDevice
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction

class Ending:  # what only the end of the interpreter finds
    def __init__(self, held, calls):
        self.held, self.calls, self.itself = held, calls, self

    def __del__(self):
        for call in self.calls:
            try:
                call()
            except Exception as error:
                print(type(error).__name__, error)
            else:
                print("done")

def until_the_end():
    inside.set()
    threading.Event().wait()

class Stopping(FileDevice):
    is_armed = False

    def flush(self):
        if self.is_armed and threading.current_thread() is not threading.main_thread():
            until_the_end()
        super().flush()

def made():
    store = Store.create(Stopping.create(sys.argv[1], 1 << 20), cache_bytes=0)
    store.apply(Transaction().create_collection("c").write("c", "o", 0, b"x" * 100_000))
    store.checkpoint()
    store.snapshot("s")
    store.apply(Transaction().write("c", "p", 0, b"acknowledged"))
    return store

def flushing_the_log():
    store = made()
    store.device.is_armed = True
    store.submit(Transaction().write("c", "q", 0, b"not acknowledged"))
    threading.Thread(target=store.journal.flush, daemon=True).start()  # it knows of the log alone
    Ending(store, [store.sync, store.close])

def resting():
    store = made()
    view = store.open_snapshot("s")
    Ending((store, view), [view.close, store.sync, store.close])
    inside.set()

def reading_a_page_of(what):
    call_where_threads_meet(lambda place: place == "file" and until_the_end())
    threading.Thread(target=what.read, args=("c", "o"), daemon=True).start()
    inside.wait()  # it has the pager's descriptor in use, and no lock of the store's
    call_where_threads_meet(None)

def reading_a_page():
    store = made()
    reading_a_page_of(store)
    Ending(store, [store.tables.pager.close, store.tables.pager.close])

def reading_a_page_of_a_snapshot():
    store = made()
    view = store.open_snapshot("s")
    reading_a_page_of(view)
    Ending(view, [view.tables.pager.close, view.close, store.close])

gc.disable()
inside = threading.Event()
WORK()
inside.wait()
"""


def end_in_garbage(work: str, path: Path) -> list[str]:
    """In a process where only garbage refers to the store; what its finalizer says."""
    command = [sys.executable, "-c", IN_GARBAGE.replace("WORK", work), str(path)]
    ended = subprocess.run(command, timeout=HANG_S, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


def test_a_store_in_garbage_waits_for_no_stopped_thread(tmp_path: Path) -> None:
    """What the lock was to look at it had by weak references, and they are cleared before garbage is finalized: it looked at
    nothing, and `sync` waited for a flush of the log that a stopped thread was in."""
    said = end_in_garbage("flushing_the_log", tmp_path / "image")
    assert len(said) == 2
    assert said[0].startswith("DeviceFailed lock failed"), said
    assert GIVEN_UP in said[0]
    assert said[1] == "done", said
    with Store.open(FileDevice.open(tmp_path / "image"), background=False) as store:
        assert not store.recovery.clean
        assert store.read("c", "p") == b"acknowledged"
        assert check(store, deep=True) == []


def test_a_store_in_garbage_that_is_at_rest_is_closed_in_order(tmp_path: Path) -> None:
    assert end_in_garbage("resting", tmp_path / "image") == ["done"] * 3
    with Store.open(FileDevice.open(tmp_path / "image"), background=False) as store:
        assert store.recovery.clean
        assert store.read("c", "p") == b"acknowledged"


@pytest.mark.parametrize("work", ["reading_a_page", "reading_a_page_of_a_snapshot"])
def test_no_pager_waits_at_the_end_for_a_stopped_read(work: str, tmp_path: Path) -> None:
    """Of a medium that hangs, say: whoever closed a store or a view there waited for it for ever."""
    said = end_in_garbage(work, tmp_path / "image")
    assert set(said) == {"done"}, said
    with Store.open(FileDevice.open(tmp_path / "image"), background=False) as store:
        assert store.read("c", "p") == b"acknowledged"


def settle_only(monkeypatch: pytest.MonkeyPatch, *things: exiting.Settling) -> None:
    """What `atexit` does, to these alone."""
    watch_only(monkeypatch, *things)
    exiting._settle()


def watch_only(monkeypatch: pytest.MonkeyPatch, *things: exiting.Settling) -> None:
    monkeypatch.setattr(exiting, "_is_settled", False)
    monkeypatch.setattr(exiting, "_open", WeakValueDictionary())
    for thing in things:
        exiting.watch(thing)


class Counting:
    """Has work in the background. `meanwhile` is called where it is stopped."""

    def __init__(self, meanwhile: Callable[[], object] = bool) -> None:
        self.stops = 0
        self._meanwhile = meanwhile

    def stop(self) -> None:
        self.stops += 1
        self._meanwhile()


def test_settling_goes_on_where_stores_are_opened_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that a daemon thread opened then ended the walk with a RuntimeError: the others were not settled. It begins nothing
    in the background itself. Here one is opened at each line that settling takes, as a switch of threads may do it."""
    opened: list[Counting] = []

    def open_one(*_: object) -> Callable[..., object]:
        opened.append(Counting())
        exiting.watch(opened[-1])
        return open_one

    things = [Counting() for _ in range(5)]
    watch_only(monkeypatch, *things)
    before = sys.gettrace()
    sys.settrace(open_one)
    try:
        exiting._settle()
    finally:
        sys.settrace(before)
    assert [thing.stops for thing in things] == [1] * 5
    assert len(opened) > 10
    assert all(thing.stops for thing in opened)


def test_settling_goes_on_behind_one_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was the last that was settled. The interpreter reports why."""

    def fail() -> None:
        raise ValueError("this one")

    things = [Counting(fail), Counting(), Counting(fail), Counting()]
    with pytest.raises(ValueError, match="this one"):
        settle_only(monkeypatch, *things)
    assert [thing.stops for thing in things] == [1] * 4


def test_a_settled_store_goes_on_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `atexit` calls later may still write, and close."""
    store = Store.create(MemoryDevice(4 * MIB), log_bytes=64 * 1024)
    settle_only(monkeypatch, store.checkpointer)
    store.apply(Transaction().create_collection("c"))
    made = store.checkpointer.count
    for number in range(100):
        store.submit(Transaction().write("c", f"o{number}", 0, b"x" * 1500))
    assert store.checkpointer.count > made, "the log was full"
    assert store.checkpointer._thread is None
    store.close()


def test_a_forked_child_waits_for_no_checkpoint_of_its_parent() -> None:
    store = Store.create(MemoryDevice(2 * MIB))
    with store.checkpointer._one_at_a_time:
        child = os.fork()
        if not child:
            os._exit(len(exiting._open))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.checkpointer in exiting._open.values()
    store.close()


def test_locks_are_free_for_whoever_could_have_them() -> None:
    lock, own = threading.Lock(), threading.RLock()
    with own:
        assert exiting.are_free([lock, own])
        with lock:
            assert not exiting.are_free([own, lock])
    assert not lock.locked()
