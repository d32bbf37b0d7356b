"""Trees against sorted dictionaries: tiny pages (fan-out 3 to 5), clones that diverge, snapshots held across writes, embedded
roots growing out and in, reopening after every seal, and free space compared page by page."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mdstore.btree import REFS_DESCRIPTOR, Descriptor, Tree, TreeView
from tests.model.btree_world import World

KEYS = st.integers(0, 300).flatmap(lambda n: st.sampled_from((b"%05d" % n, b"%05d" % n * 6, b"p" * 25 + b"%05d" % n)))
VALUES = st.integers(0, 2**32).flatmap(
    lambda n: st.sampled_from((0, 3, 30, 54, 55, 60, 300, 5000)).map(lambda size: (b"%d." % n * size)[:size])
)
BATCH = st.lists(st.tuples(KEYS, VALUES), min_size=1, max_size=40)


@dataclass
class Subject:
    """A tree and what it should hold."""

    tree: Tree
    model: dict[bytes, bytes] = field(default_factory=dict)


class Trees(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.subjects: list[Subject] = []
        self.views: list[tuple[TreeView, dict[bytes, bytes]]] = []

    @initialize(seed=st.integers(0, 2**32), copies=st.sampled_from((1, 1, 2, 3)), embed=st.sampled_from((0, 150)))
    def start(self, seed: int, copies: int, embed: int) -> None:
        self.world = World(seed, cache_bytes=8000)
        self.world.pager.refs = Tree(self.world.pager, REFS_DESCRIPTOR, 1)
        tree = Tree(self.world.pager, Descriptor(copies=copies, embed_limit=embed), 2)
        self.key_max = 36 if copies == 1 else 20
        self.subjects = [Subject(tree)]

    def pick(self, which: int) -> Subject:
        return self.subjects[which % len(self.subjects)]

    @rule(which=st.integers(0, 4), batch=BATCH)
    def put(self, which: int, batch: list[tuple[bytes, bytes]]) -> None:
        subject = self.pick(which)
        for key, value in batch:
            key = key[-self.key_max :]
            assert subject.tree.put(key, value) == (key in subject.model)
            subject.model[key] = value

    @rule(which=st.integers(0, 4), batch=BATCH)
    def update(self, which: int, batch: list[tuple[bytes, bytes]]) -> None:
        subject = self.pick(which)
        short = [(key[-self.key_max :], value) for key, value in batch]
        fresh = len({key for key, _ in short} - subject.model.keys())
        assert subject.tree.update(short) == fresh
        subject.model.update(short)

    @rule(which=st.integers(0, 4), nth=st.integers(0, 20), at=st.integers(0, 5100), data=st.binary(min_size=1, max_size=600))
    def write_into_a_long_value(self, which: int, nth: int, at: int, data: bytes) -> None:
        subject = self.pick(which)
        keys = sorted(key for key, value in subject.model.items() if len(value) >= 300)
        if not keys:
            return
        key = keys[nth % len(keys)]
        old = subject.model[key].ljust(at, b"\0")
        subject.tree.write(key, at, data)
        subject.model[key] = old[:at] + data + old[at + len(data) :]

    @rule(which=st.integers(0, 4), first=st.integers(0, 300), step=st.integers(1, 9), keep=st.integers(0, 40))
    def delete_many(self, which: int, first: int, step: int, keep: int) -> None:
        subject = self.pick(which)
        keys = sorted(subject.model)[first::step][keep:]
        for key in keys:
            assert subject.tree.delete(key)
            del subject.model[key]
        assert not subject.tree.delete(b"never")

    @rule(which=st.integers(0, 4), low=st.none() | KEYS, high=st.none() | KEYS)
    def delete_range(self, which: int, low: bytes | None, high: bytes | None) -> None:
        subject = self.pick(which)
        gone = [k for k in subject.model if (low is None or k >= low) and (high is None or k < high)]
        assert subject.tree.delete_range(low, high) == len(gone)
        for key in gone:
            del subject.model[key]

    @rule(which=st.integers(0, 4), low=st.none() | KEYS, high=st.none() | KEYS, backwards=st.booleans())
    def read_range(self, which: int, low: bytes | None, high: bytes | None, backwards: bool) -> None:
        subject = self.pick(which)
        inside = [k for k in sorted(subject.model) if (low is None or k >= low) and (high is None or k < high)]
        expected = [(k, subject.model[k]) for k in inside]
        assert list(subject.tree.items(low, high, reverse=backwards)) == (expected[::-1] if backwards else expected)
        if low is not None:
            after = [k for k in sorted(subject.model) if k >= low]
            before = [k for k in sorted(subject.model) if k <= low]
            assert subject.tree.seek(low) == ((after[0], subject.model[after[0]]) if after else None)
            found = subject.tree.seek(low, reverse=True)
            assert found == ((before[-1], subject.model[before[-1]]) if before else None)

    @rule(which=st.integers(0, 4), keys=st.lists(KEYS, max_size=20))
    def read_points(self, which: int, keys: list[bytes]) -> None:
        subject = self.pick(which)
        assert subject.tree.get_many(keys) == [subject.model.get(key) for key in keys]
        for key in keys:
            assert subject.tree.get(key) == subject.model.get(key)
            assert (key in subject.tree) == (key in subject.model)

    @precondition(lambda self: len(self.subjects) < 4)
    @rule(which=st.integers(0, 4))
    def clone(self, which: int) -> None:
        subject = self.pick(which)
        self.subjects.append(Subject(subject.tree.clone(), dict(subject.model)))

    @precondition(lambda self: len(self.subjects) > 1)
    @rule(which=st.integers(0, 4))
    def drop_clone(self, which: int) -> None:
        subject = self.pick(which)
        subject.tree.clear()
        self.subjects.remove(subject)

    @precondition(lambda self: len(self.views) < 4)
    @rule(which=st.integers(0, 4))
    def snapshot(self, which: int) -> None:
        subject = self.pick(which)
        self.views.append((subject.tree.snapshot(), dict(subject.model)))

    @precondition(lambda self: self.views)
    @rule(which=st.integers(0, 4))
    def read_and_close_snapshot(self, which: int) -> None:
        view, model = self.views.pop(which % len(self.views))
        assert len(view) == len(model)
        assert list(view.items()) == sorted(model.items())
        assert list(view.keys(reverse=True)) == sorted(model, reverse=True)
        view.close()

    @rule(which=st.integers(0, 4), start=st.integers(0, 3), pages=st.integers(1, 12), write=st.booleans())
    def seal_leaves(self, which: int, start: int, pages: int, write: bool) -> None:
        """Ahead of a checkpoint; what is sealed may be written before it too, and changed again."""
        tree = self.pick(which).tree
        dirty, self.world.asked = tree.dirty_pages, 0
        following = tree.seal_leaves(self.world.allocate, start, pages)
        assert following == -1 or following >= start
        assert tree.dirty_pages == dirty - self.world.asked, "it asks for what it uses"
        assert self.world.asked <= pages * tree.descriptor.copies
        assert following == -1 or self.world.asked == pages * tree.descriptor.copies
        if write:
            self.world.pager.write_sealed()

    @rule(write=st.booleans(), reopen=st.booleans())
    def checkpoint(self, write: bool, reopen: bool) -> None:
        for subject in self.subjects:
            subject.tree.user_blob = b"%d" % len(subject.model)
        roots = [self.world.seal(subject.tree) for subject in self.subjects]
        refs = self.world.pager.refs
        assert refs is not None
        refs_root = refs.seal(self.world.allocate)
        if write:
            self.world.write()
            assert self.world.pager.dirty_bytes == 0, "whatever views hold"
        self.world.drain_freed()
        assert self.world.reached(refs, *(subject.tree for subject in self.subjects)) == self.world.held
        if reopen:
            self.world.pager.refs = Tree.open(self.world.pager, refs_root, REFS_DESCRIPTOR)
            for root, subject in zip(roots, self.subjects, strict=True):
                subject.tree = Tree.open(self.world.pager, root, subject.tree.descriptor)
                assert subject.tree.user_blob == b"%d" % len(subject.model)
                assert len(subject.tree) == len(subject.model)

    @invariant()
    def sound(self) -> None:
        for subject in self.subjects:
            assert subject.tree.check() == []
            assert len(subject.tree) == len(subject.model)
        assert self.views or self.world.pager.held_bytes == 0

    def teardown(self) -> None:
        for subject in self.subjects:
            assert list(subject.tree.items()) == sorted(subject.model.items())
        for view, model in self.views:
            assert list(view.items()) == sorted(model.items())


Trees.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTrees = Trees.TestCase


@pytest.mark.parametrize("copies", [1, 2])
def test_leaves_sealed_in_steps_beside_writes_leave_little_for_the_seal(copies: int) -> None:
    world = World(5, cache_bytes=20000)
    tree = Tree(world.pager, Descriptor(copies=copies), 2)
    model = {b"%05d" % key: b"v%d" % key for key in range(3000)}
    tree.update(model)
    before, at, steps = tree.dirty_pages, 0, 0
    while at >= 0:
        at = tree.seal_leaves(world.allocate, at, 10)
        key = b"%05d" % world.random.randrange(3000)
        model[key] = b"again"
        tree.put(key, model[key])
        steps += 1
        assert tree.is_dirty
        assert world.pager.write_sealed(4096) > 0 or at < 0
    assert steps > before // copies // 20, "a step is bounded"
    assert tree.dirty_pages < before * 0.7, "index pages, and what was written again"
    assert tree.seal_leaves(world.allocate, 0, 10**6) == -1
    world.seal(tree)
    world.write()
    world.drain_freed()
    assert world.reached(tree) == world.held
    opened = Tree.open(world.pager, tree.root())
    assert dict(opened.items()) == model
    assert opened.check() == []


@pytest.mark.parametrize("seed", range(12))
def test_long_random_history_with_tiny_pages(seed: int) -> None:
    """The machine's short histories seldom grow four levels; this one does, at fan-out 3 to 5 with rotations at index level."""
    print("seed", seed)
    world = World(seed, cache_bytes=20000)
    rng = world.random
    tree = Tree(world.pager, Descriptor(), 2)
    model: dict[bytes, bytes] = {}
    for phase in range(4):
        for _ in range(600):
            key = b"k" * rng.choice((0, 20)) + b"%07d" % rng.randrange(3000)
            if rng.random() < (0.8, 0.3, 0.8, 0.1)[phase]:
                value = rng.randbytes(rng.choice((1, 20, 50)))
                assert tree.put(key, value) == (key in model)
                model[key] = value
            else:
                key = rng.choice(sorted(model)) if model and rng.random() < 0.8 else key
                assert tree.delete(key) == (model.pop(key, None) is not None)
            if rng.random() < 0.02:
                tree.seal_leaves(world.allocate, rng.randrange(3), rng.randrange(1, 40))
        world.seal(tree)
        world.write()
        world.drain_freed()
        assert tree.check() == []
        assert list(tree.items()) == sorted(model.items())
        assert world.reached(tree) == world.held
    assert world.pager.counters()["rotations"] > 20
