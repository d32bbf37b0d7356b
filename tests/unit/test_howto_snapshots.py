"""The example of docs/howto/keep-a-store.md does what its comments say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "keep-a-store.md"


def test_the_example_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks[0], str(PAGE), "exec"), {})
    lines = ["b'Dear Bob' b'Dear Ada'", "[(b'monday', 1)]", "b'Dear Ada'", "[]"]
    assert capsys.readouterr().out.splitlines() == lines
