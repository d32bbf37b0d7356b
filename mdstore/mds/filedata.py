"""Bytes of files: buffered, submitted to the store, cut off.

Written bytes wait in the file's buffer. `publish` submits them, of many files in few transactions, and then appends the event
that says the new sizes; so after a crash a size never covers bytes that are not there (C4). Bytes that a crash leaves behind
a file's end, submitted but never published, are cut off when the size next grows without overwriting them.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Final, NamedTuple

from mdstore.engines.protocol import Commit
from mdstore.errors import CorruptionError, MdstoreError, NotFound, PosixError, TransactionError
from mdstore.mds.changes import Changes
from mdstore.mds.core import UNREADABLE, Core
from mdstore.mds.events import Kind
from mdstore.mds.filestate import FileState
from mdstore.mds.inode import Inode
from mdstore.mds.layout import BACKTRACE_ATTRIBUTE, DATA, data_object, encode_backtrace
from mdstore.mds.listing import names_between
from mdstore.mds.records import FLAG_DATA, FLAG_SPARSE
from mdstore.store.transaction import Transaction

log = logging.getLogger(__name__)

EVENT_FILES: Final = 256  # files published by one event
TOGETHER: Final = 32  # files published where one has to be


class Wanted(NamedTuple):
    """A range of a file that the store has bytes of. `change`: the inode's counter when it was asked for; `buffered`: newer bytes
    wait in memory."""

    node: Inode
    change: int
    offset: int
    length: int
    buffered: bool


class _Batch:
    """Transactions with the bytes of many files, none larger than the engine's log takes."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.transaction = Transaction(epoch=core.epoch)
        self.commits: list[Commit] = []

    def make_room(self) -> None:
        """Submit what is there when nothing should be added to it any more."""
        if self._core.is_full(self.transaction):
            self.submit()

    def submit(self) -> None:
        """Submit what is there, if anything."""
        if self.transaction.operations:
            self.commits.append(self._core.store.submit(self.transaction))
            self.transaction = Transaction(epoch=self._core.epoch)


