"""Pages are read with no lock held: while a device is slow, no one waits but who needs that page. What was read for a reference
that stands no more is thrown away, whatever it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mdstore.btree import REFS_DESCRIPTOR, Descriptor, PackedPairs, Pager, Tree
from mdstore.btree._kernel import call_where_threads_meet, is_free
from mdstore.errors import CorruptionError, DeviceFailed
from tests.model.btree_world import MemoryPages, World, meeting, new_tree

COUNT = 400
LONG = b"long " * 200  # spills in pages of 256 bytes


def key(n: int) -> bytes:
    return b"%06d" % n


class Watched(MemoryPages):
    """`waited` counts reads during which another thread would have had to wait for a lock."""

    def __init__(self, image: bytearray) -> None:
        super().__init__()
        self.image = image
        self.watch: Tree | None = None
        self.watched = 0
        self.waited = 0
        self.last = 0
        self.written: list[int] = []

    def read(self, offset: int, length: int) -> bytes:
        if self.watch is not None:
            self.watched += 1
            self.waited += not is_free(self.watch)
        self.last = offset
        return super().read(offset, length)

    def write(self, offset: int, buffers: object) -> None:
        self.written.append(offset)
        super().write(offset, buffers)  # type: ignore[arg-type]


def sealed(copies: int = 1, *, long: bool = False) -> tuple[World, bytes]:
    """A tree of four levels on a device, and one long value in it."""
    world = World(3, holes=False)
    tree = Tree(world.pager, Descriptor(copies=copies), 7)
    tree.update((key(n), b"%d" % n + b"." * 20) for n in range(COUNT))
    if long:
        tree.put(key(COUNT // 2), LONG)
    root = world.seal(tree)
    world.write()
    assert tree.height >= 4
    return world, root


def cold(world: World, root: bytes, **fields: int) -> tuple[Tree, Watched]:
    """The tree opened anew: nothing of it in memory."""
    device = Watched(world.device.image)
    pager = Pager(device, page_size=256, **fields)
    pager.generation = 9
    return Tree.open(pager, root), device


def there_and_back(tree: Tree) -> list[object]:
    with tree.cursor() as cursor:
        cursor.seek(key(300))
        return [cursor.record, cursor.next(), cursor.prev(), cursor.prev(), cursor.record]


OPERATIONS: dict[str, Callable[[Tree], object]] = {
    "get": lambda tree: tree.get(key(7)),
    "get of a key that is not there": lambda tree: tree.get(b"no"),
    "get of a long value": lambda tree: tree.get(key(COUNT // 2)),
    "contains": lambda tree: key(7) in tree,
    "contains a long value": lambda tree: key(COUNT // 2) in tree,
    "get_many": lambda tree: tree.get_many([key(n) for n in range(0, COUNT, 9)]),
    "get_many with a long value": lambda tree: tree.get_many([key(n) for n in range(COUNT // 2 - 5, COUNT // 2 + 5)]),
    "read a part": lambda tree: tree.read(key(7), 2, 3),
    "read a part of a long value": lambda tree: tree.read(key(COUNT // 2), 300, 300),
    "get from a snapshot": lambda tree: tree.snapshot().get(key(7)),
    "a long value from a snapshot": lambda tree: tree.snapshot().get(key(COUNT // 2)),
    "count": lambda tree: tree.count(key(9), key(333)),
    "a scan": lambda tree: list(tree.items()),
    "a scan backwards": lambda tree: list(tree.items(key(20), key(90), reverse=True)),
    "first and last": lambda tree: (tree.first(), tree.last()),
    "seek": lambda tree: (tree.seek(key(40)), tree.seek(key(50), reverse=True)),
    "a cursor": there_and_back,
    "pages": lambda tree: list(tree.pages()),
    "check": lambda tree: tree.check(),
    "union": lambda tree: list(tree.union(tree.snapshot())),
    "put": lambda tree: tree.put(key(7), b"new"),
    "put another": lambda tree: tree.put(key(7) + b"a", b"new"),
    "put a long value": lambda tree: tree.put(key(7), LONG),
    "put in a long value's place": lambda tree: tree.put(key(COUNT // 2), b"new"),
    "update": lambda tree: tree.update((key(n), b"new") for n in range(0, COUNT, 7)),
    "delete": lambda tree: tree.delete(key(7)),
    "delete of a key that is not there": lambda tree: tree.delete(b"no"),
    "delete_range": lambda tree: tree.delete_range(key(150), key(160)),
    "delete of a long value": lambda tree: tree.delete(key(COUNT // 2)),
    "delete_range across a long value": lambda tree: tree.delete_range(key(150), key(350)),
    "delete_range of nothing": lambda tree: (tree.delete_range(key(9), key(9)), tree.get(key(7))),
    "clear": lambda tree: tree.clear(),
    "write into a short value": lambda tree: tree.write(key(7), 1, b"new"),
    "write into a long value": lambda tree: tree.write(key(COUNT // 2), 300, b"new"),
    "fetch": lambda tree: tree.fetch(PackedPairs([(key(n), b"") for n in range(0, COUNT, 9)])),
    "fetch of a long value": lambda tree: tree.fetch(PackedPairs([(key(COUNT // 2), b"")])),
}
READS_UNDER_LOCKS = {  # pages of what a change finds out that it needs when it is under way: how many
    "delete_range across a long value": 1,  # a sibling that an index page on the border is joined with
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_one_waits_for_a_read_but_who_needs_it(name: str) -> None:
    world, root = sealed(long=True)
    tree, device = cold(world, root)
    expected = OPERATIONS[name](cold(world, root)[0])
    device.watch = tree
    result = OPERATIONS[name](tree)
    device.watch = None
    assert result == expected
    assert device.watched >= 4, "it read"
    assert device.waited == READS_UNDER_LOCKS.get(name, 0)
    assert tree.check() == []


def test_a_value_written_into_is_read_with_no_lock_held() -> None:
    """Of one that no seal has reached since, the pages that are not in memory."""
    world, root = sealed(long=True)
    tree, device = cold(world, root)
    tree.write(key(COUNT // 2), 300, b"new")
    expected = LONG[:300] + b"new" + LONG[303:]
    device.watch = tree
    assert tree.get(key(COUNT // 2)) == expected
    assert tree.get_many([key(COUNT // 2)]) == [expected]
    assert tree.read(key(COUNT // 2), 600, 10) == expected[600:610]
    device.watch = None
    assert device.watched >= 3
    assert device.waited == 0


@pytest.mark.parametrize("cache_pages", [8, 20, 60])
def test_what_is_read_ahead_of_a_lock_is_no_more_than_half_the_cache(cache_pages: int) -> None:
    """The rest is read under it, as it comes."""
    world, root = sealed(long=True)
    tree, device = cold(world, root, cache_bytes=cache_pages * 256)
    device.watch = tree
    tree.clear()
    device.watch = None
    ahead = device.watched - device.waited
    assert cache_pages // 4 <= ahead <= cache_pages // 2 + 1
    assert device.watched == 23, "the index pages, the leaf of the long value, and its index page"
    assert len(tree) == 0
    assert tree.check() == []


def test_borders_of_a_range_longer_than_any_key_are_borders() -> None:
    world, root = sealed()
    for start, stop, left in ((b"0002" * 1000, None, 201), (key(100) + b"~" * 5000, key(300), 201), (None, b"0002" * 1000, 199)):
        tree, _ = cold(world, root)
        assert tree.delete_range(start, stop) == COUNT - left
        assert len(tree) == left
        assert tree.check() == []


def test_dropping_what_a_clone_shares_reads_nothing_of_it() -> None:
    """Ahead of the lock neither: a clone is dropped as it was made, in O(1)."""
    world, root = sealed(long=True)
    tree, device = cold(world, root)
    tree.pager.refs = Tree(tree.pager, REFS_DESCRIPTOR, 1)
    clone = tree.clone()
    device.reads = 0
    clone.clear()
    assert device.reads == 0
    clone = tree.clone()
    clone.put(key(7), b"new")  # now it has a path of its own
    device.reads = 0
    device.watch = clone
    clone.clear()
    device.watch = None
    assert device.reads == 0
    assert len(tree.pager.refs) == 0
    assert len(list(tree.items())) == COUNT


@pytest.mark.parametrize("is_leaf_own", [False, True])
@pytest.mark.parametrize("drop", [lambda tree: tree.delete(key(COUNT // 2)), lambda tree: tree.put(key(COUNT // 2), b"short"),
                                  lambda tree: tree.delete_range(key(COUNT // 2), key(COUNT // 2 + 1))])  # fmt: skip
def test_a_long_value_that_clones_share_is_dropped_unread(drop: Callable[[Tree], object], is_leaf_own: bool) -> None:
    """The path to it is shared too, or the value alone."""
    world, root = sealed(long=True)
    tree, device = cold(world, root)
    tree.pager.refs = Tree(tree.pager, REFS_DESCRIPTOR, 1)
    clone = tree.clone()
    if is_leaf_own:
        clone.put(key(COUNT // 2 + 1), b"new")
    assert None not in [clone.get(key(n)) for n in range(COUNT) if n != COUNT // 2]  # all pages are in memory but the value's
    device.reads = 0
    drop(clone)
    assert device.reads == 0
    assert tree.get(key(COUNT // 2)) == LONG
    tree.delete(key(COUNT // 2))
    assert device.reads > 0, "who gives it up last looks"


@pytest.mark.parametrize("cache_pages", [16, 60, 200])
def test_of_a_long_value_no_more_than_half_the_cache_is_read_ahead(cache_pages: int) -> None:
    world = World(1, holes=False)
    tree = new_tree(world)
    tree.put(b"long", b"x" * 256 * 4000)
    root = world.seal(tree)
    world.write()
    tree, device = cold(world, root, cache_bytes=cache_pages * 256)
    device.watch = tree
    assert tree.delete(b"long")
    device.watch = None
    ahead = device.watched - device.waited
    assert cache_pages // 2 - 2 <= ahead <= cache_pages // 2 + 2
    assert device.waited > 200, "the rest under the lock"


def test_what_a_clone_has_alone_is_read_before_locks_are_taken() -> None:
    world, root = sealed(long=True)
    first, device = cold(world, root)
    refs = first.pager.refs = Tree(first.pager, REFS_DESCRIPTOR, 1)
    tree = first.clone()
    tree.update((key(n), b"x" * 20) for n in range(0, COUNT, 50))
    tree.put(key(COUNT // 2), LONG[::-1])
    world.next_page = len(device.image) // 256 + 1
    root, shared = tree.seal(world.allocate), refs.seal(world.allocate)
    first.pager.write_sealed()
    tree, device = cold(World(3), root)
    device.image = first.pager.device.image  # type: ignore[attr-defined]
    tree.pager.refs = Tree.open(tree.pager, shared)
    assert len(tree.pager.refs) > 0
    for address in list(tree.pager.refs):
        assert address in tree.pager.refs, "in memory from now on"
    device.watch = tree
    assert tree.delete_range() is not None
    device.watch = None
    assert device.watched > 10
    assert device.waited == 0
    assert len(tree.pager.refs) == 0


def test_a_deletion_that_joins_nothing_reads_its_path_alone() -> None:
    world = World(5, holes=False)
    tree = Tree(world.pager, Descriptor(), 7)
    numbers = [*range(0, 2 * COUNT, 2)]
    world.random.shuffle(numbers)
    for n in numbers:
        tree.put(key(n), b"." * 20)
    for n in range(0, 2 * COUNT, 8):
        tree.delete(key(n))
    root = world.seal(tree)
    world.write()
    joined = 0
    for n in range(1, 2 * COUNT, 5):  # every second one is not there
        tree, _ = cold(world, root)
        is_there = n % 2 == 0 and n % 8 != 0
        assert tree.delete(key(n)) == is_there
        reads = tree.pager.counters()["pages_read"] - tree.height
        assert reads == 0 or is_there, "a key that is not there changes nothing"
        joined += reads > 0
    assert 0 < joined < 25, "leaves that the deletion leaves less than half full, of 60"


def test_deleting_reads_the_siblings_it_joins_before_it_takes_locks() -> None:
    world, root = sealed()
    tree, device = cold(world, root)
    for n in range(COUNT):
        if n % 5:
            device.watch = tree
            tree.delete(key(n))
            device.watch = None
    counters = tree.pager.counters()
    assert counters["merges"] > 30
    assert device.watched > 60
    assert device.waited == 0, "siblings of index pages too"
    assert tree.check() == []
    assert [k for k, _ in tree.items()] == [key(n) for n in range(0, COUNT, 5)]


def overwritten(world: World, tree: Tree, device: Watched, old: set[int]) -> list[int]:
    """Seal what has changed, free what nothing reaches any more and fill it with other bytes; those pages."""
    world.next_page = len(device.image) // 256 + 1
    tree.seal(world.allocate)
    tree.pager.write_sealed()
    freed = [page for address, pages, _ in tree.pager.take_freed() for page in range(address, address + pages)]
    assert freed
    assert set(freed) <= old
    for page in freed:
        device.image[page * 256 : page * 256 + 256] = b"other's " * 32
    device.written.clear()
    return freed


TOUCHES: dict[str, tuple[Callable[[Tree], object], object]] = {
    "get": (lambda tree: tree.get(key(7)), b"changed"),
    "get_many": (lambda tree: tree.get_many([key(7), key(8)])[0], b"changed"),
    "contains": (lambda tree: key(7) in tree, True),
    "read": (lambda tree: tree.read(key(7), 2, 3), b"ang"),
    "put": (lambda tree: tree.put(key(7), b"mine"), True),
    "update": (lambda tree: tree.update([(key(7), b"mine")]), 0),
    "delete": (lambda tree: tree.delete(key(7)), True),
    "delete_range": (lambda tree: tree.delete_range(key(7), key(8)), 1),
    "write": (lambda tree: tree.write(key(7), 0, b"mine"), None),
}


@pytest.mark.parametrize("fails", [False, True], ids=["other bytes", "unreadable"])
@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("name", TOUCHES)
def test_a_page_that_was_freed_while_it_was_read_is_no_damage(name: str, step: int, copies: int, fails: bool) -> None:
    """Between looking at the reference and reading the page another thread changes the leaf; everything is sealed elsewhere,
    and the old places belong to another. The second copy may not be written over them either."""
    world, root = sealed(copies)
    tree, device = cold(world, root)
    old = {page for address, pages, _ in tree.pages() for page in range(address, address + pages)}
    tree, device = cold(world, root)
    operation, expected = TOUCHES[name]
    met = [0]
    gone: list[int] = []
    plain_read = device.read

    def read(offset: int, length: int) -> bytes:
        if fails and offset // 256 in gone:
            raise DeviceFailed("read", str(offset), "told to fail")
        return plain_read(offset, length)

    device.read = read  # type: ignore[method-assign]

    def meet(at: str) -> None:
        if at != "aside":
            return
        met[0] += 1
        if met[0] == step:
            met[0] = 100  # what follows reads too
            tree.put(key(7), b"changed")
            gone.extend(overwritten(world, tree, device, old))

    with meeting(meet):
        assert operation(tree) == expected
    assert gone
    assert not {offset // 256 for offset in device.written} & set(gone), "nothing is repaired there"
    assert all(device.image[page * 256 : page * 256 + 256] == b"other's " * 32 for page in gone)
    assert tree.check() == []


OTHER = b"other" * 300
LONG_TOUCHES: dict[str, tuple[Callable[[Tree], object], bytes | None]] = {
    "put a short one": (lambda tree: tree.put(key(COUNT // 2), b"new"), b"new"),
    "put a long one": (lambda tree: tree.put(key(COUNT // 2), LONG), LONG),
    "update": (lambda tree: tree.update([(key(COUNT // 2), b"new")]), b"new"),
    "delete": (lambda tree: tree.delete(key(COUNT // 2)), None),
    "delete_range": (lambda tree: tree.delete_range(key(190), key(210)), None),
    "write": (lambda tree: tree.write(key(COUNT // 2), 300, b"new"), OTHER[:300] + b"new" + OTHER[303:]),
    "write behind the end": (lambda tree: tree.write(key(COUNT // 2), 1600, b"new"), OTHER + bytes(100) + b"new"),
}


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("step", [1, 4, 5])  # the root, the leaf, the index page of the value
@pytest.mark.parametrize("name", LONG_TOUCHES)
def test_pages_of_a_long_value_that_were_freed_while_they_were_read_are_not_used(name: str, step: int, copies: int) -> None:
    """Another thread writes the value anew before what was read ahead is wanted: under the lock it has other pages."""
    world, root = sealed(copies, long=True)
    tree, device = cold(world, root)
    old = {page for address, pages, _ in tree.pages() for page in range(address, address + pages)}
    tree, device = cold(world, root)
    operation, expected = LONG_TOUCHES[name]
    met = [0]
    gone: list[int] = []

    def meet(at: str) -> None:
        if at != "aside":
            return
        met[0] += 1
        if met[0] == step:
            call_where_threads_meet(None)
            tree.put(key(COUNT // 2), OTHER)
            gone.extend(overwritten(world, tree, device, old))
            call_where_threads_meet(meet)

    with meeting(meet):
        operation(tree)
    assert tree.get(key(COUNT // 2)) == expected
    assert gone
    assert not {offset // 256 for offset in device.written} & set(gone), "nothing is repaired there"
    freed = tree.pager.take_freed()
    assert all(not set(range(address, address + pages)) & set(gone) for address, pages, _ in freed), "nothing is freed twice"
    assert tree.check() == []


@pytest.mark.parametrize("copies", [1, 2])
def test_damage_that_stands_is_told_and_repaired_as_ever(copies: int) -> None:
    world, root = sealed(copies)
    tree, device = cold(world, root)
    tree.get(key(7))
    device.image[device.last + 100] ^= 1  # the leaf was read last
    tree, device = cold(world, root)
    if copies == 1:
        with pytest.raises(CorruptionError, match="page checksum"):
            tree.get(key(7))
    else:
        assert tree.get(key(7)) is not None
        assert tree.pager.counters()["copies_repaired"] == 1
    assert is_free(tree)


def test_who_finds_every_page_evicted_again_reads_with_the_lock_in_the_end() -> None:
    world, root = sealed()
    tree, _ = cold(world, root, cache_bytes=0)
    asides = [0]

    def meet(at: str) -> None:
        if at == "aside":
            asides[0] += 1
            call_where_threads_meet(None)
            tree.get(key(300))  # leaves nothing in memory
            tree.snapshot().get(key(300))
            call_where_threads_meet(meet)

    with meeting(meet):
        assert tree.get(key(7)) == b"7" + b"." * 20
    assert asides[0] == 40, "so often it tried"
    assert is_free(tree)


def test_a_reader_waits_for_no_other_of_a_full_cache() -> None:
    """A cache far over its bound is emptied under every lock: not while another reads, with locks that it would wait for."""
    world, root = sealed()
    tree, device = cold(world, root, cache_bytes=1024)
    snapshot = tree.snapshot()
    scans = [0]
    plain_read = device.read

    def read(offset: int, length: int) -> bytes:
        if scans[0] in (0, 2):  # once inside each of the two below
            scans[0] += 1
            assert len(list(snapshot.items())) == COUNT, "what does not fit"
        return plain_read(offset, length)

    device.read = read  # type: ignore[method-assign]
    assert tree.get(key(7)) == b"7" + b"." * 20
    scans[0] = 2
    assert snapshot.get(key(9)) == b"9" + b"." * 20
    assert scans[0] == 3
