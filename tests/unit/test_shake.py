"""tools/shake.sh: what it runs, and what it says where it cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def shaken(tmp_path: Path, place: Path) -> subprocess.CompletedProcess[str]:
    """One round that runs `echo` in place of the tests, in a copy of the tool's place."""
    (tmp_path / "tools").mkdir()
    tool = shutil.copy(ROOT / "tools" / "shake.sh", tmp_path / "tools")
    environment = {**os.environ, "TMPDIR": str(place), "SHAKES": "shuffled", "PYTHON": "echo"}
    return subprocess.run([tool, "tests"], env=environment, capture_output=True, text=True, check=False)


def test_a_round_that_has_no_directory_is_not_run_and_fails(tmp_path: Path) -> None:
    """It ran elsewhere, and was reported under the name of a condition that had not been there."""
    ran = shaken(tmp_path, tmp_path / "nowhere")
    assert ran.returncode == 1
    assert "shuffled, round 1: not run" in ran.stderr
    assert not list((tmp_path / "build" / "shake").iterdir())


def test_a_round_runs_and_leaves_nothing_but_its_log(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    ran = shaken(tmp_path, place)
    assert ran.returncode == 0, ran.stderr
    assert "-m pytest" in (tmp_path / "build" / "shake" / "shuffled-1.log").read_text()
    assert not list(place.iterdir())
