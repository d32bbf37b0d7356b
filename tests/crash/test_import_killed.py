"""An import that is killed with SIGKILL, again and again: what it acknowledged is there, and the next run completes the rest.

One integer decides the source and the moments of the kills: MDSTORE_SEED=n pytest tests/crash/test_import_killed.py. Every other
import kills itself, at the moment the seed names; the others are killed from outside, where the machine decides the moment, and
whether there was anything left to do by then.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mdstore.tools.compare_tree import differences
from mdstore.tools.images import opened_image
from mdstore.tools.verify_import import acknowledged_paths, wrong_paths
from tests.crash.dying import ROOT, dying

KILLS = 6


def _command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "mdstore.tools.cli", *map(str, arguments)]


def _make_source(top: Path, rng: random.Random) -> int:
    """A tree of about 2,500 entries, from empty files to some MiB; returns how many entries it has."""
    directories = [top]
    top.mkdir()
    for number in range(120):
        directory = rng.choice(directories) / f"d{number}"
        directory.mkdir()
        directories.append(directory)
    files = []
    for number in range(2200):
        size = rng.choice((0, 1, 100, 3000, 4096, 9000)) if rng.random() < 0.99 else rng.randrange(1 << 20, 5 << 20)
        path = rng.choice(directories) / f"f{number}"
        path.write_bytes(rng.randbytes(size))
        os.chmod(path, rng.choice((0o644, 0o600, 0o755)))
        os.utime(path, ns=(0, rng.randrange(1 << 60)))
        files.append(path)
    for number, path in enumerate(rng.sample(files, 60)):
        os.link(path, rng.choice(directories) / f"l{number}")
    for number in range(60):
        os.symlink(f"../f{number}", rng.choice(directories) / f"s{number}")
    for directory in reversed(directories):
        os.utime(directory, ns=(0, rng.randrange(1 << 60)))
    return 120 + 2200 + 120


def _killed_from_within(image: Path, source: Path, lines: int, calls: int) -> list[bytes]:
    """Run an import that kills itself `calls` changes of the image after it has acknowledged that many paths; what it said."""
    done = subprocess.run(dying(lines, calls, "import", image, source, "--ack", "-"), cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    return done.stdout.splitlines(keepends=True)


def _killed_from_outside(image: Path, source: Path, lines: int) -> list[bytes]:
    """Run an import and kill it once it has acknowledged that many paths, if it is still there; what it said."""
    command = _command("import", image, source, "--ack", "-")
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said: list[bytes] = []
        while len(said) < lines and (line := process.stdout.readline()):
            said.append(line)
        process.send_signal(signal.SIGKILL)
        said += process.stdout.readlines()
        errors = process.stderr.read()
        code = process.wait()
    assert code in (0, -signal.SIGKILL), errors.decode()
    return said


def _paths_in(said: list[bytes]) -> list[bytes]:
    lines = b"".join(said).decode().splitlines(keepends=True)
    return acknowledged_paths("".join(line for line in lines if line.startswith('"')))


def _fsck(image: Path) -> None:
    done = subprocess.run(_command("fsck", image), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_every_acknowledged_path_survives_every_kill(tmp_path: Path) -> None:
    seed = int(os.environ.get("MDSTORE_SEED", "20261121"))
    print(f"seed {seed}")
    rng = random.Random(seed)
    image, source = tmp_path / "disk.img", tmp_path / "source"
    total = _make_source(source, rng)
    subprocess.run(_command("mkfs", image, "--size", "256M"), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    told: set[bytes] = set()
    for attempt in range(KILLS):
        lines, calls = rng.randrange(1, total), rng.randrange(8)
        from_within = attempt % 2 == 0
        said = _killed_from_within(image, source, lines, calls) if from_within else _killed_from_outside(image, source, lines)
        told |= set(_paths_in(said))
        _fsck(image)
        with opened_image(str(image), read_only=bool(attempt % 2)) as vfs:
            assert list(wrong_paths(vfs, os.fsencode(source), sorted(told))) == [], f"seed {seed}, kill {attempt}"
    subprocess.run(_command("import", image, source), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(_command("export", image, "/", tmp_path / "out"), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    assert list(differences(os.fsencode(source), os.fsencode(tmp_path / "out"), owners=os.geteuid() == 0)) == []
    _fsck(image)
    print(f"seed {seed}: {KILLS} kills, {len(told)} of {total} paths acknowledged before the end, all there")


def test_a_line_cut_off_by_the_kill_counts_for_nothing() -> None:
    assert acknowledged_paths('"a"\n"b\\udcff"\n"cut') == [b"a", b"b\xff"]
    assert acknowledged_paths("") == []


def test_the_check_sees_what_is_missing_or_different(tmp_path: Path) -> None:
    """The canary: an image that lacks, or has changed, an acknowledged path must not pass."""
    image, source = tmp_path / "disk.img", tmp_path / "source"
    source.mkdir()
    (source / "kept").write_bytes(b"kept")
    (source / "changed").write_bytes(b"as it was")
    for command in (_command("mkfs", image, "--size", "8M"), _command("import", image, source)):
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    status = os.stat(source / "changed")
    (source / "changed").write_bytes(b"as it is.")
    os.utime(source / "changed", ns=(status.st_atime_ns, status.st_mtime_ns))
    (source / "new").write_bytes(b"")
    with opened_image(str(image), read_only=True) as vfs:
        wrong = list(wrong_paths(vfs, os.fsencode(source), [b"kept", b"changed", b"new"]))
    assert wrong == ["changed: content differs in the 1048576 bytes from 0 on", "new: /new: No such file or directory"]
