"""Closing a journal beside other threads, and inside a callback."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from journal import Journal, JournalClosed, MemoryMedium

HANG_S = 120


class Gated(MemoryMedium):
    """Runs `on_flush` inside the next flush, and `on_head` inside the next write of a head."""

    on_flush: Callable[[], None] | None = None
    on_head: Callable[[], None] | None = None

    def flush(self) -> None:
        action, self.on_flush = self.on_flush, None
        if action is not None:
            action()
        super().flush()

    def write_head(self, slot: int, data: bytes) -> None:
        action, self.on_head = self.on_head, None
        if action is not None:
            action()
        super().write_head(slot, data)


@pytest.fixture
def medium() -> Gated:
    return Gated()


@pytest.fixture
def journal(medium: Gated) -> Journal:
    journal = Journal.create(medium)
    journal.wait(journal.append(b"first"))
    return journal


def payloads(medium: Gated) -> list[bytes]:
    with Journal.open(medium) as again:
        assert again.tail.kind == "clean"
        return [entry.payload for entry in again.entries()]


def test_an_append_beside_the_last_head_is_refused(journal: Journal, medium: Gated) -> None:
    """It was accepted, and could be made durable, behind a head that said where the log ended for good."""
    refused = list[str]()

    def late() -> None:
        append, append_many = journal.append, journal.append_many
        for call in (lambda: append(b"late"), lambda: append(b"l" * 100_000), lambda: append_many([b"late"])):
            with pytest.raises(JournalClosed) as caught:
                call()
            refused.append(str(caught.value))

    medium.on_head = late
    journal.append(b"second")
    journal.close()
    assert len(refused) == 3
    assert payloads(medium) == [b"first", b"second"]


def test_of_two_who_close_at_once_the_second_waits_for_the_first(journal: Journal, medium: Gated) -> None:
    """It raised JournalClosed, or wrote heads beside the first."""
    order, begun = list[str](), threading.Event()

    def close() -> None:
        begun.set()
        journal.close()
        order.append("second")

    second = threading.Thread(target=close)

    def in_the_last_head() -> None:
        second.start()
        assert begun.wait(HANG_S)
        order.append("head")

    medium.on_head = in_the_last_head
    journal.append(b"second")
    written = journal._heads.written
    journal.close()
    second.join(HANG_S)
    assert order == ["head", "second"]
    assert journal._heads.written == written + 2, "one head, two copies"
    assert payloads(medium) == [b"first", b"second"]


def test_closing_inside_a_callback_of_the_last_flush(journal: Journal, medium: Gated) -> None:
    journal.add_waiter(journal.append(b"second"), lambda _: journal.close())
    journal.close()
    assert payloads(medium) == [b"first", b"second"]


def test_a_failed_close_says_so_once(journal: Journal, medium: Gated) -> None:
    def fail() -> None:
        raise OSError("no")

    medium.on_flush = fail
    journal.append(b"second")
    with pytest.raises(Exception, match="no"):
        journal.close()
    journal.close()
    with pytest.raises(JournalClosed):
        journal.append(b"x")
