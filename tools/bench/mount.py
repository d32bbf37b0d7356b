"""Operations per second through a mount, as programs meet them.

    python -m mdstore.tools.bench.mount                    an image of its own, made, mounted and removed again
    python -m mdstore.tools.bench.mount --at DIRECTORY     any directory: another mount, tmpfs, ext4, ceph-fuse

Each process works in a directory of its own; all begin together, and the rate is all their operations by the time until the
last is done. `--pin` puts the processes, and the server of our own mount, on one processor: that spares the wake-ups between
processors, which cost more than serving a request. The server's own processor time is reported beside the rates where it is
known: it says what the code costs, whatever else the machine does.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import click

from mdstore.tools.images import size as size_type
from mdstore.tools.output import print_json, print_line

BLOCK: Final = b"\x5a" * 4096
PROCESSES_MAX: Final = 256
LISTED: Final = 10_000  # entries of the directory that is listed
DROP_CACHES: Final = "/proc/sys/vm/drop_caches"
_TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")


class Row(NamedTuple):
    """One measurement. `server_us`: microseconds of processor time the server took per operation, None where unknown."""

    operation: str
    processes: int
    pinned: bool
    operations: int
    seconds: float
    per_second: float
    server_us: float | None


class Operation(NamedTuple):
    """`run(directory, count)` makes `count` operations in a process's own directory. `share`: of the asked count."""

    name: str
    run: Callable[[str, int], None]
    share: float = 1.0
    cold: bool = False  # the kernel's caches are dropped before


def _each(call: Callable[[str], object]) -> Callable[[str, int], None]:
    def run(directory: str, count: int) -> None:
        for index in range(count):
            call(f"{directory}/{index}")

    return run


def _create(path: str) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def _write_4k(path: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, BLOCK)
    os.close(fd)


