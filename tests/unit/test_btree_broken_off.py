"""Iterators, merges and cursors that meet what cannot be read: how each goes on, or that it does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mdstore.btree import Pager, Tree
from mdstore.errors import CorruptionError, DeviceFailed, InvalidRequest
from tests.model.btree_world import MemoryPages, World, new_tree

MERGES: dict[str, tuple[Callable[[Tree, Tree], Iterator[bytes]], Callable[[set[bytes], set[bytes]], set[bytes]]]] = {
    "union": (Tree.union, set.union), "intersection": (Tree.intersection, set.intersection),
    "difference": (Tree.difference, set.difference),
}  # fmt: skip
KEYS = ({b"%05d" % n for n in range(0, 900, 2)}, {b"%05d" % n for n in range(0, 900, 3)})


class Failing(MemoryPages):
    """A device whose `fail_at`-th read fails, once; before it, `before_read` is called."""

    fail_at = -1
    before_read: Callable[[], object] | None = None

    def read(self, offset: int, length: int) -> bytes:
        self.fail_at -= 1
        if self.before_read is not None:
            self.before_read()
        if self.fail_at == -1:
            raise DeviceFailed("read", str(offset), "told to fail")
        return super().read(offset, length)


def two_trees() -> tuple[Failing, tuple[Tree, Tree]]:
    """Of which nothing is in memory."""
    world = World(1)
    trees = [new_tree(world, 6 + n, value_size=0) for n in range(2)]
    for tree, keys in zip(trees, KEYS, strict=True):
        tree.update((key, b"") for key in keys)
    roots = [world.seal(tree) for tree in trees]
    world.write()
    device = Failing()
    device.image = world.device.image
    pager = Pager(device, page_size=256, cache_bytes=0)
    return device, (Tree.open(pager, roots[0]), Tree.open(pager, roots[1]))


@pytest.mark.parametrize("name", MERGES)
def test_a_merge_that_failed_gives_nothing_more(name: str) -> None:
    """One side had gone on, the other not: after the error keys came that were wrong, and others never."""
    merge, model = MERGES[name]
    expected = sorted(model(*KEYS))
    device, (first, second) = two_trees()
    assert list(merge(first, second)) == expected
    reads, failures = device.reads, 0
    for fail_at in range(reads):
        device, (first, second) = two_trees()
        given: list[bytes] = []
        device.fail_at = fail_at
        try:
            merged = merge(first, second)
        except DeviceFailed:
            continue  # it never began
        with pytest.raises(DeviceFailed):
            given.extend(merged)
        failures += 1
        assert given == expected[: len(given)]
        for _ in range(3):
            with pytest.raises(StopIteration):
                next(merged)
        assert first.pager.oldest_pinned_generation is None, "both sides were let go"
        assert list(merge(first, second)) == expected
    assert failures > reads // 2


def test_a_merge_asked_again_on_its_way_refuses_and_goes_on() -> None:
    device, (first, second) = two_trees()
    merged = first.union(second)
    refused = []

    def ask_again() -> None:
        with pytest.raises(InvalidRequest, match="in use by another thread") as error:
            next(merged)
        refused.append(error)

    device.before_read = ask_again
    assert list(merged) == sorted(KEYS[0] | KEYS[1])
    assert len(refused) > 10


# -- a long value that cannot be read ----------------------------------------------------------------------------------
def with_a_damaged_value() -> tuple[Tree, list[bytes], bytes]:
    """A tree opened anew, its keys, and the key whose long value has a flipped bit."""
    world = World(1)
    tree = new_tree(world)
    keys = [b"%02d" % n for n in range(20)]
    for key in keys:
        tree.put(key, key * 400 if key in (b"07", b"08") else key)
    root = world.seal(tree)
    world.write()
    at = world.device.image.index(b"07" * 100)
    world.device.image[at + 300] ^= 1
    return Tree.open(Pager(world.device, page_size=256), root), keys, b"07"


def given_and_failed(step: Callable[[], Any]) -> list[bytes | None]:
    """Keys in the order in which they came, None for an error, until there is no more."""
    found: list[bytes | None] = []
    while True:
        try:
            record = step()
        except CorruptionError:
            found.append(None)
            continue
        except StopIteration:
            return found
        if record is None:
            return found
        assert record[1] in (record[0], record[0] * 400)
        found.append(record[0])


@pytest.mark.parametrize("reverse", [False, True])
def test_iterators_and_cursors_go_on_behind_a_value_that_cannot_be_read(reverse: bool) -> None:
    tree, keys, bad = with_a_damaged_value()
    expected = [None if key == bad else key for key in (keys[::-1] if reverse else keys)]
    assert given_and_failed(tree.items(reverse=reverse).__next__) == expected
    assert list(tree.keys(reverse=reverse)) == (keys[::-1] if reverse else keys)
    cursor = tree.cursor()
    assert given_and_failed(cursor.prev if reverse else cursor.next) == expected
    assert cursor.record is None
    assert (cursor.next() if reverse else cursor.prev()) is not None


def test_a_cursor_stands_at_a_record_whose_value_cannot_be_read() -> None:
    """It promised to lose its place, and did not; the place is good, only the value is not."""
    tree, _, bad = with_a_damaged_value()
    cursor = tree.cursor()
    for find in (lambda: cursor.seek(bad), lambda: cursor.record, cursor.next, lambda: cursor.record):
        if find == cursor.next:
            assert cursor.prev() == (b"06", b"06")
        with pytest.raises(CorruptionError):
            find()
    assert cursor.next() == (b"08", b"08" * 400) == cursor.record
    with pytest.raises(CorruptionError):
        cursor.prev()
    assert cursor.prev() == (b"06", b"06")
    assert (cursor.first(), cursor.last()) == ((b"00", b"00"), (b"19", b"19"))
