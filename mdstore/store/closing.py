"""Closing a store: once, whoever asks, from whichever thread, and however often that is interrupted.

1. Nothing more is accepted; what was accepted is in the log and in memory (`Store`, invariant 5).
2. The last checkpoint: **everything that was accepted is durable**, and the superblock says that the log ends there.
3. Whoever waits by callback is told; every call raises StoreClosed.
4. The threads of the store end, and the device is released.

Interrupted, 3 and 4 are done all the same; interrupted in those, the next `close` does them. A store that has failed skips 2: its
log is flushed if the medium lets it, so that what was logged before is not lost. Where something that was accepted may be lost
and no call has said so yet, `close` raises why: to all who close at that time, and where the first was interrupted, or inside a
callback or another call of its thread, to the next. At the end of the interpreter (exiting.py) a store inside which a thread
was stopped is given up as it is: what was acknowledged is in its log.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

from journal import JournalError
from mdstore.store import log, superblock
from mdstore.store.commit import Committer
from mdstore.store.exiting import Lock, are_free

if TYPE_CHECKING:
    from mdstore.store.checkpoint import Freezer
    from mdstore.store.store import Store


class Closer:
    """Closes one store."""

    def __init__(self, store: Store, committer: Committer) -> None:
        self._store = store
        self._committer = committer
        self._turn = threading.RLock()
        self._is_done = False
        self._failure: Exception | None = None  # why something that was accepted may be lost
        self._is_told = True
        self._tells = False  # of a failure: nobody has been told by another call

    def close(self) -> None:
        """See `Store.close`."""
        is_late = self._is_done
        if is_late and self._is_told:
            return
        is_ending = sys.is_finalizing()  # where there is no other thread, and none to be had
        if is_ending and self._turn._is_owned():  # type: ignore[attr-defined]
            return  # inside `close`: that one ends it
        if is_ending and not is_late:
            self._store.meet_end()
        if not is_late and not is_ending and self._is_inside():
            threading.Thread(target=self._close_for_nobody, name="mdstore-close").start()
            return
        with self._turn:
            self._close_once()
            if self._failure is not None and not (is_late and self._is_told):
                self._is_told = True
                raise self._failure

    def _is_inside(self) -> bool:
        """Whether this thread is in the middle of a call that closing would wait for: in a callback, a signal's handler, a
        finalizer."""
        store = self._store
        is_locked: bool = self._turn._is_owned() or store.lock._is_owned()  # type: ignore[attr-defined]
        return is_locked or store.checkpointer.is_inside or self._committer.is_inside

    def _close_for_nobody(self) -> None:
        """What fails is told by the next `close`, and goes to `threading.excepthook`: there may be none."""
        with self._turn:
            self._close_once()
            if self._failure is not None and not self._is_told:
                raise self._failure

    def is_at_rest(self) -> bool:
        """Where no other thread runs any more: whether none was stopped inside."""
        store = self._store
        own: list[Lock] = [self._turn, store.lock, store.wiper.stepping, *store.checkpointer.locks, self._committer.lock]
        return are_free(own) and store.journal.is_at_rest()

    def left_behind(self) -> None:
        """In a forked child, or given up: there is nothing to close, and nothing to tell."""
        self._is_told = True
        self._is_done = True

    def _close_once(self) -> None:
        if self._is_done:
            return
        try:
            self._close()
        except BaseException as interruption:
            if self._failure is not None:
                raise interruption from self._failure  # which the next `close` tells once more
            raise

    def _close(self) -> None:
        store = self._store
        with store.lock:
            store.closing = True
        self._tells = self._tells or store.is_usable
        try:
            if store.is_usable and not store.read_only and not store.checkpointer.ended:
                store.checkpointer.stop()
                store.checkpointer.run_last(self._flags)
        except Exception as error:
            self._fail(error)
        finally:
            self._release()

    def _fail(self, error: Exception) -> None:
        self._failure, self._is_told = error, False

    def _flags(self, checkpoint: Freezer) -> int:
        """Of the last checkpoint. Before it a store that wipes makes one more, so that it leaves nothing."""
        store = self._store
        if not store.wiper.active:
            return superblock.FLAG_CLEAN
        checkpoint(None)
        store.guarded(store.wiper.step)
        return superblock.FLAG_CLEAN | (superblock.FLAG_WIPED if store.wiper.finished() else 0)

    def _release(self) -> None:
        store = self._store
        store.checkpointer.stop()
        if not store.read_only:
            self._flush_log()
        store.mark_closed()
        self._committer.stop()
        store.tables.pager.close()
        store.device.close()
        self._is_done = True

    def _flush_log(self) -> None:
        """All of it is durable already, but in a store that failed, or whose last checkpoint was interrupted before it began."""
        store = self._store
        try:
            store.journal.flush()
        except JournalError as error:
            is_news = self._tells or store.is_failure_untold
            if is_news and self._failure is None and store.journal.safe < store.checkpointer.submitted:
                self._fail(log.typed(error))
