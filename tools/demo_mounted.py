"""The mounted half of the demonstration, also run as a test: real programs work through the kernel, the server is killed.

An archive is unpacked with tar, compiled with compileall, flushed; more is written and not flushed; the server is killed
with SIGKILL and the image mounted again. What was flushed must be there, byte for byte, and the image must be clean.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

from mdstore.client.mount import unmount
from mdstore.client.mount_syscalls import mounted_at
from mdstore.device.file import FileDevice
from mdstore.errors import ImageBusy
from mdstore.tools.compare_tree import Compared, differences
from mdstore.tools.output import duration_text

PACKAGES: Final = (
    "asyncio", "collections", "concurrent", "email", "encodings", "http", "importlib", "json", "logging", "unittest",
)  # fmt: skip


class Teller(Protocol):
    """Who is told: the demonstration's story, or a test."""

    def line(self, text: str) -> None: ...
    def check(self, claim: str, wrong: Iterable[str]) -> None: ...


def work_through_the_kernel(story: Teller, place: Path, source: Path, rng: random.Random) -> None:
    """The whole of it, in `place`; the archive is made of packages of `source`. Nothing stays mounted, whatever happens."""
    image, directory = place / "mounted.img", place / "mnt"
    directory.mkdir()
    archive = _make_archive(source, place / "packages.tar")
    _run("mkfs", image, "--size", "256M")
    try:
        _run("mount", image, directory, "--background")
        twin = _unpack_and_build(story, archive, directory, place / "twin")
        _kill_in_the_middle(story, image, directory, rng)
        began = time.monotonic()
        _run("mount", image, directory, "--background")
        story.line(f"mounted again in {duration_text(time.monotonic() - began)}")
        _hold_against(story, twin, directory / "packages")
        _run("umount", directory)
    finally:
        if mounted_at(str(directory)) is not None:
            unmount(directory, lazy=True)
    fsck = subprocess.run([sys.executable, "-m", "mdstore.tools.cli", "fsck", "--deep", image], capture_output=True, text=True)
    lines = (fsck.stdout + fsck.stderr).splitlines()
    story.check("the second reader finds the image clean", lines if fsck.returncode else [])


def _run(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "mdstore.tools.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        raise RuntimeError(f"`mdstore {arguments[0]}` ended with code {done.returncode}: {done.stderr.strip()}")


def _make_archive(source: Path, archive: Path) -> Path:
    """A tar file of some packages of the library, with a symlink and a hard link, as archives have them."""
    with tarfile.open(archive, "w") as tar:
        names = [name for name in PACKAGES if (source / name).is_dir()]
        for name in names or sorted(path.name for path in source.iterdir())[:20]:
            tar.add(source / name, name, filter=lambda member: None if "__pycache__" in member.name else member)
        first = next(member for member in tar.getmembers() if member.isreg())
        symlink = (tarfile.SYMTYPE, "a-symlink", names[0] if names else ".")
        for kind, name, target in (symlink, (tarfile.LNKTYPE, "a-link", first.name)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.mtime = kind, target, 1_700_000_000
            tar.addfile(member)
    return archive


def _unpack_and_build(story: Teller, archive: Path, directory: Path, twin: Path) -> Path:
    """tar and compileall in the mount, the same on the machine's own file system; then everything is flushed."""
    for target in (directory / "packages", twin):
        target.mkdir()
        began = time.monotonic()
        subprocess.run(["tar", "-xf", archive, "-C", target], check=True)
        unpacked = time.monotonic()
        command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "."]
        subprocess.run(command, cwd=target, check=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": ""})
        if target != twin:
            story.line(f"tar unpacked {_count(target):,} entries through the kernel in {duration_text(unpacked - began)}; "
                       f"compileall took {duration_text(time.monotonic() - unpacked)}")  # fmt: skip
    story.line(f"every file and directory is flushed with fsync in {duration_text(_flush_all(directory / 'packages'))}")
    return twin


def _count(top: Path) -> int:
    return sum(len(directories) + len(files) for _, directories, files in os.walk(top))


def _flush_all(top: Path) -> float:
    began = time.monotonic()
    for directory, _, files in os.walk(top, topdown=False):
        for name in [*files, "."]:
            path = os.path.join(directory, name)
            if os.path.islink(path):
                continue
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    return time.monotonic() - began


def _kill_in_the_middle(story: Teller, image: Path, directory: Path, rng: random.Random) -> None:
    """A program keeps writing, unflushed, while the server is killed."""
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, directory], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert writer.stdout is not None
    for _ in range(rng.randrange(1, 400)):
        writer.stdout.readline()
    server = _server_of(image)
    _kill_and_wait(server)
    writer.communicate()
    story.line(f"the server (process {server}) is killed with SIGKILL while a program writes")


_WRITER: Final = """
import os, sys
os.mkdir(sys.argv[1] + "/unflushed")
for number in range(1 << 30):
    with open(f"{sys.argv[1]}/unflushed/{number}", "wb") as stream:
        stream.write(os.urandom(5000))
    print(number, flush=True)
"""


def _kill_and_wait(process: int) -> None:
    """SIGKILL to a process that is nobody's child here; returns when it is gone, its descriptors and locks with it."""
    ending = os.pidfd_open(process)
    try:
        os.kill(process, signal.SIGKILL)
        select.select([ending], [], [])
    finally:
        os.close(ending)


def _server_of(image: Path) -> int:
    """The process that has the image open."""
    try:
        FileDevice.open(image, read_only=True).close()
    except ImageBusy as busy:
        return int(busy.holder.split()[1])
    raise RuntimeError(f"nobody serves {image}")


def _hold_against(story: Teller, twin: Path, unpacked: Path) -> None:
    compared = Compared()
    found = list(differences(os.fsencode(twin), os.fsencode(unpacked), owners=os.geteuid() == 0, compared=compared))
    found = [text for text in found if not _is_of_the_build(twin, text)]
    story.check(f"what was flushed is there: {compared.entries:,} entries, {compared.bytes:,} bytes", found)


def _is_of_the_build(twin: Path, text: str) -> bool:
    """What compileall made now here and then there differs in its time of change, and in nothing else."""
    path, _, difference = text.partition(": ")
    return difference.startswith("time of change") and ("__pycache__" in path or os.path.isdir(f"{twin}{path}"))
