"""A Hypothesis state machine that drives any `ObjectStore` beside `MemStore` and compares every answer.

Transactions are built from few names, so that operations meet, and about half of the longer ones are refused somewhere.
Results, error kinds (index, operation, type and kind of the cause) and the content of whatever was touched must be equal.
A kill may lose commits nobody waited for: what comes back must be one of the model's `durable_prefixes`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any, NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mdstore.engines.mem import MemStore
from mdstore.engines.protocol import ObjectStore
from mdstore.errors import MdstoreError, TransactionError
from mdstore.store.transaction import HINT_UNCHECKED, Transaction
from tests.conformance.subjects import Rig, content, everything

Step = tuple[str, tuple[Any, ...]]  # a method of Transaction and its arguments

COLLECTIONS = [b"c"] * 12 + [b"c\0", b"d"]
NAMES = [b"a", b"a\0", b"b", b"c"] * 3 + [b"\xff", b"long" * 3]  # revisions of more would not fit pages of 256 bytes
ATTRIBUTES = [b"x", b"x\0", b"y", b"z" * 30]
SMALL = [b"", b"v", b"value", b"w" * 100]
VALUES = [*SMALL, *SMALL, b"large" * 300, b"huge" * 6000]
EDGES = [0, 1, 255, 256, 257, 4095, 4096, 4097, 9000, 65536, 70_000]
REVISIONS = [1, 2, 3, 5, 8, 13, 300]
LENGTHS = [0, 1, 7, 256, 4096, 5000, 20_000]


def a_key(rng: Random) -> bytes:
    """One of 61 keys of different lengths."""
    number = rng.randrange(61)
    return b"%02d" % number + b"k" * (number % 7)


def some_keys(rng: Random) -> list[bytes]:
    """Up to twelve keys, repetitions included."""
    return [a_key(rng) for _ in range(rng.randrange(13))]


def a_bound(rng: Random) -> bytes | None:
    """A key to start or stop at, or none."""
    return a_key(rng) if rng.randrange(4) else None


APART = {"set_floor", "split", "merge"}  # their second argument is no object's name
Draw = Callable[[Random], Any]


def _of(pool: list[Any]) -> Draw:
    return lambda rng: rng.choice(pool)


class World(NamedTuple):
    """The names that transactions are built from, and every operation with how its arguments are drawn."""

    names: list[bytes]
    operations: list[tuple[str, tuple[Draw, ...]]]


_COLLECTION, _EDGE = _of(COLLECTIONS), _of(EDGES)


def world_of(names: list[bytes]) -> World:
    """Every operation over objects of these names."""
    name = _of(names)
    return World(names, [
        ("write", (_EDGE, lambda rng: bytes([rng.randrange(1, 256)]) * rng.choice(LENGTHS))),
        ("write", (_EDGE, lambda rng: bytes([rng.randrange(1, 256)]) * rng.choice(LENGTHS))),
        ("zero", (_EDGE, _EDGE)),
        ("truncate", (_EDGE,)),
        ("touch", ()),
        ("create", ()),
        ("remove", ()),
        ("rename", (_COLLECTION, name)),
        ("clone", (name,)),
        ("clone", (name,)),
        ("clone_range", (name, _EDGE, _EDGE, _EDGE)),
        ("alloc_hint", (_EDGE, _EDGE, _of([0, HINT_UNCHECKED]))),
        ("setattr", (_of(ATTRIBUTES), _of(SMALL))),
        ("setattr", (_of(ATTRIBUTES), _of(SMALL))),
        ("rmattr", (_of(ATTRIBUTES),)),
        ("map_set", (lambda rng: [(key, rng.choice(VALUES)) for key in some_keys(rng)],)),
        ("map_set", (lambda rng: [(key, rng.choice(VALUES)) for key in some_keys(rng)],)),
        ("map_remove", (some_keys,)),
        ("map_remove_range", (a_bound, a_bound)),
        ("map_clear", ()),
        ("map_set_header", (_of(SMALL),)),
        ("remove_revision", (_of(REVISIONS),)),
        ("trim_revisions", (_of(REVISIONS),)),
    ])  # fmt: skip


FEW = world_of(NAMES)


UNSEEN = ("set_floor", "split", "merge")  # may change floors alone, which `everything` cannot show: a kill must not take them


def a_step(rng: Random, world: World = FEW) -> Step:
    """One operation, as likely as not to meet an object."""
    kind = rng.randrange(25)
    if kind == 0:
        return rng.choice(["create_collection", "remove_collection"]), (rng.choice(COLLECTIONS),)
    if kind == 1 and rng.randrange(2):
        return "at_revision", (rng.choice([0, *REVISIONS]),)
    if kind == 1:
        return rng.choice([("noop", ()), ("set_floor", (rng.randrange(1, 9), rng.choice([None, *COLLECTIONS])))])
    if kind == 2 and rng.randrange(2):
        return rng.choice([
            ("split", (rng.choice(COLLECTIONS), (bits := rng.randrange(3)), rng.randrange(1 << bits), rng.choice(COLLECTIONS))),
            ("merge", (rng.choice([b"c\0", b"d"]), rng.choice(COLLECTIONS))),
        ])  # fmt: skip
    method, draws = rng.choice(world.operations)
    return method, (rng.choice(COLLECTIONS), rng.choice(world.names), *(draw(rng) for draw in draws))


def some_steps(rng: Random, most: int = 5, world: World = FEW) -> list[Step]:
    """The operations of one transaction."""
    return [a_step(rng, world) for _ in range(rng.randint(1, most))]


def build(steps: list[Step], epoch: int | None = None, rev: int = 0) -> Transaction:
    """The transaction of these steps."""
    transaction = Transaction(epoch=epoch, rev=rev)
    for method, arguments in steps:
        getattr(transaction, method)(*arguments)
    return transaction


def outcome(call: Callable[[], Any]) -> Any:
    """What a call answered, or which kind of error it raised, in a form that compares equal between engines."""
    try:
        return call()
    except TransactionError as error:
        return ("refused", error.index, error.operation, type(error.cause), getattr(error.cause, "kind", None))
    except MdstoreError as error:
        return ("error", type(error), getattr(error, "kind", None), getattr(error, "name", None))


class StoreMachine(RuleBasedStateMachine):
    """Subclasses set `make_rig` (an engine on a fresh medium) and `discard` (what to do with the medium afterwards)."""

    make_rig: Callable[[], Rig]
    discard: Callable[[], None] = staticmethod(lambda: None)
    world: World = FEW

    def __init__(self) -> None:
        super().__init__()
        self.rig = type(self).make_rig()
        self.model = MemStore(delayed=True)
        self.bulk = 0

    @property
    def store(self) -> ObjectStore:
        return self.rig.store

    @initialize()
    def start(self) -> None:
        """Two collections, one of them inhabited, so that few transactions are refused for want of an object."""
        transaction = Transaction().create_collection(b"c").create_collection(b"c\0")
        for number, name in enumerate((b"a", b"a\0", b"b", b"c")):
            transaction.write(b"c", name, 0, b"data" * 1000 * number).setattr(b"c", name, b"x", b"v")
            transaction.map_set(b"c", name, [(b"%02d" % key, b"v" * key) for key in range(10 * number)])
        self._both(transaction)

    # -- changes -------------------------------------------------------------------------------------------------------

    @rule(rng=st.randoms(use_true_random=False))
    def transact(self, rng: Random) -> None:
        """One transaction, every choice in it known to Hypothesis, so that it can be made smaller."""
        self._transact(some_steps(rng, world=self.world))

    @rule(seed=st.integers(0, 1 << 32), count=st.integers(1, 40), most=st.integers(1, 8))
    def transact_often(self, seed: int, count: int, most: int) -> None:
        """Many transactions from one number: far more of them fit an example."""
        rng = Random(seed)
        for _ in range(count):
            epoch, rev = rng.choice([None, None, None, rng.randrange(1, 10)]), rng.choice([0, 0, 0, *REVISIONS])
            self._transact(some_steps(rng, most, self.world), epoch, rev)

    @precondition(lambda self: self.bulk < 4)
    @rule(first=st.integers(0, 500), count=st.integers(1, 300), size=st.sampled_from([0, 10, 400]))
    def make_many_objects(self, first: int, count: int, size: int) -> None:
        transaction = Transaction()
        for number in range(first, first + count):
            transaction.write(b"c", b"bulk-%d" % number, 0, b"d" * size).setattr(b"c", b"bulk-%d" % number, b"x", b"v")
        self.bulk += 1
        self._both(transaction)

    @rule(first=st.integers(0, 500), count=st.integers(1, 100))
    def remove_many_objects(self, first: int, count: int) -> None:
        names = outcome(lambda: self.model.list_objects(b"c", b"bulk-%d" % first, b"bulk.", count))
        if isinstance(names, list):
            transaction = Transaction()
            for name in names:
                transaction.remove(b"c", name)
            self._both(transaction)

    @rule(
        name=st.sampled_from(NAMES), first=st.integers(0, 2000), count=st.integers(1, 500), value=st.sampled_from(SMALL)
    )
    def set_many_keys(self, name: bytes, first: int, count: int, value: bytes) -> None:
        keys = {b"many-%05d" % number: value for number in range(first, first + count)}
        self._both(Transaction().map_set(b"c", name, keys))
        self._compare_object(b"c", name)

    # -- durability ----------------------------------------------------------------------------------------------------

    @rule()
    def sync(self) -> None:
        self.store.sync()
        self.model.sync()

    @rule()
    def reopen(self) -> None:
        self.model.sync()
        self.rig.reopen()
        assert everything(self.store) == everything(self.model)

    @rule()
    def kill(self) -> None:
        """What comes back is a state the model allows; the model goes on from there."""
        self.rig.kill()
        found = everything(self.store)
        allowed = [state for state in self.model.durable_prefixes() if everything(state) == found]
        assert allowed, "the store came back in a state that is no prefix of what was submitted"
        self.model = allowed[-1]

    # -- queries -------------------------------------------------------------------------------------------------------

    @rule(rng=st.randoms(use_true_random=False))
    def look_up(self, rng: Random) -> None:
        where = rng.choice(COLLECTIONS), rng.choice(self.world.names)
        offset, length, attribute, keys = rng.choice(EDGES), rng.choice(EDGES), rng.choice(ATTRIBUTES), some_keys(rng)
        self._same(lambda store: store.exists(*where))
        self._same(lambda store: store.read(*where, offset, length))
        self._same(lambda store: store.read(*where, offset))
        self._same(lambda store: store.getattr(*where, attribute))
        rev = rng.choice([*REVISIONS, 4, 299])
        self._same(lambda store: (store.exists(*where, rev=rev), store.revisions(*where)))
        self._same(lambda store: content(store, *where, rev))
        self._same(lambda store: store.map_get_many(*where, keys))
        self._same(lambda store: [store.map_get(*where, key) for key in keys])

    @rule(rng=st.randoms(use_true_random=False), reverse=st.booleans())
    def walk(self, rng: Random, reverse: bool) -> None:
        where, start, stop = (rng.choice(COLLECTIONS), rng.choice(NAMES)), a_bound(rng), a_bound(rng)
        self._same(lambda store: list(store.map_items(*where, start, stop, reverse=reverse)))

    @rule(seed=st.integers(0, 1 << 32), taken=st.integers(0, 5))
    def walk_beside_a_writer(self, seed: int, taken: int) -> None:
        rng = Random(seed)
        name = rng.choice(NAMES)
        walks = [outcome(partial(store.map_items, b"c", name)) for store in (self.store, self.model)]
        if isinstance(walks[1], tuple):
            assert walks[0] == walks[1]
            return
        seen: list[list[tuple[bytes, bytes]]] = [[record for record, _ in zip(walk, range(taken))] for walk in walks]
        for _ in range(5):
            self._transact(some_steps(rng))
        self._both(Transaction().map_clear(b"c", name))
        assert seen[0] + list(walks[0]) == seen[1] + list(walks[1])

    @rule(rng=st.randoms(use_true_random=False), limit=st.none() | st.integers(0, 9), reverse=st.booleans())
    def list_names(self, rng: Random, limit: int | None, reverse: bool) -> None:
        bounds = [None, *self.world.names]
        collection, start, stop = rng.choice(COLLECTIONS), rng.choice(bounds), rng.choice(bounds)
        self._same(lambda store: store.list_objects(collection, start, stop, limit, reverse=reverse))
        self._same(lambda store: store.list_revised(collection, start, stop, limit))

    @invariant()
    def same_collections(self) -> None:
        self._same(lambda store: store.list_collections())
        self._same(lambda store: store.statistics()["objects"])

    def teardown(self) -> None:
        try:
            assert everything(self.store) == everything(self.model)
        finally:
            self.store.close()
            type(self).discard()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _transact(self, steps: list[Step], epoch: int | None = None, rev: int = 0) -> None:
        self._both(build(steps, epoch, rev))
        if any(method in UNSEEN for method, _ in steps):
            self.store.sync()
            self.model.sync()
        for where in {arguments[:2] for method, arguments in steps if len(arguments) >= 2 and method not in APART}:
            self._compare_object(*where)

    def _both(self, transaction: Transaction) -> None:
        def submitted(store: ObjectStore) -> str:
            store.submit(transaction)
            return "applied"

        self._same(submitted)

    def _same(self, ask: Callable[[ObjectStore], Any]) -> Any:
        found, wanted = outcome(lambda: ask(self.store)), outcome(lambda: ask(self.model))
        assert found == wanted
        return found

    def _compare_object(self, collection: bytes, name: bytes) -> None:
        def whole(store: ObjectStore) -> tuple[Any, ...]:
            return content(store, collection, name), *store.stat(collection, name)[2:]

        self._same(whole)


MANY = world_of([b"n%05d" % number for number in range(3000)])


class ManyObjectsMachine(StoreMachine):
    """The same over thousands of objects, made hundreds at once: trees of several levels, more objects than the cache of onodes
    holds, splits and merges that move many. Names meet less often, so each rule does more."""

    world = MANY

    @initialize()
    def start(self) -> None:
        """Most of the names exist, with something of everything; some are clones, some have revisions."""
        self._both(Transaction().create_collection(b"c").create_collection(b"c\0"))
        for first in range(0, len(MANY.names), 500):
            self._make(first, 450, 7)
        assert len(self.model.list_objects(b"c")) > 2000
        self._settle()

    def _make(self, first: int, count: int, shade: int) -> None:
        transaction = Transaction(rev=shade % 3)
        names = [MANY.names[number % len(MANY.names)] for number in range(first, first + count)]
        for number, name in enumerate(names):
            kind = (number * shade + first) % 10
            if kind < 3:
                transaction.write(b"c", name, number % 5000, bytes([1 + kind]) * (number * shade % 900))
            elif kind < 5:
                transaction.setattr(b"c", name, b"x", b"v" * (number % 70))
            elif kind < 7:
                transaction.map_set(b"c", name, [(b"%02d" % key, b"w" * (number % 40)) for key in range(number % 6)])
            elif kind < 9:
                transaction.touch(b"c", name).clone(b"c", name, names[number // 2])
            else:
                transaction.touch(b"c", name).remove(b"c", name)
        self._both(transaction)

    @precondition(lambda self: self.bulk < 3)
    @rule(first=st.integers(0, 2999), count=st.integers(100, 600), size=st.integers(1, 30))
    def make_many_objects(self, first: int, count: int, size: int) -> None:
        self.bulk += 1
        self._make(first, count, size)

    @rule(first=st.integers(0, 2999), count=st.integers(50, 400))
    def remove_many_objects(self, first: int, count: int) -> None:
        names = outcome(lambda: self.model.list_objects(b"c", MANY.names[first], None, count))
        if isinstance(names, list):
            transaction = Transaction()
            for name in names:
                transaction.remove(b"c", name)
            self._both(transaction)

    @rule(bits=st.integers(0, 2), there=st.booleans())
    def move_many_objects(self, bits: int, there: bool) -> None:
        """Split by hash, or all, to the other collection and back."""
        source, target = (b"c", b"c\0") if there else (b"c\0", b"c")
        self._both(Transaction().split(source, bits, 0, target))
        self._settle()

    @rule(name=st.sampled_from(MANY.names), first=st.integers(0, 2000), count=st.integers(1, 500), value=st.sampled_from(SMALL))
    def set_many_keys(self, name: bytes, first: int, count: int, value: bytes) -> None:
        self._both(Transaction().map_set(b"c", name, {b"many-%05d" % key: value for key in range(first, first + count)}))
        self._compare_object(b"c", name)

    @rule(rng=st.randoms(use_true_random=False))
    def kill(self, rng: Random) -> None:  # type: ignore[override]
        """With few transactions in doubt: each state that may come back is compared whole."""
        self._settle()
        for _ in range(rng.randrange(3)):
            self._transact(some_steps(rng, world=MANY))
        super().kill()

    def _settle(self) -> None:
        self.store.sync()
        self.model.sync()
