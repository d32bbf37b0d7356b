"""Trees that no writer makes, under right checksums up to the root: what no page tells by itself."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mdstore.btree import REFS_DESCRIPTOR, PackedPairs, Pager, Tree
from mdstore.btree._kernel import PAGE_HEADER_SIZE, bound_memory
from mdstore.errors import CorruptionError, InvalidRequest
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
    behind_key,
    damage,
    empty,
    key,
    mixed,
    plain,
    set16,
    set_key,
    short_spill,
    spill_at,
    spilled_slot,
    spilling,
    tower,
    twice,
    u16,
    undated,
    younger,
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


@pytest.mark.parametrize("off", [-1, 1])
def test_an_overflow_index_page_has_as_many_entries_as_follow_from_the_length(off: int) -> None:
    """Else entries that no one wrote would be read, given up and written to."""
    for use in (
        lambda tree: tree.get(b"0020"),
        lambda tree: list(tree.items()),
        lambda tree: tree.write(b"0020", PAGE, b"w"),
        lambda tree: tree.put(b"0020", b"short"),
        lambda tree: tree.delete(b"0020"),
        Tree.clear,
    ):
        forger = spilling()
        address = forger.forge(OVERFLOW, lambda page: set16(page, 26, u16(page, 26) + off))
        with pytest.raises(CorruptionError) as caught:
            use(forger.open())
        assert caught.value.where == f"address {address}, tree 7, level 1 (overflow index count, byte 26)"
        assert (caught.value.expected, caught.value.found) == (hex(23), hex(23 + off))
        assert address not in {first for first, _, _ in forger.world.pager.take_freed()}


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


# -- generations of what a page names ----------------------------------------------------------------------------------
YOUNGER: dict[str, tuple[Callable[[], Forger], str, Callable[[bytearray], object]]] = {
    "a reference": (plain, INDEX, lambda page: younger(page, behind_key(page, 2) + 12)),
    "a long value": (spilling, SPILLS, lambda page: younger(page, spill_at(page) + 8)),
    "an undated value": (short_spill, SPILLS, lambda page: (undated(page), younger(page, spill_at(page) + 8))),
    "an entry of a cell": (short_spill, SPILLS, lambda page: younger(page, spill_at(page) + 16 + 12)),
    "an entry of an overflow index page": (spilling, OVERFLOW, lambda page: younger(page, 40 + 12)),
}


@pytest.mark.parametrize("name", YOUNGER)
def test_what_is_younger_than_what_names_it_is_given_up_by_no_one(name: str, tmp_path: Path) -> None:
    """By its generation the owner of freed pages tells which snapshots reach it: a forged one had a page that a snapshot reaches
    given out again."""
    scene, kind, edit = YOUNGER[name]
    for drop in (Tree.clear, lambda tree: tree.delete_range(None, b"zzz"), lambda tree: list(tree.pages())):
        forger = scene()
        forger.forge(kind, edit)
        with pytest.raises(CorruptionError, match=r"generation, slot \d+, byte \d+\)"):
            drop(forger.open())
        assert all(generation == 1 for _, _, generation in forger.world.pager.take_freed())
    assert second_reader(forger, tmp_path / "pages") == ["page-structure"]


def test_an_undated_value_is_read_as_it_was() -> None:
    """The scene itself: else the refusal of a younger one would prove nothing."""
    forger = short_spill()
    forger.forge(SPILLS, undated)
    assert list(forger.open().items()) == forger.expected
    assert forger.open().check() == []


CHANGES: dict[str, Callable[[Tree], object]] = {
    "put": lambda tree: tree.put(b"name0002", b"other"),
    "delete": lambda tree: tree.delete(b"name0002"),
    "delete_range": lambda tree: tree.delete_range(b"name0002", b"name0030"),
    "clear": Tree.clear,
}


@pytest.mark.parametrize("change", CHANGES)
def test_pages_of_a_generation_to_come_are_read_and_not_changed(change: str) -> None:
    """A page that named younger ones would be refused by whoever read it; what is given up would be given out again at once."""
    forger = plain()
    forger.world.pager.generation = 5
    forger.tree.put(b"name0001", b"other")
    root = forger.world.seal(forger.tree)
    forger.world.write()
    pager = Pager(forger.world.device, page_size=PAGE)
    pager.generation = 4
    tree = Tree.open(pager, root)
    assert tree.get(b"name0001") == b"other"
    with pytest.raises(CorruptionError) as caught:
        CHANGES[change](tree)
    address = int.from_bytes(root[-28:-20], "little")
    assert caught.value.where == f"address {address}, tree 7, level 1 (page generation above the pager's)"
    assert (caught.value.expected, caught.value.found) == ("at most 0x4", "0x5")
    assert pager.take_freed() == []
    assert tree.seal(forger.world.allocate) == root
    pager.generation = 5
    CHANGES[change](tree)
    assert pager.take_freed()
    root = tree.seal(forger.world.allocate)
    pager.write_sealed()
    again = Tree.open(forger.world.pager, root)
    assert again.check() == []
    assert len(again) == len(tree)


def test_a_generation_never_falls() -> None:
    pager = plain().world.pager
    pager.generation = 7
    pager.generation = 7
    with pytest.raises(InvalidRequest, match="generation 6: 7 or more"):
        pager.generation = 6
    assert pager.generation == 7


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


# -- addresses that are given up without having been read --------------------------------------------------------------
def unread_leaf(address: int, copies: int = 1) -> tuple[Forger, int]:
    """A tree of which one leaf lies, by the reference to it, where no device has a page; and where that should have been."""
    forger = twice() if copies == 2 else plain()
    right, at = forger.path(LEAF)[-1]
    at += 8 * (copies - 1)  # the last copy: of one, the page itself
    forger.forge(INDEX, lambda page: page.__setitem__(slice(at, at + 8), address.to_bytes(8, "little")))
    return forger, right


@pytest.mark.parametrize("address", [1 << 20, (1 << 48) - 1, 1 << 48, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("copies", [1, 2])
def test_an_address_that_no_device_has_is_not_given_up_though_no_one_reads_it(address: int, copies: int) -> None:
    """Dropping a subtree reads no leaf, and handed whatever the reference said to the owner, who would have freed that."""
    for drop in (Tree.clear, lambda tree: tree.delete_range(next(tree.keys()) + b"0"), lambda tree: list(tree.pages())):
        forger, _ = unread_leaf(address, copies)
        pager = forger.world.pager
        end = len(forger.world.device.image) // PAGE
        with pytest.raises(CorruptionError) as caught:
            drop(forger.open())
        assert caught.value.where == f"address {address}, tree 7, level 0 (page address outside the device)"
        assert (caught.value.expected, caught.value.found) == (f"below {end:#x}", hex(address))
        assert all(first + pages <= end for first, pages, _ in pager.take_freed())


def test_an_address_that_no_device_has_is_not_counted_as_shared() -> None:
    forger, _ = unread_leaf(1 << 50)
    pager = forger.world.pager
    pager.refs = Tree(pager, REFS_DESCRIPTOR, 1)
    tree = forger.open()
    with pytest.raises(CorruptionError, match="outside the device"):
        tree.clone().put(b"name0001", b"other")  # the root is copied: of what lies below there is one tree more
    assert all(int.from_bytes(key, "big") < 1 << 48 for key in pager.refs)


def test_an_entry_of_a_long_value_that_no_device_has_is_not_given_up() -> None:
    """Its data pages are freed unread."""
    forger = spilling()
    forger.forge(OVERFLOW, lambda page: page.__setitem__(slice(40, 48), (1 << 60).to_bytes(8, "little")))
    tree = forger.open()
    drops: list[Callable[[Tree], object]] = [
        Tree.clear, lambda tree: tree.delete(b"0020"), lambda tree: tree.put(b"0020", b"short"), lambda tree: list(tree.pages()),
    ]  # fmt: skip
    for drop in drops:
        with pytest.raises(CorruptionError, match=r"level 0 \(page address outside the device\)"):
            drop(tree)
    assert all(first < 1 << 48 for first, _, _ in forger.world.pager.take_freed())


def test_pages_that_the_device_grew_for_are_given_up() -> None:
    """The device is asked anew before an address is refused; what its owner gave needs no device."""
    forger = plain()
    tree = forger.open()
    tree.clear()
    world = forger.world
    world.pager.take_freed()
    tree.update((b"%04d" % n, b"v" * 20) for n in range(100))
    world.seal(tree)
    tree.clear()
    assert sum(pages for _, pages, _ in world.pager.take_freed()) > 5, "sealed, and not yet written"
    tree.update((b"%04d" % n, b"v" * 20) for n in range(100))
    root = world.seal(tree)
    world.write()
    other = Pager(world.device, page_size=PAGE)
    other.generation = world.pager.generation
    again = Tree.open(other, root)
    world.device.image.extend(bytes(64 * PAGE))
    again.clear()
    assert sum(pages for _, pages, _ in other.take_freed()) > 5


# -- lengths that a cell states as it likes ----------------------------------------------------------------------------
LIMIT = 1 << 21  # bytes that one allocation may have: the megabyte that is had unproved, and its neighbours


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    """No allocation of the kernel is large, nor what Python has on its behalf."""
    bound_memory(LIMIT)
    tracemalloc.start()
    try:
        yield
        _, most = tracemalloc.get_traced_memory()
        assert most < 3 * LIMIT
    finally:
        tracemalloc.stop()
        bound_memory(-1)


def long_value(pages: int) -> Forger:
    """The scene of `spilling`, with a value of so many pages."""
    forger = Forger()
    forger.tree.update((b"%04d" % n, b"%d" % n * 3) for n in range(40))
    forger.tree.put(b"0020", b"L" * PAGE * pages)
    forger.seal()
    return forger


def state_length(forger: Forger, length: int) -> int:
    """Have the cell state another length, for which it holds the right number of entries; the first one's address."""

    def edit(page: bytearray) -> None:
        at = behind_key(page, spilled_slot(page)) + 2
        page[at : at + 8] = length.to_bytes(8, "little")

    forger.forge(SPILLS, edit)
    page = forger.page(forger.path(SPILLS)[-1][0])
    at = behind_key(page, spilled_slot(page)) + 2 + 16
    return int.from_bytes(page[at : at + 8], "little")


