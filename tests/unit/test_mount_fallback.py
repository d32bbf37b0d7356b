"""What `mdstore mount` does when the medium fails: it opens the image again, read-only, and goes on with what is durable."""

from __future__ import annotations

import errno
import logging
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from mdstore.device.file import FileDevice
from mdstore.errors import CorruptionError, DeviceFailed, MdstoreError, PosixError, ReadOnly, errno_of
from mdstore.mds.driver import Driver
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.tools import cli, mounting
from mdstore.tools.images import opened_names


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = str(tmp_path / "disk.img")
    assert cli.run(["mkfs", path, "--size", "32M"]) == 0
    return path


def failing(*args: object) -> None:
    raise DeviceFailed("write", "disk", OSError(errno.EIO, "gone"))


def refused(number: int, *call: object) -> None:
    function, *args = call
    assert callable(function)
    with pytest.raises(MdstoreError) as caught:
        function(*args)
    assert errno_of(caught.value) == number


def test_the_image_is_served_read_only_after_its_medium_failed(
    image: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as reopened, opened_names(image, read_only=False, client=b"mount") as vfs:
        server = vfs.server
        attr, handle = server.create(SUPERUSER, ROOT_INO, b"kept", 0o644, os.O_RDWR)
        server.write(handle, 0, b"durable")
        server.fsync(handle)
        monkeypatch.setattr(FileDevice, "write", failing)
        server.mkdir(SUPERUSER, ROOT_INO, b"lost", 0o755)
        recalled: list[tuple[int, bytes]] = []
        server.recall_through(lambda directory, name: recalled.append((directory, name)) or len(recalled) > 1)
        with pytest.raises(DeviceFailed) as failure:
            server.tick(1 << 62)
        mounting._fall_back(image, server, failure.value, reopened)
        monkeypatch.undo()
        assert "served read-only" in caplog.text
        assert server.read(handle, 0, 100) == b"durable"
        assert server.getattr(attr.ino).size == 7
        refused(errno.ENOENT, server.lookup, SUPERUSER, ROOT_INO, b"lost")
        assert (ROOT_INO, b"lost") in recalled, "the kernel may remember it"
        refused(errno.EROFS, server.mkdir, SUPERUSER, ROOT_INO, b"d", 0o755)
        refused(errno.EIO, server.fsync, handle)
        refused(errno.EIO, server.syncfs)
        server.tick(1 << 62)
        with pytest.raises(ReadOnly, match="gone"):
            server.unlink(SUPERUSER, ROOT_INO, b"kept")
        assert FileDevice.open(image, read_only=True).size_bytes, "others may look at it meanwhile"
    assert cli.run(["fsck", image]) == 0


def test_an_image_that_cannot_be_opened_again_answers_nothing(
    image: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as reopened, opened_names(image, read_only=False) as vfs:
        server = vfs.server
        monkeypatch.setattr(FileDevice, "write", failing)
        server.mkdir(SUPERUSER, ROOT_INO, b"lost", 0o755)
        with pytest.raises(DeviceFailed) as failure:
            server.syncfs()

        def unreadable(*args: object, **named: object) -> None:
            raise CorruptionError("superblock", image)

        monkeypatch.setattr(FileDevice, "open", unreadable)
        with caplog.at_level(logging.ERROR):
            mounting._fall_back(image, server, failure.value, reopened)
        assert "cannot be read either" in caplog.text
        refused(errno.EIO, server.syncfs)
        refused(errno.EIO, server.mkdir, SUPERUSER, ROOT_INO, b"d", 0o755)


def test_open_files_that_are_not_durable_are_bad_descriptors_afterwards(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as reopened, opened_names(image, read_only=False) as vfs:
        server = vfs.server
        monkeypatch.setattr(FileDevice, "write", failing)
        _, lost = server.create(SUPERUSER, ROOT_INO, b"lost", 0o644, os.O_RDWR)
        directory = server.opendir(SUPERUSER, ROOT_INO)
        with pytest.raises(DeviceFailed) as failure:
            server.fsync(lost)
        mounting._fall_back(image, server, failure.value, reopened)
        with pytest.raises(PosixError):
            server.read(lost, 0, 1)
        assert server.readdir(directory, None, 10) == []
        server.releasedir(directory)


def test_what_ends_the_ticks_ends_changes_too(
    image: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without ticks nothing becomes durable unasked: damage that a tick meets must not leave a mount that takes changes."""
    with ExitStack() as reopened, opened_names(image, read_only=False, client=b"mount") as vfs:
        server = vfs.server

        def damaged(now_ns: int) -> None:
            if not made:
                attr, handle = server.create(SUPERUSER, ROOT_INO, b"kept", 0o644, os.O_RDWR)
                server.write(handle, 0, b"a moment before")
                made.append((attr.ino, handle))
            raise CorruptionError("page", "table.sessions")

        made: list[tuple[int, int]] = []

        monkeypatch.setattr(server._sessions, "tick", damaged)
        with Driver(server, every_s=0.01, failed=lambda error: mounting._fall_back(image, server, error, reopened)) as driver:
            driver._thread.join()
        assert isinstance(driver.error, CorruptionError)
        assert "served read-only" in caplog.text
        refused(errno.EROFS, server.mkdir, SUPERUSER, ROOT_INO, b"d", 0o755)
        [(ino, handle)] = made
        assert server.lookup(SUPERUSER, ROOT_INO, b"kept").ino == ino
        assert server.read(handle, 0, 100) == b"a moment before"
    assert cli.run(["fsck", image]) == 0
