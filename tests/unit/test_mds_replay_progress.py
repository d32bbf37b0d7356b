"""Replay says how far it is, and a terminal shows it."""

from __future__ import annotations

import io
import shutil
import sys

import pytest

from mdstore.device.file import FileDevice
from mdstore.engines.mem import MemStore
from mdstore.mds.core import Limits
from mdstore.mds.replay import PROGRESS_EVENTS
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.store.store import Store
from mdstore.tools import output
from mdstore.tools.images import opened_image

EVENTS = 3 * PROGRESS_EVENTS
ALL_IN_THE_LOG = Limits(dirty_entries=1 << 30, log_bytes=1 << 30)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def make_directories(server: MetadataServer, count: int) -> None:
    for number in range(count):
        server.mkdir(SUPERUSER, ROOT_INO, b"directory %d" % number, 0o755)
    server.syncfs()


def crashed() -> MemStore:
    """A store whose log holds `EVENTS` events."""
    store = MemStore(delayed=True)
    MetadataServer.format(store, now_ns=1)
    make_directories(MetadataServer.mount(store, limits=ALL_IN_THE_LOG), EVENTS)
    return store.crash()


@pytest.mark.parametrize("read_only", [False, True])
def test_replay_tells_how_far_it_is_every_few_thousand_events(*, read_only: bool) -> None:
    told: list[tuple[int, int]] = []
    server = MetadataServer.mount(crashed(), read_only=read_only, progress=lambda done, total: told.append((done, total)))
    report = server.recovery
    assert report.events == EVENTS
    assert len(told) > EVENTS // PROGRESS_EVENTS
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[0][0] < told[0][1], "the end is known before it is reached"
    assert all(done <= total for done, total in told)
    assert told[-1] == (report.bytes, report.bytes)
    assert 0 < report.replay_seconds <= report.seconds


def test_a_clean_file_system_has_no_progress_to_tell() -> None:
    store = MemStore()
    MetadataServer.format(store, now_ns=1)
    told: list[tuple[int, int]] = []
    for _ in range(2):
        server = MetadataServer.mount(store, progress=lambda done, total: told.append((done, total)))
        make_directories(server, 0)
        server.close()
    assert told == []
    assert server.recovery.bytes == 0


@pytest.fixture(scope="module")
def killed_image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image as kill -9 left it, with `EVENTS` events in the log."""
    directory = tmp_path_factory.mktemp("replay")
    with Store.create(FileDevice.create(str(directory / "image"), 128 << 20), background=False) as store:
        MetadataServer.format(store, now_ns=1)
        make_directories(MetadataServer.mount(store, limits=ALL_IN_THE_LOG), EVENTS)
        shutil.copyfile(directory / "image", directory / "killed")
    return str(directory / "killed")


@pytest.mark.parametrize("after_s", [0.0, 1e9])
def test_a_terminal_shows_a_long_replay_and_no_short_one(
    killed_image: str, after_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(output, "_REPLAY_SHOWN_AFTER_S", after_s)
    with opened_image(killed_image, read_only=True) as server:
        assert server.recovery.events == EVENTS
    assert ("replaying the log" in terminal.getvalue()) == (after_s == 0)


def test_what_is_no_terminal_shows_nothing(killed_image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = io.StringIO()
    monkeypatch.setattr(sys, "stderr", plain)
    monkeypatch.setattr(output, "_REPLAY_SHOWN_AFTER_S", 0.0)
    with opened_image(killed_image, read_only=True):
        pass
    assert plain.getvalue() == ""
