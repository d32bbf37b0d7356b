"""What is never written when blocks are restored: over anything that reads, and what only chance says belongs there."""

from __future__ import annotations

from random import Random

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.store import Store, Transaction
from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.named import RAW
from mdstore.tools.repair import restore
from mdstore.tools.repair.bench import DeviceImage, RepairOptions
from mdstore.tools.repair.naming import names_of
from mdstore.tools.repair.planning import Plan, plan
from tests.unit.reader_images import BLOCK, newest, patched
from tests.unit.repair_faults import blocks_of, older_superblock_gone, with_snapshot
from tests.unit.repair_images import lost, repaired


@pytest.fixture(scope="module")
def image() -> bytes:
    return with_snapshot()


def planned(damaged: bytes) -> tuple[Plan, bytes]:
    made = plan(MemoryDevice.from_bytes(damaged), RepairOptions(is_deep=True))
    return made, made.bench.shadow.read(0, len(damaged))


def block_of(image: bytes, number: int) -> bytes:
    return image[number * BLOCK : (number + 1) * BLOCK]


def put(image: bytes, blocks: dict[int, bytes]) -> bytes:
    changed = bytearray(image)
    for number, data in blocks.items():
        changed[number * BLOCK : (number + 1) * BLOCK] = data
    return bytes(changed)


def turned(block: bytes, at: int) -> bytes:
    """With one bit of byte `at` turned."""
    return block[:at] + bytes([block[at] ^ 4]) + block[at + 1 :]


def leaf_reference(image: bytes, pages: list[int], leaf: int) -> int:
    """Where one of the pages names that leaf."""
    reference = leaf.to_bytes(8, "little") + block_of(image, leaf)[:4]
    return next(page * BLOCK + at for page in pages if (at := block_of(image, page).find(reference)) >= 0)


def restored(made: Plan) -> list[str]:
    return [line for step in made.steps if step.title.startswith("restore blocks") for line in step.details]


def with_checksum(body: bytes, crc: int) -> bytes:
    """A page of that body (all behind the checksum) and that checksum: its last 4 bytes are what it takes. CRC-32C is affine in
    them, so 32 equations over bits are solved."""
    rows: dict[int, tuple[int, int]] = {}
    plain = crc32c(body)

    def reduced(value: int, mask: int) -> tuple[int, int]:
        while value and value.bit_length() in rows:
            other, used = rows[value.bit_length()]
            value, mask = value ^ other, mask ^ used
        return value, mask

    for bit in range(32):
        last = int.from_bytes(body[-4:], "little") ^ 1 << bit
        value, mask = reduced(crc32c(body[:-4] + last.to_bytes(4, "little")) ^ plain, 1 << bit)
        rows[value.bit_length()] = value, mask
    left, mask = reduced(crc ^ plain, 0)
    made = body[:-4] + (int.from_bytes(body[-4:], "little") ^ mask).to_bytes(4, "little")
    assert not left
    assert crc32c(made) == crc
    return crc.to_bytes(4, "little") + made


# -- over nothing that reads -------------------------------------------------------------------------------------------
def live_page_in_a_snapshots_place(image: bytes) -> tuple[bytes, int, int]:
    """Space was given out that a snapshot holds, and the snapshot's page lies elsewhere: (image, block, page that names it)."""
    only_before, live, _ = blocks_of(image)
    kept = [page for page in only_before if not block_of(image, page)[24]][3]
    moved = [page for page in live if not block_of(image, page)[24]][3]
    at = leaf_reference(image, live, moved)
    damaged = patched(image, at, kept.to_bytes(8, "little"))
    return put(damaged, {kept: block_of(image, moved), moved: block_of(image, kept)}), kept, at // BLOCK


def test_a_live_page_in_the_place_of_a_snapshots_stays(image: bytes) -> None:
    """The snapshot's went over it, and an object read as it was in the snapshot."""
    damaged, kept, _ = live_page_in_a_snapshots_place(image)
    made, after = planned(damaged)
    assert restored(made) == []
    assert block_of(after, kept) == block_of(damaged, kept)
    stores = [Store.open(MemoryDevice.from_bytes(one), read_only=True, background=False) for one in (image, after)]
    for number in range(200):
        one, other = (store.read("c", f"o{number:03}") for store in stores)
        assert one == other


