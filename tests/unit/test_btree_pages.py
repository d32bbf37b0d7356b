"""Pages on a device: damage, copies, hostile insides, the cache, sealed pages, spilled values."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mdstore.btree import REFS_DESCRIPTOR, Descriptor, Pager, Tree
from mdstore.btree._kernel import PAGE_HEADER_SIZE
from mdstore.device.file import FileDevice
from mdstore.errors import CorruptionError, DeviceFailed, InvalidRequest, LimitExceeded, StoreClosed
from tests.model.btree_world import MemoryPages, World, new_tree


def filled(world: World, count: int, size: int = 20, tree_id: int = 7, **fields: object) -> tuple[Tree, bytes]:
    tree = new_tree(world, tree_id, **fields)
    for n in range(count):
        tree.put(b"%06d" % n, b"%d" % n + b"." * size)
    root = world.seal(tree)
    world.write()
    return tree, root


def test_every_flipped_byte_of_every_page_is_detected_and_named() -> None:
    world = World(1)
    tree, root = filled(world, 120)
    tree.put(b"large", b"L" * 5000)
    root = world.seal(tree)
    world.write()
    world.drain_freed()
    expected = list(tree.items())
    clean = bytes(world.device.image)
    for page in sorted(world.held):
        for at in range(page * 256, page * 256 + 256, 1 if page % 7 == 0 else 37):
            world.device.image[at] ^= 1 << at % 8
            with pytest.raises(CorruptionError) as caught:
                list(Tree.open(world.pager, root).items())
            assert f"address {page}," in caught.value.where
            assert "tree 7" in caught.value.where
            world.device.image[at] ^= 1 << at % 8
    assert bytes(world.device.image) == clean
    assert list(Tree.open(world.pager, root).items()) == expected


def test_a_page_of_another_tree_or_generation_is_caught_though_its_checksum_is_right() -> None:
    """A misplaced write: a whole sound page lands where another belongs."""
    world = World(1)
    filled(world, 60)
    _other, root = filled(world, 60, tree_id=8)
    pages = sorted(world.held)
    image = bytes(world.device.image)
    for page in pages[len(pages) // 2 :]:
        world.device.image[page * 256 : page * 256 + 256] = image[pages[0] * 256 : pages[0] * 256 + 256]
        with pytest.raises(CorruptionError):
            list(Tree.open(world.pager, root).items())
        world.device.image[:] = image


@pytest.mark.parametrize("copies", [2, 3])
def test_any_bad_copy_is_read_past_rewritten_and_counted(copies: int) -> None:
    world = World(copies)
    tree, _ = filled(world, 150, copies=copies)
    tree.put(b"spilled", b"S" * 9000)
    root = world.seal(tree)
    world.write()
    world.drain_freed()
    expected = list(tree.items())
    good = bytes(world.device.image)
    by_copy = [sorted(world.held)[k::1] for k in range(copies)]
    assert by_copy
    firsts = world.held  # damage every page in turn: always one copy of something
    for page in sorted(firsts):
        world.device.image[page * 256 + 60] ^= 0xFF
        assert list(Tree.open(world.pager, root).items()) == expected
    before = world.pager.counters()["copies_repaired"]
    assert before > 0
    for page in sorted(firsts):  # first copies were repaired on the way; later ones were never read
        world.device.image[page * 256 : page * 256 + 256] = good[page * 256 : page * 256 + 256]
    tree = Tree.open(world.pager, root)
    assert tree.check() == []
    assert bytes(world.device.image) == good


def test_all_copies_bad_is_an_error_for_that_subtree_only() -> None:
    world = World(4)
    _tree, root = filled(world, 150, copies=2)
    again = Tree.open(world.pager, root)
    victims = [pages for pages in again.pages() if pages[2] == 0][:2]
    for address, _, _ in victims:
        world.device.image[address * 256 + 100] ^= 1
    again = Tree.open(world.pager, root)
    failures = 0
    for n in range(150):
        try:
            assert again.get(b"%06d" % n) is not None
        except CorruptionError:
            failures += 1
    assert 0 < failures < 40
    assert len(again.check()) == 1


def test_cache_stays_under_its_bound_while_a_large_tree_is_read(tmp_path: Path) -> None:
    world = World(5, page_size=512, cache_bytes=1 << 16)
    _tree, root = filled(world, 6000)
    tree = Tree.open(world.pager, root)
    for n in world.random.sample(range(6000), 3000):
        assert tree.get(b"%06d" % n) is not None
        assert world.pager.counters()["cached_bytes"] <= (1 << 16) * 5 // 4 + 64 * 512
    assert world.pager.counters()["evictions"] > 1000
    assert sum(1 for _ in tree.items()) == 6000
    for n in range(0, 6000, 7):
        tree.put(b"%06d" % n, b"new")
    world.seal(tree)
    world.write()
    assert world.pager.counters()["cached_bytes"] <= 1 << 16
    assert sum(value == b"new" for _, value in tree.items()) == len(range(0, 6000, 7))


def test_sealed_pages_are_found_before_they_are_written_and_survive_a_failed_write() -> None:
    world = World(6, cache_bytes=4096)
    tree = new_tree(world)
    tree.update((b"%05d" % n, b"v%d" % n) for n in range(300))
    tree.put(b"large", b"L" * 7000)
    root = world.seal(tree)
    expected = list(tree.items())
    again = Tree.open(world.pager, root)
    assert list(again.items()) == expected
    world.device.fail_writes = True
    with pytest.raises(DeviceFailed):
        world.pager.write_sealed()
    assert world.pager.sealed_pages == len(world.held)
    assert list(Tree.open(world.pager, root).items()) == expected
    world.device.fail_writes = False
    total = 0
    while world.pager.sealed_pages:
        total += world.pager.write_sealed(max_bytes=1000)
        assert list(again.items()) == expected
    assert total == len(world.held) * 256
    del tree, again
    assert list(Tree.open(world.pager, root).items()) == expected
    assert world.pager.dirty_bytes == 0


def test_writes_are_sequential_and_merged() -> None:
    world = World(7, page_size=4096, holes=False)
    tree = new_tree(world)
    tree.update((b"%06d" % n, bytes(100)) for n in range(20000))
    world.seal(tree)
    world.write()
    counters = world.pager.counters()
    assert counters["device_writes"] <= counters["bytes_written"] // (1 << 20) + 2


@pytest.mark.parametrize("page_size", [256, 4096, 65536])
@pytest.mark.parametrize("size", [0, 53, 54, 55, 255, 256, 257, 1014, 1015, 4096, 60000, 300_000])
def test_values_of_any_size_come_back(page_size: int, size: int) -> None:
    world = World(size, page_size=page_size)
    tree = new_tree(world)
    value = world.random.randbytes(size)
    tree.put(b"before", b"b")
    tree.put(b"key", value)
    tree.put(b"later", b"l")
    snapshot = tree.snapshot()
    assert tree.get(b"key") == value
    root = world.seal(tree)
    assert snapshot.get(b"key") == value
    assert Tree.open(world.pager, root).get(b"key") == value
    world.write()
    again = Tree.open(world.pager, root)
    assert again.get(b"key") == value
    assert snapshot.get(b"key") == value
    assert again.check() == []
    again.put(b"key", b"short")
    assert again.delete(b"later")
    world.seal(again)
    world.drain_freed()
    assert world.reached(again) == world.held


def test_a_value_of_a_hundred_megabytes_in_fragmented_space() -> None:
    world = World(1, page_size=4096)
    tree = new_tree(world)
    value = random.Random(1).randbytes(1 << 20) * 100
    tree.put(b"k", value)
    assert tree.dirty_pages > 25600
    root = world.seal(tree)
    world.write()
    del tree
    assert Tree.open(world.pager, root).get(b"k") == value
    assert world.pager.dirty_bytes == 0


def test_value_limit_is_refused_before_anything_changes() -> None:
    tree = new_tree(World(1), value_size=-2)
    with pytest.raises(LimitExceeded):
        tree.put(b"k", bytes(65536))
    assert len(tree) == 0


def test_an_allocator_that_fails_or_lies_leaves_the_tree_dirty_and_whole() -> None:
    world = World(8)
    tree = new_tree(world)
    tree.update((b"%d" % n, b"v") for n in range(100))

    def broken(pages: int) -> list[tuple[int, int]]:
        raise InvalidRequest("no")

    for allocate in (broken, lambda pages: [(1, pages - 1)], lambda pages: [(1, pages + 1)]):
        with pytest.raises(InvalidRequest):
            tree.seal(allocate)
        assert tree.is_dirty
    world.seal(tree)
    assert tree.check() == []
    assert len(list(tree.items())) == 100


def test_a_closed_pager_and_a_closed_view_say_so() -> None:
    world = World(9)
    tree, root = filled(world, 200)
    view = tree.snapshot()
    view.close()
    with pytest.raises(StoreClosed):
        view.get(b"x")
    world.pager.close()
    with pytest.raises(StoreClosed):
        list(Tree.open(world.pager, root).items())


def test_pinned_generations_are_the_oldest_that_live() -> None:
    def oldest() -> int | None:
        return world.pager.oldest_pinned_generation

    world = World(10)
    tree = new_tree(world)
    tree.put(b"a", b"1")
    assert oldest() is None
    world.pager.generation = 5
    first = tree.snapshot()
    world.pager.generation = 9
    second = tree.items()
    assert oldest() == 5
    first.close()
    assert oldest() == 9
    assert list(second) == [(b"a", b"1")]
    assert oldest() is None


def test_a_device_with_a_descriptor_is_read_past_python(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(1 << 20))
    device = FileDevice.open(path)
    pager = Pager(device, page_size=4096)
    tree = Tree(pager, Descriptor(), 1)
    tree.update((b"%05d" % n, b"%d" % n) for n in range(2000))
    root = tree.seal(lambda pages: [(3, pages)])
    pager.write_sealed()
    again = Tree.open(pager, root)
    assert [value for _, value in again.items()] == [b"%d" % n for n in range(2000)]
    assert pager.counters()["misses"] > 10
    device.close()


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_a_scan_reads_ahead_in_runs_within_the_cache_and_short_reads_do_not(tmp_path: Path, backwards: bool) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(4 << 20))
    device = FileDevice.open(path)
    pager = Pager(device, page_size=4096)
    tree = Tree(pager, Descriptor(), 1)
    model = {b"%05d" % n: b"%d" % n + b"." * 90 for n in range(20_000)}
    tree.update(model)
    root = tree.seal(lambda pages: [(3, pages)])
    pager.write_sealed()
    expected = sorted(model.items(), reverse=backwards)

    pager = Pager(device, page_size=4096, cache_bytes=1 << 19)
    again = Tree.open(pager, root)
    assert again.last() if backwards else again.first()
    assert pager.counters()["pages_read"] == tree.height, "no more than the path"
    for n, record in enumerate(again.items(reverse=backwards)):
        assert record == expected[n]
        assert pager.counters()["cached_bytes"] <= (1 << 19) * 5 // 4 + 64 * 4096
    counters = pager.counters()
    reads = counters["pages_read"] / counters["device_reads"]
    assert 6 < reads <= 16, "in runs, of at most an eighth of the cache"
    assert counters["bytes_read"] == counters["pages_read"] * 4096

    pages = sorted(address for address, _, level in again.pages() if level == 0)
    device.write(pages[len(pages) // 2] * 4096 + 2000, [b"damage"])
    damaged = Tree.open(Pager(device, page_size=4096), root)
    found: list[tuple[bytes, bytes]] = []
    with pytest.raises(CorruptionError, match=f"address {pages[len(pages) // 2]}"):
        found.extend(damaged.items(reverse=backwards))
    assert found == expected[: len(found)]
    assert len(found) > 8000, "up to the damaged leaf, though it was read among others"
    device.close()


def test_a_device_that_fails_to_read_is_not_called_damage() -> None:
    """What opening does about damage (another superblock, another copy) must not follow from a read that failed once."""
    pages = MemoryPages()
    tree = Tree(Pager(pages, page_size=256), Descriptor(-1, -2), 20)
    for number in range(200):
        tree.put(b"%04d" % number, b"v" * 20)
    root = tree.seal(lambda wanted: [(1, wanted)])
    tree.pager.write_sealed()

    class Failing(MemoryPages):
        def read(self, offset: int, length: int) -> bytes:
            raise DeviceFailed("read", f"byte {offset}", "told to fail")

    again = Tree.open(Pager(Failing(), page_size=256), root, Descriptor(-1, -2))
    with pytest.raises(DeviceFailed, match="told to fail"):
        again.get(b"0001")


@pytest.mark.parametrize("page_size", [255, 300, 4095, 65537, 1 << 17])
def test_a_page_size_that_no_image_has_is_refused(page_size: int) -> None:
    with pytest.raises(InvalidRequest, match="power of two"):
        Pager(MemoryPages(), page_size=page_size)


def test_a_cache_of_less_than_nothing_is_refused() -> None:
    pager = Pager(MemoryPages(), cache_bytes=0)
    for ask in (lambda: Pager(MemoryPages(), cache_bytes=-1), lambda: setattr(pager, "cache_bytes", -1)):
        with pytest.raises(InvalidRequest, match="cache_bytes -1"):
            ask()
    assert pager.cache_bytes == 0


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
def test_a_cursor_whose_move_failed_has_no_place_until_it_is_given_one(backwards: bool) -> None:
    """The next step began again at the end of the tree: a caller who skipped damage went round for ever."""
    world = World(3, page_size=256)
    tree = Tree(world.pager, Descriptor(), 1)
    model = {b"%04d" % n: b"v" * 20 for n in range(300)}
    tree.update(model)
    root = world.seal(tree)
    world.write()
    leaves = sorted(address for address, _, level in tree.pages() if level == 0)
    world.device.image[leaves[len(leaves) // 2] * 256 + 100] ^= 1
    cursor = Tree.open(Pager(world.device, page_size=256), root).cursor()
    step, expected = (cursor.prev, sorted(model)[::-1]) if backwards else (cursor.next, sorted(model))
    given: list[bytes] = []
    with pytest.raises(CorruptionError):
        given.extend(record[0] for record in iter(step, None))
    assert given == expected[: len(given)]
    assert 0 < len(given) < len(expected)
    for again in (cursor.next, cursor.prev, cursor.next):
        with pytest.raises(InvalidRequest, match="lost its place"):
            again()
    assert cursor.record is None
    assert cursor.seek(given[-1]) == (given[-1], b"v" * 20) == cursor.record
    with pytest.raises(CorruptionError):
        step()
    assert cursor.first() == (b"0000", b"v" * 20)
    assert cursor.next() == (b"0001", b"v" * 20)


def test_the_eviction_hand_gives_a_page_in_use_a_second_chance() -> None:
    """Each pass drops what was not touched since the one before, in the order of the pages, and no more than it has to."""
    world = World(1, page_size=1024, holes=False)
    _tree, root = filled(world, 400)
    tree = Tree.open(world.pager, root)
    world.pager.cache_bytes = 0  # only now is nothing cached
    world.pager.cache_bytes = 1 << 20
    pager = world.pager
    leaves = sorted(address for address, _, level in tree.pages() if level == 0)
    firsts: list[bytes] = []  # the first key of each leaf, in the order of the leaves

    def count(name: str) -> int:
        return pager.counters()[name]

    for n in range(400):
        before = count("misses")
        tree.get(b"%06d" % n)
        if count("misses") > before:
            firsts.append(b"%06d" % n)
    assert len(firsts) == len(leaves) > 14
    assert tree.height == 2
    node = (count("cached_bytes") - 8 * ((1024 - PAGE_HEADER_SIZE) // 36 + 1)) // (len(leaves) + 1)  # without the root's children

    def squeeze() -> int:
        """Lower the bound by one byte under what is cached; how many pages went."""
        before, cached = count("evictions"), count("cached_bytes")
        pager.cache_bytes = cached - 1
        pager.cache_bytes = 1 << 20
        gone = count("evictions") - before
        target = cached - 1 - (cached - 1) // 8
        assert gone == -((target - cached) // node), "until it is an eighth under the bound, and no page more"
        assert count("cached_bytes") == cached - gone * node
        return gone

    def is_cached(key: bytes) -> bool:
        """Asking reads the page where it is not."""
        before = count("misses")
        assert tree.get(key) is not None
        return count("misses") == before

    gone = squeeze()  # all were touched: the first pass takes that note from them, the second drops the first leaves
    hot = firsts[gone : gone + 3]
    assert [is_cached(key) for key in hot[:2]] == [True, True]
    assert next(tree.items(hot[2]))[0] == hot[2], "a scan is a use too"
    more = squeeze()  # one pass, which passes over these
    cold = firsts[gone + 3 : gone + 3 + more]
    kept = firsts[gone + 3 + more :]
    assert [is_cached(key) for key in hot + kept] == [True] * len(hot + kept)
    assert [is_cached(key) for key in cold + firsts[:gone]] == [False] * (more + gone)
    before = count("evictions")
    tree.put(hot[0], b"dirty")  # what a writer changed is no page of the cache
    pager.cache_bytes = 0
    assert count("cached_bytes") == 0
    assert count("evictions") - before == len(leaves) - 1, "all but the leaf that was changed; the root was copied with it"
    assert tree.get(hot[0]) == b"dirty"


def test_neighbours_of_different_generations_are_freed_as_runs_of_their_own() -> None:
    """Who may reuse a page asks in which generation it was written: one for both would free a snapshot's page, or none."""
    world = World(1, page_size=256)
    tree = new_tree(world)
    tree.update((b"%02d" % n, b"v" * 20) for n in range(8))
    assert tree.dirty_pages == 3
    tree.seal(lambda pages: [(1, pages)])
    world.write()
    world.pager.generation = 7
    tree.put(b"07", b"w" * 20)  # in the second leaf, which the root stands behind
    tree.seal(lambda pages: [(2, pages)])
    world.write()
    assert sorted(world.pager.take_freed()) == [(2, 1, 1), (3, 1, 1)]
    tree.clear()
    assert world.pager.take_freed() == [(1, 1, 1), (2, 2, 7)]


