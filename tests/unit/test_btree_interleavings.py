"""What other threads do in the middle of an operation, and interrupts that come there.

Each meeting is arranged: by a seam of the kernel, by a device that does more than read, or by a key that does more than be looked
at."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence

import pytest

from mdstore.btree import (
    COMPARE_BYTES,
    COMPARE_I64,
    COMPARE_PAIR,
    COMPARE_REVERSE,
    COMPARE_U64_BE,
    COMPARE_U64_LE,
    REFS_DESCRIPTOR,
    Descriptor,
    Pager,
    Tree,
)
from mdstore.btree._kernel import call_between, compare_torn, is_free
from mdstore.device.protocol import Buffer
from mdstore.errors import DeviceFailed, InvalidRequest, LimitExceeded, NotFound
from tests.model.btree_world import MemoryPages, World, new_tree


@pytest.mark.parametrize("sizes", [(0, 60000), (60000, 0), (5, 5)])
@pytest.mark.parametrize("embed_limit", [0, 4000])
def test_a_blob_set_while_a_tree_is_sealed_waits_for_the_next_seal(sizes: tuple[int, int], embed_limit: int) -> None:
    world = World(1)
    tree = new_tree(world, embed_limit=embed_limit)
    tree.update((b"%03d" % n, b"value") for n in range(40))
    tree.user_blob = first = b"1" * sizes[0]
    second = b"2" * sizes[1]
    call_between("seal", lambda: setattr(tree, "user_blob", second))
    root = tree.seal(world.allocate)
    assert Tree.open(world.pager, root).user_blob == first
    assert Tree.open(world.pager, root).check() == []
    assert tree.is_dirty
    assert Tree.open(world.pager, tree.seal(world.allocate)).user_blob == second
    assert not tree.is_dirty


@pytest.mark.parametrize("dirty", [False, True])
def test_a_clone_names_what_it_holds_though_its_origin_is_sealed_anew(dirty: bool) -> None:
    world = World(1)
    world.pager.refs = Tree(world.pager, REFS_DESCRIPTOR, 1)
    tree = new_tree(world)
    tree.update((b"%03d" % n, b"value") for n in range(40))
    tree.user_blob = b"old"
    root = tree.seal(world.allocate)
    if dirty:
        tree.put(b"001", b"dirty")

    def go_on() -> None:
        tree.put(b"000", b"later")
        tree.user_blob = b"new"
        tree.seal(world.allocate)

    before = dict(tree.items())
    call_between("clone", go_on)
    clone = tree.clone()
    assert dict(clone.items()) == before
    assert clone.user_blob == b"old"
    assert clone.is_dirty == dirty
    assert tree.get(b"000") == b"later"
    sealed = clone.seal(world.allocate) if dirty else clone.root()
    assert dict(Tree.open(world.pager, sealed).items()) == before
    assert (sealed == root) != dirty


class Looked(bytes):
    """A key that, when it is looked at again, waits for whatever was begun meanwhile."""

    others: list[threading.Thread]

    def __bytes__(self) -> bytes:
        for other in self.others:
            other.join()
        return b"" + self


@pytest.mark.parametrize("meanwhile", ["delete", "write"])
def test_a_write_into_a_value_is_one_operation(meanwhile: str) -> None:
    """The value's pages are read once the write holds the tree; another thread begins then. Were the write more than one
    operation, it would find the other one done in between, and undo it."""
    world = World(1, page_size=4096, cache_bytes=0)
    tree = new_tree(world)
    key = Looked(b"key")
    key.others = []
    tree.put(b"key", bytes(5000))
    root = world.seal(tree)
    world.write()
    tree = Tree.open(world.pager, root)
    view = tree.snapshot()
    other: Callable[[], object] = {"delete": lambda: tree.delete(b"key"), "write": lambda: tree.write(b"key", 5, b"B")}[meanwhile]
    read = world.device.read

    def begin(offset: int, length: int) -> bytes:
        if not key.others and not is_free(tree):
            key.others.append(threading.Thread(target=other))
            key.others[0].start()
        return read(offset, length)

    world.device.read = begin  # type: ignore[method-assign]
    tree.write(key, 3, b"A")
    assert len(key.others) == 1
    key.others[0].join()
    assert tree.get(b"key") == (None if meanwhile == "delete" else bytes(3) + b"A\0B" + bytes(4994))
    assert view.get(b"key") == bytes(5000)
    assert tree.check() == []


def test_writes_that_cannot_be_change_nothing() -> None:
    tree = new_tree(World(1), value_size=-1)
    tree.put(b"k", b"abc")
    with pytest.raises(NotFound):
        tree.write(b"other", 0, b"x")
    for offset in (253, 1 << 40, (1 << 62) - 1, (1 << 63) - 1):
        with pytest.raises(LimitExceeded):
            tree.write(b"k", offset, b"xyz")
    assert list(tree.items()) == [(b"k", b"abc")]


@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize(
    ("comparator", "key"),
    [
        (COMPARE_BYTES, b"some key"), (COMPARE_REVERSE, b"some key"), (COMPARE_PAIR, b"\1\0k\2\0ey"),
        (COMPARE_U64_LE, b"k" * 8), (COMPARE_U64_BE, b"k" * 8), (COMPARE_I64, b"k" * 8),
    ],
)  # fmt: skip
def test_no_comparison_reads_beyond_a_cell_that_is_half_written(comparator: int, key: bytes, duplicates: bool) -> None:
    """What lies behind the cell makes no difference, whatever the cell says of lengths."""
    descriptor = Descriptor(8 if b"kk" in key else -2, comparator=comparator, duplicates=duplicates)
    if duplicates:
        key += b"value" + len(key).to_bytes(2, "little")
    rng = random.Random(1)
    behind = [b"\0" * 70000, b"\xff" * 70000, key * 10000]
    for turn in range(2000):
        size = rng.randrange(12)
        cell = key[:size] if turn % 2 else bytes(rng.choice((0, 1, 2, 255, *key)) for _ in range(size))
        orders = [compare_torn(descriptor, key, cell + rest, len(cell)) for rest in behind]
        assert len({(order > 0, order < 0) for order in orders}) == 1, cell
    assert compare_torn(descriptor, key, key + behind[0], len(key)) == 0


def test_writing_what_is_sealed_ends_when_all_of_it_is_written_whoever_writes_it() -> None:
    world = World(1, holes=False)
    tree = new_tree(world)
    tree.update((b"%03d" % n, b"value") for n in range(300))
    world.seal(tree)
    wanted = world.pager.sealed_pages
    write = world.device.write
    left: list[int] = []
    ended = threading.Event()

    def second() -> None:
        world.pager.write_sealed()
        left.append(world.pager.sealed_pages)
        ended.set()

    other = threading.Thread(target=second)

    def first(offset: int, buffers: Sequence[Buffer]) -> None:
        world.device.write = write  # type: ignore[method-assign]
        other.start()
        ended.wait(0.1)  # it does not come: the other waits for us. However long this is, it waits
        write(offset, buffers)

    world.device.write = first  # type: ignore[method-assign]
    assert world.pager.write_sealed() == 256 * wanted
    other.join()
    assert left == [0]


def damaged_copies(**fields: object) -> tuple[World, bytes]:
    """A world in which the first copy of each page is bad, and the tree's root."""
    world = World(1, holes=False)
    tree = new_tree(world, copies=2, **fields)
    tree.update((b"%03d" % n, bytes([n % 250 + 1]) * (2000 if n == 150 else 20)) for n in range(300))
    pages: set[int] = set()

    def allocate(count: int) -> list[tuple[int, int]]:
        runs = world.allocate(count)
        pages.update(range(runs[0][0], runs[0][0] + count // 2))
        return runs

    root = tree.seal(allocate)
    world.write()
    for page in pages:
        world.device.image[256 * page + 99] ^= 1
    return world, root


class SecondThoughts(BaseException):
    """As KeyboardInterrupt, in any thread."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, SecondThoughts, ZeroDivisionError])
@pytest.mark.parametrize("key", [b"000", b"150"])
def test_an_interrupt_while_a_copy_is_repaired_comes_out_of_the_operation(error: type[BaseException], key: bytes) -> None:
    world, root = damaged_copies()
    tree = Tree.open(world.pager, root)
    write = world.device.write
    times = 0

    def interrupted(offset: int, buffers: Sequence[Buffer]) -> None:
        nonlocal times
        times += 1
        if times == 3:
            raise error
        write(offset, buffers)

    world.device.write = interrupted  # type: ignore[method-assign]
    with pytest.raises(error):
        list(tree.items()) if key == b"000" else tree.get(key)
    assert tree.get(key)
    assert len(list(tree.items())) == 300
    assert tree.check() == []
    assert world.pager.counters()["copies_repaired"] == times - 1


def test_a_device_that_refuses_to_be_repaired_is_read_all_the_same() -> None:
    world, root = damaged_copies()
    world.device.fail_writes = True
    tree = Tree.open(world.pager, root)
    assert len(list(tree.items())) == 300
    assert tree.check() == []
    assert world.reached(tree) == world.held
    assert world.pager.counters()["copies_repaired"] == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, SecondThoughts])
def test_an_interrupt_while_a_page_is_read_is_no_reason_to_read_its_copy(error: type[BaseException]) -> None:
    world, root = damaged_copies()
    reads = world.device.reads

    def interrupted(offset: int, length: int) -> bytes:
        world.device.reads += 1
        raise error

    world.device.read = interrupted  # type: ignore[method-assign]
    with pytest.raises(error):
        Tree.open(world.pager, root).get(b"000")
    assert world.device.reads == reads + 1


class Interrupting(MemoryPages):
    """Fails the `after`-th read from now on with what comes from a keyboard."""

    after = -1

    def read(self, offset: int, length: int) -> bytes:
        self.after -= 1
        if self.after == -1:
            raise KeyboardInterrupt
        return super().read(offset, length)


WALKS: dict[str, Callable[[Tree], object]] = {
    "check": Tree.check,
    "pages": lambda tree: list(tree.pages()),
    "items": lambda tree: list(tree.items()),
    "items backwards": lambda tree: list(tree.items(reverse=True)),
    "union": lambda tree: list(tree.union(tree)),
    "count": lambda tree: tree.count(b"0003", b"0280"),
    "cursor": lambda tree: tree.cursor().last(),
    "get_many": lambda tree: tree.get_many([b"%04d" % n for n in range(0, 300, 7)]),
}


@pytest.mark.parametrize("walk", WALKS)
def test_an_interrupted_walk_keeps_no_page_and_no_pin(walk: str) -> None:
    """At each of its reads: what it held is let go, so that with the tree everything leaves the memory."""
    world = World(1, holes=False)
    tree = new_tree(world)
    tree.update((b"%04d" % n, bytes(20 if n % 50 else 3000)) for n in range(300))
    root = world.seal(tree)
    world.write()
    device = Interrupting()
    device.image = world.device.image
    reads = 0
    while True:
        pager = Pager(device, page_size=256)
        tree = Tree.open(pager, root)
        device.after = reads
        try:
            WALKS[walk](tree)
        except KeyboardInterrupt:
            reads += 1
        was_interrupted = device.after < 0
        device.after = -1 << 62
        assert pager.oldest_pinned_generation is None
        assert tree.get(b"0001") == bytes(20), "it is as usable as before"
        tree.close()
        assert pager.counters()["cached_bytes"] == 0
        if not was_interrupted:
            break
    assert reads >= (2 if walk == "cursor" else 5)


def two_leaves() -> tuple[World, Tree]:
    """A sealed tree of a root and leaves, of which nothing is in memory."""
    world = World(1, holes=False)
    tree = new_tree(world)
    tree.update((b"%03d" % n, bytes(20)) for n in range(12))
    root = world.seal(tree)
    world.write()
    return world, Tree.open(world.pager, root)


def test_an_interrupt_where_the_operation_goes_on_without_the_page_comes_behind_it() -> None:
    """A page that has become too empty is merged with its sibling, if that can be had."""
    world, tree = two_leaves()
    assert tree.height == 2
    read, interrupts = world.device.read, 0

    def interrupted(offset: int, length: int) -> bytes:
        nonlocal interrupts
        if world.device.reads == reads + 2:  # the root and the leaf are read by now
            world.device.reads += 1
            interrupts += 1
            raise KeyboardInterrupt
        return read(offset, length)

    reads = world.device.reads
    world.device.read = interrupted  # type: ignore[method-assign]
    deleted: list[bytes] = []

    def delete_all() -> None:
        for n in range(12):
            deleted.append(b"%03d" % n)
            tree.delete(deleted[-1])

    with pytest.raises(KeyboardInterrupt):
        delete_all()
    assert interrupts == 1
    assert [key for key, _ in tree.items()] == [b"%03d" % n for n in range(len(deleted), 12)]
    assert tree.check() == []


def test_a_device_that_fails_there_is_passed_over() -> None:
    world, tree = two_leaves()
    assert tree.get(b"000") == bytes(20)
    read, failures = world.device.read, 0

    def failing(offset: int, length: int) -> bytes:
        nonlocal failures
        failures += 1
        raise DeviceFailed("read", str(offset), "told to fail")

    world.device.read = failing  # type: ignore[method-assign]
    deleted = 0
    while failures == 0:
        assert tree.delete(b"%03d" % deleted)
        deleted += 1
    world.device.read = read  # type: ignore[method-assign]
    assert len(tree) == 12 - deleted
    assert tree.check() == []


def test_a_clone_of_what_no_seal_has_reached_has_no_root_record() -> None:
    """Its origin's names other contents."""
    world = World(6)
    world.pager.refs = Tree(world.pager, REFS_DESCRIPTOR, 1)
    tree = new_tree(world)
    tree.put(b"a", b"1")
    root = world.seal(tree)
    world.write()
    assert tree.clone().root() == root
    tree.put(b"b", b"2")
    clone = tree.clone()
    assert clone.is_dirty
    with pytest.raises(InvalidRequest, match="never sealed"):
        clone.root()
    assert tree.root() == root
