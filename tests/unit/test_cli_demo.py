"""The demonstration must notice what is not true, and say so in its exit code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mdstore.tools.demo import SHOWN_FAILURES, Story, told

ROOT = Path(__file__).parents[2]


def test_a_claim_that_is_not_true_is_counted_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    story = Story()
    story.check("all is well", [])
    assert story.failures == 0
    story.check("nothing differs", [f"/file{number}: content differs" for number in range(9)])
    said = capsys.readouterr().out
    assert story.failures == 9
    assert "  true: all is well" in said
    assert "NOT TRUE: nothing differs" in said
    assert said.count("content differs") == SHOWN_FAILURES
    assert "and 4 more" in said


def test_a_verb_that_fails_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    story = Story()
    told(story, "ls", tmp_path / "none.img")
    assert story.failures == 1


@pytest.mark.slow
def test_the_whole_story_is_true_of_a_real_tree() -> None:
    """`make demo` with its default source; the mounted part has a test of its own and is told only where FUSE works."""
    command = [sys.executable, "-m", "mdstore.tools.demo", "--seed", "20261121"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "everything is as it must be" in done.stdout
    assert "NOT TRUE" not in done.stdout
    assert "none lost" in done.stdout
    assert "killed with SIGKILL at its work" in done.stdout
