"""`mdstore repair --apply` as a process that dies of SIGKILL again and again: the next run ends it, `--undo` takes it back.

The process kills itself, behind one of its writes or flushes, which KILL_SEED=n decides: no kill depends on the machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from random import Random

from mdstore.tools.repair.record import FileState, RepairFile
from tests.crash.dying import ROOT, dying
from tests.unit.reader_images import changed, check
from tests.unit.repair_images import rich_file_system, tree_of
from tests.unit.test_repair_names import wipe_entries

SEED = int(os.environ.get("KILL_SEED", "3"))
ROUNDS = 4


def run(*words: str | Path) -> int:
    """The exit code of the command."""
    command = [sys.executable, "-m", "mdstore.tools.cli", "repair", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode


def changes_made(image: Path) -> int:
    """How often a repair of this image writes or flushes."""
    done = subprocess.run(dying(0, "count", "repair", image, "--apply"), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return int(done.stderr.splitlines()[-1])


def killed(image: Path, after: int) -> None:
    """Repair, and die behind that many writes and flushes, or at the end when the rest of the repair has fewer."""
    done = subprocess.run(dying(0, after, "repair", image, "--apply"), cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL


def test_a_repair_killed_again_and_again_ends_and_can_be_taken_back(tmp_path: Path) -> None:
    print(f"KILL_SEED={SEED}")
    random = Random(SEED)
    image = rich_file_system()
    damaged = bytes(8192) + changed(image, wipe_entries)[8192:]
    path = tmp_path / "image"
    path.write_bytes(damaged)
    (tmp_path / "twin").mkdir()
    changes = changes_made(shutil.copy(path, tmp_path / "twin"))
    assert changes > 2 * ROUNDS
    for _ in range(ROUNDS):
        killed(path, random.randrange(1, changes))
    assert run(path, "--apply") in (0, 1)
    assert run(path) == 0
    after = path.read_bytes()
    (tmp_path / "checked").mkdir()
    assert [problem for problem in check(after, tmp_path / "checked", "deep") if problem.severity != "note"] == []
    found, before = tree_of(after), tree_of(image)
    del found["/"], before["/"]
    assert found == before
    done = [file for file in tmp_path.glob("image.repair*") if state_of(file) is FileState.DONE]
    assert len(done) == 1
    assert run(path, "--undo", done[0]) == 0
    assert path.read_bytes() == damaged


def state_of(path: Path) -> FileState:
    file = RepairFile.open(str(path))
    try:
        return file.state()
    finally:
        file.close()
