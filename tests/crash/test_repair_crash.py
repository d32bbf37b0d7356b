"""A repair that is killed at any write: run again it leads to the same bytes, taken back it leads to the bytes before.

Every crash state of the carrying out (and of the taking back) is tried with the faulty device, both ways. REPAIR_SEED=n replays.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mdstore.device.crashlog import CrashLog
from mdstore.device.crashstates import Plan, crash_states
from mdstore.device.faulty import FaultyDevice
from mdstore.device.memory import MemoryDevice
from mdstore.errors import Conflict, MdstoreError, NotFound
from mdstore.store import Store, Transaction
from mdstore.store.onode import object_key
from mdstore.store.revisions import revision_key
from mdstore.tools.repair import perform
from mdstore.tools.repair.bench import RepairOptions
from mdstore.tools.repair.planning import plan
from mdstore.tools.repair.record import FileState, RecordKind, RepairFile
from tests.crash.test_damage_matrix import Subject, content_of
from tests.unit.reader_images import BLOCK, store_image
from tests.unit.repair_faults import blocks_of, swapped, with_snapshot

SEED = int(os.environ.get("REPAIR_SEED", "7"))
FEW = Plan(drops=1, subsets=1, tears=1)


def torn_pages(folder: Path) -> bytes:
    """A superblock, an entry of the log, a leaf of objects and free space are gone."""
    subject = Subject(folder)
    damaged = bytearray(subject.image)
    for structure in ("superblock, older, primary", "log entry, middle", "object tree, leaf", "free tree, root page"):
        for at, length in subject.places[structure]:
            damaged[at : at + length] = bytes(length)
    return bytes(damaged)


def swapped_blocks(folder: Path) -> bytes:
    """Pages and data were written to one another's places, some of them where only a snapshot reaches."""
    damaged = with_snapshot()
    only_before, pages, data = blocks_of(damaged)
    pairs = [*zip(only_before[:12:2], only_before[1:12:2]), (only_before[12], pages[0]), (pages[1], data[0]), data[1:3]]
    for one, other in pairs:
        damaged = swapped(damaged, one, other)
    return damaged


def turned_bits(folder: Path) -> bytes:
    """A bit turned in pages of the live state and of a snapshot; one superblock is of another image."""
    image = with_snapshot()
    damaged = bytearray(image)
    only_before, pages, _ = blocks_of(image)
    for page in only_before[:20:3] + pages[:20:3]:
        damaged[page * BLOCK + 100] ^= 4
    damaged[:4096] = store_image()[:4096]
    return bytes(damaged)


def unsound_revisions(folder: Path) -> bytes:
    """Revisions that begin before those before them end, or behind their own end, and objects before their newest one; the log
    has more of some of the names."""
    device = MemoryDevice(2 << 20)
    store = Store.create(device, block_size=BLOCK, log_bytes=128 << 10, background=False)
    store.apply(Transaction().create_collection("c"))
    for rev in (0, 3, 7):
        for number in range(20):
            store.apply(Transaction(rev=rev).write("c", f"o{number:02}", rev, b"%d" % rev * 300))
    objects = store.tables.objects
    for number in range(0, 20, 2):
        name = b"o%02d" % number
        key, rev = [(object_key(1, name), 2), (revision_key(1, name, 3), 99), (revision_key(1, name, 7), 1)][number % 3]
        onode = objects.at(key)
        assert onode is not None
        onode.created_rev = rev
        objects.mark_dirty(onode)
    store.checkpoint()
    for number in range(0, 20, 3):
        store.apply(Transaction(rev=9).write("c", f"o{number:02}", 5, b"in the log"))
    return device.image()


DAMAGES = [torn_pages, unsound_revisions, turned_bits, swapped_blocks]


def everything(image: bytes) -> dict[object, object]:
    """What every object answers, now and at every revision."""
    found: dict[object, object] = dict(content_of(image, None))
    store = Store.open(MemoryDevice.from_bytes(image), background=False)
    for collection in store.list_collections():
        for name in store.list_revised(collection):
            for rev in range(1, 11):
                with suppress(NotFound):
                    found[collection, name, rev] = store.read(collection, name, rev=rev)
    return found


class Repair:
    """A damaged image, its repair file, and the image after."""

    def __init__(self, folder: Path, damaged: Callable[[Path], bytes]) -> None:
        self.before = damaged(folder)
        made = plan(MemoryDevice.from_bytes(self.before), RepairOptions(is_deep=True))
        assert made.steps
        assert not made.left
        self.path = folder / "repair"
        perform.write_file(str(self.path), made.bench.shadow, [step.title for step in made.steps]).close()
        self.after = made.bench.shadow.read(0, len(self.before))
        self.folder = folder

    def file(self) -> RepairFile:
        """The file as it was before anything was written, a copy."""
        shutil.copy(self.path, self.folder / "copy")
        return RepairFile.open(str(self.folder / "copy"))


@pytest.fixture(scope="module", params=DAMAGES, ids=lambda damaged: damaged.__name__)
def repair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Repair:
    print(f"REPAIR_SEED={SEED}")
    return Repair(tmp_path_factory.mktemp("repair"), request.param)


