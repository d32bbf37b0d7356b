"""Trees whose pages can be forged: changed, under right checksums up to the root."""

from __future__ import annotations

import struct
from collections.abc import Callable

import crc32c as reference
import pytest

from mdstore.btree import Tree
from mdstore.btree._kernel import PAGE_HEADER_SIZE
from mdstore.errors import CorruptionError
from tests.model.btree_world import World, new_tree

PAGE = 512
SPILLED = 0xFFFE  # or above: in the place of a length
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
    return next(n for n in range(u16(page, 26)) if u16(page, behind_key(page, n)) >= SPILLED)


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
            if any(u16(leaf, behind_key(leaf, n)) >= SPILLED for n in slots):
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


def tower(level: int) -> Tree:
    """A tree of that level in pages of 256 bytes, whose pages on the way to the first leaf are all full."""
    world = World(1)
    cells = [(b"a%02d" % n, struct.pack("<H", 20) + b"v" * 20) for n in range(0, 12, 2)]
    records = len(cells)
    reference_ = b""
    for height in range(level + 1):
        if height:
            cells = [(b"", reference_), *((b"z%04d" % n, struct.pack("<QIQQ", 0, 0, 1, 1)) for n in range(4))]
            records += 4
        page = bytearray(256)
        heap = len(page)
        for slot, (name, rest) in enumerate(cells):
            heap -= len(name + rest)
            page[heap : heap + len(name + rest)] = name + rest
            struct.pack_into("<4sHH", page, PAGE_HEADER_SIZE + 8 * slot, name[:4].ljust(4, b"\0")[::-1], heap, len(name))
        struct.pack_into("<IQQBBHI", page, 4, 0x3174626D, 7, 1, height, 2 if height else 1, len(cells), heap)
        set32(page, 0, reference.crc32c(bytes(page[4:])))
        world.device.image += page
        reference_ = struct.pack("<Q4sQQ", height + 1, page[:4], 1, records)
    world.device.image[:0] = bytes(256)  # no page has address 0
    return Tree.open(world.pager, struct.pack("<BBBBhHiIQQ", 2, 2 | 1 << 2, 1, level, -2, 0, -4, 0, 7, records) + reference_)


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


def short_spill() -> Forger:
    """A value of three pages, all named by its cell."""
    forger = Forger()
    forger.tree.update((b"%04d" % n, b"%d" % n * 3) for n in range(40))
    forger.tree.put(b"0020", b"L" * PAGE * 3)
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


def generation(page: bytearray) -> None:
    page[16] += 3


def younger(page: bytearray, at: int, by: int = 3) -> None:
    add64(page, at, by)


def spill_at(page: bytearray) -> int:
    """Where the body of the value that has spilled begins: length, generation, entries."""
    return behind_key(page, spilled_slot(page)) + 2


def undated(page: bytearray) -> None:
    """The value that has spilled becomes one of version 1: its cell is as much shorter as its entries have no generations."""
    slot = spilled_slot(page)
    at = behind_key(page, slot)
    end = at + 2 + 16 + 20 * -(-u16(page, at + 2) // PAGE)
    entries = b"".join(page[entry : entry + 12] for entry in range(at + 18, end, 20))
    page[at : at + 2] = b"\xff\xff"
    page[at + 18 : end] = entries.ljust(end - at - 18, b"\0")
    dead(page, end - at - 18 - len(entries))


def overlap(page: bytearray) -> None:
    """A value two bytes longer than its place, into the cell behind it; the heap is made longer by as much."""
    count = u16(page, 26)
    slot = min(range(count), key=lambda n: u16(page, PAGE_HEADER_SIZE + 8 * n + 4))
    set16(page, behind_key(page, slot), u16(page, behind_key(page, slot)) + 2)
    set32(page, 28, u16(page, 28) - 2)


def damage(tree: Tree) -> CorruptionError:
    """What reading everything once says."""
    with pytest.raises(CorruptionError) as caught:
        list(tree.items())
    return caught.value
