"""The superblock: every byte is covered, every copy counts, and what is passed over is said."""

from __future__ import annotations

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.errors import CorruptionError, MdstoreError, NotAnImage, UnsupportedFormat
from mdstore.store import superblock
from mdstore.store.superblock import SLOT_SIZE, Root, Superblock


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


def test_another_version_is_named() -> None:
    device = MemoryDevice(1 << 20)
    raw = bytearray(sample().encode())
    raw[12] = 9
    device.write(0, [bytes(raw)])
    with pytest.raises(UnsupportedFormat, match="version 9"):
        superblock.read_all(device)


def test_all_copies_damaged_is_damage_not_absence() -> None:
    device = MemoryDevice(1 << 20)
    superblock.write(device, sample())
    for offset in superblock.slot_offsets(device.size_bytes, 1):
        device.write(offset + 100, [b"\xff"])
    with pytest.raises(MdstoreError, match="damaged superblock"):
        superblock.read_all(device)