def test_a_page_is_not_lost_because_what_names_it_cannot_be_read(image: bytes) -> None:
    """The same, and the page that names the live one is gone: only the snapshot says whose the block is. Other blocks are
    restored all the same."""
    damaged, kept, index = live_page_in_a_snapshots_place(image)
    other = [page for page in blocks_of(image)[0] if not block_of(image, page)[24]][5]
    broken = put(older_superblock_gone(damaged), {index: b"\xa5" * BLOCK, other: turned(block_of(image, other), 99)})
    made, after = planned(broken)
    assert block_of(after, kept) == block_of(damaged, kept)
    assert block_of(after, other) == block_of(image, other)
    assert any("1 page would be gone" in line for line in made.failed), made.failed


def test_nothing_is_written_outside_the_allocators_space(image: bytes) -> None:
    """A reference that leads into the log: its page lies elsewhere, and went over the log."""
    live = blocks_of(image)[1]
    leaf = next(page for page in live if not block_of(image, page)[24])
    inside = newest(image).log_start + 7
    damaged = patched(image, leaf_reference(image, live, leaf), inside.to_bytes(8, "little"))
    made, after = planned(damaged)
    assert restored(made) == []
    assert block_of(after, inside) == block_of(image, inside)


def test_data_that_the_log_names_is_known() -> None:
    """Blocks written beside the log belong to it before any tree names them."""
    device = MemoryDevice(8 << 20)
    store = Store.create(device, block_size=BLOCK, log_bytes=128 << 10, background=False)
    store.apply(Transaction().create_collection("c").write("c", "before", 0, b"x" * 5000))
    store.checkpoint()
    content = Random(2).randbytes(1 << 20)
    store.apply(Transaction().write("c", "large", 0, content))
    image = device.image()
    superblock = newest(image)
    every = range(superblock.first_block, superblock.blocks)
    names = names_of(DeviceImage(MemoryDevice.from_bytes(image)), superblock, every)
    held = {block for block in every if block_of(image, block) in content and any(block_of(image, block))}
    assert len(held) == len(content) // BLOCK
    assert all(named.key == (RAW, crc32c(block_of(image, block))) for block in held for named in names.agreed(block))
    assert held <= names.by_block.keys()
    assert not names.is_partial


# -- nothing that only chance says -------------------------------------------------------------------------------------
def test_a_page_is_not_put_where_data_of_its_checksum_belongs(image: bytes) -> None:
    """A page carries the checksum of all but its first 4 bytes, data is compared as a whole: 511 right bytes were overwritten."""
    block, free = blocks_of(image)[2][2], newest(image).blocks - 5
    assert not any(block_of(image, free))
    whole = block_of(image, block)
    forged = with_checksum(b"mbt1" + bytes(BLOCK - 8), crc32c(whole))
    bad = turned(whole, 0)
    made, after = planned(put(image, {block: bad, free: forged}))
    assert restored(made) == []
    assert block_of(after, block) == bad


def test_a_page_of_the_right_checksum_that_is_another_page_is_not_taken(image: bytes) -> None:
    page, free = blocks_of(image)[0][2], newest(image).blocks - 5
    crc = int.from_bytes(block_of(image, page)[:4], "little")
    other_tree = b"mbt1" + (77).to_bytes(8, "little") + block_of(image, page)[16:]
    forged = with_checksum(other_tree, crc)
    made, after = planned(put(image, {page: b"\xa5" * BLOCK, free: forged}))
    assert restored(made) == []
    assert block_of(after, page) == b"\xa5" * BLOCK
    made, after = planned(put(image, {page: b"\xa5" * BLOCK, free: block_of(image, page)}))
    assert block_of(after, page) == block_of(image, page), "while the page itself is"


