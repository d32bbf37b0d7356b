"""Advisory locks as data: byte ranges of inodes, who holds them, who waits.

No clock, no thread, no I/O: a front calls `acquire`, or `wait` with a token of its own, which queues where something is in the
way; after whatever gave something back it asks `wake` which tokens hold their lock now. The same structure serves POSIX record
locks (owner: a process) and flock(2) (owner: an open file, the range always whole), in a table each: `FileLocks` has both.

Invariants, checked by `assert_state`:
1. the ranges one owner holds on an inode do not overlap, and equal neighbours are merged;
2. ranges of different owners overlap only where both are shared;
3. a waiter conflicts with some holder (it would have been granted otherwise);
4. in a table that detects deadlocks, every cycle of the waits-for graph leads through an owner that got a lock while it waited
   for another one.

Only a process with several threads does that. As on Linux, a deadlock is looked for when somebody begins to wait, and a process
is taken for one that does nothing else then: what another of its threads gets meanwhile may close a cycle, which is told to
nobody. It need not be a deadlock either, as that thread may give the lock back.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Hashable, Iterator
from typing import Final, NamedTuple

from mdstore.errors import InvalidRequest, PosixError

RANGE_END: Final = (1 << 63) - 1  # the last byte a lock can name: "to the end of the file, however it grows"


class Lock(NamedTuple):
    """One range, `start` to `end` inclusive. `pid` is only reported (F_GETLK)."""

    owner: int
    start: int
    end: int
    exclusive: bool
    pid: int = 0

    def overlaps(self, start: int, end: int) -> bool:
        return self.start <= end and start <= self.end

    def conflicts(self, other: Lock) -> bool:
        exclusive = self.exclusive or other.exclusive
        return exclusive and self.owner != other.owner and self.overlaps(other.start, other.end)


class _Waiter(NamedTuple):
    ino: int
    lock: Lock
    token: Hashable


class LockTable:
    """Locks of any number of inodes. Not safe for several threads at once: the front serialises.

    `detects_deadlock`: `wait` refuses with EDEADLK where waiting would close a cycle (POSIX locks do, flock does not).
    Cost: linear in the locks and waiters of the one inode; `wait` also walks the chain of who waits for whom; `wake` looks at all
    waiters once, and again for each time it grants some.
    """

    def __init__(self, *, detects_deadlock: bool = True) -> None:
        self._held: dict[int, list[Lock]] = {}
        self._waiting: dict[int, list[_Waiter]] = {}
        self._waits_of: dict[int, list[_Waiter]] = {}  # the same by owner
        self._got_while_waiting: set[int] = set()  # owners that wait, and got a lock since they began to
        self._detects_deadlock = detects_deadlock

    def conflict(self, ino: int, wanted: Lock) -> Lock | None:
        """The first lock (by start) that keeps `wanted` from being granted, or None."""
        return next(self._conflicts(ino, wanted), None)

    def acquire(self, ino: int, wanted: Lock) -> Lock | None:
        """Take `wanted`, replacing what its owner held of that range; or name the conflict and change nothing.
        A change from exclusive to shared may let others in: call `wake` afterwards."""
        obstacle = self.conflict(ino, wanted)
        if obstacle is None:
            self._replace(ino, wanted.owner, wanted.start, wanted.end, wanted)
            if wanted.owner in self._waits_of:
                self._got_while_waiting.add(wanted.owner)
        return obstacle

    def release(self, ino: int, owner: int, start: int = 0, end: int = RANGE_END) -> None:
        """Give back what `owner` holds of the range; a lock that sticks out is cut or split. Then call `wake`."""
        if ino in self._held:
            self._replace(ino, owner, start, end, None)

    def wait(self, ino: int, wanted: Lock, token: Hashable) -> bool:
        """`acquire` and True; where another's lock is in the way, queue `token` for it and False: whoever is queued waits for
        somebody, so somebody's `wake` grants it. EDEADLK where the holders wait for this owner already."""
        if self.acquire(ino, wanted) is None:
            return True
        if self._detects_deadlock and self._would_deadlock(ino, wanted):
            raise PosixError(errno.EDEADLK, ino, "the holder waits for this process")
        waiter = _Waiter(ino, wanted, token)
        self._waiting.setdefault(ino, []).append(waiter)
        self._waits_of.setdefault(wanted.owner, []).append(waiter)
        return False

    def wake(self, ino: int) -> list[Hashable]:
        """Grant, first come first served, every queued lock that no longer conflicts; returns the tokens granted. Whoever is
        granted a shared lock gives back the exclusive one it held there, and so may let in others that came before it."""
        granted: list[Hashable] = []
        while True:
            before = len(granted)
            for waiter in list(self._waiting.get(ino, ())):
                if self.conflict(ino, waiter.lock) is None:
                    self._unqueue(waiter)
                    self.acquire(ino, waiter.lock)
                    granted.append(waiter.token)
            if len(granted) == before:
                return granted

    def cancel(self, token: Hashable) -> bool:
        """Take `token` out of its queue; False where it is not waiting (any more)."""
        for waiters in self._waiting.values():
            for waiter in waiters:
                if waiter.token == token:
                    self._unqueue(waiter)
                    return True
        return False

    def forget(self, whose: Callable[[int], bool], inodes: Collection[int]) -> tuple[list[int], list[Hashable]]:
        """Drop all that the owners `whose` says yes to hold or wait for on `inodes`; returns those to `wake` and the tokens that
        will not be granted any more."""
        gone = [waiter for ino in inodes for waiter in self._waiting.get(ino, ()) if whose(waiter.lock.owner)]
        for waiter in gone:
            self._unqueue(waiter)
        held = {
            (number, lock.owner)
            for number in inodes
            for lock in self._held.get(number, ())
            if whose(lock.owner)
        }
        for number, owner in held:
            self.release(number, owner)
        return sorted({number for number, _ in held}), [waiter.token for waiter in gone]

    def is_empty(self) -> bool:
        """Whether nobody holds anything; then nobody waits."""
        return not self._held

    def held(self, ino: int) -> list[Lock]:
        """What is held on an inode, by start."""
        return list(self._held.get(ino, ()))

    def waiting(self) -> int:
        """How many wait, on all inodes."""
        return sum(map(len, self._waiting.values()))

    def assert_state(self) -> None:
        """Check the invariants named at the head of the module."""
        for ino, locks in self._held.items():
            assert locks, f"an empty list is kept for inode {ino}"
            for index, lock in enumerate(locks):
                assert 0 <= lock.start <= lock.end <= RANGE_END, f"range {lock}"
                for other in locks[index + 1 :]:
                    assert not lock.conflicts(other), f"2: {lock} and {other}"
                    same = lock.owner == other.owner
                    assert not (same and lock.overlaps(other.start, other.end)), f"1: {lock} and {other} overlap"
                    mergeable = same and lock.exclusive == other.exclusive and lock.end + 1 == other.start
                    assert not mergeable, f"1: {lock} and {other} are not merged"
        known = [waiter for waiters in self._waits_of.values() for waiter in waiters]
        assert sorted(map(repr, known)) == sorted(repr(waiter) for waiters in self._waiting.values() for waiter in waiters)
        assert self._got_while_waiting <= self._waits_of.keys(), "who waits no longer is remembered"
        for ino, waiters in self._waiting.items():
            for waiter in waiters:
                assert self.conflict(ino, waiter.lock) is not None, f"3: {waiter} waits for nobody"
                if self._detects_deadlock and waiter.lock.owner not in self._got_while_waiting:
                    assert not self._would_deadlock(ino, waiter.lock, self._got_while_waiting), f"4: {waiter}"

    def _conflicts(self, ino: int, wanted: Lock) -> Iterator[Lock]:
        return (lock for lock in self._held.get(ino, ()) if lock.conflicts(wanted))

    def _replace(self, ino: int, owner: int, start: int, end: int, new: Lock | None) -> None:
        kept: list[Lock] = []
        for lock in self._held.get(ino, ()):
            if lock.owner != owner or not lock.overlaps(start, end):
                kept.append(lock)
                continue
            if lock.start < start:
                kept.append(lock._replace(end=start - 1))
            if lock.end > end:
                kept.append(lock._replace(start=end + 1))
        if new is not None:
            kept.append(new)
        if kept:
            self._held[ino] = _merged(kept, owner)
        else:
            self._held.pop(ino, None)

    def _unqueue(self, waiter: _Waiter) -> None:
        waiters = self._waiting[waiter.ino]
        waiters.remove(waiter)
        if not waiters:
            del self._waiting[waiter.ino]
        waits = self._waits_of[waiter.lock.owner]
        waits.remove(waiter)
        if not waits:
            del self._waits_of[waiter.lock.owner]
            self._got_while_waiting.discard(waiter.lock.owner)

    def _would_deadlock(self, ino: int, wanted: Lock, apart_from: Collection[int] = ()) -> bool:
        """Whether a holder in the way waits, over any number of steps, for the owner that asks; `apart_from` are taken to wait
        for nobody."""
        reached: set[int] = set(apart_from)
        frontier = {lock.owner for lock in self._conflicts(ino, wanted)} - reached
        while frontier:
            if wanted.owner in frontier:
                return True
            reached |= frontier
            frontier = {
                holder.owner
                for owner in frontier
                for waiter in self._waits_of.get(owner, ())
                for holder in self._conflicts(waiter.ino, waiter.lock)
            } - reached
        return False


