"""The format pages' examples and tables, held against what the kernel writes, by a reader that shares no code with it."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import crcmod.predefined

from mdstore.btree._kernel import PAGE_HEADER_SIZE
from tests.model.btree_world import World, new_tree

PAGES = Path(__file__).resolve().parents[2] / "docs" / "format"
CRC = crcmod.predefined.mkCrcFun("crc-32c")


def hex_of(page: str, heading: str) -> bytes:
    """The bytes of all code blocks after a heading; a line may begin with a decimal offset of fewer than 4 digits."""
    text = (PAGES / page).read_text().split(heading)[1]
    blocks = re.findall(r"```\n(.*?)```", text, re.S)
    found = b""
    for line in "".join(blocks).splitlines():
        match = re.match(r"(?: *\d+  )?((?:[0-9a-f]{2} )*[0-9a-f]{2})(?:   |$)", line)
        assert match, line
        found += bytes.fromhex(match[1])
    return found


def example() -> tuple[World, bytes, bytes]:
    world = World(1, holes=False)
    tree = new_tree(world, 7, key_size=-1, value_size=-1, embed_limit=40)
    tree.user_blob = b"hi"
    tree.put(b"cat", b"tom")
    tree.put(b"dog", b"rex")
    world.pager.generation = 9
    embedded = world.seal(tree)
    tree.put(b"long", b"x" * 80)
    paged = world.seal(tree)
    world.write()
    return world, embedded, paged


def test_root_examples_are_what_is_written() -> None:
    _, embedded, paged = example()
    assert embedded + paged[-28:] == hex_of("tree-root.md", "## Examples")
    assert paged[1] == 6


def test_page_example_is_what_is_written() -> None:
    world, _, _ = example()
    page = bytes(world.device.image[256:512])
    shown = hex_of("page.md", "## Example")
    assert shown == page[:64] + page[192:]
    assert not any(page[64:192])
    assert bytes(world.device.image[512:592]) == b"x" * 80


def test_header_table_adds_up_and_parses_a_page() -> None:
    text = (PAGES / "page.md").read_text().split("## Header")[1].split("Slots follow")[0]
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (u\d+) \| (\w+) \|", text, re.M)
    end = 0
    for offset, size, kind, name in rows:
        assert (int(offset), int(size)) == (end, int(kind[1:]) // 8), name
        end += int(size)
    assert end == PAGE_HEADER_SIZE == struct.calcsize("<IIQQBBHIIHH")
    world, _, _ = example()
    page = bytes(world.device.image[256:512])
    crc, magic, tree_id, generation, level, kind, count, heap, dead, skip, reserved = struct.unpack_from(
        "<IIQQBBHIIHH", page
    )
    assert crc == CRC(page[4:])
    assert (magic.to_bytes(4, "little"), tree_id, generation) == (b"mbt1", 7, 9)
    assert (level, kind, count, heap, dead, skip, reserved) == (0, 1, 3, 198, 0, 0, 0)
