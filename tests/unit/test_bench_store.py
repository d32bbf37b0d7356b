"""`mdstore bench store`: contestants take turns over the same pairs, and rows say what they should."""

from __future__ import annotations

from pathlib import Path

from mdstore.store.check import check
from mdstore.tools.bench import store as bench
from mdstore.tools.bench import store_large
from mdstore.tools.bench.store_peers import (
    MIB,
    Bare,
    LevelDb,
    Lmdb,
    Ours,
    Pairs,
    RocksDb,
    Sqlite,
    lmdb,
    plyvel,
    rocksdict,
)


class Recorder:
    def __init__(self, name: str, log: list[tuple[str, int]]) -> None:
        self.name = name
        self._log = log

    def batch(self, pairs: Pairs) -> None:
        self._log.append((self.name, hash(tuple(pairs))))

    def put(self, key: bytes, value: bytes) -> None:
        self.batch(((key, value),))

    def close(self) -> None:
        pass


def test_all_take_turns_with_the_same_pairs() -> None:
    log: list[tuple[str, int]] = []
    rows = bench.turns("work", [Recorder("a", log), Recorder("b", log), Recorder("c", log)], bench._batch, 10, 4, {"b": 2.0})
    assert [name for name, _ in log] == [*"abc", *"bca", *"cab", *"abc"]
    assert all(len({pairs for _, pairs in log[i : i + 3]}) == 1 for i in range(0, 12, 3))
    assert len({pairs for _, pairs in log}) == 4
    assert [(row.work, row.peer, row.reach) for row in rows] == [("work", "b", 2.0), ("work", "c", 0.0)]
    assert all(abs(row.ratio - row.ours_per_s / row.peer_per_s) < 1e-9 for row in rows)


def test_every_contestant_writes(tmp_path: Path) -> None:
    ours = Ours(tmp_path, size_bytes=16 * MIB)
    peers = [Bare(tmp_path), Sqlite(tmp_path)]
    peers += [kind(tmp_path) for kind, module in ((LevelDb, plyvel), (RocksDb, rocksdict), (Lmdb, lmdb)) if module]
    for engine in (ours, *peers):
        engine.batch([(b"%d" % i, bytes(100)) for i in range(20)])
        engine.put(b"one", b"more")
    assert len(ours.view) == 21
    assert not check(ours.store)
    for engine in (ours, *peers):
        engine.close()


def test_bytes_of_a_put_are_the_disks_own(tmp_path: Path) -> None:
    engines = [Ours(tmp_path, size_bytes=16 * MIB), Bare(tmp_path)]
    found = bench.written_per_put(engines, tmp_path, 5)
    if bench.disk_counter(tmp_path) is None:
        assert found == {}
    else:
        assert set(found) == {engine.name for engine in engines}
        assert min(found.values()) >= 512, "each put is at least a sector"
    for engine in engines:
        engine.close()


def test_what_is_opened_again_was_left_by_a_killed_process(tmp_path: Path) -> None:
    logged = store_large.killed(store_large._fill_ours, tmp_path, 300)
    assert logged > 300 * 108
    with store_large._open(tmp_path / "image") as store:
        assert not store.recovery.clean
        assert store.stat("bench", "map").map_keys == 300
        assert not check(store)
