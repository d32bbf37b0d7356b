"""Pages that no writer makes, under right checksums up to the root: one row for each thing that is checked, with its evidence."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import crc32c as reference
import pytest

from mdstore.btree import Tree
from mdstore.btree._kernel import PAGE_HEADER_SIZE
from mdstore.errors import CorruptionError
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.problems import Damage
from mdstore.tools.reader.tree import Tree as ReaderTree
from tests.model.btree_world import World, new_tree

PAGE = 512
MAGIC = 0x3174626D
SPILLED = 0xFFFE
SPILLED_BELOW = 1 << 63  # in the count of a reference
LEAF, INDEX, SPILLS, OVERFLOW, DATA = "leaf", "index", "leaf of a long value", "overflow index", "overflow page"
LEVELS = {LEAF: 0, INDEX: 1, SPILLS: 0, OVERFLOW: 1, DATA: 0}


def u16(page: bytearray, at: int) -> int:
    return int.from_bytes(page[at : at + 2], "little")


def set16(page: bytearray, at: int, value: int) -> None:
    page[at : at + 2] = value.to_bytes(2, "little")


def set32(page: bytearray, at: int, value: int) -> None:
    page[at : at + 4] = value.to_bytes(4, "little")


def add64(page: bytearray, at: int, value: int) -> None:
    total = int.from_bytes(page[at : at + 8], "little") + value
    page[at : at + 8] = (total & (1 << 64) - 1).to_bytes(8, "little")


def cell(page: bytearray, slot: int) -> tuple[int, int]:
    """Offset and key length of a cell."""
    return u16(page, PAGE_HEADER_SIZE + 8 * slot + 4), u16(page, PAGE_HEADER_SIZE + 8 * slot + 6)


def behind_key(page: bytearray, slot: int) -> int:
    return sum(cell(page, slot))


def spilled_slot(page: bytearray) -> int:
    return next(n for n in range(u16(page, 26)) if u16(page, behind_key(page, n)) == SPILLED)


class Forger:
    """A sealed tree of two levels whose pages can be changed, each with the references above it made right.

    The root is an index page; of its leaves the second is the one to be forged, or the one in which a value has spilled."""

    def __init__(self, **fields: object) -> None:
        self.world = World(1, page_size=PAGE, holes=False)
        self.tree = new_tree(self.world, **fields)
        self.copies = self.tree.descriptor.copies

    def seal(self) -> None:
        self.root = bytearray(self.world.seal(self.tree))
        self.world.write()
        assert self.tree.height == 2
        self.expected = list(self.tree.items())

    def page(self, address: int) -> bytearray:
        return bytearray(self.world.device.image[address * PAGE : address * PAGE + PAGE])

    def put(self, address: int, page: bytearray) -> None:
        self.world.device.image[address * PAGE : address * PAGE + PAGE] = page

    def path(self, kind: str) -> list[tuple[int, int]]:
        """(address of a page, where the page above it, or the root record, keeps its reference) from the root down."""
        at = len(self.root) - 8 * self.copies - 20
        path = [(int.from_bytes(self.root[at : at + 8], "little"), at)]
        if kind == INDEX:
            return path
        index = self.page(path[0][0])
        leaves = [behind_key(index, n) for n in range(u16(index, 26))]
        found = [(int.from_bytes(index[at : at + 8], "little"), at) for at in leaves]
        if kind == LEAF:
            return [*path, found[1]]
        for address, at in found:
            leaf = self.page(address)
            slots = range(u16(leaf, 26))
            if any(u16(leaf, behind_key(leaf, n)) == SPILLED for n in slots):
                path.append((address, at))
                at = behind_key(leaf, spilled_slot(leaf)) + 2 + 16
                path.append((int.from_bytes(leaf[at : at + 8], "little"), at))
        if kind == SPILLS:
            path.pop()
        if kind == DATA:
            top = self.page(path[-1][0])
            path.append((int.from_bytes(top[40:48], "little"), 40))
        return path

    def forge(
        self, kind: str, edit: Callable[[bytearray], object], *, own_crc: int = 0, last_crc: int = 0, records: int = 0
    ) -> int:
        """Change a page, its checksum and those of all above; its address. `own_crc`, `last_crc`: what is added to the checksum
        in the page itself, and to that in its reference; `records`: to what the references and the root record count."""
        path = self.path(kind)
        page = self.page(path[-1][0])
        edit(page)
        off = last_crc
        for number in range(len(path) - 1, -1, -1):
            address, at = path[number]
            raw = kind == DATA and number == len(path) - 1
            crc = reference.crc32c(bytes(page) if raw else bytes(page[4:]))
            if not raw:
                set32(page, 0, crc + own_crc & 0xFFFFFFFF)
            self.put(address, page)
            page = self.page(path[number - 1][0]) if number else self.root
            set32(page, at + 8 * self.copies, crc + off & 0xFFFFFFFF)
            if records:
                add64(page, at + 8 * self.copies + 12, records)
            own_crc = off = 0
        if abs(records) < SPILLED_BELOW:
            add64(self.root, 24, records)
        return path[-1][0]

    def open(self) -> Tree:
        return Tree.open(self.world.pager, bytes(self.root))


def plain() -> Forger:
    """Keys of one prefix, so that slot heads skip it."""
    forger = Forger()
    forger.tree.update((b"name%04d" % n, b"%d" % n * 5) for n in range(40))
    forger.seal()
    return forger


def mixed() -> Forger:
    """Keys without a prefix."""
    forger = Forger()
    forger.tree.update((bytes([n * 5]) + b"%d" % n, b"%d" % n * 12) for n in range(1, 50))
    forger.seal()
    return forger


def spilling() -> Forger:
    """A value of 25 pages: a level of overflow index."""
    forger = Forger()
    forger.tree.update((b"%04d" % n, b"%d" % n * 3) for n in range(40))
    forger.tree.put(b"0020", b"L" * PAGE * 45)
    forger.seal()
    return forger


def pairs() -> Forger:
    forger = Forger(comparator=6)
    forger.tree.update((struct.pack("<H2sH3s", 2, b"%02d" % n, 3, b"abc"), b"v" * 20) for n in range(40))
    forger.seal()
    return forger


def several() -> Forger:
    forger = Forger(duplicates=True)
    forger.tree.update((b"%04d" % n, b"v%d" % n) for n in range(50))
    forger.seal()
    return forger


def sized() -> Forger:
    """Keys of a fixed size, not in the order of bytes; values of a fixed size that are kept with their length all the same."""
    forger = Forger(key_size=8, value_size=110, comparator=4)
    forger.tree.update((n.to_bytes(8, "little"), b"v" * 110) for n in range(20))
    forger.seal()
    return forger


def numbers() -> Forger:
    forger = Forger(key_size=8, value_size=4, comparator=2)
    forger.tree.update((n.to_bytes(8, "little"), b"four") for n in range(50))
    forger.seal()
    return forger


def twice() -> Forger:
    forger = Forger(copies=2)
    forger.tree.update((b"%04d" % n, b"%d" % n * 5) for n in range(40))
    forger.seal()
    return forger


def head(page: bytearray, slot: int, key: bytes) -> None:
    page[PAGE_HEADER_SIZE + 8 * slot : PAGE_HEADER_SIZE + 8 * slot + 4] = key[:4][::-1]


def set_key(page: bytearray, slot: int, key: bytes, skip: int | None = None) -> None:
    """Another key of the same length, with its head."""
    at, size = cell(page, slot)
    assert len(key) == size
    page[at : at + size] = key
    head(page, slot, key[u16(page, 36) if skip is None else skip :].ljust(4, b"\0"))


def key(page: bytearray, slot: int) -> bytes:
    at, size = cell(page, slot)
    return bytes(page[at : at + size])


def shrink_heap(page: bytearray, by: int) -> None:
    set32(page, 28, u16(page, 28) - by)


def swap(page: bytearray, first: int, second: int) -> None:
    a, b = PAGE_HEADER_SIZE + 8 * first, PAGE_HEADER_SIZE + 8 * second
    page[a : a + 8], page[b : b + 8] = page[b : b + 8], page[a : a + 8]


def same_key_twice(page: bytearray) -> None:
    set_key(page, 1, key(page, 0))


def empty(page: bytearray) -> None:
    page[26:28] = bytes(2)
    page[40:] = bytes(PAGE - 40)
    set32(page, 28, PAGE)
    set32(page, 32, 0)
    set16(page, 36, 0)


def dead(page: bytearray, change: int) -> None:
    set32(page, 32, u16(page, 32) + change)


def cell_past_the_page(page: bytearray) -> None:
    """Its key ends with the page, and its value would lie behind."""
    at = PAGE_HEADER_SIZE + 8
    set16(page, at + 4, PAGE - u16(page, at + 6))


def value_past_the_page(page: bytearray) -> None:
    last = max(range(u16(page, 26)), key=lambda slot: cell(page, slot)[0])
    set16(page, behind_key(page, last), 40)


def large_cell(page: bytearray) -> None:
    """One cell of the leaf: a key and a value as long as each may be, and too much together."""
    empty(page)
    cells = b"k" * 109 + (118).to_bytes(2, "little") + b"v" * 118
    page[PAGE - len(cells) :] = cells
    set16(page, 26, 1)
    set32(page, 28, PAGE - len(cells))
    page[40:48] = b"kkkk" + (PAGE - len(cells)).to_bytes(2, "little") + (109).to_bytes(2, "little")


def long_key(page: bytearray) -> None:
    empty(page)
    cells = b"k" * 122 + (2).to_bytes(2, "little") + b"vv"
    page[PAGE - len(cells) :] = cells
    set16(page, 26, 1)
    set32(page, 28, PAGE - len(cells))
    page[40:48] = b"kkkk" + (PAGE - len(cells)).to_bytes(2, "little") + (122).to_bytes(2, "little")


def pointer_for_generation(page: bytearray) -> None:
    """What a body in memory has there, where the address of its bytes follows."""
    at = behind_key(page, spilled_slot(page)) + 10
    page[at : at + 8] = b"\xff" * 8


def first_separator_with_a_key(page: bytearray) -> None:
    at, _ = cell(page, 0)
    set16(page, PAGE_HEADER_SIZE + 4, at - 1)
    set16(page, PAGE_HEADER_SIZE + 6, 1)


@dataclass(frozen=True)
class Row:
    scene: Callable[[], Forger]
    page: str
    edit: Callable[[bytearray], object]
    what: str
    expected: int = 0
    found: int = 0


def generation(page: bytearray) -> None:
    page[16] += 3


def overlap(page: bytearray) -> None:
    """A value two bytes longer than its place, into the cell behind it; the heap is made longer by as much."""
    count = u16(page, 26)
    slot = min(range(count), key=lambda n: u16(page, PAGE_HEADER_SIZE + 8 * n + 4))
    set16(page, behind_key(page, slot), u16(page, behind_key(page, slot)) + 2)
    set32(page, 28, u16(page, 28) - 2)


ROWS = {
    # who the page says it is
    "magic": Row(plain, LEAF, lambda page: set32(page, 4, 0x74736574), "page magic", MAGIC, 0x74736574),
    "magic of an index page": Row(plain, INDEX, lambda page: set32(page, 4, 0x74736574), "page magic", MAGIC, 0x74736574),
    "tree": Row(plain, LEAF, lambda page: set32(page, 8, 9), "page tree id", 7, 9),
    "tree above 32 bits": Row(plain, LEAF, lambda page: set32(page, 12, 1), "page tree id", 7, (1 << 32) + 7),
    "level": Row(plain, LEAF, lambda page: page.__setitem__(24, 2), "page level", 0, 2),
    "level of an index page": Row(plain, INDEX, lambda page: page.__setitem__(24, 2), "page level", 1, 2),
    "generation": Row(plain, LEAF, generation, "page generation", 1, 4),
    "generation of an index page": Row(plain, INDEX, generation, "page generation", 1, 4),
    # its header
    "kind of a leaf": Row(plain, LEAF, lambda page: page.__setitem__(25, 2), "page kind"),
    "kind of an index page": Row(plain, INDEX, lambda page: page.__setitem__(25, 1), "page kind"),
    "kind of an overflow page": Row(plain, LEAF, lambda page: page.__setitem__(25, 4), "page kind"),
    "heap past the page": Row(plain, LEAF, lambda page: set32(page, 28, PAGE + 1), "heap bounds"),
    "heap past all": Row(plain, LEAF, lambda page: set32(page, 28, 0xFFFFFFFF), "heap bounds"),
    "more dead than the page has": Row(plain, LEAF, lambda page: set32(page, 32, 0xFFFFFF00), "heap bounds"),
    "slots in the heap": Row(plain, LEAF, lambda page: set16(page, 26, 60), "record count"),
    "reserved bytes": Row(plain, LEAF, lambda page: set16(page, 38, 256), "record count"),
    "an index page without children": Row(plain, INDEX, empty, "record count"),
    "bytes in the gap": Row(plain, LEAF, lambda page: page.__setitem__(u16(page, 28) - 1, 1), "bytes in the gap"),
    "bytes behind the slots": Row(
        plain, LEAF, lambda page: page.__setitem__(PAGE_HEADER_SIZE + 8 * u16(page, 26), 1), "bytes in the gap"
    ),
    "cells and dead bytes beside the heap": Row(plain, LEAF, lambda page: dead(page, 1), "heap size"),
    "a heap longer than its cells": Row(plain, LEAF, lambda page: shrink_heap(page, 1), "heap size"),
    # cells
    "two cells that share bytes": Row(plain, LEAF, overlap, "cells overlap"),
    "a cell in the gap": Row(
        plain, LEAF, lambda page: set16(page, 44, u16(page, 28) - 1), "cell outside the heap"
    ),
    "a key past the page": Row(plain, LEAF, lambda page: set16(page, 44, PAGE - 3), "cell outside the heap"),
    "a value's length past the page": Row(plain, LEAF, cell_past_the_page, "cell outside the heap"),
    "a value past the page": Row(plain, LEAF, value_past_the_page, "cell outside the heap"),
    "a reference past the page": Row(plain, INDEX, lambda page: set16(page, 44, PAGE - 20), "cell outside the heap"),
    "a value too long for a leaf": Row(
        plain, LEAF, lambda page: set16(page, behind_key(page, 2), 119), "value size"
    ),
    "a value of another size": Row(sized, LEAF, lambda page: set16(page, behind_key(page, 0), 109), "value size"),
    "a cell too large": Row(mixed, LEAF, large_cell, "cell size"),
    "a spilled value without bytes": Row(
        spilling, SPILLS, lambda page: set16(page, behind_key(page, spilled_slot(page)) + 2, 0), "spilled value"
    ),
    "a spilled value longer than any": Row(
        spilling, SPILLS, lambda page: set32(page, behind_key(page, spilled_slot(page)) + 2, (1 << 30) + 1), "spilled value"
    ),
    "a spilled value longer than all": Row(
        spilling, SPILLS, lambda page: set32(page, behind_key(page, spilled_slot(page)) + 6, 0x80000000), "spilled value"
    ),
    "a pointer in place of a spilled value": Row(
        spilling,
        SPILLS,
        pointer_for_generation,
        "spilled value",
    ),
    # keys
    "a key too long": Row(mixed, LEAF, long_key, "key too long"),
    "a key of another size": Row(numbers, LEAF, lambda page: set16(page, 46, 7), "key size"),
    "a key without its length": Row(
        several, LEAF, lambda page: set16(page, behind_key(page, 2) - 2, 40), "key without its own length"
    ),
    "a pair whose first part is too long": Row(pairs, LEAF, lambda page: set16(page, cell(page, 1)[0], 7), "pair key"),
    "a pair whose first part is far too long": Row(pairs, LEAF, lambda page: set16(page, cell(page, 1)[0], 0xFFFF), "pair key"),
    "a pair whose second part is short": Row(pairs, LEAF, lambda page: set16(page, cell(page, 1)[0] + 4, 2), "pair key"),
    "a first separator with a key": Row(plain, INDEX, first_separator_with_a_key, "first separator"),
    "a first separator with a head": Row(plain, INDEX, lambda page: set32(page, 40, 1), "first separator"),
    "a skipped prefix where keys are not bytes": Row(sized, LEAF, lambda page: set16(page, 36, 3), "prefix"),
    "a skipped prefix longer than a key": Row(mixed, LEAF, lambda page: set16(page, 36, 30), "prefix"),
    "a key without the prefix": Row(plain, LEAF, lambda page: set_key(page, 3, b"nome" + key(page, 3)[4:]), "prefix"),
    "a head of another key": Row(plain, LEAF, lambda page: page.__setitem__(40, page[40] ^ 1), "slot head"),
    "keys in no order": Row(mixed, LEAF, lambda page: swap(page, 1, 2), "key order"),
    "a key twice": Row(mixed, LEAF, same_key_twice, "key order"),
    "separators in no order": Row(mixed, INDEX, lambda page: swap(page, 1, 2), "key order"),
    "keys in no order behind equal heads": Row(
        several, LEAF, lambda page: swap(page, 1, 2), "key order"
    ),
    # overflow index pages
    "magic of an overflow index page": Row(spilling, OVERFLOW, lambda page: set32(page, 4, 1), "overflow index identity"),
    "tree of an overflow index page": Row(spilling, OVERFLOW, lambda page: set32(page, 8, 9), "overflow index identity"),
    "level of an overflow index page": Row(spilling, OVERFLOW, lambda page: page.__setitem__(24, 2), "overflow index identity"),
    "kind of an overflow index page": Row(spilling, OVERFLOW, lambda page: page.__setitem__(25, 3), "overflow index identity"),
    "generation of an overflow index page": Row(spilling, OVERFLOW, generation, "overflow index identity"),
}  # fmt: skip


def damage(tree: Tree) -> CorruptionError:
    """What reading everything once says."""
    with pytest.raises(CorruptionError) as caught:
        list(tree.items())
    return caught.value


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_what_a_page_says_is_checked_before_it_is_believed(row: Row) -> None:
    forger = row.scene()
    address = forger.forge(row.page, row.edit)
    error = damage(forger.open())
    assert error.what == "page"
    assert error.where == f"address {address}, tree 7, level {LEVELS[row.page]} ({row.what})"
    if row.page != OVERFLOW:
        assert (error.expected, error.found) == (hex(row.expected), hex(row.found))
    tree = forger.open()
    assert str(error) in tree.check() or row.page == OVERFLOW, "the check names it, and reads no spilled values"


@pytest.mark.parametrize("kind", [LEAF, INDEX, SPILLS, OVERFLOW, DATA])
def test_pages_that_are_forged_without_a_change_are_read(kind: str) -> None:
    """The forger itself: else a row would prove nothing."""
    forger = spilling()
    forger.forge(kind, lambda page: None)
    assert list(forger.open().items()) == forger.expected
    assert forger.open().check() == []


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        *((kind, where) for kind in (LEAF, INDEX, OVERFLOW) for where in ("in the reference", "in the page", "in both")),
        *((kind, "of the page") for kind in (LEAF, INDEX, OVERFLOW)),
        *((DATA, where) for where in ("in the reference", "of the page")),  # it has no header
    ],
)
def test_the_checksum_of_a_page_is_that_of_its_reference_and_its_own(kind: str, where: str) -> None:
    forger = spilling()
    path = forger.path(kind)
    before = forger.page(path[-1][0])
    right = reference.crc32c(bytes(before if kind == DATA else before[4:]))
    if where == "of the page":
        before[100] ^= 1
        forger.put(path[-1][0], before)
        wrong = reference.crc32c(bytes(before if kind == DATA else before[4:]))
        expected = (right, wrong)
    else:
        forger.forge(kind, lambda page: None, own_crc=int(where != "in the reference"), last_crc=int(where != "in the page"))
        expected = (right, right + 1) if where == "in the page" and kind != OVERFLOW else (right + 1, right)
    error = damage(forger.open())
    name = {LEAF: "page", INDEX: "page"}.get(kind, kind)
    assert error.where == f"address {path[-1][0]}, tree 7, level {LEVELS[kind]} ({name} checksum)"
    if where != "in the page" or kind != OVERFLOW:
        assert (error.expected, error.found) == tuple(hex(n & 0xFFFFFFFF) for n in expected)


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


@pytest.mark.parametrize("kind", [LEAF, INDEX])
def test_a_sound_copy_serves_where_the_first_is_forged(kind: str) -> None:
    """Each check sends the reader to the next copy, not the checksum alone."""
    for name, row in ROWS.items():
        if row.scene is not plain or row.page != kind:
            continue
        forger = twice()
        path = forger.path(kind)
        page = forger.page(path[-1][0])
        page[4] ^= 1  # the reference still has the sound page's checksum
        set32(page, 0, reference.crc32c(bytes(page[4:])))
        forger.put(path[-1][0], page)
        assert list(forger.open().items()) == forger.expected, name
        assert forger.world.pager.counters()["copies_repaired"] == 1


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
