"""CRC-32C of the kernel agrees with two other implementations, by instruction and by table."""

from __future__ import annotations

import random
from pathlib import Path

import crc32c as reference
import crcmod.predefined
import pytest

from mdstore.btree import Pager, crc32c, crc32c_blocks, read_blocks
from mdstore.btree._kernel import crc32c_table
from mdstore.device.file import FileDevice
from mdstore.errors import InvalidRequest

SIZES = [
    0, 1, 7, 8, 9, 63, 255, 511, 512, 513, 575, 576, 577, 767, 768, 1023, 1024, 1025, 4079, 4080, 4081, 4092, 4096, 12241, 65536,
    100_003,
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_crc32c_and_crcmod(size: int) -> None:
    data = random.Random(size).randbytes(size)
    expected = crcmod.predefined.mkCrcFun("crc-32c")(data)
    assert reference.crc32c(data) == expected
    assert crc32c(data) == expected
    assert crc32c_table(data) == expected
    assert crc32c(bytearray(data)) == expected
    assert crc32c(memoryview(data)) == expected


def test_check_value_of_the_standard() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_continues_from_a_value() -> None:
    data = random.Random(5).randbytes(9000)
    for cut in (0, 1, 13, 4096, 8999, 9000):
        assert crc32c(data[cut:], crc32c(data[:cut])) == crc32c(data)


def test_blocks_are_packed_little_endian_and_the_last_may_be_short() -> None:
    data = random.Random(6).randbytes(4096 * 2 + 5)
    packed = crc32c_blocks(data, 4096)
    expected = [reference.crc32c(data[at : at + 4096]) for at in (0, 4096, 8192)]
    assert [int.from_bytes(packed[at : at + 4], "little") for at in (0, 4, 8)] == expected
    assert len(packed) == 12
    assert crc32c_blocks(b"", 4096) == b""


@pytest.mark.parametrize("value", [0, 1, 0xFFFFFFFF, 0xE3069283])
def test_any_length_and_alignment_agrees_with_the_tables(value: int) -> None:
    data = random.Random(value).randbytes(3000)
    for size in range(500, 1100, 7):
        for skip in range(0, 64, 9):
            part = memoryview(data)[skip : skip + size]
            assert crc32c(part, value) == crc32c_table(part, value)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path, data = tmp_path_factory.mktemp("blocks") / "file", random.Random(7).randbytes((5 << 20) + 4096 + 100)
    path.write_bytes(data)
    return path, data


@pytest.mark.parametrize("block_size", [256, 4096, 65536])
@pytest.mark.parametrize("blocks", [0, 1, 7, 40])
def test_blocks_are_read_with_their_checksums(content: tuple[Path, bytes], block_size: int, blocks: int) -> None:
    path, data = content
    device = FileDevice.open(path)
    pager = Pager(device)
    for offset in (0, 100, 4096):
        expected = data[offset : offset + blocks * block_size]
        assert read_blocks(pager, offset, len(expected), block_size) == (expected, crc32c_blocks(expected, block_size))
    device.close()


def test_a_large_range_is_read_in_pieces(content: tuple[Path, bytes]) -> None:
    path, data = content
    device = FileDevice.open(path)
    pager = Pager(device)
    for length in (5 << 20, (1 << 18) - 4096, (1 << 18) + 4096):
        assert read_blocks(pager, 0, length, 4096) == (data[:length], crc32c_blocks(data[:length], 4096))
    device.close()


def test_blocks_past_the_end_or_of_no_file_are_none(content: tuple[Path, bytes]) -> None:
    path, data = content
    device = FileDevice.open(path)
    pager = Pager(device)
    assert read_blocks(pager, 4096, len(data) // 4096 * 4096, 4096) is None
    device.close()
    assert read_blocks(pager, 0, 4096, 4096) is None
    with pytest.raises(InvalidRequest):
        read_blocks(pager, 0, 4095, 4096)
