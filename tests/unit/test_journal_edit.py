"""Dumps, and changes made by hand, each of which can be taken back."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable

import pytest
from crc32c import crc32c

from journal import (
    DumpDamaged,
    HeadLost,
    Journal,
    JournalCorrupt,
    Layout,
    LogChanged,
    Medium,
    Options,
    RingMedium,
    StripedMedium,
    WrongGeometry,
)
from journal.dump import Dump, apply_dump
from journal.edit import (
    Change,
    apply_change,
    export_log,
    plan_header,
    plan_repair,
    plan_reset,
    plan_splice,
    plan_truncate,
    replace_heads,
    replace_log,
)
from journal.simulation import CrashObjects, CrashRegion
from journal.survey import recover_head, survey

PAYLOADS = [b"%d" % n * (n % 23) for n in range(40)]
Place = Callable[[], Medium]


def ring() -> Place:
    region = CrashRegion(256 * 40)
    return lambda: RingMedium(region, block_size=256)


def striped() -> Place:
    store = CrashObjects()
    return lambda: StripedMedium(store.view(), "log", Layout(64, 2, 128))


@pytest.fixture(params=[ring, striped], ids=["ring", "striped"])
def empty(request: pytest.FixtureRequest) -> Place:
    place: Place = request.param()
    return place


@pytest.fixture
def place(empty: Place) -> Place:
    """A closed log, written by several writers, with some of it expired and trimmed."""
    Journal.create(empty()).close()
    for first in range(0, 40, 10):
        with Journal.open(empty(), options=Options(allow_split=first % 20 == 0)) as journal:
            for payload in PAYLOADS[first : first + 10]:
                journal.wait(journal.append(payload, type=first // 10 + 1))
            if first == 10:
                journal.set_expire(list(journal.entries())[5].position)
                journal.trim()
    return empty


def payloads(place: Place) -> list[bytes]:
    return [entry.payload for entry in Journal.open(place(), read_only=True).entries()]


def image(medium: Medium) -> tuple[list[bytes], bytes]:
    low = 6 * medium.period
    return [copy[:132] for copy in medium.read_heads()], medium.read(low, 6000)


def changed(place: Place, change: Change) -> io.BytesIO:
    undo = io.BytesIO()
    apply_change(place(), change, undo)
    undo.seek(0)
    return undo


def test_exported_log_is_imported_elsewhere_and_is_the_same(place: Place) -> None:
    dump = io.BytesIO()
    export_log(place(), dump)
    dump.seek(0)
    wanted = payloads(place)
    assert wanted == PAYLOADS[5:]
    other = ring() if isinstance(place(), RingMedium) else striped()
    with Journal.create(other()) as journal:
        journal.append_many([b"old"] * 30)
    apply_dump(other(), dump)
    assert payloads(other) == wanted
    with Journal.open(other()) as journal:
        journal.append(b"more")
    assert payloads(other) == [*wanted, b"more"]


def test_dump_of_another_geometry_is_refused(place: Place) -> None:
    dump = io.BytesIO()
    export_log(place(), dump)
    dump.seek(0)
    other = RingMedium(CrashRegion(256 * 50), block_size=256)
    Journal.create(other)
    with pytest.raises(WrongGeometry):
        apply_dump(other, dump)
    assert list(Journal.open(other).entries()) == []


def test_every_flipped_byte_and_every_cut_of_a_dump_is_noticed_before_anything_is_written() -> None:
    place = striped()
    with Journal.create(place()) as journal:
        journal.append_many(PAYLOADS[:5])
    dump = io.BytesIO()
    export_log(place(), dump)
    data = dump.getvalue()
    before = image(place())
    for offset in range(len(data)):
        damaged = bytearray(data)
        damaged[offset] ^= 4
        for broken in (bytes(damaged), data[:offset]):
            with pytest.raises(DumpDamaged):
                apply_dump(place(), io.BytesIO(broken))
    assert image(place()) == before


def test_spliced_entries_are_gone_and_come_back_with_the_undo_file(place: Place) -> None:
    before = image(place())
    change = plan_splice(place(), lambda entry: entry.type == 3 or entry.payload.startswith(b"7"))
    assert len(change.summary) == 11
    undo = changed(place, change)
    assert payloads(place) == [p for n, p in enumerate(PAYLOADS) if n >= 5 and not 20 <= n < 30 and not p.startswith(b"7")]
    assert survey(place()).intact
    apply_dump(place(), undo)
    assert image(place()) == before


def test_a_log_that_is_replaced_comes_back_with_the_undo_file(place: Place) -> None:
    before, kept, undo = payloads(place), io.BytesIO(), io.BytesIO()
    export_log(place(), kept)
    medium = place()
    apply_change(medium, plan_splice(medium, lambda entry: entry.type == 3), io.BytesIO())
    changed = payloads(place)
    assert changed != before
    kept.seek(0)
    replace_log(place(), kept, undo)
    assert payloads(place) == before
    undo.seek(0)
    apply_dump(place(), undo)
    assert payloads(place) == changed


def test_a_log_without_heads_is_replaced_and_its_bytes_come_back(place: Place) -> None:
    before, kept, undo, heads = payloads(place), io.BytesIO(), io.BytesIO(), io.BytesIO()
    export_log(place(), kept)
    medium = place()
    for slot in range(2):
        medium.write_head(slot, b"\xee" * 132)
    kept.seek(0)
    replace_log(place(), kept, undo)
    assert payloads(place) == before
    undo.seek(0)
    apply_dump(place(), undo)
    with pytest.raises(HeadLost):
        Journal.open(place())
    replace_heads(place(), recover_head(place()), heads)
    assert payloads(place)[-len(before) :] == before, "found by its entries"
    heads.seek(0)
    apply_dump(place(), heads)
    with pytest.raises(HeadLost):
        Journal.open(place())


def test_a_dump_of_another_geometry_replaces_nothing_and_keeps_nothing() -> None:
    kept, undo = io.BytesIO(), io.BytesIO()
    store = CrashObjects()
    other = StripedMedium(store.view(), "log", Layout(32, 2, 128))
    Journal.create(other).close()
    export_log(other, kept)
    target = CrashObjects()
    Journal.create(StripedMedium(target.view(), "log", Layout(64, 2, 128))).close()
    done = len(target.operations)
    kept.seek(0)
    with pytest.raises(WrongGeometry):
        replace_log(StripedMedium(target.view(), "log", Layout(64, 2, 128)), kept, undo)
    assert (len(target.operations), undo.getvalue()) == (done, b"")


def test_truncated_log_ends_there_and_goes_on(place: Place) -> None:
    before = image(place())
    ends = [entry.end for entry in Journal.open(place(), read_only=True).entries()]
    undo = changed(place, plan_truncate(place(), ends[19]))
    assert payloads(place) == PAYLOADS[5:25]
    apply_dump(place(), undo)
    assert image(place()) == before
    changed(place, plan_truncate(place(), ends[19]))
    with Journal.open(place()) as journal:
        assert journal.next_sequence == next(iter(journal.entries())).sequence + 20 + journal_pads(place)
        journal.append(PAYLOADS[25])  # the same bytes as the removed one: the next old entry would fit exactly
    assert payloads(place) == PAYLOADS[5:26]
    with pytest.raises(ValueError, match="not the end"):
        plan_truncate(place(), ends[3] + 1)


def journal_pads(place: Place) -> int:
    entries = list(Journal.open(place(), read_only=True).entries())
    return entries[19].sequence - entries[0].sequence - 19


def test_reset_log_is_empty_and_goes_on_behind(place: Place) -> None:
    before, end = image(place()), Journal.open(place(), read_only=True).safe
    undo = changed(place, plan_reset(place()))
    assert payloads(place) == []
    apply_dump(place(), undo)
    assert image(place()) == before
    changed(place, plan_reset(place()))
    with Journal.open(place()) as journal:
        assert journal.write >= end
        journal.append(b"fresh")
    assert payloads(place) == [b"fresh"]


def test_damage_is_bridged_and_the_rest_is_read(place: Place) -> None:
    entries = list(Journal.open(place(), read_only=True).entries())
    medium = place()
    for n in (3, 10, 11, 12, 30):
        medium.write(entries[n].position + 9, [b"\xee" * 5])
    medium.flush()
    with pytest.raises(JournalCorrupt):
        payloads(place)
    with pytest.raises(JournalCorrupt):
        export_log(place(), io.BytesIO())
    before = image(place())
    undo = changed(place, plan_repair(place()))
    assert payloads(place) == [e.payload for n, e in enumerate(entries) if n not in (3, 10, 11, 12, 30)]
    assert survey(place()).intact
    apply_dump(place(), undo)
    assert image(place()) == before


def test_damage_at_either_end_is_bridged_or_cut(place: Place) -> None:
    entries = list(Journal.open(place(), read_only=True).entries())
    place().write(entries[0].position, [b"\xee"])
    place().write(entries[-1].end - 1, [b"\xee"])
    changed(place, plan_repair(place()))
    assert payloads(place) == [entry.payload for entry in entries[1:-1]]


def test_repair_of_an_intact_log_plans_nothing(place: Place) -> None:
    assert plan_repair(place()).summary == []


def test_head_fields_are_set_by_hand(place: Place) -> None:
    before = image(place())
    entries = list(Journal.open(place(), read_only=True).entries())
    undo = changed(place, plan_header(place(), {"expire": entries[4].position}))
    assert payloads(place) == [entry.payload for entry in entries[4:]]
    apply_dump(place(), undo)
    assert image(place()) == before
    with pytest.raises(ValueError, match="cannot set"):
        plan_header(place(), {"log": 3})
    with pytest.raises(ValueError, match="out of order"):
        plan_header(place(), {"expire": 1 << 50})


# -- what was written in between ---------------------------------------------------------------------------------------
def made_changes(place: Place) -> dict[str, tuple[io.BytesIO, Callable[[], None]]]:
    """Every way to change a log by hand: its undo file, and how it is done."""
    ends = [entry.end for entry in Journal.open(place(), read_only=True).entries()]
    plans = {
        "splice": lambda: plan_splice(place(), lambda entry: entry.type == 3),
        "truncate": lambda: plan_truncate(place(), ends[19]),
        "reset": lambda: plan_reset(place()),
        "header": lambda: plan_header(place(), {"expire": ends[3]}),
    }
    made: dict[str, tuple[io.BytesIO, Callable[[], None]]] = {}
    for name, plan in plans.items():
        undo = io.BytesIO()
        made[name] = undo, lambda plan=plan, undo=undo: apply_change(place(), plan(), undo)  # type: ignore[misc]
    undo, kept = io.BytesIO(), io.BytesIO()
    export_log(place(), kept)

    def replace() -> None:
        kept.seek(0)
        replace_log(place(), kept, undo)

    made["import"] = undo, replace
    undo_heads = io.BytesIO()
    made["heads"] = undo_heads, lambda: (replace_heads(place(), recover_head(place()), undo_heads), None)[1]
    return made


CHANGES = ("splice", "truncate", "reset", "header", "import", "heads")


@pytest.mark.parametrize("how", CHANGES)
def test_a_change_is_taken_back_until_somebody_wrote_to_the_log(place: Place, how: str) -> None:
    """What was acknowledged after the change was gone when it was taken back: nothing was compared."""
    before = image(place())
    undo, change = made_changes(place)[how]
    change()
    undo.seek(0)
    apply_dump(place(), undo)
    assert image(place()) == before
    change()
    with Journal.open(place()) as journal:
        journal.wait(journal.append(b"acknowledged"))
    after = image(place()), payloads(place)
    assert after[1][-1] == b"acknowledged"
    undo.seek(0)
    with pytest.raises(LogChanged, match="nothing was changed"):
        apply_dump(place(), undo)
    assert (image(place()), payloads(place)) == after


@pytest.mark.parametrize("how", CHANGES)
def test_a_change_is_not_taken_back_from_another_log(place: Place, how: str) -> None:
    undo, change = made_changes(place)[how]
    change()
    other = ring() if isinstance(place(), RingMedium) else striped()
    with Journal.create(other()) as journal:
        journal.append_many([b"other"] * 30)
    before = image(other())
    undo.seek(0)
    with pytest.raises(LogChanged):
        apply_dump(other(), undo)
    assert image(other()) == before


@pytest.mark.parametrize("how", CHANGES)
def test_a_change_that_was_cut_short_is_taken_back(place: Place, how: str) -> None:
    """Either head alone may be the one the change left."""
    before = image(place())
    undo, change = made_changes(place)[how]
    change()
    for slot in range(2):
        undo.seek(0)
        medium = place()
        medium.write_head(slot, before[0][slot])
        medium.flush()
        apply_dump(place(), undo)
        assert image(place())[0] == before[0]
        change_again = made_changes(place)[how]
        change_again[1]()
        undo = change_again[0]


def as_version_1(undo: io.BytesIO) -> io.BytesIO:
    """The same file as the version before wrote it."""
    dump = Dump(io.BytesIO(undo.getvalue()))
    data = bytearray(undo.getvalue())
    data[8:10] = (1).to_bytes(2, "little")
    at = 16 + 2 * 136
    del data[at : at + 4 + 136 * len(dump.left)]
    data[-4:] = crc32c(bytes(data[:-16])).to_bytes(4, "little")
    return io.BytesIO(bytes(data))


@pytest.mark.parametrize("how", ["splice", "truncate", "reset"])
def test_an_undo_file_of_version_1_is_taken_back_until_somebody_wrote_to_the_log(place: Place, how: str) -> None:
    before = image(place())
    undo, change = made_changes(place)[how]
    change()
    old = as_version_1(undo)
    apply_dump(place(), old)
    assert image(place()) == before
    change()
    with Journal.open(place()) as journal:
        journal.wait(journal.append(b"acknowledged"))
    old.seek(0)
    with pytest.raises(LogChanged):
        apply_dump(place(), old)


def test_every_crash_of_a_change_and_of_its_undo_is_taken_back(place: Place) -> None:
    before = image(place())
    change = plan_reset(place())
    undo = changed(place, change)
    left = image(place())[0]
    for heads in itertools.product(*zip(before[0], left, strict=True)):
        medium = place()
        for slot, copy in enumerate(heads):
            medium.write_head(slot, copy)
        medium.flush()
        undo.seek(0)
        apply_dump(place(), undo)
        assert image(place()) == before
