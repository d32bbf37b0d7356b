"""Sectors that the medium does not give, and images cut short: what opens, what `fsck` says of it, what `repair` makes of it.

One sector that did not read, near the log's end, stopped everything: reading ahead met it, though nothing needed lay there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from mdstore.device.memory import MemoryDevice
from mdstore.device.protocol import Buffer
from mdstore.errors import CorruptionError, DeviceFailed, MdstoreError
from mdstore.store import Store, Transaction
from mdstore.tools.reader.check import Options, check_opened
from mdstore.tools.reader.check_log import LogCheck
from mdstore.tools.reader.problems import Findings, Problem
from mdstore.tools.reader.ring import Ring
from mdstore.tools.repair import perform
from mdstore.tools.repair.bench import DeviceImage, RepairOptions
from mdstore.tools.repair.planning import Plan, plan
from mdstore.tools.repair.shadow import UNIT
from mdstore.tools.whole_commands import recover_command
from tests.crash.test_damage_matrix import content_of, table
from tests.unit.reader_images import newest, store_image

EXPECTED = {row[0]: [cell.replace("`", "") for cell in row[1:]] for row in table("Sectors that do not read")}


class BadDevice(MemoryDevice):
    """A medium with sectors that cannot be read until they are written."""

    bad: tuple[int, ...] = ()  # bytes at which one begins

    def read(self, offset: int, length: int) -> bytes:
        for at in self.bad:
            if offset < at + UNIT and offset + length > at:
                raise DeviceFailed("read", f"byte {at}", "Input/output error")
        return super().read(offset, length)

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        super().write(offset, buffers)
        end = offset + sum(map(len, buffers))
        self.bad = tuple(at for at in self.bad if not offset <= at < at + UNIT <= end)


class Subject:
    """An image, and the sectors of its log."""

    def __init__(self, *, is_closed: bool) -> None:
        self.image = store_image(is_closed=is_closed, block_size=UNIT)
        self.content = content_of(self.image, None)
        image, superblock = DeviceImage(MemoryDevice.from_bytes(self.image)), newest(self.image)
        ring = Ring(image, superblock)
        self.state = LogCheck(image, superblock, Findings(lambda _: None)).run()
        start, end = superblock.log_position, self.state.end
        self.places = {
            "a head": (ring.start // UNIT * UNIT,),
            "both heads": tuple({(ring.start + slot * ring.block_size) // UNIT * UNIT for slot in (0, 1)}),
            "at the end": (ring.byte_of(end) // UNIT * UNIT,),
            "behind the end": (ring.byte_of(end + 3 * UNIT) // UNIT * UNIT, ring.byte_of(end + 9 * UNIT) // UNIT * UNIT),
            "entries": (ring.byte_of((start + end) // 2) // UNIT * UNIT,),
        }
        assert is_closed == (start == end)

    def device(self, place: str) -> BadDevice:
        device = BadDevice.from_bytes(self.image)
        device.bad = self.places[place]
        return device


CLOSED, KILLED = Subject(is_closed=True), Subject(is_closed=False)
SUBJECTS = {"closed": CLOSED, "killed": KILLED}


def fsck(device: MemoryDevice) -> list[Problem]:
    found: list[Problem] = []
    check_opened(DeviceImage(device), Options(), found.append)
    return [problem for problem in found if problem.severity != "note"]


def carried_out(made: Plan, device: MemoryDevice, folder: Path) -> None:
    file = perform.write_file(str(folder / "repair"), made.bench.shadow, [])
    perform.carry_out(file, device)
    file.close()


def opening(device: BadDevice, expected: object) -> str:
    copy = BadDevice.from_bytes(device.image())
    copy.bad = device.bad
    try:
        Store.open(copy, read_only=True, background=False).close()
    except (CorruptionError, DeviceFailed):
        return "refuses"
    assert content_of(device.image(), None) == expected
    return "same"


@pytest.mark.parametrize("row", EXPECTED)
def test_a_sector_that_does_not_read_stops_only_what_needs_it(row: str, tmp_path: Path) -> None:
    how, place = row.split(": ")
    subject = SUBJECTS[how]
    codes, opens, severity, after = EXPECTED[row]
    found = fsck(subject.device(place))
    assert {problem.code for problem in found} == set(codes.split())
    assert max(problem.severity for problem in found) == severity  # "warning" sorts behind "error"
    assert opening(subject.device(place), subject.content) == opens
    device = subject.device(place)
    made = plan(device, RepairOptions())
    assert (made.left, made.failed) == (0, [])
    assert made.steps
    carried_out(made, device, tmp_path)
    assert not device.bad
    assert fsck(device) == []
    assert not plan(device, RepairOptions()).steps
    lost = [line for step in made.steps for line in step.lost]
    assert bool(lost) == (opens == "refuses")
    if after == "same":
        assert content_of(device.image(), None) == subject.content
    else:
        assert after == "loses"
        assert content_of(device.image(), None) != subject.content


def test_a_repair_of_a_sector_that_does_not_read_is_taken_back_as_zeros(tmp_path: Path) -> None:
    device = CLOSED.device("a head")
    (at,) = device.bad
    made = plan(device, RepairOptions())
    file = perform.write_file(str(tmp_path / "repair"), made.bench.shadow, [])
    perform.carry_out(file, device)
    assert opening(device, CLOSED.content) == "same"
    perform.take_back(file, device)
    file.close()
    assert device.image() == CLOSED.image[:at] + bytes(UNIT) + CLOSED.image[at + UNIT :]


def test_finishing_goes_on_while_the_sector_still_does_not_read(tmp_path: Path) -> None:
    device = CLOSED.device("a head")
    file = perform.write_file(str(tmp_path / "repair"), plan(device, RepairOptions()).bench.shadow, [])
    perform.carry_out(file, device)
    file.close()
    assert opening(device, CLOSED.content) == "same"


@pytest.mark.parametrize("place", ["behind the end", "at the end"])
def test_an_image_closed_in_order_is_written_to_again_with_a_bad_sector_behind_its_log(place: str) -> None:
    device = CLOSED.device(place)
    store = Store.open(device, background=False)
    store.apply(Transaction().create_collection("new").write("new", "object", 0, b"x" * 100))
    store.close()
    again = Store.open(MemoryDevice.from_bytes(device.image()), background=False)
    assert again.read("new", "object") == b"x" * 100


@pytest.mark.parametrize("how", SUBJECTS)
def test_every_sector_of_the_log_may_fail_and_what_opens_is_right(how: str) -> None:
    """Each sector of heads and ring by itself: `fsck` and the plan come to their ends, and opening is right or refuses."""
    subject = SUBJECTS[how]
    superblock = newest(subject.image)
    low, high = (blocks * superblock.block_size for blocks in (superblock.log_start, superblock.first_block))
    outcomes = set()
    for at in range(low // UNIT * UNIT, high, UNIT):
        device = BadDevice.from_bytes(subject.image)
        device.bad = (at,)
        assert fsck(device)
        outcomes.add(opening(device, subject.content))
    assert outcomes == {"same"} if how == "closed" else outcomes == {"same", "refuses"}


# -- cut images --------------------------------------------------------------------------------------------------------
def cuts(image: bytes) -> list[int]:
    superblock = newest(image)
    low, high = (blocks * superblock.block_size for blocks in (superblock.log_start, superblock.first_block))
    return [low + 2 * UNIT + 1, low + 3 * UNIT, (low + high) // 2 + 1, high - 1, high, high + 77, len(image) - 8192]


@pytest.mark.parametrize("how", SUBJECTS)
def test_an_image_cut_anywhere_is_checked_to_its_end(how: str) -> None:
    """It ended with 8 and never reached log or names, where the cut was in the ring."""
    image = SUBJECTS[how].image
    for size in cuts(image)[:-1]:
        found: list[Problem] = []
        result = check_opened(DeviceImage(MemoryDevice.from_bytes(image[:size])), Options(), found.append)
        assert result.errors, size
        assert "log_entries" in result.counts, size
        with pytest.raises(MdstoreError, match="bytes"):
            Store.open(MemoryDevice.from_bytes(image[:size]), background=False)
        plan(MemoryDevice.from_bytes(image[:size]), RepairOptions()).bench.shadow.drop()


@pytest.mark.parametrize("how", SUBJECTS)
def test_recover_takes_what_still_reads_of_a_cut_image(how: str, tmp_path: Path) -> None:
    image = SUBJECTS[how].image
    for number, size in enumerate(cuts(image)):
        source, target = tmp_path / f"cut{number}", tmp_path / f"saved{number}"
        source.write_bytes(image[:size])
        found = CliRunner().invoke(recover_command, [str(source), str(target)], standalone_mode=False)
        assert found.exception is None, (size, found.output, found.exception)
        assert target.exists()
        assert ("lost: " in found.output) == (size < len(image) - 8192)
