"""`mdstore bench btree`: the kernel against LMDB, LevelDB, RocksDB, SQLite and sortedcontainers, in one process, by turns.

Each row is the median of interleaved runs: ours, peer, ours, peer, so that other work of the machine falls on both. Peers that
are not installed are left out. Keys are objects made in the order they are used, as a caller's are: walking a shuffled list
of old ones would charge both sides 150 ns of cache misses a key that are neither's.
"""

from __future__ import annotations

import importlib
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click
from sortedcontainers import SortedDict

from mdstore.btree import Descriptor, Pager, Tree
from mdstore.device.file import FileDevice
from mdstore.tools.bench.row import Row
from mdstore.tools.output import print_json, print_line

RUNS: Final = 3
BATCH: Final = 1000
CACHE_BYTES: Final = 4 << 30
PAGE_SIZE: Final = 16384  # the kernel's own default

Record = tuple[bytes, bytes]
Turn = Callable[[], object]


class Subjects:
    """The same records in our tree and in every peer that is installed."""

    def __init__(self, place: Path, records: list[Record], name: str, page_size: int = PAGE_SIZE) -> None:
        self.name = name
        self.page_size = page_size
        self.records = records
        self.place = place
        order = list(range(len(records)))
        random.Random(2).shuffle(order)
        self.shuffled = [fresh(records[n][0]) for n in order]
        path = place / "image"
        with path.open("wb") as file:
            file.truncate(len(records) * 1000 + (64 << 20))
        self.device = FileDevice.open(path)
        self.pager = self.new_pager()
        self.tree = self.new_tree()
        self.lmdb: Any = None
        self.ids = 1

    def new_pager(self) -> Pager:
        return Pager(self.device, page_size=self.page_size, cache_bytes=CACHE_BYTES)

    def new_tree(self) -> Tree:
        return Tree(self.pager, Descriptor(), 1)

    def row(self, work: str, count: int, peer: str, reach: float, ours: Turn, theirs: Turn, runs: int = RUNS) -> Row:
        """Both by turns; each `Turn` does `count` records."""
        mine, other = [], []
        for _ in range(runs):
            mine.append(elapsed(ours))
            other.append(elapsed(theirs))
        a, b = count / statistics.median(mine), count / statistics.median(other)
        return Row(f"{self.name}: {work}", a, peer, b, a / b, reach)


def elapsed(turn: Turn) -> float:
    begin = time.perf_counter()
    turn()
    return time.perf_counter() - begin


def number_records(count: int) -> list[Record]:
    """Keys of 8 bytes, values of 100, in random order."""
    rng = random.Random(1)
    pool = [rng.randbytes(100) for _ in range(1000)]
    return [(rng.randbytes(8), pool[n % 1000]) for n in range(count)]


def name_records(count: int) -> list[Record]:
    """File names of 8 to 64 bytes that share prefixes, values of 200 bytes, in random order."""
    rng = random.Random(3)
    pool = [rng.randbytes(200) for _ in range(1000)]
    found: dict[bytes, bytes] = {}
    while len(found) < count:
        name = b"%s-%06d.%s" % (rng.choice(STEMS), rng.randrange(1_000_000), rng.choice((b"c", b"txt", b"parquet")))
        found[name[:64].ljust(rng.randrange(8, 30), b"_")] = pool[len(found) % 1000]
    records = list(found.items())
    rng.shuffle(records)
    return [(fresh(name), value) for name, value in records]


STEMS: Final = (b"a", b"part-of-a-data-set-with-a-long-name", b"IMG", b"checkpoint", b"log-2026-11-21T00:00")


def fresh(key: bytes) -> bytes:
    """An equal object of its own, which lies in memory beside those made before and after it."""
    return bytes(bytearray(key))


def put_all(put: Callable[[bytes, bytes], object], records: list[Record]) -> None:
    for key, value in records:
        put(key, value)


def drain(items: Iterator[object]) -> None:
    for _ in items:
        pass


def get_all(get: Callable[[bytes], object], keys: list[bytes]) -> None:
    for key in keys:
        get(key)


