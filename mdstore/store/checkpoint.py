"""The checkpoint: everything that changed goes to fresh blocks, then one superblock names it all.

Phases, and what is true after each:
0. most of the freeze is done ahead, in steps beside traffic (mdstore/store/ahead.py); nothing is decided by it.
1. `freeze`, under the store's lock: every changed page and block has an address and a checksum; later changes go to copies.
2. write: they are on the medium, in address order, beside traffic; nothing durable reaches them.
3. the log is durable up to the frozen position, and the first flush makes phase 2 durable.
4. the superblock is written to its slot and flushed: **the commit point of the checkpoint**. Before, recovery takes the old
   superblock and the log from there; after, this one and the log from the frozen position.
5. the log is trimmed; what only the older superblock reached becomes free, unless a reader still looks at it. With wiping on,
   both are wiped first (mdstore/store/wipe.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeVar

from journal import JournalError, JournalFull
from mdstore.errors import NoSpace, StoreClosed
from mdstore.store import ahead, exiting, log, superblock
from mdstore.store.allocator import merge_runs
from mdstore.store.superblock import Superblock
from mdstore.store.tables import freeze
from mdstore.store.uninterrupted import AutoResetEvent, join, uninterrupted

if TYPE_CHECKING:
    from mdstore.store.store import Store

OnFrozen = Callable[[Superblock], None]
Freezer = Callable[[OnFrozen | None], Superblock]
Result = TypeVar("Result")

_SLICE_S: Final = 0.0003  # of work under the lock while others wait for it
_PAUSE_S: Final = 0.001  # between two slices, while there is room in the log: three quarters of the time are the others'


class Checkpointer:
    """Runs checkpoints of one store, one at a time; in a thread of its own when `background`."""

    def __init__(self, store: Store, *, background: bool) -> None:
        self._store = store
        self._one_at_a_time = threading.Lock()
        self._background = background
        self._wanted = AutoResetEvent()
        self._starting = threading.RLock()
        self._stopping = False
        self._runs_in: int | None = None  # the thread that holds `_one_at_a_time`
        self.ended = False  # the last one was written
        self._log_ends_at = -1  # the position behind the last entry of its own
        self._thread: threading.Thread | None = None
        self.count = 0
        self.longest_freeze_s = 0.0
        exiting.watch(self)

    @property
    def locks(self) -> tuple[exiting.Lock, ...]:
        """Held while a checkpoint is made, or the thread for it started."""
        return self._one_at_a_time, self._starting

    def run(self) -> None:
        """Write a checkpoint now. On return everything submitted before the call is durable and in the trees."""
        self._to_its_end(lambda: self._store.guarded(lambda: self._run(0)))

    def run_last(self, flags: Callable[[Freezer], int]) -> None:
        """Write the last one, with what `flags` says once others are held back. Whoever waited meanwhile gets StoreClosed: one
        more would take the flags back."""

        def last() -> None:
            chosen = flags(self._freeze)
            self._store.guarded(lambda: self._run(chosen))
            self.ended = True

        self._to_its_end(last)

    def run_steps(self, steps: Callable[[Freezer], Result]) -> Result:
        """Do what needs more than one checkpoint with no other in between: `steps` gets the call that runs one."""
        return self._to_its_end(lambda: steps(self._freeze))

    def _freeze(self, on_frozen: OnFrozen | None) -> Superblock:
        return self._store.guarded(lambda: self._run(0, on_frozen))

    def _to_its_end(self, work: Callable[[], Result]) -> Result:
        """Whatever interrupts the caller; the next one waits for the work, not for the caller."""
        self._store.meet_end()

        def alone() -> Result:
            with self._one_at_a_time:
                if self.ended:
                    raise log.closed()
                self._runs_in = threading.get_ident()
                try:
                    return work()
                finally:
                    self._runs_in = None

        return uninterrupted(alone)

    @property
    def submitted(self) -> int:
        """Where in the log the last transaction ends: an entry of a checkpoint behind it is nobody's."""
        end = self._store.journal.write
        return end - log.ENDING_BYTES if end == self._log_ends_at else end

    @property
    def is_here(self) -> bool:
        """Whether this thread is in the middle of a checkpoint."""
        return self._runs_in == threading.get_ident()

    @property
    def is_inside(self) -> bool:
        """Whether this thread holds one of `locks`."""
        return self.is_here or self._starting._is_owned()  # type: ignore[attr-defined]

    def _run(self, flags: int, on_frozen: OnFrozen | None = None) -> Superblock:
        """One checkpoint; returns its superblock. `on_frozen` sees it first, in the critical section that froze it: between the
        last change that the superblock knows and this call nothing may die (`SnapshotTable.expect`)."""
        store = self._store
        with suppress(NoSpace):  # the reserve is the freeze's
            self._in_slices(ahead.steps(store.tables))
        began = time.perf_counter()
        with store.lock:
            store.check_whole()
            flags |= self._end_log()
            position = store.journal.write
            frozen = freeze(store.tables, store.superblock, position, time.time_ns(), flags)
            if on_frozen is not None:
                on_frozen(frozen)
        self.longest_freeze_s = max(self.longest_freeze_s, time.perf_counter() - began)
        forget_staged = store.tables.space.write_staged()
        store.tables.pager.write_sealed()
        self._flush_pages_and_log(position)
        superblock.write(store.device, frozen)
        self._flush_superblock()
        with store.lock:
            forget_staged()
            store.superblock = frozen
            released = store.leave_limbo()
        released = merge_runs(released)
        self._trim_log(position)
        store.wiper.wipe(released)
        store.tables.space.forget(released)
        self._in_slices(ahead.hand_over(store.tables, released))
        self.count += 1
        return frozen

    def _end_log(self) -> int:
        """Under the store's lock: an entry ends where replay will begin, which is durable before the superblock that says so. The
        one of the last checkpoint will do. A log that is full to the brim goes without."""
        store = self._store
        if store.is_clean() and store.superblock.flags & superblock.FLAG_LOG_ENDS:
            return superblock.FLAG_LOG_ENDS
        try:
            self._log_ends_at = store.journal.append(log.ENDING, log.ENTRY_TRANSACTION)
        except JournalFull:
            return 0
        except JournalError as error:
            raise log.typed(error) from error
        return superblock.FLAG_LOG_ENDS

    def _in_slices(self, steps: Iterator[None]) -> None:
        """Take all steps, with the store's lock held for a moment at a time and free for others in between."""
        store = self._store
        while True:
            with store.lock:
                store.check_whole()
                until = time.perf_counter() + _SLICE_S
                for _ in steps:
                    if time.perf_counter() > until:
                        break
                else:
                    return
            time.sleep(self._pause_s())

    def _pause_s(self) -> float:
        """Less the fuller the log is: whoever fills it waits for the checkpoint in the end."""
        journal = self._store.journal
        return _PAUSE_S * min(1.0, 2 * (journal.free or 0) / (journal.capacity or 1))

    def _flush_pages_and_log(self, position: int) -> None:
        """All the superblock will name, and every log entry it makes superfluous, is durable."""
        try:
            self._store.journal.wait(position)
        except JournalError as error:
            raise log.typed(error) from error
        self._store.device.flush()

    def _flush_superblock(self) -> None:
        """The new superblock, and with it the checkpoint, is durable."""
        self._store.device.flush()

    def _trim_log(self, position: int) -> None:
        """The superblock records where replay begins, so the ring may reuse everything before."""
        try:
            self._store.journal.set_expire(position)
            self._store.wiper.wipe_log(position)
            self._store.journal.trim(recorded=True)
        except JournalError as error:
            raise log.typed(error) from error

    # -- in the background ---------------------------------------------------------------------------------------------

    def want(self) -> None:
        """A checkpoint is due: start one beside traffic, or do it here when there is no thread for it."""
        if not self._background:
            with suppress(StoreClosed):  # closed meanwhile: what the caller changed is in the last checkpoint
                self.run()
            return
        with self._starting:
            if self._thread is None and not self._stopping:
                thread = threading.Thread(target=self._loop, name="mdstore-checkpoint", daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # no thread to be had now: the next transaction asks again, and a full log makes its own
                    return
                self._thread = thread
        self._wanted.set()

    def _loop(self) -> None:
        while True:
            self._wanted.wait()
            if self._stopping:
                self._wanted.set()  # for one that was started beside it, by a caller that was interrupted
                return
            try:
                self.run()
                self._wipe_backlog()
            except StoreClosed:
                return
            except Exception:
                self._store.is_failure_untold = True
                return

    def _wipe_backlog(self) -> None:
        """While nothing else is wanted."""
        store = self._store
        while not self._wanted.is_set() and store.guarded(store.wiper.step):
            pass

    def stop(self) -> None:
        """No checkpoint runs after this returns."""
        with self._starting:
            self._stopping = True
            thread = self._thread
        self._wanted.set()
        if thread is not None:
            join(thread)
        with self._one_at_a_time:  # one whose caller was interrupted twice
            pass
