"""`mdstore scrub` and `mdstore damage`, of an image at rest and of a mounted one, by the commands a person types."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from mdstore.client.mount import image_at, unmount
from mdstore.client.mount_syscalls import mounted_at
from mdstore.device.file import FileDevice
from mdstore.mds.layout import INO_KEY, META, TABLE_OBJECTS, Tab, directory_object
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.store import Store, Transaction
from mdstore.tools import cli, mounting
from tests.posix.calls import OTHER, outcome, outcome_as
from tests.posix.conftest import need_fuse

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.fuse


def mdstore(*arguments: str | Path, code: int = 0) -> str:
    said, trouble = io.StringIO(), io.StringIO()
    with redirect_stdout(said), redirect_stderr(trouble):
        ended = cli.run([*map(str, arguments)])
    assert ended == code, trouble.getvalue()
    return said.getvalue() or trouble.getvalue()


def serve(image: Path, mountpoint: Path, options: str = "") -> None:
    """Mount in a process of its own."""
    mountpoint.mkdir()
    command = [sys.executable, "-m", "mdstore.tools.cli", "mount", str(image), str(mountpoint), "--background", "-o", options]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def document(*arguments: str | Path, code: int = 0) -> Any:
    return json.loads(mdstore(*arguments, "--json", code=code))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file system whose directory `d` counts a file too many, and whose name `e/lost` leads nowhere."""
    path = tmp_path / "disk.img"
    mdstore("mkfs", path, "--size", "64M")
    with Store.open(FileDevice.open(str(path))) as store:
        server = MetadataServer.mount(store)
        directory, other = (server.mkdir(SUPERUSER, ROOT_INO, name, 0o755).ino for name in (b"d", b"e"))
        for name in (b"one", b"another", b"two"):
            attr, handle = server.create(SUPERUSER, directory, name, 0o644, os.O_RDWR)
            server.release(handle)
        server.link(SUPERUSER, attr.ino, other, b"lost")
        server.unlink(SUPERUSER, directory, b"two")
        server.close()
        store.apply(Transaction().map_remove(META, TABLE_OBJECTS[Tab.INODES], [INO_KEY.pack(attr.ino)]))
        raw = bytearray(store.map_header(META, directory_object(directory)))
        raw[raw.index((2).to_bytes(8, "little"), 88)] = 3  # the size, in the inode record behind header and name
        store.apply(Transaction().map_set_header(META, directory_object(directory), bytes(raw)))
    return path


@pytest.fixture(params=["at rest", "mounted", "mountpoint"])
def place(request: pytest.FixtureRequest, tmp_path: Path, image: Path) -> Iterator[Path]:
    """What the commands are given."""
    if request.param == "at rest":
        yield image
        return
    need_fuse()
    mountpoint = tmp_path / "mnt"
    serve(image, mountpoint)
    try:
        yield image if request.param == "mounted" else mountpoint
    finally:
        if mounted_at(str(mountpoint)) is not None:
            unmount(mountpoint, lazy=True)


def test_what_is_wrong_is_found_repaired_and_what_stays_so_is_listed(place: Path, image: Path) -> None:
    found = document("scrub", place, code=4)
    assert (found["state"], found["repaired"], found["by_check"]) == ("finished", 0, {"S2": 1, "S5": 1, "S6": 1})
    found = document("scrub", place, "--repair", code=4)
    assert found["repaired"] == 1, "the count; what the name led to is gone"
    assert document("scrub", place, "--repair", code=4)["by_check"] == {"S5": 1, "S6": 1}
    assert document("scrub", place, "--status")["last"]["problems"] == 2
    rows = document("damage", "list", place)["damage"]
    assert [row["name"] for row in rows] == ["lost"]
    assert "lost" in mdstore("damage", "list", place)
    mdstore("damage", "forget", place, str(rows[0]["directory"]), "lost")
    assert "nothing was found broken" in mdstore("damage", "list", place)
    assert "no such damage" in mdstore("damage", "forget", place, "5", "lost", code=1)