def get_batches(tree: Tree, keys: list[bytes]) -> None:
    for at in range(0, len(keys), BATCH):
        tree.get_many(keys[at : at + BATCH])


def measure_lmdb(s: Subjects) -> list[Row]:
    """The rows with a reach: loads, points, batches, scans; then a cold scan of a sealed tree."""
    try:
        lmdb = importlib.import_module("lmdb")
    except ImportError:
        put_all(s.tree.put, s.records)
        return []
    turn = iter(range(100))

    def environment() -> Any:
        path = s.place / f"lmdb{next(turn)}"
        return lmdb.open(str(path), map_size=max(1 << 28, len(s.records) * 1500), sync=False)

    def load() -> None:
        s.lmdb = environment()
        with s.lmdb.begin(write=True) as txn:
            put_all(txn.put, s.records)

    def fill() -> None:
        s.tree = s.new_tree()
        put_all(s.tree.put, s.records)

    def load_by_batches() -> None:
        s.lmdb = environment()
        with s.lmdb.begin(write=True) as txn:
            txn.cursor().putmulti(s.records)

    def fill_by_batches() -> None:
        s.tree = s.new_tree()
        s.tree.update(s.records)

    count, peer = len(s.records), "py-lmdb"
    rows = [s.row("put, in memory", count, f"{peer} put in one txn", 4.0, fill, load)]
    memory = s.pager.counters()["dirty_bytes"] / sum(len(key) + len(value) for key, value in s.records)
    rows.append(Row(f"{s.name}: memory per byte of record", memory, "limit", 1.5, memory / 1.5, 0))
    rows.append(s.row("update, in memory", count, f"{peer} putmulti in one txn", 0, fill_by_batches, load_by_batches))
    with s.lmdb.begin() as txn:
        cursor = txn.cursor()

        def getmulti() -> None:
            for at in range(0, count, BATCH):
                list(cursor.getmulti(s.shuffled[at : at + BATCH]))

        tree = s.tree
        rows += [
            s.row(
                "random get",
                count,
                peer,
                1.5,
                lambda: get_all(tree.get, s.shuffled),
                lambda: get_all(txn.get, s.shuffled),
            ),
            s.row("get_many", count, f"{peer} getmulti", 2.0, lambda: get_batches(tree, s.shuffled), getmulti),
            s.row("scan", count, f"{peer} cursor", 1.0, lambda: drain(tree.items()), lambda: drain(iter(txn.cursor()))),
        ]
        root = tree.seal(lambda pages: [(1, pages)])
        s.pager.write_sealed()

        def cold() -> None:
            drain(Tree.open(s.new_pager(), root).items())

        rows.append(s.row("cold scan", count, f"{peer} cursor", 0.7, cold, lambda: drain(iter(txn.cursor()))))
    return rows


def measure_others(s: Subjects) -> list[Row]:
    """The in-memory peer, and the engines with files that are installed."""
    rows = []
    ours = SortedDict()

    def fill_sorted() -> None:
        ours.clear()
        put_all(ours.__setitem__, s.records)

    def fill() -> None:
        s.tree = s.new_tree()
        put_all(s.tree.put, s.records)

    count = len(s.records)
    rows.append(s.row("put, in memory", count, "SortedDict", 0, fill, fill_sorted, 1))
    rows.append(s.row("random get", count, "SortedDict", 0, lambda: get_all(s.tree.get, s.shuffled),
                      lambda: get_all(ours.__getitem__, s.shuffled), 1))  # fmt: skip
    for name, put, get in peers(s.place):
        rows.append(s.row("put", count, name, 0, fill, lambda put=put: put_all(put, s.records), 1))  # type: ignore[misc]
        rows.append(s.row("random get", count, name, 0, lambda: get_all(s.tree.get, s.shuffled),
                          lambda get=get: get_all(get, s.shuffled), 1))  # type: ignore[misc]  # fmt: skip
    return rows


