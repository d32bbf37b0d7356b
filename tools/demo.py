"""`make demo`: the main job on real input, told as it happens.

An image is made, filled with the running interpreter's standard library, its writer killed, the image recovered and held
against what had been acknowledged, filled to the end, given back and compared, and checked by the second reader; then the
same through the kernel where FUSE works. One seed decides the moments of the kills. Exit code 1 when anything is not as
it must be.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final

import click

from mdstore.client.mount import FuseUnavailable
from mdstore.client.mount_syscalls import open_device
from mdstore.device.file import FileDevice
from mdstore.errors import MdstoreError
from mdstore.mds.server import MetadataServer
from mdstore.store.store import Store
from mdstore.tools.compare_tree import Compared, differences
from mdstore.tools.demo_mounted import work_through_the_kernel
from mdstore.tools.output import count_text, duration_text, size_text
from mdstore.tools.verify_import import acknowledged_paths, wrong_paths

EXCLUDE: Final = ("site-packages", "dist-packages")  # not the standard library's own
SHOWN_FAILURES: Final = 5
PIPE_BYTES: Final = 4096  # acknowledgements on their way


@dataclass(slots=True)
class Story:
    """What is told, and whether it went well."""

    started: float = field(default_factory=time.monotonic)
    failures: int = 0
    report: dict[str, str] = field(default_factory=dict)  # what is said once more at the end

    def chapter(self, title: str) -> None:
        """Begin a part."""
        sys.stdout.write(f"\n{title}\n")
        sys.stdout.flush()

    def line(self, text: str) -> None:
        """Say what happened."""
        sys.stdout.write(f"  {text}\n")
        sys.stdout.flush()

    def check(self, claim: str, wrong: Iterable[str]) -> None:
        """A claim, and every line that speaks against it."""
        lines = list(wrong)
        self.line(f"{'NOT TRUE' if lines else 'true'}: {claim}")
        for text in islice(lines, SHOWN_FAILURES):
            self.line(f"    {text}")
        if len(lines) > SHOWN_FAILURES:
            self.line(f"    and {len(lines) - SHOWN_FAILURES} more")
        self.failures += len(lines)


def mdstore(*arguments: str | int | Path) -> list[str]:
    """The command line of a verb, in an interpreter like this one."""
    return [sys.executable, "-m", "mdstore.tools.cli", *map(str, arguments)]


def told(story: Story, *arguments: str | int | Path) -> float:
    """Run a verb, repeat what it says, and count it as a failure when it fails; returns its seconds."""
    began = time.monotonic()
    done = subprocess.run(mdstore(*arguments), capture_output=True, text=True)
    for text in (done.stdout + done.stderr).splitlines():
        story.line(text)
    if done.returncode:
        story.check(f"`mdstore {arguments[0]}` succeeds", [f"it ended with code {done.returncode}"])
    return time.monotonic() - began


@click.command()
@click.option("--seed", type=int, envvar="MDSTORE_SEED", help="Repeat a run: the moments of the kills.")
@click.option("--tree", type=click.Path(exists=True, file_okay=False), help="Use this directory instead of the library.")
@click.option("--keep", is_flag=True, help="Leave the image where it is.")
def demo(seed: int | None, tree: str | None, keep: bool) -> None:
    """Show the main job, from mkfs to fsck, with a kill in the middle."""
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # the source must not change under the comparison
    seed = seed if seed is not None else random.SystemRandom().randrange(1 << 32)
    story, place = Story(), Path(tempfile.mkdtemp(prefix="mdstore-demo-"))
    print(f"mdstore: the main job, in {place}; seed {seed}")
    try:
        _tell(story, place, Path(tree or sysconfig.get_paths()["stdlib"]), random.Random(seed))
    finally:
        if keep:
            print(f"\nkept: {place}")
        else:
            shutil.rmtree(place, ignore_errors=True)
    story.chapter("Report")
    for name, value in story.report.items():
        story.line(f"{name:<26} {value}")
    verdict = f"{count_text(story.failures, 'thing')} NOT as it must be" if story.failures else "everything is as it must be"
    print(f"\n{verdict}; {duration_text(time.monotonic() - story.started)}; seed {seed}")
    sys.exit(1 if story.failures else 0)


def _tell(story: Story, place: Path, source: Path, rng: random.Random) -> None:
    entries, size_bytes = _measure(source)
    story.report["source"] = f"{entries:,} entries, {size_text(size_bytes)}"
    image = place / "disk.img"
    story.chapter("1. An image is made")
    told(story, "mkfs", image, "--size", max(256 << 20, size_bytes * 3 // (1 << 20) << 20))
    story.chapter(f"2. {source} is imported: {entries:,} entries, {size_bytes:,} bytes")
    paths = _import_and_kill(story, image, source, entries, rng)
    story.chapter("3. The image is recovered")
    _recover(story, image, source, paths)
    story.chapter("4. The import is run again, to its end")
    story.report["second import"] = duration_text(told(story, "import", image, source, *_excluding()))
    story.chapter("5. Everything is given back and compared")
    story.report["export"] = duration_text(told(story, "export", image, "/", place / "out"))
    _compare(story, source, place / "out")
    shutil.rmtree(place / "out")
    _weigh(story, image, size_bytes)
    story.chapter("6. A second reader, which shares no code with the engine, checks every byte")
    story.report["fsck --deep"] = duration_text(told(story, "fsck", "--deep", image))
    story.chapter("7. The same through the kernel")
    reason = _why_no_fuse()
    if reason is not None:
        story.line(f"left out: {reason}")
        return
    try:
        work_through_the_kernel(story, place, source, rng)
    except (MdstoreError, OSError, RuntimeError, subprocess.SubprocessError) as error:
        story.check("the work was done to its end", [str(error)])


def _measure(source: Path) -> tuple[int, int]:
    """Entries below `source`, and bytes of files."""
    entries = size_bytes = 0
    for directory, directories, files in os.walk(source):
        directories[:] = [name for name in directories if name not in EXCLUDE]
        entries += len(directories) + len(files)
        size_bytes += sum(os.lstat(os.path.join(directory, name)).st_size for name in files)
    return entries, size_bytes


def _excluding() -> list[str]:
    return [word for name in EXCLUDE for word in ("--exclude", name)]


def _import_and_kill(story: Story, image: Path, source: Path, entries: int, rng: random.Random) -> list[bytes]:
    """Import until a random share is acknowledged, then kill -9 a random moment later; returns what was acknowledged.

    Nobody listens in that moment, and the pipe is small: an import with more to acknowledge than it holds cannot end first.
    """
    share, delay = rng.uniform(0.05, 0.8), rng.uniform(0, 0.02)
    command = mdstore("import", image, source, "--ack", "-", *_excluding())
    process = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=PIPE_BYTES, pipesize=PIPE_BYTES)
    assert process.stdout is not None
    said: list[bytes] = []
    while len(said) < share * entries and (line := process.stdout.readline()):
        said.append(line)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    said += process.stdout.readlines()
    code = process.wait()
    text = b"".join(line for line in said if line.startswith(b'"')).decode()
    paths = acknowledged_paths(text)
    if code == -signal.SIGKILL:
        story.line(f"killed with SIGKILL at its work, when {len(paths):,} of {entries:,} entries were acknowledged as durable")
    else:
        story.check("it went well", [f"it ended with code {code}"] if code else [])
        story.line("it was done before the kill: a directory of more entries leaves time for one in the middle")
    return paths


def _recover(story: Story, image: Path, source: Path, paths: list[bytes]) -> None:
    began = time.monotonic()
    store = Store.open(FileDevice.open(image))
    try:
        opened = time.monotonic()
        server = MetadataServer.mount(store)
        ready = time.monotonic()
        story.line(f"ready in {duration_text(ready - began)}")
        story.report["recovery"] = f"{duration_text(ready - began)}, {count_text(server.recovery.events, 'event')} replayed"
        story.line(f"    store: {count_text(store.recovery.entries, 'log entry', 'log entries')} "
                   f"({size_text(store.recovery.log_bytes)}) replayed in {duration_text(opened - began)}")  # fmt: skip
        story.line(f"    name space: {count_text(server.recovery.events, 'event')} "
                   f"({size_text(server.recovery.bytes)}) replayed in {duration_text(ready - opened)}")  # fmt: skip
        wrong = list(wrong_paths(server, os.fsencode(source), paths))
        story.report["acknowledged before kill"] = f"{len(paths):,} entries, {len(wrong) or 'none'} lost"
        story.check(f"all {len(paths):,} acknowledged entries are there, with the right content, mode, owner and time", wrong)
        server.close()
    finally:
        store.close()


def _compare(story: Story, source: Path, out: Path) -> None:
    compared = Compared()
    excluded = tuple(map(os.fsencode, EXCLUDE))
    found = list(differences(
        os.fsencode(source), os.fsencode(out), exclude=excluded, owners=os.geteuid() == 0, compared=compared
    ))  # fmt: skip
    story.check(f"{compared.entries:,} entries, {compared.bytes:,} bytes: content, modes, times, links are the source's", found)


def _weigh(story: Story, image: Path, size_bytes: int) -> None:
    """What the image takes for what it holds."""
    done = subprocess.run(mdstore("stat", image, "--json"), capture_output=True, check=True)
    figures = json.loads(done.stdout)
    used = figures["used_bytes"]
    share = used / max(1, size_bytes)
    story.report["space used"] = f"{size_text(used)} for {size_text(size_bytes)} of content ({share:.2f} times), log included"
    story.line(f"{size_text(used)} of {size_text(figures['size_bytes'])} are used")


def _why_no_fuse() -> str | None:
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        return "only root mounts without fusermount3 (package fuse3)"
    try:
        os.close(open_device())
    except FuseUnavailable as error:
        return str(error)
    return None


if __name__ == "__main__":
    demo()
