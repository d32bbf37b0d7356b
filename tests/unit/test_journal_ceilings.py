"""How long a log may get, and who is named when it may not get longer."""

from __future__ import annotations

import pytest

from journal import Ceilings, Journal, JournalFull, MemoryMedium, Options
from journal.entry import HEADER_SIZE


def limited(**limits: float) -> Journal:
    return Journal.create(MemoryMedium(period=64), options=Options(ceilings=Ceilings(**limits)))  # type: ignore[arg-type]


def test_bytes_are_a_hard_ceiling_and_the_blocker_is_named() -> None:
    journal = limited(max_bytes=3 * (HEADER_SIZE + 8))
    hold = journal.hold(journal.write, "client 7 keeps file 42 open")
    for _ in range(3):
        end = journal.append(b"12345678")
    with pytest.raises(JournalFull) as caught:
        journal.append(b"")
    assert (caught.value.ceiling, caught.value.blocked_by) == ("bytes", "client 7 keeps file 42 open")
    assert journal.blocked_by == "client 7 keeps file 42 open"
    journal.flush()
    with pytest.raises(ValueError, match="client 7"):
        journal.set_expire(end)
    hold.release()
    hold.release()
    assert journal.blocked_by == ""
    journal.set_expire(end)
    journal.append(b"12345678")
    assert journal.free == 2 * (HEADER_SIZE + 8)
    journal.assert_state()


def test_the_oldest_hold_is_the_one_named() -> None:
    journal = limited()
    first = journal.append(b"a")
    late = journal.hold(first, "late")
    early = journal.hold(journal.medium.start, "early")
    assert [hold.reason for hold in journal.holds()] == ["early", "late"]
    assert journal.blocked_by == "early"
    early.release()
    assert journal.blocked_by == "late"
    journal.flush()
    journal.set_expire(first)
    late.release()
    assert journal.holds() == []
    with pytest.raises(ValueError, match="below the expire"):
        journal.hold(first - 1, "too late")


def test_segments_are_counted_and_limited() -> None:
    journal = limited(max_segments=3)
    starts = []
    for n in range(3):
        starts.append(journal.begin_segment())
        journal.append(b"%d" % n)
    assert journal.segments() == starts
    with pytest.raises(JournalFull) as caught:
        journal.begin_segment()
    assert caught.value.ceiling == "segments"
    journal.flush()
    journal.set_expire(starts[1])
    assert journal.segments() == starts[1:]
    assert journal.begin_segment() == journal.write


def test_replay_seconds_are_estimated_from_the_speed_of_the_last_replay() -> None:
    medium = MemoryMedium()
    journal = Journal.create(medium)
    journal.append_many([b"x" * 1000] * 2000)
    journal.close()
    ticks = iter([100.0, 104.0])
    options = Options(ceilings=Ceilings(max_replay_seconds=4.5), clock=lambda: next(ticks))
    again = Journal.open(medium, options=options)
    assert again.replay_seconds == pytest.approx(4.0)
    while again.free and again.free >= 1000 + HEADER_SIZE:
        again.append(b"y" * 1000)
    with pytest.raises(JournalFull) as caught:
        again.append(b"y" * 1000)
    assert caught.value.ceiling == "replay seconds"
    assert 4.4 < again.replay_seconds <= 4.5


def test_head_follows_the_log_when_asked_to() -> None:
    journal = Journal.create(MemoryMedium(), options=Options(head_every_bytes=1000))
    for _ in range(50):
        journal.wait(journal.append(b"x" * 100))
        assert journal.safe - journal.head.safe < 1000 + 152
    plain = Journal.create(MemoryMedium())
    plain.wait(plain.append(b"x" * 5000))
    assert plain.head.safe == plain.medium.start
