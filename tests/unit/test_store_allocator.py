"""The allocator: C-LOOK order, exact accounting, limbo, and agreement with a set of block numbers."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdstore.errors import CorruptionError, NoSpace
from mdstore.store.allocator import Allocator, Stripes, merge_runs


def make(*extents: tuple[int, int], cursor: int = 0) -> Allocator:
    allocator = Allocator(cursor)
    allocator.load(extents)
    return allocator


def test_goes_on_from_the_cursor_and_uses_the_tail_of_a_spanning_extent() -> None:
    # The 2008 allocator skipped an extent that began before its cursor (its NEAR_LAST_FWD problem).
    allocator = make((0, 100), cursor=40)
    assert allocator.allocate(10) == [(40, 10)]
    assert allocator.allocate(10) == [(50, 10)]


def test_wraps_to_the_lowest_address_when_nothing_is_ahead() -> None:
    allocator = make((0, 10), (50, 10), cursor=60)
    assert allocator.allocate(4) == [(0, 4)]
    assert allocator.allocate(4) == [(4, 4)]


def test_takes_several_runs_when_no_extent_is_large_enough() -> None:
    allocator = make((0, 3), (10, 5), (20, 2))
    runs = allocator.allocate(10)
    assert sum(blocks for _, blocks in runs) == 10
    assert allocator.free_blocks == 0


def test_refuses_more_than_there_is_and_changes_nothing() -> None:
    allocator = make((0, 3))
    with pytest.raises(NoSpace):
        allocator.allocate(4)
    assert allocator.extents() == [(0, 3)]


def test_freed_blocks_wait_for_the_superblock_that_no_longer_reaches_them() -> None:
    allocator = make((10, 10))
    allocator.allocate(10)
    allocator.free(10, 4, 3)
    assert allocator.take_changes() == ([(10, 10)], [(10, 4)])
    allocator.seal_limbo(7)
    assert allocator.release(6, []) == []
    assert allocator.release(7, [2, 7, 8]) == [], "a reader of epoch 7 may still look at them"
    assert (allocator.limbo_blocks, allocator.held_blocks([2, 7, 8])) == (4, 4)
    assert allocator.held_blocks([2, 8]) == 0, "that reader has ended"
    assert allocator.release(8, [2, 8]) == [(10, 4)], "what one of epoch 2 reaches was born by then, and they in 3"
    assert allocator.limbo_blocks == 0
    assert allocator.extents() == [(10, 4)]


def test_freed_blocks_of_several_births_are_told_to_the_tree_as_one_run() -> None:
    allocator = make((0, 16))
    allocator.allocate(16)
    for start, birth in ((4, 2), (0, 1), (8, 1), (6, 2)):
        allocator.free(start, 2 if birth == 2 else 4, birth)
    assert allocator.take_changes() == ([(0, 16)], [(0, 12)])
    allocator.seal_limbo(3)
    assert merge_runs(allocator.release(3, [1])) == [(4, 4)]
    assert merge_runs(allocator.release(4, [])) == [(0, 4), (8, 4)]
    allocator.free(0, 4, 1)
    allocator.free(2, 4, 2)
    with pytest.raises(CorruptionError):
        allocator.take_changes()


def test_freeing_twice_is_damage_not_silence() -> None:
    allocator = make((0, 4))
    with pytest.raises(CorruptionError):
        allocator.add_free(2, 1)
    with pytest.raises(CorruptionError):
        merge_runs([(0, 4), (3, 2)])


def test_taking_what_is_in_use_is_damage() -> None:
    allocator = make((5, 5))
    allocator.take(6, 2)
    assert allocator.extents() == [(5, 1), (8, 2)]
    for start, blocks in ((6, 1), (8, 3), (0, 1), (20, 1)):
        with pytest.raises(CorruptionError):
            allocator.take(start, blocks)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9), st.integers(0, 63)), max_size=60), st.integers(0, 63))
def test_agrees_with_a_set_of_blocks(steps: list[tuple[bool, int, int]], cursor: int) -> None:
    allocator, free, used = make((0, 64), cursor=cursor), set(range(64)), []
    for epoch, (take, blocks, pick) in enumerate(steps):
        if take and blocks <= len(free):
            for start, length in allocator.allocate(blocks):
                assert set(range(start, start + length)) <= free
                free -= set(range(start, start + length))
                used.append((start, length))
        elif used:
            run = used.pop(pick % len(used))
            allocator.free(*run, epoch)
            allocator.take_changes()
            allocator.seal_limbo(epoch)
            allocator.release(epoch, [])
            free |= set(range(run[0], run[0] + run[1]))
        assert allocator.free_blocks == len(free)
        blocks_listed = {block for start, length in allocator.extents() for block in range(start, start + length)}
        assert blocks_listed == free
        starts = [start for start, _ in allocator.extents()]
        ends = [start + length for start, length in allocator.extents()]
        assert all(end < start for end, start in zip(ends, starts[1:])), "neighbours are merged"


def test_large_data_takes_whole_stripes_of_the_medium_and_the_rest_follows() -> None:
    allocator = Allocator(3, Stripes(8, 2))
    allocator.load([(0, 100)])
    assert allocator.allocate_data(20) == [(10, 16), (26, 4)]
    assert (allocator.whole_stripes, allocator.partial_stripes) == (2, 1)
    assert allocator.cursor == 30
    assert allocator.allocate(3) == [(30, 3)], "small ones go on where the last ended"
    assert allocator.allocate_data(8) == [(34, 8)]
    assert allocator.allocate_data(5) == [(42, 5)], "less than a stripe"
    assert (allocator.whole_stripes, allocator.partial_stripes) == (3, 2)
    assert allocator.free_blocks == 100 - 20 - 3 - 8 - 5


def test_where_no_extent_holds_a_stripe_data_takes_what_there_is() -> None:
    allocator = Allocator(0, Stripes(8))
    allocator.load([(1, 7), (9, 7), (17, 14), (33, 7)])
    assert sum(blocks for _, blocks in allocator.allocate_data(24)) == 24
    assert allocator.whole_stripes == 0
    assert allocator.partial_stripes >= 3
    with pytest.raises(NoSpace):
        allocator.allocate_data(12)


@pytest.mark.parametrize(("blocks", "first"), [(1, 0), (4, 0), (4, 3), (7, 5)])
def test_stripes_agree_with_counting(blocks: int, first: int) -> None:
    stripes = Stripes(blocks, first)
    of = [(block - first) // blocks for block in range(60)]
    for start in range(40):
        assert stripes.next_start(start) == next(b for b in range(start, 60) if (b - first) % blocks == 0)
        for count in range(1, 20):
            inside = of[start : start + count]
            assert stripes.touched_by(start, count) == len(set(inside))
            assert stripes.whole_in(start, count) == sum(inside.count(stripe) == blocks for stripe in set(inside))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.booleans()), max_size=40), st.integers(1, 9), st.integers(0, 8))
def test_data_on_stripes_is_exact_and_apart(steps: list[tuple[int, bool]], blocks: int, first: int) -> None:
    allocator, free, used = Allocator(0, Stripes(blocks, first % blocks)), set(range(200)), []
    allocator.load([(0, 200)])
    for count, give_back in steps:
        if give_back and used:
            start, length = used.pop(len(used) // 2)
            allocator.add_free(start, length)
            free |= set(range(start, start + length))
        elif count <= len(free):
            runs = allocator.allocate_data(count)
            taken = [block for start, length in runs for block in range(start, start + length)]
            assert len(taken) == len(set(taken)) == count
            assert free.issuperset(taken)
            free -= set(taken)
            used += runs
        assert allocator.free_blocks == len(free)
        assert {b for start, length in allocator.extents() for b in range(start, start + length)} == free
