"""The superblock: every byte is covered, every copy counts, and what is passed over is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from crc32c import crc32c

from mdstore.device.file import FileDevice
from mdstore.device.memory import MemoryDevice
from mdstore.errors import CorruptionError, MdstoreError, NewerFormat, NotAnImage, UnsupportedFormat
from mdstore.store import Store, Transaction, superblock
from mdstore.store.superblock import SLOT_SIZE, Root, Superblock
from mdstore.tools.dump import run_dump
from mdstore.tools.reader.check import Options, check_image
from mdstore.tools.repair.bench import RepairOptions
from mdstore.tools.repair.planning import plan


def sample(epoch: int = 7) -> Superblock:
    return Superblock(
        uuid=bytes(range(16)), block_size=4096, blocks=1000, log_start=2, log_blocks=50, epoch=epoch, flags=1,
        log_position=123456, next_tree_id=99, next_collection_id=4, cursor=77, objects=5, stored_bytes=6, free_blocks=7,
        created_ns=-1, written_ns=1, stripe_bytes=65536, stripe_offset=4096, spare_runs=[(100, 2), (200, 1)],
        roots={Root.OBJECTS: b"object root", Root.FREE: b""},
    )  # fmt: skip


def test_decoding_gives_back_what_was_encoded() -> None:
    assert superblock.decode(sample().encode(), "here") == sample()


def test_every_flipped_bit_is_noticed() -> None:
    raw = bytearray(sample().encode())
    for offset in range(SLOT_SIZE):
        raw[offset] ^= 1 << offset % 8
        with pytest.raises((CorruptionError, NotAnImage, UnsupportedFormat)):
            superblock.decode(bytes(raw), "here")
        raw[offset] ^= 1 << offset % 8


def test_every_cut_is_noticed() -> None:
    raw = sample().encode()
    for length in (0, 7, 191, 300, SLOT_SIZE - 1):
        with pytest.raises(NotAnImage):
            superblock.decode(raw[:length], "here")


@pytest.mark.parametrize(
    ("field", "value"),
    [("block_size", 4095), ("block_size", 128), ("blocks", 0), ("log_start", 1), ("log_blocks", 999), ("epoch", 0),
     ("stripe_bytes", 5000), ("stripe_offset", 100), ("stripe_offset", 65536)],
)
def test_impossible_fields_with_a_right_checksum_are_damage(field: str, value: int) -> None:
    bad = sample()
    setattr(bad, field, value)
    with pytest.raises(CorruptionError, match=field.replace("log_blocks", "log_blocks")):
        superblock.decode(bad.encode(), "here")


def test_an_unknown_incompatible_feature_refuses_to_open() -> None:
    new = sample()
    new.features_incompatible = 1 << 40
    with pytest.raises(UnsupportedFormat, match="incompatible"):
        superblock.decode(new.encode(), "here")


def test_the_newest_is_taken_and_the_damaged_named() -> None:
    # The 2008 store took the higher epoch without looking at that one's checksum.
    device = MemoryDevice(1 << 20)
    for epoch in (7, 8):
        superblock.write(device, sample(epoch))
    good, bad = superblock.read_all(device)
    assert [found.epoch for found, _ in good] == [8, 8, 7, 7]
    assert not bad
    primary, spare = superblock.slot_offsets(device.size_bytes, 0)
    device.write(primary + 2000, [b"x"])
    good, bad = superblock.read_all(device)
    assert [found.epoch for found, _ in good] == [8, 7, 7]
    assert len(bad) == 1
    assert "crc" in bad[0]
    device.write(spare + 2000, [b"x"])
    assert [found.epoch for found, _ in superblock.read_all(device)[0]] == [7, 7]


def test_a_device_without_any_is_not_an_image() -> None:
    with pytest.raises(NotAnImage, match="mkfs"):
        superblock.read_all(MemoryDevice(1 << 20))
    with pytest.raises(NotAnImage, match="too small"):
        superblock.read_all(MemoryDevice(1000))


def test_all_copies_damaged_is_damage_not_absence() -> None:
    device = MemoryDevice(1 << 20)
    superblock.write(device, sample())
    for offset in superblock.slot_offsets(device.size_bytes, 1):
        device.write(offset + 100, [b"\xff"])
    with pytest.raises(MdstoreError, match="damaged superblock"):
        superblock.read_all(device)


# -- features of versions to come --------------------------------------------------------------------------------------


def image_with(path: Path, **features: int) -> str:
    """A store with one object, whose superblocks all carry these features."""
    with Store.create(FileDevice.create(path, 1 << 20), log_bytes=1 << 16) as store:
        store.apply(Transaction().create_collection("c").write("c", "o", 0, b"bytes"))
    device = FileDevice.open(path)
    for found, _ in superblock.read_all(device)[0]:
        superblock.write(device, replace(found, **features))
    device.close()
    return str(path)


def test_another_version_is_refused_whatever_the_other_copies_say() -> None:
    device = MemoryDevice(1 << 20)
    for epoch in (7, 8):
        superblock.write(device, sample(epoch))
    raw = bytearray(sample(8).encode())
    raw[12] = 9
    raw[8:12] = crc32c(bytes(raw[12:])).to_bytes(4, "little")
    device.write(0, [bytes(raw)])
    with pytest.raises(NewerFormat, match="version 9"):
        superblock.read_all(device)


def test_unknown_incompatible_features_of_the_newest_are_refused_and_of_an_older_one_passed_over() -> None:
    device = MemoryDevice(1 << 20)
    superblock.write(device, sample(7))
    superblock.write(device, replace(sample(8), features_incompatible=1 << 40))
    with pytest.raises(NewerFormat, match="0x10000000000"):
        superblock.read_all(device)
    superblock.write(device, sample(9))
    good, bad = superblock.read_all(device)
    assert [found.epoch for found, _ in good] == [9, 9]
    assert len(bad) == 2


def test_unknown_read_only_features_are_read_and_never_written(tmp_path: Path) -> None:
    path = image_with(tmp_path / "image", features_read_only=1 << 5)
    before = Path(path).read_bytes()
    device = FileDevice.open(path)
    with pytest.raises(UnsupportedFormat, match=r"0x20.*read-only"):
        Store.open(device)
    device.close()
    with Store.open(FileDevice.open(path), read_only=True) as store:
        assert store.read("c", "o") == b"bytes"
    result = check_image(path, Options(), lambda _: None)
    assert (result.errors, dict(result.codes)) == (0, {"superblock-features": 1})
    device = FileDevice.open(path)
    with pytest.raises(UnsupportedFormat, match="0x20"):
        plan(device, RepairOptions())
    device.close()
    assert Path(path).read_bytes() == before


def test_unknown_compatible_features_are_kept(tmp_path: Path) -> None:
    path = image_with(tmp_path / "image", features_compatible=1 << 9)
    with Store.open(FileDevice.open(path)) as store:
        store.apply(Transaction().write("c", "o", 0, b"other"))
        store.checkpoint()
        store.checkpoint()
    device = FileDevice.open(path)
    assert {found.features_compatible for found, _ in superblock.read_all(device)[0]} == {1 << 9}
    device.close()


def test_the_second_reader_refuses_what_the_engine_refuses(tmp_path: Path) -> None:
    path = image_with(tmp_path / "image")
    device = FileDevice.open(path)
    newest = superblock.read_all(device)[0][0][0]
    superblock.write(device, replace(newest, epoch=newest.epoch + 1, features_incompatible=1 << 40))
    device.close()
    with pytest.raises(NewerFormat, match="0x10000000000"):
        check_image(path, Options(), lambda _: None)
    assert run_dump(path, ()) == 8