@pytest.mark.parametrize("what", ["leaves", "long values"])
def test_every_copy_before_the_sound_one_is_rewritten(what: str) -> None:
    world = World(1, holes=False)
    tree = new_tree(world, copies=3)
    tree.update((b"%06d" % n, b"v" * 20) for n in range(30))
    tree.put(b"large", b"L" * 3000)
    root = world.seal(tree)
    world.write()
    sound = bytes(world.device.image)
    step = len(world.held) // 3  # second and third copies follow all first ones
    leaves = {address for address, _, level in tree.pages() if level == 0}
    data = {page for page in leaves if sound[page * 256 : page * 256 + 9] == b"L" * 9}
    first = min(data if what == "long values" else leaves - data)
    assert sound[(first + step) * 256 : (first + step + 1) * 256] == sound[first * 256 : (first + 1) * 256]
    for page in (first, first + step):
        world.device.image[page * 256 + 200] ^= 1
    world.pager.cache_bytes = 0
    assert len(list(Tree.open(world.pager, root).items())) == 31
    assert world.pager.counters()["copies_repaired"] == 2
    assert bytes(world.device.image) == sound


def test_any_number_of_pages_may_wait_to_be_written_and_others_are_still_read() -> None:
    """The table of waiting pages is never full: looking for one that is not in it would never end."""
    world = World(1, cache_bytes=0)
    _tree, root = filled(world, 20)
    waiting = []
    for n in range(140):
        tree = new_tree(world, 100 + n)
        tree.put(b"k", b"%d" % n)
        waiting.append(world.seal(tree))
        assert world.pager.sealed_pages == n + 1
        assert Tree.open(world.pager, root).get(b"000007") is not None
    assert [Tree.open(world.pager, record).get(b"k") for record in waiting] == [b"%d" % n for n in range(140)]


