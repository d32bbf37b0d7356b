"""What the kernel refuses before it changes anything, and how it says so: what is no number, long values, records of a batch."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any

import pytest

from mdstore.btree import Descriptor, PackedPairs, Pager, Tree, crc32c, key_size_max, read_blocks
from mdstore.btree._kernel import bound_memory, crc32c_blocks, crc32c_table, fail_memory
from mdstore.errors import CorruptionError, InvalidRequest, LimitExceeded, NotFound, UnsupportedFormat
from mdstore.limits import GIB, VALUE_SIZE_MAX
from tests.model.btree_world import World, new_tree


def small_tree() -> Tree:
    tree = new_tree(World(1))
    tree.update((b"%04d" % n, b"v%d" % n) for n in range(100))
    return tree


# -- numbers -----------------------------------------------------------------------------------------------------------
class Seven:
    def __index__(self) -> int:
        return 7


NUMBERS: dict[str, Callable[[Any], object]] = {
    "key_size": lambda n: Descriptor(n),
    "value_size": lambda n: Descriptor(-2, n),
    "comparator": lambda n: Descriptor(comparator=n),
    "copies": lambda n: Descriptor(copies=n),
    "embed_limit": lambda n: Descriptor(embed_limit=n),
    "page_size": lambda n: Pager(World(1).device, page_size=n),
    "cache_bytes": lambda n: Pager(World(1).device, cache_bytes=n),
    "a cache's bound": lambda n: setattr(World(1).pager, "cache_bytes", n),
    "generation": lambda n: setattr(World(1).pager, "generation", n),
    "the first page": lambda n: setattr(World(1).pager, "page_bounds", (n, 1 << 40)),
    "the end of pages": lambda n: setattr(World(1).pager, "page_bounds", (0, n)),
    "tree_id": lambda n: Tree(World(1).pager, Descriptor(), n),
    "write_sealed": lambda n: World(1).pager.write_sealed(n),
    "seal_leaves from": lambda n: small_tree().seal_leaves(lambda pages: [(1, pages)], n, 1),
    "seal_leaves pages": lambda n: small_tree().seal_leaves(lambda pages: [(1, pages)], 0, n),
    "read from": lambda n: small_tree().read(b"0001", n),
    "read length": lambda n: small_tree().read(b"0001", 0, n),
    "write at": lambda n: small_tree().write(b"0001", n, b"x"),
    "key_size_max of pages": lambda n: key_size_max(n),
    "key_size_max of copies": lambda n: key_size_max(256, n),
    "an address from allocate": lambda n: small_tree().seal(lambda pages: [(n, pages)]),
    "pages from allocate": lambda n: small_tree().seal(lambda pages: [(1, n), (90, pages - 1)]),
    "crc32c": lambda n: crc32c(b"", n),
    "crc32c_table": lambda n: crc32c_table(b"", n),
    "read_blocks": lambda n: read_blocks(World(1).pager, n, 512, 512),
    "read_blocks length": lambda n: read_blocks(World(1).pager, 0, n, 512),
    "read_blocks size": lambda n: read_blocks(World(1).pager, 0, 512, n),
    "a packed room": lambda n: PackedPairs([], n),
}


@pytest.mark.parametrize("wrong", [1.0, 1.5, 2.5, "8", b"8", None, [1]], ids=repr)
@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_whole_number_is_refused_and_never_cut_off(name: str, wrong: object) -> None:
    """`Descriptor(comparator=2.5)` was one of 2 with keys of any length: heads of slots were wrong, and records lost."""
    with pytest.raises(TypeError):
        NUMBERS[name](wrong)


@pytest.mark.parametrize("name", ["key_size", "value_size", "comparator", "copies", "embed_limit", "page_size", "cache_bytes",
                                  "generation", "the first page", "the end of pages", "tree_id", "an address from allocate",
                                  "pages from allocate"])  # fmt: skip
def test_the_number_that_is_wrong_is_named(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name}: a whole number is wanted, not float"):
        NUMBERS[name](2.5)


@pytest.mark.parametrize("wrong", [-1, 1 << 64])
@pytest.mark.parametrize("name", ["generation", "the first page", "the end of pages", "tree_id", "an address from allocate",
                                  "pages from allocate"])  # fmt: skip
def test_what_64_bits_do_not_hold_is_refused_by_name(name: str, wrong: int) -> None:
    with pytest.raises(InvalidRequest, match=f"{name}: {wrong}, where"):
        NUMBERS[name](wrong)


@pytest.mark.parametrize("runs", [None, 7, [None], [(1,)], [(1, 1, 1)], "x"], ids=repr)
def test_what_are_no_runs_is_refused_as_what_allocate_gave(runs: Any) -> None:
    tree = small_tree()
    before = list(tree.items())
    with pytest.raises(TypeError, match=r"allocate gave .*: runs are wanted"):
        tree.seal(lambda pages: runs)
    assert tree.is_dirty
    assert list(tree.items()) == before
    assert tree.seal(lambda pages: [(1, pages)]) == tree.root()


@pytest.mark.parametrize("address", [(1 << 48) - 1, 1 << 48, (1 << 64) - 1])
def test_an_address_that_no_device_has_is_refused(address: int) -> None:
    """With the last one the sum of address and pages wrapped around."""
    with pytest.raises(InvalidRequest, match="allocate gave"):
        small_tree().seal(lambda pages: [(1, pages - 2), (address, 2)])


@pytest.mark.parametrize("bounds", [(2, 1), (0, (1 << 48) + 1), (1 << 48, 1 << 63)])
def test_bounds_that_hold_no_pages_are_refused(bounds: tuple[int, int]) -> None:
    pager = World(1).pager
    with pytest.raises(InvalidRequest, match=f"pages from {bounds[0]} to {bounds[1]}"):
        pager.page_bounds = bounds
    wrong: Any
    for wrong in (7, (1,), (1, 2, 3), None):
        with pytest.raises(TypeError, match=r"page_bounds: \(first, end\) is wanted"):
            pager.page_bounds = wrong
    assert pager.page_bounds == (0, 1 << 48)


def test_addresses_of_an_allocate_that_was_refused_are_not_believed() -> None:
    """Afterwards a damaged reference to a page that no device has was given up, and its address handed out as free."""
    world = World(1)
    damaged = new_tree(world)
    damaged.update((b"%03d" % n, b"x" * 10) for n in range(5))
    root = bytearray(world.seal(damaged))
    world.write()
    root[32:40] = (1 << 46).to_bytes(8, "little")
    damaged = Tree.open(world.pager, bytes(root))
    other = new_tree(world, 8)
    other.update((b"%03d" % n, b"x" * 30) for n in range(100))
    with pytest.raises(InvalidRequest, match="allocate gave pages for 1 of"):
        other.seal(lambda pages: [(1 << 47, 1)])
    with pytest.raises(CorruptionError, match="page address outside the device"):
        damaged.clear()
    assert world.pager.take_freed() == []


@pytest.mark.parametrize("wrong", [1 << 63, -1 << 80])
@pytest.mark.parametrize(("name", "said"), [
    ("read from", "offset"), ("read length", "length"), ("write at", "offset"), ("seal_leaves from", "start"),
    ("seal_leaves pages", "pages"), ("write_sealed", "max_bytes"), ("cache_bytes", "cache_bytes"),
    ("a cache's bound", "cache_bytes"),
])  # fmt: skip
def test_what_no_signed_word_holds_is_refused_by_name(name: str, said: str, wrong: int) -> None:
    with pytest.raises(InvalidRequest, match=f"{said}: {wrong}, where a number below"):
        NUMBERS[name](wrong)


def test_a_tree_whose_keys_no_page_has_room_for_is_refused_as_a_format() -> None:
    world = World(1, page_size=4096)
    tree = new_tree(world, key_size=900)
    tree.put(b"k" * 900, b"v")
    root = world.seal(tree)
    with pytest.raises(UnsupportedFormat, match="tree 7 in pages of 256 bytes"):
        Tree.open(Pager(world.device, page_size=256), root)


@pytest.mark.parametrize("huge", [1 << 31, 1 << 32, 1 << 63, 1 << 64, 1 << 80, -(1 << 40)])
def test_no_number_of_a_descriptor_wraps_around(huge: int) -> None:
    for field in ("key_size", "value_size", "comparator", "copies", "embed_limit"):
        with pytest.raises(InvalidRequest if field != "comparator" else Exception, match=str(huge)):
            Descriptor(**{field: huge})  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest if field != "comparator" else Exception, match=str(huge + 1)):
            Descriptor(**{field: huge + 1})  # type: ignore[arg-type]


def test_whatever_says_that_it_is_a_whole_number_is_one() -> None:
    number: Any = Seven()
    assert Descriptor(number, number, embed_limit=number) == Descriptor(7, 7, embed_limit=7)
    assert Tree(World(1).pager, Descriptor(), number).tree_id == 7
    assert small_tree().read(b"0077", 1, number) == b"77"
    tree, taken = small_tree(), []
    tree.seal(lambda pages: taken.append(pages) or [(number, 1), (8, pages - 1)])  # type: ignore[func-returns-value]
    assert sorted(tree.pages())[0][0] == 7


# -- the length of a value ---------------------------------------------------------------------------------------------
@pytest.fixture
def little_memory() -> Iterator[None]:
    """Whatever asks the kernel for 64 MiB is out of memory, so no value of a GiB is ever made."""
    bound_memory(64 << 20)
    yield
    bound_memory(-1)


@pytest.mark.parametrize(("value_size", "most"), [(-1, 255), (-2, 65535), (-4, VALUE_SIZE_MAX)])
@pytest.mark.usefixtures("little_memory")
def test_the_limit_of_a_value_is_said_as_it_is(value_size: int, most: int) -> None:
    """With a prefix of four bytes it was said to be 0: 1 << 32 in 32 bits."""
    tree = new_tree(World(1), value_size=value_size)
    tree.put(b"k", b"")
    too_long = bytes(most + 1)  # zeros that are never touched take no memory
    attempts: list[Callable[[], object]] = [
        lambda: tree.put(b"k", too_long),
        lambda: tree.update([(b"k", too_long)]),
        lambda: tree.bulk_load([(b"k", too_long)]) if not tree else tree.put(b"k", too_long),
        lambda: tree.write(b"k", most, b"x"),
        lambda: tree.write(b"k", 1 << 61, b"x"),
    ]
    for attempt in attempts:
        with pytest.raises(LimitExceeded) as refused:
            attempt()
        assert (refused.value.limit, refused.value.maximum) == ("VALUE_SIZE_MAX", most)
        assert refused.value.value > most
        assert f"over the limit of {most} (VALUE_SIZE_MAX)" in str(refused.value)
    assert list(tree.items()) == [(b"k", b"")]


@pytest.mark.usefixtures("little_memory")
def test_a_value_of_just_the_limit_is_not_refused_for_its_length() -> None:
    assert VALUE_SIZE_MAX == GIB
    tree = new_tree(World(1))
    tree.put(b"k", b"")
    for attempt in (lambda: tree.put(b"k", bytes(VALUE_SIZE_MAX)), lambda: tree.write(b"k", VALUE_SIZE_MAX - 1, b"x")):
        with pytest.raises(MemoryError):
            attempt()
    assert list(tree.items()) == [(b"k", b"")]
    for value_size, most in ((-1, 255), (-2, 65535)):
        tree = new_tree(World(1), value_size=value_size)
        tree.put(b"k", b"x" * most)
        tree.write(b"k", most - 1, b"y")
        assert tree.get(b"k") == b"x" * (most - 1) + b"y"


# -- empty writes ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [b"", b"abc", b"L" * 3000], ids=len)
@pytest.mark.parametrize("state", ["in memory", "sealed", "written to by range"])
def test_an_empty_write_changes_nothing_and_grows_nothing(value: bytes, state: str) -> None:
    """One at 1000 made a value of three bytes one of 1000; the store's rule is that it extends nothing."""
    world = World(1)
    tree = new_tree(world)
    tree.put(b"k", value)
    if state != "in memory":
        world.seal(tree)
        world.write()
    if state == "written to by range" and value:
        tree.write(b"k", 0, value[:1])
    dirty = tree.is_dirty, tree.dirty_pages
    for offset in (0, 1, len(value), len(value) + 1, 1000, 1 << 40, (1 << 63) - 1):
        tree.write(b"k", offset, b"")
    assert tree.get(b"k") == value
    assert (tree.is_dirty, tree.dirty_pages) == dirty
    with pytest.raises(NotFound):
        tree.write(b"not there", 0, b"")
    with pytest.raises(InvalidRequest):
        tree.write(b"k", -1, b"")


