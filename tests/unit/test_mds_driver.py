"""The driver lets time pass, and stops at the first failure."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from mdstore.engines.mem import MemStore
from mdstore.errors import DeviceFailed
from mdstore.mds.driver import Driver
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from tests.unit import test_journal_interrupts as journal_interrupts

HANG_S = 60


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


@pytest.mark.parametrize("end", [Driver.stop, lambda driver: driver.__exit__(None, None, None)], ids=["stop", "exit"])
@pytest.mark.parametrize("place", ["tick", "failed"])
def test_inside_a_tick_it_is_ended_without_waiting_for_itself(place: str, end: Callable[[Driver], None]) -> None:
    """It raised "cannot join current thread", and fell back as if the tick had failed."""
    told, over = list[Exception](), threading.Event()
    failure = struct.error("a bug") if place == "failed" else None

    class Ending(Counting):
        def tick(self, now_ns: int) -> None:
            super().tick(now_ns)
            if place == "tick" and len(self.moments) == self.enough:
                end(driver)
                over.set()

    def hear(error: Exception) -> None:
        told.append(error)
        end(driver)
        over.set()

    driven = Ending(2, failure)
    driver = Driver(driven, every_s=0.001, failed=hear)
    with driver:
        assert over.wait(HANG_S)
        driver._thread.join(HANG_S)
        assert not driver._thread.is_alive()
    assert driver.error is failure
    assert told == ([failure] if failure else [])
    assert len(driven.moments) == 2, "it was the last"


def test_an_interrupt_leaves_it_so_that_it_can_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each place: the next who ended it waited for a lock that the first had left taken, and the process did, too."""
    files = "mds/driver.py", "store/uninterrupted.py", "/threading.py", "/contextlib.py"
    monkeypatch.setattr(journal_interrupts, "FILES", files)
    at, where = 0, "the first"
    while where:
        driven = Counting(1)
        driver = Driver(driven, every_s=0.001)
        driver.__enter__()
        driven.reached.wait()
        interruption = journal_interrupts.Interruption(at)
        with suppress(KeyboardInterrupt), interruption.traced():
            driver.__exit__(None, None, None)
        where, at = interruption.where, at + 1
        driver.stop()
        driver.__exit__(None, None, None)
        assert not driver._thread.is_alive(), where
    assert at > 5, "places were passed"


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
