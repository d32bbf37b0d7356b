"""The journal: append, group commit, expire, trim.

Invariants, checked by `assert_state`:

 J1  trimmed <= expire <= safe <= flushed <= write
 J2  safe and expire rest on entry boundaries; trimmed on a multiple of the medium's period, or where the log began
 J3  nothing of this writer's generation is written before both head copies that name it are durable, and before
     everything behind the end that recovery found is durably gone
 J4  nothing below the expire position of a durable head (or of the owner's own durable record) is given up
 J5  write - trimmed never exceeds the medium's capacity less one period
 J6  after the first failed write or flush nothing is written any more; every call raises the same error
 J7  expire never passes a hold

| state   | left by                                  | to      |
|---------|------------------------------------------|---------|
| open    | the first write, head or trim            | begun   |
| begun   | `close`                                  | closed  |
| any     | the first failed write or flush, a floor | latched |
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from math import isnan
from operator import index
from threading import TIMEOUT_MAX
from types import TracebackType

from journal.ceilings import REPLAY_BYTES_PER_SECOND, Hold
from journal.commit import Callback
from journal.entry import HEADER_SIZE, PAYLOAD_MAX, TYPE_MAX, Entry
from journal.errors import EntryTooLarge, JournalClosed, JournalCorrupt, JournalError, JournalReadOnly, JournalTrimmed
from journal.head import Head, newest_head
from journal.heads import HeadKeeper, highest_number, write_copies
from journal.medium import Buffer, FencingMedium, Medium
from journal.options import Counters, Options
from journal.pack import Packer, own, own_each
from journal.recovery import CLOSED, Recovered, recover
from journal.room import NO_LIMIT, Room
from journal.scan import Rule, Tail, Walk
from journal.survey import find_head
from journal.writer import Writer

Visit = Callable[[list[Entry]], None]


class Journal:
    """An append-only log of entries. Make one with `create` or `open`; all methods may be called from any thread."""

    def __init__(self, medium: Medium, head: Head, found: Recovered, options: Options, *, read_only: bool) -> None:
        self.medium = medium
        self.options = options
        self.tail: Tail = found.tail
        self.was_closed = found.tail.detail == CLOSED  # where it ended when it was opened: nothing was lost behind that
        self.head_was_lost = False  # both copies; the next writer writes them anew
        self.generation = found.generation + 1  # of the entries this writer appends
        self._old_rule = Rule(head.log, found.generation, head.generation_start, medium.unit)
        unit = 0 if options.allow_split else medium.unit
        self._pack = Packer(head.log, self.generation, found.next_sequence, found.end, unit)
        self._heads = HeadKeeper(medium, head, found.end, found.tail.dirty_end)
        replay_rate = found.bytes_per_second or REPLAY_BYTES_PER_SECOND
        self._room = Room(medium, options.ceilings, found.trimmed, found.expire, replay_rate)
        self._writer = Writer(medium, options, self._pack, self._heads, self._room)
        self._lock = self._writer.lock
        if read_only:
            self._writer.refuse(JournalReadOnly("the journal is open read-only"))

    # -- making one ----------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, medium: Medium, *, options: Options | None = None, log: int | None = None) -> Journal:
        """Begin an empty log on `medium`, whatever was there before; the old content is gone when this returns.

        `log` is the log's identity (32 bits, not 0), random unless given. Durable on return. Cost: three flushes.
        """
        options = options or Options()
        start = medium.start
        medium.truncate(start, start + HEADER_SIZE)
        head = Head(
            log=log or secrets.randbits(32) | 1, generation=0, number=highest_number(medium),
            trimmed=start, expire=start, safe=start, next_sequence=1, generation_start=start,
            clean=True, allow_split=options.allow_split, **medium.describe(),
        )  # fmt: skip
        return cls(medium, write_copies(medium, head), Recovered.empty(start), options, read_only=False)

    @classmethod
    def open(
        cls,
        medium: Medium,
        *,
        start: int | None = None,
        options: Options | None = None,
        read_only: bool = False,
        visit: Visit | None = None,
        log: int | None = None,
        closed_at: int | None = None,
    ) -> Journal:
        """Find the head, walk from `start` (default: the head's expire position) to the valid end.

        start: the owner's own durable record of the first entry it needs; it wins over the head, which may lag.
        visit: called with every batch of entries, in order, so that replay needs no second pass.
        log: the identity the log was created with, where the owner knows it; heads of any other log do not count.
        closed_at: the owner's durable record that it closed the log there, in order; it counts until a generation begins there.
        Writes nothing: what lies behind the end is removed, and the new generation made durable, before the first byte
        of the first entry (or head) is written. `options.allow_split` unless given is the head's.
        A log that was closed in order needs nothing behind its end; of another one everything kept must be readable.
        A ring of which both `start` and `log` are known is found without a head, by a search: `head_was_lost` says so.
        Errors: `NoJournal`, `HeadLost`, `UnsupportedJournal`; `JournalCorrupt` when bytes known to have been durable are
        not there: a later entry, or the head, says so. A torn or stale tail is no error, see `tail`.
        """
        head, was_lost = find_head(medium, start, log)
        options = options or Options(allow_split=head.allow_split)
        found = recover(medium, head, start, options.window_bytes, visit, options.clock, closed_at=closed_at)
        journal = cls(medium, head, found, options, read_only=read_only)
        journal.head_was_lost = was_lost
        return journal

    @classmethod
    def take_over(
        cls,
        medium: Medium,
        *,
        start: int | None = None,
        options: Options | None = None,
        visit: Visit | None = None,
    ) -> Journal:
        """`open`, from a writer that may not be dead: `medium` is tagged with an epoch above the old writer's.

        First the floor of the heads and of all objects, those to come included, is raised to the medium's epoch; then
        the log is read, raising floors as it goes; then what lies behind the valid end is removed and a head of the new
        generation written. On return all of that is durable: nothing the old writer does can be seen any more, and
        everything it acknowledged is in the log. `JournalFenced` when a yet newer writer has been here.
        """
        if not isinstance(medium, FencingMedium):
            raise TypeError(f"{medium.name} knows no floors, so nobody can be shut out of it")
        floor = medium.epoch
        medium.fence(floor)
        head = newest_head(medium.read_heads(), medium.name)
        options = options or Options(allow_split=head.allow_split)

        def read(position: int, length: int) -> bytes:
            return medium.read_fenced(position, length, floor)

        found = recover(medium, head, start, options.window_bytes, visit, options.clock, read)
        journal = cls(medium, head, found, options, read_only=False)
        journal.write_head()
        return journal

    # -- appending -----------------------------------------------------------------------------------------------------

    def append(self, payload: Buffer | Sequence[Buffer], type: int = 1) -> int:  # noqa: A002
        """Add an entry; returns its end, the position to `wait` for. Nothing is durable yet.

        payload: one buffer or several that follow one another, at most 1 GiB; `bytes` are kept by reference, anything
        else is copied. type: 1 to 65534. No I/O, except a write of the periods that are complete each `buffer_bytes`,
        and a wait for durability when twice that is buffered because another thread's writing does not keep up.
        Errors, nothing appended: `JournalFull`, `EntryTooLarge`, `JournalReadOnly`, `JournalClosed`; the latched error.
        """
        return self._pack.add_at_once(payload, type) or self._append(payload, type)

    def _append(self, payload: Buffer | Sequence[Buffer], type_: int) -> int:
        """`append`, where it needs a closer look."""
        parts, length, crc = own(payload)
        type_ = index(type_)
        if not 0 < type_ <= TYPE_MAX or length > PAYLOAD_MAX:
            raise _refused(type_, length)
        with self._lock, self._pack.still():
            self._writer.admit()
            padding = self._pack.padding(length)
            self._room.require(self._pack.position, padding + HEADER_SIZE + length)
            self._pack.pad(padding)
            end = self._pack.add_parts(parts, length, crc, type_)
        self._writer.hold_appender(end)
        return end

    def append_many(self, payloads: Sequence[bytes], type: int = 1) -> int:  # noqa: A002
        """Add an entry for each of `payloads`, all or none; returns the end of the last. Otherwise as `append`."""
        payloads, type = own_each(payloads), index(type)  # noqa: A001
        longest = max(map(len, payloads), default=0)
        if not 0 < type <= TYPE_MAX or longest > PAYLOAD_MAX:
            raise _refused(type, longest)
        pack = self._pack
        with self._lock, pack.still():
            self._writer.admit()
            need = sum(map(len, payloads)) + HEADER_SIZE * len(payloads)
            if pack.unit:
                need += len(payloads) * min(pack.unit, HEADER_SIZE + longest)  # more padding than this is not possible
            self._room.require(pack.position, need)
            end = pack.add_many(payloads, type)
        self._writer.hold_appender(end)
        return end

    # -- durability ----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Everything appended before this call is durable when it returns. Cost: at most one write and one flush."""
        self.wait(self._pack.position)

    def wait(self, position: int, timeout: float | None = None) -> None:
        """Everything below `position` is durable when this returns; `position` is what an `append` returned.

        Writes and flushes for all who wait when nobody else is at it. `TimeoutError` when another thread's flush took
        longer than `timeout` seconds; the latched error when writing failed; ValueError for a position behind the end.
        """
        self._writer.wait(index(position), None if timeout is None else _seconds(timeout))

    def push(self) -> None:
        """Everything appended before this call was handed to the medium when it returns; nothing is flushed.

        For an owner whose medium keeps the order of writes, so that what it writes elsewhere on that medium afterwards
        cannot survive a crash without these entries. Errors as `wait`.
        """
        self._writer.push()

    def add_waiter(self, position: int, callback: Callback) -> None:
        """Call `callback(None)` once `position` is durable, or `callback(error)` when writing failed.

        Called in the thread that flushed, without a lock held; at once if it is durable already. It must not raise: that
        comes out of the thread's own call, once the others were called. Interrupted it is called once more.
        Adding one does not start a flush. ValueError for a position behind the end.
        """
        if not callable(callback):
            raise TypeError(f"a callback is wanted, not {type(callback).__name__}")
        self._writer.add_waiter(index(position), callback)

    def write_head(self) -> None:
        """Both head copies describe the journal as it is, durably, when this returns. Cost: two flushes."""
        self._writer.write_head()

    # -- giving up the past --------------------------------------------------------------------------------------------

    def set_expire(self, position: int) -> None:
        """The owner needs nothing below `position`, an entry boundary. Frees nothing before `trim`. No I/O.

        `ValueError` when it lies below the present one, above what is durable, or beyond a hold.
        """
        position = index(position)
        with self._lock:
            self._writer.raise_refusal()
            self._room.expire_to(position, self._writer.safe)
            self._writer.open_room()

    def trim(self, *, recorded: bool = False) -> int:
        """Give up whole periods below the expire position; returns the new `trimmed`.

        recorded: the owner has made the expire position durable in a place of its own, which it will hand to `open` as
        `start`; then no head is written. Otherwise the heads are written first, if they lag. Cost: none, or two flushes
        and the medium's removals.
        """
        period = self.medium.period
        with self._lock:
            self._writer.raise_refusal()
            target = self._room.expire - self._room.expire % period
        if target <= self._room.trimmed:
            return self._room.trimmed
        if not recorded and self._heads.durable.expire < target:
            self.write_head()
        self._writer.on_medium("trim", lambda: self._heads.alone(lambda: self.medium.trim(target)))
        with self._lock:
            self._room.trim_to(target)
            self._writer.open_room()
            return self._room.trimmed

    def hold(self, position: int, reason: str) -> Hold:
        """Say why nothing from `position` on may expire yet. Release it when that is over. ValueError: it is outside the log."""
        position = index(position)
        with self._lock:
            if position < self._room.expire:
                raise ValueError(f"hold at {position} is below the expire position {self._room.expire}")
            if position > self._pack.position:
                raise ValueError(f"hold at {position} is behind the log's end, {self._pack.position}")
            return self._room.holds.add(position, reason)

    def holds(self) -> list[Hold]:
        """All reasons, the oldest first."""
        with self._lock:
            return list(self._room.holds)

    @property
    def blocked_by(self) -> str:
        """The reason that keeps the oldest segment: of the oldest hold, or "" when nothing but the owner's delay does."""
        with self._lock:
            return self._room.blocked_by

    def begin_segment(self) -> int:
        """The owner begins a segment here; returns the position. `JournalFull` when there are as many as allowed."""
        with self._lock:
            self._writer.raise_refusal()
            position = self._pack.position
            self._room.segments.begin(position, self._room.blocked_by)
            return position

    def segments(self) -> list[int]:
        """Where the segments begin that are not wholly expired."""
        with self._lock:
            return self._room.segments.starts()

    @property
    def replay_seconds(self) -> float:
        """What replaying the live log would take, at the speed measured when this journal was opened."""
        return (self._pack.position - self._room.expire) / self._room.replay_rate

    def cut_tail(self, position: int, sequence: int) -> None:
        """The owner cannot use the entry at `position` (of that sequence), whole as it is, nor what follows: end there.

        For an owner whose entries refer to bytes elsewhere that never arrived. Only before the first write after `open`;
        the tail is durably gone before the first new entry.
        """
        position, sequence = index(position), index(sequence)
        with self._lock:
            if not self._room.expire <= position <= self._pack.position:
                raise ValueError(f"cut at {position} is not between {self._room.expire} and {self._pack.position}")
            self._writer.begin_at(position, sequence)

    def is_at_rest(self) -> bool:
        """Whether no thread is in the middle of a call that writes. While others run that says nothing of the next moment."""
        return self._writer.is_at_rest()

    def left_behind(self, why: str) -> None:
        """In a forked child, of what its parent has open: every call raises JournalClosed(`why`), nothing is written."""
        self._writer.left_behind(JournalClosed(why))

    def close(self) -> None:
        """Flush, write a head that says where the log ends, and refuse everything from then on. Again: nothing.

        Beside other threads: an entry was appended before, and is durable on return, or its append raises `JournalClosed`;
        another `close` waits for this one.
        """
        self._writer.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None or self._writer.refusal is None:
            self.close()

    # -- reading -------------------------------------------------------------------------------------------------------

    def entries(self, start: int | None = None, stop: int | None = None) -> Iterator[Entry]:
        """The durable entries of `[start, stop)`, by default from the expire position to what is durable now.

        `start` is an entry boundary. Memory: one window, or one entry where that is larger. Reading while others append
        is fine. Errors: `JournalTrimmed`, `JournalCorrupt` at the first entry that is not what was written.
        """
        for batch in self.batches(start, stop):
            yield from batch

    def batches(self, start: int | None = None, stop: int | None = None) -> Iterator[list[Entry]]:
        """`entries`, in lists of about one window each, which is faster."""
        start = self._room.expire if start is None else index(start)
        stop = self.safe if stop is None else min(index(stop), self.safe)
        if start < self.trimmed:
            raise JournalTrimmed(start, self.trimmed)
        begin = self._heads.begin
        new_rule = Rule(self.log, self.generation, begin, self.medium.unit)
        sequence: int | None = None
        for rule, low, high in ((self._old_rule, start, min(stop, begin)), (new_rule, max(start, begin), stop)):
            walk = Walk(self.medium.read, rule, low, high, window=self.options.window_bytes, sequence=sequence)
            yield from walk.batches()
            if walk.broken:
                raise self._broken(walk)
            sequence = walk.sequence

    def _broken(self, walk: Walk) -> JournalError:
        if walk.position < self.trimmed:
            return JournalTrimmed(walk.position, self.trimmed)
        return JournalCorrupt(walk.position, walk.broken, f"everything below {self.safe} is known to be durable")

    # -- what there is to know -----------------------------------------------------------------------------------------

    @property
    def trimmed(self) -> int:
        """Below this nothing can be read."""
        return self._room.trimmed

    @property
    def expire(self) -> int:
        """Below this the owner needs nothing."""
        return self._room.expire

    @property
    def safe(self) -> int:
        """Below this everything is durable."""
        return self._writer.safe

    @property
    def flushed(self) -> int:
        """Below this everything was handed to the medium."""
        return self._writer.flushed

    @property
    def write(self) -> int:
        """Where the next entry goes."""
        return self._pack.position

    @property
    def head(self) -> Head:
        """The last durable head."""
        return self._heads.durable

    @property
    def log(self) -> int:
        """The identity of the log."""
        return self._pack.log

    @property
    def counters(self) -> Counters:
        """What this journal has done since it was opened; pads are no appends."""
        self._writer.counters.appends = self._pack.appended
        return self._writer.counters

    @property
    def next_sequence(self) -> int:
        return self._pack.sequence

    @property
    def capacity(self) -> int | None:
        """Bytes the log may hold, or None where the medium grows."""
        capacity = self.medium.capacity
        return None if capacity is None else capacity - self.medium.period

    @property
    def free(self) -> int | None:
        """Bytes that can be appended now, headers included, or None where nothing limits it."""
        return None if self._room.limit == NO_LIMIT else max(0, self._room.limit - self._pack.position)

    def assert_state(self) -> None:
        """Check the invariants named at the head of this module."""
        with self._lock:
            assert self._room.trimmed <= self._room.expire <= self._writer.safe, "J1"
            self._writer.assert_state()
            self._room.assert_state(self._pack.position)


def _seconds(timeout: float) -> float:
    """As long as a lock can be waited for. ValueError for what is no time."""
    if isnan(timeout):
        raise ValueError("a timeout is a number of seconds, not nan")
    return min(max(0.0, timeout), TIMEOUT_MAX)


def _refused(type_: int, length: int) -> Exception:
    if length > PAYLOAD_MAX:
        return EntryTooLarge(length, PAYLOAD_MAX)
    return ValueError(f"entry type {type_} is not in 1..{TYPE_MAX}")
