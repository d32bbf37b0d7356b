"""Wiping: what was removed leaves no bytes behind in the image. Rules for readers of an image: docs/format/space.md, "Wiping".

Invariants
1. A block that a checkpoint frees is wiped, durably, after the superblock that no longer reaches it and before it can be taken.
2. The log below the position of the newest superblock is wiped, durably, before its room can be taken.
3. `backlog` holds every free extent whose content nobody vouches for: all of them at opening, unless the superblock says that
   the last close left none. So a crash anywhere, or a time with wiping off, costs a pass over the free space and no more.
4. A superblock with FLAG_WIPED reaches everything that is not wiped, but for blocks of the tree of free extents itself, which
   never held anything of a user's.

Blocks of the backlog may be taken before their turn: whoever takes one writes all of it, and a crash before that is case 3.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Final, Literal, get_args

from mdstore.errors import InvalidRequest
from mdstore.limits import MIB
from mdstore.store import log, superblock
from mdstore.store.allocator import Run

if TYPE_CHECKING:
    from mdstore.store.store import Store

Wipe = Literal["off", "zero", "discard", "punch"]
STEP_BYTES: Final = 64 * MIB  # of backlog between two looks at whether something else is wanted
_ZEROS: Final = bytes(MIB)


def check_mode(mode: Wipe) -> Wipe:
    """InvalidRequest unless it is one of the modes."""
    if mode not in get_args(Wipe):
        raise InvalidRequest(f"wipe {mode!r}: one of {', '.join(get_args(Wipe))}")
    return mode


class Wiper:
    """One store's wiping. `mode` off: every method does nothing."""

    def __init__(self, store: Store, mode: Wipe) -> None:
        self._store = store
        self.mode = check_mode(mode)
        self.active = mode != "off" and not store.read_only
        self.wiped_bytes = 0
        self._backlog: deque[Run] = deque()
        trimmed, period = store.journal.trimmed, store.journal.medium.period
        # Positions below hold zeros, once `begin` has run, but for the entry that ends the log there.
        self._log_wiped = min(trimmed - trimmed % period, self._spared(store.superblock.log_position))
        self.stepping = threading.Lock()

    def begin(self) -> None:
        """At opening: unless the last close vouched for it, everything free is to be wiped, and the unused part of the log is
        wiped now (at most as many bytes as the log has). Durable on return, as far as the log goes."""
        store = self._store
        if not self.active or store.superblock.flags & superblock.FLAG_WIPED:
            return
        self._backlog.extend(store.tables.allocator.extents())
        medium, capacity = store.journal.medium, store.journal.medium.capacity
        assert capacity is not None, "the log is a ring"
        medium.prezero(store.journal.write, self._log_wiped + capacity)
        store.device.flush()

    def want(self, runs: list[Run]) -> None:
        """Put free blocks on the backlog. Under the store's lock."""
        if self.active:
            self._backlog.extend(runs)

    @property
    def backlog_bytes(self) -> int:
        """Free bytes still to be wiped."""
        return sum(blocks for _, blocks in list(self._backlog)) * self._store.superblock.block_size

    def wipe_log(self, position: int) -> None:
        """The log up to `position`, where the newest superblock ends it, holds nothing of a user's any more, durably. The journal
        must not have trimmed it yet."""
        until = self._spared(position)
        if self.active and until > self._log_wiped:
            self._store.journal.medium.prezero(self._log_wiped, until)
            self._store.device.flush()
            self.wiped_bytes += until - self._log_wiped
            self._log_wiped = until

    def _spared(self, position: int) -> int:
        """Where the entry begins that ends the log at `position`, which holds nothing of a user's."""
        has_one = self._store.superblock.flags & superblock.FLAG_LOG_ENDS
        return position - log.ENDING_BYTES if has_one else position

    def wipe(self, runs: list[Run]) -> None:
        """Nothing of what these blocks held can be read from the device any more, durably. Nobody may own them meanwhile."""
        if not self.active or not runs:
            return
        size = self._store.superblock.block_size
        for start, blocks in runs:
            self._wipe_bytes(start * size, blocks * size)
        self._store.device.flush()

    def _wipe_bytes(self, offset: int, length: int) -> None:
        device = self._store.device
        self.wiped_bytes += length
        if self.mode != "zero":
            device.discard(offset, length)
            return
        for at in range(offset, offset + length, len(_ZEROS)):
            device.write(at, [memoryview(_ZEROS)[: offset + length - at]])

    def step(self, max_bytes: int = STEP_BYTES) -> bool:
        """Wipe some of the backlog; True when some is left. Writers go on; the blocks in hand cannot be taken meanwhile."""
        store, limit = self._store, max(1, max_bytes // self._store.superblock.block_size)
        with self.stepping:
            taken: list[Run] = []
            with store.lock:
                limit = min(limit, max(1, store.room.blocks() // 2))  # writers and the next checkpoint need some meanwhile
                while self._backlog and limit > 0:
                    start, blocks = self._backlog.popleft()
                    if blocks > limit:
                        self._backlog.appendleft((start + limit, blocks - limit))
                        blocks = limit
                    limit -= blocks
                    taken += store.tables.allocator.borrow(start, blocks)
            try:
                self.wipe(taken)
            finally:
                with store.lock:
                    store.tables.allocator.hand_over(taken)
            return bool(self._backlog)

    def finished(self) -> bool:
        """Whether everything free is wiped (nothing in limbo, no backlog)."""
        return self.active and not self._backlog and not self._store.tables.allocator.limbo_blocks
