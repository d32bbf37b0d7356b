"""kill -9 of the server while programs work: what was fsynced is there after the next mount, the rest is before or after."""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path

import pytest

from mdstore.device.file import FileDevice
from mdstore.mds.server import MetadataServer
from mdstore.store.store import Store
from mdstore.tools.reader.check import Options, check_image
from mdstore.tools.reader.problems import Problem
from tests.posix.calls import outcome
from tests.posix.conftest import Server

pytestmark = pytest.mark.fuse

ROUNDS = 5
IMAGE_SIZE = 64 << 20


class Worker(threading.Thread):
    """Makes, overwrites, renames and removes files, fsyncing after each; `acknowledged` is what must survive.

    `pending` is the change under way when the server dies: a name may then hold its old or its new content.
    """

    def __init__(self, directory: Path, acknowledged: dict[str, bytes], seed: int) -> None:
        super().__init__()
        self.directory = directory
        self.acknowledged = acknowledged
        self.pending: dict[str, bytes | None] = {}
        self.steps = 0
        self.error: OSError | None = None
        self.done = threading.Semaphore(0)
        self._rng = random.Random(seed)
        self._fd = os.open(directory, os.O_RDONLY)

    def run(self) -> None:
        try:
            while True:
                self._step()
                self.steps += 1
                self.done.release()
        except OSError as error:
            self.error = error
            self.done.release(10_000)  # the server is gone; whoever waits need not
        finally:
            os.close(self._fd)

    def _step(self) -> None:
        name = f"file{self._rng.randrange(12)}"
        choice = self._rng.random()
        if choice < 0.6 or name not in self.acknowledged:
            self._replace(name, self._rng.randbytes(self._rng.randrange(1, 30_000)))
        elif choice < 0.8:
            self._rename(name, f"file{self._rng.randrange(12)}")
        else:
            self.pending = {name: None}
            os.unlink(name, dir_fd=self._fd)
            os.fsync(self._fd)
        self._settle()

    def _replace(self, name: str, content: bytes) -> None:
        """The way careful programs do it: a new file, fsync, rename over the old one, fsync of the directory."""
        self.pending = {name: content}
        fd = os.open("new", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, dir_fd=self._fd)
        try:
            os.write(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename("new", name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        os.fsync(self._fd)

    def _rename(self, old: str, new: str) -> None:
        if old == new:
            return
        self.pending = {old: None, new: self.acknowledged[old]}
        os.rename(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        os.fsync(self._fd)

    def _settle(self) -> None:
        for name, content in self.pending.items():
            if content is None:
                del self.acknowledged[name]
            else:
                self.acknowledged[name] = content
        self.pending = {}


def _state(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in os.listdir(directory) if name != "new"}


def make_image(path: Path) -> None:
    device = FileDevice.create(str(path), IMAGE_SIZE)
    with Store.create(device) as store:
        MetadataServer.format(store, now_ns=0)


def _fsck(path: Path) -> list[Problem]:
    """What the second reader finds wrong, every block looked at."""
    found: list[Problem] = []
    check_image(str(path), Options("deep"), found.append)
    return [problem for problem in found if problem.severity != "note"]


@pytest.mark.parametrize("seed", range(2))
def test_what_was_fsynced_survives_kill_9_of_the_server(tmp_path: Path, seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    make_image(tmp_path / "image")
    acknowledged: dict[str, bytes] = {}
    for round_number in range(ROUNDS):
        with Server(f"image:{tmp_path / 'image'}", tmp_path / "mount") as server:
            assert server.process is not None
            assert _state(server.mountpoint) == acknowledged, f"seed {seed}, before round {round_number}"
            worker = Worker(server.mountpoint, acknowledged, rng.randrange(1 << 30))
            worker.start()
            enough = rng.randrange(1, 40)
            for _ in range(enough):
                worker.done.acquire()
            server.process.kill()
            worker.join()
            assert worker.steps >= enough, f"before the server was killed: {worker.error!r}"
        assert _fsck(tmp_path / "image") == [], f"seed {seed}, round {round_number}"
        with Server(f"image:{tmp_path / 'image'}", tmp_path / "mount") as server:
            found = _state(server.mountpoint)
            before, after = dict(acknowledged), dict(acknowledged)
            for name, content in worker.pending.items():
                if content is None:
                    after.pop(name, None)
                else:
                    after[name] = content
            assert found in (before, after), f"seed {seed}, round {round_number}: the state is neither of the two"
            acknowledged.clear()
            acknowledged.update(found)
            assert outcome(os.stat, server.mountpoint / "missing") == "ENOENT"
    print("seed", seed, "survived")