@pytest.mark.parametrize("first", [6, 0], ids=["between others", "the first"])
def test_a_leaf_a_little_under_half_full_beside_full_ones_is_left_alone(first: int) -> None:
    """Evening it out would write a sibling for each few deletions."""
    world = World(1)
    tree = new_tree(world)
    tree.update((b"%02d" % n, b"v" * 20) for n in range(24))  # six to a leaf
    world.seal(tree)
    world.write()
    copies = world.pager.counters()["page_copies"]
    assert [tree.delete(b"%02d" % n) for n in range(first, first + 3)] == [True] * 3
    assert tree.dirty_pages == world.pager.counters()["page_copies"] - copies == tree.height == 2
    assert world.pager.counters()["rotations"] == 0
    assert tree.delete_many(b"%02d" % n for n in range(first + 3, first + 5)) == 2  # a sixth is left: a sibling takes part
    assert tree.dirty_pages == world.pager.counters()["page_copies"] - copies == 3
    assert world.pager.counters()["rotations"] == 1
    assert tree.check() == []


def test_counts_of_shared_pages_go_with_the_last_who_shares_them() -> None:
    world = World(1)
    refs = world.pager.refs = Tree(world.pager, REFS_DESCRIPTOR, 1)
    tree, _root = filled(world, 100)
    tree.put(b"large", b"L" * 3000)
    world.seal(tree)
    copies = [tree.clone() for _ in range(3)]
    for copy in copies:
        copy.put(b"000050", b"changed")
        copy.write(b"large", 300, b"changed")
    assert len(refs) > 0
    for copy in copies:
        copy.clear()
    assert list(refs.items()) == []


@pytest.mark.parametrize(("start", "stop"), [(5, 17), (7, 18), (1, 12)], ids=["at the stop", "at the start", "in the first leaf"])
def test_a_leaf_of_which_a_range_left_little_is_evened_out_on_either_side_of_it(start: int, stop: int) -> None:
    world = World(1)
    tree = new_tree(world)
    tree.update((b"%02d" % n, b"v" * 20) for n in range(24))  # six to a leaf
    world.seal(tree)
    world.write()
    assert tree.delete_range(b"%02d" % start, b"%02d" % stop) == stop - start
    counters = world.pager.counters()
    assert counters["merges"] + counters["rotations"] == 1
    assert [key for key, _ in tree.items()] == [b"%02d" % n for n in range(24) if not start <= n < stop]
    assert tree.check() == []
