"""The records of the name space against their pages, and against damage: every changed byte raises or decodes to something that
encodes to the same bytes again."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mdstore.errors import CorruptionError, MdstoreError, NotAnImage, UnsupportedFormat
from mdstore.mds import events, fnode, layout, records
from mdstore.mds.events import (
    Kind,
    client_request,
    decode_event,
    dir_remove,
    dir_set,
    entry_remove,
    entry_set,
    table_remove,
    table_set,
)
from mdstore.mds.inode import Directory, Inode
from mdstore.mds.layout import Tab

PAGES = Path(__file__).resolve().parents[2] / "docs" / "format"
SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "i64": 8}
MOMENT = 1_700_000_000_000_000_000


def rows(page: str, heading: str) -> list[tuple[int, int, str]]:
    """(offset, size, type) of the first table after the heading."""
    text = (PAGES / page).read_text()
    section = text[text.index(heading) :].split("\n\n| offset", 1)[1].split("\n\n", 1)[0]
    found = re.findall(r"^\| (\d+) \| (\d+) \| ([a-z0-9]+) \|", section, re.M)
    return [(int(offset), int(size), kind) for offset, size, kind in found]


@pytest.mark.parametrize(
    ("page", "heading", "size"),
    [
        ("mds-inode.md", "## Inode record", records.INODE_CORE.size),
        ("mds-inode.md", "An attribute is", records.XATTR_HEAD.size),
        ("mds-inode.md", "## Link", records.LINK.size),
        ("mds-inode.md", "Object 0 carries", layout.BACKTRACE.size),
        ("mds-directory.md", "## Header", fnode.FNODE.size),
        ("mds-events.md", "### DIR_TOUCH", events.DIR_TOUCH.size),
        ("mds-events.md", "### DIR_SET", events.DIR_SET.size),
        ("mds-events.md", "### ENTRY_SET", events.ENTRY_SET.size),
        ("mds-events.md", "### TABLE_SET", events.TABLE_ROW.size),
        ("mds-events.md", "### CLIENT_REQUEST", events.CLIENT_REQUEST.size),
        ("mds-tables.md", "## Server record", layout.SERVER.size),
        ("mds-tables.md", "## Session", layout.SESSION.size),
    ],
)
def test_the_page_gives_every_byte_of_the_struct(page: str, heading: str, size: int) -> None:
    end = 0
    for offset, length, kind in rows(page, heading):
        assert offset == end
        assert SIZES.get(kind, length) == length
        end = offset + length
    assert end == size


def test_the_pages_name_every_kind_record_and_table() -> None:
    text = (PAGES / "mds-events.md").read_text()
    kinds = re.findall(r"^\| (\d+) \| ([A-Z]+) \|", text, re.M)
    assert {int(number): name for number, name in kinds} == {kind.value: kind.name for kind in Kind}
    named = {name: int(code) for name, code in re.findall(r"([A-Z]+_[A-Z]+) \((\d)\)", text)}
    assert named == {rec.name: rec.value for rec in events.Rec}
    tables = re.findall(r"^\| (\d+) \| `(table\.[a-z]+)` \|", (PAGES / "mds-tables.md").read_text(), re.M)
    assert {int(number): name.encode() for number, name in tables} == {
        tab.value: name for tab, name in layout.TABLE_OBJECTS.items()
    }


def example(page: str) -> bytes:
    """The worked example of a page."""
    block = (PAGES / page).read_text().split("```\n0000")[1].split("```")[0]
    return bytes.fromhex("".join(line.split("  ", 1)[1] for line in ("0000" + block).strip().splitlines()))


def sample_file() -> Inode:
    node = Inode(17, 0o100644, 1000, 100, MOMENT, 1, b"a")
    node.size, node.flags, node.xattrs = 5, records.FLAG_DATA, {b"user.k": b"v"}
    return node


def sample_root() -> Directory:
    root = Directory(1, 0o040755, 0, 0, MOMENT, 1, b"")
    root.size = root.rfiles = 1
    root.version = root.change = 2
    return root


def test_the_examples_of_the_pages_are_what_the_code_writes() -> None:
    assert sample_file().entry_value() == example("mds-inode.md")
    root = sample_root()
    root.rbytes = 5
    assert root.encode_header() == example("mds-directory.md")
    value = Inode(17, 0o100644, 1000, 100, MOMENT, 1, b"a").entry_value()
    event = sample_root().touch_record() + entry_set(1, 2, b"a", value)
    assert len(event) == 218
    assert event[:128] == example("mds-events.md")
    record = layout.ServerRecord(bytes(range(16)), MOMENT, 64 << 20, 1 << 20, 4 << 20)
    assert layout.encode_server(record) == example("mds-tables.md")


def test_records_come_back_as_they_went() -> None:
    node = sample_file()
    assert records.decode_entry(node.entry_value(), "here") == node.record()
    assert node.encode() == records.encode_inode(node.record()) == node.entry_value()[1:]
    link = Inode(18, 0o120777, 0, 0, MOMENT, 1, b"s")
    link.target = b"t" * 4095
    assert records.decode_inode(link.encode(), "here").target == link.target
    root = sample_root()
    root.name, root.parent = b"n" * 255, 77
    assert fnode.decode_fnode(root.encode_header(), "here") == root.fnode()
    assert fnode.encode_fnode(root.fnode()) == root.encode_header()
    assert records.entry_ino(node.entry_value()) == 17
    assert records.entry_ino(records.encode_link(records.TAG_DIRECTORY, 4, 99)) == 99


def event_sample() -> bytes:
    value = sample_file().entry_value()
    return b"".join(
        [
            sample_root().touch_record(), entry_set(1, 2, b"a", value), entry_remove(1, 2, b"b"),
            dir_set(1, sample_root().encode_header()), dir_remove(9), table_set(2, b"key", b"value"), table_remove(3, b"k"),
            client_request(7, 1 << 40),
        ]
    )  # fmt: skip


def encode_record(record: events.Record) -> bytes:
    if isinstance(record, events.DirTouch):
        return events.DIR_TOUCH.pack(1, 0, 0, *record)
    if isinstance(record, events.DirSet):
        return dir_set(record.directory, fnode.encode_fnode(record.fnode))
    if isinstance(record, events.DirRemove):
        return dir_remove(*record)
    if isinstance(record, events.EntrySet):
        return entry_set(*record)
    if isinstance(record, events.EntryRemove):
        return entry_remove(*record)
    if isinstance(record, events.ClientRequest):
        return client_request(*record)
    return table_set(*record) if isinstance(record, events.TableSet) else table_remove(*record)


def again_event(raw: bytes) -> bytes:
    return b"".join(encode_record(record) for record in decode_event(raw, "sample"))


def again_entry(raw: bytes) -> bytes:
    found = records.decode_entry(raw, "sample")
    if isinstance(found, records.Link):
        return records.encode_link(*found)
    return records.PRIMARY + records.encode_inode(found)


def again_fnode(raw: bytes) -> bytes:
    return fnode.encode_fnode(fnode.decode_fnode(raw, "sample"))


def again_server(raw: bytes) -> bytes:
    return layout.encode_server(layout.decode_server(raw))


def again_backtrace(raw: bytes) -> bytes:
    return layout.encode_backtrace(*layout.decode_backtrace(raw, "sample"))


def again_session(raw: bytes) -> bytes:
    return layout.encode_session(layout.decode_session(raw, "sample"))


def again_done(raw: bytes) -> bytes:
    return layout.encode_done(layout.decode_done(raw, "sample"))


SAMPLES: list[tuple[Callable[[bytes], bytes], bytes]] = [
    (again_event, event_sample()),
    (again_entry, sample_file().entry_value()),
    (again_entry, records.encode_link(records.TAG_REMOTE, 8, 17)),
    (again_fnode, sample_root().encode_header()),
    (again_server, example("mds-tables.md")),
    (again_backtrace, layout.encode_backtrace(1, b"name", sample_file().encode())),
    (again_session, layout.encode_session(layout.SessionRecord(layout.SessionState.STALE, 1 << 33, MOMENT, b"client"))),
    (again_done, layout.encode_done(layout.Done(17, 1, b"name"))),
    (again_done, layout.encode_done(layout.NOTHING_MADE)),
]


@pytest.mark.parametrize(("again", "raw"), SAMPLES)
def test_every_changed_byte_is_refused_or_read_as_it_stands(again: Callable[[bytes], bytes], raw: bytes) -> None:
    assert again(raw) == raw
    for at in range(len(raw)):
        for change in (1, 0x80, 0xFF):
            damaged = raw[:at] + bytes([raw[at] ^ change]) + raw[at + 1 :]
            try:
                assert again(damaged) == damaged, f"byte {at}"
            except MdstoreError:
                continue


@pytest.mark.parametrize(("again", "raw"), SAMPLES[1:])
def test_every_cut_is_refused_or_read_as_it_stands(again: Callable[[bytes], bytes], raw: bytes) -> None:
    for length in range(len(raw)):
        try:
            assert again(raw[:length]) == raw[:length]
        except MdstoreError:
            continue


def test_evidence_names_the_place() -> None:
    with pytest.raises(CorruptionError, match="meta/17"):
        records.decode_entry(b"\0" * 105, "meta/17")
    with pytest.raises(CorruptionError, match="offset 88"):
        list(decode_event(sample_root().touch_record() + b"\0", "position 4096"))
    with pytest.raises(NotAnImage):
        layout.decode_server(b"")
    raw = bytearray(example("mds-tables.md"))
    raw[6] = 2
    with pytest.raises(UnsupportedFormat):
        layout.decode_server(bytes(raw))


@pytest.mark.parametrize("ino", [0, records.INO_END, 1 << 63, (1 << 64) - 1])
def test_numbers_of_inodes_end_at_the_first_of_a_snapshot(ino: int) -> None:
    """A number from there on was taken, by what looks into snapshots, for one inside some snapshot."""
    link = records.encode_link(records.TAG_REMOTE, 8, records.INO_END - 1)
    assert records.decode_entry(link, "here").ino == records.INO_END - 1
    entry = example("mds-inode.md")
    for raw in (link[:4] + ino.to_bytes(8, "little"), entry[:9] + ino.to_bytes(8, "little") + entry[17:]):
        with pytest.raises(CorruptionError, match="number below 2"):
            records.decode_entry(raw, "here")


def test_a_directory_never_stands_inside_an_entry() -> None:
    with pytest.raises(CorruptionError):
        records.decode_entry(records.PRIMARY + sample_root().encode(), "meta/1")


def test_tables_have_the_numbers_of_the_page() -> None:
    assert [tab.value for tab in Tab] == list(range(1, len(Tab) + 1))