class FileData:
    """The write-back buffer of all files. The caller holds the core's lock."""

    def __init__(self, core: Core, changes: Changes) -> None:
        self._core = core
        self._changes = changes
        self.overdue = False  # some file, or all together, hold back more than they should

    # -- writing -------------------------------------------------------------------------------------------------------

    def write(self, node: Inode, offset: int, data: bytes | memoryview, now: int) -> None:
        """Buffer bytes; size and times change in memory. Submits where the buffer of this file, or of all, is full. Where that
        fails they stay buffered, and `overdue` says so: `make_room` before the next."""
        core = self._core
        file = self.state(node)
        core.unlogged = True
        if offset > node.size:
            node.become_sparse()
        before = file.buffer.size_bytes
        file.buffer.write(offset, data)
        core.buffered_bytes += file.buffer.size_bytes - before
        if node.ino not in core.buffered:
            file.since = now
            core.buffered[node.ino] = node
        node.size = max(node.size, offset + len(data))
        node.mtime = node.ctime = now
        core.unlogged = False  # a buffer needs no event
        if file.buffer.size_bytes >= core.limits.file_buffer:
            self._publish_or_later([node])
        elif core.buffered_bytes >= core.limits.data_buffer or len(core.buffered) >= 4 * EVENT_FILES:
            self._publish_or_later(list(core.buffered.values()))

    def _publish_or_later(self, nodes: list[Inode]) -> None:
        try:
            self.publish(nodes)
        except (TransactionError, *UNREADABLE):
            self.overdue = True

    def make_room(self, node: Inode) -> None:
        """Before more is written to the file, while something is `overdue`: raises, with nothing changed, why its bytes, or those
        of all, cannot be published. Of other files that cannot be read no more stays than each may hold back."""
        core, file = self._core, self.state(node)
        if file.buffer.size_bytes >= core.limits.file_buffer:
            self.publish([node])
        elif core.buffered_bytes >= core.limits.data_buffer:
            with suppress(*UNREADABLE):
                self.publish(list(core.buffered.values()))
        held = [other.file.buffer.size_bytes for other in core.buffered.values() if other.file is not None]
        self.overdue = sum(held) >= core.limits.data_buffer or max(held, default=0) >= core.limits.file_buffer

    def state(self, node: Inode) -> FileState:
        """The file's state, made where there is none."""
        if node.file is None:
            node.file = FileState(node.size)
        return node.file

    def publish(self, nodes: Iterable[Inode], *, refusals: int = 0) -> None:
        """Submit what is buffered of `nodes`, then append the events with their new sizes and times. Waits for nothing where
        the engine's commits are ordered. Files of which something cannot be read keep their buffers, and the others are
        published all the same, before it is raised: CorruptionError, DeviceFailed. TransactionError where there is no room:
        `refusals` such files are passed over likewise, the next one ends it."""
        waiting = [node for node in nodes if node.file is not None and node.ino in self._core.buffered]
        failures: list[MdstoreError] = []
        for start in range(0, len(waiting), EVENT_FILES):
            self._publish_fitting(waiting[start : start + EVENT_FILES], failures, refusals)
        if failures:
            raise failures[-1]

    def publish_with_others(self, node: Inode) -> None:
        """`publish` one file because its name or attributes are to change, and with it some that wait too: who renames one file
        just written often renames many, and many cost little more than one."""
        buffered = self._core.buffered
        if node.ino in buffered:
            try:
                self.publish([node, *islice((other for other in buffered.values() if other is not node), TOGETHER - 1)])
            except UNREADABLE:
                if node.ino in buffered:
                    raise

    def publish_what_fits(self) -> list[Exception]:
        """Before an end: publish every file that can be, one by one, and forget the bytes of the others. Why they were forgotten;
        a store that has room and takes them forgets none."""
        lost: list[Exception] = []
        try:
            self.publish(list(self._core.buffered.values()))
        except Exception:
            if self._core.unlogged:
                raise  # it ended half-way: nothing may follow
            for node in list(self._core.buffered.values()):
                self._core.assert_writable()
                try:
                    self.publish([node])
                except Exception as error:
                    if self._core.unlogged:
                        raise
                    log.error("the last bytes written to inode %d are lost", node.ino, exc_info=error)
                    self.discard(node)
                    lost.append(error)
        return lost

    def publish_older_than(self, moment: int) -> None:
        """Publish files whose oldest buffered byte was written before `moment`."""
        self.publish([node for node in self._core.buffered.values() if node.file is not None and node.file.since < moment])

    def discard(self, node: Inode) -> None:
        """Forget what is buffered; the size goes back to what was published."""
        file = node.file
        if file is not None and self._core.buffered.pop(node.ino, None) is not None:
            self._core.buffered_bytes -= file.buffer.size_bytes
            file.buffer.clear()
            node.size = file.published

    def _publish_fitting(self, nodes: list[Inode], failures: list[MdstoreError], refusals: int) -> None:
        """Where space is short a store may refuse many files in one transaction, and take half of them after the other.
        `failures` gets why single ones were not published, with all others published; `refusals` of them TransactionError."""
        try:
            self._publish_some(nodes)
        except (TransactionError, *UNREADABLE) as error:
            if len(nodes) > 1:
                middle = len(nodes) // 2
                self._publish_fitting(nodes[:middle], failures, refusals)
                self._publish_fitting(nodes[middle:], failures, refusals)
                return
            failures.append(error)
            if self._core.failed is not None or sum(isinstance(each, TransactionError) for each in failures) > refusals:
                raise

    def _publish_some(self, nodes: list[Inode]) -> None:
        """Everything is read and encoded before the first of the files is changed in memory."""
        core = self._core
        for node in nodes:
            if node.nlink == 0 and not node.flags & FLAG_DATA:  # it had no bytes when it lost its name, and so has no row
                node.flags |= FLAG_DATA
                core.append(Kind.WRITE, core.put_unnamed(node))
        core.push_log()  # the event that made a file is durable before its bytes are
        batch = _Batch(core)
        for node in nodes:
            self._fill(batch, node)
        batch.submit()
        core.settle_commits(batch.commits)
        values = []
        for node in nodes:
            if node.flags & FLAG_SPARSE:
                node.allocated = self.allocated(node)
            values.append(self._changes.value(node))
        core.unlogged = True
        core.append(Kind.WRITE, b"".join([self._published(node, value) for node, value in zip(nodes, values)]))

    def _fill(self, batch: _Batch, node: Inode) -> None:
        """The operations that bring a file's buffered bytes into the store."""
        file = self.state(node)
        if node.size > file.published and not file.buffer.covers(file.published, node.size):
            self._cut(batch.transaction, node.ino, file.published)
            node.become_sparse()
        size = self._core.object_size
        for offset, piece in file.buffer.extents():
            batch.make_room()
            number, inside = divmod(offset, size)
            if inside + len(piece) <= size:
                batch.transaction.write(DATA, data_object(node.ino, number), inside, piece)
            else:
                self._split(batch.transaction, node.ino, offset, memoryview(piece))
        node.flags |= FLAG_DATA
        if not file.backtraced:
            trace = encode_backtrace(node.parent, node.name, node.encode())
            if len(trace) <= 60_000:
                batch.make_room()
                batch.transaction.setattr(DATA, data_object(node.ino, 0), BACKTRACE_ATTRIBUTE, trace)

    def _split(self, transaction: Transaction, ino: int, offset: int, piece: memoryview) -> None:
        size = self._core.object_size
        while len(piece):
            number, inside = divmod(offset, size)
            part = piece[: size - inside]
            transaction.write(DATA, data_object(ino, number), inside, part)
            offset += len(part)
            piece = piece[len(part) :]

    def _published(self, node: Inode, value: bytes) -> bytes:
        """The bytes are in the store: the buffer is empty, and these records, with `Changes.value`, say so."""
        core = self._core
        file = self.state(node)
        core.counters.data_bytes_written += file.buffer.size_bytes
        core.buffered_bytes -= file.buffer.size_bytes
        del core.buffered[node.ino]
        file.buffer.clear()
        grown = node.size - file.published
        file.published = node.size
        file.times_changed = False
        file.backtraced = True
        records = self._changes.keep(node, value, node.ctime, grown)
        if not node.handles:
            node.file = None
        return records

    # -- reading -------------------------------------------------------------------------------------------------------

    def begin_read(self, node: Inode, offset: int, length: int) -> bytes | Wanted:
        """Bytes of the file, short at its end, holes as zeros; or, where the store has some of them, what to ask it for."""
        length = min(length, node.size - offset)
        if length <= 0:
            return b""
        self._core.counters.data_bytes_read += length
        file = node.file
        if file is not None and file.buffer:
            if file.buffer.covers(offset, offset + length):
                return file.buffer.over(offset, bytes(length))
            if not node.flags & FLAG_DATA or offset >= file.published:
                return file.buffer.over(offset, bytes(length))
            return Wanted(node, node.change, offset, length, buffered=True)
        if not node.flags & FLAG_DATA:
            return bytes(length)
        return Wanted(node, node.change, offset, length, buffered=False)

    def fetch(self, wanted: Wanted) -> bytes | None:
        """The bytes, without the lock; None where the file has changed meanwhile, or its buffer has a part: `finish_read`.

        The store answers for each object as it is at one moment. What cuts bytes off changes the inode first, so bytes that are
        read after a cut are not believed."""
        if wanted.buffered:
            return None
        data = self._stored(wanted.node.ino, wanted.offset, wanted.length)
        return data if wanted.node.change == wanted.change else None

    def finish_read(self, wanted: Wanted) -> bytes:
        """The bytes, with the lock held."""
        node, offset = wanted.node, wanted.offset
        length = min(wanted.length, node.size - offset)
        if length <= 0:
            return b""
        stored = self._stored(node.ino, offset, length) if node.flags & FLAG_DATA else bytes(length)
        file = node.file
        if file is None:
            return stored
        if file.published < offset + length:  # what the store has behind the published end means nothing
            kept = max(0, file.published - offset)
            stored = stored[:kept] + bytes(length - kept)
        return file.buffer.over(offset, stored) if file.buffer else stored

    def _stored(self, ino: int, offset: int, length: int) -> bytes:
        size = self._core.object_size
        number, inside = divmod(offset, size)
        if inside + length <= size:
            return self._piece(ino, number, inside, length)
        parts = []
        while length:
            number, inside = divmod(offset, size)
            take = min(length, size - inside)
            parts.append(self._piece(ino, number, inside, take))
            offset += take
            length -= take
        return b"".join(parts)

    def _piece(self, ino: int, number: int, inside: int, length: int) -> bytes:
        try:
            data = self._core.store.read(DATA, data_object(ino, number), inside, length)
        except NotFound:
            return bytes(length)
        return data if len(data) == length else data + bytes(length - len(data))

    # -- sizes ---------------------------------------------------------------------------------------------------------

    def truncate(
        self, node: Inode, size: int, now: int, *, last: bool = True, zeros: tuple[int, int] | None = None,
        drops_set_id: bool = False,
    ) -> None:  # fmt: skip
        """Set the size; appends the event, the `last` of its request or not. Bytes cut off never show again, whatever crashes.
        `zeros`: this range, inside the file, is made zeros and gives its space back. What raises has changed nothing."""
        core = self._core
        if size or zeros is not None:
            self.publish([node])
        file = self.state(node)
        old = file.published
        before, behind = self._cuts(node, old, size, zeros)
        if before.operations:
            if zeros is not None:
                core.push_log()
            core.settle_commits([core.store.submit(before)])
        core.unlogged = True
        if size == 0:
            self.discard(node)
        if drops_set_id:
            node.drop_set_id()
        node.mtime = node.ctime = now
        if size > old or zeros is not None:
            node.become_sparse()
        elif size == 0 and old:
            node.flags &= ~FLAG_SPARSE
        node.size = file.published = size
        if size == 0:
            node.allocated = 0
        elif zeros is not None and before.operations:
            node.allocated = self.allocated(node)
        core.append(Kind.SETATTR, self._changes.inode(node, now, size - old), completes=last)
        if behind.operations:
            core.push_log()  # a crash may undo the cut, or leave both; never the cut alone
            with suppress(TransactionError, CorruptionError):  # what stays behind the end means nothing (C4)
                core.settle_commits([core.store.submit(behind)])
        if not node.handles and not file.buffer:
            node.file = None

    def _cuts(
        self, node: Inode, old: int, size: int, zeros: tuple[int, int] | None
    ) -> tuple[Transaction, Transaction]:
        """What the store must do before the event of a new size, and after it."""
        before, behind = Transaction(epoch=self._core.epoch), Transaction(epoch=self._core.epoch)
        if node.flags & FLAG_DATA:
            if zeros is not None:
                self._zero(before, node.ino, *zeros)
            if size > old:
                self._cut(before, node.ino, old)
            elif size < old:
                self._cut(behind, node.ino, size)
        return before, behind

    def _zero(self, transaction: Transaction, ino: int, start: int, end: int) -> None:
        store, size = self._core.store, self._core.object_size
        while start < end:
            number, inside = divmod(start, size)
            take = min(end - start, size - inside)
            name = data_object(ino, number)
            if store.exists(DATA, name):
                held = store.stat(DATA, name).size
                if inside < held:
                    transaction.zero(DATA, name, inside, min(take, held - inside))
            start += take

    def extents(self, node: Inode, offset: int) -> Iterator[tuple[int, int]]:
        """Ranges (offset, length) of the file from `offset` that hold data, in order; what is buffered must be published."""
        if not node.flags & FLAG_DATA:
            return
        size = self._core.object_size
        first = offset // size
        for name in names_between(self._core.store, DATA, data_object(node.ino, first), b"%016x/" % node.ino):
            number = int(name[17:], 16)
            inside = offset - first * size if number == first else 0
            for start, length in self._core.store.extents(DATA, name, inside):
                begin = number * size + start
                end = min(begin + length, node.size)
                if begin < end:
                    yield begin, end - begin

    def _cut(self, transaction: Transaction, ino: int, size: int) -> None:
        store = self._core.store
        number, inside = divmod(size, self._core.object_size)
        for name in names_between(store, DATA, data_object(ino, number), b"%016x/" % ino):
            first = name == data_object(ino, number)
            if not first and name != data_object(ino, 0):
                transaction.remove(DATA, name)
            elif store.stat(DATA, name).size > (inside if first else 0):
                transaction.truncate(DATA, name, inside if first else 0)

    def allocated(self, node: Inode) -> int:
        """Bytes of space the file's objects take; what was known last where they cannot be looked at. Cost: one look at each."""
        store = self._core.store
        try:
            names = names_between(store, DATA, b"%016x." % node.ino, b"%016x/" % node.ino)
            return sum(store.stat(DATA, name).allocated for name in names)
        except UNREADABLE:
            return node.allocated


def lost_bytes(reasons: list[Exception]) -> PosixError:
    """What to tell whoever closes a server that could not save the last bytes of some files."""
    full = all(isinstance(reason, TransactionError) for reason in reasons)
    number, why = (errno.ENOSPC, "found no room") if full else (errno.EIO, f"could not be saved: {reasons[0]}")
    return PosixError(number, "close", f"buffered bytes of {len(reasons)} files {why}")