def test_where_two_answers_are_possible_none_is_given(image: bytes) -> None:
    """One bit turned, and elsewhere lies a page with the same head, checksum and keys, and another value."""
    only_before, _, _ = blocks_of(image)
    page = next(page for page in only_before if not block_of(image, page)[24])
    whole, free = block_of(image, page), newest(image).blocks - 5
    forged = with_checksum(whole[4:-8] + bytes([whole[-8] ^ 5]) + whole[-7:], int.from_bytes(whole[:4], "little"))
    bad = turned(whole, BLOCK - 6)
    made, after = planned(put(image, {page: bad, free: forged}))
    assert restored(made) == []
    assert block_of(after, page) == bad
    assert block_of(planned(put(image, {page: bad}))[1], page) == whole
    assert block_of(planned(put(image, {page: b"\xa5" * BLOCK, free: whole}))[1], page) == whole


@pytest.mark.parametrize("strangers", [8, 12])
def test_no_bit_is_turned_back_among_many_pages_that_no_bit_sets_right(image: bytes, strangers: int) -> None:
    """Each of them fits some bit with a chance of 1 in a million: in 10 of 512 bytes and more, above 1 in 100,000."""
    only_before = blocks_of(image)[0]
    random = Random(strangers)
    junk = {page: block_of(image, page)[:200] + random.randbytes(BLOCK - 200) for page in only_before[1 : 1 + strangers]}
    page = only_before[0] if block_of(image, only_before[0])[24] == 0 else only_before[-1]
    junk.pop(page, None)
    whole = block_of(image, page)
    made, after = planned(put(image, junk | {page: turned(whole, 99)}))
    is_restored = block_of(after, page) == whole
    assert is_restored == (strangers == 8)
    assert any("no bit is turned back" in line for line in made.failed) == (strangers == 12)


# -- many at once ------------------------------------------------------------------------------------------------------
def large() -> tuple[bytes, list[int]]:
    """An image with much data, and the blocks of it."""
    random = Random(3)
    device = MemoryDevice(8 << 20)
    store = Store.create(device, block_size=BLOCK, log_bytes=1 << 20, background=False)
    store.apply(Transaction().create_collection("c"))
    for number in range(40):
        store.apply(Transaction().write("c", f"o{number}", 0, random.randbytes(20 * BLOCK)))
    store.close()
    image = device.image()
    used = range(newest(image).first_block, newest(image).blocks)
    names = names_of(DeviceImage(MemoryDevice.from_bytes(image)), newest(image), used)
    data = [block for block in used if (named := names.agreed(block)) and named[0].key[0] == RAW]
    assert len(data) == 800
    return image, data


def test_blocks_that_went_round_are_restored_however_many_are_damaged() -> None:
    """Beyond 200 damaged blocks nothing was said, and nothing done: --drop-damaged made holes of what was all there."""
    image, data = large()
    chosen = Random(5).sample(data, 260)
    pair, three, (first, second), rest = chosen[:2], chosen[2:5], chosen[5:7], chosen[7:]
    rings = [*zip(pair, pair[::-1], strict=True), *zip(three, three[1:] + three[:1], strict=True)]
    moved = {place: block_of(image, source) for place, source in rings}
    moved |= {first: block_of(image, second), second: b"\xa5" * BLOCK}  # a copy in another's place, which is no ring
    rot = {block: turned(block_of(image, block), 0) for block in rest}
    made, after = planned(put(image, moved | rot))
    assert len(restored(made)) == 5
    assert all(block_of(after, block) == block_of(image, block) for block in pair + three)
    assert block_of(after, second) == b"\xa5" * BLOCK
    assert any("1 block of data that may lie elsewhere" in line for line in made.failed)
    made, after = planned(put(image, moved | dict(list(rot.items())[:150])))
    assert block_of(after, second) == block_of(image, second), "among few it is taken"
    assert made.failed == []


def test_damage_beyond_what_is_held_in_memory_is_said(image: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = blocks_of(image)[0][:6]
    damaged = put(image, {page: turned(block_of(image, page), 99) for page in pages})
    monkeypatch.setattr(restore, "_BYTES_MAX", BLOCK)
    made, after = planned(damaged)
    assert 0 < sum(block_of(after, page) == block_of(image, page) for page in pages) < 6
    assert any("more than 512 B of blocks are damaged" in line for line in made.failed), made.failed
    assert made.left
    monkeypatch.setattr(restore, "_BYTES_MAX", 6 * BLOCK)
    made, after = repaired(damaged)
    assert after == image
    assert (lost(made), made.failed) == ([], [])
