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
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

from journal.ceilings import REPLAY_BYTES_PER_SECOND, Ceilings, Hold, Holds, Segments
from journal.commit import Callback, Turns
from journal.entry import HEADER_SIZE, PAYLOAD_MAX, TYPE_MAX, Entry
from journal.errors import (
    EntryTooLarge,
    JournalClosed,
    JournalCorrupt,
    JournalError,
    JournalFailed,
    JournalFenced,
    JournalFull,
    JournalReadOnly,
    JournalTrimmed,
)
from journal.head import Head, newest_head
from journal.heads import HeadKeeper, highest_number, write_copies
from journal.medium import Buffer, FencingMedium, Medium
from journal.pack import Packer, join_small, own
from journal.recovery import Recovered, recover
from journal.scan import WINDOW, Rule, Tail, Walk

_NO_LIMIT: Final = (1 << 64) - 1
Visit = Callable[[list[Entry]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a journal is written; nothing here changes what can be read.

    allow_split: False pads, so that an entry that fits a unit never crosses one (needs a medium with units).
    window_bytes: read-ahead. buffer_bytes: appended bytes held back before a write starts without being asked.
    head_every_bytes: a head is written after a flush when the last one lags that much, so followers and recovery by
    the head alone lag no more; None: only when needed.
    """

    allow_split: bool = True
    window_bytes: int = WINDOW
    buffer_bytes: int = 4 << 20
    head_every_bytes: int | None = None
    ceilings: Ceilings = field(default_factory=Ceilings)
    clock: Callable[[], float] = time.monotonic


@dataclass(slots=True)
class Counters:
    """What this journal has done since it was opened."""

    appends: int = 0
    writes: int = 0
    flushes: int = 0
    bytes: int = 0


class Journal:
    """An append-only log of entries. Make one with `create` or `open`; all methods may be called from any thread."""

    def __init__(self, medium: Medium, head: Head, found: Recovered, options: Options, *, read_only: bool) -> None:
        self.medium = medium
        self.options = options
        self._counters = Counters()
        self.tail: Tail = found.tail
        self.generation = found.generation + 1  # of the entries this writer appends
        self._lock = threading.Lock()  # guards positions, buffers, waiters; never held during I/O
        self._turns = Turns(self._lock)
        self._heads = HeadKeeper(medium, head, found.end, found.tail.dirty_end)
        self._pack = Packer(
            head.log, self.generation, found.next_sequence, found.end, 0 if options.allow_split else medium.unit
        )
        self._refusal: JournalError | None = JournalReadOnly("the journal is open read-only") if read_only else None
        self._trimmed, self._expire = found.trimmed, found.expire
        self._safe = self._flushed = self._prezeroed = found.end
        self._safe_sequence = found.next_sequence
        self._hold_back = self._pack.hold_back = options.buffer_bytes
        self._holds, self._segments = Holds(), Segments(options.ceilings.max_segments)
        self._replay_rate = found.bytes_per_second or REPLAY_BYTES_PER_SECOND
        self._set_limit()
        self._rules = (
            Rule(head.log, found.generation, head.generation_start, medium.unit),
            Rule(head.log, self.generation, found.end, medium.unit),
        )

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
    ) -> Journal:
        """Find the head, walk from `start` (default: the head's expire position) to the valid end.

        start: the owner's own durable record of the first entry it needs; it wins over the head, which may lag.
        visit: called with every batch of entries, in order, so that replay needs no second pass.
        log: the identity the log was created with, where the owner knows it; heads of any other log do not count.
        Writes nothing: what lies behind the end is removed, and the new generation made durable, before the first byte
        of the first entry (or head) is written. `options.allow_split` unless given is the head's.
        Errors: `NoJournal`, `HeadLost`, `UnsupportedJournal`; `JournalCorrupt` when bytes known to have been durable are
        not there: a later entry, or the head, says so. A torn or stale tail is no error, see `tail`.
        """
        head = newest_head(medium.read_heads(), medium.name, log)
        options = options or Options(allow_split=head.allow_split)
        found = recover(medium, head, start, options.window_bytes, visit, options.clock)
        return cls(medium, head, found, options, read_only=read_only)

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
        else is copied. type: 1 to 65534. No I/O, except a write of everything buffered each `buffer_bytes`, and a wait
        for durability when twice that is buffered.
        Errors, nothing appended: `JournalFull`, `EntryTooLarge`, `JournalReadOnly`, `JournalClosed`; the latched error.
        """
        return self._pack.add_at_once(payload, type) or self._append(payload, type)

    def _append(self, payload: Buffer | Sequence[Buffer], type_: int) -> int:
        """`append`, where it needs a closer look."""
        parts, length, crc = own(payload)
        if not 0 < type_ <= TYPE_MAX or length > PAYLOAD_MAX:
            raise _refused(type_, length)
        with self._lock, self._pack.still():
            self._make_room(length)
            end = self._pack.add_parts(parts, length, crc, type_)
        self._hold_appender(end)
        return end

    def _hold_appender(self, end: int) -> None:
        """Write out what is buffered where it is too much, and wait where that does not keep up."""
        excess = end - self._pack.taken - self._hold_back
        if excess > 0:
            self._write_out(end, wait=excess > self._hold_back)

    def append_many(self, payloads: Sequence[bytes], type: int = 1) -> int:  # noqa: A002
        """Add an entry for each of `payloads`, all or none; returns the end of the last. Otherwise as `append`."""
        longest = max(map(len, payloads), default=0)
        if not 0 < type <= TYPE_MAX or longest > PAYLOAD_MAX:
            raise _refused(type, longest)
        pack = self._pack
        with self._lock, pack.still():
            self._raise_refusal()
            need = sum(map(len, payloads)) + HEADER_SIZE * len(payloads)
            if pack.unit:
                need += len(payloads) * min(pack.unit, HEADER_SIZE + longest)  # more padding than this is not possible
            if pack.position + need > self._limit:
                raise self._full(need)
            end = pack.add_many(payloads, type)
        self._hold_appender(end)
        return end

    def _make_room(self, length: int) -> None:
        """With the lock held: pad to the next unit where the entry needs it.

        The latched error when there is one; `JournalFull` when the entry does not fit.
        """
        self._raise_refusal()
        padding = self._pack.padding(length)
        if self._pack.position + padding + HEADER_SIZE + length > self._limit:
            raise self._full(padding + HEADER_SIZE + length)
        self._pack.pad(padding)

    def _full(self, need: int) -> JournalFull:
        return JournalFull(need, max(0, self._limit - self._pack.position), self._ceiling, self._blocked_by())

    def _set_limit(self) -> None:
        """With the lock held: find the position that `write` may not pass, and what sets it.

        The packer's is the same where an append needs no closer look: below it nothing refuses and nothing is padded.
        """
        self._limit, self._ceiling = self._limit_now()
        self._pack.limit = 0 if self._refusal is not None or self._pack.unit else self._limit

    def _limit_now(self) -> tuple[int, str]:
        """One period of a ring always stays free."""
        limit, ceiling = _NO_LIMIT, "none"
        capacity, period = self.medium.capacity, self.medium.period
        if capacity is not None:
            limit, ceiling = self._trimmed - self._trimmed % period + capacity - period, "capacity"
        allowed, name = self.options.ceilings.tightest(self._replay_rate)
        if allowed is not None and self._expire + allowed < limit:
            limit, ceiling = self._expire + allowed, name
        return limit, ceiling

    # -- durability ----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Everything appended before this call is durable when it returns. Cost: at most one write and one flush."""
        self.wait(self._pack.position)

    def wait(self, position: int, timeout: float | None = None) -> None:
        """Everything below `position` is durable when this returns; `position` is what an `append` returned.

        Writes and flushes for all who wait when nobody else is at it. `TimeoutError` when another thread's flush took
        longer than `timeout` seconds; the latched error when writing failed.
        """
        while self._safe < position:
            with self._lock:
                if self._safe >= position:
                    return
                self._raise_refusal()
                assert position <= self._pack.position, "waiting for a position that was never appended"
                parked = self._turns.take(position)
            if parked is None or self._turns.sleep(parked, timeout):
                self._commit()

    def push(self) -> None:
        """Everything appended before this call was handed to the medium when it returns; nothing is flushed.

        For an owner whose medium keeps the order of writes, so that what it writes elsewhere on that medium afterwards
        cannot survive a crash without these entries. Errors as `wait`.
        """
        position = self._pack.position
        while self._flushed < position:
            with self._lock:
                if self._flushed >= position:
                    return
                self._raise_refusal()
                parked = self._turns.take(position)
            if parked is None or self._turns.sleep(parked, None):
                self._write_in_turn()

    def add_waiter(self, position: int, callback: Callback) -> None:
        """Call `callback(None)` once `position` is durable, or `callback(error)` when writing failed.

        Called in the thread that flushed, without a lock held; at once if it is durable already. It must not raise.
        Adding one does not start a flush.
        """
        with self._lock:
            pending = self._safe < position and self._refusal is None
            if pending:
                self._turns.add(position, callback)
        if not pending:
            callback(None if self._safe >= position else self._refusal)

    def _commit(self) -> None:
        """By the leader: one write and one flush for everything appended so far. What it covers is durable, `safe`."""
        safe, sequence = self._safe, self._safe_sequence
        error: BaseException | None = None
        try:
            safe, sequence = self._write_buffers()
            self.medium.flush()
            self._counters.flushes += 1
        except BaseException as cause:
            error = cause
        self._end_turn(safe, sequence, "flush", error)
        every = self.options.head_every_bytes
        if every is not None and self._safe - self._heads.durable.safe >= every:
            with suppress(JournalError):  # latched: every later call raises it; what was waited for is durable
                self.write_head()

    def _write_out(self, position: int, *, wait: bool) -> None:
        """Write what is buffered without a flush; with `wait`, make it durable, which is how appenders are held back."""
        if wait:
            self.wait(position)
            return
        with self._lock:
            if self._refusal is not None or not self._turns.take_now():
                return
        self._write_in_turn()

    def _write_in_turn(self) -> None:
        """By the leader: write everything appended so far, without a flush."""
        error: BaseException | None = None
        try:
            self._write_buffers()
        except BaseException as cause:
            error = cause
        self._end_turn(self._safe, self._safe_sequence, "write", error)

    def _write_buffers(self) -> tuple[int, int]:
        """By the leader: write everything appended. Returns the position and sequence that a flush makes durable."""
        if not self._heads.begun:
            self._heads.ensure_begun(self._head_now, self._trimmed)
        with self._lock:
            begin, end, sequence, buffers = self._pack.take()
        if begin < end:
            if self.medium.prezero_periods:
                self._keep_zeros_ahead(begin, end)
            self.medium.write(begin, join_small(buffers))
            self._counters.writes += 1
            self._counters.bytes += end - begin
        self._flushed = end
        return end, sequence

    def _keep_zeros_ahead(self, begin: int, end: int) -> None:
        """One whole empty period beyond `end`, durably, before anything up to `end` is written."""
        periods, period = self.medium.prezero_periods, self.medium.period
        if end + period <= self._prezeroed:
            return
        until = -(-end // period) * period + periods * period
        self.medium.prezero(max(self._prezeroed, begin), until)
        self.medium.flush()
        self._prezeroed = until

    def _end_turn(self, safe: int, sequence: int, operation: str, error: BaseException | None) -> None:
        with self._lock:
            refusal = self._latch(operation, error) if error is not None else None
            if refusal is None:
                self._safe = self._pack.safe = safe
                self._safe_sequence = sequence
            due = self._turns.give(self._safe, refusal)
        for callback in due:
            callback(refusal)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise error
        if error is not None and refusal is not None:
            raise refusal from error

    def _latch(self, operation: str, cause: BaseException) -> JournalError:
        """With the lock held: remember the first failure for good (J6). A fenced writer stays fenced."""
        if self._refusal is None:
            fenced = isinstance(cause, JournalFenced)
            self._refusal = cause if fenced else JournalFailed(operation, self._flushed, cause)  # type: ignore[assignment]
        assert self._refusal is not None
        self._pack.limit = 0
        return self._refusal

    def _raise_refusal(self) -> None:
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)

    # -- heads ---------------------------------------------------------------------------------------------------------

    def write_head(self) -> None:
        """Both head copies describe the journal as it is, durably, when this returns. Cost: two flushes."""
        self._on_medium("head", lambda: self._heads.write(self._head_now))

    def _head_now(self, *, clean: bool = False) -> Head:
        with self._lock:
            return Head(
                log=self._pack.log, generation=self.generation, trimmed=self._trimmed, expire=self._expire,
                safe=self._safe, next_sequence=self._safe_sequence, generation_start=self._heads.begin,
                epoch=getattr(self.medium, "epoch", 0), clean=clean, allow_split=self.options.allow_split,
                **self.medium.describe(),
            )  # fmt: skip

    def _on_medium(self, operation: str, action: Callable[[], None]) -> None:
        """Run `action` once the generation has begun; a failure latches the journal."""
        with self._lock:
            self._raise_refusal()
        try:
            self._heads.ensure_begun(self._head_now, self._trimmed)
            action()
        except BaseException as cause:
            with self._lock:
                refusal = self._latch(operation, cause)
            if not isinstance(cause, Exception):
                raise
            raise refusal from cause

    # -- giving up the past --------------------------------------------------------------------------------------------

    def set_expire(self, position: int) -> None:
        """The owner needs nothing below `position`, an entry boundary. Frees nothing before `trim`. No I/O.

        `ValueError` when it lies below the present one, above what is durable, or beyond a hold.
        """
        with self._lock:
            self._raise_refusal()
            hold = self._holds.oldest()
            highest = self._safe if hold is None else min(self._safe, hold.position)
            if not self._expire <= position <= highest:
                because = f"held by {hold.reason}" if hold and highest < self._safe else "durable"
                raise ValueError(f"expire {position} is not between {self._expire} and {highest} ({because})")
            self._expire = position
            self._segments.expire(position)
            self._set_limit()

    def trim(self, *, recorded: bool = False) -> int:
        """Give up whole periods below the expire position; returns the new `trimmed`.

        recorded: the owner has made the expire position durable in a place of its own, which it will hand to `open` as
        `start`; then no head is written. Otherwise the heads are written first, if they lag. Cost: none, or two flushes
        and the medium's removals.
        """
        period = self.medium.period
        with self._lock:
            self._raise_refusal()
            target = self._expire - self._expire % period
        if target <= self._trimmed:
            return self._trimmed
        if not recorded and self._heads.durable.expire < target:
            self.write_head()
        self._on_medium("trim", lambda: self._heads.alone(lambda: self.medium.trim(target)))
        with self._lock:
            self._trimmed = max(self._trimmed, target)
            self._set_limit()
            return self._trimmed

    def hold(self, position: int, reason: str) -> Hold:
        """Say why nothing from `position` on may expire yet. Release it when that is over."""
        with self._lock:
            if position < self._expire:
                raise ValueError(f"hold at {position} is below the expire position {self._expire}")
            return self._holds.add(position, reason)

    def holds(self) -> list[Hold]:
        """All reasons, the oldest first."""
        with self._lock:
            return list(self._holds)

    def _blocked_by(self) -> str:
        hold = self._holds.oldest()
        return hold.reason if hold is not None else ""

    @property
    def blocked_by(self) -> str:
        """The reason that keeps the oldest segment: of the oldest hold, or "" when nothing but the owner's delay does."""
        with self._lock:
            return self._blocked_by()

    def begin_segment(self) -> int:
        """The owner begins a segment here; returns the position. `JournalFull` when there are as many as allowed."""
        with self._lock:
            self._raise_refusal()
            position = self._pack.position
            self._segments.begin(position, self._blocked_by())
            return position

    def segments(self) -> list[int]:
        """Where the segments begin that are not wholly expired."""
        with self._lock:
            return self._segments.starts()

    @property
    def replay_seconds(self) -> float:
        """What replaying the live log would take, at the speed measured when this journal was opened."""
        return (self._pack.position - self._expire) / self._replay_rate

    def cut_tail(self, position: int, sequence: int) -> None:
        """The owner cannot use the entry at `position` (of that sequence), whole as it is, nor what follows: end there.

        For an owner whose entries refer to bytes elsewhere that never arrived. Only before the first write after `open`;
        the tail is durably gone before the first new entry.
        """
        with self._lock:
            assert self._expire <= position <= self._pack.position, "the cut lies within the log"
            unit = 0 if self.options.allow_split else self.medium.unit
            self._heads.cut(position, self._pack.position)
            self._pack = Packer(self._heads.durable.log, self.generation, sequence, position, unit)
            self._pack.hold_back = self._hold_back
            self._set_limit()
            self._safe = self._flushed = self._prezeroed = position
            self._safe_sequence = sequence
            self._rules = (self._rules[0], Rule(self._heads.durable.log, self.generation, position, self.medium.unit))

    def close(self) -> None:
        """Flush, write a head that says where the log ends, and refuse everything from then on. Again: nothing."""
        if isinstance(self._refusal, JournalClosed):
            return
        try:
            if self._refusal is None and (self._heads.begun or self.write > self._safe):
                self.flush()
                self._on_medium("close", lambda: self._heads.write(lambda: self._head_now(clean=True)))
        finally:
            with self._lock:
                self._refusal = JournalClosed("the journal is closed")
                self._pack.limit = 0

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None or self._refusal is None:
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
        start = self._expire if start is None else start
        stop = self._safe if stop is None else min(stop, self._safe)
        if start < self._trimmed:
            raise JournalTrimmed(start, self._trimmed)
        old, new = self._rules
        sequence: int | None = None
        for rule, low, high in ((old, start, min(stop, self._heads.begin)), (new, max(start, self._heads.begin), stop)):
            walk = Walk(self.medium.read, rule, low, high, window=self.options.window_bytes, sequence=sequence)
            yield from walk.batches()
            if walk.broken:
                raise self._broken(walk)
            sequence = walk.sequence

    def _broken(self, walk: Walk) -> JournalError:
        if walk.position < self._trimmed:
            return JournalTrimmed(walk.position, self._trimmed)
        return JournalCorrupt(walk.position, walk.broken, f"everything below {self._safe} is known to be durable")

    # -- what there is to know -----------------------------------------------------------------------------------------

    @property
    def trimmed(self) -> int:
        """Below this nothing can be read."""
        return self._trimmed

    @property
    def expire(self) -> int:
        """Below this the owner needs nothing."""
        return self._expire

    @property
    def safe(self) -> int:
        """Below this everything is durable."""
        return self._safe

    @property
    def flushed(self) -> int:
        """Below this everything was handed to the medium."""
        return self._flushed

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
        self._counters.appends = self._pack.appended
        return self._counters

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
        return None if self._limit == _NO_LIMIT else max(0, self._limit - self._pack.position)

    def assert_state(self) -> None:
        """Check the invariants named at the head of this module."""
        with self._lock, self._pack.still():
            assert self._trimmed <= self._expire <= self._safe <= self._flushed <= self._pack.position, "J1"
            assert self._flushed <= self._pack.taken <= self._pack.position, "J1"
            assert sum(map(len, self._pack.buffers)) == self._pack.position - self._pack.taken, "K1"
            if self._heads.begun:
                assert self._heads.durable.generation == self.generation, "J3"
            if self.medium.capacity is not None:
                assert self._pack.position - self._trimmed <= self.medium.capacity - self.medium.period, "J5"
            hold = self._holds.oldest()
            assert hold is None or self._expire <= hold.position, "J7"


def _refused(type_: int, length: int) -> Exception:
    if length > PAYLOAD_MAX:
        return EntryTooLarge(length, PAYLOAD_MAX)
    return ValueError(f"entry type {type_} is not in 1..{TYPE_MAX}")