USES: dict[str, Callable[[Tree], object]] = {
    "get": lambda tree: tree.get(b"0020"),
    "get_many": lambda tree: tree.get_many([b"0020"]),
    "get_all": lambda tree: tree.get_all(b"0020"),
    "read": lambda tree: tree.read(b"0020"),
    "items": lambda tree: list(tree.items()),
    "cursor": lambda tree: tree.cursor().seek(b"0020"),
    "write": lambda tree: tree.write(b"0020", PAGE * 4199, b"w"),
    "put": lambda tree: tree.put(b"0020", b"short"),
    "delete": lambda tree: tree.delete(b"0020"),
    "clear": Tree.clear,
    "pages": lambda tree: list(tree.pages()),
    "fetch": lambda tree: tree.fetch(PackedPairs([(b"0020", b"v")])),
}
FAN = (PAGE - PAGE_HEADER_SIZE) // 20  # entries of an overflow index page
READS = ("get", "get_many", "get_all", "read", "items", "cursor", "fetch")


@pytest.mark.parametrize("use", USES)
def test_a_length_past_the_device_asks_for_no_memory(use: str) -> None:
    """Found by the fuzz target: a cell of 20 bytes that stated half a gigabyte had that much memory before a page was read."""
    forger = spilling()
    length = 2 * PAGE * FAN**4  # two entries, as the 45 pages have
    address = state_length(forger, length)
    with little_memory(), pytest.raises(CorruptionError) as caught:
        USES[use](forger.open())
    if use in READS:
        assert caught.value.where == f"address {address}, tree 7, level 0 (length of a spilled value)"
        assert (caught.value.expected, caught.value.found) == (f"at most {len(forger.world.device.image):#x}", hex(length))


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("grows", ["a page", "much"])
def test_a_length_that_the_index_pages_do_not_hold_asks_for_no_memory(use: str, grows: str) -> None:
    """The device would have room; the last index page of some level has too few entries."""
    forger = long_value(4200)
    length = PAGE * (4201 if grows == "a page" else FAN**3)
    state_length(forger, length)
    forger.world.device.image.extend(bytes(length))
    with little_memory(), pytest.raises(CorruptionError, match=r"\(overflow index count, byte 26\)"):
        USES[use](forger.open())