def peers(place: Path) -> Iterator[tuple[str, Callable[[bytes, bytes], object], Callable[[bytes], object]]]:
    """(name, put, get) of LevelDB, RocksDB and SQLite, where they are installed."""
    import_or_none = importlib.import_module
    try:
        level = import_or_none("plyvel").DB(str(place / "level"), create_if_missing=True)
        yield "LevelDB", level.put, level.get
    except ImportError:
        pass
    try:
        rocks = import_or_none("rocksdict")
        database = rocks.Rdict(str(place / "rocks"), rocks.Options(raw_mode=True))
        yield "RocksDB", database.__setitem__, database.get
    except ImportError:
        pass
    lite = importlib.import_module("sqlite3").connect(place / "lite", isolation_level=None)
    lite.execute("create table t (k blob primary key, v blob) without rowid")
    lite.execute("begin")
    yield (
        "SQLite",
        lambda key, value: lite.execute("insert or replace into t values (?, ?)", (key, value)),
        lambda key: lite.execute("select v from t where k = ?", (key,)).fetchone(),
    )


def measure_threads(s: Subjects) -> list[Row]:
    """Two threads against one on one tree: batched reads and batched writes, the same work in all."""
    half = len(s.records) // 2
    parts = [s.records[:half], s.records[half:]]
    keys = [s.shuffled[:half], s.shuffled[half:]]
    tree = s.new_tree()
    tree.update(s.records)

    def together(work: Callable[[int], object]) -> None:
        threads = [threading.Thread(target=work, args=(n,)) for n in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def one(work: Callable[[int], object]) -> None:
        work(0)
        work(1)

    def read(n: int) -> None:
        get_batches(tree, keys[n])

    def write(n: int) -> None:
        tree.update(parts[n])

    count = len(s.records)
    return [
        s.row("get_many, two threads", count, "one thread", 1.7, lambda: together(read), lambda: one(read)),
        s.row("update, two threads", count, "one thread", 1.5, lambda: together(write), lambda: one(write)),
    ]


TABLES: Final = {"numbers": "8 B keys, 100 B values", "names": "names, 200 B values"}
PARTS: Final = {"lmdb": measure_lmdb, "threads": measure_threads, "others": measure_others}


def measure(place: Path, count: int, only: tuple[str, ...] = (), page_size: int = PAGE_SIZE) -> list[Row]:
    """The rows of these tables and parts (all where none is named), in directories of their own below `place`; our pages have
    `page_size` bytes, the peers' what they choose."""
    rows = []
    for table in [name for name in TABLES if name in only] or TABLES:
        records = number_records(count) if table == "numbers" else name_records(count // 4)
        with tempfile.TemporaryDirectory(dir=place) as directory:
            subjects = Subjects(Path(directory), records, TABLES[table], page_size)
            for part in [name for name in PARTS if name in only] or PARTS:
                rows += PARTS[part](subjects)
            subjects.device.close()
    return rows


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@click.option("--records", type=click.IntRange(1000), default=1_000_000, show_default=True, help="Of the first table.")
@click.option(
    "--only", type=click.Choice([*TABLES, *PARTS]), multiple=True, help="Only this table or part; may be given again."
)
@click.option(
    "--page-size", type=click.Choice([256 << n for n in range(9)]), default=PAGE_SIZE, show_default=True,
    help="Of our trees; a store's are its blocks, 4096.",
)  # fmt: skip
@click.option(
    "--at", "place", type=click.Path(exists=True, file_okay=False, path_type=Path), default=tempfile.gettempdir,
    help="Where the files go.",
)  # fmt: skip
def main(as_json: bool, records: int, only: tuple[str, ...], page_size: int, place: Path) -> None:
    """Measure the tree kernel against its peers.

    \b
    mdstore bench btree --records 200000
    mdstore bench btree --only names --only lmdb
    mdstore bench btree --page-size 4096
    """
    rows = measure(place, records, only, page_size)
    if as_json:
        print_json([row._asdict() for row in rows])
        return
    for row in rows:
        reach = f"(reach {row.reach:.2f})" if row.reach else ""
        print_line(
            f"{row.work:<50} {row.ours_per_s:>12,.2f}/s {row.ratio:>7.2f} x {row.peer} {row.peer_per_s:,.2f}/s {reach}"
        )


if __name__ == "__main__":
    main()
