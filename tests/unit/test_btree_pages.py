"""Pages on a device: damage, copies, hostile insides, spilled values, what is given up."""

from __future__ import annotations

import random

import pytest

from mdstore.btree import REFS_DESCRIPTOR, Descriptor, Pager, Tree
from mdstore.errors import CorruptionError, InvalidRequest, LimitExceeded
from tests.model.btree_world import World, filled, new_tree


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
