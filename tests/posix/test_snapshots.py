"""`.snap` through the kernel: made with mkdir, read with what reads anything, removed with rmdir; killed in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mdstore.mds.layout import INO_KEY
from mdstore.mds.snapshots import PREFIX
from mdstore.tools.cli import run as mdstore
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.page import Reference, decode_root
from mdstore.tools.reader.superblock import ROOT_OBJECTS
from mdstore.tools.reader.whole import newest_superblock, snapshot_superblock
from tests.posix.calls import OTHER, make, outcome, outcome_as
from tests.posix.conftest import Server, need_fuse

pytestmark = pytest.mark.fuse


# The command, which stops at its 20th, 60th and 100th read of a file and says so, until it is told to go on.
PAUSING = """
import os, sys
from mdstore.tools import cli

read, reads = os.pread, 0

def pausing(*arguments):
    global reads
    reads += 1
    if reads in (20, 60, 100):
        print("paused", file=sys.stderr, flush=True)
        assert sys.stdin.readline()
    return read(*arguments)

os.pread = pausing
sys.exit(cli.run(sys.argv[1:]))
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    need_fuse()
    path = tmp_path / "image"
    assert run("mkfs", path, "--size", "64M") == 0
    return path


def run(*arguments: object) -> int:
    """The exit code of `mdstore ARGUMENTS`."""
    return mdstore([str(argument) for argument in arguments])


def tree(path: Path) -> dict[str, bytes]:
    """Every file below `path` with its content."""
    return {str(f.relative_to(path)): f.read_bytes() for f in sorted(path.rglob("*")) if f.is_file()}


def test_a_tree_is_frozen_changed_and_taken_back(image: Path, tmp_path: Path) -> None:
    with Server(f"image:{image}", tmp_path / "mount") as server:
        work = server.mountpoint / "work"
        (work / "deep" / "er").mkdir(parents=True)
        for number in range(50):
            make(work / "deep" / f"f{number}", b"%d" % number * number * 100)
        make(work / "deep" / "er" / "x", b"x" * 200_000)
        before = tree(work)
        (work / ".snap" / "before").mkdir()
        for number in range(0, 50, 2):
            (work / "deep" / f"f{number}").unlink()
        make(work / "deep" / "er" / "x", b"changed")
        os.rename(work / "deep", work / "moved")

        assert os.listdir(work) == ["moved"]
        assert os.listdir(work / ".snap") == ["before"]
        assert tree(work / ".snap" / "before") == before
        assert subprocess.run(["cp", "-a", work / ".snap" / "before", server.mountpoint / "back"]).returncode == 0
        assert tree(server.mountpoint / "back") == before
        assert subprocess.run(["rm", "-rf", work / "moved"]).returncode == 0, "rm does not see .snap"
        assert outcome(os.rmdir, work) == "ENOTEMPTY"
        (work / ".snap" / "before").rmdir()
        work.rmdir()


def test_a_snapshot_is_read_only_for_everyone_and_its_owners_to_make(image: Path, tmp_path: Path) -> None:
    with Server(f"image:{image}", tmp_path / "mount") as server:
        top = server.mountpoint
        make(top / "f", b"frozen")
        (top / ".snap" / "s").mkdir()
        inside = top / ".snap" / "s"
        assert outcome(os.open, inside / "f", os.O_RDWR) == "EROFS"
        assert outcome(os.unlink, inside / "f") == "EROFS"
        assert outcome(os.mkdir, inside / "d") == "EROFS"
        assert outcome(os.chmod, inside / "f", 0o600) == "EROFS"
        assert outcome(os.truncate, inside / "f", 0) == "EROFS"
        assert outcome(os.rename, top / "f", inside / "g") == "EROFS"
        assert outcome_as(OTHER, top, os.mkdir, ".snap/t") in ("EPERM", "EACCES")
        assert os.listdir(top / ".snap") == ["s"]


def test_snapshots_survive_kill_9_and_fsck_finds_nothing_wrong(image: Path, tmp_path: Path) -> None:
    with Server(f"image:{image}", tmp_path / "mount") as server:
        make(server.mountpoint / "f", b"first")
        (server.mountpoint / ".snap" / "s").mkdir()
        make(server.mountpoint / "f", b"second")
        assert server.process is not None
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    assert run("fsck", "--deep", image) == 0
    with Server(f"image:{image}", tmp_path / "mount") as server:
        assert (server.mountpoint / ".snap" / "s" / "f").read_bytes() == b"first"


def test_a_mounted_image_is_checked_by_a_snapshot_of_it_while_it_changes(image: Path, tmp_path: Path) -> None:
    with Server(f"image:{image}", tmp_path / "mount") as server:
        top = server.mountpoint
        for number in range(200):
            make(top / f"f{number}", b"%d" % number * 5000)
        (top / ".snap" / "now").mkdir()
        command = [sys.executable, "-c", PAUSING, "fsck", "--deep", "--json", "--snapshot", "now", image]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as checking:
            assert checking.stdin is not None
            assert checking.stdout is not None
            assert checking.stderr is not None
            for change in range(3):
                assert checking.stderr.readline() == b"paused\n"
                for number in range(200):
                    make(top / f"f{number}", b"%d %d" % (change, number) * 7000)
                checking.stdin.write(b"go on\n")
                checking.stdin.flush()
            found = json.loads(checking.stdout.read())
        assert checking.returncode == 0, found
        assert found["counts"]["entries"] == 200
        assert run("fsck", "--snapshot", "never", image) == 8


