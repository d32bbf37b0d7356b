"""The cache over a device: its bound, its hand, sealed pages that wait, devices of every kind, pinned generations."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdstore.btree import Descriptor, Pager, Tree
from mdstore.btree._kernel import PAGE_HEADER_SIZE
from mdstore.device.file import FileDevice
from mdstore.errors import CorruptionError, DeviceFailed, InvalidRequest, StoreClosed
from tests.model.btree_world import MemoryPages, World, filled, new_tree


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


def test_pinned_generations_are_those_of_who_lives() -> None:
    def oldest() -> int | None:
        pinned = world.pager.pinned_generations
        assert world.pager.oldest_pinned_generation == min(pinned, default=None)
        return world.pager.oldest_pinned_generation

    world = World(10)
    tree = new_tree(world)
    tree.put(b"a", b"1")
    assert oldest() is None
    world.pager.generation = 5
    first = tree.snapshot()
    world.pager.generation = 9
    second = tree.items()
    third = tree.snapshot()
    fourth = first.snapshot()
    assert oldest() == 5
    assert world.pager.pinned_generations == [5, 9]
    first.close()
    assert world.pager.pinned_generations == [5, 9], "a snapshot of a snapshot is of its moment"
    fourth.close()
    assert oldest() == 9
    third.close()
    assert world.pager.pinned_generations == [9]
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
