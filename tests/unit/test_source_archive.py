"""The source archive holds all that the repository does, so that whoever has it can build, read and test it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MADE = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "*.so", "_kernel.c", "_framing.c")


@pytest.mark.slow
def test_it_holds_everything(tmp_path: Path) -> None:
    source, made = tmp_path / "source", tmp_path / "made"
    shutil.copytree(ROOT, source, symlinks=True, ignore=MADE)
    shutil.copytree(ROOT / ".ci", source / ".ci")
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(made)], cwd=source, check=True, capture_output=True)
    (archive,) = made.iterdir()
    with tarfile.open(archive) as held:
        names = {name.partition("/")[2] for name in held.getnames()}
    wanted = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file() and "egg-info" not in str(path)}
    assert wanted - names == set()
    assert "mdstore/tools/cli.py" in names, "what is behind the link"