def test_a_long_value_is_read_whole_where_it_is_what_it_states() -> None:
    forger = long_value(4200)
    forger.forge(SPILLS, lambda page: None)
    tree = forger.open()
    assert tree.get(b"0020") == tree.read(b"0020") == dict(tree.items())[b"0020"] == b"L" * PAGE * 4200
    assert tree.read(b"0020", PAGE * 4199 - 1) == b"L" * (PAGE + 1)
    tree.write(b"0020", PAGE * 4199, b"w")
    assert tree.read(b"0020", PAGE * 4199, 2) == b"wL"


def test_a_long_value_is_read_before_it_is_written() -> None:
    """The device is shorter than the value, whose pages wait."""
    world = World(1, page_size=PAGE, holes=False)
    tree = new_tree(world)
    value = b"L" * PAGE * 4200
    tree.put(b"key", value)
    view = tree.snapshot()
    assert view.get(b"key") == dict(tree.items())[b"key"] == value
    world.seal(tree)
    assert world.device.size_bytes == 0
    assert tree.get(b"key") == dict(tree.items())[b"key"] == view.get(b"key") == value
    world.pager.write_sealed(1 << 20)
    assert 0 < world.device.size_bytes < len(value)
    assert tree.get(b"key") == dict(tree.items())[b"key"] == view.get(b"key") == value


# -- heights -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("level", [36, 37, 38, 39])
def test_no_tree_grows_higher_than_a_path(level: int) -> None:
    """At level 38 the new root was put behind the end of the path, and what was reserved for it freed from there."""
    tree = tower(level)
    for n in range(1, 12, 2):
        if level < 38:
            tree.put(b"a%02d" % n, b"n" * 20)
        else:
            with pytest.raises(CorruptionError, match=r"tree height|root record"):
                tree.put(b"a%02d" % n, b"n" * 20)
    assert tree.height == level + 1 + (level < 38)
    if level < 39:
        assert tree.get(b"a02") == b"v" * 20