# -- records of a batch ------------------------------------------------------------------------------------------------
def test_any_mapping_can_be_put() -> None:
    tree = new_tree(World(1))
    assert tree.update({b"a": b"1"}) == 1
    assert tree.update(MappingProxyType({b"b": b"2", b"a": b"3"})) == 1
    assert tree.update(UserDict({b"c": b"4"})) == 1  # type: ignore[arg-type]
    assert tree.update([[b"d", bytearray(b"5")], (b"e", memoryview(b"6"))]) == 2  # type: ignore[list-item]
    assert dict(tree.items()) == {b"a": b"3", b"b": b"2", b"c": b"4", b"d": b"5", b"e": b"6"}


WRONG: list[tuple[object, type[Exception], str]] = [
    ((b"k",), TypeError, "a key and a value are wanted, not tuple"),
    ((b"k", b"v", b"w"), TypeError, "a key and a value are wanted, not tuple"),
    (b"key", TypeError, "a key and a value are wanted, not bytes"),
    (5, TypeError, "a key and a value are wanted, not int"),
    (None, TypeError, "a key and a value are wanted, not NoneType"),
    (("k", b"v"), TypeError, "bytes are wanted, not str"),
    ((b"k", 5), TypeError, "bytes are wanted, not int"),
    ((b"k" * 500, b""), LimitExceeded, "500 is over the limit of 60 (KEY_SIZE_MAX)"),
    ((b"k", bytes(256)), LimitExceeded, "256 is over the limit of 255 (VALUE_SIZE_MAX)"),
]


