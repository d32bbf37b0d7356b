"""Workload `transactions`: seeded store transactions of every kind, clones and checkpoints among them, against the model.

`content_of` is the comparison every engine is put to.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Final

from mdstore.device.explore import History, Workload
from mdstore.device.protocol import Device
from mdstore.engines.mem import MemStore
from mdstore.engines.protocol import ObjectStore
from mdstore.errors import CorruptionError, DeviceFailed, TransactionError
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from mdstore.store.wipe import Wipe
from mdstore.tools.crash.verify import Inconsistent, require, require_sound

SIZE: Final = 512 * 1024
GEOMETRY: Final[dict[str, Any]] = {"block_size": 512, "log_bytes": 32 * 1024}
SMALL: Final[dict[str, Any]] = {"cache_bytes": 64 * 1024, "dirty_bytes": 48 * 1024, "background": False}
SYNC_EVERY: Final = 3  # transactions

Content = dict[str, object]
COLLECTIONS = (b"alpha", b"beta")
MARKS: Final = b"marks"
NAMES = tuple(f"object-{i}".encode() for i in range(6))


def content_of(store: ObjectStore) -> Content:
    """Everything a store holds, one entry per collection and per stream of each object."""
    content: Content = {}
    for collection in store.list_collections():
        content[f"{collection!r}"] = True
        for name in store.list_objects(collection):
            where = f"{collection!r}/{name!r}"
            content[f"{where} data"] = (store.stat(collection, name)[0], store.read(collection, name))
            content[f"{where} attributes"] = store.getattrs(collection, name)
            content[f"{where} map"] = (store.map_header(collection, name), list(store.map_items(collection, name)))
        for name in store.list_revised(collection):
            for rev, created_rev in store.revisions(collection, name):
                data = store.read(collection, name, rev=rev - 1) if rev > 1 else b""
                content[f"{collection!r}/{name!r} revision {rev}"] = (created_rev, data)
    return content


class Mixed:
    """Random transactions over a few objects: every operation, one to five in a transaction, some of them refused."""

    def __init__(self, seed: int, *, large: int = 3000) -> None:
        self._random = Random(seed)
        self._large = large

    def transaction(self) -> Transaction:
        transaction = Transaction()
        for _ in range(self._random.choice((1, 1, 1, 2, 3, 5))):
            self._random.choices(_STEPS, weights=_WEIGHTS)[0](self, transaction)
        return transaction

    def _target(self) -> tuple[bytes, bytes]:
        return self._random.choice(COLLECTIONS), self._random.choice(NAMES)

    def _bytes(self, maximum: int) -> bytes:
        return self._random.randbytes(self._random.randrange(1, maximum))

    def write(self, transaction: Transaction) -> None:
        transaction.write(*self._target(), self._random.randrange(self._large), self._bytes(700))

    def write_large(self, transaction: Transaction) -> None:
        transaction.write(*self._target(), self._random.randrange(self._large), self._bytes(self._large * 2))

    def zero(self, transaction: Transaction) -> None:
        transaction.zero(*self._target(), self._random.randrange(self._large), self._random.randrange(self._large))

    def truncate(self, transaction: Transaction) -> None:
        collection, name = self._target()
        size = self._random.choice((0, self._random.randrange(self._large)))
        transaction.touch(collection, name).truncate(collection, name, size)

    def setattr(self, transaction: Transaction) -> None:
        transaction.setattr(*self._target(), self._random.choice((b"a", b"b", b"c")), self._bytes(60))

    def map_set(self, transaction: Transaction) -> None:
        keys = {self._random.randrange(400).to_bytes(2, "big"): self._bytes(90) for _ in range(self._random.randrange(1, 12))}
        transaction.map_set(*self._target(), keys)

    def map_set_large(self, transaction: Transaction) -> None:
        transaction.map_set(*self._target(), {b"large": self._bytes(self._large)})

    def map_header(self, transaction: Transaction) -> None:
        transaction.map_set_header(*self._target(), self._bytes(40))

    def map_remove(self, transaction: Transaction) -> None:
        collection, name = self._target()
        low = self._random.randrange(400)
        transaction.touch(collection, name)
        transaction.map_remove_range(collection, name, low.to_bytes(2, "big"), (low + 60).to_bytes(2, "big"))

    def remove(self, transaction: Transaction) -> None:
        transaction.remove(*self._target())  # refused when it is not there: nothing of the transaction may show

    def rename(self, transaction: Transaction) -> None:
        transaction.rename(*self._target(), *self._target())

    def clone(self, transaction: Transaction) -> None:
        collection, name = self._target()
        transaction.clone(collection, name, self._random.choice(NAMES))

    def clone_range(self, transaction: Transaction) -> None:
        collection, name = self._target()
        at, length, target = (self._random.randrange(self._large) // 512 * 512 for _ in range(3))
        transaction.clone_range(collection, name, self._random.choice(NAMES), at, length, target + self._random.choice((0, 0, 5)))

    def revise(self, transaction: Transaction) -> None:
        transaction.at_revision(self._random.randrange(12)).write(*self._target(), 0, self._bytes(600))

    def split(self, transaction: Transaction) -> None:
        bits, (one, other) = self._random.randrange(3), self._random.sample(COLLECTIONS, 2)
        transaction.split(one, bits, self._random.randrange(1 << bits), other)

    def merge(self, transaction: Transaction) -> None:
        one, other = self._random.sample(COLLECTIONS, 2)
        transaction.merge(one, other).create_collection(one)

    def trim(self, transaction: Transaction) -> None:
        transaction.trim_revisions(*self._target(), self._random.randrange(12))


_STEPS: tuple[Callable[[Mixed, Transaction], None], ...] = (
    Mixed.write, Mixed.write_large, Mixed.zero, Mixed.truncate, Mixed.setattr, Mixed.map_set, Mixed.map_set_large,
    Mixed.map_header, Mixed.map_remove, Mixed.remove, Mixed.rename, Mixed.clone,
    Mixed.clone_range, Mixed.revise, Mixed.trim, Mixed.split, Mixed.merge,
)  # fmt: skip
_WEIGHTS = (6, 2, 2, 2, 3, 6, 1, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1)


def outcome(store: ObjectStore, transaction: Transaction) -> tuple[int, type] | None:
    """Submit; None when applied, else which operation was refused and for what kind of reason. Damage and a failed device
    are no refusal: CorruptionError and DeviceFailed come through."""
    try:
        store.submit(transaction)
    except TransactionError as error:
        if isinstance(error.cause, CorruptionError | DeviceFailed):
            raise error.cause from error
        return error.index, type(error.cause)
    return None


def first_collections() -> Transaction:
    """What makes the collections that `Mixed` works in."""
    first = Transaction()
    for collection in COLLECTIONS:
        first.create_collection(collection)
    return first


def stamped(transaction: Transaction, number: int) -> Transaction:
    """With a mark of its own, last: no two states are equal, so what is recovered says which transactions it holds."""
    return transaction.setattr(MARKS, "last", "number", str(number).encode())


def workload_of_transactions(seed: int, steps: int, *, wipe: Wipe = "off") -> Workload:
    """`steps` transactions with a checkpoint whenever one is due (inline: one seed, one order), every third one waited for.
    Each stamps its number; what a crash leaves must be what a clean run up to that number holds."""

    def workload(device: Device, history: History) -> None:
        store, model, mixed = Store.create(device, **GEOMETRY, **SMALL, wipe=wipe), MemStore(), Mixed(seed)
        store.apply(first_collections().create_collection(MARKS))
        model.apply(first_collections().create_collection(MARKS))
        history.start(content_of(model))
        for step in range(steps):
            transaction = stamped(mixed.transaction(), step)
            expected = outcome(model, transaction)
            number = history.begin(content_of(model))
            found = outcome(store, transaction)
            if found != expected:
                raise Inconsistent(f"{transaction.operations} gave {found}, the model says {expected}")
            if step % SYNC_EVERY == 0:
                store.sync()
                history.acknowledge(number)
        require_sound(store)
        store.close()
        history.acknowledge(number)

    return workload


def reopen_transactions(device: Device, *, wipe: Wipe = "off") -> Content:
    """Recover, check everything, hand out the content; then once more, read from the trees that the checkpoint wrote."""
    store = Store.open(device, **SMALL, wipe=wipe)
    try:
        content = content_of(store)
        require_sound(store)
        require(content_of(store) == content, "a checkpoint changed what is read")
        return content
    finally:
        store.close()
