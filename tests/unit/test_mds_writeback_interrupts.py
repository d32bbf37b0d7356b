"""An interrupt, or want of memory, at every line of a write-back over rows that cannot be written: nothing synced is lost.

Either the server stops, says so, and the log has all; or it goes on, and what follows is as durable as without it. An
interrupted write-back used to leave directories half clean, or moved behind a log that had not all of them: a crash lost them.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from random import Random
from types import FrameType
from typing import Any

import pytest

from mdstore.engines.mem import MemStore
from mdstore.errors import InternalError
from mdstore.mds.layout import DATA, META
from mdstore.mds.server import MetadataServer
from mdstore.store.transaction import Transaction
from tests.unit.test_mds_apart import LIMITS, Refusing, crashed, mounted, some_changes
from tests.unit.test_mds_failing_reads import World, made, seen

pytestmark = pytest.mark.slow  # `make check` leaves them out

SEED = int(os.environ.get("INTERRUPT_SEED", "4"))
LARGE = replace(LIMITS, log_bytes=200_000)
FILES = tuple(f"mds/{name}.py" for name in ("writeback", "partwriter", "setapart", "expiry", "core", "damage", "tables"))
Place = tuple[str, int]


class Interruption:
    """Raises `error` when a line of the write-back is reached for the given time; counts how often each is."""

    def __init__(self, place: Place | None = None, visit: int = 0, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.visits: Counter[Place] = Counter()
        self.place = place
        self.visit = visit
        self.error = error

    @contextmanager
    def traced(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(before)

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        code = frame.f_code
        return self._line if code.co_filename.endswith(FILES) and code.co_name not in ("__enter__", "__exit__", "meet") else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            place = (frame.f_code.co_qualname, frame.f_lineno)
            self.visits[place] += 1
            if place == self.place and self.visits[place] == self.visit:
                raise self.error
        return self._line


def write_back(server: MetadataServer) -> None:
    with server._core.guard:
        server._writeback.step(20)
        server._writeback.step()
        server._writeback._carry()
        server._writeback._expiry.commit_and_retire()


def forget(server: MetadataServer) -> None:
    """Let the log begin where the server takes it for needed from."""
    with server._core.guard:
        server._writeback.retire()
        journal = server._core.journal
        assert journal is not None
        if journal.head.expire < journal.expire:
            journal.write_head()


def changed(base: MemStore) -> World:
    """Some directories are set apart, and changed since, one is to be tried again; everything is synced."""
    world = mounted(Refusing(next(base.durable_prefixes()), SEED, 0.2), LARGE)
    some_changes(world, Random(SEED), 15)
    world.server.write_back()
    some_changes(world, Random(SEED + 1), 15)
    for ino in list(world.server._core.apart)[:1]:
        del world.server._core.apart[ino]
    world.server.syncfs()
    return world


@pytest.fixture(scope="module")
def base() -> MemStore:
    return made()


@pytest.fixture(scope="module")
def visits(base: MemStore) -> Counter[Place]:
    world, counting = changed(base), Interruption()
    seen(world)
    with counting.traced():
        write_back(world.server)
    assert world.server._core.apart
    return counting.visits


def interrupted(base: MemStore, place: Place, visit: int, error: type[BaseException]) -> bool:
    """Whether the server went on."""
    world = changed(base)
    server, before = world.server, seen(world)
    with pytest.raises((error, InternalError)), Interruption(place, visit, error).traced():
        write_back(server)
    if server.failure is not None:
        assert isinstance(server.failure, InternalError)
        with pytest.raises(InternalError):
            server.syncfs()
        assert seen(crashed(world)) == before
        return False
    forget(server)
    server.assert_state()
    assert seen(crashed(world)) == before
    some_changes(world, Random(SEED + 2), 10)
    with server._core.guard:
        server._writeback.step(5)
        server._writeback._expiry.commit_and_retire()
    forget(server)
    some_changes(world, Random(SEED + 3), 3)
    server.syncfs()
    expected = seen(world)
    assert seen(crashed(world)) == expected
    write_back(server)
    assert seen(crashed(world)) == expected
    server.close()
    assert seen(mounted(world.store.store)) == expected  # type: ignore[attr-defined]
    return True


def test_nothing_synced_is_lost_wherever_a_write_back_is_interrupted(base: MemStore, visits: Counter[Place]) -> None:
    went_on = Counter(interrupted(base, place, 1, KeyboardInterrupt) for place in visits)
    assert went_on[True] > 50
    assert went_on[False] > 20


def test_nothing_synced_is_lost_where_memory_ends_in_the_middle_of_it(base: MemStore, visits: Counter[Place]) -> None:
    again = {place: visit for place, visit in visits.items() if visit > 1}
    some = list(again.items())[SEED % 3 :: 3]
    went_on = Counter(interrupted(base, place, visit, MemoryError) for place, visit in some)
    assert went_on[True] > 10
    assert went_on[False] > 20


# -- commits of an engine that promises no order -----------------------------------------------------------------------


class Late:
    """A commit that is durable once somebody waited for it."""

    def __init__(self) -> None:
        self.durable = False

    def wait(self, timeout: float | None = None) -> None:
        self.durable = True


class Unordered:
    """A store whose commits are late, but for those of the log."""

    def __init__(self, store: MemStore) -> None:
        self._store = store
        self.capabilities = store.capabilities._replace(ordered_commits=False)
        self.late: list[Late] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def submit(self, transaction: Transaction) -> Any:
        commit = self._store.submit(transaction)
        if not {operation[1] for operation in transaction.operations} <= {META, DATA}:
            return commit
        self.late.append(Late())
        return self.late[-1]


def test_the_log_waits_for_the_commits_of_a_write_back_that_was_interrupted_behind_them(
    base: MemStore, visits: Counter[Place]
) -> None:
    behind = [place for place in visits if place[0] in ("WriteBack._count", "WriteBack._note_expiry", "WriteBack.step")]
    gone_on = 0
    for place in behind:
        store = Unordered(next(base.durable_prefixes()))
        world = mounted(store, LARGE)
        server = world.server
        some_changes(world, Random(SEED), 10)
        server.syncfs()
        before, store.late = server._core.position(), []
        with suppress(KeyboardInterrupt, InternalError), Interruption(place, 1).traced(), server._core.guard:
            server._writeback.step()
        if server.failure is None and store.late:
            gone_on += 1
            forget(server)
            journal = server._core.journal
            assert journal is not None
            assert journal.expire < before, place
            server.close()
            assert all(commit.durable for commit in store.late)
            assert journal.expire >= before
    assert gone_on > 5