def test_stopping_a_scrub_where_none_runs_says_so(place: Path) -> None:
    assert "no scrub is running" in mdstore("scrub", place, "--stop")
    assert document("scrub", place, "--stop")["state"] == "none"


def test_a_read_only_mount_says_where_to_scrub(tmp_path: Path, image: Path) -> None:
    need_fuse()
    mountpoint = tmp_path / "mnt"
    serve(image, mountpoint, "ro")
    try:
        assert "unmount it, then give the image file" in mdstore("scrub", mountpoint, code=1)
        assert "no scrub is running" in mdstore("scrub", mountpoint, "--stop")
    finally:
        unmount(mountpoint)


def test_a_mount_under_another_name_is_found_and_waited_for(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The name was taken for the image's path: `umount` waited for no server, and `scrub IMAGE` found the image busy.
    need_fuse()
    mountpoint, waited = tmp_path / "mnt", list[str]()
    wait = mounting._wait_for_release

    def watched(path: str, lets_go: Callable[[], bool]) -> bool:
        waited.append(path)
        return wait(path, lets_go)

    monkeypatch.setattr(mounting, "_wait_for_release", watched)
    monkeypatch.chdir(tmp_path)
    serve(image, mountpoint, "fsname=work")
    try:
        found = mounted_at(str(mountpoint))
        assert found is not None
        assert found.source == "work"
        assert image_at(str(mountpoint)) == str(image)
        assert outcome_as(OTHER, mountpoint, os.getxattr, ".", "mdstore.image") == "EPERM"
        assert document("scrub", image, "--status")["state"] == "none"
        assert mdstore("damage", "list", "disk.img").startswith("nothing was found broken")
        assert document("umount", mountpoint)["image"] == str(image)
        assert waited == [str(image)]
    finally:
        if mounted_at(str(mountpoint)) is not None:
            unmount(mountpoint, lazy=True)
    assert image_at(str(tmp_path)) is None


def test_a_mounted_name_space_is_scrubbed_while_programs_use_it(tmp_path: Path, image: Path) -> None:
    need_fuse()
    mountpoint = tmp_path / "mnt"
    serve(image, mountpoint)
    try:
        (mountpoint / "more").mkdir()
        for number in range(50):
            (mountpoint / "more" / f"f{number}").write_bytes(b"x" * number)
        found = document("scrub", mountpoint, "--repair", code=4)
        assert found["entries"] == 56
        assert outcome(os.stat, mountpoint / "e" / "lost") == "EIO"
        assert outcome(os.stat, mountpoint / "d" / "one") == "OK"
        status = json.loads(os.getxattr(mountpoint, "mdstore.status"))
        assert status["events"] >= 50
        sessions = json.loads(os.getxattr(mountpoint, "mdstore.sessions"))["sessions"]
        assert [session["name"] for session in sessions] == [f"mount {mountpoint}"]
        assert outcome_as(OTHER, mountpoint, os.getxattr, ".", "mdstore.status") == "EPERM"
        mdstore("umount", mountpoint)
    finally:
        if mounted_at(str(mountpoint)) is not None:
            unmount(mountpoint, lazy=True)
    assert document("scrub", image, "--status")["last"]["entries"] == 56


def test_bytes_just_written_are_read_through_the_mount_command(tmp_path: Path, image: Path) -> None:
    need_fuse()
    mountpoint = tmp_path / "mnt"
    serve(image, mountpoint)
    try:
        fd = os.open(mountpoint / "f", os.O_CREAT | os.O_RDWR)
        os.pwrite(fd, b"x" * 10_000, 5000)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, 20_000, 0) == bytes(5000) + b"x" * 10_000
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, 20_000, 4990) == bytes(10) + b"x" * 10_000
        os.close(fd)
        mdstore("umount", mountpoint)
    finally:
        if mounted_at(str(mountpoint)) is not None:
            unmount(mountpoint, lazy=True)
