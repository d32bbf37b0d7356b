"""Rewriting a log through its pointer, crashed at every step."""

from __future__ import annotations

import random

import pytest

from journal import Entry, JournalBusy, Layout, NoJournal, Options
from journal.pointer import POINTER_SIZE, Pointer, Side, decode_pointer, read_pointer
from journal.rewrite import PointedLog
from journal.simulation import CrashObjects

OLD, NEW = Layout(64, 2, 128), Layout(32, 3, 64)
PAYLOADS = [b"%d" % n * (n % 13) for n in range(20)]


def log(store: CrashObjects, epoch: int = 0) -> PointedLog:
    return PointedLog(store.view(epoch), "log")


def payloads(store: CrashObjects) -> list[bytes]:
    return [entry.payload for entry in log(store).open().entries()]


def prepared() -> CrashObjects:
    store = CrashObjects()
    with log(store).create(OLD) as journal:
        journal.append_many(PAYLOADS)
    return store


def shout(entry: Entry) -> tuple[int, bytes] | None:
    return (entry.type + 1, entry.payload * 2) if entry.payload else None


def test_rewritten_log_holds_the_same_entries_in_its_new_layout() -> None:
    store = prepared()
    journal = log(store).rewrite(log(store).open(), NEW, options=Options(allow_split=False))
    assert [entry.payload for entry in journal.entries()] == PAYLOADS
    journal.wait(journal.append(b"more"))
    assert payloads(store) == [*PAYLOADS, b"more"]
    assert log(store).medium().layout == NEW
    assert not [name for name in store.objects if name.startswith("log.1.")]


def test_rewriting_to_another_format_of_entries() -> None:
    store = prepared()
    log(store).rewrite(log(store).open(), NEW, transform=shout)
    entries = list(log(store).open().entries())
    assert [entry.payload for entry in entries] == [payload * 2 for payload in PAYLOADS if payload]
    assert {entry.type for entry in entries} == {2}


@pytest.mark.parametrize("seed", [1])
def test_crash_at_every_step_of_a_rewrite_leaves_one_whole_log(seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    store = prepared()
    journal = log(store).open()
    first = len(store.operations)
    log(store).rewrite(journal, NEW, transform=shout)
    doubled = [payload * 2 for payload in PAYLOADS if payload]
    outcomes = set()
    for count in range(first, len(store.operations) + 1):
        for image in store.images(count, rng):
            found = payloads(image)
            assert found in (PAYLOADS, doubled)
            outcomes.add(len(found))
            serials = {name.split(".")[1] for name in image.objects if "pointer" not in name}
            assert len(serials) == 1, "the other log was not erased"
    assert len(outcomes) == 2


def test_follower_is_told_to_wait_during_a_rewrite() -> None:
    store = prepared()
    busy = 0

    def look(entry: Entry) -> tuple[int, bytes]:
        nonlocal busy
        with pytest.raises(JournalBusy):
            log(store).follow()
        busy += 1
        return entry.type, entry.payload

    log(store).rewrite(log(store).open(), NEW, transform=look)
    assert busy == len(PAYLOADS)
    assert [e.payload for batch in log(store).follow().poll() for e in batch] == PAYLOADS


def test_takeover_through_the_pointer_and_creating_again() -> None:
    store = prepared()
    log(store, 3).take_over().close()
    assert payloads_of_epoch(store, 3) == PAYLOADS
    log(store, 3).create(NEW)
    assert payloads_of_epoch(store, 3) == []
    with pytest.raises(NoJournal):
        log(CrashObjects()).open()


def payloads_of_epoch(store: CrashObjects, epoch: int) -> list[bytes]:
    return [entry.payload for entry in log(store, epoch).open().entries()]


def test_every_flipped_bit_of_a_pointer_is_noticed_and_the_other_copy_counts() -> None:
    pointer = Pointer(Side(1, 64, 2, 2), Side(), 7)
    data = pointer.encode()
    assert decode_pointer(data) == pointer
    assert len(data) == POINTER_SIZE
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        assert isinstance(decode_pointer(bytes(damaged)), str)
    store = prepared()
    for slot in range(2):
        kept = bytes(store.objects[f"log.pointer{slot}"])
        store.objects[f"log.pointer{slot}"][20] ^= 1
        found = read_pointer(store.view(), "log")
        assert found is not None
        assert found.front.serial == 1
        assert payloads(store) == PAYLOADS
        store.objects[f"log.pointer{slot}"][:] = kept
