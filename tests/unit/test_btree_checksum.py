"""CRC-32C of the kernel agrees with two other implementations, by instruction and by table."""

from __future__ import annotations

import random

import crc32c as reference
import crcmod.predefined
import pytest

from mdstore.btree import crc32c, crc32c_blocks
from mdstore.btree._kernel import crc32c_table

SIZES = [0, 1, 7, 8, 9, 63, 575, 576, 577, 4079, 4080, 4081, 4092, 4096, 12241, 65536, 100_003]


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
