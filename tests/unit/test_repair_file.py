"""The repair file, the shadow that plans are made on, and what refuses to be mixed."""

from __future__ import annotations

import errno
import io
import os
import resource
import signal
import tempfile
from pathlib import Path
from random import Random

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.errors import Conflict, CorruptionError, InvalidRequest, NoSpace
from mdstore.store import Store, Transaction
from mdstore.tools.repair import perform, record, untouched
from mdstore.tools.repair.bench import RepairOptions
from mdstore.tools.repair.planning import plan
from mdstore.tools.repair.record import FileHeader, FileState, Record, RecordKind, RepairFile
from mdstore.tools.repair.shadow import UNIT, Shadow
from tests.unit.reader_images import changed, store_image
from tests.unit.test_format_pages import fixed_fields


@pytest.mark.parametrize(("heading", "size"), [("## Header", record.HEADER_SIZE), ("## Records", record.RECORD_SIZE)])
def test_the_page_says_what_the_code_does(heading: str, size: int) -> None:
    fields = fixed_fields("repair-file.md", heading)
    ends = [offset + length for offset, length, _, _ in fields]
    assert [offset for offset, _, _, _ in fields] == [0, *ends[:-1]]
    assert ends[-1] == size


def test_a_shadow_reads_as_a_device_that_was_written_to() -> None:
    random = Random(5)
    size = 5 * UNIT + 700
    base, twin = MemoryDevice.from_bytes(random.randbytes(size)), MemoryDevice(size)
    twin.write(0, [base.image()])
    before = base.image()
    shadow = Shadow(base)
    for _ in range(200):
        at = random.randrange(size)
        data = random.randbytes(random.randrange(min(9000, size - at) + 1))
        shadow.write(at, [data])
        twin.write(at, [data])
        low = random.randrange(size)
        length = random.randrange(size - low)
        assert shadow.read(low, length) == twin.read(low, length)
    assert base.image() == before
    replayed = MemoryDevice.from_bytes(before)
    for change in shadow.changes():
        if change is not None:
            replayed.write(change[0], [change[1]])
    assert replayed.image() == twin.image()
    for at, length in shadow.changed_places():
        replayed.write(at, [before[at : at + length]])
    assert replayed.image() == before


def test_records_come_back_and_a_cut_or_changed_one_ends_the_file(tmp_path: Path) -> None:
    records = [
        Record(RecordKind.NOTE, 0, b"x"),
        Record(RecordKind.OLD, 4096, bytes(100)),
        Record(RecordKind.NEW, 4096, b"n" * 100),
        Record(RecordKind.FLUSH, 0, b""),
    ]
    file = RepairFile.create(str(tmp_path / "file"), FileHeader(1 << 20, bytes(16)))
    for row in records:
        file.append(row)
    file.sync()
    file.close()
    whole = (tmp_path / "file").read_bytes()
    for length in range(record.HEADER_SIZE, len(whole) + 1):
        (tmp_path / "file").write_bytes(whole[:length])
        file = RepairFile.open(str(tmp_path / "file"))
        found = list(file.records())
        assert found == records[: len(found)]
        assert (found == records) == (length == len(whole))
        assert file.state() is FileState.PLANNED
        file.close()
    for at in range(len(whole)):
        (tmp_path / "file").write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        if at < record.HEADER_SIZE:
            with pytest.raises(CorruptionError):
                RepairFile.open(str(tmp_path / "file"))
        else:
            file = RepairFile.open(str(tmp_path / "file"))
            found = list(file.records())
            assert found == records[: len(found)] != records
            file.close()


def made_file(image: bytes, tmp_path: Path) -> tuple[RepairFile, MemoryDevice]:
    """A carried out repair of an image without primary superblocks."""
    device = MemoryDevice.from_bytes(bytes(8192) + image[8192:])
    made = plan(device, RepairOptions())
    file = perform.write_file(str(tmp_path / "repair"), made.bench.shadow, [])
    perform.carry_out(file, device)
    return file, device


def test_an_image_that_was_written_since_is_not_mixed_with_what_it_was(tmp_path: Path) -> None:
    file, device = made_file(store_image(), tmp_path)
    written = MemoryDevice.from_bytes(changed(device.image(), lambda store: store.checkpoint()))
    before = written.image()
    with pytest.raises(Conflict, match="written since"):
        perform.take_back(file, written)
    assert written.image() == before
    perform.take_back(file, device)
    file.close()


def test_a_repair_of_another_image_is_refused(tmp_path: Path) -> None:
    file, _ = made_file(store_image(), tmp_path)
    with pytest.raises(Conflict, match="bytes"):
        perform.take_back(file, MemoryDevice(1 << 20))
    file.close()


