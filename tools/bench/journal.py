"""The journal's append, group commit and replay, against LevelDB's log, SQLite's WAL, and a bare write loop.

    python -m mdstore.tools.bench.journal [--json] [--quick] [--cpu] [--at DIRECTORY]

All contestants take turns, one step each, many times; the lower quartile of each one's times counts, so that noise of the machine
hits all alike and what it adds is mostly left out. Events are 200 bytes. The journal runs over a ring in a preallocated file; so
does the bare loop. Peers that are not installed are left out. `--cpu` counts processor time, what the code costs whatever else
the machine does; waiting for the disk is not in it, so it only makes sense for the batches and the replay.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click
from crc32c import crc32c

from journal import Entry, Journal, RingMedium
from journal.directory import write_all
from mdstore.tools.bench.row import Row
from mdstore.tools.output import print_json, print_line

try:
    import plyvel
except ImportError:  # an optional peer
    plyvel = None

EVENT: Final = bytes(range(200))
BATCH: Final = 1000
RING_BYTES: Final = 128 << 20
WAITING: Final = 16  # threads, or tasks
Timed = Callable[[], float]  # runs once, returns seconds
Clock = Callable[[], float]


class FileRegion:
    """A preallocated file as a ring's region."""

    def __init__(self, path: Path, size_bytes: int = RING_BYTES) -> None:
        self.size_bytes = size_bytes
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for offset in range(0, size_bytes, 1 << 20):  # written, not only reserved: the file system has nothing left to do
            os.pwrite(self.descriptor, bytes(1 << 20), offset)
        os.fsync(self.descriptor)

    def read(self, offset: int, length: int) -> bytes:
        return os.pread(self.descriptor, length, offset)

    def write(self, offset: int, buffers: Sequence[bytes | bytearray | memoryview]) -> None:
        if len(buffers) == 1 and os.pwrite(self.descriptor, buffers[0], offset) == len(buffers[0]):
            return
        write_all(self.descriptor, offset, buffers)

    def flush(self) -> None:
        os.fdatasync(self.descriptor)


def timed(clock: Clock, action: Callable[[], object]) -> float:
    began = clock()
    action()
    return clock() - began


