"""Pages that no writer makes, under right checksums up to the root: one row for each thing that is checked, with its evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import crc32c as reference
import pytest

from mdstore.btree._kernel import PAGE_HEADER_SIZE
from tests.model.btree_forger import (
    DATA,
    INDEX,
    LEAF,
    LEVELS,
    OVERFLOW,
    PAGE,
    SPILLS,
    Forger,
    behind_key,
    cell,
    cell_past_the_page,
    damage,
    dead,
    empty,
    first_separator_with_a_key,
    generation,
    key,
    large_cell,
    long_key,
    mixed,
    numbers,
    overlap,
    pairs,
    plain,
    pointer_for_generation,
    same_key_twice,
    set16,
    set32,
    set_key,
    several,
    short_spill,
    shrink_heap,
    sized,
    spill_at,
    spilled_slot,
    spilling,
    swap,
    twice,
    u16,
    undated,
    value_past_the_page,
    younger,
)


@dataclass(frozen=True)
class Row:
    scene: Callable[[], Forger]
    page: str
    edit: Callable[[bytearray], object]
    evidence: str  # what is refused, and where in the page it stands
    expected: str
    found: str


ROWS = {
    # who the page says it is
    "magic": Row(plain, LEAF, lambda page: set32(page, 4, 0x74736574), "page magic, byte 4", "0x3174626d", "0x74736574"),
    "magic of an index page": Row(
        plain, INDEX, lambda page: set32(page, 4, 0x74736574), "page magic, byte 4", "0x3174626d", "0x74736574"
    ),
    "tree": Row(plain, LEAF, lambda page: set32(page, 8, 9), "page tree id, byte 8", "0x7", "0x9"),
    "tree above 32 bits": Row(plain, LEAF, lambda page: set32(page, 12, 1), "page tree id, byte 8", "0x7", "0x100000007"),
    "level": Row(plain, LEAF, lambda page: page.__setitem__(24, 2), "page level, byte 24", "0x0", "0x2"),
    "level of an index page": Row(plain, INDEX, lambda page: page.__setitem__(24, 2), "page level, byte 24", "0x1", "0x2"),
    "generation": Row(plain, LEAF, generation, "page generation, byte 16", "0x1", "0x4"),
    "generation of an index page": Row(plain, INDEX, generation, "page generation, byte 16", "0x1", "0x4"),
    # its header
    "kind of a leaf": Row(plain, LEAF, lambda page: page.__setitem__(25, 2), "page kind, byte 25", "0x1", "0x2"),
    "kind of an index page": Row(plain, INDEX, lambda page: page.__setitem__(25, 1), "page kind, byte 25", "0x2", "0x1"),
    "kind of an overflow page": Row(plain, LEAF, lambda page: page.__setitem__(25, 4), "page kind, byte 25", "0x1", "0x4"),
    "heap past the page": Row(
        plain, LEAF, lambda page: set32(page, 28, PAGE + 1), "heap bounds, byte 28", "at most 0x200", "0x201"
    ),
    "heap past all": Row(
        plain, LEAF, lambda page: set32(page, 28, 0xFFFFFFFF), "heap bounds, byte 28", "at most 0x200", "0xffffffff"
    ),
    "more dead than the page has": Row(
        plain, LEAF, lambda page: set32(page, 32, 0xFFFFFF00), "heap bounds, byte 32", "at most 0x200", "0xffffff00"
    ),
    "slots in the heap": Row(plain, LEAF, lambda page: set16(page, 26, 60), "record count, byte 26", "at most 0x13", "0x3c"),
    "reserved bytes": Row(plain, LEAF, lambda page: set16(page, 38, 256), "reserved bytes, byte 38", "0x0", "0x100"),
    "an index page without children": Row(plain, INDEX, empty, "record count, byte 26", "at least 0x1", "0x0"),
    "bytes in the gap": Row(
        plain, LEAF, lambda page: page.__setitem__(u16(page, 28) - 1, 1), "bytes in the gap, byte 191", "0x0", "0x1"
    ),
    "bytes behind the slots": Row(
        plain, LEAF, lambda page: page.__setitem__(PAGE_HEADER_SIZE + 8 * u16(page, 26), 1),
        "bytes in the gap, byte 168", "0x0", "0x1"
    ),
    "cells and dead bytes beside the heap": Row(plain, LEAF, lambda page: dead(page, 1), "heap size, byte 32", "0x140", "0x141"),
    "a heap longer than its cells": Row(plain, LEAF, lambda page: shrink_heap(page, 1), "heap size, byte 32", "0x141", "0x140"),
    # cells
    "two cells that share bytes": Row(plain, LEAF, overlap, "cells overlap, slot 15, byte 192", "at most 0xd4", "0xd6"),
    "a cell in the gap": Row(
        plain, LEAF, lambda page: set16(page, 44, u16(page, 28) - 1),
        "cell outside the heap, slot 0, byte 44", "at least 0xc0", "0xbf"
    ),
    "a key past the page": Row(
        plain, LEAF, lambda page: set16(page, 44, PAGE - 3), "cell outside the heap, slot 0, byte 46", "at most 0x3", "0x8"
    ),
    "a value's length past the page": Row(
        plain, LEAF, cell_past_the_page, "cell outside the heap, slot 1, byte 52", "at most 0x1f6", "0x1f8"
    ),
    "a value past the page": Row(
        plain, LEAF, value_past_the_page, "cell outside the heap, slot 0, byte 492", "at most 0x200", "0x21e"
    ),
    "a reference past the page": Row(
        plain, INDEX, lambda page: set16(page, 44, PAGE - 20), "cell outside the heap, slot 0, byte 492", "at most 0x200", "0x208"
    ),
    "a value too long for a leaf": Row(
        plain, LEAF, lambda page: set16(page, behind_key(page, 2), 119), "value size, slot 2, byte 460", "at most 0x76", "0x77"
    ),
    "a value of another size": Row(
        sized, LEAF, lambda page: set16(page, behind_key(page, 0), 109), "value size, slot 0, byte 400", "0x6e", "0x6d"
    ),
    "a cell too large": Row(mixed, LEAF, large_cell, "cell size, slot 0, byte 283", "at most 0xe4", "0xe5"),
    "a spilled value without bytes": Row(
        spilling, SPILLS, lambda page: set16(page, behind_key(page, spilled_slot(page)) + 2, 0),
        "spilled value, slot 20, byte 246", "at least 0x1", "0x0"
    ),
    "a spilled value longer than any": Row(
        spilling, SPILLS, lambda page: set32(page, behind_key(page, spilled_slot(page)) + 2, (1 << 30) + 1),
        "spilled value, slot 20, byte 246", "at most 0x40000000", "0x40000001"
    ),
    "a spilled value longer than all": Row(
        spilling, SPILLS, lambda page: set32(page, behind_key(page, spilled_slot(page)) + 6, 0x80000000),
        "spilled value, slot 20, byte 246", "at most 0x40000000", "0x8000000000005a00"
    ),
    "a pointer in place of a spilled value": Row(
        spilling, SPILLS, pointer_for_generation,
        "spilled value, slot 20, byte 254", "below 0xffffffffffffffff", "0xffffffffffffffff"
    ),
    # keys
    "a key too long": Row(mixed, LEAF, long_key, "key too long, slot 0, byte 386", "at most 0x79", "0x7a"),
    "a key of another size": Row(numbers, LEAF, lambda page: set16(page, 46, 7), "key size, slot 0, byte 500", "0x8", "0x7"),
    "a key without its length": Row(
        several, LEAF, lambda page: set16(page, behind_key(page, 2) - 2, 40),
        "key without its own length, slot 2, byte 492", "at most 0x7", "0x28"
    ),
    "a pair whose first part is too long": Row(
        pairs, LEAF, lambda page: set16(page, cell(page, 1)[0], 7), "pair key, slot 1, byte 450", "at most 0x5", "0x7"
    ),
    "a pair whose first part is far too long": Row(
        pairs, LEAF, lambda page: set16(page, cell(page, 1)[0], 0xFFFF), "pair key, slot 1, byte 450", "at most 0x5", "0xffff"
    ),
    "a pair whose second part is short": Row(
        pairs, LEAF, lambda page: set16(page, cell(page, 1)[0] + 4, 2), "pair key, slot 1, byte 454", "0x3", "0x2"
    ),
    "a first separator with a key": Row(
        plain, INDEX, first_separator_with_a_key, "first separator, slot 0, byte 46", "0x0", "0x1"
    ),
    "a first separator with a head": Row(
        plain, INDEX, lambda page: set32(page, 40, 1), "first separator, slot 0, byte 40", "0x0", "0x1"
    ),
    "a skipped prefix where keys are not bytes": Row(
        sized, LEAF, lambda page: set16(page, 36, 3), "prefix, byte 36", "0x0", "0x3"
    ),
    "a skipped prefix longer than a key": Row(
        mixed, LEAF, lambda page: set16(page, 36, 30), "prefix, slot 0, byte 46", "at least 0x1e", "0x3"
    ),
    "a key without the prefix": Row(
        plain, LEAF, lambda page: set_key(page, 3, b"nome" + key(page, 3)[4:]), "prefix, slot 3, byte 433", "0x61", "0x6f"
    ),
    "a head of another key": Row(
        plain, LEAF, lambda page: page.__setitem__(40, page[40] ^ 1), "slot head, slot 0, byte 40", "0x31380000", "0x31380001"
    ),
    "keys in no order": Row(
        mixed, LEAF, lambda page: swap(page, 1, 2), "key order, slot 2, byte 56", "at least 0x5a313800", "0x55313700"
    ),
    "a key twice": Row(
        mixed, LEAF, same_key_twice, "key order, slot 1, byte 454", "above 0x5031360000000000", "0x5031360000000000"
    ),
    "separators in no order": Row(
        mixed, INDEX, lambda page: swap(page, 1, 2), "key order, slot 2, byte 56", "at least 0x8c000000", "0x50000000"
    ),
    "keys in no order behind equal heads": Row(
        several, LEAF, lambda page: swap(page, 1, 2), "key order, slot 2, byte 56", "at least 0x30303330", "0x30303239"
    ),
    # overflow index pages
    "magic of an overflow index page": Row(
        spilling, OVERFLOW, lambda page: set32(page, 4, 1), "overflow index magic, byte 4", "0x3174626d", "0x1"
    ),
    "tree of an overflow index page": Row(
        spilling, OVERFLOW, lambda page: set32(page, 8, 9), "overflow index tree id, byte 8", "0x7", "0x9"
    ),
    "level of an overflow index page": Row(
        spilling, OVERFLOW, lambda page: page.__setitem__(24, 2), "overflow index level, byte 24", "0x1", "0x2"
    ),
    "kind of an overflow index page": Row(
        spilling, OVERFLOW, lambda page: page.__setitem__(25, 3), "overflow index kind, byte 25", "0x4", "0x3"
    ),
    "generation of an overflow index page": Row(
        spilling, OVERFLOW, generation, "overflow index generation, byte 16", "0x1", "0x4"
    ),
    # generations of what a page names: none above its own
    "a reference younger than its page": Row(
        plain, INDEX, lambda page: younger(page, behind_key(page, 2) + 12),
        "reference generation, slot 2, byte 432", "at most 0x1", "0x4"
    ),
    "a reference far younger than its page": Row(
        plain, INDEX, lambda page: younger(page, behind_key(page, 0) + 12, 1 << 63),
        "reference generation, slot 0, byte 496", "at most 0x1", "0x8000000000000001"
    ),
    "a long value younger than its leaf": Row(
        spilling, SPILLS, lambda page: younger(page, spill_at(page) + 8),
        "spilled value generation, slot 20, byte 254", "at most 0x1", "0x4"
    ),
    "an undated value younger than its leaf": Row(
        short_spill, SPILLS, lambda page: (undated(page), younger(page, spill_at(page) + 8)),
        "spilled value generation, slot 20, byte 234", "at most 0x1", "0x4"
    ),
    "an entry younger than its cell": Row(
        short_spill, SPILLS, lambda page: younger(page, spill_at(page) + 16 + 2 * 20 + 12),
        "overflow page generation, slot 20, byte 294", "at most 0x1", "0x4"
    ),
    "an entry younger than its overflow index page": Row(
        spilling, OVERFLOW, lambda page: younger(page, 40 + 22 * 20 + 12),
        "overflow page generation, slot 22, byte 492", "at most 0x1", "0x4"
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_what_a_page_says_is_checked_before_it_is_believed(row: Row) -> None:
    forger = row.scene()
    address = forger.forge(row.page, row.edit)
    error = damage(forger.open())
    assert error.what == "page"
    assert error.where == f"address {address}, tree 7, level {LEVELS[row.page]} ({row.evidence})"
    assert (error.expected, error.found) == (row.expected, row.found)
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
        expected = (right, right + 1) if where == "in the page" else (right + 1, right)
    error = damage(forger.open())
    name = {LEAF: "page", INDEX: "page"}.get(kind, kind)
    byte = ", byte 0" if where == "in the page" else ""
    assert error.where == f"address {path[-1][0]}, tree 7, level {LEVELS[kind]} ({name} checksum{byte})"
    assert (error.expected, error.found) == tuple(hex(n & 0xFFFFFFFF) for n in expected)


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