def _merged(locks: list[Lock], owner: int) -> list[Lock]:
    """Sorted by start, with neighbours of `owner` that are of one kind made one."""
    result: list[Lock] = []
    mine: int | None = None  # where the owner's previous range sits in `result`
    for lock in sorted(locks, key=lambda lock: (lock.start, lock.owner)):
        if lock.owner == owner:
            if mine is not None:
                last = result[mine]
                if last.exclusive == lock.exclusive and last.end + 1 == lock.start:
                    result[mine] = last._replace(end=lock.end)
                    continue
            mine = len(result)
        result.append(lock)
    return result


OWNER_MASK: Final = (1 << 64) - 1
SESSION_SHIFT: Final = 64  # an owner's number is 64 bits of its front; the session that the front speaks for is above


def owner_of(session: int, owner: int) -> int:
    """The number of a front's lock owner among those of all sessions."""
    return session << SESSION_SHIFT | owner


def of_session(session: int, lock: Lock) -> Lock:
    """A front's lock under its owner's number among those of all sessions. InvalidRequest for a range or an owner that cannot be:
    an owner of more than 64 bits would be another session's."""
    if not 0 <= lock.owner <= OWNER_MASK:
        raise InvalidRequest(f"lock owner {lock.owner}: owners are 0 to 2**64 - 1")
    if not 0 <= lock.start <= lock.end <= RANGE_END:
        raise InvalidRequest(f"a lock of bytes {lock.start} to {lock.end}: both ends are inside, the last byte is {RANGE_END}")
    return lock._replace(owner=owner_of(session, lock.owner))


