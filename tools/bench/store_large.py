"""What `mdstore bench store` measures of large things: opening, replay, clones, a gigabyte of data, a checkpoint under load."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple, TypeVar

from mdstore.device.file import FileDevice
from mdstore.store import Store, Transaction
from mdstore.tools.bench.store_peers import MIB, LevelDb, Ours, plyvel

PIECE: Final = 4 * MIB
BATCH: Final = 10_000
Result = TypeVar("Result")
Fill = Callable[[Connection, Path, int], None]
RateRow = tuple[str, float, str, float, float]  # work, ours per second, peer, the peer's, reach


class Figure(NamedTuple):
    """One number that is not a rate. `reach`: what is aimed at, in the same unit, 0 where nothing is."""

    figure: str
    value: float
    unit: str
    reach: float


def timed_result(action: Callable[[], Result]) -> tuple[float, Result]:
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def _open(path: Path) -> Store:
    return Store.open(FileDevice.open(path))


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


@contextmanager
def image(path: Path, size_bytes: int, **options: Any) -> Iterator[Store]:
    """A store that is gone afterwards."""
    path.parent.mkdir(exist_ok=True)
    store = Store.create(FileDevice.create(path, size_bytes), **options)
    store.apply(Transaction().create_collection("c"))
    try:
        yield store
    finally:
        store.close()
        path.unlink()


def opening(place: Path, objects: int, rounds: int) -> list[Figure]:
    """Opening a clean store of that many objects against one of a thousand; and what an empty object takes."""
    empty = 0.0
    paths = {count: place / f"objects-{count}" for count in (1000, objects)}
    for count, path in paths.items():
        with Store.create(FileDevice.create(path, 512 * MIB)) as store:
            store.apply(Transaction().create_collection("c"))
            store.checkpoint()
            before = store.statistics()["allocated_bytes"]
            for first in range(0, count, BATCH):
                transaction = Transaction()
                for number in range(first, min(first + BATCH, count)):
                    transaction.touch("c", b"%016d" % number)
                store.submit(transaction)
            for _ in range(3):
                store.checkpoint()
            empty = (store.statistics()["allocated_bytes"] - before) / count
            snapshots = []
            for number in range(rounds):
                snapshots.append(timed(partial(store.snapshot, b"%d" % number)))
                store.delete_snapshot(b"%d" % number)
    times: dict[int, list[float]] = {count: [] for count in paths}
    for _ in range(rounds):
        for count, path in paths.items():
            seconds, store = timed_result(partial(_open, path))
            times[count].append(seconds)
            store.close()
    found = {count: median(seconds_of) for count, seconds_of in times.items()}
    return [
        Figure(f"open a clean store of {objects:,} objects, to one of 1,000", found[objects] / found[1000], "times", 1.2),
        Figure(f"open a clean store of {objects:,} objects", found[objects] * 1000, "ms", 0.0),
        Figure(f"snapshot of a store of {objects:,} objects", median(snapshots) * 1000, "ms", 1.0),
        Figure("an empty object with a name of 16 bytes", empty, "bytes", 150.0),
    ]


def replay(place: Path, rounds: int, records: int) -> list[RateRow]:
    """Bytes of log per second when opening what a process leaves that filled its log and was killed with SIGKILL. LevelDB opens a
    copy each time, since opening compacts the log away; ours writes nothing before the first change."""
    logged = {"ours": killed(_fill_ours, place, records)}
    times: dict[str, list[float]] = {"ours": []}
    if plyvel is not None:
        killed(_fill_level, place, records)
        logged["LevelDB"] = sum(file.stat().st_size for file in (place / "leveldb").glob("*.log"))
        times["LevelDB"] = []
    for _ in range(rounds):
        seconds, store = timed_result(partial(_open, place / "image"))
        times["ours"].append(seconds)
        store.tables.pager.close()
        store.device.close()  # as it was: a clean close would write a checkpoint
        if "LevelDB" in times:
            copy = place / "leveldb-copy"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(place / "leveldb", copy)
            seconds, database = timed_result(partial(plyvel.DB, str(copy), write_buffer_size=256 * MIB))
            times["LevelDB"].append(seconds)
            database.close()
    rates = {name: logged[name] / median(seconds) for name, seconds in times.items()}
    work = "reopen after kill -9, bytes of log"
    return [(work, rates["ours"], name, rates[name], 1.0) for name in rates if name != "ours"]


def killed(fill: Fill, place: Path, records: int) -> int:
    """Run `fill` in a process of its own until it answers, and kill that; returns the answer."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=fill, args=(there, place, records))
    process.start()
    there.close()
    answer = here.recv()
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return int(answer)


def _batches(records: int) -> Iterator[list[tuple[bytes, bytes]]]:
    for _ in range(0, records, 100):
        yield [(os.urandom(8), bytes(100)) for _ in range(100)]


def _fill_ours(done: Connection, place: Path, records: int) -> None:
    log_bytes = max(4 * MIB, records * 250)  # under half full there is no checkpoint
    ours = Ours(place, size_bytes=512 * MIB, log_bytes=log_bytes, dirty_bytes=512 * MIB)
    before = ours.store.journal.write
    for pairs in _batches(records):
        ours.batch(pairs, sync=False)
    ours.store.sync()
    done.send(ours.store.journal.write - before)
    signal.pause()


