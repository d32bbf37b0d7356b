"""The example of docs/howto/embed-a-map.md does what its comments say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mdstore.device.file import FileDevice
from mdstore.store import Store

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "embed-a-map.md"


def test_the_example_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(blocks[0], str(PAGE), "exec"), {})
    assert capsys.readouterr().out.splitlines() == ["b'1815' None 3 True", "b'ada' b'1815'", "b'alan' b'1912'"]
    with Store.open(FileDevice.open("app.img")) as store:
        assert len(store.map("app", "users")) == 0
