"""The engines under test, and the ways to disturb them between two calls of a test.

A `Rig` owns the medium of one engine and opens stores on it. A `Subject` looks like the store, but may reopen it, or
kill and reopen it, before each query: what a query answers must not depend on that.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mdstore.device.memory import MemoryDevice
from mdstore.engines.lmdb import LmdbStore
from mdstore.engines.mem import MemStore
from mdstore.engines.protocol import Commit, ObjectStore
from mdstore.limits import MIB
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction

T = Transaction
CHUNK = 4096


class Rig(Protocol):
    """One engine on one medium."""

    @property
    def store(self) -> ObjectStore:
        """The store as it stands open now."""

    def reopen(self) -> None:
        """Close `store` and open another on the same medium."""

    def kill(self) -> None:
        """Replace `store` by one that opens on what a crash at this moment leaves."""

    def open_read_only(self) -> ObjectStore | None:
        """Close `store`; a read-only store on the same medium, or None where the engine has no such thing."""


class MemRig:
    """`mem:`. Nothing outlives the process, so reopening has nothing to do."""

    def __init__(self, _: Path) -> None:
        self.store: ObjectStore = MemStore()

    def reopen(self) -> None:
        """Nothing to do."""

    def kill(self) -> None:
        """Nothing to do."""

    def open_read_only(self) -> ObjectStore | None:
        return None


class DelayedMemRig:
    """`mem:` with delayed durability, whose crash stands for both ends of a process."""

    def __init__(self, _: Path) -> None:
        self._store = MemStore(delayed=True)

    @property
    def store(self) -> ObjectStore:
        return self._store

    def reopen(self) -> None:
        self._store.sync()
        self.kill()

    def kill(self) -> None:
        self._store = self._store.crash()

    def open_read_only(self) -> ObjectStore | None:
        return None


class LmdbRig:
    """`lmdb:`. A kill leaves the old environment without a sync and opens a copy of its file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory / "store-0"
        self._kills = 0
        self._store = LmdbStore(self._directory)

    @property
    def store(self) -> ObjectStore:
        return self._store

    def reopen(self) -> None:
        self._store.close()
        self._store = LmdbStore(self._directory)

    def kill(self) -> None:
        self._kills += 1
        survivor = self._directory.with_name(f"store-{self._kills}")
        survivor.mkdir()
        (survivor / "data.mdb").write_bytes((self._directory / "data.mdb").read_bytes())
        self._store.close()
        self._directory = survivor
        self._store = LmdbStore(survivor)

    def open_read_only(self) -> ObjectStore | None:
        self._store.close()
        return LmdbStore(self._directory, read_only=True)


class BtreeRig:
    """`btree:` on a device in memory. A kill drops the store without a word and opens a copy of the device's bytes."""

    def __init__(
        self, _: Path, size_bytes: int = 16 * MIB, log_bytes: int = MIB, block_size: int = 4096, onodes: int = 16384
    ) -> None:
        self._device = MemoryDevice(size_bytes)
        self._onodes = onodes
        self._store = Store.create(
            self._device, block_size=block_size, log_bytes=log_bytes, onodes=onodes, background=False
        )

    @property
    def store(self) -> ObjectStore:
        return self._store

    def reopen(self) -> None:
        self._store.close()
        self.kill()

    def kill(self) -> None:
        self._device = MemoryDevice.from_bytes(self._device.image())
        self._store = Store.open(self._device, onodes=self._onodes, background=False)

    def open_read_only(self) -> ObjectStore | None:
        self._store.close()
        return Store.open(MemoryDevice.from_bytes(self._device.image()), read_only=True)


class Kind(NamedTuple):
    """An engine and what happens to it before each query: `as-is`, `reopened` or `killed`."""

    engine: str
    disturbance: str
    make: Callable[[Path], Rig]


RIGS: dict[str, Callable[[Path], Rig]] = {
    "mem": MemRig,
    "mem-delayed": DelayedMemRig,
    "btree": BtreeRig,
    "lmdb": LmdbRig,
}
KINDS = [
    Kind(engine, disturbance, make)
    for engine, make in RIGS.items()
    for disturbance in ("as-is", "reopened", "killed")
    if engine != "mem" or disturbance == "as-is"
]


class Subject:
    """A store that is disturbed before each query. Changes go to the store as it stands; `rig.store` is never disturbed."""

    def __init__(self, rig: Rig, disturbance: str) -> None:
        self.rig = rig
        self._disturbance = disturbance
        self._open: list[Commit] = []

    def submit(self, transaction: Transaction) -> Commit:
        commit = self.rig.store.submit(transaction)
        self._open.append(commit)
        return commit

    def apply(self, transaction: Transaction) -> None:
        self.rig.store.apply(transaction)

    def sync(self) -> None:
        self.rig.store.sync()

    def __getattr__(self, query: str) -> Any:
        self._disturb()
        return getattr(self.rig.store, query)

    def _disturb(self) -> None:
        for commit in self._open:
            commit.wait()
        self._open.clear()
        if self._disturbance == "reopened":
            self.rig.reopen()
        elif self._disturbance == "killed":
            self.rig.kill()


# -- everything a store holds, in a form in which two engines compare equal -----------------------------------------------


class Content(NamedTuple):
    """One object. `chunks`: the data's aligned pieces that are not all zeros."""

    size: int
    chunks: dict[int, bytes]
    attributes: dict[bytes, bytes]
    header: bytes
    map: list[tuple[bytes, bytes]]


def content(store: ObjectStore, collection: bytes | str, name: bytes | str, rev: int = 0) -> Content:
    """One object (at a revision), whole, read through the extents; what lies outside them must be zeros
    (`test_holes_read_as_zeros`)."""
    chunks = {}
    for start, length in store.extents(collection, name, rev=rev):
        for offset in range(start - start % CHUNK, start + length, CHUNK):
            piece = store.read(collection, name, offset, CHUNK, rev=rev)
            if piece.strip(b"\0"):
                chunks[offset] = piece
    return Content(
        store.stat(collection, name, rev=rev).size,
        chunks,
        store.getattrs(collection, name, rev=rev),
        store.map_header(collection, name, rev=rev),
        list(store.map_items(collection, name, rev=rev)),
    )


def at_revision(subject: Subject, collection: bytes | str, name: bytes | str, rev: int) -> Content:
    """One object as it was at a revision. Disturbs the subject once."""
    subject.exists(collection, name)
    return content(subject.rig.store, collection, name, rev)


def kept(store: ObjectStore, collection: bytes) -> dict[Any, Any]:
    """Every revision of a collection's objects: (name, number) -> (where it begins, what it holds)."""
    return {
        (name, rev): (created_rev, content(store, collection, name, rev - 1) if rev > 1 else None)  # at 0 is now
        for name in store.list_revised(collection)
        for rev, created_rev in store.revisions(collection, name)
    }


def everything(store: ObjectStore) -> dict[bytes, dict[Any, Any]]:
    """The whole store: objects by name, then their revisions by name and number. Disturbs a `Subject` once."""
    plain = store.rig.store if isinstance(store, Subject) else store
    return {
        collection: {name: content(plain, collection, name) for name in plain.list_objects(collection)} | kept(plain, collection)
        for collection in plain.list_collections()
    }