@pytest.mark.parametrize("number", [0, 1, 1023, 1024, 2500])
@pytest.mark.parametrize(("wrong", "kind", "text"), WRONG, ids=lambda each: str(each)[:20])
def test_a_record_that_is_refused_is_named_by_its_number(wrong: object, kind: type[Exception], text: str, number: int) -> None:
    """And the thousands before it are put, no other."""
    tree = new_tree(World(1), value_size=-1)
    maximum = key_size_max(256)
    records: list[Any] = [(b"%06d" % n, b"v") for n in range(3000)]
    records[number] = wrong
    text = text.replace("limit of 60 (KEY", f"limit of {maximum} (KEY")
    with pytest.raises(kind) as refused:
        tree.update(records)
    assert str(refused.value) == f"record {number}: {text}"
    assert len(tree) == number // 1024 * 1024
    assert tree.check() == []
    if type(refused.value) is LimitExceeded:
        assert refused.value.value in (500, 256)
    fresh = new_tree(World(1), value_size=-1)
    with pytest.raises(kind, match=f"^record {number}: "):
        fresh.bulk_load(records)
    assert len(fresh) == 0


def test_records_that_do_not_ascend_are_named_too() -> None:
    tree = new_tree(World(1))
    with pytest.raises(InvalidRequest, match=r"^record 2: bulk_load wants ascending records; b'b' does not follow"):
        tree.bulk_load([(b"a", b""), (b"c", b""), (b"b", b"")])


