"""The main job through the kernel, by the commands a person types: mount, work with real programs, kill -9, mount again, check;
and what `mount` and `umount` say where they cannot."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mdstore.client.mount import server_at, unmount
from mdstore.client.mount_syscalls import mounted_at
from mdstore.device.file import FileDevice
from mdstore.device.lock import locks_held
from mdstore.tools import cli, mounting
from mdstore.tools.demo_mounted import work_through_the_kernel
from tests.posix.calls import OTHER, outcome_as
from tests.posix.conftest import need_fuse

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.fuse


@pytest.fixture(autouse=True)
def _fuse() -> None:
    need_fuse()


def _mdstore(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mdstore.tools.cli", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def _done(*arguments: str | Path) -> str:
    ran = _mdstore(*arguments)
    assert (ran.returncode, ran.stderr) == (0, ""), ran
    return ran.stdout


def _refused(ran: subprocess.CompletedProcess[str], *words: str) -> None:
    assert (ran.returncode, ran.stdout) == (1, ""), ran
    assert ran.stderr.startswith("mdstore: ")
    assert ran.stderr.count("\n") == 1, ran.stderr
    for word in words:
        assert word in ran.stderr


@pytest.fixture
def image(tmp_path: Path) -> Path:
    _done("mkfs", tmp_path / "disk.img", "--size", "64M")
    return tmp_path / "disk.img"


@contextmanager
def _mounted(image: Path, directory: Path, *options: str) -> Iterator[Path]:
    directory.mkdir(exist_ok=True)
    said = _done("mount", image, directory, "--background", *options)
    assert f"is mounted at {directory}" in said
    try:
        yield directory
    finally:
        if mounted_at(str(directory)) is not None:
            unmount(directory, lazy=True)


class _Asserting:
    """Hears the demonstration's story and fails where it is not true."""

    def __init__(self) -> None:
        self.claims = 0

    def line(self, text: str) -> None:
        print(text)

    def check(self, claim: str, wrong: Iterable[str]) -> None:
        print(claim)
        assert list(wrong) == [], claim
        self.claims += 1


@pytest.mark.slow
def test_unpack_build_kill_mount_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    seed = int(os.environ.get("MDSTORE_SEED", "20261121"))
    print(f"seed {seed}")
    story = _Asserting()
    work_through_the_kernel(story, tmp_path, Path(sysconfig.get_paths()["stdlib"]), random.Random(seed))
    assert story.claims == 2
    assert mounted_at(str(tmp_path / "mnt")) is None


def test_what_is_written_through_the_mount_is_seen_by_the_commands(tmp_path: Path, image: Path) -> None:
    with _mounted(image, tmp_path / "mnt") as directory:
        (directory / "dir").mkdir()
        (directory / "dir" / "file").write_bytes(b"through the kernel")
        assert _done("umount", directory) == ""
    assert _done("cat", image, "/dir/file") == "through the kernel"


def test_what_is_imported_is_seen_through_the_mount(tmp_path: Path, image: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"imported")
    os.utime(source / "file", ns=(1, 1_600_000_000_123_456_789))
    _done("import", image, source)
    with _mounted(image, tmp_path / "mnt", "--read-only") as directory:
        assert (directory / "file").read_bytes() == b"imported"
        assert os.stat(directory / "file").st_mtime_ns == 1_600_000_000_123_456_789
        with pytest.raises(OSError, match="Read-only file system"):
            (directory / "new").touch()
        _refused(_mdstore("mkfs", directory / "inner.img"), "inner.img", "read-only file system")
        assert json.loads(_done("umount", directory, "--json"))["image"] == str(image)


def test_a_mounted_image_is_busy_and_its_server_named(tmp_path: Path, image: Path) -> None:
    with _mounted(image, tmp_path / "mnt") as directory:
        _refused(_mdstore("ls", image), str(image), "is open in process", "mount")
        (tmp_path / "other").mkdir()
        _refused(_mdstore("mount", image, tmp_path / "other"), str(image), "is open in process")
        _refused(_mdstore("mount", image, tmp_path / "other", "--background"), str(image), "is open in process")
        _refused(_mdstore("mount", image, directory), "is mounted there already", "mdstore umount")
        _done("umount", directory)


def test_a_busy_directory_is_not_unmounted_unless_lazily(tmp_path: Path, image: Path) -> None:
    with _mounted(image, tmp_path / "mnt") as directory:
        with open(directory / "held", "wb"):
            _refused(_mdstore("umount", directory), str(directory), "busy")
        _done("umount", directory)


def test_mounting_where_nothing_can_be_mounted(tmp_path: Path, image: Path) -> None:
    _refused(_mdstore("mount", image, tmp_path / "none"), "none", "make it first")
    _refused(_mdstore("mount", image, image), "not a directory")
    _refused(_mdstore("mount", tmp_path / "none.img", tmp_path), "none.img", "mdstore mkfs")
    _refused(_mdstore("mount", tmp_path / "none.img", tmp_path, "--background"), "none.img", "mdstore mkfs")
    _refused(_mdstore("mount", image, tmp_path, "-o", "wrong"), "mount option 'wrong'", "known are")
    _refused(_mdstore("umount", tmp_path), str(tmp_path), "no image is mounted there", "findmnt")
    _refused(_mdstore("umount", tmp_path / "none"), "none", "no image is mounted there")


def test_fuse_missing_is_said_with_what_to_do(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mdstore.client.mount_syscalls.DEVICE", str(tmp_path / "no-fuse"))
    for options in ([], ["--background"]):
        assert cli.run(["mount", str(image), str(tmp_path), *options]) == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("\n") == 1
        assert "modprobe fuse" in said.err


# The command, which closes no image until it is told to.
SLOW_TO_CLOSE = """
import sys
from mdstore.device.file import FileDevice
from mdstore.tools import cli

close = FileDevice.close

def closing(device):
    sys.stdin.readline()
    close(device)

FileDevice.close = closing
sys.exit(cli.run(sys.argv[1:]))
"""


@pytest.mark.parametrize("words", ["mount", "mount --read-only", "snapshot mount", "mount -o ro,fsname=work"])
def test_umount_waits_until_its_own_server_has_let_go_of_the_image(
    words: str, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It took no notice of a server that only reads, so that the next command found the image in use."""
    directory = tmp_path / "mnt"
    directory.mkdir()
    _done("snapshot", "create", image, "s")
    names = [image, "s"] if words == "snapshot mount" else [image]
    command = [sys.executable, "-c", SLOW_TO_CLOSE, *words.split(), *names, directory]
    with (
        ExitStack() as others,
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as server,
    ):
        assert server.stdin is not None
        assert server.stdout is not None
        assert b"is mounted at" in server.stdout.readline()
        if words != "mount":
            others.callback(FileDevice.open(image, read_only=True).close)
        assert server_at(str(directory)) == server.pid
        assert outcome_as(OTHER, directory, os.getxattr, ".", "mdstore.server") in ("EPERM", "EACCES")
        held: list[int | None] = []

        def go_on(seconds: float) -> None:
            """Called while the command waits."""
            if not held:
                assert server.stdin is not None
                held.append(locks_held(server.pid, str(image)))
                server.stdin.close()

        monkeypatch.setattr(mounting.time, "sleep", go_on)
        try:
            assert cli.run(["umount", str(directory)]) == 0
            assert held == [1]
            assert locks_held(server.pid, str(image)) == 0
        finally:
            if mounted_at(str(directory)) is not None:
                unmount(directory, lazy=True)
            server.stdin.close()
    assert server.returncode == 0
