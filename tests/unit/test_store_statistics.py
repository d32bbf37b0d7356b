"""`Store.statistics`: plain numbers that mean what they say."""

from __future__ import annotations

import re
from pathlib import Path

from mdstore.device.memory import MemoryDevice
from mdstore.store.latency import KEPT, Latencies
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction


def test_percentiles_are_of_the_last_ones_and_the_worst_of_all() -> None:
    waits = Latencies()
    assert waits.percentiles(0.5, 0.99) == [0.0, 0.0]
    waits.add(100.0)
    for i in range(KEPT):
        waits.add(i / 1000)
    assert (waits.count, waits.worst) == (KEPT + 1, 100.0)
    half, most = waits.percentiles(0.5, 0.99)
    assert abs(half - KEPT / 2000) < 0.002
    assert abs(most - KEPT * 0.99 / 1000) < 0.002


def test_every_statistic_is_a_plain_number_and_the_waits_are_counted() -> None:
    store = Store.create(MemoryDevice(1 << 20), block_size=512, log_bytes=64 * 1024, background=False)
    store.apply(Transaction().create_collection("c"))
    before = store.statistics()
    for i in range(20):
        store.apply(Transaction().write("c", f"o{i}", 0, bytes(700)))
    commit = store.submit(Transaction().write("c", "o", 0, b"x"))
    store.sync()
    commit.wait()  # durable already: no wait to speak of
    rows = store.statistics()
    assert all(type(value) in (int, float) for value in rows.values()), rows
    assert rows["commit_waits"] == before["commit_waits"] + 20
    assert 0 < rows["commit_wait_p50_s"] <= rows["commit_wait_p99_s"] <= rows["commit_wait_worst_s"] < 10
    assert 0.2 < rows["log_fill"] < 0.5
    assert 0 <= rows["cache_hit_rate"] <= 1
    store.checkpoint()
    assert store.statistics()["log_fill"] < 0.02


def test_the_page_lists_every_statistic() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "howto" / "statistics.md").read_text()
    listed = re.findall(r"^\| `(\w+)`( \*)? \|", page, re.M)
    store = Store.create(MemoryDevice(1 << 20), block_size=512, log_bytes=64 * 1024, background=False)
    assert {name for name, _ in listed} == store.statistics().keys()
    store.snapshot("s")
    with store.open_snapshot("s") as view:
        assert {name for name, star in listed if star} == view.statistics().keys()
