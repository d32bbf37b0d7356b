"""How commands find a mounted image, and what `umount` says where the server's word may go to somebody else. The mount table and
the server are stood in for, so that this needs no FUSE."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mdstore.client.mount_ending import EndingListener, _address, tell_ending
from mdstore.client.mount_syscalls import FILE_SYSTEM_TYPE, MountPoint
from mdstore.tools import mounting, reach


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image, and a symbolic link to it."""
    path = tmp_path / "real" / "disk.img"
    path.parent.mkdir()
    path.touch()
    (tmp_path / "link.img").symlink_to(path)
    return path


@pytest.mark.parametrize("source", ["work", "the image"])
@pytest.mark.parametrize("mounted_by", ["link.img", "real/disk.img"])
@pytest.mark.parametrize("given", ["link.img", "real/disk.img", "real/../link.img"])
def test_a_mount_is_found_by_every_path_of_its_image(
    tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch, source: str, mounted_by: str, given: str
) -> None:
    # The server tells the path it was given: mounted through a link, under another name, its image was taken for one at rest.
    monkeypatch.chdir(tmp_path)
    served = os.path.abspath(mounted_by)
    others = [MountPoint("/other", FILE_SYSTEM_TYPE, "link.img"), MountPoint("/plain", "ext4", served)]
    ours = MountPoint("/mnt", FILE_SYSTEM_TYPE, served if source == "the image" else source)
    monkeypatch.setattr(reach, "mount_table", lambda: [*others, ours])
    monkeypatch.setattr(reach, "mounted_at", lambda path: None)
    monkeypatch.setattr(reach, "image_at", {"/mnt": served, "/other": str(tmp_path / "another.img")}.get)
    assert reach._mounted(given) == "/mnt"
    assert reach._mounted("another.img") == "/other"
    assert reach._mounted("real") is None


@pytest.fixture
def umount(tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mountpoint whose server ends well, and says so when it is unmounted."""
    path = tmp_path / "mnt"
    path.mkdir()
    monkeypatch.setattr(mounting, "mounted_at", lambda at: MountPoint(at, FILE_SYSTEM_TYPE, str(image)))
    monkeypatch.setattr(mounting, "image_at", lambda at: str(image))
    monkeypatch.setattr(mounting, "server_at", lambda at: None)
    monkeypatch.setattr(mounting, "unmount", lambda at, lazy: tell_ending(at, None))
    monkeypatch.setattr(mounting, "_wait_for_release", lambda *arguments: True)
    return path


def unmounted(path: Path, *options: str) -> Result:
    return CliRunner().invoke(mounting.umount_command, [str(path), *options], standalone_mode=False)


def test_umount_does_not_call_saved_what_it_cannot_know(umount: Path) -> None:
    # Whoever took the place first heard the server's word, and `umount` called the worst ending a good one.
    assert unmounted(umount).return_value == 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as squatter:
        squatter.bind(_address(str(umount)))
        result = unmounted(umount)
        assert (result.exception, result.return_value) == (None, 1)
        assert "not known" in result.output
        told = unmounted(umount, "--json").output
        assert "not known" in json.loads(told[told.index("{") :])["failure"]
        assert unmounted(umount, "--lazy").return_value == 0, "nothing is waited for, and nothing promised"
        with EndingListener(str(umount)) as listener:
            assert not listener.listening
    with EndingListener(str(umount)) as listener:
        assert listener.listening
    assert unmounted(umount).return_value == 0


@pytest.mark.parametrize("pid", [None, 1])
def test_umount_does_not_call_saved_what_nobody_spoke_of(umount: Path, monkeypatch: pytest.MonkeyPatch, pid: int | None) -> None:
    """A server that was killed meanwhile, or is in another network name space, is not heard; that was taken for a good end."""
    monkeypatch.setattr(mounting, "unmount", lambda at, lazy: None)
    monkeypatch.setattr(mounting, "server_at", lambda at: pid)
    monkeypatch.setattr(mounting, "_WORD_TIMEOUT_S", 0)
    result = unmounted(umount)
    assert (result.exception, result.return_value) == (None, 1)
    assert "not known" in result.output
    assert "killed" in result.output
    assert unmounted(umount, "--lazy").return_value == 0, "nothing is waited for, and nothing promised"


def test_the_word_of_a_server_that_cannot_be_watched_is_waited_for(umount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of another user's, that only reads: nothing shows when it lets go of the image."""
    looks: list[float] = []

    def speak(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            tell_ending(str(umount), "the medium is gone")

    monkeypatch.setattr(mounting, "unmount", lambda at, lazy: None)
    monkeypatch.setattr(mounting.time, "sleep", speak)
    monkeypatch.setattr(mounting, "_WORD_TIMEOUT_S", 1e9)
    result = unmounted(umount)
    assert (result.exception, result.return_value) == (None, 1)
    assert "the medium is gone" in result.output
    assert len(looks) == 3


def test_umount_of_a_mount_whose_server_was_killed_says_so(umount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounting, "unmount", lambda at, lazy: None)
    monkeypatch.setattr(mounting, "is_dead", lambda at: True)
    for options in ((), ("--lazy",)):
        result = unmounted(umount, *options)
        assert (result.exception, result.return_value) == (None, 1)
        assert "ended without unmounting" in result.output
