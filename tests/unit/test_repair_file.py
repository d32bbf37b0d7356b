"""The repair file, the shadow that plans are made on, and what refuses to be mixed."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.errors import Conflict, CorruptionError, InvalidRequest
from mdstore.tools.repair import perform, record
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
    for at, data in shadow.originals():
        replayed.write(at, [data])
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
