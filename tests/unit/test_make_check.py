"""`make check`: what it leaves behind, however it ends."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENDS = {"passed": "exit 0", "failed": "exit 1", "interrupted": "kill -INT 0; exit 130"}  # 0: the group, as a terminal does


@pytest.mark.parametrize("end", ENDS)
def test_the_images_of_a_run_go_with_it(end: str, tmp_path: Path) -> None:
    """They stayed in memory, those of three runs of every user: 900 MB."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "bin").mkdir()
    for name in ("ruff", "mypy", "python"):
        stub = tmp_path / "bin" / name
        stub.write_text("#!/bin/sh\n")
        stub.chmod(0o755)
    with (tmp_path / "bin" / "python").open("a") as stub_text:  # in the place of pytest
        stub_text.write(f'mkdir "$TMPDIR/pytest-of-me" && echo "$TMPDIR" >{tmp_path}/where && {ENDS[end]}\n')
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")} | {"TMPDIR": str(tmp_path)}
    command = ["make", "-o", "build", "check", f"BIN={tmp_path / 'bin'}"]
    ran = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, start_new_session=True
    )
    assert (ran.returncode == 0) == (end == "passed"), ran
    images = Path((tmp_path / "where").read_text().strip())
    assert images.name.startswith("tmp."), "a directory of its own"
    assert not images.exists()
