"""From appended to durable: group commit, heads, the first steps of a generation, and the latch.

Of the invariants in journal/journal.py this module keeps J3 and J6, and the right half of J1:
safe <= flushed <= taken <= write.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import islice

from journal.commit import Callback, Parked, Turns
from journal.errors import JournalClosed, JournalError, JournalFailed, JournalFenced
from journal.head import Head
from journal.heads import HeadKeeper
from journal.medium import Buffer, Medium
from journal.options import Counters, Options
from journal.pack import Packer, Taken, join_small
from journal.room import Room


class Writer:
    """Makes what is in the packer durable. Public calls may come from any thread, with the lock not held unless they say so."""

    def __init__(self, medium: Medium, options: Options, pack: Packer, heads: HeadKeeper, room: Room) -> None:
        self.lock = threading.Lock()  # guards positions, buffers, waiters; never held during I/O
        self.counters = Counters()
        self.refusal: JournalError | None = None
        self._closing = False
        self._closers = threading.RLock()
        self.safe = self.flushed = pack.position
        self.turns = Turns(self.lock)
        self.heads = heads
        self._medium = medium
        self._options = options
        self._pack = pack
        self._room = room
        self._prezeroed = pack.position
        self._unwritten: list[Taken] = []  # out of the packer, and not known to be handed to the medium; the leader's alone
        self._takes = iter(pack.take, None)
        self._safe_sequence = pack.sequence
        self._cause: BaseException | None = None  # what stopped the present turn
        self._handled: BaseException | None = None  # what its thread was handling already when it began
        self._unsettled = False  # from the first step of a turn until it is known what it made of the log
        pack.hold_back = options.buffer_bytes
        self.open_room()

    # -- waiting -------------------------------------------------------------------------------------------------------

    def wait(self, position: int, timeout: float | None) -> None:
        """See `Journal.wait`."""
        while self.safe < position:
            self._take_part(Parked(position), self._line_up_to_wait, self._commit, timeout)

    def _line_up_to_wait(self, me: Parked) -> bool | None:
        if self.safe >= me.position:
            return None
        if self.refusal is not None or me.position > self._pack.position:
            self.raise_refusal()
            self._require_appended(me.position)
        return self.turns.take(me)

    def push(self) -> None:
        """See `Journal.push`."""
        position = self._pack.position
        while self.flushed < position:
            self._take_part(Parked(position), self._line_up_to_push, self._write_in_turn, None)

    def _line_up_to_push(self, me: Parked) -> bool | None:
        if self.flushed >= me.position:
            return None
        self.raise_refusal()
        return self.turns.take(me)

    def _take_part(
        self, me: Parked, line_up: Callable[[Parked], bool | None], lead: Callable[[], None], timeout: float | None
    ) -> bool:
        """Line up, with the lock held, and `lead` once the turn is this thread's; whether it was. `line_up` says whether it is so
        at once; None: this thread wants no turn. However often it is interrupted, it leaves the line in order."""
        try:
            with self.lock:
                leads = line_up(me)
            if leads is False:
                leads = self.turns.sleep(me, timeout)
            if leads:
                lead()
        except BaseException as cause:
            raised = cause
            while not me.left:
                try:
                    self._abandon(me, cause)
                except BaseException as another:
                    if isinstance(raised, Exception) or not isinstance(another, Exception):  # no callback's failure hides Ctrl-C
                        raised = another
            if raised is not cause:
                raise raised  # noqa: B904 - the cause is its context
            raise
        return bool(leads)

    def add_waiter(self, position: int, callback: Callback) -> None:
        """See `Journal.add_waiter`."""
        with self.lock:
            self._require_appended(position)
            pending = self.safe < position and self.refusal is None
            if pending:
                self.turns.add(position, callback)
        if not pending:
            callback(None if self.safe >= position else self.refusal)

    def _require_appended(self, position: int) -> None:
        """With the lock held: nobody may wait for what is not there."""
        if position > self._pack.position:
            raise ValueError(f"position {position} was never appended: the log ends at {self._pack.position}")

    def hold_appender(self, end: int) -> None:
        """Where too much is buffered write out the periods that are complete, or all if that is not enough; where somebody is
        writing and does not keep up, wait until all up to `end` is durable."""
        excess = end - self._pack.taken - self._options.buffer_bytes
        if excess <= 0:
            return
        led = self._take_part(Parked(end), self._line_up_if_free, lambda: self._write_in_turn(whole_periods=True), None)
        if not led and excess > self._options.buffer_bytes:
            self.wait(end, None)

    def _line_up_if_free(self, me: Parked) -> bool | None:
        return (self.refusal is None and not self.turns.busy and self.turns.take(me)) or None

    def _abandon(self, me: Parked, cause: BaseException) -> None:
        """The thread of `me` leaves with `cause`. An interrupt is no failure of the medium: it may have come between any two
        steps of a turn, so the next leader does them all again, the same bytes to the same place (`_unwritten`), and flushes.
        What fails otherwise leaves nobody knowing what was written, so nothing may be written behind it (J6). Interrupted
        itself it is called again."""
        with self.lock:
            failure = _failure_behind(self._cause or cause, self._handled)
            if self._unsettled and self.turns.is_of(me) and failure is not None:
                self._latch("write", failure)
            self.open_room()  # which an interrupted `still` may have left closed
        self.turns.abandon(me, self.safe, self.refusal)

    # -- by the leader -------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """One write and one flush for everything appended so far. What it covers is durable, `safe`."""
        safe, sequence = self.safe, self._safe_sequence
        self._cause, self._handled, self._unsettled = None, sys.exception(), True
        try:
            safe, sequence = self.write_buffers()
            self._medium.flush()
            self.counters.flushes += 1
        except BaseException as cause:
            self._cause = cause  # at once: an interrupt behind the next call must not hide a failure
        self._end_turn(safe, sequence, "flush")
        every = self._options.head_every_bytes
        if every is not None and self.safe - self.heads.durable.safe >= every:
            with suppress(JournalError):  # latched: every later call raises it; what was waited for is durable
                self.write_head()

    def _write_in_turn(self, *, whole_periods: bool = False) -> None:
        """Write everything appended so far, or all periods that are complete, without a flush."""
        self._cause, self._handled, self._unsettled = None, sys.exception(), True
        try:
            self.write_buffers(whole_periods=whole_periods)
        except BaseException as cause:
            self._cause = cause
        self._end_turn(self.safe, self._safe_sequence, "write")

    def write_buffers(self, *, whole_periods: bool = False) -> tuple[int, int]:
        """Write everything appended; returns the position and sequence that a flush makes durable.

        whole_periods: what lies behind the last period's end stays, unless that is too much. Then the position may lie inside
        an entry: it can be `flushed`, never `safe`.
        """
        if not self.heads.begun:
            self.heads.ensure_begun(self._head_now, self._room.trimmed)
        with self.lock:
            self.raise_refusal()
            complete = self._complete_periods() if whole_periods else 0
            if self._pack.taken < complete:
                self._pack.take_to(complete, self._unwritten)
            else:
                self._unwritten.extend(islice(self._takes, 1))  # one step of the interpreter: no interrupt comes between
            _, end, sequence, _ = self._unwritten[-1]
        for begin, stop, _, buffers in self._unwritten:  # several after an interrupt
            if begin < stop:
                self._write(begin, stop, buffers)
        self.flushed = end
        self._unwritten.clear()
        return end, sequence

    def _complete_periods(self) -> int:
        """Where the last period ends that is complete; 0 where too much lies behind that."""
        position = self._pack.position
        complete = position - position % self._medium.period
        return complete if position - complete <= self._options.buffer_bytes else 0

    def _write(self, begin: int, end: int, buffers: list[Buffer]) -> None:
        if self._medium.prezero_periods:
            self._keep_zeros_ahead(begin, end)
        self._medium.write(begin, join_small(buffers))
        self.counters.writes += 1
        self.counters.bytes += end - begin

    def _keep_zeros_ahead(self, begin: int, end: int) -> None:
        """One whole empty period beyond `end`, durably, before anything up to `end` is written."""
        periods, period = self._medium.prezero_periods, self._medium.period
        if end + period <= self._prezeroed:
            return
        until = -(-end // period) * period + periods * period
        self._medium.prezero(max(self._prezeroed, begin), until)
        self._medium.flush()
        self._prezeroed = until

    def _end_turn(self, safe: int, sequence: int, operation: str) -> None:
        """A turn that was interrupted has covered nothing: whoever waits next does it again. Nor has one beside which something
        failed (a head, a trim, the owner's flush): who was told of a lost write may not have been this flush."""
        error = self._cause
        failure = _failure_behind(error, self._handled) if error is not None else None
        with self.lock:
            if failure is not None:
                self._latch(operation, failure)
            if error is None and self.refusal is None:
                self._safe_sequence = sequence
                self.safe = self._pack.safe = safe
            refusal = self.refusal
            self._unsettled = False
            self.turns.give(self.safe, refusal)
        self.turns.call_due()
        if error is not None and not isinstance(error, Exception):
            raise error
        if refusal is not None:
            raise refusal.with_traceback(None) from error or refusal.__cause__

    # -- refusing ------------------------------------------------------------------------------------------------------

    def open_room(self) -> None:
        """With the lock held: let entries be added at once as far as nothing refuses and nothing is padded."""
        is_shut = self.refusal is not None or self._closing
        self._pack.limit = 0 if is_shut or self._pack.unit else self._room.limit

    def raise_refusal(self) -> None:
        """With the lock held: the error that every call raises now, if there is one."""
        if self.refusal is not None:
            raise self.refusal.with_traceback(None)

    def _latch(self, operation: str, cause: BaseException) -> JournalError:
        """With the lock held: remember the first failure for good (J6). A fenced writer stays fenced."""
        if self.refusal is None:
            self.refusal = cause if isinstance(cause, JournalFenced) else JournalFailed(operation, self.flushed, cause)
        self.open_room()
        return self.refusal

    def refuse(self, refusal: JournalError) -> None:
        """Every later call raises `refusal`."""
        with self.lock:
            self.refusal = refusal
            self.open_room()

    def is_at_rest(self) -> bool:
        """See `Journal.is_at_rest`."""
        return not (self.lock.locked() or self.turns.busy or self.heads.busy)

    def left_behind(self, refusal: JournalClosed) -> None:
        """In a forked child: as `refuse`; a thread that held the lock is not there."""
        if self.lock.locked():
            self.lock.release()
        self.refuse(refusal)

    def admit(self) -> None:
        """With the lock held: the error that an append raises now, if there is one."""
        self.raise_refusal()
        if self._closing:
            raise JournalClosed("the journal is being closed")

    def close(self) -> None:
        """Take no more entries, flush, write a head that says where the log ends, and refuse everything from then on. Whoever
        closes meanwhile waits until that is done; a callback that does so inside the flush does it itself."""
        if isinstance(self.refusal, JournalClosed):
            return  # also in a forked child, where the thread that held the lock is not
        with self._closers:
            with self.lock:
                self._closing = True
                self.open_room()
            try:
                if self.refusal is None and (self.heads.begun or self._pack.position > self.safe):
                    self.wait(self._pack.position, None)
                    if self.refusal is None:
                        self.on_medium("close", lambda: self.heads.write(lambda: self._head_now(clean=True)))
            finally:
                self.refuse(JournalClosed("the journal is closed"))

    # -- heads ---------------------------------------------------------------------------------------------------------

    def write_head(self) -> None:
        """Both head copies describe the journal as it is, durably, when this returns. Cost: two flushes."""
        self.on_medium("head", lambda: self.heads.write(self._head_now))

    def _head_now(self, *, clean: bool = False) -> Head:
        with self.lock:
            head = Head(
                log=self._pack.log, generation=self._pack.generation, trimmed=self._room.trimmed,
                expire=self._room.expire, safe=self.safe, next_sequence=self._safe_sequence,
                generation_start=self.heads.begin, epoch=getattr(self._medium, "epoch", 0), clean=clean,
                allow_split=self._options.allow_split, **self._medium.describe(),
            )  # fmt: skip
        return head  # noqa: RET504 - not from inside: an interrupt behind the call there would leave the lock held

    def on_medium(self, operation: str, action: Callable[[], None]) -> None:
        """Run `action` once the generation has begun; a failure latches the journal. An interrupt does not: heads, trims and the
        beginning of a generation are such that doing them again, from the first step, is right."""
        with self.lock:
            self.raise_refusal()
        handled = sys.exception()
        try:
            self.heads.ensure_begun(self._head_now, self._room.trimmed)
            action()
        except BaseException as cause:
            failure = _failure_behind(cause, handled)
            if failure is None:
                raise
            with self.lock:
                refusal = self._latch(operation, failure)
            if failure is not cause:
                raise
            raise refusal from cause
        with self.lock:
            self.raise_refusal()  # what failed meanwhile may have been this

    def begin_at(self, position: int, sequence: int) -> None:
        """With the lock held, before the first write: the log ends at `position`, what recovery found behind that goes."""
        self.heads.cut(position, self._pack.position)
        self._pack.restart(position, sequence)
        self.safe = self.flushed = self._prezeroed = self._pack.safe = position
        self._safe_sequence = sequence

    def assert_state(self) -> None:
        """With the lock held."""
        assert self.safe <= self.flushed <= self._pack.taken <= self._pack.position, "J1"
        self._pack.assert_state()
        if self.heads.begun:
            assert self.heads.durable.generation == self._pack.generation, "J3"


def _failure_behind(cause: BaseException | None, handled: BaseException | None) -> Exception | None:
    """What failed, where something did: an interrupt may have come while the error of a medium was on its way. `handled`, and
    what lies behind it, is older than the work: whoever called was handling it."""
    while cause is not None and cause is not handled:
        if isinstance(cause, Exception):
            return cause
        cause = cause.__context__
    return None
