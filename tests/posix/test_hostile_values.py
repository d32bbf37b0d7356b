"""Through the kernel: times no inode can hold, damaged entries, and a server whose end is not a good one."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from mdstore.client.mount import MountSession, mount
from mdstore.client.mount_ending import EndingListener, tell_ending
from mdstore.client.mount_options import MountOptions, parse_options
from mdstore.engines.mem import MemStore
from mdstore.errors import MdstoreError
from mdstore.limits import TIME_MAX_NS, TIME_MIN_NS
from mdstore.mds.driver import Driver
from mdstore.mds.layout import META, directory_object
from mdstore.mds.server import MetadataServer
from mdstore.mds.snapdir import SnapshotVfs
from mdstore.store.transaction import Transaction
from mdstore.tools import mounting
from tests.posix.calls import OTHER, in_child, outcome
from tests.posix.conftest import need_fuse

pytestmark = pytest.mark.fuse
NAMES = [f"f{number}" for number in range(10)]


class Mounted:
    """A name space in memory, mounted; its end is told to a listener."""

    def __init__(self, store: MemStore, path: Path) -> None:
        need_fuse()
        path.mkdir(exist_ok=True)
        self.path = path
        self.server = MetadataServer.mount(store, client=b"test")
        options = parse_options("attr_timeout=0,entry_timeout=0,negative_timeout=0", MountOptions(allow_other=True))
        self.session: MountSession = mount(SnapshotVfs(self.server), str(path), options)
        self.error: MdstoreError | None = None
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()
        self.told: str | None = None

    def _serve(self) -> None:
        try:
            self.session.run()
        except MdstoreError as error:
            self.error = error

    def end(self) -> str | None:
        """Unmount; what the server said of its end."""
        if self.thread.is_alive():
            with EndingListener(str(self.path)) as listener:
                self.session.unmount()
                self.thread.join()
                self.told = listener.heard()
        return self.told


def formatted() -> MemStore:
    store = MemStore(delayed=True)
    MetadataServer.format(store, now_ns=1)
    return store


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    mounted = Mounted(formatted(), tmp_path / "mnt")
    yield mounted
    mounted.end()


@pytest.mark.parametrize(("seconds", "kept"), [(1 << 40, TIME_MAX_NS), (-(1 << 40), TIME_MIN_NS), (9223372036, TIME_MAX_NS)])
def test_a_users_time_out_of_range_is_clamped_and_takes_nothing_along(mounted: Mounted, seconds: int, kept: int) -> None:
    os.chmod(mounted.path, 0o1777)
    evil = mounted.path / "evil"

    def touch() -> None:
        for mode in "wa":  # paths relative: the user may not come in from above
            with open("evil", mode) as file:
                file.write("more")
            os.utime("evil", (seconds, seconds))

    assert in_child(OTHER, OTHER, [], mounted.path, touch) is None
    assert (os.stat(evil).st_mtime_ns, os.stat(evil).st_atime_ns) == (kept, kept)
    for number in range(20):
        (mounted.path / f"n{number}").write_text(f"data {number}")
    assert Driver(mounted.server, clock=lambda: 1 << 62).turn(pause_s=0)
    store = mounted.server.store
    assert isinstance(store, MemStore)
    assert mounted.end() == ""
    assert mounted.error is None
    mounted = Mounted(store, mounted.path)
    try:
        assert os.stat(evil).st_mtime_ns == kept
        assert [(mounted.path / f"n{number}").read_text() for number in range(20)] == [f"data {n}" for n in range(20)]
    finally:
        mounted.end()


@pytest.mark.parametrize("at", [0, 5, 9])
def test_a_damaged_entry_hides_and_endangers_none(tmp_path: Path, at: int) -> None:
    bad, path = NAMES[at], tmp_path / "mnt"
    store = formatted()
    first = Mounted(store, path)
    (path / "d").mkdir()
    for name in NAMES:
        (path / "d" / name).write_text("precious " + name)
    ino = os.stat(path / "d").st_ino
    assert first.end() == ""
    store.apply(Transaction().map_set(META, directory_object(ino), {os.fsencode(bad): b"rubbish"}))
    mounted = Mounted(store, path)
    try:
        directory = path / "d"
        for _ in range(2):
            assert sorted(os.listdir(directory)) == NAMES
            assert outcome(os.stat, directory / bad) == "EIO"
            assert [entry.name for entry in os.scandir(directory) if entry.name != bad and entry.is_file()] != []
            for name in NAMES:
                assert name == bad or (directory / name).read_text() == "precious " + name
        assert outcome(os.open, directory / bad, os.O_CREAT | os.O_WRONLY) == "EIO"
        assert outcome(os.unlink, directory / bad) == "EIO"
        assert outcome(os.rename, directory / NAMES[1], directory / bad) == "EIO"
        for name in NAMES:
            if name != bad:
                os.unlink(directory / name)
        assert outcome(os.rmdir, directory) == "ENOTEMPTY"
        assert mounted.session.fuse.unexpected_errors == 0
    finally:
        assert mounted.end() == ""


def test_a_server_that_fails_inside_a_change_says_so_at_its_end(mounted: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    (mounted.path / "kept").write_text("x")

    def broken(*args: object) -> bytes:
        raise RuntimeError("a bug")

    monkeypatch.setattr(mounted.server._names, "lose_name", broken)
    assert outcome(os.unlink, mounted.path / "kept") == "EIO"
    told = mounted.end()
    assert told is not None
    assert "a bug" in told


@pytest.mark.parametrize(("failure", "code"), [(None, 0), ("the medium is gone", 1)])
def test_umount_tells_how_its_server_ended(
    mounted: Mounted, monkeypatch: pytest.MonkeyPatch, failure: str | None, code: int
) -> None:
    path = str(mounted.path)
    monkeypatch.setattr(mounting, "unmount", lambda path, lazy: tell_ending(path, failure))
    monkeypatch.setattr(mounting, "_wait_for_release", lambda *image: True)
    result = CliRunner().invoke(mounting.umount_command, [path], standalone_mode=False)
    assert (result.exception, result.return_value) == (None, code)
    assert (failure is None) or failure in result.output
