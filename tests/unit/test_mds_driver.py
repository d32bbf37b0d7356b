"""The driver lets time pass, and stops at the first failure."""

from __future__ import annotations

import os
import struct
import threading

import pytest

from mdstore.engines.mem import MemStore
from mdstore.errors import DeviceFailed
from mdstore.mds.driver import Driver
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER


class Counting:
    """Something to drive that says when it was ticked often enough."""

    def __init__(self, enough: int, failure: Exception | None = None) -> None:
        self.moments: list[int] = []
        self.enough = enough
        self.failure = failure
        self.reached = threading.Event()
        self.pieces = 0

    def tick(self, now_ns: int) -> None:
        self.moments.append(now_ns)
        if len(self.moments) >= self.enough:
            self.reached.set()
            if self.failure is not None:
                raise self.failure

    def background_work(self) -> bool:
        self.pieces += 1
        return self.pieces % 3 != 0


def test_ticks_come_until_the_end_and_none_after_it() -> None:
    driven = Counting(3)
    with Driver(driven, every_s=0.001, clock=lambda: 42):
        driven.reached.wait()
    seen = list(driven.moments)
    assert set(seen) == {42}
    assert driven.moments == seen
    assert driven.pieces >= len(seen)


@pytest.mark.parametrize("failure", [DeviceFailed("write", "medium", "gone"), struct.error("a bug")])
def test_the_first_failure_ends_it_and_is_told_once(failure: Exception) -> None:
    driven = Counting(2, failure)
    told: list[Exception] = []
    heard = threading.Event()

    def hear(error: Exception) -> None:
        told.append(error)
        heard.set()

    with Driver(driven, every_s=0.001, failed=hear) as driver:
        heard.wait()
    assert told == [driven.failure]
    assert driver.error is driven.failure
    assert len(driven.moments) == 2


def test_what_nobody_synced_is_durable_after_a_while() -> None:
    store = MemStore(delayed=True)
    MetadataServer.format(store, now_ns=1)
    server = MetadataServer.mount(store, clock=lambda: 10**9)
    attr, handle = server.create(SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)
    server.write(handle, 0, b"bytes")
    done = threading.Event()

    class Told:
        def tick(self, now_ns: int) -> None:
            server.tick(now_ns)
            done.set()

        def background_work(self) -> bool:
            return server.background_work()

    with Driver(Told(), every_s=0.001, clock=lambda: 10**12):
        done.wait()
    assert MetadataServer.mount(store.crash()).getattr(attr.ino).size == 5