class FileLocks:
    """The POSIX and flock(2) locks of a name space, and who waits for one. The caller serialises.

    Who waits is named by the session and a token of its front: no session can cancel another's wait. `granted` of a waiter is
    called once, when its lock is held, by whoever gave back what stood in the way; never after `cancel`, `close` or `end_session`
    took the waiter away.
    """

    def __init__(self) -> None:
        self._posix = LockTable()
        self._flock = LockTable(detects_deadlock=False)
        self._granted: dict[Hashable, Callable[[], None]] = {}  # by (session, token)

    def table(self, *, flock: bool) -> LockTable:
        """One of the two."""
        return self._flock if flock else self._posix

    def acquire(self, ino: int, wanted: Lock, *, flock: bool) -> bool:
        """Take a lock, or change one's own; False where another's is in the way."""
        self._make_way(ino, wanted, flock=flock)
        taken = self.table(flock=flock).acquire(ino, wanted) is None
        self._wake(ino, flock=flock)
        return taken

    def _make_way(self, ino: int, wanted: Lock, *, flock: bool) -> None:
        """flock(2) changes a lock by giving it back first, for good where the other kind is not to be had: so two who share a
        lock and both want it alone do not wait for each other."""
        if flock and self._flock.conflict(ino, wanted) is not None:
            self._flock.release(ino, wanted.owner)

    def wait(self, ino: int, wanted: Lock, token: Hashable, granted: Callable[[], None], *, flock: bool) -> bool:
        """`acquire`, or wait until `granted` is called; True where the lock is held on return, and `granted` never called.
        EDEADLK; InvalidRequest for a token that the owner's session waits with already."""
        key = (wanted.owner >> SESSION_SHIFT, token)
        if key in self._granted:
            raise InvalidRequest(f"{token!r} waits for a lock already: choose another token")
        self._make_way(ino, wanted, flock=flock)
        taken = self.table(flock=flock).wait(ino, wanted, key)
        if not taken:
            self._granted[key] = granted
        self._wake(ino, flock=flock)
        return taken

    def cancel(self, session: int, token: Hashable) -> bool:
        """The session waits with `token` no longer; False where it does not: the lock was granted, or the waiter is gone."""
        key = (session, token)
        if self._granted.pop(key, None) is None:
            return False
        return self._posix.cancel(key) or self._flock.cancel(key)

    def release(self, ino: int, owner: int, start: int = 0, end: int = RANGE_END, *, flock: bool) -> None:
        """Give back a range, and let in who waited for it."""
        self.table(flock=flock).release(ino, owner, start, end)
        self._wake(ino, flock=flock)

    def close(self, ino: int, session: int, handle: int) -> None:
        """An open file or directory is closed: what it holds and waits for by flock(2) goes."""
        if not self._flock.is_empty():
            owner = owner_of(session, handle)
            self._forget(lambda other: other == owner, [ino], flock=True)

    def close_last(self, ino: int, session: int) -> None:
        """A session has an inode open no longer: nor has any of its processes, and POSIX locks go with their descriptors."""
        if not self._posix.is_empty():
            self._forget(lambda other: other >> SESSION_SHIFT == session, [ino], flock=False)

    def lose_inode(self, ino: int) -> None:
        """The inode is gone, and every open file of it stale: nobody holds anything, and who waits is told, to find that out."""
        for flock in (False, True):
            while held := self.table(flock=flock).held(ino):
                self.release(ino, held[0].owner, flock=flock)

    def end_session(self, session: int, inodes: Collection[int]) -> None:
        """Drop all that the session's owners hold or wait for. `inodes`: those the session has open; it has locks on no other."""
        for flock in (False, True):
            self._forget(lambda other: other >> SESSION_SHIFT == session, inodes, flock=flock)

    def _forget(self, whose: Callable[[int], bool], inodes: Collection[int], *, flock: bool) -> None:
        """First everything goes, waiters too, and then others are let in: nobody who goes is granted something on the way."""
        touched, gone = self.table(flock=flock).forget(whose, inodes)
        for key in gone:
            self._granted.pop(key, None)
        for number in touched:
            self._wake(number, flock=flock)

    def _wake(self, ino: int, *, flock: bool) -> None:
        for granted in [self._granted.pop(key) for key in self.table(flock=flock).wake(ino)]:
            granted()

    def assert_state(self) -> None:
        """Check the invariants of both tables, and that exactly those who wait will be told."""
        self._posix.assert_state()
        self._flock.assert_state()
        assert len(self._granted) == self._posix.waiting() + self._flock.waiting(), "somebody waits and will not be told"
