"""Engines that work on files, their writes recorded beneath them: LMDB as it is, and as it is when told not to wait."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from mdstore.client import mount_syscalls
from mdstore.device.crashlog import Flush, Operation, Write
from mdstore.device.explore import record
from mdstore.device.faulty import FaultyDevice
from mdstore.device.subject import Delete, Put, key_value_script
from mdstore.engines.mem import MemStore
from mdstore.mds.vfs import ROOT_INO, SUPERUSER, SetAttr
from mdstore.tools import cli
from mdstore.tools.crash.recorded import RecordingServer, recorded_workload, without_empty_end
from mdstore.tools.crash.verify import Inconsistent
from tests.crash.test_lmdb_kill import LmdbSubject

HERE = __name__
needs_fuse = pytest.mark.skipif(not os.path.exists("/dev/fuse") or os.geteuid() != 0, reason="needs /dev/fuse and root")


class UnsyncedLmdb(LmdbSubject):
    """LMDB with `sync=False`, and believed all the same."""

    medium = "path"
    data_file = "data.mdb"

    def __init__(self) -> None:
        super().__init__(3, acknowledges_early=True)


class Deadly(UnsyncedLmdb):
    """An engine that kills its process at the first operation."""

    def format(self, path: str) -> object:  # type: ignore[override]
        class Session:
            def apply(self, operation: Put | Delete) -> None:
                os._exit(9)

        return Session()


@pytest.fixture
def recorded() -> tuple[RecordingServer, FaultyDevice]:
    store, device = MemStore(), FaultyDevice(1 << 16)
    RecordingServer.format(store, now_ns=1)
    server = RecordingServer.mount(store)
    assert isinstance(server, RecordingServer)
    server.watch(device, b"data")
    return server, device


def test_writes_flushes_and_truncations_of_the_watched_file_are_recorded(recorded: tuple[RecordingServer, FaultyDevice]) -> None:
    server, device = recorded
    attr, handle = server.create(SUPERUSER, ROOT_INO, b"data", 0o644, os.O_RDWR)
    _, other = server.create(SUPERUSER, ROOT_INO, b"lock", 0o644, os.O_RDWR)
    server.write(other, 0, b"not this")
    server.fsync(other)
    server.write(handle, 10, b"abc")
    server.fsync(handle)
    server.setattr(SUPERUSER, attr.ino, SetAttr(size=11))
    server.release(handle)
    again = server.open(SUPERUSER, attr.ino, os.O_RDWR)
    server.fallocate(again, 0x03, 4, 6)
    server.copy_file_range(other, 0, again, 0, 3)
    server.syncfs()
    expected: list[Operation] = [
        Write(10, b"abc"), Flush(), Write(11, bytes(2)), Write(4, bytes(6)), Write(0, b"not"), Flush(),
    ]  # fmt: skip
    assert device.log.operations == expected
    assert server.read(again, 0, 100) == device.read(0, 11) == b"not" + bytes(7) + b"a"


@pytest.mark.parametrize(("content", "kept"), [(b"", 0), (bytes(9000), 0), (b"x", 1), (bytes(4096) + b"x" + bytes(9000), 8192)])
def test_a_file_ends_with_its_last_page_that_holds_anything(content: bytes, kept: int) -> None:
    assert without_empty_end(content) == content[:kept]


@pytest.mark.fuse
@needs_fuse
def test_lmdb_recovers_where_sectors_are_whole(capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--engine", "lmdb:", "--steps", "20", "--states", "120", "--whole-sectors", "--no-nested"]
    assert cli.run(["crash", "explore", *arguments]) == 0
    assert "120 states tried" in capfd.readouterr().out


@pytest.mark.fuse
@needs_fuse
def test_lmdb_told_not_to_wait_loses_what_was_acknowledged(tmp_path: Path) -> None:
    arguments = ["--engine", f"{HERE}:UnsyncedLmdb", "--steps", "30", "--states", "200", "--no-nested", "--out", str(tmp_path)]
    assert cli.run(["crash", "explore", *arguments]) == 4
    (path,) = tmp_path.iterdir()
    assert cli.run(["crash", "replay", str(path)]) == 4


@pytest.mark.fuse
@needs_fuse
def test_an_engine_that_dies_leaves_no_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # the rest of the mount table belongs to whoever tests beside
    with pytest.raises(Inconsistent, match="process died"):
        record(recorded_workload(Deadly(), key_value_script(1, 3)), 1 << 16, 1)
    assert [mount for mount in mount_syscalls.mount_table() if mount.path.startswith(f"{tmp_path}/")] == []
    assert os.listdir(tmp_path) == []


def test_faults_are_not_for_engines_on_files(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["crash", "faults", "--engine", "lmdb:"]) == 1
    assert "works on files" in capfd.readouterr().err