def _fill_level(done: Connection, place: Path, records: int) -> None:
    level = LevelDb(place, write_buffer_size=256 * MIB)
    for pairs in _batches(records):
        level.batch(pairs)
    done.send(0)
    signal.pause()


def data(place: Path, size_bytes: int, rounds: int) -> tuple[list[RateRow], list[Figure]]:
    """A large object written, read (from memory, then from the medium) and cloned; a plain file the same way."""
    piece = os.urandom(PIECE)
    writes: dict[str, list[float]] = {"ours": [], "file": []}
    reads: dict[str, list[float]] = {"ours": [], "file": []}
    cold: dict[str, list[float]] = {"ours": [], "file": []}
    clones: list[float] = []
    plain = place / "plain"
    with image(place / "data" / "image", 3 * size_bytes + 256 * MIB) as store:
        for number in range(rounds):
            name = f"o{number % 2}"
            writes["ours"].append(timed(partial(_write_object, store, name, piece, size_bytes)))
            writes["file"].append(timed(partial(_write_plain, plain, piece, size_bytes)))
            store.checkpoint()
            reads["ours"].append(timed(partial(_read_object, store, name, size_bytes)))
            reads["file"].append(timed(partial(_read_plain, plain, size_bytes)))
            for path in (place / "data" / "image", plain):
                _forget(path)
            cold["ours"].append(timed(partial(_read_object, store, name, size_bytes)))
            cold["file"].append(timed(partial(_read_plain, plain, size_bytes)))
            clones.append(timed(partial(store.submit, Transaction().clone("c", name, "clone"))))
            store.apply(Transaction().remove("c", name).remove("c", "clone"))
            for _ in range(2):
                store.checkpoint()
    plain.unlink()
    rows = [
        (f"sequential {what} of {size_bytes // MIB} MiB, bytes", size_bytes / median(times["ours"]), "plain file with fsync",
         size_bytes / median(times["file"]), 0.8)
        for what, times in (("write", writes), ("read", reads), ("read from the medium", cold))
    ]  # fmt: skip
    return rows, [Figure(f"clone of an object of {size_bytes // MIB} MiB", median(clones) * 1000, "ms", 1.0)]


def _forget(path: Path) -> None:
    """Have the system's cache drop the file, which is on the medium."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _write_object(store: Store, name: str, piece: bytes, size_bytes: int) -> None:
    for offset in range(0, size_bytes, len(piece)):
        store.submit(Transaction().write("c", name, offset, piece))
    store.sync()


def _read_object(store: Store, name: str, size_bytes: int) -> None:
    for offset in range(0, size_bytes, PIECE):
        store.read("c", name, offset, PIECE)


def _write_plain(path: Path, piece: bytes, size_bytes: int) -> None:
    with open(path, "wb", buffering=0) as file:
        for _ in range(0, size_bytes, len(piece)):
            file.write(piece)
        os.fsync(file.fileno())


def _read_plain(path: Path, size_bytes: int) -> None:
    with open(path, "rb", buffering=0) as file:
        for _ in range(0, size_bytes, PIECE):
            file.read(PIECE)


def checkpoint_stall(place: Path, records: int) -> list[Figure]:
    """Durable puts while a checkpoint of that many dirty records runs: all of a map, each changed again after a checkpoint, so
    that every page is replaced and the one before freed. And a snapshot of that map."""
    place.mkdir()
    ours = Ours(place, size_bytes=2048 * MIB, log_bytes=512 * MIB, dirty_bytes=1024 * MIB, cache_bytes=1024 * MIB)
    keys = [os.urandom(8) for _ in range(records)]
    for content in (bytes(100), bytes([1]) * 100):
        ours.store.checkpoint()
        for first in range(0, records, BATCH):
            ours.batch([(key, content) for key in keys[first : first + BATCH]], sync=False)
        ours.store.sync()
    snapshot = timed(lambda: ours.view.snapshot().close())
    waits: list[float] = []
    checkpoint = threading.Thread(target=ours.store.checkpoint)
    began = time.perf_counter()
    checkpoint.start()
    while checkpoint.is_alive():
        waits.append(timed(lambda: ours.put(os.urandom(8), bytes(100))))
    took = time.perf_counter() - began
    freeze = ours.store.statistics()["longest_freeze_s"]
    ours.close()
    waits.sort()
    name = f"durable put while a checkpoint of {records:,} dirty records runs"
    return [
        Figure(f"{name}: p50", waits[len(waits) // 2] * 1000, "ms", 0.0),
        Figure(f"{name}: p99", waits[len(waits) * 99 // 100] * 1000, "ms", 0.0),
        Figure(f"{name}: worst", waits[-1] * 1000, "ms", 0.0),
        Figure(f"{name}: puts meanwhile", float(len(waits)), "puts", 0.0),
        Figure("that checkpoint", took * 1000, "ms", 0.0),
        Figure("its freeze, under the lock", freeze * 1000, "ms", 0.0),
        Figure(f"snapshot of a map of {records:,} records", snapshot * 1000, "ms", 1.0),
    ]
