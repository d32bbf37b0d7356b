"""The store: the ObjectStore of an image. Page: docs/ARCHITECTURE.md, "The life of a write".

Invariants
1. Under `lock`, the tables are the state after every transaction in the log up to `journal.write`, in that order.
2. A transaction is applied in memory first and logged in the same critical section; nothing of it reaches the trees on the
   medium before its entry is durable, because a checkpoint waits for the log before it writes the superblock.
3. After the first failed write or flush `_failure` is set and every later call raises it until the image is reopened.
4. Blocks that a reader found under `lock` are not reused while it runs: it pins the epoch, and limbo keeps what it reaches.

5. Nothing is accepted once `closing` is set, under `lock`: the last checkpoint holds every change that was.

States: open -> failed (latched) -> closed; open -> closing (reads go on) -> closed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from sys import maxsize
from types import TracebackType
from typing import TypeVar

from journal import Journal, JournalError
from mdstore.device.protocol import Device
from mdstore.errors import (
    DeviceFailed,
    InvalidRequest,
    MdstoreError,
    ReadOnly,
)
from mdstore.limits import BLOCK_SIZE_DEFAULT, MIB
from mdstore.store import log, making, recovery, resize, statistics, tables
from mdstore.store.answers import Capabilities, SnapshotInfo
from mdstore.store.apply import Applier
from mdstore.store.checkpoint import Checkpointer, Freezer
from mdstore.store.closing import Closer
from mdstore.store.commit import Commit, Committer
from mdstore.store.exiting import EndingLock
from mdstore.store.isolation import REMEDY
from mdstore.store.mapview import MapView
from mdstore.store.operands import number, window
from mdstore.store.pairputs import PairPuts
from mdstore.store.placement import CHECKPOINTS_FOR_ROOM, LargeWrites
from mdstore.store.queries import Queries
from mdstore.store.recovery import Recovery
from mdstore.store.room import Room
from mdstore.store.snapshots import CACHE_BYTES as SNAPSHOT_CACHE_BYTES
from mdstore.store.snapshots import Snapshots, SnapshotView
from mdstore.store.superblock import Superblock
from mdstore.store.transaction import Name, Operation, Transaction, collection_name, submitted
from mdstore.store.uninterrupted import uninterrupted
from mdstore.store.wipe import Wipe, Wiper, check_mode

CACHE_BYTES = 64 * MIB
DIRTY_BYTES = 64 * MIB
ONODES = 16384
Result = TypeVar("Result")
Failure = TypeVar("Failure", bound=BaseException)


class Store(Queries):
    """An image, open. Make one with `create`, `open`; every method may be called from any thread."""

    def __init__(
        self, device: Device, chosen: Superblock, live: tables.Tables, journal: Journal, found: Recovery, *,
        read_only: bool, background: bool, dirty_bytes: int, wipe: Wipe = "off",
    ) -> None:  # fmt: skip
        super().__init__(device, chosen, live, EndingLock(self.is_at_rest, self._give_up))
        self.journal = journal
        self.recovery = found
        self._read_only = read_only
        self._failure: BaseException | None = None  # the first one, as it came
        self.is_failure_untold = False  # it came in a thread that tells nobody
        self.closing = False
        self._closed = False
        self._applier = Applier(live.collections, live.objects, live.floors)
        self._committer = Committer(journal, self._is_busy, self.meet_end)
        self.checkpointer = Checkpointer(self, background=background)
        self._snapshots = Snapshots(self)
        self.wiper = Wiper(self, wipe)
        self.room = Room(self, dirty_bytes)
        self.large_writes = LargeWrites(self, journal.capacity or 0)
        self.pairs = PairPuts(self)
        self._closer = Closer(self, self._committer)

    # -- making one ----------------------------------------------------------------------------------------------------

    @classmethod
    def create(
        cls, device: Device, *, block_size: int = BLOCK_SIZE_DEFAULT, log_bytes: int | None = None,
        cache_bytes: int = CACHE_BYTES, dirty_bytes: int = DIRTY_BYTES, onodes: int = ONODES, background: bool = True,
        wipe: Wipe = "off", stripe_bytes: int = 0, stripe_offset: int = 0,
    ) -> Store:  # fmt: skip
        """Make an empty image of the whole device, whatever was there, and open it. Durable on return.

        block_size: bytes of a page and of a unit of allocation, a power of two from 256 to 65536. log_bytes: size of the
        write-ahead log (default: a sixteenth of the image, at most 128 MiB). wipe: what becomes of freed blocks and of the
        log's past, see `wipe`; it takes in what the device held before this image. stripe_bytes: size of the stripes that the
        medium below writes whole (0: it has none), stripe_offset: the byte at which one begins; both multiples of block_size.
        Errors: InvalidRequest when the device or the log is too small (it says the least that works), DeviceFailed, ReadOnly,
        TypeError when the device has a descriptor that it does not lend.
        """
        _check_options(cache_bytes, dirty_bytes, onodes, wipe)
        chosen, journal = making.prepare(device, block_size, log_bytes, (stripe_bytes, stripe_offset))
        live = tables.empty(device, chosen, cache_bytes, onodes)
        store = cls(device, chosen, live, journal, Recovery(clean=True), read_only=False, background=background,
                    dirty_bytes=dirty_bytes, wipe=wipe)  # fmt: skip
        store.wiper.begin()
        store.checkpoint()
        store.checkpoint()  # both slots hold a superblock of this image from now on
        return store

    @classmethod
    def open(
        cls, device: Device, *, read_only: bool = False, cache_bytes: int = CACHE_BYTES, dirty_bytes: int = DIRTY_BYTES,
        onodes: int = ONODES, background: bool = True, wipe: Wipe = "off",
    ) -> Store:  # fmt: skip
        """Open an image and recover it; `recovery` tells what was found. Nothing is written before the first change.

        read_only: the log is replayed in memory only; objects it changes through damaged pages are set apart, listed in
        `recovery.isolated`, and answer CorruptionError; damage to what only a writer needs is in `recovery.warnings`.
        Errors: NotAnImage, UnsupportedFormat, CorruptionError, DeviceFailed.
        Cost: superblocks, one page for each tree, the free extents, and the log since the last checkpoint.
        """
        read_only = read_only or device.read_only
        _check_options(cache_bytes, dirty_bytes, onodes, wipe)
        chosen, live, journal, found = recovery.recover(device, cache_bytes, onodes, read_only=read_only)
        store = cls(device, chosen, live, journal, found, read_only=read_only, background=background,
                    dirty_bytes=dirty_bytes, wipe=wipe)  # fmt: skip
        store.wiper.begin()
        return store

    def close(self) -> None:
        """Write a last checkpoint, so that the next open replays nothing, and release the device. Again: nothing.

        Beside other threads: a change was accepted before, and is durable on return, or raises StoreClosed; a read that it
        overtakes does so too; another `close` waits for this one, and fails as it does. Inside a callback of a commit, or in the
        middle of another call of this very thread (in a signal's handler, or a finalizer), which it would wait for, it is begun
        in a thread of its own, and not waited for.

        Errors: DeviceFailed where something that was accepted may be lost and no call has said so; the image is closed all the
        same. An interrupt is raised from it, and the next `close` raises it. Where the end of the interpreter stopped another
        thread in the middle of a call, it does not wait for that, nor does any other call: DeviceFailed.
        """
        self._closer.close()

    def left_behind(self, error: MdstoreError) -> None:
        """In a forked child, and where threads were stopped inside for good: nothing works, and closing writes nothing."""
        super().left_behind(error)
        self._failure = error
        self.journal.left_behind(str(error))
        self._closer.left_behind()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def read_only(self) -> bool:
        return self._read_only

    @property
    def capabilities(self) -> Capabilities:
        """Transactions are whole over any objects, durable when `wait` says so, and durable in the order of submission."""
        return Capabilities(multi_object_transactions=True, durable=True, ordered_commits=True, snapshots=True)

    # -- changing ------------------------------------------------------------------------------------------------------

    def submit(self, transaction: Transaction) -> Commit:
        """Validate, apply and log a transaction. Later reads see it; it is durable when the returned handle's `wait` says.

        Errors, with nothing changed: TransactionError (index and cause), ReadOnly, LimitExceeded when it cannot fit the log,
        the failure the store is latched with. May wait for a checkpoint while the log or the image is full.
        Cost: no flush; one device write only for large writes.
        """
        submitted(transaction)
        self.check_writable()
        mapped: list[tuple[int, int]] = []
        try:
            operations = self.large_writes.place(transaction, mapped)
            payload = log.encode(operations, transaction.epoch)
            position = self._submit(transaction, operations, payload, mapped)
        except BaseException:
            self.large_writes.give_back(mapped)
            raise
        return Commit(self.journal, self._committer, position)

    def apply(self, transaction: Transaction) -> None:
        """`submit` and wait until durable. Cost: one write and one flush, shared with whoever waits at the same time."""
        self.submit(transaction).wait()

    def wait_durable(self, position: int) -> None:
        """What `put_pair` logged is durable when this returns: `Commit.wait`."""
        if self.journal.safe < position:
            self._committer.wait(position)

    def sync(self) -> None:
        """Everything submitted before the call is durable when it returns."""
        self.check_usable()
        self._committer.flush()

    def checkpoint(self) -> None:
        """Bring the trees on the medium up to date, so that recovery has nothing to replay. See mdstore/store/checkpoint.py.

        An interrupt (Ctrl-C) is raised once it is done; one that comes before it has begun leaves it undone.
        """
        self.check_writable()
        self.checkpointer.run()

    def wipe(self) -> int:
        """Nothing that was removed before the call is left anywhere in the image when this returns 0. Otherwise the number
        of bytes that iterators, reads under way and snapshots still hold: end those, delete these, and call again.

        For a store opened with `wipe` other than "off" (InvalidRequest): "zero" writes zeros, "discard" and "punch" give
        the blocks back to the medium, which then reads as zeros; what the medium itself keeps beneath is its own affair.
        Freed blocks are wiped by the checkpoint that frees them, and the log with every checkpoint, also without this call.
        Cost: two checkpoints, and writing what is wiped; after a crash, or a time with wiping off, all free space.
        """
        self.check_writable()
        if not self.wiper.active:
            raise InvalidRequest('the store was opened with wipe="off"')
        for _ in range(2):  # the second rewrites the other superblock, which holds small trees whole
            self.checkpointer.run()
        while uninterrupted(lambda: self.guarded(self.wiper.step)):
            pass
        with self.lock:
            held = sum(run.blocks for run in self.tables.space.snapshots.all_dead())
            return (self.tables.allocator.limbo_blocks + held) * self.superblock.block_size

    def resize(self, size_bytes: int | None = None) -> None:
        """Grow the image to `size_bytes`, the device with it; None: to what the device has. Durable on return, beside traffic.

        Errors, nothing changed: InvalidRequest (smaller, or a block device, which grows by other means), NoSpace (the host file
        system), LimitExceeded. Cost: reserving the blocks where the file system can, and two checkpoints.
        """
        self.check_writable()
        self.checkpointer.run_steps(lambda freezer: self._resize(size_bytes, freezer))
        self.checkpointer.run()

    def _resize(self, size_bytes: int | None, freezer: Freezer) -> None:
        grown = resize.grow(self, size_bytes)
        freezer(None)
        resize.hand_over(self, grown)
        self.room.image_grew()

    # -- snapshots -----------------------------------------------------------------------------------------------------

    def snapshot(self, name: Name) -> None:
        """Keep the store as it is now under a name of 1 to SNAPSHOT_NAME_MAX bytes: all that was submitted before the call, and
        perhaps some of what is submitted meanwhile, each transaction whole. Durable on return.

        Errors, nothing changed: AlreadyExists, InvalidRequest, LimitExceeded, NoSpace, ReadOnly. Cost: one checkpoint of two or
        three pages, and before it one more where anything was changed since the last: nothing that grows with the store. From
        then on nothing the snapshot reaches is reused, and each change costs the space of what it replaces.
        """
        self.check_writable()
        self._snapshots.take(name)

    def snapshots(self) -> list[SnapshotInfo]:
        """All of them, oldest first. Cost: reading what each alone holds (a record for each run of blocks)."""
        return self._snapshots.list()

    def open_snapshot(self, name: Name, *, cache_bytes: int = SNAPSHOT_CACHE_BYTES) -> SnapshotView:
        """A snapshot as a store that never changes, while this one goes on. Close it: until then it cannot be deleted.

        Errors: NotFound, CorruptionError. Cost: one page for each tree, and a page cache of its own.
        """
        return self._snapshots.open(name, cache_bytes)

    def delete_snapshot(self, name: Name, *, progress: Callable[[int], None] | None = None) -> None:
        """Remove a snapshot and free what only it reached. Durable on return; works in a full store.

        Done in steps, beside traffic; `progress` is told after each how many runs of blocks were looked at. A crash between
        two leaves the snapshot listed as deleting: it cannot be opened, and deleting it again goes on. Errors: NotFound,
        SnapshotBusy, ReadOnly. Cost: a checkpoint for each few thousand runs of blocks that died after this snapshot and
        before the next.
        """
        self.check_writable()
        self._snapshots.delete(name, progress)

    def is_clean(self) -> bool:
        """Whether the newest superblock says all there is to say. Under `lock`."""
        return self.journal.write == self.superblock.log_position

    # -- inside a submission -------------------------------------------------------------------------------------------

    def _submit(
        self, transaction: Transaction, operations: list[Operation], payload: bytes, placed: list[tuple[int, int]]
    ) -> int:
        """The critical section: room, validation, application and logging are one step for everyone else."""
        attempts, seen = 0, -1
        placed_blocks = sum(blocks for _, blocks in placed)
        while True:
            with self.lock:
                self.check_whole()
                self.check_writable()
                refusal = self.room.log_refusal(len(payload) + log.ENTRY_OVERHEAD)
                if refusal is not None and self.journal.write != seen:  # others were quicker to take what a checkpoint made
                    attempts, seen = 0, self.journal.write
                if refusal is None:
                    refusal = self.room.refusal(transaction, placed_blocks)
                if refusal is None:
                    position = self.guarded(lambda: self._apply_and_log(operations, payload, placed))
                    break
            if attempts == CHECKPOINTS_FOR_ROOM:
                raise refusal
            attempts += 1
            self.checkpointer.run()
        if self.room.checkpoint_is_due():
            self.checkpointer.want()
        return position

    def _apply_and_log(self, operations: list[Operation], payload: bytes, placed: list[tuple[int, int]]) -> int:
        self.tables.allocator.claim(placed)
        placed.clear()  # the object's from here on, whatever else fails
        objects = self.tables.objects
        objects.changes += 1
        self._applier.apply(operations)
        objects.changes += 1
        return self._log(payload)

    def _log(self, payload: bytes) -> int:
        try:
            return self.journal.append(payload, log.ENTRY_TRANSACTION)
        except JournalError as error:
            raise log.typed(error) from error

    # -- fencing -------------------------------------------------------------------------------------------------------

    def set_floor_and_read(
        self, collection: Name, name: Name, floor: int, offset: int = 0, length: int | None = None
    ) -> bytes:
        """Raise the object's floor and return its bytes, in one step: everything a writer of a lower epoch has had accepted
        is in what is returned, and nothing of it is accepted afterwards. The object need not exist (then empty).

        Durable on return. FencedError inside TransactionError when the floor is higher already. Cost: as `apply` and `read`.
        """
        offset, length = window(offset, length)
        commit = self.submit(Transaction().set_floor(floor, collection, name=name))  # not under the lock: it may checkpoint
        with self.lock:
            there = self.tables.collections.get(collection_name(collection)) is not None and self.exists(collection, name)
            content = self.read(collection, name, offset, length) if there else b""
        commit.wait()
        return content

    # -- asking: see also Queries --------------------------------------------------------------------------------------

    def map(self, collection: Name, name: Name, *, sync: bool = True, epoch: int | None = None) -> MapView:
        """The map of an object as an embedded key-value store; collection and object are made when they are missing.

        sync: writes are durable when they return (see `MapView`). epoch: tags every write, for fencing."""
        return MapView(self, collection, name, sync=sync, epoch=epoch)

    def statistics(self) -> dict[str, int | float]:
        """Plain numbers: sizes in bytes, counts, and the counters of page cache, log, commits and checkpoints. Free is what
        would be left after a checkpoint, so that what was just written counts, wherever it lies."""
        with self.lock:
            self.check_usable()
            rows = statistics.of_space(self.tables, self.superblock, self.room.pending_blocks(), self.held_blocks())
            rows.update(statistics.of_log(self.journal))
            rows.update(statistics.of_cache(self.tables.pager))
            rows.update(
                checkpoints=self.checkpointer.count, longest_freeze_s=self.checkpointer.longest_freeze_s,
                wiped_bytes=self.wiper.wiped_bytes, wipe_backlog_bytes=self.wiper.backlog_bytes,
            )  # fmt: skip
        rows.update(statistics.of_waits(self._committer.waits))
        return rows

    # -- inside --------------------------------------------------------------------------------------------------------

    def check_usable(self) -> None:
        """StoreClosed, or the failure that latched the store."""
        if self._closed:
            raise log.closed()
        if self._failure is not None:
            self.is_failure_untold = False
            raise self._latched(self._failure).with_traceback(None)

    def check_whole(self) -> None:
        """What `check_usable` raises. Under `lock`, where no change is under way: one that is half done was interrupted, and then
        what was to deal with that, so that nobody knows what is in memory."""
        self.check_usable()
        if self.tables.objects.changes & 1:
            raise self.latch(self._latched(KeyboardInterrupt()))

    def check_writable(self) -> None:
        """What `check_usable` raises, StoreClosed while a last checkpoint is written, and ReadOnly."""
        self.check_usable()
        if self.closing:
            raise log.closed()
        if self._read_only:
            damage = f"; parts of it are damaged: {REMEDY}" if self.recovery.isolated else ""
            raise ReadOnly(f"{self.device.name} is open read-only{damage}")

    def _is_busy(self) -> bool:
        """Whether this thread is in the middle of a change or of a checkpoint, where nobody may be called back."""
        return self.lock._is_owned() or self.checkpointer.is_here  # type: ignore[attr-defined]

    @property
    def is_usable(self) -> bool:
        """Whether it is neither closed nor latched (invariant 3)."""
        return self._failure is None and not self._closed

    def guarded(self, action: Callable[[], Result]) -> Result:
        """Run what must not fail half-way; when it does, latch the store (invariant 3)."""
        try:
            return action()
        except BaseException as error:
            if self._failure is None:
                self._failure = error  # without a call: no second interrupt comes before it
            self.latch(error)
            raise

    def latch(self, error: Failure) -> Failure:
        """Remember the first failure for good; returns the error as it is."""
        if self._failure is None:
            self._failure = error
        with self.lock:
            self.tables.objects.changes |= 1
        return error

    def _latched(self, failure: BaseException) -> MdstoreError:
        if isinstance(failure, MdstoreError):
            return failure
        cause = f"{failure!r} came half-way through a change; open the image again: what was acknowledged is in its log"
        return DeviceFailed("commit", self.device.name, cause)

    def is_at_rest(self) -> bool:
        """At the end of the interpreter: whether no thread was stopped inside."""
        return self._closer.is_at_rest()

    def meet_end(self) -> None:
        """Where the interpreter ends and a thread was stopped inside, raise DeviceFailed instead of waiting for it."""
        if sys.is_finalizing():
            if self._left is not None:
                raise self._left.with_traceback(None)
            with self.lock:
                pass

    def mark_closed(self) -> None:
        """From now on every call raises StoreClosed."""
        with self.lock:  # no put is between its two steps
            self._closed = True
            self.tables.objects.changes |= 1

    def leave_limbo(self) -> list[tuple[int, int]]:
        """Take out of limbo what no durable superblock and no reader reaches; the caller hands it over. Under `lock`."""
        return self.tables.allocator.leave_limbo(self.superblock.epoch, self._pinned_epochs())

    def held_blocks(self) -> int:
        """Blocks that were given up and that open readers alone keep from being free. Under `lock`."""
        return self.tables.allocator.held_blocks(self._pinned_epochs())

    def _pinned_epochs(self) -> list[int]:
        """The epochs that readers began in, ascending: see mdstore/store/limbo.py."""
        return sorted({*self._pins.values(), *self.tables.pager.pinned_generations})


def _check_options(cache_bytes: int, dirty_bytes: int, onodes: int, wipe: Wipe) -> None:
    """InvalidRequest (TypeError: no number) before anything is touched."""
    for what, given in (("cache_bytes", cache_bytes), ("dirty_bytes", dirty_bytes), ("onodes", onodes)):
        number(what, given, maxsize)
    check_mode(wipe)
