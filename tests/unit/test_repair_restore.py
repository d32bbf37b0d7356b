"""Blocks that lie in other places, and pages of which one bit turned, become byte for byte what they were, in snapshots too."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.repair.bench import RepairOptions
from mdstore.tools.repair.planning import plan
from mdstore.tools.repair.restore import _turned_back
from tests.unit.reader_images import BLOCK
from tests.unit.repair_faults import blocks_of, swapped, with_snapshot, without
from tests.unit.repair_images import lost, repaired


@pytest.fixture(scope="module")
def image() -> bytes:
    return with_snapshot()


Blocks = tuple[list[int], list[int], list[int]]  # only the snapshot's, only the live state's, data
SWAPS: dict[str, Callable[[Blocks], tuple[int, int]]] = {
    "pages of the snapshot": lambda blocks: (blocks[0][0], blocks[0][1]),
    "pages of the live state": lambda blocks: (blocks[1][0], blocks[1][1]),
    "a page of each": lambda blocks: (blocks[0][0], blocks[1][0]),
    "a page and data": lambda blocks: (blocks[0][1], blocks[2][3]),
    "data": lambda blocks: (blocks[2][0], blocks[2][5]),
}


@pytest.mark.parametrize("which", SWAPS)
def test_swapped_blocks_go_back_to_their_places(image: bytes, which: str) -> None:
    """Both were taken for lost: records of the live state were dropped, and the snapshot stayed damaged."""
    made, after = repaired(swapped(image, *SWAPS[which](blocks_of(image))))
    assert after == image
    assert lost(made) == []
    assert len(made.steps) == 1


def test_pages_that_hid_one_another_are_all_restored(image: bytes) -> None:
    """A page in the place of the one that names it is wanted only once that is back, and overwrote it: it must be kept till then.
    Here all pages of a snapshot and of the live state went round."""
    only_before, live, _ = blocks_of(image)
    for pages in (only_before, live):
        damaged = bytearray(image)
        for page, source in zip(pages, pages[1:] + pages[:1], strict=True):
            damaged[page * BLOCK : (page + 1) * BLOCK] = image[source * BLOCK : (source + 1) * BLOCK]
        made, after = repaired(bytes(damaged))
        assert lost(made) == []
        assert after == image


def test_every_page_of_which_a_bit_turned_is_as_it_was(image: bytes) -> None:
    """In each third of a page, its head and its own checksum among them, of a snapshot and of the live state at once."""
    only_before, live, _ = blocks_of(image)
    damaged = bytearray(image)
    for number, page in enumerate(only_before + live):
        damaged[page * BLOCK + (number * 37) % BLOCK] ^= 1 << number % 8
    made, after = repaired(bytes(damaged))
    assert lost(made) == []
    assert after == image
    assert len(made.steps) == 1


def test_every_bit_of_a_page_is_found_again(image: bytes) -> None:
    page = image[blocks_of(image)[1][0] * BLOCK :][:BLOCK]
    crc = crc32c(page[4:])
    for bit in range(BLOCK * 8):
        turned = bytearray(page)
        turned[bit // 8] ^= 1 << bit % 8
        found = _turned_back(bytes(turned), crc)
        assert found is not None
        assert found.data == page
    for one, other in ((100, 200), (8, 9), (2000, 2001)):
        turned = bytearray(page)
        turned[one // 8] ^= 1 << one % 8
        turned[other // 8] ^= 1 << other % 8
        if min(one, other) >= 32:
            assert _turned_back(bytes(turned), crc) is None


@pytest.mark.parametrize("reach", [0, 1])
def test_a_page_over_which_another_was_copied_is_not_made_up(image: bytes, reach: int) -> None:
    """What was there is nowhere; the other page is in its place already."""
    pages = blocks_of(image)[reach]
    copied = image[: pages[0] * BLOCK] + image[pages[1] * BLOCK : (pages[1] + 1) * BLOCK] + image[(pages[0] + 1) * BLOCK :]
    for damaged in (copied, without(image, pages[:1])):
        made = plan(MemoryDevice.from_bytes(damaged), RepairOptions(is_deep=True))
        assert not any("restore" in step.title for step in made.steps)
        assert (made.left == 0) == bool(reach), "in the snapshot it stays damage, the live state goes on with what is left"


def test_a_bit_of_data_is_left_alone(image: bytes) -> None:
    """Nothing but its checksum says what data should be: by chance another bit would do."""
    at = blocks_of(image)[2][0] * BLOCK + 9
    damaged = image[:at] + bytes([image[at] ^ 1]) + image[at + 1 :]
    made = plan(MemoryDevice.from_bytes(damaged), RepairOptions(is_deep=True))
    assert made.steps == []
    assert made.after.codes.keys() == {"data-checksum"}
