"""A log over files of a directory: what a flush that fails, or does not come to its end, leaves for the next."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from journal import Journal, JournalError, JournalFenced, Layout, StripedMedium
from journal.directory import DirectoryObjects
from tests.unit.test_forks import in_child


def test_a_forked_child_writes_nothing_to_its_parents_log(tmp_path: Path) -> None:
    """Both wrote the same log, each where it believed the end to be."""

    def said(work: Callable[[], object]) -> str:
        try:
            return f"returned {work()!r}"
        except JournalError as error:
            return str(error)

    objects = DirectoryObjects(tmp_path / "log")
    journal = Journal.create(StripedMedium(objects, "log", Layout(64, 3, 128), prezero_periods=1))
    journal.append(b"parent")
    journal.flush()
    calls = [
        lambda: journal.wait(journal.append(b"child")), journal.flush, objects.flush, lambda: objects.write("a", 0, [b"x"]),
        lambda: objects.set_floor("log", 9),
    ]  # fmt: skip
    answers = in_child(lambda: [said(call) for call in calls])
    assert all(f"process {os.getpid()}, which forked this one" in answer for answer in answers), answers
    journal.wait(journal.append(b"parent again"))
    assert [entry.payload for entry in journal.entries()] == [b"parent", b"parent again"]


class Counted(DirectoryObjects):
    """Which names were made durable; `stop` is raised instead, at the second."""

    def __init__(self, path: Path, stop: BaseException | None = None) -> None:
        super().__init__(path, epoch=1)
        self.synced: list[str] = []
        self.stop = stop

    def _sync(self, name: str) -> None:
        if self.stop is not None and len(self.synced) == 1:
            stop, self.stop = self.stop, None
            raise stop
        super()._sync(name)
        self.synced.append(name)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), JournalFenced("b", 1, 2)])
def test_what_a_flush_did_not_come_to_the_next_one_makes_durable(tmp_path: Path, stop: BaseException) -> None:
    """What was to be synced was forgotten at the beginning: the next flush, a writer's who had not been told, said "fine"."""
    objects = Counted(tmp_path / "log", stop)
    for name in "abc":
        objects.write(name, 0, [b"event"])
    with pytest.raises(type(stop)):
        objects.flush()
    objects.flush()
    assert objects.synced == ["a", "b", "c", ""]
    objects.flush()
    assert len(objects.synced) == 4


def test_after_a_failed_flush_every_later_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel tells of a lost write once, and the second flush had nothing left to sync."""
    objects = DirectoryObjects(tmp_path / "log")
    objects.write("a", 0, [b"event"])

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            objects.flush()
    for _ in range(2):
        with pytest.raises(OSError, match="an earlier flush failed"):
            objects.flush()
