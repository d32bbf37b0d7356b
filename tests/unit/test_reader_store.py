"""fsck of the store: clean images are clean, and each injected fault is found, and only it."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from mdstore.device.memory import MemoryDevice
from mdstore.store import Store, Transaction
from mdstore.tools.fsck import fsck_command
from mdstore.tools.reader import superblock as superblocks
from mdstore.tools.reader.check import DEEP, NORMAL, QUICK, Options, check_image
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.onode import decode_extent
from mdstore.tools.reader.problems import Problem
from mdstore.tools.reader.store import DATA_SHAPE, StoreReader
from mdstore.tools.reader.superblock import ROOT_FREE, ROOT_OBJECTS
from tests.crash.test_damage_matrix import pages_of
from tests.unit.reader_images import (
    BLOCK,
    changed,
    check,
    codes,
    file_system,
    newest,
    patched,
    place_of,
    reachable,
    store_image,
    superblock_start,
)  # fmt: skip
from tests.unit.repair_images import repaired


@pytest.fixture(scope="module")
def image() -> bytes:
    return store_image()


def reader_of(image: bytes, tmp_path: Path) -> StoreReader:
    path = tmp_path / "looked-at"
    path.write_bytes(image)
    return StoreReader(Image(str(path)), newest(image))


@pytest.mark.parametrize("block_size", [256, 512, 4096])
@pytest.mark.parametrize("is_closed", [True, False])
def test_a_sound_image_is_clean_at_every_level(block_size: int, is_closed: bool, tmp_path: Path) -> None:
    image = store_image(block_size, block_size=block_size, is_closed=is_closed)
    for level in (QUICK, "normal", DEEP):
        assert check(image, tmp_path, level) == []


def test_a_large_clone_that_was_written_to_is_clean(tmp_path: Path) -> None:
    """A clone that has left its group shares pages of its data tree with its origin: both hold what those pages name."""
    device = MemoryDevice(8 << 20)
    store = Store.create(device, block_size=BLOCK, log_bytes=256 << 10, background=False)
    store.apply(Transaction().create_collection("c"))
    for number in range(200):
        store.apply(Transaction().write("c", "origin", number * 2048, bytes([number]) * BLOCK))
    store.checkpoint()
    store.apply(Transaction().clone("c", "origin", "twin"))
    store.checkpoint()
    store.apply(Transaction().write("c", "twin", 10 * 2048, b"x" * 700))
    store.close()
    assert check(device.image(), tmp_path, DEEP) == []


def test_a_clone_of_what_was_not_written_yet_is_clean(tmp_path: Path) -> None:
    device = MemoryDevice(16 << 20)
    with Store.create(device) as store:
        store.submit(Transaction().create_collection("c").write("c", "a", 0, b"a" * 4096 * 60))
        store.submit(Transaction().clone("c", "a", "b"))
    assert check(device.image(), tmp_path, DEEP) == []


def test_checking_writes_nothing(image: bytes, tmp_path: Path) -> None:
    check(image, tmp_path, DEEP)
    assert (tmp_path / "image").read_bytes() == image


def test_the_log_of_a_killed_image_is_replayed_in_memory(tmp_path: Path) -> None:
    from mdstore.tools.reader.check_log import LogCheck
    from mdstore.tools.reader.overlay import ObjectState, Overlay
    from mdstore.tools.reader.problems import Findings

    image = store_image(is_closed=False)
    reader = reader_of(image, tmp_path)
    overlay = Overlay(reader)
    state = LogCheck(reader.image, reader.superblock, Findings(lambda problem: pytest.fail(str(problem))), reader).run(
        overlay
    )
    assert state.entries > 5
    assert state.is_complete
    path = tmp_path / "opened"
    path.write_bytes(image)
    from mdstore.device.memory import MemoryDevice

    store = Store.open(MemoryDevice.from_bytes(image), background=False)
    for collection in store.list_collections():
        names = [name for name, _ in overlay.objects(collection)]
        assert names == store.list_objects(collection)
        for name, found in overlay.objects(collection):
            assert overlay.attributes_of(found) == store.getattrs(collection, name)
            assert list(overlay.items_of(found)) == list(store.map_items(collection, name))
            whole = found if isinstance(found, ObjectState) else ObjectState(found)
            assert whole.data.read(reader, 0, 1 << 30) == store.read(collection, name)


def test_a_flipped_data_bit_is_found_by_deep_alone(image: bytes, tmp_path: Path) -> None:
    reader = reader_of(image, tmp_path)
    onode = reader.find(1, b"o0001")
    assert onode is not None
    assert onode.data_root is not None
    extent = decode_extent(*next(reader.tree(onode.data_root, DATA_SHAPE).items()))
    damaged = bytearray(image)
    damaged[extent.start * BLOCK + 5] ^= 4
    assert check(bytes(damaged), tmp_path) == []
    found = check(bytes(damaged), tmp_path, DEEP)
    assert codes(found) == {"data-checksum"}
    assert {problem.place.byte for problem in found} == {extent.start * BLOCK}
    assert found[0].place.owner in ("c/o0001", "c/clone")


def test_a_large_table_of_floors_is_clean_and_a_wrong_row_is_found(tmp_path: Path) -> None:
    def guard(store: Store) -> None:
        for number in range(400):
            store.submit(Transaction().set_floor(number + 1, "c", prefix=f"writer-{number:04}."))

    assert check(changed(store_image(), guard), tmp_path, DEEP) == []
    wrong = changed(store_image(), lambda store: store.tables.floors_tree.put(b"\x09\x01c", bytes(8)))
    assert codes(check(wrong, tmp_path)) == {"floor"}


@pytest.mark.parametrize("slots", [(0,), (1,), (0, 1)])
def test_a_head_of_another_images_log_is_not_taken_for_this_ones(slots: tuple[int, ...], image: bytes, tmp_path: Path) -> None:
    other = store_image(2)
    mixed = bytearray(image)
    start = newest(image).log_start * BLOCK
    for slot in slots:
        at = start + slot * max(BLOCK, 512)
        mixed[at : at + 132] = other[at : at + 132]
    found = check(bytes(mixed), tmp_path)
    assert codes(found) == ({"journal-head"} if len(slots) == 1 else {"journal-head", "journal-no-head"})


def test_a_leaked_block_is_found(image: bytes, tmp_path: Path) -> None:
    _, at = largest_free(image, tmp_path)
    blocks = int.from_bytes(image[at : at + 8], "little")
    found = check(patched(image, at, (blocks - 1).to_bytes(8, "little")), tmp_path)
    assert codes(found) == {"space-leaked", "free-count"}


def test_a_block_both_free_and_used_is_found(image: bytes, tmp_path: Path) -> None:
    start, blocks, at = free_before_used(image, tmp_path)
    found = check(patched(image, at, (blocks + 1).to_bytes(8, "little")), tmp_path)
    assert codes(found) == {"space-false-free", "free-count"}
    assert next(p for p in found if p.code == "space-false-free").place.byte == (start + blocks) * BLOCK


def free_records(image: bytes, tmp_path: Path) -> list[tuple[int, int]]:
    tree = reader_of(image, tmp_path).root_tree(ROOT_FREE)
    return [(int.from_bytes(key, "big"), int.from_bytes(value, "little")) for key, value in tree.items()]


def record_at(image: bytes, start: int, blocks: int, tmp_path: Path) -> int:
    """Byte of the value of a free record."""
    return place_of(image, start.to_bytes(8, "big") + blocks.to_bytes(8, "little"), tmp_path) + 8


def largest_free(image: bytes, tmp_path: Path) -> tuple[int, int]:
    start, blocks = max(free_records(image, tmp_path), key=lambda record: record[1])
    return start, record_at(image, start, blocks, tmp_path)


def free_before_used(image: bytes, tmp_path: Path) -> tuple[int, int, int]:
    records = free_records(image, tmp_path)
    starts = {start for start, _ in records} | {newest(image).blocks}
    start, blocks = next(record for record in records if not {sum(record), sum(record) + 1} & starts)
    return start, blocks, record_at(image, start, blocks, tmp_path)


def test_two_objects_on_one_extent_are_found(image: bytes, tmp_path: Path) -> None:
    reader = reader_of(image, tmp_path)
    starts = {}
    for name in (b"o0008", b"o0010"):
        onode = reader.find(1, name)
        assert onode is not None
        assert onode.data_root is not None
        starts[name] = decode_extent(*next(reader.tree(onode.data_root, DATA_SHAPE).items()))
    one, other = starts[b"o0008"], starts[b"o0010"]
    wanted = other.start.to_bytes(8, "little") + other.blocks.to_bytes(2, "little") + b"\0\0"
    found = check(patched(image, place_of(image, wanted, tmp_path), one.start.to_bytes(8, "little")), tmp_path)
    assert "space-shared" in codes(found)
    assert codes(found) <= {"space-shared", "space-leaked"}
    assert {"c/o0008", "c/o0010"} & {problem.place.owner for problem in found}


def test_wrong_counts_of_the_superblock_are_found(image: bytes, tmp_path: Path) -> None:
    start = superblock_start(image)
    for offset, code in ((128, "object-count"), (136, "stored-bytes"), (144, "free-count")):
        value = int.from_bytes(image[start + offset : start + offset + 8], "little") + 1
        assert codes(check(patched(image, start + offset, value.to_bytes(8, "little")), tmp_path)) == {code}


def test_a_wrong_count_of_a_collection_is_found(image: bytes, tmp_path: Path) -> None:
    start = superblock_start(image)
    record = image.find(b"\x04maps\x01\0\0\0", start, start + 4096) + 5
    assert record > start
    found = check(patched(image, record + 12, (1).to_bytes(8, "little")), tmp_path)
    assert codes(found) == {"collection-count"}
    assert "maps" in str(found[0].place)


def test_a_wrong_size_of_an_object_is_found(image: bytes, tmp_path: Path) -> None:
    """A size that is too small leaves extents behind the end, and shows in the sum."""
    reader = reader_of(image, tmp_path)
    onode = reader.find(1, b"o0001")
    assert onode is not None
    head = bytes([1]) + bytes([1, 1, 0]) + onode.size.to_bytes(8, "little") + onode.allocated.to_bytes(8, "little")
    found = check(patched(image, place_of(image, head, tmp_path) + 4, bytes(8)), tmp_path)
    assert {"extent-beyond-end", "stored-bytes"} <= codes(found)


@pytest.fixture(scope="module")
def shared(image: bytes) -> bytes:
    """The image with a clone that wrote: it shares some blocks with its origin, counted one by one."""

    def overwrite(store: Store) -> None:
        store.apply(Transaction().write("c", "origin", 0, b"o" * 9000))
        store.apply(Transaction().clone("c", "origin", "twin"))
        store.apply(Transaction().write("c", "twin", 700, b"different"))

    return changed(image, overwrite)


@pytest.mark.parametrize(
    ("kind", "step", "code"),
    [
        (superblocks.ROOT_GROUPS, 1, "group"),
        (superblocks.ROOT_SHARED, 1, "references"),
        (superblocks.ROOT_SHARED, 7, "references"),
    ],
)
def test_a_wrong_count_of_what_clones_share_is_found(
    kind: int, step: int, code: str, shared: bytes, tmp_path: Path
) -> None:
    """The last record's count, in the superblock itself."""
    assert check(shared, tmp_path) == []
    record = newest(shared).roots[kind]
    assert not record[1] & 2, "embedded"
    at = shared.find(record, superblock_start(shared)) + len(record) - 4
    count = int.from_bytes(shared[at : at + 4], "little")
    assert count
    found = check(patched(shared, at, (count + step).to_bytes(4, "little")), tmp_path)
    assert codes(found) == {code}