def test_taking_back_twice_is_refused(tmp_path: Path) -> None:
    file, device = made_file(store_image(), tmp_path)
    perform.take_back(file, device)
    with pytest.raises(InvalidRequest, match="nothing to take back"):
        perform.take_back(file, device)
    file.close()


# -- what is written in between ----------------------------------------------------------------------------------------
def acknowledge(image: bytes, *, is_closed: bool = False) -> bytes:
    """The image after a transaction that was acknowledged; without a close it is in the log and nowhere else."""
    device = MemoryDevice.from_bytes(image)
    store = Store.open(device, background=False)
    store.apply(Transaction().create_collection("since").write("since", "after", 0, b"x" * 9000))
    if is_closed:
        store.close()
    return device.image()


@pytest.mark.parametrize("is_closed", [False, True])
def test_taking_back_refuses_what_would_lose_an_acknowledged_transaction(tmp_path: Path, is_closed: bool) -> None:
    """A transaction that is only in the log changes no superblock: it was taken back along with the repair, without a word."""
    file, device = made_file(store_image(), tmp_path)
    used = MemoryDevice.from_bytes(acknowledge(device.image(), is_closed=is_closed))
    before = used.image()
    with pytest.raises(Conflict, match="written since"):
        perform.take_back(file, used)
    assert used.image() == before
    assert file.state() is FileState.DONE
    file.close()


@pytest.mark.parametrize("written", [0, 1, None])
def test_finishing_refuses_what_would_lose_an_acknowledged_transaction(tmp_path: Path, written: int | None) -> None:
    device = MemoryDevice.from_bytes(bytes(8192) + store_image()[8192:])
    made = plan(device, RepairOptions())
    file = perform.write_file(str(tmp_path / "repair"), made.bench.shadow, [])
    news = [row for row in file.records() if row.kind is RecordKind.NEW]
    for row in news[:written]:
        device.write(row.offset, [row.payload])
    used = MemoryDevice.from_bytes(acknowledge(device.image()))
    before = used.image()
    with pytest.raises(Conflict, match="written since"):
        perform.carry_out(file, used)
    assert used.image() == before
    perform.carry_out(file, device)
    file.close()


def test_bytes_of_something_else_of_the_same_size_are_left_alone(tmp_path: Path) -> None:
    """No superblock reads there, so none contradicted: a foreign file was written over."""
    file, device = made_file(store_image(), tmp_path)
    foreign = MemoryDevice.from_bytes(Random(3).randbytes(device.size_bytes))
    before = foreign.image()
    with pytest.raises(Conflict, match="another image"):
        perform.take_back(file, foreign)
    assert foreign.image() == before
    twin = MemoryDevice.from_bytes(store_image(2)[: device.size_bytes])
    with pytest.raises(Conflict, match="another one"):
        perform.take_back(file, twin)
    file.close()


def test_one_byte_that_the_repair_did_not_write_is_noticed_wherever_it_looks(tmp_path: Path) -> None:
    file, device = made_file(store_image(), tmp_path)
    image = device.image()
    known, same = untouched._read(file)
    assert same
    places = [unit * UNIT + 17 for unit in known] + [row.offset for row in same] + [row.offset + row.length - 1 for row in same]
    for at in places:
        other = MemoryDevice.from_bytes(image[:at] + bytes([image[at] ^ 64]) + image[at + 1 :])
        with pytest.raises(Conflict):
            perform.take_back(file, other)
    file.close()


def test_a_file_of_version_1_is_read_and_taken_back(tmp_path: Path) -> None:
    image = store_image()
    file, device = made_file(image, tmp_path)
    only_new = (RecordKind.SAME, RecordKind.GONE, RecordKind.UNDOING)
    old = RepairFile.create(str(tmp_path / "old"), file.header._replace(version=1))
    for row in file.records():
        if row.kind not in only_new:
            old.append(row)
    old.sync()
    perform.take_back(old, device)
    assert device.image() == bytes(8192) + image[8192:]
    assert RepairFile.open(str(tmp_path / "old")).state() is FileState.UNDONE
    old.close()
    file.close()


# -- no room -----------------------------------------------------------------------------------------------------------
def test_no_room_for_the_repair_file_is_said_of_it_and_no_half_stays(tmp_path: Path) -> None:
    device = MemoryDevice.from_bytes(bytes(8192) + store_image()[8192:])
    made = plan(device, RepairOptions())
    before = device.image()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(NoSpace, match=r"no room for the repair file .*repair .*--file"):
            perform.write_file(str(tmp_path / "repair"), made.bench.shadow, [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []
    assert device.image() == before


def test_no_room_for_the_plan_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", lambda *_, **__: Full())
    device = MemoryDevice.from_bytes(bytes(8192) + store_image()[8192:])
    with pytest.raises(NoSpace, match="TMPDIR"):
        plan(device, RepairOptions())
