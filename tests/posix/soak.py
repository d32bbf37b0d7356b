"""A soak: programs work through a mount, its server is killed with SIGKILL again and again, and after each kill fsck must find
the image clean, and the programs' directories must hold what was fsynced and a prefix of the rest.

    python -m tests.posix.soak --minutes 10 --seed 1

Needs root and FUSE. The seed decides what the programs choose and after how many of their operations the server is killed; what
each has done until then is the machine's affair, so a failure keeps the image and the logs, and says where.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mdstore.client import mount_syscalls
from tests.posix.soak_model import Model, Op, check, model_of, read_tree
from tests.posix.soak_worker import GONE, Worker

ROOT: Final = Path(__file__).parents[2]
IMAGE_SIZE: Final = "192M"
FAULTY_EXIT: Final = 3
HANGS_S: Final = 300  # a server or a command that takes longer
OPERATIONS: Final = 10, 1500  # of all programs together, at least and at most, before the server is killed or asked to end


@dataclass
class Tally:
    """What a soak did."""

    rounds: int = 0
    kills: int = 0
    operations: int = 0
    fsyncs: int = 0
    fsck_seconds: float = 0.0
    mount_seconds: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        slowest = max(self.mount_seconds, default=0.0)
        return (
            f"{self.rounds} rounds, {self.kills} kills, {self.operations} operations, {self.fsyncs} fsyncs; "
            f"slowest mount after a kill {slowest:.2f} s; {self.fsck_seconds:.0f} s of fsck"
        )


class Broken(Exception):
    """The soak found something."""


class Soak:
    """One image, its mountpoint, and `workers` programs. `run` goes on for a time or a number of rounds, then ends in order."""

    def __init__(self, directory: Path, seed: int, workers: int = 4, told: bool = True) -> None:
        self.random = random.Random(seed)
        self.directory = directory
        self.image = directory / "image"
        self.mountpoint = directory / "mount"
        self.stop = directory / "stop"
        self.workers = workers
        self.tally = Tally()
        self._told = told
        self.models = [Model() for _ in range(workers)]
        self.mountpoint.mkdir()
        self.command("mkfs", str(self.image), "--size", IMAGE_SIZE)

    def command(self, *arguments: str) -> str:
        ran = subprocess.run(
            [sys.executable, "-m", "mdstore.tools.cli", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=HANGS_S
        )
        if ran.returncode:
            raise Broken(f"mdstore {' '.join(arguments)} ended with {ran.returncode}: {ran.stdout[-3000:]}{ran.stderr[-3000:]}")
        return ran.stdout

    # -- rounds --------------------------------------------------------------------------------------------------------

    def run(self, seconds: float = math.inf, rounds: float = math.inf) -> Tally:
        """Rounds until the time is over or so many are done. Broken says what was found; the directory is kept as it is then."""
        deadline = time.monotonic() + seconds
        server = self.mount()
        try:
            for number in range(self.workers):
                (self.mountpoint / f"worker{number}").mkdir()
            (self.mountpoint / "shared" / "below").mkdir(parents=True)
            (self.mountpoint / "shared" / "lock").write_bytes(bytes(200))
            self.sync()
            while time.monotonic() < deadline and self.tally.rounds < rounds:
                server = self.round(server)
            self.end(server)
        finally:
            server.kill()
            server.wait()
            if mount_syscalls.mounted_at(str(self.mountpoint)) is not None:
                mount_syscalls.unmount(str(self.mountpoint), lazy=True)
        return self.tally

    def round(self, server: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        """Work, kill or stop, check at rest, mount, compare. The new server."""
        kill = self.random.random() < 0.85
        told, tell = os.pipe()
        programs = [self.start(number, tell) for number in range(self.workers)]
        os.close(tell)
        self.wait_for(self.random.randrange(*OPERATIONS), told)
        if kill:
            server.send_signal(signal.SIGKILL)
            server.wait()
            self.tally.kills += 1
        else:
            self.stop.touch()
        self.join(programs, killed=kill)
        os.close(told)
        self.stop.unlink(missing_ok=True)
        if not kill:
            self.end(server)
        elif mount_syscalls.mounted_at(str(self.mountpoint)) is not None:
            mount_syscalls.unmount(str(self.mountpoint), lazy=True)
        self.fsck()
        began = time.monotonic()
        server = self.mount()
        self.tally.mount_seconds.append(time.monotonic() - began)
        try:
            for number in range(self.workers):
                self.compare(number, killed=kill)
        except BaseException:
            server.kill()
            raise
        self.tally.rounds += 1
        if self._told:
            print(f"round {self.tally.rounds}: {'killed' if kill else 'ended'}; {self.tally.operations} operations", flush=True)
        return server

    def mount(self) -> subprocess.Popen[bytes]:
        """A server in a process of its own, ready; half of them keep the locks themselves."""
        options = self.random.choice(["locks=server", "locks=kernel"])
        command = [sys.executable, "-m", "mdstore.tools.cli", "mount", str(self.image), str(self.mountpoint), "-o", options]
        with open(self.directory / "server.log", "ab") as log:
            server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log)
        assert server.stdout is not None
        if b"is mounted at" not in server.stdout.readline():
            server.kill()
            raise Broken(f"the image does not mount: {(self.directory / 'server.log').read_text()[-3000:]}")
        return server

    def end(self, server: subprocess.Popen[bytes]) -> None:
        """In order: everything is written back."""
        server.send_signal(signal.SIGTERM)
        if server.wait(HANGS_S):
            raise Broken(f"the server ended with {server.returncode}")

    def fsck(self) -> None:
        began = time.monotonic()
        self.command("fsck", str(self.image), "--deep")
        self.tally.fsck_seconds += time.monotonic() - began

    def sync(self) -> None:
        fd = os.open(self.mountpoint / "shared", os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)

    # -- programs ------------------------------------------------------------------------------------------------------

    def log_of(self, number: int) -> Path:
        return self.directory / f"worker{number}.log"

    def start(self, number: int, tell: int) -> int:
        """Fork a program that writes a byte to the pipe for each operation; its process id."""
        seed = self.random.randrange(1 << 30)
        pid = os.fork()
        if pid:
            return pid
        code = FAULTY_EXIT
        try:
            log = str(self.log_of(number))
            Worker(str(self.mountpoint), number, log, seed, self.models[number], str(self.stop), tell).run()
            code = 0
        except OSError as error:
            code = 1 if error.errno in GONE else FAULTY_EXIT
            if code == FAULTY_EXIT:
                traceback.print_exc()
        except BaseException:
            traceback.print_exc()
        os._exit(code)

    def wait_for(self, operations: int, told: int) -> None:
        """Until the programs together have done so many, or have all ended."""
        while operations > 0 and (bytes_read := os.read(told, operations)):
            operations -= len(bytes_read)

    def join(self, programs: list[int], *, killed: bool) -> None:
        """All end: with the server gone where it was killed, in order otherwise."""
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in programs]
        if any(code not in ((0, 1) if killed else (0,)) for code in codes):
            raise Broken(f"programs ended with {codes}; see above")

    def compare(self, number: int, *, killed: bool) -> None:
        done, begun = read_log(self.log_of(number))
        self.tally.operations += len(done)
        self.tally.fsyncs += sum(op[0] == "fsync" for op in done)
        tree, contents = read_tree(str(self.mountpoint / f"worker{number}"))
        if not killed:
            done = [*done, ["fsync", ""]]
        wrong = check(self.models[number], done, begun, tree, contents)
        if wrong:
            raise Broken(f"worker {number}, round {self.tally.rounds + 1}: {wrong}")
        self.models[number] = model_of(tree, contents)


def read_log(path: Path) -> tuple[list[Op], Op | None]:
    """(operations that were answered, the one that was not)."""
    done: list[Op] = []
    begun: Op | None = None
    for line in path.read_text().splitlines():
        if line == "done":
            assert begun is not None
            done.append(begun)
            begun = None
        else:
            begun = json.loads(line.removeprefix("begin "))
    return done, begun


def main() -> int:
    parser = argparse.ArgumentParser(description="Work through a mount whose server is killed again and again.")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--directory", help="where the image, the logs and the mountpoint are made; kept when something is found")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="soak-", dir=options.directory))
    print(f"seed {options.seed}, in {directory}", flush=True)
    try:
        tally = Soak(directory, options.seed, options.workers).run(options.minutes * 60)
    except Broken as found:
        print(f"BROKEN: {found}\nseed {options.seed}; everything is kept in {directory}")
        return 1
    print(f"seed {options.seed}: {tally}")
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
