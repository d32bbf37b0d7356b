"""What one session does costs the same however many others there are, and whatever they hold.

Ending one looked at every lock of all sessions, telling what one keeps at every file without a name: with 1,000 sessions
and 20,000 files the list of sessions held the server for more than a second, and so did the end of all of them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from mdstore.mds.locks import Lock
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from tests.unit.mds_calls import formatted
from tests.unit.mds_sessions import SECOND

FILES = 5  # of each session


def crowd(sessions: int) -> tuple[MetadataServer, list[int]]:
    """A server whose sessions each have files without a name open, and locked in both ways."""
    server = MetadataServer.mount(formatted())
    numbers = [server.clients.open(b"client", timeout_ns=SECOND) for _ in range(sessions)]
    for number in numbers:
        for file in range(FILES):
            name, request = b"%d-%d" % (number, file), 2 * file
            handle = server.clients.perform(
                number, request, request, "create", SUPERUSER, ROOT_INO, name, 0o644, os.O_RDWR
            )[1]  # fmt: skip
            for flock in (False, True):
                assert server.clients.call(number, "take_lock", handle, Lock(1, 0, 9, exclusive=True), flock=flock)
            server.clients.perform(number, request + 1, request, "unlink", SUPERUSER, ROOT_INO, name)
    return server, numbers


@contextmanager
def lines_counted() -> Iterator[list[int]]:
    """How many lines of the package are run within."""
    count = [0]

    def line(frame: FrameType, event: str, argument: object) -> Any:
        count[0] += event == "line"
        return line

    def call(frame: FrameType, event: str, argument: object) -> Any:
        return line if "/mdstore/" in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield count
    finally:
        sys.settrace(before)


def end(server: MetadataServer, number: int) -> None:
    server.clients.end(number)


def resume(server: MetadataServer, number: int) -> None:
    assert len(server.clients.resume(number, b"client").kept) == FILES


def renew(server: MetadataServer, number: int) -> None:
    server.clients.renew(number)


@pytest.mark.parametrize("do", [end, resume, renew])
def test_what_one_session_does_costs_the_same_among_many(do: Callable[[MetadataServer, int], None]) -> None:
    costs = []
    for sessions in (5, 200):
        server, numbers = crowd(sessions)
        with lines_counted() as count:
            do(server, numbers[2])
        costs.append(count[0])
    assert 0 < costs[1] <= costs[0] * 1.2


def test_the_list_of_sessions_costs_by_the_session() -> None:
    costs = []
    for sessions in (5, 200):
        server, _ = crowd(sessions)
        with lines_counted() as count:
            listed = server.clients.list()
        assert [len(info.kept) for info in listed] == [FILES] * sessions
        costs.append(count[0] / sessions)
    assert costs[1] <= costs[0] * 1.2


def test_the_end_of_all_sessions_leaves_nothing_of_any() -> None:
    server, numbers = crowd(20)
    for number in numbers:
        server.clients.end(number)
        server._locks.assert_state()
    assert not server._core.held
    assert not server._core.held_by
    assert all(server._locks.table(flock=flock).is_empty() for flock in (False, True))
    assert not any(server._handles.inodes_of(number) for number in numbers)
    assert server.counters()["open_handles"] == 0
    server.purge_all()
    server.close()
