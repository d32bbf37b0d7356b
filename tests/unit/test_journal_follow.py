"""Followers: they see everything durable, nothing else, and write nothing."""

from __future__ import annotations

import random

import pytest

from journal import Follower, Journal, JournalCorrupt, JournalTrimmed, Layout, Options, RingMedium, StripedMedium
from journal.simulation import CrashObjects, CrashRegion, Operation


def refuse_writes(operation: Operation) -> None:
    assert operation.kind in ("read", "list"), f"a follower did {operation.kind}"


def writer_and_follower(**options: int) -> tuple[CrashObjects, Journal, Follower]:
    store = CrashObjects()
    journal = Journal.create(StripedMedium(store.view(), "log", Layout(64, 2, 128)), options=Options(**options))  # type: ignore[arg-type]
    return store, journal, follower_of(store)


def follower_of(store: CrashObjects) -> Follower:
    return Follower(StripedMedium(store.view(0, refuse_writes), "log", Layout(64, 2, 128)), window_bytes=100)


def polled(follower: Follower) -> list[bytes]:
    return [entry.payload for batch in follower.poll() for entry in batch]


def test_follower_sees_an_entry_once_a_later_one_or_a_head_proves_it_durable() -> None:
    _, journal, follower = writer_and_follower()
    assert polled(follower) == []
    journal.wait(journal.append(b"one"))
    assert polled(follower) == []
    assert follower.lag.unproven_bytes == 55
    journal.wait(journal.append(b"two"))
    assert polled(follower) == [b"one"]
    assert polled(follower) == []
    journal.write_head()
    assert polled(follower) == [b"two"]
    assert follower.lag.unproven_bytes == follower.lag.durable_bytes == 0
    journal.close()
    successor = Journal.open(StripedMedium(journal.medium._objects, "log", Layout(64, 2, 128)))  # type: ignore[attr-defined]
    successor.wait(successor.append(b"three"))
    successor.wait(successor.append(b"four"))
    assert polled(follower) == [b"three"]


def test_follower_never_shows_what_was_not_flushed() -> None:
    _, journal, follower = writer_and_follower(buffer_bytes=50)
    for n in range(20):
        journal.append(b"%d" % n * 10)
    assert journal.flushed > journal.safe == journal.medium.start
    assert polled(follower) == []
    assert follower.lag.unproven_bytes > 0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_follower_lags_by_no_more_than_two_flushes(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    _, journal, follower = writer_and_follower()
    wanted: list[bytes] = []
    seen: list[bytes] = []
    flushed: list[int] = [0, 0]
    for n in range(200):
        wanted.append(b"%d" % n * rng.randrange(20))
        journal.append(wanted[-1])
        if rng.random() < 0.3:
            journal.flush()
            flushed.append(len(wanted))
        if rng.random() < 0.2:
            seen += polled(follower)
            assert seen == wanted[: len(seen)]
            assert len(seen) >= flushed[-2]
    assert len(seen) > 100


def test_follower_trimmed_past_restarts_cleanly() -> None:
    _, journal, follower = writer_and_follower()
    for n in range(30):
        journal.append(b"%d" % n * 10)
    journal.flush()
    expire = list(journal.entries())[20].position
    journal.set_expire(expire)
    journal.trim()
    with pytest.raises(JournalTrimmed) as caught:
        polled(follower)
    assert caught.value.trimmed == journal.trimmed
    follower.restart()
    assert polled(follower) == [b"%d" % n * 10 for n in range(20, 30)]
    assert follower.restarts == 2


def test_follower_trimmed_while_it_reads_is_told_so() -> None:
    _, journal, follower = writer_and_follower()
    for n in range(30):
        journal.append(b"%d" % n * 10)
    journal.flush()
    journal.write_head()
    batches = follower.poll()
    assert next(batches)
    journal.set_expire(journal.safe)
    journal.trim()
    with pytest.raises(JournalTrimmed):
        list(batches)
    follower.restart()
    assert polled(follower) == []


def test_follower_of_a_damaged_log_says_so() -> None:
    store, journal, follower = writer_and_follower()
    for n in range(30):
        journal.append(b"%d" % n * 10)
    journal.close()
    del store.objects["log.00000006"]
    with pytest.raises(JournalCorrupt):
        polled(follower)


def test_follower_on_a_ring_that_laps_it() -> None:
    region = CrashRegion(256 * 8)
    journal = Journal.create(RingMedium(region, block_size=256))
    follower = Follower(RingMedium(region, block_size=256))
    last = b""
    for n in range(100):
        last = b"%d" % n
        journal.wait(journal.append(last))
        journal.set_expire(journal.safe)
        journal.trim()
    with pytest.raises(JournalTrimmed):
        polled(follower)
    follower.restart()
    journal.wait(journal.append(b"next"))
    journal.write_head()
    assert polled(follower)[-1] == b"next"