def _create_fsync(path: str) -> None:
    fd = os.open(path + "s", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    os.fsync(fd)
    os.close(fd)


def _fill(directory: str, count: int) -> None:
    os.mkdir(f"{directory}/list")
    for index in range(count):
        _create(f"{directory}/list/{index}")


def _list(directory: str, count: int) -> None:
    listed = len(os.listdir(f"{directory}/list"))
    assert listed == count, f"{listed} entries listed of {count}"


def _list_stat(directory: str, count: int) -> None:
    with os.scandir(f"{directory}/list") as entries:
        listed = sum(1 for entry in entries if entry.stat(follow_symlinks=False).st_size == 0)
    assert listed == count, f"{listed} entries listed of {count}"


OPERATIONS: Final = (
    Operation("mkdir", _each(lambda path: os.mkdir(path + "d"))),
    Operation("create", _each(_create)),
    Operation("stat cold", _each(os.stat), cold=True),
    Operation("stat cached", _each(os.stat)),
    Operation("open", _each(lambda path: os.close(os.open(path, os.O_RDONLY)))),
    Operation("chmod", _each(lambda path: os.chmod(path, 0o600))),
    Operation("write 4 KiB + close", _each(_write_4k)),
    Operation("rename", _each(lambda path: os.rename(path, path + "r"))),
    Operation("link", _each(lambda path: os.link(path + "r", path + "l"))),
    Operation("symlink", _each(lambda path: os.symlink("target", path + "y"))),
    Operation("unlink", _each(lambda path: os.unlink(path + "l"))),
    Operation("rmdir", _each(lambda path: os.rmdir(path + "d"))),
    Operation("create + fsync", _each(_create_fsync), share=0.2),
)
LISTINGS: Final = (
    Operation("readdir cold, per entry", _list, cold=True),
    Operation("readdir cached, per entry", _list),
    Operation("readdir + stat cold, per entry", _list_stat, cold=True),
    Operation("readdir + stat cached, per entry", _list_stat),
)


def measure(
    directory: Path, count: int, processes: int, *, pinned: bool, server: int | None, listed: int = LISTED
) -> Iterator[Row]:
    """All operations, in order, by that many processes; `directory` is left as it was. `server`: the pid to watch."""
    homes = [str(directory / f"bench-{number}") for number in range(processes)]
    for home in homes:
        os.mkdir(home)
    cpus = {min(os.sched_getaffinity(0))} if pinned else None
    try:
        for operation in OPERATIONS:
            yield _timed(operation, homes, max(1, int(count * operation.share)), cpus, server)
        _in_processes(homes, lambda home: _fill(home, listed), cpus)
        for operation in LISTINGS:
            yield _timed(operation, homes, listed, cpus, server)
    finally:
        for home in homes:
            shutil.rmtree(home, ignore_errors=True)


def _timed(operation: Operation, homes: list[str], count: int, cpus: set[int] | None, server: int | None) -> Row:
    if operation.cold:
        _drop_caches()
    before = _processor_seconds(server)
    seconds = _in_processes(homes, lambda home: operation.run(home, count), cpus)
    after = _processor_seconds(server)
    total = count * len(homes)
    server_us = None if before is None or after is None else (after - before) / total * 1e6
    return Row(operation.name, len(homes), cpus is not None, total, seconds, total / seconds, server_us)


def _in_processes(homes: list[str], work: Callable[[str], None], cpus: set[int] | None) -> float:
    """Run `work(home)` in a process for each home, all let go at once; the seconds until the last has ended."""
    read_end, write_end = os.pipe()
    children = []
    for home in homes:
        child = os.fork()
        if child == 0:
            os.close(write_end)
            code = 1
            try:
                if cpus is not None:
                    os.sched_setaffinity(0, cpus)
                os.read(read_end, 1)  # the end of the pipe is the start
                work(home)
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    os.close(read_end)
    start = time.perf_counter()
    os.close(write_end)
    failed = [child for child in children if os.waitpid(child, 0)[1] != 0]
    seconds = time.perf_counter() - start
    if failed:
        raise click.ClickException("a process failed; its error is above")
    return seconds


def _drop_caches() -> None:
    """Dentries, inodes and pages of the whole machine. Only root may, in a container not even root; "cold" is warm then."""
    with contextlib.suppress(OSError), open(DROP_CACHES, "w") as file:
        file.write("3")


def _processor_seconds(pid: int | None) -> float | None:
    if pid is None:
        return None
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


@contextlib.contextmanager
def own_mount(size_bytes: int, options: str) -> Iterator[tuple[Path, int]]:
    """(mounted directory, pid of its server) of a fresh image; both are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="mdstore-bench-") as home:
        image, directory = Path(home) / "image", Path(home) / "mount"
        directory.mkdir()
        command = [sys.executable, "-m", "mdstore.tools.cli"]
        subprocess.run([*command, "mkfs", str(image), "--size", str(size_bytes)], check=True, stdout=subprocess.DEVNULL)
        server = subprocess.Popen([*command, "mount", str(image), str(directory), "-o", options], stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None
            if not server.stdout.readline():
                raise click.ClickException("the mount did not come up; its error is above")
            yield directory, server.pid
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()


def report(rows: list[Row], *, as_json: bool) -> None:
    """The rows as a table, or as JSON."""
    if as_json:
        print_json([row._asdict() for row in rows])
        return
    print_line(f"{'operation':34}{'processes':>10}{'pinned':>8}{'per second':>12}{'server us':>11}")
    for row in rows:
        server = "" if row.server_us is None else f"{row.server_us:.1f}"
        print_line(
            f"{row.operation:34}{row.processes:>10}{'yes' if row.pinned else 'no':>8}{row.per_second:>12,.0f}{server:>11}"
        )


def _numbers(text: str) -> list[int]:
    """`1,4`. A type for click."""
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if not all(1 <= number <= PROCESSES_MAX for number in numbers):
        raise click.BadParameter(f"{text!r} is no list of numbers from 1 to {PROCESSES_MAX}, such as 1,4")
    return numbers


@click.command("mount")
@click.option("--at", type=click.Path(file_okay=False, exists=True), help="Measure this directory instead of a mount of our own.")
@click.option("--server", type=int, help="With --at: the pid whose processor time is reported, and that --pin pins too.")
@click.option("--count", type=click.IntRange(1), default=2000, show_default=True, help="Operations of each kind and process.")
@click.option("--processes", type=_numbers, default="1,4", show_default=True, help="How many at a time; several: commas.")
@click.option("--pin/--no-pin", default=None, help="Only pinned to one processor, or only not (default: both).")
@click.option("--size", type=size_type, default="4G", show_default=True, help="Of our own image.")
@click.option("-o", "options", default="", metavar="OPTIONS", help="Mount options of our own mount.")
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
def mount_bench(
    at: str | None, server: int | None, count: int, processes: list[int], pin: bool | None, size: int, options: str, as_json: bool
) -> None:
    """Measure operations per second through a mount.

    \b
    mdstore bench mount --count 500 --processes 1
    mdstore bench mount --at /mnt/other --json
    """
    pinnings = [False, True] if pin is None else [pin]
    target = contextlib.nullcontext((Path(at), server)) if at else own_mount(size, options)
    rows: list[Row] = []
    with target as (directory, pid):
        for pinned in pinnings:
            with _pinned(pid) if pinned else contextlib.nullcontext():
                for number in processes:
                    rows += measure(directory, count, number, pinned=pinned, server=pid)
    report(rows, as_json=as_json)


@contextlib.contextmanager
def _pinned(pid: int | None) -> Iterator[None]:
    """The server, all its threads, on the first processor we may use; given back afterwards."""
    if pid is None:
        yield
        return
    before = os.sched_getaffinity(pid)
    threads = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
    for thread in threads:
        os.sched_setaffinity(thread, {min(before)})
    try:
        yield
    finally:
        for thread in threads:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(thread, before)


if __name__ == "__main__":
    mount_bench()
