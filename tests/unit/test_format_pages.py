"""The pages of docs/format say what the code does: the tables of fixed fields are read and held against the structs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mdstore.store import collections, extents, log, onode, snapshot_table, superblock
from mdstore.store.transaction import Op

PAGES = Path(__file__).resolve().parents[2] / "docs" / "format"
SIZES = {"u8": 1, "u16": 2, "u32": 4, "u64": 8, "i64": 8}


def fixed_fields(page: str, heading: str) -> list[tuple[int, int, str, str]]:
    """(offset, size, type, field) of the rows with a number for an offset, in the first table after the heading."""
    text = (PAGES / page).read_text()
    section = text[text.index(heading) + 1 :].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| (\d+) \| ([a-z0-9]+) \| ([a-z_ ]+) \|", section, re.M)
    return [(int(offset), int(size), kind, field) for offset, size, kind, field in rows]


@pytest.mark.parametrize(
    ("page", "heading", "size"),
    [
        ("superblock.md", "## Fields", superblock._HEAD.size + 2),
        ("onode.md", "## Collection tree", collections._RECORD.size),
        ("onode.md", "## Object tree", onode._HEAD.size),
        ("onode.md", "## Data tree", extents._HEAD.size),
        ("snapshots.md", "## Snapshots", snapshot_table._HEAD.size),
    ],
)
def test_fields_follow_one_another_and_add_up_to_the_struct(page: str, heading: str, size: int) -> None:
    fields = fixed_fields(page, heading)
    assert fields, f"{page} has no table after {heading}"
    end = 0
    for offset, length, kind, field in fields:
        assert offset == end, f"{page}: {field} begins at {offset}, the field before ends at {end}"
        assert SIZES.get(kind, length) == length, f"{page}: {field} is a {kind} of {length} bytes"
        end = offset + length
    assert end == size


def test_the_superblock_page_names_every_field() -> None:
    named = {field for _, _, _, field in fixed_fields("superblock.md", "## Fields")}
    held = set(superblock.Superblock.__slots__) - {"spare_runs", "roots"}
    assert held <= named, held - named


def test_the_log_page_names_every_operation() -> None:
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \| ?(.*?) ?\|$", (PAGES / "store-log.md").read_text(), re.M)
    assert {int(code): name for code, name, _ in rows} == {op.value: op.name for op in Op}
    for code, _, operands in rows:
        assert log._OPERANDS[int(code)] == len([part for part in operands.split(",") if part]), operands


def test_no_page_is_longer_than_a_reader_has_patience_for() -> None:
    for page in PAGES.glob("*.md"):
        assert len(page.read_text().splitlines()) <= 150, page
