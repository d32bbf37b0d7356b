"""The store against LevelDB, RocksDB, LMDB and SQLite, and a bare write loop.

    python -m mdstore.tools.bench.store [--json] [--quick] [--only PART] [--at DIRECTORY]

Keys of 8 random bytes, values of 100. All contestants take turns, one step each, many times, and the median of each one's steps
counts, so that noise of the machine hits all alike. Every step is durable when it returns. Peers that are not installed are
left out. Rates are per second; `ratio` is ours to the peer's.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

import click

from mdstore.tools.bench import store_large
from mdstore.tools.bench.row import Row
from mdstore.tools.bench.store_large import Figure, timed
from mdstore.tools.bench.store_peers import MIB, Engine, Ours, Pairs, engines
from mdstore.tools.output import print_json, print_line

VALUE: Final = bytes(range(100))
LOAD: Final = {"LevelDB": 1.0, "RocksDB": 1.0, "LMDB": 5.0}
PUT: Final = {"bare pwrite + fdatasync": 1 / 1.3, "LevelDB": 1.0, "LMDB": 4.0}
HUNDRED: Final = {"LevelDB": 1.0, "RocksDB": 1.0, "LMDB": 1.0, "SQLite WAL": 1.0}
THREADS: Final = 16
Step = Callable[[Engine, Pairs], None]


class Found(NamedTuple):
    rows: list[Row]
    figures: list[Figure]


def row(work: str, ours: float, peer: str, theirs: float, reach: float) -> Row:
    return Row(work, ours, peer, theirs, ours / theirs, reach)


def pairs(count: int) -> Pairs:
    return [(os.urandom(8), VALUE) for _ in range(count)]


def turns(
    work: str, contestants: Sequence[Engine], step: Step, per_step: int, steps: int, reach: dict[str, float]
) -> list[Row]:
    """`steps` turns of each; the same pairs for all in one turn, and another one begins each time: what a contestant leaves
    to the disk is paid by the next."""
    taken: dict[str, list[float]] = {engine.name: [] for engine in contestants}
    for number in range(steps):
        given = pairs(per_step)
        first = number % len(contestants)
        for engine in (*contestants[first:], *contestants[:first]):
            taken[engine.name].append(timed(partial(step, engine, given)))
    rates = {name: per_step / median(seconds) for name, seconds in taken.items()}
    ours = contestants[0].name
    return [row(work, rates[ours], name, rate, reach.get(name, 0.0)) for name, rate in rates.items() if name != ours]


def _one(engine: Engine, given: Pairs) -> None:
    for key, value in given:
        engine.put(key, value)


def _batch(engine: Engine, given: Pairs) -> None:
    engine.batch(given)


def loads(place: Path, scale: int) -> Found:
    contestants = engines(place / "load")
    rows = turns("random load, commits of 10,000", contestants, _batch, 10_000, 5 * scale, LOAD)
    for engine in contestants:
        engine.close()
    return Found(rows, [])


def puts(place: Path, scale: int) -> Found:
    """Single puts, transactions of 100, and the bytes that a put sends to the medium."""
    contestants = engines(place / "put", bare=True)
    rows = turns("one durable put", contestants, _one, 10, 10 * scale, PUT)
    several = [engine for engine in contestants if "bare" not in engine.name]
    rows += turns("transactions of 100 puts", several, _batch, 100, 20 * scale, HUNDRED)
    figures = []
    for name, each in written_per_put(contestants, place, 20 * scale).items():
        figures.append(Figure(f"bytes to the medium for one durable put of 100 bytes, {name}", each, "bytes", 0.0))
    for engine in contestants:
        engine.close()
    return Found(rows, figures)


def written_per_put(contestants: Sequence[Engine], place: Path, count: int) -> dict[str, float]:
    """Bytes that the disk below `place` was sent for each put, the file system's own records included. Its own counter is right
    for all alike: what the kernel accounts to a process are whole folios of the page cache. The lowest of three, since others may
    write too. Empty where the file system does not lie on one disk."""
    counter = disk_counter(place)
    found: dict[str, float] = {}
    for engine in (*contestants, *contestants, *contestants) if counter is not None else ():
        assert counter is not None
        given = pairs(count)
        os.sync()
        before = counter()
        _one(engine, given)
        each = (counter() - before) / count
        found[engine.name] = min(each, found.get(engine.name, each))
    return found


def disk_counter(place: Path) -> Callable[[], int] | None:
    """The bytes ever written to the disk that holds `place`, as it counts them itself; None where there is no such disk."""
    number = place.stat().st_dev
    path = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat")
    return (lambda: int(path.read_text().split()[6]) * 512) if path.exists() else None


def threads(place: Path, scale: int) -> Found:
    """16 threads of durable puts against one, free to run on every processor, and on one."""
    processors = os.sched_getaffinity(0)
    found = []
    for where, allowed in (("", processors), (", one processor", {min(processors)})):
        os.sched_setaffinity(0, allowed)  # of this thread and those it starts
        try:
            found.append(_threads(place / f"threads{where}", 20 * scale, where))
        finally:
            os.sched_setaffinity(0, processors)
    return Found(found, [])


def _threads(place: Path, each: int, where: str) -> Row:
    place.mkdir()
    ours = Ours(place)

    def run(count: int) -> float:
        given = [pairs(each) for _ in range(count)]
        workers = [threading.Thread(target=_one, args=(ours, given[i])) for i in range(count)]

        def all_of_them() -> None:
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()

        return count * each / timed(all_of_them)

    rates: dict[int, list[float]] = {1: [], THREADS: []}
    for _ in range(5):
        for count, found in rates.items():
            found.append(run(count))
    ours.close()
    return row(f"16 threads of durable puts{where}", median(rates[THREADS]), "one thread", median(rates[1]), 5.0)


def opening(place: Path, scale: int) -> Found:
    return Found([], store_large.opening(place, 100_000 * scale, 7))


def replay(place: Path, scale: int) -> Found:
    (place / "replay").mkdir()
    return Found([row(*found) for found in store_large.replay(place / "replay", 5, 20_000 * scale)], [])


def data(place: Path, scale: int) -> Found:
    found, figures = store_large.data(place, min(1024, 128 * scale) * MIB, 3)
    return Found([row(*one) for one in found], figures)


def checkpoint(place: Path, scale: int) -> Found:
    return Found([], store_large.checkpoint_stall(place / "checkpoint", 100_000 * scale))


PARTS: Final[dict[str, Callable[[Path, int], Found]]] = {
    "loads": loads, "puts": puts, "threads": threads, "opening": opening, "replay": replay, "data": data,
    "checkpoint": checkpoint,
}  # fmt: skip


@click.command("store")
@click.option("--json", "as_json", is_flag=True, help="Print rows and figures as JSON.")
@click.option("--quick", is_flag=True, help="A tenth of the work; the numbers are rough.")
@click.option("--only", type=click.Choice(list(PARTS)), multiple=True, help="Only this part; may be given again.")
@click.option("--at", type=click.Path(exists=True, file_okay=False, path_type=Path), default=tempfile.gettempdir,
              help="Where the images are made; what is measured is the disk below it.")  # fmt: skip
def main(as_json: bool, quick: bool, only: tuple[str, ...], at: Path) -> None:
    """Measure the store against its peers.

    \b
    mdstore bench store --quick
    """
    rows: list[Row] = []
    figures: list[Figure] = []
    for name in only or PARTS:
        with tempfile.TemporaryDirectory(dir=at) as directory:
            found = PARTS[name](Path(directory), 1 if quick else 10)
        rows += found.rows
        figures += found.figures
        if not as_json:
            _show(found)
    if as_json:
        print_json({"rows": [one._asdict() for one in rows], "figures": [one._asdict() for one in figures]})


def _show(found: Found) -> None:
    for one in found.rows:
        reach = f"(reach {one.reach:.2f})" if one.reach else ""
        print_line(f"{one.work:<40} {one.ours_per_s:>13,.0f}/s  {one.ratio:>6.2f} x {one.peer} {one.peer_per_s:,.0f}/s {reach}")
    for figure in found.figures:
        reach = f"(reach {figure.reach:g})" if figure.reach else ""
        print_line(f"{figure.figure:<75} {figure.value:>12,.3f} {figure.unit} {reach}")


if __name__ == "__main__":
    main()
