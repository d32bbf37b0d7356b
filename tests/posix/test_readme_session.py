"""The README's first session works as it is written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SESSION = re.search(r"```sh\n(mdstore mkfs.*?)```", (ROOT / "README.md").read_text(), re.S)
UNMOUNTS = "trap 'mdstore umount mnt >/dev/null 2>&1 || true' EXIT"  # also where a line fails

pytestmark = pytest.mark.fuse


def test_the_first_session_runs(tmp_path: Path) -> None:
    assert SESSION is not None
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    command = f'mdstore() {{ {shlex.quote(sys.executable)} -m mdstore.tools.cli "$@"; }}'
    script = "\n".join(["set -ex", command, UNMOUNTS, SESSION[1]])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ran = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    names = {path.name for path in (ROOT / "docs").iterdir()}
    assert {path.name for path in (tmp_path / "copy").iterdir()} == names
    assert (tmp_path / "copy" / "damage.md").read_bytes() == (ROOT / "docs" / "damage.md").read_bytes()
    assert "Nothing to repair" in ran.stdout or "nothing to repair" in ran.stdout, ran.stdout
