"""The second reader's decoders: the examples of the pages, and damage of every byte."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from random import Random

import msgspec
import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.errors import MdstoreError, NotAnImage, UnsupportedFormat
from mdstore.store import Store, Transaction
from mdstore.tools.reader import entry, mds_directory, mds_events, mds_inode, mds_tables, superblock
from mdstore.tools.reader.check_names import name_tag
from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.kinds import KINDS
from mdstore.tools.reader.onode import decode_collection, decode_extent, decode_onode
from mdstore.tools.reader.packed import decode as decode_packed
from mdstore.tools.reader.problems import Damage
from mdstore.tools.reader.sorting import Sorter
from mdstore.tools.reader.storelog import decode_transaction

PAGES = Path(__file__).resolve().parents[2] / "docs" / "format"


def example(page: str, heading: str = "## Example") -> bytes:
    """The bytes of a page's worked example: lines of an offset and hex pairs."""
    text = (PAGES / page).read_text().split(heading, 1)[1].split("```")[1]
    lines = re.findall(r"^[0-9a-f]{4} ((?: {1,2}[0-9a-f]{2})+)", text, re.MULTILINE)
    return bytes.fromhex("".join(lines))


def test_the_pages_own_examples_decode() -> None:
    header = entry.decode_header(example("journal.md"))
    assert header is not None
    assert (header.type, header.length, header.log, header.sequence, header.safe) == (1, 5, 0x1234ABCD, 7, 65280)
    assert crc32c(example("journal.md")[52:]) == header.payload_crc
    head = entry.decode_head(example("journal-head.md"))
    assert head is not None
    assert (head.number, head.is_clean, head.unit) == (5, True, 65536)
    directory = mds_directory.decode_header(example("mds-directory.md"))
    assert (directory.version, directory.rbytes, directory.rfiles, directory.inode.ino) == (2, 5, 1, 1)
    found = mds_inode.decode_entry(example("mds-inode.md"))
    assert found.inode is not None
    assert (found.ino, found.inode.uid, mds_inode.xattrs_of(found.inode)) == (17, 1000, {b"user.k": b"v"})
    assert mds_tables.decode_server(example("mds-tables.md")).object_size == 64 << 20
    assert decode_transaction(bytes.fromhex("9301c091930bc40163c4016f")).operations[0].name == "TOUCH"


def test_an_event_decodes_into_its_records() -> None:
    inode = example("mds-inode.md")
    start = example("mds-events.md")[: 88 + 24 + 1]
    payload = start[:92] + len(inode).to_bytes(4, "little") + start[96:] + inode
    touch, name = mds_events.decode_event(1, payload)
    assert isinstance(touch, mds_events.DirTouch)
    assert isinstance(name, mds_events.EntrySet)
    assert (touch.directory, touch.version, name.name, name.value) == (1, 2, b"a", inode)
    for cut in range(1, len(payload)):
        if cut != 88:
            with pytest.raises(Damage):
                mds_events.decode_event(1, payload[:cut])


@pytest.mark.parametrize(
    "value",
    [None, True, False, 0, 127, 128, 255, 65535, 1 << 40, (1 << 64) - 1, -1, -33, -(1 << 40), 1.5, "text", "x" * 300, b"",
     b"y" * 70000, [], [1, [2, [b"z"]]], list(range(20)), {"a": 1, "b": [None]}, {str(i): i for i in range(40)}],
    ids=lambda value: str(value)[:20],
)  # fmt: skip
def test_messagepack_agrees_with_another_implementation(value: object) -> None:
    data = msgspec.msgpack.encode(value)
    assert decode_packed(data, "log-entry") == value
    for cut in range(len(data)):
        with pytest.raises(Damage):
            decode_packed(data[:cut], "log-entry")
    with pytest.raises(Damage):
        decode_packed(data + b"\0", "log-entry")


@pytest.mark.parametrize(
    "data", [b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 100 + b"\xc0", b"\xc1", b"\xd9\x01\xff"]
)
def test_hostile_messagepack_is_damage_at_once(data: bytes) -> None:
    with pytest.raises(Damage):
        decode_packed(data, "log-entry")


SAMPLES = {
    "inode entry": (mds_inode.decode_entry, example("mds-inode.md")),
    "directory": (mds_directory.decode_header, example("mds-directory.md")),
    "server": (mds_tables.decode_server, example("mds-tables.md")),
    "onode": (decode_onode, bytes([1, 1, 1, 0]) + bytes(32) + b"\3\0\0\0abc" + b"\1\0\2\0\0\0kvv"),
    "collection": (decode_collection, bytes([1, 0, 0, 0, 7]) + bytes(15)),
    "extent": (
        lambda data: decode_extent(bytes(8), data),
        b"\x34\x12" + bytes(6) + b"\2\0\0\0" + bytes(8) + b"abcdefgh",
    ),
    "log entry": (decode_transaction, bytes.fromhex("9301c091930bc40163c4016f")),
    "head": (entry.decode_head, example("journal-head.md")),
    "entry": (entry.decode_header, example("journal.md")),
}


def code_of(decoder: Callable[[bytes], object], data: bytes) -> str | None:
    """The code of the damage that decoding meets; None when it decodes."""
    try:
        decoder(data)
    except Damage as damage:
        return damage.code
    return None


@pytest.mark.parametrize("name", SAMPLES)
def test_every_mutation_decodes_or_is_damage(name: str) -> None:
    decoder, data = SAMPLES[name]
    decoder(data)
    for at in range(len(data)):
        for value in {0, 1, 0x7F, 0x80, 0xFF, data[at] ^ 1}:
            mutated = data[:at] + bytes([value]) + data[at + 1 :]
            assert code_of(decoder, mutated) in {None, *KINDS}
    for cut in range(len(data)):
        assert code_of(decoder, data[:cut]) in {None, *KINDS}


def superblock_bytes() -> bytes:
    device = MemoryDevice(1 << 20)
    store = Store.create(device, block_size=512, log_bytes=64 << 10, background=False)
    store.apply(Transaction().create_collection("c"))
    store.close()
    copies = [device.image()[at : at + 4096] for at in (0, 4096)]
    return max(copies, key=lambda data: superblock.decode(data).epoch)


def test_every_flipped_bit_of_a_superblock_is_noticed() -> None:
    data = superblock_bytes()
    assert superblock.decode(data).block_size == 512
    for at in range(0, len(data), 3):
        mutated = bytearray(data)
        mutated[at] ^= 1 << (at % 8)
        with pytest.raises((Damage, NotAnImage, UnsupportedFormat)):
            superblock.decode(bytes(mutated))


def test_impossible_fields_under_a_right_checksum_are_damage() -> None:
    data = superblock_bytes()
    for at, size in ((56, 8), (64, 4), (68, 4), (80, 8), (88, 8), (144, 8), (176, 16), (192, 2)):
        mutated = bytearray(data)
        mutated[at : at + size] = b"\xff" * size if at != 56 else bytes(size)
        mutated[8:12] = crc32c(bytes(mutated[12:])).to_bytes(4, "little")
        with pytest.raises(MdstoreError):
            superblock.decode(bytes(mutated))


def test_a_sorter_that_spills_gives_everything_back_in_order() -> None:
    random = Random(7)
    records = [random.randbytes(12) for _ in range(5000)]
    sorter = Sorter(12, run_records=700)
    for record in records:
        sorter.add(record)
        sorter.settle()
    assert list(sorter) == sorted(records)
    sorter.close()


def test_name_tags_tell_names_apart() -> None:
    names = [b"%d" % number for number in range(20000)]
    assert len({name_tag(name) for name in names}) == len(names)
