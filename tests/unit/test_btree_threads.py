"""Many threads on one tree and one cache: histories are linearizable per key, snapshots are of one moment."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest

from mdstore.btree import REFS_DESCRIPTOR, PackedPairs, Tree, TreeView
from mdstore.errors import InvalidRequest, StoreClosed
from tests.model.btree_world import World, new_tree

Value = bytes | None


@dataclass(frozen=True)
class Event:
    """One operation on one key: it took effect at some moment between `start` and `end` (ticks of a shared counter)."""

    start: int
    end: int
    is_write: bool
    value: Value


def linearizable(events: list[Event], initial: Value) -> bool:
    """Whether some order of the events, each inside its interval, explains every read of one register.

    Depth-first over the set of events done and the last value written; an event may come next if no event not yet done
    ended before it began."""
    events = sorted(events, key=lambda event: event.start)
    seen: set[tuple[int, Value]] = set()
    stack: list[tuple[int, Value]] = [(0, initial)]
    everything = (1 << len(events)) - 1
    while stack:
        done, value = stack.pop()
        if done == everything:
            return True
        if (done, value) in seen:
            continue
        seen.add((done, value))
        left = [n for n in range(len(events)) if not done >> n & 1]
        horizon = min(events[n].end for n in left)
        for n in left:
            event = events[n]
            if event.start > horizon:
                break
            if event.is_write:
                stack.append((done | 1 << n, event.value))
            elif event.value == value:
                stack.append((done | 1 << n, value))
    return False


def test_the_checker_refuses_what_is_not_linearizable() -> None:
    write = Event(0, 1, True, b"a")
    assert linearizable([write, Event(2, 3, False, b"a")], None)
    assert not linearizable([write, Event(2, 3, False, None)], None)
    assert linearizable([write, Event(0, 3, False, None)], None)
    flip = [Event(0, 9, True, b"a"), Event(1, 2, False, b"a"), Event(3, 4, False, None)]
    assert not linearizable(flip, None)


def run_all(actions: list[Callable[[], None]]) -> None:
    """Run every action in a thread of its own; the first failure is raised here."""
    failures: list[BaseException] = []

    def guarded(action: Callable[[], None]) -> None:
        try:
            action()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def history(seed: int, rounds: int) -> None:
    """Threads put, delete, get and batch on a small key space with pages that split, merge, are sealed and evicted."""
    print("seed", seed)
    world = World(seed, cache_bytes=4000)
    tree = new_tree(world)
    keys = [b"%03d" % n * 4 for n in range(60)]
    tick = itertools.count()
    logs: list[dict[bytes, list[Event]]] = [defaultdict(list) for _ in range(5)]
    stop = threading.Event()

    def note(log: dict[bytes, list[Event]], key: bytes, start: int, is_write: bool, value: Value) -> None:
        log[key].append(Event(start, next(tick), is_write, value))

    def worker(number: int) -> None:
        rng = random.Random(seed * 100 + number)
        log = logs[number]
        for step in range(rounds):
            key, value = rng.choice(keys), b"%d.%d" % (number, step) + b"." * rng.choice((0, 20, 40))
            batch = rng.sample(keys, 12)
            kind = rng.randrange(6)
            start = next(tick)
            if kind == 0:
                tree.put(key, value)
                note(log, key, start, True, value)
            elif kind == 1:
                tree.delete(key)
                note(log, key, start, True, None)
            elif kind == 2:
                note(log, key, start, False, tree.get(key))
            elif kind == 3:
                tree.update((key, value) for key in batch)
                end = next(tick)
                for key in batch:
                    log[key].append(Event(start, end, True, value))
            elif kind == 4:
                found = tree.get_many(batch)
                end = next(tick)
                for key, read in zip(batch, found, strict=True):
                    log[key].append(Event(start, end, False, read))
            else:
                tree.delete_many(batch)
                end = next(tick)
                for key in batch:
                    log[key].append(Event(start, end, True, None))

    def checkpointer() -> None:
        while not stop.is_set():
            tree.seal(world.allocate)
            world.write()
            world.drain_freed()
            view = tree.snapshot()
            first = list(view.items())
            assert [value for _, value in first] == view.get_many([key for key, _ in first])
            assert list(view.items(reverse=True)) == first[::-1]
            view.close()

    def until_done() -> None:
        try:
            run_all([lambda number=number: worker(number) for number in range(4)])  # type: ignore[misc]
        finally:
            stop.set()

    run_all([until_done, checkpointer])
    assert tree.check() == []
    final = dict(tree.items())
    for key in keys:
        events = sorted((event for log in logs for event in log[key]), key=lambda event: event.start)
        end = next(tick)
        events.append(Event(end, end + 1, False, final.get(key)))
        assert linearizable(events, None), (seed, key)


@pytest.mark.parametrize("seed", range(int(os.environ.get("MDSTORE_STRESS_SEEDS", "3"))))
def test_every_key_has_a_linearizable_history(seed: int) -> None:
    history(seed, 150)


def test_a_snapshot_is_of_one_moment_while_batches_run() -> None:
    """Each update writes one number under many keys; a view taken at any time holds groups of one number each."""
    world = World(1, page_size=512)
    tree = new_tree(world)
    groups = [[b"%02d.%04d" % (group, n) for n in range(200)] for group in range(2)]
    everything = [key for group in groups for key in group]
    for group in groups:
        tree.update((key, b"0") for key in group)
    stop = threading.Event()

    def writer(group: list[bytes]) -> None:
        for number in range(1, 40):
            tree.update([(key, b"%d" % number) for key in group])
        stop.set()

    def reader() -> None:
        while not stop.is_set():
            view = tree.snapshot()
            scanned = dict(view.items())
            assert scanned == dict(zip(everything, view.get_many(everything), strict=True)), "a view changes under its reader"
            assert len(scanned) == 400
            view.close()

    run_all([lambda: writer(groups[0]), lambda: writer(groups[1]), reader])
    assert {tree.get(key) for key in everything} == {b"39"}


def test_writers_of_different_trees_share_one_cache() -> None:
    world = World(2, cache_bytes=1 << 14)
    world.pager.refs = Tree(world.pager, REFS_DESCRIPTOR, 1)
    trees = [new_tree(world, 10 + n) for n in range(4)]
    lock = threading.Lock()  # the free space of this world, not the trees

    def allocate(pages: int) -> list[tuple[int, int]]:
        with lock:
            return world.allocate(pages)

    def work(number: int) -> None:
        rng = random.Random(number)
        tree = trees[number]
        model: dict[bytes, bytes] = {}
        for step in range(25):
            batch = [(b"%04d" % rng.randrange(400), b"%d" % step * 6) for _ in range(40)]
            tree.update(batch)
            model.update(batch)
            if step % 5 == 0:
                tree.seal(allocate)
                copy = tree.clone()
                copy.delete_range(b"0100", b"0300")
                assert len(copy) == sum(not b"0100" <= key < b"0300" for key in model)
                copy.clear()
                with lock:
                    world.pager.write_sealed()
            assert list(tree.items()) == sorted(model.items())

    run_all([lambda number=number: work(number) for number in range(4)])  # type: ignore[misc]
    for tree in trees:
        assert tree.check() == []


def test_long_values_are_written_by_range_beside_readers_views_and_seals() -> None:
    """Each write covers two pages and the border between them with one byte: a reader that finds two saw half of it."""
    world = World(4)
    tree = new_tree(world)
    for n in range(3):
        tree.put(b"v%d" % n, b"\0" * 256 * 40)
    ended: list[int] = []  # writers

    def write(number: int) -> None:
        rng = random.Random(number)
        try:
            for step in range(300):
                tree.write(b"v%d" % number, 256 * 2 * rng.randrange(20), bytes([step % 256]) * 512)
        finally:
            ended.append(number)

    def read(number: int) -> None:
        rng = random.Random(10 + number)
        while len(ended) < 3:
            at = 256 * 2 * rng.randrange(20)
            key = b"v%d" % rng.randrange(3)
            with tree.snapshot() as view:
                for source in (tree, view):
                    found = source.read(key, at, 512)
                    assert found is not None
                    assert len(set(found)) == 1
                value = view.get(key)
                assert value == b"".join(view.read(key, place, 512) or b"" for place in range(0, 256 * 40, 512))

    def seal() -> None:
        while len(ended) < 3:
            tree.seal(world.allocate)
            world.pager.write_sealed()

    run_all([partial(write, 0), partial(write, 1), partial(write, 2), partial(read, 0), partial(read, 1), seal])
    world.seal(tree)
    world.write()
    world.drain_freed()
    assert tree.check() == []
    assert world.reached(tree) == world.held


def test_long_values_are_read_through_views_while_their_seal_gives_them_addresses() -> None:
    """A view taken before shares the leaf, whose cells the seal fills in: what it reads stays, and a check finds nothing."""
    world = World(6)
    tree = new_tree(world)
    for step in range(60):
        values = {b"v%d" % n: bytes([step]) * 256 * 40 for n in range(3)}
        for key, value in values.items():
            tree.put(key, value)
        sealed = threading.Event()

        def until_sealed(action: Callable[[], None], sealed: threading.Event = sealed) -> None:
            last = False
            while not last:
                last = sealed.is_set()
                action()

        def read(view: TreeView, values: dict[bytes, bytes] = values) -> None:
            for key, value in values.items():
                assert view.read(key, len(value) - 2, 9) == value[-2:]

        def scan(view: TreeView, values: dict[bytes, bytes] = values) -> None:
            assert dict(view.items()) == values

        def check() -> None:
            assert tree.check() == []

        def seal(sealed: threading.Event = sealed) -> None:
            tree.seal(world.allocate)
            sealed.set()

        with tree.snapshot() as view:
            run_all([partial(until_sealed, action) for action in (partial(read, view), partial(scan, view), check)] + [seal])
        world.write()
    world.drain_freed()
    assert world.reached(tree) == world.held


def test_a_record_that_is_replaced_is_counted_all_the_while() -> None:
    """The tree of shared pages looked empty while its only count was raised: a change of another tree took its pages for its own,
    and freed what clones still reach."""
    tree = new_tree(World(6))
    tree.put(b"long", b"x" * 1000)  # beside it no record is replaced in its place
    tree.put(b"key", b"")
    replacements = PackedPairs([(b"key", b"." * (step % 40)) for step in range(5000)])
    seen: set[int] = set()
    ended: list[bool] = []

    def replace() -> None:
        for _ in range(10):
            tree.update(replacements)
        ended.append(True)

    def count() -> None:
        while not ended:
            seen.update([len(tree) for _ in range(1000)])

    run_all([replace, count])
    assert seen == {2}


def test_closing_beside_operations_ends_them_or_lets_them_end() -> None:
    """A view closed by one thread while another reads it: the reader gets its answer or StoreClosed."""
    world = World(4, cache_bytes=4000)
    tree = new_tree(world)
    model = {b"%05d" % n: b"%d" % n * 5 for n in range(600)}
    tree.update(model)
    world.seal(tree)
    world.write()
    keys = list(model)
    for _ in range(60):
        view = tree.snapshot()
        answers: list[object] = []

        def read(view: TreeView = view, answers: list[object] = answers) -> None:
            try:
                while True:
                    answers.append(view.get_many(keys) == list(model.values()))
            except StoreClosed:
                answers.append("closed")

        def close(view: TreeView = view, answers: list[object] = answers) -> None:
            while not answers:
                time.sleep(0)
            view.close()

        run_all([read, close])
        assert answers.pop() == "closed"
        assert all(answers)
    assert world.pager.oldest_pinned_generation is None


def test_an_iterator_that_two_threads_step_gives_each_record_once() -> None:
    """Or refuses the one that comes while the other is on its way to the next leaf."""
    world = World(5, cache_bytes=4000)
    tree = new_tree(world)
    model = {b"%05d" % n: b"%d" % n * 5 for n in range(3000)}
    tree.update(model)
    world.seal(tree)
    world.write()
    records = tree.items()
    found: list[tuple[bytes, bytes]] = []

    def step() -> None:
        while True:
            try:
                found.append(next(records))
            except InvalidRequest:
                time.sleep(0)
            except StopIteration:
                return

    run_all([step, step])
    assert sorted(found) == sorted(model.items())