def test_the_file_is_ready_before_anything_is_written_and_leads_to_both_sides(repair: Repair) -> None:
    file = repair.file()
    assert file.state() is FileState.READY
    device = MemoryDevice.from_bytes(repair.before)
    perform.carry_out(file, device)
    assert file.state() is FileState.DONE
    assert device.image() == repair.after
    perform.take_back(file, device)
    assert file.state() is FileState.UNDONE
    assert device.image() == repair.before
    file.close()


def test_a_repair_killed_at_any_write_is_finished_or_taken_back(repair: Repair) -> None:
    device = FaultyDevice(repair.before, seed=SEED)
    file = repair.file()
    perform.carry_out(file, device)
    file.close()
    tried, distinct = 0, set[bytes]()
    for state in crash_states(device.log, seed=SEED, plan=FEW):
        image = state.image.to_bytes()
        tried += 1
        distinct.add(image)
        for act, expected in ((perform.carry_out, repair.after), (perform.take_back, repair.before)):
            again, medium = repair.file(), MemoryDevice.from_bytes(image)
            act(again, medium)
            again.close()
            assert medium.image() == expected, f"{state.state_id}, {act.__name__}"
    print(f"{tried} states, {len(distinct)} distinct")
    assert tried > 40
    assert len(distinct) > 25


@pytest.mark.parametrize("repair", DAMAGES[:-1], ids=lambda damaged: damaged.__name__, indirect=True)
def test_a_half_repaired_image_without_its_file_can_be_repaired_anew(repair: Repair) -> None:
    """The writes come in an order that leaves a repairable image wherever they stop; but for blocks that lie in one another's
    places: the first of two that goes back overwrites the other, which only the repair file has then."""
    device = FaultyDevice(repair.before, seed=SEED)
    file = repair.file()
    perform.carry_out(file, device)
    file.close()
    expected = everything(repair.after)
    tried = set()
    for number, state in enumerate(crash_states(device.log, seed=SEED, plan=FEW)):
        image = state.image.to_bytes()
        if number % 4 or image in tried:
            continue
        tried.add(image)
        made = plan(MemoryDevice.from_bytes(image), RepairOptions())
        assert not made.left, str(state.state_id)
        assert everything(made.bench.shadow.read(0, len(image))) == expected, str(state.state_id)
        made.bench.shadow.drop()
    assert len(tried) > 10


def used(image: bytes) -> bytes | None:
    """The image after one acknowledged transaction that is in its log and nowhere else; None when it does not open."""
    device = MemoryDevice.from_bytes(image)
    try:
        store = Store.open(device, background=False)
        store.apply(Transaction().create_collection("since").write("since", "after", 0, b"x" * 5000))
    except MdstoreError:
        return None
    return device.image()


def refusing(repair: Repair, log: CrashLog, marks: list[RecordKind]) -> tuple[int, int]:
    """At every crash state of `log`: the image used in between is refused, both ways, and stays what it is. Returns how many
    states opened, and how many there were."""
    opened = tried = 0
    for state in crash_states(log, seed=SEED, plan=FEW):
        tried += 1
        image = used(state.image.to_bytes())
        if image is None:
            continue
        opened += 1
        for act in (perform.carry_out, perform.take_back):
            file, medium = repair.file(), MemoryDevice.from_bytes(image)
            for mark in marks:
                file.mark(mark)
            with pytest.raises(Conflict):
                act(file, medium)
            file.close()
            assert medium.image() == image, f"{state.state_id}, {act.__name__}"
    return opened, tried


def test_a_repair_killed_at_any_write_and_used_since_is_neither_finished_nor_taken_back(repair: Repair) -> None:
    """A transaction that is only in the log was lost by both, silently: superblocks alone were compared."""
    device = FaultyDevice(repair.before, seed=SEED)
    file = repair.file()
    perform.carry_out(file, device)
    file.close()
    opened, tried = refusing(repair, device.log, [])
    assert opened > 5
    assert tried > 40
    assert used(repair.after) is not None


def test_a_taking_back_killed_at_any_write_and_used_since_is_not_taken_back(repair: Repair) -> None:
    device = FaultyDevice(repair.after, seed=SEED)
    file = repair.file()
    file.mark(RecordKind.DONE)
    perform.take_back(file, device)
    file.close()
    opened, tried = refusing(repair, device.log, [RecordKind.DONE, RecordKind.UNDOING])
    assert opened > 1
    assert tried > 5


def test_taking_back_killed_at_any_write_is_taken_back_again(repair: Repair) -> None:
    device = FaultyDevice(repair.after, seed=SEED)
    file = repair.file()
    file.mark(RecordKind.DONE)
    perform.take_back(file, device)
    file.close()
    tried = 0
    for state in crash_states(device.log, seed=SEED, plan=FEW):
        again, medium = repair.file(), MemoryDevice.from_bytes(state.image.to_bytes())
        again.mark(RecordKind.DONE)
        again.mark(RecordKind.UNDOING)
        tried += 1
        perform.take_back(again, medium)
        again.close()
        assert medium.image() == repair.before, str(state.state_id)
    assert tried > 5
