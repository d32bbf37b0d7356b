"""The example of docs/howto/embed-a-journal.md does what its comments say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "embed-a-journal.md"


def test_the_example_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, str(PAGE), "exec"), {})
    opened, followed, refusal, left = capsys.readouterr().out.splitlines()
    assert opened == "clean {'ada': 12}"
    assert followed == left == "[b'ada=12']"
    assert "epoch 1" in refusal
    assert "floor" in refusal
