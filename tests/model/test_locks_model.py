"""`FileLocks` against a model that knows single bytes: three sessions with two owners each, two inodes, both kinds of lock.

The model grants by trying every waiter again, in order, until none of them gets what it waits for, and looks for a deadlock in
the whole graph of who waits for whom.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import pytest

from mdstore.errors import PosixError
from mdstore.mds.locks import SESSION_SHIFT, FileLocks, Lock, owner_of

BYTES, INODES, SESSIONS, HANDLES = 6, (1, 2), (0, 1, 2), (1, 2)
CALLS = ["acquire", "wait", "wait", "wait", "release", "release"]
ENDING_CALLS = ["cancel", "close", "close", "close_last", "end_session", "lose_inode"]
SEEDS_AT_ONCE, STEPS = 40, 50


class Wait(NamedTuple):
    flock: bool
    ino: int
    lock: Lock
    token: int


class ByteLocks:
    """For each byte, owner and whether exclusive; and a list of those who wait."""

    def __init__(self) -> None:
        self.bytes: dict[tuple[bool, int], list[dict[int, bool]]] = {
            (flock, ino): [{} for _ in range(BYTES)] for flock in (False, True) for ino in INODES
        }
        self.waits: list[Wait] = []

    def holders(self, flock: bool, ino: int, wanted: Lock) -> set[int]:
        """Who is in the way."""
        return {
            owner
            for held in self.bytes[flock, ino][wanted.start : wanted.end + 1]
            for owner, exclusive in held.items()
            if owner != wanted.owner and (exclusive or wanted.exclusive)
        }

    def take(self, flock: bool, ino: int, wanted: Lock) -> bool:
        if self.holders(flock, ino, wanted):
            return False
        for held in self.bytes[flock, ino][wanted.start : wanted.end + 1]:
            held[wanted.owner] = wanted.exclusive
        return True

    def drop(self, flock: bool, ino: int, owners: set[int], start: int = 0, end: int = BYTES - 1) -> None:
        for held in self.bytes[flock, ino][start : end + 1]:
            for owner in owners:
                held.pop(owner, None)

    def grant(self) -> list[int]:
        """The tokens of those who got what they waited for."""
        granted: list[int] = []
        while got := [wait for wait in self.waits if self.take(wait.flock, wait.ino, wait.lock)]:
            granted += [wait.token for wait in got]
            self.waits = [wait for wait in self.waits if wait not in got]
        return granted

    def waits_for(self, owner: int) -> set[int]:
        """All that `owner` waits for by its POSIX waits, over any number of steps."""
        reached, frontier = set[int](), {owner}
        while frontier:
            found = [
                self.holders(False, wait.ino, wait.lock) for wait in self.waits if not wait.flock and wait.lock.owner in frontier
            ]
            frontier = set().union(*found) - reached
            reached |= frontier
        return reached


class World:
    """Both of them, called alike."""

    def __init__(self, seed: int, *, threads: bool, crowded: bool) -> None:
        """`threads`: owners go on with other calls while they wait. `crowded`: one file, and nobody leaves."""
        self.rng = random.Random(seed)
        self.threads = threads
        self.inodes = INODES[:1] if crowded else INODES
        self.calls = CALLS if crowded else CALLS + ENDING_CALLS[: self.rng.randrange(len(ENDING_CALLS) + 1)]
        self.locks, self.model = FileLocks(), ByteLocks()
        self.told: list[int] = []
        self.tokens = 0
        self.owners = {owner_of(session, handle): session for session in SESSIONS for handle in HANDLES}

    def step(self) -> str:
        """One call; what it was, for the message of a failure."""
        rng = self.rng
        ino, flock = rng.choice(self.inodes), rng.random() < 0.25
        start, end = (0, BYTES - 1) if flock else sorted((rng.randrange(BYTES), rng.randrange(BYTES)))
        lock = Lock(rng.choice(list(self.owners)), start, end, rng.random() < 0.5)
        call = rng.choice(self.calls)
        busy = any(wait.lock.owner == lock.owner for wait in self.model.waits)
        if busy and not self.threads and call in ("acquire", "wait"):
            call = "cancel"
        self.told.clear()
        granted = getattr(self, call)(flock, ino, lock) + self.model.grant()
        words = f"{call} {'flock' if flock else 'posix'} {ino} {lock}"
        assert sorted(self.told) == sorted(granted), words
        self.compare(words)
        return words

    def compare(self, words: str) -> None:
        self.locks.assert_state()
        for (flock, ino), model in self.model.bytes.items():
            held = self.locks.table(flock=flock).held(ino)
            for place, owners in enumerate(model):
                assert owners == {lock.owner: lock.exclusive for lock in held if lock.start <= place <= lock.end}, words
        if not self.threads:
            for owner in self.owners:
                assert owner not in self.model.waits_for(owner), f"{words}: {owner} waits for itself"

    # -- calls, each with the tokens that are told beside those that are granted -----------------------------------------

    def acquire(self, flock: bool, ino: int, lock: Lock) -> list[int]:
        self._make_way(flock, ino, lock)
        assert self.locks.acquire(ino, lock, flock=flock) == self.model.take(flock, ino, lock)
        return []

    def _make_way(self, flock: bool, ino: int, lock: Lock) -> None:
        if flock and self.model.holders(flock, ino, lock):
            self.model.drop(flock, ino, {lock.owner})

    def wait(self, flock: bool, ino: int, lock: Lock) -> list[int]:
        self.tokens += 1
        token, model = self.tokens, self.model
        self._make_way(flock, ino, lock)
        taken = model.take(flock, ino, lock)
        if not taken:
            model.waits.append(Wait(flock, ino, lock, token))
            holders = model.holders(flock, ino, lock)
            if not flock and any(lock.owner in (holder, *model.waits_for(holder)) for holder in holders):
                model.waits.pop()
                with pytest.raises(PosixError) as caught:
                    self.locks.wait(ino, lock, token, partial(self.told.append, token), flock=flock)
                assert caught.value.errno == errno.EDEADLK
                return []
        assert self.locks.wait(ino, lock, token, partial(self.told.append, token), flock=flock) == taken
        return []

    def release(self, flock: bool, ino: int, lock: Lock) -> list[int]:
        self.locks.release(ino, lock.owner, lock.start, lock.end, flock=flock)
        self.model.drop(flock, ino, {lock.owner}, lock.start, lock.end)
        return []

    def cancel(self, flock: bool, ino: int, lock: Lock) -> list[int]:
        session = self.owners[lock.owner]
        for wait in self._waiting_of(session):
            assert self.locks.cancel(session, wait.token)
            self.model.waits.remove(wait)
            break
        else:
            assert not self.locks.cancel(session, self.tokens)
        return []

    def _waiting_of(self, session: int) -> Iterator[Wait]:
        return (wait for wait in self.model.waits if wait.lock.owner >> SESSION_SHIFT == session)

    def close(self, flock: bool, ino: int, lock: Lock) -> list[int]:
        session = self.owners[lock.owner]
        self.locks.close(ino, session, lock.owner - owner_of(session, 0))
        self._forget([ino], {lock.owner}, flock=True)
        return []

    def close_last(self, flock: bool, ino: int, lock: Lock) -> list[int]:
        session = self.owners[lock.owner]
        self.locks.close_last(ino, session)
        self._forget([ino], self._owners_of(session), flock=False)
        return []

    def end_session(self, flock: bool, ino: int, lock: Lock) -> list[int]:
        session = self.owners[lock.owner]
        self.locks.end_session(session, INODES)
        for kind in (False, True):
            self._forget(INODES, self._owners_of(session), flock=kind)
        return []

    def _owners_of(self, session: int) -> set[int]:
        return {owner for owner, whose in self.owners.items() if whose == session}

    def _forget(self, inodes: list[int] | tuple[int, ...], owners: set[int], *, flock: bool) -> None:
        model = self.model
        model.waits = [it for it in model.waits if it.flock != flock or it.ino not in inodes or it.lock.owner not in owners]
        for ino in inodes:
            model.drop(flock, ino, owners)

    def lose_inode(self, flock: bool, ino: int, lock: Lock) -> list[int]:
        model = self.model
        self.locks.lose_inode(ino)
        gone = [wait for wait in model.waits if wait.ino == ino]
        for kind in (False, True):
            self._forget([ino], set(self.owners), flock=kind)
        return [wait.token for wait in gone]


@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("first_seed", range(0, 5 * SEEDS_AT_ONCE, SEEDS_AT_ONCE))
def test_random_calls_hold_grant_and_refuse_what_a_model_of_bytes_does(first_seed: int, threads: bool, crowded: bool) -> None:
    for seed in range(first_seed, first_seed + SEEDS_AT_ONCE):
        print("seed", seed)
        world = World(seed, threads=threads, crowded=crowded)
        for _ in range(STEPS):
            print(world.step())
