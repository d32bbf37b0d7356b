"""Waiting for durability: who is woken when, flushes that are shared, many threads that append at once."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import journal.pack as journal_pack
from journal import (
    Journal,
    MemoryMedium,
    Options,
    RingMedium,
)
from journal.simulation import CrashRegion


def test_waiters_are_called_when_their_position_is_durable() -> None:
    journal = Journal.create(MemoryMedium())
    heard: list[tuple[str, BaseException | None]] = []
    first = journal.append(b"a")
    second = journal.append(b"b")
    journal.add_waiter(second, lambda error: heard.append(("second", error)))
    journal.add_waiter(first, lambda error: heard.append(("first", error)))
    assert heard == []
    journal.wait(first)
    assert heard == [("first", None), ("second", None)]
    journal.add_waiter(first, lambda error: heard.append(("late", error)))
    assert heard[-1] == ("late", None)


class SlowFlush(MemoryMedium):
    """Flushes only when told, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Semaphore(1 << 20)
        self.arrived = threading.Semaphore(0)
        self.flushes = 0

    def flush(self) -> None:
        self.arrived.release()
        self.gate.acquire()
        self.flushes += 1


def hold_flushes(medium: SlowFlush) -> None:
    while medium.gate.acquire(blocking=False):
        pass
    while medium.arrived.acquire(blocking=False):
        pass


def test_many_waiters_share_one_flush() -> None:
    medium = SlowFlush()
    journal = Journal.create(medium)
    journal.write_head()
    hold_flushes(medium)
    before = medium.flushes
    threads = [threading.Thread(target=lambda n=n: journal.wait(journal.append(b"%d" % n))) for n in range(1)]
    threads[0].start()
    medium.arrived.acquire()  # the first leader is in its flush; all others arrive meanwhile
    ends = [journal.append(b"late %d" % n) for n in range(15)]
    late = [threading.Thread(target=journal.wait, args=(end,)) for end in ends]
    for thread in late:
        thread.start()
    while len(journal._writer.turns._parked) < 15:
        threading.Event().wait(0.001)
    medium.gate.release()
    medium.arrived.acquire()
    medium.gate.release()
    for thread in threads + late:
        thread.join()
    assert medium.flushes - before == 2
    assert journal.safe == journal.write
    journal.assert_state()


def test_waiting_times_out_while_another_flushes() -> None:
    medium = SlowFlush()
    journal = Journal.create(medium)
    journal.write_head()
    hold_flushes(medium)
    leader = threading.Thread(target=lambda: journal.wait(journal.append(b"a")))
    leader.start()
    medium.arrived.acquire()
    end = journal.append(b"b")
    with pytest.raises(TimeoutError):
        journal.wait(end, timeout=0.01)
    medium.gate.release(10)
    leader.join()
    journal.wait(end)
    assert journal.safe == end


def test_concurrent_appenders_lose_nothing_and_keep_order() -> None:
    region = CrashRegion(1 << 20)
    journal = Journal.create(RingMedium(region, block_size=512), options=Options(buffer_bytes=300))

    def work(name: int) -> None:
        for n in range(200):
            journal.wait(journal.append(b"%d:%d" % (name, n)))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found: dict[bytes, list[int]] = {}
    for entry in Journal.open(RingMedium(region, block_size=512)).entries():
        name, n = entry.payload.split(b":")
        found.setdefault(name, []).append(int(n))
    assert found == {b"%d" % name: list(range(200)) for name in range(8)}
    assert journal.counters.appends == 1600


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads lose the interpreter's lock at every chance."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("allow_split", [True, False])
def test_every_way_of_appending_at_once_from_many_threads(allow_split: bool) -> None:
    """`append` of plain bytes takes no lock: it must not get between the steps of those that do."""
    medium = MemoryMedium(unit=0 if allow_split else 512, period=256)
    journal = Journal.create(medium, options=Options(allow_split=allow_split, buffer_bytes=1500))
    ends: dict[int, bytes] = {}

    def append(name: int) -> None:
        for n in range(0, 240, 4):
            first, second, *rest = (b"%d:%d;" % (name, n + k) * (1 + n % 40) for k in range(4))
            ends[journal.append(first)] = first
            ends[journal.append([second[:3], second[3:]])] = second
            last = journal.append_many(rest)
            ends[last] = rest[1]
            if n % 3 == 0:
                journal.wait(last)

    def look() -> None:
        while any(thread.is_alive() for thread in threads):
            journal.assert_state()

    def hammer() -> None:
        while any(thread.is_alive() for thread in threads):
            for _ in range(50):
                journal.append(b"x%d" % len(hammered))
                hammered.append(len(hammered))

    hammered: list[int] = []
    threads = [threading.Thread(target=append, args=(name,)) for name in range(6)]
    beside = [threading.Thread(target=look), threading.Thread(target=hammer)]
    for thread in (*threads, *beside):
        thread.start()
    for thread in (*threads, *beside):
        thread.join()
    journal.flush()
    journal.assert_state()
    assert journal.counters.appends == 6 * 240 + len(hammered)
    found = list(Journal.open(medium, options=Options(allow_split=allow_split)).entries())
    assert len(found) == 6 * 240 + len(hammered)
    at = {entry.end: entry.payload for entry in found}
    assert all(at[end] == payload for end, payload in ends.items())
    for name in range(6):
        mine = [entry.payload for entry in found if entry.payload.startswith(b"%d:" % name)]
        assert [int(payload.split(b";")[0].split(b":")[1]) for payload in mine] == list(range(240))
    assert [entry.payload for entry in found if entry.payload.startswith(b"x")] == [b"x%d" % n for n in hammered]


def test_nothing_is_added_at_once_while_the_packer_must_stand_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these looks first and acts then; an entry added in between would be lost, or lie beyond the limit."""
    journal = Journal.create(MemoryMedium(period=256), options=Options(buffer_bytes=1000))
    pack, seen = journal._pack, list[str]()

    def spy(module: object, name: str) -> None:
        original = getattr(module, name)

        def called(*arguments: Any) -> Any:
            seen.append(name)
            assert pack.add_at_once(b"in between", 1) == 0
            return original(*arguments)

        monkeypatch.setattr(module, name, called)

    spy(journal._room, "require")
    spy(journal_pack, "split_buffers")
    journal.append([b"parts", b"of it"])
    journal.append_many([b"many", b"of them"])
    while "split_buffers" not in seen:
        journal.append(b"x" * 100)
    assert seen[:2] == ["require", "require"]
    assert pack.add_at_once(b"afterwards", 1) == journal.write
    journal.flush()
    journal.assert_state()
    found = [entry.payload for entry in journal.entries()]
    assert found[:3] == [b"partsof it", b"many", b"of them"]
    assert set(found[3:-1]) == {b"x" * 100}
    assert found[-1] == b"afterwards"
