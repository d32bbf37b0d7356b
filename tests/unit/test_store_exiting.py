"""The interpreter ends where a store is open: the process ends too, and the image is closed in order, or given up as it is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mdstore.device.file import FileDevice
from mdstore.device.memory import MemoryDevice
from mdstore.limits import MIB
from mdstore.store import exiting
from mdstore.store.check import check
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction

HANG_S = 120

ABANDONED = """
import contextlib, gc, os, sys, threading, time
from mdstore.device.file import FileDevice
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
    view._lookup = lambda *_: until_the_end()
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

gc.disable()
holder = Holder()  # which only the end of the interpreter finds, and frees with it the generator, which closes the store
holder.itself, holder.held = holder, generator()
next(holder.held)
del holder
WORK()
inside.wait()
"""


def end_inside(work: str, path: Path, held: str = "store") -> subprocess.CompletedProcess[str]:
    """In a process where only the end closes what is `held`."""
    command = [sys.executable, "-c", ABANDONED.replace("WORK", work).replace("HELD", held), str(path)]
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
    assert "DeviceFailed: close failed" in ended.stderr
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


def test_a_settled_store_goes_on_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `atexit` calls later may still write, and close."""
    store = Store.create(MemoryDevice(4 * MIB), log_bytes=64 * 1024)
    assert store.checkpointer in exiting._open
    monkeypatch.setattr(exiting, "_open", {store.checkpointer})
    exiting._settle()
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
    assert store.checkpointer in exiting._open
    store.close()


def test_locks_are_free_for_whoever_could_have_them() -> None:
    lock, own = threading.Lock(), threading.RLock()
    with own:
        assert exiting.are_free([lock, own])
        with lock:
            assert not exiting.are_free([own, lock])
    assert not lock.locked()
