"""`mdstore repair --apply` as a process, killed with SIGKILL again and again: the next run ends it, `--undo` takes it back.

KILL_SEED=n replays the delays; when the process is killed still depends on the machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random

from mdstore.tools.repair.record import FileState, RepairFile
from tests.unit.reader_images import changed, check
from tests.unit.repair_images import rich_file_system, tree_of
from tests.unit.test_repair_names import wipe_entries

SEED = int(os.environ.get("KILL_SEED", "3"))
ROUNDS = 4


def run(*words: str, kill_after: float | None = None) -> int | None:
    """The exit code of the command; None when it was killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mdstore.tools.cli", "repair", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        return process.wait(kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return None


def test_a_repair_killed_again_and_again_ends_and_can_be_taken_back(tmp_path: Path) -> None:
    print(f"KILL_SEED={SEED}")
    random = Random(SEED)
    image = rich_file_system()
    damaged = bytes(8192) + changed(image, wipe_entries)[8192:]
    path = tmp_path / "image"
    path.write_bytes(damaged)
    for _ in range(ROUNDS):
        run(str(path), "--apply", kill_after=random.uniform(0.2, 0.8))
    assert run(str(path), "--apply") in (0, 1)
    assert run(str(path)) == 0
    after = path.read_bytes()
    (tmp_path / "checked").mkdir()
    assert [problem for problem in check(after, tmp_path / "checked", "deep") if problem.severity != "note"] == []
    found, before = tree_of(after), tree_of(image)
    del found["/"], before["/"]
    assert found == before
    done = [file for file in tmp_path.glob("image.repair*") if state_of(file) is FileState.DONE]
    assert len(done) == 1
    assert run(str(path), "--undo", str(done[0])) == 0
    assert path.read_bytes() == damaged


def state_of(path: Path) -> FileState:
    file = RepairFile.open(str(path))
    try:
        return file.state()
    finally:
        file.close()