def test_a_name_that_leads_out_of_the_snapshots_makes_and_removes_nothing(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Server(f"image:{image}", tmp_path / "mount") as server:
        (server.mountpoint / "kept").mkdir()
        for name in ("../kept", "..", ".", "a/b"):
            assert run("snapshot", "create", server.mountpoint, name) == 1
            assert run("snapshot", "delete", server.mountpoint, name) == 1
        capsys.readouterr()
        for name, said in (("a", "it has none"), ("b", "there are: a")):
            assert run("snapshot", "delete", server.mountpoint, name, "/kept") == 1
            assert f"/kept has no snapshot '{name}'; {said}" in capsys.readouterr().err
            assert run("snapshot", "create", server.mountpoint, name, "/kept") == 0
        assert run("snapshot", "delete", server.mountpoint, "a", "/none") == 1
        assert "/none: No such file" in capsys.readouterr().err
        assert os.listdir(server.mountpoint) == ["kept"]


def test_the_command_line_makes_lists_exports_mounts_and_deletes(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    make(source / "d" / "f", b"first")
    assert run("import", image, source) == 0
    assert run("snapshot", "create", image, "s", "/d") == 0
    make(source / "d" / "f", b"second")
    assert run("import", image, source) == 0
    capsys.readouterr()
    assert run("cat", image, "/d/.snap/s/f", "/d/f") == 0
    assert capsys.readouterr().out == "firstsecond"
    assert run("snapshot", "list", image) == 0
    listed = capsys.readouterr().out.splitlines()
    assert len(listed) == 1
    assert listed[0].endswith("s  /d")
    assert run("export", image, "/d/.snap/s", tmp_path / "out") == 0
    assert (tmp_path / "out" / "f").read_bytes() == b"first"

    at = tmp_path / "then"
    at.mkdir()
    command = [sys.executable, "-m", "mdstore.tools.cli", "snapshot", "mount", image, "s", at, "--path", "/d"]
    served = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert served.stdout is not None
        assert b"mounted" in served.stdout.readline()
        assert os.listdir(at) == ["f"]
        assert (at / "f").read_bytes() == b"first"
        assert outcome(os.open, at / "f", os.O_WRONLY) == "EROFS"
    finally:
        run("umount", at)
        assert served.wait() == 0

    assert run("snapshot", "delete", image, "s", "/d") == 0
    assert run("snapshot", "delete", image, "s", "/d") == 1
    assert run("fsck", "--deep", image) == 0


def damage_snapshot(image: Path, key: bytes) -> None:
    """Overwrite the root page of the objects that only this snapshot reaches."""
    with Image(str(image)) as opened:
        kept, newest = snapshot_superblock(opened, key), newest_superblock(opened)
        reference = decode_root(kept.roots[ROOT_OBJECTS]).content
        living = decode_root(newest.roots[ROOT_OBJECTS]).content
    assert isinstance(reference, Reference)
    assert isinstance(living, Reference)
    assert reference.addresses != living.addresses
    with open(image, "r+b") as stream:
        stream.seek(reference.addresses[0] * 4096 + 100)
        stream.write(b"damage")


@pytest.mark.parametrize("by", ["rmdir", "command"])
def test_a_damaged_snapshot_of_a_mounted_image_is_eio_and_can_be_removed(image: Path, tmp_path: Path, by: str) -> None:
    """The kernel looks a name up before it removes it; that was EIO, so it kept its space until the image was unmounted."""
    with Server(f"image:{image}", tmp_path / "mount") as server:
        work = server.mountpoint / "work"
        work.mkdir()
        ino = work.stat().st_ino
        for name in ("bad", "good", "more"):
            for number in range(100):
                make(work / f"{name}{number}", name.encode() * number)
            (work / ".snap" / name).mkdir()
        make(work / "living", b"living")
    damage_snapshot(image, PREFIX + INO_KEY.pack(ino) + b"bad")
    with Server(f"image:{image}", tmp_path / "mount") as server:
        work = server.mountpoint / "work"
        bad = work / ".snap" / "bad"
        for _ in range(2):
            assert sorted(os.listdir(work / ".snap")) == ["bad", "good", "more"]
            for use in (os.stat, os.listdir, os.chdir):
                assert outcome(use, bad) == "EIO"
            assert outcome(os.open, bad / "bad3", os.O_RDONLY) == "EIO"
            assert outcome(os.mkdir, bad) == "EEXIST"
            assert outcome(os.rename, bad, work / ".snap" / "renamed") in ("EIO", "EROFS")
            assert outcome_as(OTHER, work / ".snap", os.rmdir, "bad") in ("EPERM", "EACCES")
            assert (work / ".snap" / "good" / "good3").read_bytes() == b"good" * 3
        if by == "rmdir":
            bad.rmdir()
        else:
            assert run("snapshot", "delete", work, "bad") == 0
        assert sorted(os.listdir(work / ".snap")) == ["good", "more"]
        assert outcome(os.stat, bad) == "ENOENT"
        assert outcome(os.rmdir, bad) == "ENOENT"
        bad.mkdir()
        assert (bad / "living").read_bytes() == b"living"
        assert (work / ".snap" / "good" / "good3").read_bytes() == b"good" * 3
    assert run("fsck", "--deep", image) == 0