def turns(candidates: dict[str, Timed], rounds: int) -> dict[str, float]:
    """Seconds of each, lower quartile of `rounds`; all take turns."""
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            taken[name].append(run())
    return {name: sorted(seconds)[len(seconds) // 4] for name, seconds in taken.items()}


def _repeat(action: Callable[[], object], times: int) -> None:
    for _ in range(times):
        action()


def rows(work: str, count: int, found: dict[str, float], reaches: dict[str, float]) -> list[Row]:
    """`found` has seconds of "ours" and of peers, for `count` events each."""
    ours = count / found["ours"]
    peers = [name for name in found if name != "ours"]
    return [
        Row(work, ours, name, count / found[name], ours * found[name] / count, reaches.get(name, 0.0)) for name in peers
    ]


class Peers:
    """What each peer needs: a place, and one durable batch of `size` events."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.count = 0
        self.bare = FileRegion(place / "bare")
        self.bare_offset = 0
        self.sqlite = sqlite3.connect(place / "sqlite", isolation_level=None)
        self.sqlite.execute("pragma journal_mode=wal")
        self.sqlite.execute("pragma synchronous=full")
        self.sqlite.execute("pragma wal_autocheckpoint=0")
        self.sqlite.execute("create table log(id integer primary key, event blob)")
        self.level: Any = plyvel.DB(str(place / "level"), create_if_missing=True, write_buffer_size=1 << 30) if plyvel else None

    def bare_batch(self, size: int) -> None:
        """The least that frames an event: length, checksum, payload."""
        parts = []
        for _ in range(size):
            parts.append(struct.pack("<II", len(EVENT), crc32c(EVENT)))
            parts.append(EVENT)
        data = b"".join(parts)
        if self.bare_offset + len(data) > RING_BYTES:
            self.bare_offset = 0
        os.pwrite(self.bare.descriptor, data, self.bare_offset)
        self.bare_offset += len(data)
        os.fdatasync(self.bare.descriptor)

    def sqlite_batch(self, size: int) -> None:
        self.sqlite.execute("begin")
        self.sqlite.executemany("insert into log(event) values (?)", [(EVENT,)] * size)
        self.sqlite.execute("commit")

    def level_batch(self, size: int) -> None:
        assert self.level is not None
        with self.level.write_batch(sync=True) as batch:
            for _ in range(size):
                self.count += 1
                batch.put(self.count.to_bytes(8, "big"), EVENT)

    def all(self) -> dict[str, Callable[[int], None]]:
        known: dict[str, Callable[[int], None]] = {"bare pwrite + fdatasync": self.bare_batch, "SQLite WAL": self.sqlite_batch}
        if self.level is not None:
            known["LevelDB"] = self.level_batch
        return known


class Ours:
    """A journal in a file that is emptied when it is full."""

    def __init__(self, place: Path) -> None:
        self.medium = RingMedium(FileRegion(place / "ring"))
        self.journal = Journal.create(self.medium)
        self.journal.write_head()

    def room(self, events: int) -> None:
        if (self.journal.free or 0) < 2 * events * (len(EVENT) + 64):
            self.journal.flush()
            self.journal.set_expire(self.journal.safe)
            self.journal.trim(recorded=True)

    def batch(self, size: int) -> None:
        append = self.journal.append
        for _ in range(size):
            end = append(EVENT)
        self.journal.wait(end)

    def list_batch(self, events: list[bytes]) -> None:
        self.journal.wait(self.journal.append_many(events))


def measure_appends(place: Path, clock: Clock, *, singles: int, batches: int) -> list[Row]:
    """One event durable at a time, and a thousand."""
    ours, peers = Ours(place), Peers(place)
    many = [EVENT] * BATCH

    def one_of(batch: Callable[[int], None], size: int) -> Timed:
        def run() -> float:
            ours.room(size)
            return timed(clock, lambda: batch(size))

        return run

    single = {name: one_of(batch, 1) for name, batch in {"ours": ours.batch, **peers.all()}.items()}
    reach = {"bare pwrite + fdatasync": 1 / 1.3, "LevelDB": 1.0}
    found = rows("one durable event", 1, turns(single, singles), reach)
    thousand = {name: one_of(batch, BATCH) for name, batch in {"ours": ours.batch, **peers.all()}.items()}
    thousand["list"] = one_of(lambda _: ours.list_batch(many), BATCH)
    results = turns(thousand, batches)
    listed = results.pop("list")
    found += rows("batches of 1,000, append", BATCH, results, {"LevelDB": 1.0})
    return found + rows("batches of 1,000, append_many", BATCH, results | {"ours": listed}, {"LevelDB": 1.0})


def measure_replay(place: Path, clock: Clock, rounds: int, events: int) -> list[Row]:
    """Opening and handing every event to its owner, against LevelDB's recovery of as many, which builds its memory table."""
    medium = RingMedium(FileRegion(place / "replay", 2 * events * (len(EVENT) + 64)))
    with Journal.create(medium) as journal:
        for _ in range(events // BATCH):
            journal.append_many([EVENT] * BATCH)
    seen = 0

    def visit(batch: list[Entry]) -> None:
        nonlocal seen
        for entry in batch:
            seen += len(entry.payload)

    candidates: dict[str, Timed] = {"ours": lambda: timed(clock, lambda: Journal.open(medium, visit=visit))}
    if plyvel is not None:
        candidates["LevelDB recovery"] = _level_recovery(place, clock, events)
    found = turns(candidates, rounds)
    assert seen == rounds * events * len(EVENT)
    ours = events / found["ours"]
    target = Row("replay", ours, "500,000 per second", 500_000.0, ours / 500_000, 1.0)
    return [target, *rows("replay", events, found, {"LevelDB recovery": 1.0})]


def _level_recovery(place: Path, clock: Clock, events: int) -> Timed:
    path = str(place / "level-replay")
    database = plyvel.DB(path, create_if_missing=True, write_buffer_size=1 << 30)
    for first in range(0, events, BATCH):
        with database.write_batch() as batch:
            for number in range(first, first + BATCH):
                batch.put(number.to_bytes(8, "big"), EVENT)
    database.close()

    def run() -> float:
        copy = path + "-copy"  # opening compacts the log away, so every round opens a fresh copy
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(path, copy)
        opened: list[Any] = []
        seconds = timed(clock, lambda: opened.append(plyvel.DB(copy, write_buffer_size=1 << 30)))
        opened[0].close()
        return seconds

    return run


def measure_waiting(place: Path, clock: Clock, rounds: int, each: int) -> list[Row]:
    """16 who each wait for their own event to be durable, against one: threads, and tasks of one event loop.

    Free to run on every processor, and on one: threads of Python take turns, and a turn handed to another processor costs more.
    """
    ours = Ours(place)
    found: list[Row] = []
    processors = os.sched_getaffinity(0)
    for where, allowed in (("", processors), (", one processor", {min(processors)})):
        os.sched_setaffinity(0, allowed)
        try:
            found += _waiting(ours, clock, rounds, each, where)
        finally:
            os.sched_setaffinity(0, processors)
    return found


def _waiting(ours: Ours, clock: Clock, rounds: int, each: int, where: str) -> list[Row]:
    def threads(count: int) -> float:
        ours.room(count * each)
        ready = threading.Barrier(count + 1)  # the making of threads is not measured

        def work() -> None:
            ready.wait()
            _repeat(lambda: ours.batch(1), each)

        workers = [threading.Thread(target=work) for _ in range(count)]
        for worker in workers:
            worker.start()
        return timed(clock, lambda: _run_all(ready, workers))

    def tasks(count: int) -> float:
        ours.room(count * each)
        return timed(clock, lambda: asyncio.run(_run_tasks(ours.journal, count, each)))

    times = turns(
        {
            "threads": lambda: threads(WAITING) / WAITING, "one appender": lambda: threads(1),
            "tasks": lambda: tasks(WAITING) / WAITING, "one task": lambda: tasks(1),
        },
        rounds,
    )  # fmt: skip
    found: list[Row] = []
    for many, one, work in (("threads", "one appender", "16 durable appenders"), ("tasks", "one task", "16 durable tasks")):
        found += rows(f"{work}{where}", each, {"ours": times[many], one: times[one]}, {one: 5.0})
    return found


async def _run_tasks(journal: Journal, count: int, each: int) -> None:
    """Tasks that wait by callback; a thread of its own flushes, as long as anything waits."""
    wanted, done = threading.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def flusher() -> None:
        while wanted.wait() and not done.is_set():
            wanted.clear()
            journal.flush()

    async def append() -> None:
        durable: asyncio.Future[BaseException | None] = loop.create_future()

        def told(error: BaseException | None) -> None:
            loop.call_soon_threadsafe(durable.set_result, error)

        journal.add_waiter(journal.append(EVENT), told)
        wanted.set()
        assert await durable is None

    async def task() -> None:
        for _ in range(each):
            await append()

    thread = threading.Thread(target=flusher)
    thread.start()
    try:
        await asyncio.gather(*(task() for _ in range(count)))
    finally:
        done.set()
        wanted.set()
        thread.join()


def _run_all(ready: threading.Barrier, workers: list[threading.Thread]) -> None:
    ready.wait()
    for worker in workers:
        worker.join()


def measure(place: Path, *, quick: bool = False, cpu: bool = False) -> list[Row]:
    """All rows, in a directory of its own below `place`."""
    with tempfile.TemporaryDirectory(dir=place) as name:
        path = Path(name)
        clock = time.process_time if cpu else time.perf_counter
        found = measure_appends(path, clock, singles=100 if quick else 600, batches=8 if quick else 60)
        found += measure_replay(path, clock, 3 if quick else 9, 20_000 if quick else 100_000)
        (path / "threads").mkdir()
        return found + measure_waiting(path / "threads", clock, 5 if quick else 15, 40 if quick else 100)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@click.option("--quick", is_flag=True, help="A tenth of the work; the numbers are rough.")
@click.option("--cpu", is_flag=True, help="Processor time instead of elapsed time.")
@click.option("--at", "place", type=click.Path(exists=True, file_okay=False, path_type=Path), default=tempfile.gettempdir,
              help="Where the logs go.")  # fmt: skip
def main(as_json: bool, quick: bool, cpu: bool, place: Path) -> None:
    """Measure the journal against its peers.

    \b
    mdstore bench journal --quick
    """
    found = measure(place, quick=quick, cpu=cpu)
    if as_json:
        print_json([row._asdict() for row in found])
        return
    for row in found:
        reach = f"(reach {row.reach:.2f})" if row.reach else ""
        print_line(f"{row.work:<36} {row.ours_per_s:>10,.0f}/s  {row.ratio:>6.2f} x {row.peer} {row.peer_per_s:,.0f}/s {reach}")


if __name__ == "__main__":
    main()