def test_a_wrong_count_of_a_shared_page_is_found(image: bytes, tmp_path: Path) -> None:
    key, value = next(iter(reader_of(image, tmp_path).root_tree(superblocks.ROOT_REFERENCES).items()))
    at = place_of(image, key + value, tmp_path) + len(key)
    found = check(patched(image, at, (5).to_bytes(4, "little")), tmp_path)
    assert codes(found) == {"references"}
    assert {problem.place.byte for problem in found} == {int.from_bytes(key, "big") * BLOCK}


def test_every_kind_of_page_damage_is_found(image: bytes, tmp_path: Path) -> None:
    """Each page of every tree, one bit: exactly that page is named."""
    pages = reachable(image, tmp_path)
    assert len(pages) > 20
    for page in pages:
        damaged = bytearray(image)
        damaged[page * BLOCK + (page * 7) % BLOCK] ^= 1 << (page % 8)
        found = check(bytes(damaged), tmp_path)
        assert page in {problem.place.page for problem in found if problem.severity == "error"}, page


def test_the_command_says_clean_errors_and_failed(image: bytes, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(image)
    runner = CliRunner()
    result = runner.invoke(fsck_command, [str(path)])
    assert (result.exit_code, "clean" in result.output) == (0, True)
    damaged = bytearray(image)
    start = newest(image).roots[superblocks.ROOT_OBJECTS]
    page = int.from_bytes(start[32:40], "little")
    damaged[page * BLOCK + 100] ^= 1
    path.write_bytes(damaged)
    result = runner.invoke(fsck_command, [str(path), "--json"])
    assert result.exit_code == 4
    answer = json.loads(result.output)
    assert answer["status"] == "errors"
    assert answer["severities"]["error"] == len([p for p in answer["problems"] if p["severity"] == "error"])
    assert set(answer["problems"][0]) == {"code", "severity", "what", "where", "consequence", "remedy"}
    path.write_bytes(b"no image at all" * 4000)
    result = runner.invoke(fsck_command, [str(path), "--json"])
    assert (result.exit_code, json.loads(result.output)["status"]) == (8, "failed")
    for missing in (str(tmp_path / "missing"), str(tmp_path)):
        assert runner.invoke(fsck_command, [missing]).exit_code == 8


def test_a_truncated_image_says_so(image: bytes, tmp_path: Path) -> None:
    found = check(image[: len(image) // 2], tmp_path)
    assert "image-truncated" in codes(found)


@pytest.mark.parametrize("cut", [1, 4096, 8192])
def test_an_image_without_its_spare_superblocks_says_that_and_nothing_else(image: bytes, tmp_path: Path, cut: int) -> None:
    """Its last blocks were called leaked: the spares were thought to lie where the file ends. Lengthened, it is repaired."""
    found = check(image[:-cut], tmp_path)
    assert codes(found) <= {"image-truncated", "superblock-copy"}
    (truncated,) = [problem for problem in found if problem.code == "image-truncated"]
    assert f"truncate -s {len(image)} " in truncated.remedy
    repaired(image[:-cut] + bytes(cut))


def test_members_of_a_group_that_cannot_be_read_are_not_called_missing(tmp_path: Path) -> None:
    """A lost leaf of the object tree left a group with fewer members than it counts: a second error, with a remedy of its own."""
    image = changed(store_image(), lambda store: store.apply(Transaction().clone("c", "last", "last twin")))
    tree = reader_of(image, tmp_path).root_tree(ROOT_OBJECTS)
    pages = pages_of(tree)
    for page in pages:
        damaged = image[: page * BLOCK + 100] + b"\xa5\x5a" + image[page * BLOCK + 102 :]
        assert codes(check(damaged, tmp_path)) & {"page-checksum", "group"} == {"page-checksum"}
    assert len(pages) > 4


@pytest.mark.parametrize("seed", range(4))
def test_hostile_bytes_under_right_checksums_are_findings_never_a_crash(seed: int, tmp_path: Path) -> None:
    """Any byte of any page or superblock, set to anything, every checksum made right again."""
    print(f"seed {seed}")
    random = Random(seed)
    image = store_image(seed, is_closed=False) if seed % 2 else file_system(is_closed=bool(seed))
    pages = reachable(image, tmp_path)
    for number in range(40):
        at = random.choice(pages) * BLOCK + random.randrange(4, BLOCK)
        if number % 8 == 7:
            at = superblock_start(image) + random.randrange(12, 600)
        data = random.choice([random.randbytes(1), b"\xff" * random.choice([2, 4, 8]), bytes(8)])
        check(patched(image, at, data[: BLOCK - at % BLOCK]), tmp_path, DEEP)


@pytest.mark.parametrize("level", [QUICK, NORMAL])
def test_an_image_that_was_not_closed_is_said_to_be_so(tmp_path: Path, level: str) -> None:
    """The code was in the table, and nothing ever told it: an image that was killed looked as one that was closed."""
    for is_closed in (True, False):
        (tmp_path / "image").write_bytes(store_image(is_closed=is_closed))
        found: list[Problem] = []
        result = check_image(str(tmp_path / "image"), Options(level), found.append)
        told = [problem for problem in found if problem.code == "superblock-unclean"]
        assert (len(told), result.errors) == (int(not is_closed), 0)
        assert is_closed or f"{result.counts['log_entries']} entries" in told[0].what
