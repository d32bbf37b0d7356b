"""The journal: append, group commit, expire, trim.

Invariants, checked by `assert_state`:

 J1  trimmed <= expire <= safe <= flushed <= write
 J2  safe and expire rest on entry boundaries; trimmed on a multiple of the medium's period, or where the log began
 J3  nothing of this writer's generation is written before both head copies that name it are durable, and before
     everything behind the end that recovery found is durably gone
 J4  nothing below the expire position of a durable head (or of the owner's own durable record) is given up
 J5  write - trimmed never exceeds the medium's capacity less one period
 J6  after the first failed write or flush nothing is written any more; every call raises the same error

States: open -> begun (first write of this generation) -> closed; any -> latched.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final

from crc32c import crc32c

from journal.commit import Callback, Turns
from journal.entry import BODY, HEADER_SIZE, MAGIC, PAD_TYPE, PAYLOAD_MAX, TYPE_MAX, VERSION, Entry, encode_header
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
from journal.head import COPIES, Head, newest_head
from journal.medium import Buffer, FencingMedium, Medium
from journal.recovery import Recovered, recover
from journal.scan import WINDOW, Rule, Tail, Walk

SMALL: Final = 1 << 15  # buffers below this are joined before they are handed to the medium
_NO_LIMIT: Final = 1 << 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a journal is written; nothing here changes what can be read.

    allow_split: False pads, so that an entry that fits a unit never crosses one (needs a medium with units).
    window_bytes: read-ahead. buffer_bytes: appended bytes held back before a write starts without being asked.
    """

    allow_split: bool = True
    window_bytes: int = WINDOW
    buffer_bytes: int = 4 << 20


@dataclass(slots=True)
class Counters:
    """What this journal has done since it was opened."""

    appends: int = 0
    writes: int = 0
    flushes: int = 0
    bytes: int = 0
    head_writes: int = 0
    pads: int = 0


