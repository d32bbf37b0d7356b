"""The format pages, the code, an independent checksum and the golden file say the same."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import crcmod.predefined
import pytest

from journal import Head, HeadLost, Journal, NoJournal, RingMedium, UnsupportedJournal
from journal.entry import HEADER, HEADER_SIZE, Header, decode_header, encode_header
from journal.head import _BODY, HEAD_SIZE, decode_head, newest_head
from journal.pointer import _BODY as _POINTER
from journal.pointer import POINTER_SIZE, Pointer, Side
from journal.simulation import CrashRegion

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden" / "journal-ring-v1.bin"
CODES = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}
crc = crcmod.predefined.mkCrcFun("crc-32c")


def table(page: str) -> list[tuple[int, int, str, str]]:
    """(offset, size, type, field) of the rows of a page's first layout table."""
    text = (ROOT / "docs" / "format" / page).read_text()
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (\w+) \| (\w+) \|", text, re.MULTILINE)
    return [(int(offset), int(size), kind, field) for offset, size, kind, field in rows]


def example(page: str) -> bytes:
    text = (ROOT / "docs" / "format" / page).read_text()
    lines = re.findall(r"^[0-9a-f]{4}  ((?:[0-9a-f]{2} ?)+)$", text, re.MULTILINE)
    return bytes.fromhex("".join(lines))


def struct_of(rows: list[tuple[int, int, str, str]]) -> str:
    return "<" + "".join(CODES.get(kind, f"{size}s") for _, size, kind, _ in rows)


@pytest.mark.parametrize(
    ("page", "code", "size"),
    [("journal.md", HEADER.format, HEADER_SIZE),
     ("journal-head.md", _BODY.format + "I", HEAD_SIZE),
     ("journal-pointer.md", _POINTER.format + "I", POINTER_SIZE)],
)  # fmt: skip
def test_page_and_struct_agree(page: str, code: str, size: int) -> None:
    rows = table(page)
    position = 0
    for offset, length, _, _ in rows:
        assert offset == position
        position += length
    assert position == size
    assert struct_of(rows) == code
    assert struct.calcsize(struct_of(rows)) == size


def test_entry_example_of_the_page() -> None:
    data = example("journal.md")
    assert data == encode_header(1, 5, 0x1234ABCD, 2, 7, 0x10000, 0xFF00, crc(b"hello")) + b"hello"
    header = decode_header(data)
    assert isinstance(header, Header)
    assert (header.length, header.log, header.end) == (5, 0x1234ABCD, 0x10000 + len(data))
    assert int.from_bytes(data[48:52], "little") == crc(data[:48])


def test_head_example_of_the_page() -> None:
    data = example("journal-head.md")
    head = decode_head(data)
    assert isinstance(head, Head)
    assert (head.log, head.generation, head.number, head.clean, head.allow_split) == (0x1234ABCD, 2, 5, True, False)
    assert head.encode() == data
    assert int.from_bytes(data[128:], "little") == crc(data[:128])


def test_pointer_example_of_the_page() -> None:
    assert example("journal-pointer.md") == Pointer(Side(1, 64, 2, 2), Side(), 7).encode()


def test_every_flipped_bit_of_a_header_is_noticed() -> None:
    data = encode_header(1, 5, 2, 3, 4, 5, 5, 6)
    for bit in range(HEADER_SIZE * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        assert isinstance(decode_header(damaged), str)
    for size in range(HEADER_SIZE):
        assert isinstance(decode_header(data[:size]), str)


def resealed(data: bytes, offset: int, value: bytes) -> bytes:
    """`data` with bytes replaced and its last four, the checksum, made right again."""
    changed = data[:offset] + value + data[offset + len(value) : -4]
    checksum: int = crc(changed)
    return changed + checksum.to_bytes(4, "little")


@pytest.mark.parametrize(
    ("offset", "value"),
    [(4, b"\x02"), (5, b"\x01"), (6, b"\0\0"), (8, b"\1\0\0\x40")],
    ids=["version", "flags", "type", "length"],
)
def test_header_with_a_right_checksum_and_a_wrong_field_is_refused(offset: int, value: bytes) -> None:
    assert isinstance(decode_header(resealed(encode_header(1, 5, 2, 3, 4, 5, 5, 6), offset, value)), str)


def test_every_flipped_bit_of_a_head_is_noticed() -> None:
    data = example("journal-head.md")
    for bit in range(HEAD_SIZE * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        assert isinstance(decode_head(bytes(damaged)), str)


def test_head_with_a_right_checksum_and_wrong_fields_is_refused() -> None:
    data = example("journal-head.md")
    for offset, value in ((8, b"\x02"), (10, b"\x04")):
        with pytest.raises(UnsupportedJournal):
            decode_head(resealed(data, offset, value))
    for offset, value in ((20, b"\1"), (104, b"\1"), (127, b"\1"), (32, b"\xff" * 8), (40, b"\xff" * 8), (64, b"\xff" * 8)):
        assert isinstance(decode_head(resealed(data, offset, value)), str)


def test_the_newer_intact_copy_counts() -> None:
    old = Head(log=1, generation=1, number=8, trimmed=0, expire=0, safe=0, next_sequence=1, generation_start=0)
    new = Head(log=1, generation=2, number=9, trimmed=0, expire=0, safe=0, next_sequence=1, generation_start=0)
    damaged = b"JRNLHEAD" + bytes(HEAD_SIZE)
    assert newest_head([old.encode(), new.encode()], "here") == new
    assert newest_head([new.encode(), old.encode()], "here") == new
    assert newest_head([old.encode(), damaged], "here") == old
    with pytest.raises(HeadLost):
        newest_head([damaged, b""], "here")
    with pytest.raises(NoJournal):
        newest_head([b"", bytes(300)], "here")


def test_golden_ring_of_version_1_is_still_read() -> None:
    """A ring of 256-byte blocks that wrapped: 40 entries appended and most of them trimmed, then one more, then closed."""
    content = GOLDEN.read_bytes()
    journal = Journal.open(RingMedium(CrashRegion(len(content), bytearray(content)), block_size=256), read_only=True)
    assert [(entry.type, entry.sequence, entry.payload) for entry in journal.entries()] == [(1, 41, b"tail")]
    assert (journal.log, journal.tail.kind, journal.generation) == (0xC0FFEE01, "clean", 2)