def test_a_bulk_load_that_can_take_nothing_out_again_says_so_and_why_it_failed() -> None:
    tree = new_tree(World(1))

    def records() -> Iterator[tuple[bytes, bytes]]:
        yield from ((b"%04d" % n, b"x" * 30) for n in range(2000))
        fail_memory(0, 1)
        yield b"0000", b""

    with pytest.raises(InvalidRequest, match="record 2000") as error:
        tree.bulk_load(records())
    assert fail_memory(-1) == 1
    assert "still in the tree" in error.value.__notes__[0]
    assert len(tree) > 0
    tree.clear()
    with pytest.raises(InvalidRequest, match="record 1:") as error:
        tree.bulk_load([(b"b", b""), (b"a", b"")])
    assert not hasattr(error.value, "__notes__")
    assert len(tree) == 0


def test_an_error_of_the_iterator_itself_is_left_as_it_is() -> None:
    def broken(error: Exception) -> Iterator[tuple[bytes, bytes]]:
        for n in range(1100):
            yield b"%06d" % n, b"v"
        raise error

    for error in (TypeError("of its own"), InvalidRequest("of its own"), RuntimeError("of its own")):
        tree = new_tree(World(1))
        with pytest.raises(type(error)) as raised:
            tree.update(broken(error))
        assert raised.value is error
        assert str(error) == "of its own"
        assert len(tree) == 1024