class Journal:
    """An append-only log of entries. Make one with `create` or `open`; all methods may be called from any thread."""

    def __init__(self, medium: Medium, head: Head, found: Recovered, options: Options, *, read_only: bool) -> None:
        self.medium = medium
        self.options = options
        self.counters = Counters()
        self.tail: Tail = found.tail
        self._head = head
        self._read_only = read_only
        self._generation = found.generation + 1
        self._lock = threading.Lock()
        self._head_lock = threading.Lock()
        self._turns = Turns(self._lock)
        self._refusal: JournalError | None = JournalReadOnly("the journal is open read-only") if read_only else None
        self._begun = False
        self._trimmed, self._expire = found.trimmed, found.expire
        self._begin = self._safe = self._flushed = self._taken = self._write = found.end
        self._sequence = self._safe_sequence = found.next_sequence
        self._dirty_end = found.tail.dirty_end
        self._prezeroed = found.end
        self._buffers: list[Buffer] = []
        self._unit = 0 if options.allow_split else medium.unit
        self._limit = self._limit_now()
        self._generations = Rule(head.log, self._generation, found.end, medium.unit)
        self._old_rule = Rule(head.log, found.generation, head.generation_start, medium.unit)

    # -- making one ----------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, medium: Medium, *, options: Options | None = None, log: int | None = None) -> Journal:
        """Begin an empty log on `medium`, whatever was there before; the old content is gone when this returns.

        `log` is the log's identity (32 bits, not 0), random unless given. Durable on return. Cost: three flushes.
        """
        options = options or Options()
        log = log or secrets.randbits(32) | 1
        start = medium.start
        medium.truncate(start, start + HEADER_SIZE)
        head = Head(
            log=log, generation=0, trimmed=start, expire=start, safe=start, next_sequence=1, generation_start=start,
            clean=True, allow_split=options.allow_split, **medium.describe(),
        )  # fmt: skip
        for _ in range(COPIES):
            head = _renumber(head, head.number + 1)
            medium.write_head(head.number % COPIES, head.encode())
            medium.flush()
        return cls(medium, head, Recovered.empty(start), options, read_only=False)

    @classmethod
    def open(
        cls,
        medium: Medium,
        *,
        start: int | None = None,
        options: Options | None = None,
        read_only: bool = False,
        visit: Callable[[list[Entry]], None] | None = None,
    ) -> Journal:
        """Find the head, walk from `start` (default: the head's expire position) to the valid end.

        start: the owner's own durable record of the first entry it needs; it wins over the head, which may lag.
        visit: called with every batch of entries, in order, so that replay needs no second pass.
        Writes nothing: what lies behind the end is removed, and the new generation made durable, before the first byte
        of the first entry (or head) is written. `options.allow_split` unless given is the head's.
        Errors: `NoJournal`, `HeadLost`, `UnsupportedJournal`; `JournalCorrupt` when bytes known to have been durable are
        not there: a later entry, or the head, says so. A torn or stale tail is no error, see `tail`.
        """
        head = newest_head(medium.read_heads(), medium.name)
        options = options or Options(allow_split=head.allow_split)
        found = recover(medium, head, start, options.window_bytes, visit)
        return cls(medium, head, found, options, read_only=read_only)

    @classmethod
    def take_over(
        cls,
        medium: Medium,
        *,
        start: int | None = None,
        options: Options | None = None,
        visit: Callable[[list[Entry]], None] | None = None,
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

        found = recover(medium, head, start, options.window_bytes, visit, read)
        journal = cls(medium, head, found, options, read_only=False)
        journal.write_head()
        return journal

    # -- appending -----------------------------------------------------------------------------------------------------

    def append(self, payload: Buffer | Sequence[Buffer], type: int = 1) -> int:  # noqa: A002
        """Add an entry; returns its end, the position to `wait` for. Nothing is durable yet.

        payload: one buffer or several that follow one another, at most 1 GiB; `bytes` are kept by reference, anything
        else is copied. type: 1 to 65534. No I/O, except a write of everything buffered each `buffer_bytes`, and a wait
        for the writer when twice that is buffered.
        Errors, nothing appended: `JournalFull`, `EntryTooLarge`, `JournalReadOnly`, `JournalClosed`; the latched error.
        """
        if payload.__class__ is bytes:
            length, crc = len(payload), crc32c(payload)
            parts: Sequence[Buffer] = ()
        else:
            parts, length, crc = _own(payload)
            payload = parts[0] if len(parts) == 1 else b""
        if not 0 < type <= TYPE_MAX:
            raise ValueError(f"entry type {type} is not in 1..{TYPE_MAX}")
        if length > PAYLOAD_MAX:
            raise EntryTooLarge(length, PAYLOAD_MAX)
        with self._lock:
            if self._refusal is not None:
                raise self._refusal.with_traceback(None)
            begin = self._write
            end = begin + HEADER_SIZE + length
            if self._unit or end > self._limit:
                begin, end = self._make_room(length)
            sequence = self._sequence
            body = BODY.pack(
                MAGIC, VERSION, 0, type, length, self._head.log, self._generation, sequence, begin, self._safe, crc
            )
            self._buffers.append(body + crc32c(body).to_bytes(4, "little"))
            if len(parts) > 1:
                self._buffers.extend(parts)
            else:
                self._buffers.append(payload)
            self._sequence = sequence + 1
            self._write = end
            self.counters.appends += 1
            excess = end - self._taken - self.options.buffer_bytes
        if excess > 0:
            self._write_out(end, wait=excess > self.options.buffer_bytes)
        return end

    def append_many(self, payloads: Sequence[bytes], type: int = 1) -> int:  # noqa: A002
        """Add an entry for each of `payloads`; returns the end of the last. All of them, or none, see `append`."""
        if not payloads:
            return self._write
        if not 0 < type <= TYPE_MAX:
            raise ValueError(f"entry type {type} is not in 1..{TYPE_MAX}")
        longest = max(map(len, payloads))
        if longest > PAYLOAD_MAX:
            raise EntryTooLarge(longest, PAYLOAD_MAX)
        with self._lock:
            self._raise_refusal()
            total = sum(map(len, payloads)) + HEADER_SIZE * len(payloads)
            padded = sum(min(self._unit, HEADER_SIZE + len(payload)) for payload in payloads) if self._unit else 0
            if self._write + total + padded > self._limit:
                raise self._full(total + padded)
            self._pack_many(payloads, type)
            end = self._write
            self.counters.appends += len(payloads)
            excess = end - self._taken - self.options.buffer_bytes
        if excess > 0:
            self._write_out(end, wait=excess > self.options.buffer_bytes)
        return end

    def _pack_many(self, payloads: Sequence[bytes], type_: int) -> None:
        add, pack, crc = self._buffers.append, BODY.pack, crc32c
        log, generation, safe, unit = self._head.log, self._generation, self._safe, self._unit
        position, sequence = self._write, self._sequence
        for payload in payloads:
            length = len(payload)
            if unit:
                self._write, self._sequence = position, sequence
                position, _ = self._make_room(length)
                sequence = self._sequence
            body = pack(MAGIC, VERSION, 0, type_, length, log, generation, sequence, position, safe, crc(payload))
            add(body + crc(body).to_bytes(4, "little") + payload)
            position += HEADER_SIZE + length
            sequence += 1
        self._write, self._sequence = position, sequence

    def _make_room(self, length: int) -> tuple[int, int]:
        """With the lock held: pad to the next unit where needed. Returns where the entry begins and ends."""
        need = HEADER_SIZE + length
        room = self._unit - self._write % self._unit if self._unit else 0
        pad = room if need > room and room != self._unit else 0
        if self._write + pad + need > self._limit:
            raise self._full(pad + need)
        if pad:
            self._append_pad(pad)
        return self._write, self._write + need

    def _append_pad(self, size: int) -> None:
        """Fill the rest of a unit: a pad entry where one fits, zeros where not."""
        fill = bytes(max(0, size - HEADER_SIZE))
        if size < HEADER_SIZE:
            self._buffers.append(bytes(size))
        else:
            self._buffers.append(
                encode_header(
                    PAD_TYPE, len(fill), self._head.log, self._generation, self._sequence, self._write, self._safe,
                    crc32c(fill),
                )
            )  # fmt: skip
            self._buffers.append(fill)
            self._sequence += 1
        self._write += size
        self.counters.pads += 1

    def _full(self, need: int) -> JournalFull:
        return JournalFull(need, max(0, self._limit - self._write))

    def _limit_now(self) -> int:
        """The position that `write` may not pass: one period of the ring always stays free."""
        capacity = self.medium.capacity
        if capacity is None:
            return _NO_LIMIT
        return self._trimmed - self._trimmed % self.medium.period + capacity - self.medium.period

    # -- durability ----------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Everything appended before this call is durable when it returns. Cost: at most one write and one flush."""
        self.wait(self._write)

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
                assert position <= self._write, "waiting for a position that was never appended"
                leader = self._turns.take(position, timeout)
            if leader:
                self._commit()

    def push(self) -> None:
        """Everything appended before this call was handed to the medium when it returns; nothing is flushed.

        For an owner whose medium keeps the order of writes, so that what it writes elsewhere on that medium afterwards
        cannot survive a crash without these entries. Errors as `wait`.
        """
        position = self._write
        while self._flushed < position:
            with self._lock:
                if self._flushed >= position:
                    return
                self._raise_refusal()
                leader = self._turns.take(position, None)
            if leader:
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
        end, sequence = self._safe, self._safe_sequence
        error: BaseException | None = None
        try:
            end, sequence = self._write_buffers()
            self.medium.flush()
            self.counters.flushes += 1
        except BaseException as cause:
            error = cause
        self._end_turn(end, sequence, "flush", error)

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
        self._begin_generation()
        with self._lock:
            buffers, self._buffers = self._buffers, []
            begin, end, sequence = self._taken, self._write, self._sequence
            self._taken = end
        if begin < end:
            self._keep_zeros_ahead(end)
            self.medium.write(begin, join_small(buffers))
            self.counters.writes += 1
            self.counters.bytes += end - begin
        self._flushed = end
        return end, sequence

    def _keep_zeros_ahead(self, end: int) -> None:
        """One whole empty period beyond `end`, durably, before anything up to `end` is written."""
        periods, period = self.medium.prezero_periods, self.medium.period
        if not periods or end + period <= self._prezeroed:
            return
        until = -(-end // period) * period + periods * period
        self.medium.prezero(max(self._prezeroed, self._flushed), until)
        self.medium.flush()
        self._prezeroed = until

    def _end_turn(self, safe: int, sequence: int, operation: str, error: BaseException | None) -> None:
        with self._lock:
            refusal = self._latch(operation, error) if error is not None else None
            if refusal is None:
                self._safe, self._safe_sequence = safe, sequence
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
        return self._refusal

    def _raise_refusal(self) -> None:
        if self._refusal is not None:
            raise self._refusal.with_traceback(None)

    # -- heads and generations -----------------------------------------------------------------------------------------

    def _begin_generation(self) -> None:
        """Before the first write: what recovery found behind the end is durably gone, then the generation is durable."""
        if not self._begun:
            with self._head_lock:
                self._begin_generation_once()

    def _begin_generation_once(self) -> None:
        if self._begun:
            return
        self.medium.truncate(self._begin, self._dirty_end)
        self.medium.trim(self._trimmed)  # finishes what a crash may have cut short
        self._prezeroed = self._begin + (self.medium.prezero_periods + 1) * self.medium.period
        self._write_head_copies(clean=False)
        self._begun = True

    def write_head(self) -> None:
        """Both head copies describe the journal as it is, durably, when this returns. Cost: two flushes."""
        self._exclusive("head", lambda: self._write_head_copies(clean=False))

    def _write_head_copies(self, *, clean: bool) -> None:
        """One copy after the other, each with its own flush: whichever tears, the other is whole and as good."""
        with self._lock:
            head = Head(
                log=self._head.log, generation=self._generation, number=self._head.number, trimmed=self._trimmed,
                expire=self._expire, safe=self._safe, next_sequence=self._safe_sequence,
                generation_start=self._begin, epoch=getattr(self.medium, "epoch", 0), clean=clean,
                allow_split=self.options.allow_split, **self.medium.describe(),
            )  # fmt: skip
        for _ in range(COPIES):
            head = _renumber(head, head.number + 1)
            self.medium.write_head(head.number % COPIES, head.encode())
            self.medium.flush()
            self.counters.head_writes += 1
        self._head = head

    def _exclusive(self, operation: str, action: Callable[[], None]) -> None:
        """Run `action` on the medium with nobody else writing heads; a failure latches the journal."""
        with self._lock:
            self._raise_refusal()
        try:
            self._begin_generation()
            with self._head_lock:
                action()
        except BaseException as cause:
            with self._lock:
                refusal = self._latch(operation, cause)
            if not isinstance(cause, Exception):
                raise
            raise refusal from cause

    # -- giving up the past --------------------------------------------------------------------------------------------

    def set_expire(self, position: int) -> None:
        """The owner needs nothing below `position`, an entry boundary. Frees nothing before `trim`. No I/O."""
        with self._lock:
            self._raise_refusal()
            if not self._expire <= position <= self._safe:
                raise ValueError(f"expire {position} is not between {self._expire} and the durable {self._safe}")
            self._expire = position

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
        if not recorded and self._head.expire < target:
            self.write_head()
        self._exclusive("trim", lambda: self.medium.trim(target))
        with self._lock:
            self._trimmed = max(self._trimmed, target)
            self._limit = self._limit_now()
            return self._trimmed

    def cut_tail(self, position: int, sequence: int) -> None:
        """The owner cannot use the entry at `position` (of that sequence), whole as it is, nor what follows: end there.

        For an owner whose entries refer to bytes elsewhere that never arrived. Only before the first write after `open`;
        the tail is durably gone before the first new entry.
        """
        with self._lock:
            assert not self._begun, "entries of this generation may follow"
            assert self._expire <= position <= self._write, "the cut lies within the log"
            self._dirty_end = max(self._dirty_end, self._write)
            self._begin = self._safe = self._flushed = self._taken = self._write = self._prezeroed = position
            self._sequence = self._safe_sequence = sequence
            self._generations = Rule(self._head.log, self._generation, position, self.medium.unit)

    def close(self) -> None:
        """Flush, write a head that says where the log ends, and refuse everything from then on. Again: nothing."""
        if isinstance(self._refusal, JournalClosed):
            return
        try:
            if self._refusal is None and (self._begun or self._write > self._safe):
                self.flush()
                self._exclusive("close", lambda: self._write_head_copies(clean=True))
        finally:
            with self._lock:
                self._refusal = JournalClosed("the journal is closed")

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
        sequence: int | None = None
        for rule, low, high in ((self._old_rule, start, min(stop, self._begin)),
                                (self._generations, max(start, self._begin), stop)):  # fmt: skip
            if low >= high:
                continue
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
        return self._write

    @property
    def generation(self) -> int:
        """Of the entries this writer appends."""
        return self._generation

    @property
    def log(self) -> int:
        """The identity of the log."""
        return self._head.log

    @property
    def next_sequence(self) -> int:
        return self._sequence

    @property
    def capacity(self) -> int | None:
        """Bytes the log may hold, or None where the medium grows."""
        capacity = self.medium.capacity
        return None if capacity is None else capacity - self.medium.period

    @property
    def free(self) -> int | None:
        """Bytes that can be appended now, headers included, or None where the medium grows."""
        return None if self.medium.capacity is None else self._limit - self._write

    def assert_state(self) -> None:
        """Check the invariants named at the head of this module."""
        with self._lock:
            assert self._trimmed <= self._expire <= self._safe <= self._flushed <= self._write, "J1"
            assert self._flushed <= self._taken <= self._write, "J1"
            assert sum(map(len, self._buffers)) == self._write - self._taken, "buffers do not add up"
            if self._begun:
                assert self._head.generation == self._generation, "J3"
            if self.medium.capacity is not None:
                assert self._write - self._trimmed <= self.medium.capacity, "J5"


def join_small(buffers: list[Buffer]) -> list[Buffer]:
    """The same bytes in fewer buffers: runs of small ones joined, large ones as they are."""
    joined: list[Buffer] = []
    run: list[Buffer] = []
    for buffer in buffers:
        if len(buffer) < SMALL:
            run.append(buffer)
        else:
            joined += [b"".join(run), buffer]
            run = []
    if run:
        joined.append(b"".join(run))
    return [buffer for buffer in joined if len(buffer)]


def _renumber(head: Head, number: int) -> Head:
    """`head` as the copy number `number`."""
    fields = {name: getattr(head, name) for name in Head.__slots__}
    return Head(**{**fields, "number": number})


def _own(payload: Buffer | Sequence[Buffer]) -> tuple[list[Buffer], int, int]:
    """The parts of a payload as bytes nobody else can change, their total length, and their checksum."""
    given = [payload] if isinstance(payload, bytes | bytearray | memoryview) else payload
    parts: list[Buffer] = [part if isinstance(part, bytes) else bytes(part) for part in given]
    crc = 0
    for part in parts:
        crc = crc32c(part, crc)
    return parts, sum(map(len, parts)), crc
