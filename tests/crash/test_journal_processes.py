"""Two real processes over one shared store: the old writer is stopped by the kernel at a step, replaced, and continued."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from journal import Journal, JournalFenced, Layout, StripedMedium
from journal.directory import DirectoryObjects

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = Layout(256, 2, 512)

OLD_WRITER = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from journal import Journal, JournalFenced, Layout, StripedMedium
from journal.directory import DirectoryObjects

stop_at = int(sys.argv[3])
steps = 0

class Stopping(DirectoryObjects):
    def __getattribute__(self, name):
        global steps
        if name in ("read", "write", "truncate", "remove", "flush", "list_names"):
            if steps == stop_at:
                steps += 1
                os.kill(os.getpid(), signal.SIGSTOP)
            steps += 1
        return super().__getattribute__(name)

journal = Journal.open(StripedMedium(Stopping(sys.argv[2], epoch=1), "log", Layout(256, 2, 512), prezero_periods=1))
try:
    for n in range(12):
        journal.wait(journal.append(b"%d:" % n + b"x" * (n * 37)))
        print(n, flush=True)
        if n == 5:
            journal.write_head()
except JournalFenced:
    print("fenced", flush=True)
    sys.exit(3)
print("done", flush=True)
"""


def medium(path: Path, epoch: int) -> StripedMedium:
    return StripedMedium(DirectoryObjects(path, epoch=epoch), "log", LAYOUT, prezero_periods=1)


def contents(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if not file.name.startswith(".")}


def acknowledged(lines: list[str]) -> list[int]:
    return [int(line) for line in lines if line.strip().isdigit()]


@pytest.mark.parametrize("stop_at", [6, 11, 14, 17, 20, 23, 26, 31, 36, 41, 47])
def test_stopped_replaced_and_continued(tmp_path: Path, stop_at: int) -> None:
    path = tmp_path / "store"
    created = Journal.create(medium(path, 1))
    created.append(b"begun")
    created.close()
    output = tmp_path / "out"
    with output.open("w") as out:
        old = subprocess.Popen([sys.executable, "-c", OLD_WRITER, str(ROOT), str(path), str(stop_at)], stdout=out)
    try:
        _, status = os.waitpid(old.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), output.read_text()
        told = acknowledged(output.read_text().splitlines())
        new = Journal.take_over(medium(path, 2))
        found = [entry.payload for entry in new.entries()]
        assert found[0] == b"begun"
        numbers = [int(payload.partition(b":")[0]) for payload in found[1:]]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= len(told), "something the old writer acknowledged is lost"
        new.wait(new.append(b"new"))
        before = contents(path)
        os.kill(old.pid, signal.SIGCONT)
        assert old.wait() == 3, "the old writer was not fenced"
    finally:
        old.kill()
        old.wait()
    assert contents(path) == before
    lines = output.read_text().splitlines()
    assert lines[-1] == "fenced"
    assert acknowledged(lines) == told, "the old writer reported a success after it was replaced"
    third = Journal.take_over(medium(path, 3))
    assert [entry.payload for entry in third.entries()] == [*found, b"new"]


def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "store"
    Journal.create(medium(path, 1)).write_head()
    output = tmp_path / "out"
    with output.open("w") as out:
        old = subprocess.Popen([sys.executable, "-c", OLD_WRITER, str(ROOT), str(path), "40"], stdout=out)
    os.waitpid(old.pid, os.WUNTRACED)
    old.kill()
    old.wait()
    told = acknowledged(output.read_text().splitlines())
    journal = Journal.take_over(medium(path, 2))
    assert len(told) > 2
    assert [int(entry.payload.partition(b":")[0]) for entry in journal.entries()][: len(told)] == told


def test_directory_objects_keep_the_promises_of_the_protocol(tmp_path: Path) -> None:
    objects = DirectoryObjects(tmp_path / "new", epoch=2)
    assert objects.read("a", 0, 5) == b""
    assert objects.stat("a") is None
    objects.truncate("a", 3)
    objects.remove("a")
    assert objects.list_names("") == []
    objects.write("a", 3, [b"de", b"", memoryview(b"f")])
    assert objects.read("a", 0, 100) == b"\0\0\0def"
    objects.truncate("a", 4)
    objects.truncate("a", 9)
    assert objects.stat("a") == 4
    objects.flush()
    objects.set_floor("a", 2)
    objects.write("a", 0, [b"x"])
    assert objects.set_floor_and_read("a", 3, 0, 2) == b"x\0"
    refusals: list[Callable[[], None]] = [
        lambda: objects.write("a", 0, [b"y"]), lambda: objects.remove("a"), lambda: objects.truncate("a", 0), objects.flush,
    ]  # fmt: skip
    for refused in refusals:
        with pytest.raises(JournalFenced):
            refused()
    with pytest.raises(JournalFenced):
        objects.set_floor("a", 2)
    objects.write("b", 0, [b"y" * 10] * 2000)
    assert objects.stat("b") == 20000
    assert sorted(objects.list_names("")) == ["a", "b"]
    newer = DirectoryObjects(tmp_path / "new", epoch=3)
    newer.write("a", 0, [b"z"])
    newer.flush()
    assert objects.read("a", 0, 1) == b"z"
    objects.close()
    newer.close()