@pytest.mark.parametrize("duplicates", [False, True])
def test_many_keys_of_any_buffer_are_deleted_alike_with_and_without_duplicates(duplicates: bool) -> None:
    tree = new_tree(World(1), key_size=-1, value_size=-1, duplicates=duplicates)
    tree.update((b"%06d" % n, b"v") for n in range(3000))
    if duplicates:
        tree.update((b"%06d" % n, b"second") for n in range(0, 3000, 7))
    keys: list[Any] = [bytearray(b"000000"), memoryview(b"000007"), b"000008", b"not there", b"000008"]
    assert tree.delete_many(keys) == 3
    assert tree.delete_many(iter([])) == 0
    records = len(tree)
    many: list[Any] = [b"%06d" % n for n in range(100, 2100)]
    many[1500] = 5
    with pytest.raises(TypeError, match=r"^record 1500: bytes are wanted, not int"):
        tree.delete_many(many)
    gone = range(100, 1124)
    assert records - len(tree) == len(gone) + (sum(n % 7 == 0 for n in gone) if duplicates else 0)
    assert tree.check() == []


# -- nothing to remove ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize("remove", [
    lambda tree: tree.delete_range(b"0500x", b"0501"), lambda tree: tree.delete_range(None, b"0000"),
    lambda tree: tree.delete_range(b"0999x"), lambda tree: tree.delete_range(b"3", b"2"),
    lambda tree: tree.delete(b"0500x"), lambda tree: tree.delete_many([b"0500x", b"x"]),
    lambda tree: tree.delete_value(b"0500x", b""),
])  # fmt: skip
def test_removing_what_is_not_there_dirties_nothing(remove: Callable[[Tree], object], duplicates: bool) -> None:
    world = World(1)
    tree = new_tree(world, duplicates=duplicates)
    tree.update((b"%04d" % n, b"x" * 5) for n in range(1000))
    tree = Tree.open(world.pager, world.seal(tree))
    world.write()
    world.drain_freed()
    if duplicates or remove.__code__.co_names != ("delete_value",):
        assert not remove(tree)
    assert not tree.is_dirty
    assert world.pager.dirty_bytes == 0
    assert world.pager.take_freed() == []


def test_blocks_of_any_size_have_checksums() -> None:
    assert crc32c_blocks(b"abc", (1 << 63) - 1) == crc32c(b"abc").to_bytes(4, "little")
