"""POSIX record locks and flock(2) between processes."""

from __future__ import annotations

import fcntl
import os
import platform
import select
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.posix.calls import make, outcome
from tests.posix.conftest import Server

pytestmark = pytest.mark.fuse

LOCK_CALLS = {"x86_64": (b"72", b"73"), "aarch64": (b"25", b"32")}  # the numbers of fcntl and flock
EX, SH, UN, NB = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN, fcntl.LOCK_NB


@pytest.fixture(scope="module")
def served_locks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A mount whose locks are the metadata server's, not the kernel's."""
    path = tmp_path_factory.mktemp("locks") / "mount"
    with Server("served", path, "locks=server"):
        yield path


@pytest.fixture(params=["kernel's", "server's"])
def locking(mounted: tuple[str, Path], root: Path, request: pytest.FixtureRequest) -> Path:
    """A file to lock: in each subject with the kernel's lock tables, and, next to the model, in the server's own."""
    if request.param == "server's" and mounted[0] == "memory":
        root = request.getfixturevalue("served_locks") / root.name
        root.mkdir()
    make(root / "file", bytes(1000))
    return root / "file"


class Other:
    """Another process that makes lock calls on the same file, one at a time, and tells how they ended."""

    def __init__(self, path: Path) -> None:
        to_child, self._orders = os.pipe()
        self._answers, from_child = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._orders)
            os.close(self._answers)
            _obey(path, to_child, from_child)
        os.close(to_child)
        os.close(from_child)

    def start(self, call: str, *args: int) -> None:
        os.write(self._orders, (f"{call} {' '.join(map(str, args))}\n").encode())

    def answer(self) -> str:
        return os.read(self._answers, 100).decode()

    def has_answered(self, another: Other) -> bool:
        """Whether this one has, once one of the two has."""
        return self._answers in select.select([self._answers, another._answers], [], [])[0]

    def does(self, call: str, *args: int) -> str:
        self.start(call, *args)
        return self.answer()

    def end(self) -> None:
        os.close(self._orders)
        os.close(self._answers)
        os.waitpid(self.pid, 0)


def _obey(path: Path, orders: int, answers: int) -> None:
    def wake(number: int, frame: object) -> None:
        raise InterruptedError(4, "interrupted")

    signal.signal(signal.SIGUSR1, wake)
    fd = os.open(path, os.O_RDWR)
    calls: dict[str, Callable[..., object]] = {"lockf": fcntl.lockf, "flock": fcntl.flock}
    with os.fdopen(orders, "r") as lines:
        for line in lines:
            name, *args = line.split()
            if name == "close":
                os.close(os.open(path, os.O_RDONLY))
                said = "OK"
            else:
                said = outcome(calls[name], fd, *map(int, args))
            os.write(answers, said.encode())
    os._exit(0)


@pytest.mark.parametrize("call", ["lockf", "flock"])
def test_shared_and_exclusive_locks_exclude_each_other(locking: Path, call: str) -> None:
    lock = {"lockf": fcntl.lockf, "flock": fcntl.flock}[call]
    other = Other(locking)
    with open(locking, "r+b") as file:
        lock(file, EX)
        assert other.does(call, EX | NB) == "EAGAIN"
        assert other.does(call, SH | NB) == "EAGAIN"
        lock(file, SH)
        assert other.does(call, SH | NB) == "OK"
        assert outcome(lock, file, EX | NB) == "EAGAIN"
        assert other.does(call, UN) == "OK"
        assert outcome(lock, file, EX | NB) == "OK"
        lock(file, UN)
        assert other.does(call, EX | NB) == "OK"
    other.end()


def test_ranges_are_locked_apart_and_split(locking: Path) -> None:
    other = Other(locking)
    with open(locking, "r+b") as file:
        fcntl.lockf(file, EX, 100, 0)
        assert other.does("lockf", EX | NB, 100, 100) == "OK"
        assert other.does("lockf", EX | NB, 1, 99) == "EAGAIN"
        fcntl.lockf(file, UN, 20, 40)
        assert other.does("lockf", EX | NB, 20, 40) == "OK"
        assert other.does("lockf", EX | NB, 21, 40) == "EAGAIN"
        assert other.does("lockf", EX | NB, 1, 39) == "EAGAIN"
        assert outcome(fcntl.lockf, file, EX | NB, 0, 90) == "EAGAIN"  # length 0: to the end, however far
    other.end()


def test_the_holder_of_a_conflicting_lock_is_told(locking: Path) -> None:
    other = Other(locking)
    assert other.does("lockf", EX, 10, 5) == "OK"
    with open(locking, "r+b") as file:
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, start, length, pid = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))
        assert (kind, start, length, pid) == (fcntl.F_WRLCK, 5, 10, other.pid)
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 100, 0, 0)
        assert struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))[0] == fcntl.F_UNLCK
    other.end()


@pytest.mark.parametrize("call", ["lockf", "flock"])
def test_a_blocked_lock_is_granted_when_the_holder_lets_go(locking: Path, call: str) -> None:
    lock = {"lockf": fcntl.lockf, "flock": fcntl.flock}[call]
    other = Other(locking)
    with open(locking, "r+b") as file:
        lock(file, EX)
        other.start(call, EX)
        _wait_until_blocked(other.pid)
        lock(file, UN)
        assert other.answer() == "OK"
        assert outcome(lock, file, EX | NB) == "EAGAIN"
    other.end()


@pytest.mark.parametrize("call", ["lockf", "flock"])
def test_a_blocked_lock_can_be_interrupted(locking: Path, call: str) -> None:
    lock = {"lockf": fcntl.lockf, "flock": fcntl.flock}[call]
    other = Other(locking)
    with open(locking, "r+b") as file:
        lock(file, EX)
        other.start(call, EX)
        _wait_until_blocked(other.pid)
        os.kill(other.pid, signal.SIGUSR1)
        assert other.answer() == "EINTR"
        lock(file, UN)
        assert outcome(lock, file, EX | NB) == "OK"
    other.end()


def test_a_killed_process_gives_back_what_it_held_and_waited_for(locking: Path) -> None:
    holder, waiter = Other(locking), Other(locking)
    assert holder.does("lockf", EX) == "OK"
    waiter.start("lockf", EX)
    _wait_until_blocked(waiter.pid)
    os.kill(waiter.pid, signal.SIGKILL)
    os.waitpid(waiter.pid, 0)
    with open(locking, "r+b") as file:
        assert outcome(fcntl.lockf, file, EX | NB) == "EAGAIN"
        os.kill(holder.pid, signal.SIGKILL)
        os.waitpid(holder.pid, 0)
        assert outcome(fcntl.lockf, file, EX | NB) == "OK"


def test_closing_any_descriptor_gives_back_the_processes_record_locks(locking: Path) -> None:
    other = Other(locking)
    assert other.does("lockf", EX) == "OK"
    with open(locking, "r+b") as file:
        assert outcome(fcntl.lockf, file, EX | NB) == "EAGAIN"
        assert other.does("close") == "OK"
        assert outcome(fcntl.lockf, file, EX | NB) == "OK"
    other.end()


def test_a_flock_ends_with_the_last_descriptor_of_its_open_file(locking: Path) -> None:
    other = Other(locking)
    fd = os.open(locking, os.O_RDWR)
    again = os.dup(fd)
    fcntl.flock(fd, EX)
    os.close(fd)
    assert other.does("flock", EX | NB) == "EAGAIN", "the open file lives on in the second descriptor"
    other.start("flock", EX)
    _wait_until_blocked(other.pid)
    os.close(again)
    assert other.answer() == "OK"
    other.end()


def test_two_that_share_a_flock_and_both_want_it_alone_get_it_in_turn(locking: Path) -> None:
    both = [Other(locking) for _ in range(2)]
    for other in both:
        assert other.does("flock", SH) == "OK"
    for other in both:
        other.start("flock", EX)
    first = both[0] if both[0].has_answered(both[1]) else both[1]
    second = both[1 - both.index(first)]
    assert first.answer() == "OK"
    assert first.does("flock", UN) == "OK"
    assert second.answer() == "OK"
    for other in reversed(both):  # the later one has the earlier one's pipes, too
        other.end()


def test_two_that_wait_for_each_other_are_told_of_the_deadlock(locking: Path) -> None:
    other = Other(locking)
    with open(locking, "r+b") as file:
        fcntl.lockf(file, EX, 1, 0)
        assert other.does("lockf", EX, 1, 1) == "OK"
        other.start("lockf", EX, 1, 0)
        _wait_until_blocked(other.pid)
        assert outcome(fcntl.lockf, file, EX, 1, 1) == "EDEADLOCK"
        fcntl.lockf(file, UN, 1, 0)
        assert other.answer() == "OK"
    other.end()


def _wait_until_blocked(pid: int) -> None:
    """Until the process sleeps in a lock call, as its kernel stack position or state tells."""
    while True:
        with open(f"/proc/{pid}/syscall", "rb") as file:
            words = file.read().split()
        if words and words[0] in LOCK_CALLS[platform.machine()]:
            return
        os.sched_yield()
