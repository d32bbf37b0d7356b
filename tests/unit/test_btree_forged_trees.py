"""Trees that no writer makes, under right checksums up to the root: what no page tells by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mdstore.btree import Tree
from mdstore.btree._kernel import PAGE_HEADER_SIZE
from mdstore.errors import CorruptionError
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.problems import Damage
from mdstore.tools.reader.tree import Tree as ReaderTree
from tests.model.btree_forger import (
    INDEX,
    LEAF,
    LEVELS,
    OVERFLOW,
    PAGE,
    SPILLED_BELOW,
    SPILLS,
    Forger,
    damage,
    empty,
    key,
    mixed,
    plain,
    set16,
    set_key,
    spilling,
    u16,
)
from tests.model.btree_world import World, new_tree


def test_an_address_that_no_device_has_is_damage_wherever_it_stands() -> None:
    for address in (1 << 48, 1 << 63, (1 << 64) - 1):
        forger = plain()
        at = forger.path(LEAF)[-1][1]
        forger.forge(INDEX, lambda page, at=at, to=address: page.__setitem__(slice(at, at + 8), to.to_bytes(8, "little")))
        error = damage(forger.open())
        assert f"address {address}, tree" in error.where
        assert "(page address)" in error.where
    forger = plain()
    forger.forge(INDEX, lambda page: page.__setitem__(slice(at, at + 8), (1 << 40).to_bytes(8, "little")))
    assert "page address outside the device" in damage(forger.open()).where


def test_an_overflow_index_page_has_as_many_entries_as_its_value_needs_when_it_is_written_to() -> None:
    forger = spilling()
    address = forger.forge(OVERFLOW, lambda page: set16(page, 26, u16(page, 26) - 1))
    assert forger.open().get(b"0020") == b"L" * PAGE * 45, "reading follows from the length alone"
    with pytest.raises(CorruptionError) as caught:
        forger.open().write(b"0020", PAGE, b"w")
    assert f"address {address}, tree 7, level 1 (overflow index count)" in caught.value.where
    assert int(str(caught.value.expected), 16) == int(str(caught.value.found), 16) + 1


# -- what no page alone can tell: Tree.check ---------------------------------------------------------------------------
def second_leaf_with(change: Callable[[bytearray], object]) -> Forger:
    forger = mixed()
    forger.forge(LEAF, change)
    return forger


def test_the_check_states_a_key_below_its_separator() -> None:
    forger = second_leaf_with(lambda page: set_key(page, 0, b"\1" + key(page, 0)[1:]))
    (problem,) = forger.open().check()
    assert problem.startswith("T1: key b'\\x01")
    separator = key(forger.page(forger.path(INDEX)[0][0]), 1)
    assert f"is below its separator {separator!r} at address {forger.path(LEAF)[-1][0]}" in problem


def test_the_check_states_a_key_above_the_next_separator() -> None:
    forger = second_leaf_with(lambda page: set_key(page, u16(page, 26) - 1, b"\xff" + key(page, u16(page, 26) - 1)[1:]))
    (problem,) = forger.open().check()
    assert problem.startswith("T1: key b'\\xff")
    assert f"is not below the next separator {key(forger.page(forger.path(INDEX)[0][0]), 2)!r}" in problem


def test_the_check_states_an_empty_leaf() -> None:
    forger = mixed()
    address = forger.path(LEAF)[-1][0]
    held = u16(forger.page(address), 26)
    forger.forge(LEAF, empty, records=-held)
    assert forger.open().check() == [f"T5: empty leaf at address {address}, tree 7, level 0"]


# -- what references and the root record count -------------------------------------------------------------------------
def second_reader(forger: Forger, path: Path) -> list[str]:
    """What the reader that shares no code with the kernel has to say of the whole tree."""
    image = forger.world.device.image
    path.write_bytes(bytes(image[: len(image) // PAGE * PAGE]))
    found: list[Damage] = []
    with Image(str(path)) as pages:
        list(ReaderTree(pages, PAGE, bytes(forger.root), on_damage=found.append).items())
    return sorted({damage.code for damage in found})


@pytest.mark.parametrize("kind", [LEAF, INDEX])
@pytest.mark.parametrize("off", [1, -1, 1 << 33, SPILLED_BELOW], ids=["more", "less", "far more", "spilled"])
def test_a_page_holds_as_many_records_as_its_reference_counts(kind: str, off: int, tmp_path: Path) -> None:
    forger = mixed()
    assert second_reader(forger, tmp_path / "pages") == []
    at = forger.path(kind)[-1][1] + 8 + 12
    above = forger.root if kind == INDEX else forger.page(forger.path(INDEX)[0][0])
    held = int.from_bytes(above[at : at + 8], "little")
    address = forger.forge(kind, lambda page: None, records=off)
    error = damage(forger.open())
    assert error.where == f"address {address}, tree 7, level {LEVELS[kind]} (records below)"
    assert (error.expected, error.found) == (hex(held + off), hex(held))
    assert second_reader(forger, tmp_path / "pages") == ["tree-count"]


def test_a_leaf_in_which_a_value_has_spilled_is_marked_in_its_reference(tmp_path: Path) -> None:
    """By it a leaf is read, or is not, when what is below it is given up."""
    forger = spilling()
    assert second_reader(forger, tmp_path / "pages") == []
    address = forger.forge(SPILLS, lambda page: None, records=-SPILLED_BELOW)
    assert damage(forger.open()).where == f"address {address}, tree 7, level 0 (records below)"
    assert second_reader(forger, tmp_path / "pages") == ["tree-count"]


# -- limits of cells: what the tree writes, the check takes ------------------------------------------------------------
@pytest.mark.parametrize("page_size", [256, 512, 4096, 65536])
@pytest.mark.parametrize("copies", [1, 3])
def test_the_largest_cells_a_tree_writes_are_those_the_check_takes(page_size: int, copies: int) -> None:
    """A value stays in its leaf up to a quarter of the page, and its slot and cell up to half: a byte more, and it spills."""
    usable = page_size - PAGE_HEADER_SIZE
    longest = min(1024, usable // 3 - 28 - 8 * copies)
    for size in {longest, longest // 2, longest - 8, 1}:
        fits = min(usable // 4, usable // 2 - 10 - size)
        world = World(1, page_size=page_size, holes=False)
        tree = new_tree(world, copies=copies)
        for n, value in enumerate((fits - 1, fits, fits + 1)):
            tree.put(bytes([n]) + b"k" * (size - 1), b"v" * value)
        root = world.seal(tree)
        world.write()
        again = Tree.open(world.pager, root)
        assert again.check() == []
        assert again.get(bytes(1) + b"k" * (size - 1)) is not None
        assert again.get(bytes([2]) + b"k" * (size - 1)) is not None
        for n, value in enumerate((fits - 1, fits, fits + 1)):
            before = world.pager.counters()["pages_read"]
            assert again.get(bytes([n]) + b"k" * (size - 1)) == b"v" * value
            spilled = -(-value // page_size) if value > fits else 0
            assert world.pager.counters()["pages_read"] == before + spilled
