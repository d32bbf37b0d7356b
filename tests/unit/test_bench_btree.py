"""`mdstore bench btree`: every table has its rows, and `--only` takes out what is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mdstore.tools.bench import btree as bench


@pytest.mark.parametrize(
    ("only", "tables"),
    [(("threads",), list(bench.TABLES.values())), (("names", "threads"), [bench.TABLES["names"]])],
)
def test_only_what_is_asked_for_is_measured(only: tuple[str, ...], tables: list[str], tmp_path: Path) -> None:
    rows = bench.measure(tmp_path, 4000, only)
    assert [row.work for row in rows] == [
        f"{table}: {work}" for table in tables for work in ("get_many, two threads", "update, two threads")
    ]
    assert all(row.ours_per_s > 0 and row.reach > 1 for row in rows)


def test_gets_of_the_other_peers_find_what_was_put(tmp_path: Path) -> None:
    """Without the part that fills the tree first, too."""
    place = tmp_path / "at"
    place.mkdir()
    records = bench.number_records(1000)
    subjects = bench.Subjects(place, records, "numbers")
    rows = bench.measure_others(subjects)
    assert dict(subjects.tree.items()) == dict(records)
    assert {row.peer for row in rows} >= {"SortedDict", "SQLite"}
    subjects.device.close()


def test_json_has_a_row_for_each_measurement(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        bench.main, ["--json", "--records", "4000", "--only", "numbers", "--only", "lmdb", "--at", str(tmp_path)]
    )
    assert done.exit_code == 0, done.output
    rows = json.loads(done.output)
    assert {"work", "ours_per_s", "peer", "peer_per_s", "ratio", "reach"} == set(rows[0])
    assert [row["work"].partition(": ")[2] for row in rows] == [
        "put, in memory", "memory per byte of record", "update, in memory", "random get", "get_many", "scan", "cold scan",
    ]  # fmt: skip
