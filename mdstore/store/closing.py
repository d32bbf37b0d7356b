"""Closing a store: once, whoever asks, from whichever thread, and however often that is interrupted.

1. Nothing more is accepted; what was accepted is in the log and in memory (`Store`, invariant 5).
2. The last checkpoint: **everything that was accepted is durable**, and the superblock says that the log ends there.
3. Whoever waits by callback is told; every call raises StoreClosed.
4. The threads of the store end, and the device is released.

Interrupted, 3 and 4 are done all the same; interrupted in those, the next `close` does them. A store that has failed skips 2: its
log is flushed if the medium lets it, so that what was logged before is not lost.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from journal import JournalError
from mdstore.store import superblock
from mdstore.store.commit import Committer

if TYPE_CHECKING:
    from mdstore.store.checkpoint import Freezer
    from mdstore.store.store import Store


class Closer:
    """Closes one store."""

    def __init__(self, store: Store, committer: Committer) -> None:
        self._store = store
        self._committer = committer
        self._turn = threading.Lock()
        self._done = threading.Event()
        self._failure: BaseException | None = None

    def close(self) -> None:
        """See `Store.close`."""
        if self._done.is_set():
            return
        if self._committer.is_calling_back():
            threading.Thread(target=self.close, name="mdstore-close").start()
            return
        with self._turn:
            if not self._done.is_set():
                self._close()
            elif self._failure is not None:
                raise self._failure

    def left_behind(self) -> None:
        """In a forked child: there is nothing to close."""
        self._done = threading.Event()
        self._done.set()

    def _close(self) -> None:
        store = self._store
        with store.lock:
            store.closing = True
        try:
            if store.is_usable and not store.read_only and not store.checkpointer.ended:
                store.checkpointer.stop()
                store.checkpointer.run_last(self._flags)
        except Exception as error:
            self._failure = error
            raise
        finally:
            self._release()

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
            with suppress(JournalError):  # durable already, but in a store that failed
                store.journal.flush()
        store.mark_closed()
        self._committer.stop()
        store.tables.pager.close()
        store.device.close()
        self._done.set()
