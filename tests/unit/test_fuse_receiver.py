"""Ending the wait for requests from elsewhere, whoever is first."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mdstore.client.fuse_receiver import RequestReceiver


@pytest.fixture
def receiver() -> Iterator[RequestReceiver]:
    """One that would wait for ever."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield RequestReceiver(theirs.fileno(), memoryview(bytearray(4096)), 0)


def test_waking_ends_a_wait_now_and_later(receiver: RequestReceiver) -> None:
    lengths: list[int] = []
    thread = threading.Thread(target=lambda: lengths.append(receiver.receive()))
    thread.start()
    receiver.wake()
    thread.join()
    lengths.append(receiver.receive())
    assert lengths == [0, 0]
    receiver.close()


def test_waking_what_has_closed_writes_to_nobody(receiver: RequestReceiver, tmp_path: Path) -> None:
    """The loop saw that it should end, and closed, before the one that ended it wrote to the descriptor: that one got EBADF, or
    eight bytes went into whatever file had the number by then."""
    number = receiver._wake_fd
    receiver.close()
    other = os.open(tmp_path / "other", os.O_CREAT | os.O_RDWR)
    os.dup2(other, number)
    receiver.wake()
    assert (tmp_path / "other").read_bytes() == b""
    for fd in {other, number}:
        os.close(fd)


def test_it_is_not_closed_in_the_middle_of_a_wake(receiver: RequestReceiver, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    closer = threading.Thread(target=receiver.close)

    def write(fd: int, value: int) -> None:
        closer.start()
        for _ in range(10):
            os.sched_yield()  # every chance to close
            os.fstat(fd)
        written.append(value)

    monkeypatch.setattr(os, "eventfd_write", write)
    receiver.wake()
    closer.join()
    assert written == [1]
