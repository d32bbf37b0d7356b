"""Workload `takeover`: a journal on objects of a store changes hands, again and again.

An old writer is stopped in the middle of an append, a flush, a head or a trim; a new one, of a higher epoch, takes the log over;
then the old one is let go on, amid the new one's appends. It must change nothing and be told so. What the log holds is the
model: the entries of each owner, in order, whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import Any, Final

from journal import Journal, JournalFenced, Layout, StripedMedium
from journal.medium import Buffer
from journal.schedules import Stepped
from journal.simulation import Operation
from mdstore.device.explore import History, Workload
from mdstore.device.protocol import Device
from mdstore.mds.objectio import StoreObjects
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from mdstore.tools.crash.verify import require, require_sound

SIZE: Final = 512 * 1024
GEOMETRY: Final[dict[str, Any]] = {"block_size": 512, "log_bytes": 32 * 1024}
SMALL: Final[dict[str, Any]] = {"cache_bytes": 64 * 1024, "dirty_bytes": 16 * 1024, "background": False}
COLLECTION: Final = b"log"
LAYOUT: Final = Layout(64, 2, 128)
SIZES: Final = (0, 5, 30, 90, 200, 400)  # bytes of an entry
APPENDS: Final = 5  # of one owner, before and after it stood still
STEPS_MAX: Final = 30  # operations after which an owner stands still
LAST_EPOCH: Final = 1 << 32
Hook = Callable[[Operation], None]
Entries = tuple[bytes, ...]


class HookedObjects:
    """`StoreObjects` that tells a hook before each operation, so that the writer can be stopped there."""

    def __init__(self, inner: StoreObjects, hook: Hook) -> None:
        self.epoch = inner.epoch
        self._inner = inner
        self._hook = hook

    def read(self, name: str, offset: int, length: int) -> bytes:
        return self._inner.read(name, offset, length)

    def write(self, name: str, offset: int, buffers: Sequence[Buffer]) -> None:
        self._hook(Operation("write", name, offset))
        self._inner.write(name, offset, buffers)

    def truncate(self, name: str, size: int) -> None:
        self._hook(Operation("truncate", name, size))
        self._inner.truncate(name, size)

    def remove(self, name: str) -> None:
        self._hook(Operation("remove", name))
        self._inner.remove(name)

    def stat(self, name: str) -> int | None:
        return self._inner.stat(name)

    def list_names(self, prefix: str) -> Iterable[str]:
        return self._inner.list_names(prefix)

    def flush(self) -> None:
        self._hook(Operation("flush"))
        self._inner.flush()

    def set_floor(self, prefix: str, floor: int) -> None:
        self._inner.set_floor(prefix, floor)

    def set_floor_and_read(self, name: str, floor: int, offset: int, length: int) -> bytes:
        return self._inner.set_floor_and_read(name, floor, offset, length)


def medium_of(store: Store, epoch: int, hook: Hook = lambda _: None) -> StripedMedium:
    """The log's medium for a writer of that epoch."""
    return StripedMedium(
        HookedObjects(StoreObjects(store, COLLECTION, epoch=epoch), hook), "log", LAYOUT, prezero_periods=1
    )


def workload_of_takeover(seed: int, owners: int) -> Workload:
    """`owners` writers, one after another; each but the last is stopped somewhere and replaced."""

    def workload(device: Device, history: History) -> None:
        store = Store.create(device, **GEOMETRY, **SMALL)
        store.apply(Transaction().create_collection(COLLECTION))
        Journal.create(medium_of(store, 1)).close()
        store.sync()
        run = _Run(store, history, seed)
        try:
            for epoch in range(2, owners + 2):
                run.next_owner(epoch)
        finally:
            run.let_go()
        require_sound(store)
        store.close()

    return workload


def reopen_log(device: Device) -> Entries:
    """Recover the store, take the log over from whoever wrote it, check, and hand out the entries."""
    store = Store.open(device, **SMALL)
    try:
        journal = Journal.take_over(medium_of(store, LAST_EPOCH))
        entries = tuple(entry.payload for entry in journal.entries())
        require_sound(store)
        return entries
    finally:
        store.close()


class _Run:
    """One run. Of the two threads, the owner's and the old owner's, only one runs at any time, and the seed says which."""

    def __init__(self, store: Store, history: History, seed: int) -> None:
        self._store = store
        self._history = history
        self._random = Random(f"{seed}/takeover")
        self._serial = 0
        self._owner = 1  # the epoch of whom the model follows
        self._entries: list[tuple[int, bytes]] = []  # (end, payload) in the model
        self._number = 0  # of the newest model
        self._stopped: Stepped | None = None
        history.start(())

    def next_owner(self, epoch: int) -> None:
        """Take over from whoever stands still in the middle of something; work, while that one wakes up; then stand still."""
        journal = Journal.take_over(medium_of(self._store, epoch))
        self._owner = epoch
        self._entries = [(entry.end, entry.payload) for entry in journal.entries()]
        self._begin()
        self._acknowledge()
        old, self._stopped = self._stopped, None
        for _ in range(APPENDS):
            self._append(journal)
            if old is not None:
                old.step()
        journal.flush()
        self._acknowledge()
        if old is not None:
            _require_replaced(old)
        self._expire(journal)
        self._stopped = Stepped(lambda hook: self._work(epoch, hook))
        for _ in range(self._random.randrange(STEPS_MAX)):
            self._stopped.step()

    def let_go(self) -> None:
        """Let the last owner finish, so that no thread is left."""
        if self._stopped is not None:
            self._stopped.finish()

    def _work(self, epoch: int, hook: Hook) -> None:
        """What an owner does until somebody replaces it, and tries to do after that."""
        journal = Journal.open(medium_of(self._store, epoch, hook))
        for _ in range(APPENDS):
            if self._owner == epoch:
                self._append(journal)
            else:
                journal.append(b"from one who was replaced")
            journal.flush()
            if self._owner == epoch:
                self._acknowledge()
        journal.close()

    def _append(self, journal: Journal) -> None:
        self._serial += 1
        payload = b"%d:" % self._serial + self._random.randbytes(self._random.choice(SIZES))
        self._entries.append((0, payload))
        self._begin()
        self._entries[-1] = journal.append(payload), payload

    def _expire(self, journal: Journal) -> None:
        """Forget some of the oldest entries, durably."""
        kept = self._random.randrange(len(self._entries))
        if kept:
            journal.set_expire(self._entries[kept - 1][0])
            self._entries = self._entries[kept:]
            self._begin()
            journal.write_head()
            journal.trim()
            self._acknowledge()

    def _begin(self) -> None:
        self._number = self._history.begin(tuple(payload for _, payload in self._entries))

    def _acknowledge(self) -> None:
        self._history.acknowledge(self._number)


def _require_replaced(old: Stepped) -> None:
    """Whoever was replaced learns it with the first thing that it tries to write; what it wrote before it may see flushed."""
    old.finish()
    require(old.error is None or isinstance(old.error, JournalFenced), f"an owner that was replaced met {old.error!r}")
