"""Fixtures of the POSIX suite: each case runs in a fresh directory of a reference file system and of every mounted subject."""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mdstore.client import mount_syscalls
from tests.posix.subjects import SUBJECTS

REFERENCE = "reference"
_counter = itertools.count()


def why_no_fuse() -> str | None:
    """The reason why nothing can be mounted here, or None."""
    if os.geteuid() != 0:
        return "the suite changes users and mounts: it needs root"
    if not os.path.exists(mount_syscalls.DEVICE):
        return f"{mount_syscalls.DEVICE} is not there"
    try:
        os.close(mount_syscalls.open_device())
    except mount_syscalls.FuseUnavailable as error:
        return str(error)
    return None


def need_fuse() -> None:
    """Skip where FUSE is missing; fail where CI promises that it is there."""
    reason = why_no_fuse()
    if reason is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"FUSE must work in CI: {reason}")
    pytest.skip(reason)


class Server:
    """A name space served at `mountpoint` by a process of its own, from entering to leaving the `with` block."""

    def __init__(self, kind: str, mountpoint: Path, options: str = "") -> None:
        self.mountpoint = mountpoint
        self._command = [sys.executable, "-m", "tests.posix.serve", kind, str(mountpoint), options]
        self._log = mountpoint.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        need_fuse()
        self.mountpoint.mkdir(exist_ok=True)
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=log, cwd=Path(__file__).parents[2]
            )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        if said != b"ready\n":
            self.__exit__()
            pytest.fail(f"the server did not start: {self.log()}")
        return self

    def __exit__(self, *exc: object) -> None:
        assert self.process is not None
        self.process.terminate()
        try:
            code = self.process.wait()
        finally:
            self.process.kill()  # where the test's time was over before the server came to its end
            if mount_syscalls.mounted_at(str(self.mountpoint)) is not None:
                mount_syscalls.unmount(str(self.mountpoint), lazy=True)
        assert code in (0, -9), f"the server ended with {code}: {self.log()}"

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""


def _mount_tmpfs(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"reference", os.fsencode(path), b"tmpfs", ctypes.c_ulong(0), b"size=512m,mode=755") != 0:
        raise OSError(ctypes.get_errno(), "mounting the tmpfs reference")


@pytest.fixture(scope="session", params=[REFERENCE, *SUBJECTS])
def mounted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """(kind, mounted directory) of the reference, then of each subject; one mount for the whole session."""
    kind: str = request.param
    path = tmp_path_factory.mktemp("posix") / kind
    if kind != REFERENCE:
        with Server(kind, path):
            yield kind, path
        return
    if os.geteuid() != 0:
        pytest.skip("the suite changes users: it needs root")
    path.mkdir()
    _mount_tmpfs(path)
    try:
        yield kind, path
    finally:
        mount_syscalls.unmount(str(path), lazy=True)


@pytest.fixture
def kind(mounted: tuple[str, Path]) -> str:
    return mounted[0]


@pytest.fixture
def root(mounted: tuple[str, Path]) -> Path:
    """A fresh directory, open to everybody, in the file system under test."""
    path = mounted[1] / f"case-{next(_counter)}"
    path.mkdir()
    path.chmod(0o777)
    return path
