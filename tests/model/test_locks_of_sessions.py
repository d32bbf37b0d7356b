"""Sessions that open, lock, wait, close, end and are evicted at random: a lock or a wait is always that of a session which has
the file open, of flock(2) by the very handle; and whoever waits is told at most once, and never after it gave up."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

from mdstore.engines.mem import MemStore
from mdstore.errors import Conflict, PosixError
from mdstore.mds.locks import OWNER_MASK, SESSION_SHIFT, Lock
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER

SECOND = 10**9
SEEDS_AT_ONCE, STEPS = 12, 60
CALLS = ["open", "open", "close", "close", "take", "wait", "wait", "cancel", "drop"] * 2 + ["end", "pass_time", "unlink"]


class Users:
    """A server, its mount's session and two clients."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = SECOND
        store = MemStore(delayed=True)
        MetadataServer.format(store, now_ns=1)
        self.server = MetadataServer.mount(store, clock=lambda: self.now, client=b"mount")
        self.directory = self.server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755).ino
        self.inos = [self.directory]
        for name in (b"a", b"b"):
            attr, handle = self.server.create(SUPERUSER, ROOT_INO, name, 0o644, os.O_RDWR)
            self.server.release(handle)
            self.inos.append(attr.ino)
        self.mount = self.server._core.client
        self.handles: dict[int, dict[int, int]] = {self.mount: {}}  # by session: handle to inode
        for _ in range(2):
            self.join()
        self.waits: dict[int, int] = {}  # token to session
        self.tokens = 0
        self.told: list[int] = []

    def join(self) -> None:
        self.handles[self.server.clients.open(b"client", timeout_ns=SECOND)] = {}

    def call(self, session: int, verb: str, *args: Any, **named: Any) -> Any:
        if session == self.mount:
            return getattr(self.server, verb)(*args, **named)
        return self.server.clients.call(session, verb, *args, **named)

    def step(self) -> None:
        session, call = self.rng.choice(list(self.handles)), self.rng.choice(CALLS)
        print(call, session)
        method: Callable[[int], None] = getattr(self, call)
        with suppress(PosixError, Conflict):  # a deadlock, an inode that is gone; a session that is stale
            method(session)
        self.check()

    def check(self) -> None:
        locks = self.server._locks
        locks.assert_state()
        assert len(set(self.told)) == len(self.told)
        for flock in (False, True):
            table = locks.table(flock=flock)
            have = [(ino, lock) for ino in self.inos for lock in table.held(ino)]
            have += [(waiter.ino, waiter.lock) for waiters in table._waiting.values() for waiter in waiters]
            for ino, lock in have:
                handles = self.handles[lock.owner >> SESSION_SHIFT]
                assert ino in ([handles.get(lock.owner & OWNER_MASK)] if flock else handles.values()), f"{lock} of {ino}"

    # -- calls -----------------------------------------------------------------------------------------------------------

    def open(self, session: int) -> None:
        ino = self.rng.choice(self.inos)
        verb, flags = ("opendir", ()) if ino == self.directory else ("open", (os.O_RDWR,))
        self.handles[session][self.call(session, verb, SUPERUSER, ino, *flags)] = ino

    def close(self, session: int) -> None:
        for handle in self._one_of(session):
            verb = "releasedir" if self.handles[session][handle] == self.directory else "release"
            self.call(session, verb, handle)
            del self.handles[session][handle]

    def _one_of(self, session: int) -> list[int]:
        handles = list(self.handles[session])
        return [self.rng.choice(handles)] if handles else []

    def _wanted(self) -> Lock:
        start, end = sorted((self.rng.randrange(5), self.rng.randrange(5)))
        return Lock(self.rng.choice((7, 8)), start, end, self.rng.random() < 0.5)

    def take(self, session: int) -> None:
        for handle in self._one_of(session):
            self.call(session, "take_lock", handle, self._wanted(), flock=self.rng.random() < 0.4)

    def wait(self, session: int) -> None:
        for handle in self._one_of(session):
            self.tokens += 1
            token, flock = self.tokens, self.rng.random() < 0.4
            granted = partial(self.told.append, token)
            if not self.call(session, "wait_for_lock", handle, self._wanted(), token, granted, flock=flock):
                self.waits[token] = session

    def cancel(self, session: int) -> None:
        for token in [token for token, whose in self.waits.items() if whose == session][:1]:
            cancelled = self.call(session, "cancel_lock", token)
            del self.waits[token]
            assert not (cancelled and token in self.told)

    def drop(self, session: int) -> None:
        for handle in self._one_of(session):
            self.call(session, "drop_lock", handle, 7, 0, 3, flock=self.rng.random() < 0.4)

    def end(self, session: int) -> None:
        if session != self.mount:
            self.server.clients.end(session)
            self._gone()

    def pass_time(self, session: int) -> None:
        self.now += self.rng.choice((SECOND, 6 * SECOND))
        self.server.tick(self.now)
        self._gone()

    def _gone(self) -> None:
        live = {info.number for info in self.server.clients.list()}
        for session in self.handles.keys() - live:
            del self.handles[session]
            self.waits = {token: whose for token, whose in self.waits.items() if whose != session}
            self.join()

    def unlink(self, session: int) -> None:
        self.server.unlink(SUPERUSER, ROOT_INO, self.rng.choice((b"a", b"b")))


@pytest.mark.parametrize("first_seed", range(0, 6 * SEEDS_AT_ONCE, SEEDS_AT_ONCE))
def test_locks_and_waits_are_those_of_sessions_that_have_the_file_open(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + SEEDS_AT_ONCE):
        print("seed", seed)
        users = Users(seed)
        for _ in range(STEPS):
            users.step()
        users.server.close()
