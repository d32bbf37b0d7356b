"""What becomes of inodes without a name.

A regular file that may have bytes becomes a row of the stray table with the event that takes its last name. When its last
handle and reference are gone its bytes are removed, a bounded number of objects per step, and then the row. After a restart
only sessions that last may still have something open (rows of the open table): every other row is purged. A file whose objects
are damaged is left to the next mount, with a row in the damage table; the others go.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from mdstore.errors import CorruptionError, MdstoreError, TransactionError
from mdstore.mds.core import UNREADABLE, Core
from mdstore.mds.damage import note_damage
from mdstore.mds.events import Kind
from mdstore.mds.inode import Inode
from mdstore.mds.layout import DATA, INO_KEY, data_object
from mdstore.mds.listing import names_between
from mdstore.mds.records import FLAG_DATA
from mdstore.store.transaction import Transaction

STEP_OBJECTS: Final = 256  # removed in one transaction
STEP_FILES: Final = 256  # finished in one event


def needs_row(core: Core, node: Inode) -> bool:
    """Whether objects with bytes of `node` exist, so that its removal must survive a crash. A file from before the start that
    never published any may have some all the same, from a crash in between: object 0 is there then, or nobody can tell."""
    if node.mode >> 12 != 8:
        return False
    if node.flags & FLAG_DATA or node.ino >= core.first_ino_here:
        return bool(node.flags & FLAG_DATA)
    try:
        found = core.store.exists(DATA, data_object(node.ino, 0))
    except UNREADABLE:
        found = True
    if found:
        node.flags |= FLAG_DATA  # which answers the next who asks the same way
    return found


class Purge:
    """The queue of files to remove. The caller holds the core's lock."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._queue: dict[int, None] = {}  # in order; no file twice, however it came here
        self._scan_from: bytes | None = None  # rows from this key on are left over from before the start
        self._files_at_once = STEP_FILES  # 1 while the damaged one of several is looked for

    def needs_row(self, node: Inode) -> bool:
        """See the function of that name."""
        return needs_row(self._core, node)

    def start_from_table(self) -> None:
        """After recovery: everything in the stray table is to be purged."""
        self._scan_from = b"\0"

    def forget_all(self) -> None:
        """There is nothing to be purged any more, by this server."""
        self._queue.clear()
        self._scan_from = None

    def released(self, node: Inode) -> None:
        """A name, handle or reference of `node` went; when it was the last of all, the inode goes."""
        core = self._core
        if node.nlink or node.handles or node.ino in core.references or node.ino in core.held:
            return
        core.nodes.pop(node.ino, None)
        core.where.pop(node.ino, None)
        core.buffered.pop(node.ino, None)
        if node.file is not None:
            core.buffered_bytes -= node.file.buffer.size_bytes
            node.file = None
        if self.needs_row(node):
            self._queue[node.ino] = None

    def let_go(self, ino: int) -> None:
        """A session keeps the inode without a name no longer."""
        core = self._core
        node = core.nodes.get(ino)
        if node is not None:
            self.released(node)
        elif ino not in core.held and ino not in core.references:
            self._queue[ino] = None

    @property
    def backlog(self) -> int:
        """Files known to be waiting; those of before the start are found as the queue gets there."""
        return len(self._queue)

    @property
    def idle(self) -> bool:
        """Whether nothing is left to do."""
        return not self._queue and self._scan_from is None

    def step(self) -> bool:
        """Remove up to `STEP_OBJECTS` objects; False when there was nothing to do. Nothing is waited for where the engine's
        commits are ordered: the event that took the name is durable before the bytes are gone."""
        if not self._queue:
            self._find_more()
        if not self._queue:
            return False
        core = self._core
        core.push_log()
        try:
            transaction, done = self._collect()
        except UNREADABLE as error:
            self._set_apart(error)
            return True
        try:
            if transaction.operations:
                core.settle_commits([core.store.submit(transaction)])
        except CorruptionError as error:
            self._set_apart(error)
            return True
        except TransactionError as error:
            if not isinstance(error.cause, UNREADABLE):
                raise
            self._set_apart(error.cause)
            return True
        for ino in done:
            del self._queue[ino]
        core.counters.purged_objects += len(transaction)
        core.counters.purged_files += len(done)
        if done:
            core.append(Kind.PURGED, b"".join(core.drop_row(core.strays, INO_KEY.pack(ino)) for ino in done))
        return True

    def _set_apart(self, error: MdstoreError) -> None:
        """Something of this step is damaged: take the files one by one, and leave out the one that it is."""
        if self._files_at_once == 1:
            ino = next(iter(self._queue))
            del self._queue[ino]
            note_damage(self._core, ino, b"", error)
        self._files_at_once = STEP_FILES if self._files_at_once == 1 else 1

    def _collect(self) -> tuple[Transaction, list[int]]:
        """What removes the first files of the queue, and which of them are done with it."""
        transaction = Transaction(epoch=self._core.epoch)
        done: list[int] = []
        for ino in islice(self._queue, self._files_at_once):
            room = STEP_OBJECTS - len(transaction)
            if room <= 0:
                break
            names = names_between(self._core.store, DATA, b"%016x." % ino, b"%016x/" % ino, room)
            for name in names:
                transaction.remove(DATA, name)
            if len(names) == room:
                break  # there may be more of this file: the next step looks again
            done.append(ino)
        return transaction, done

    def _find_more(self) -> None:
        if self._scan_from is None:
            return
        try:
            rows = list(islice(self._core.strays.rows(self._scan_from), STEP_FILES))
        except UNREADABLE as error:
            self._scan_from = None  # left to the next mount
            note_damage(self._core, 0, self._core.strays.object_name, error)
            return
        self._scan_from = rows[-1][0] + b"\0" if rows else None
        for key, _ in rows:
            ino = INO_KEY.unpack(key)[0]
            node = self._core.nodes.get(ino)
            if ino not in self._core.held and (node is None or not (node.handles or ino in self._core.references)):
                self._queue[ino] = None
