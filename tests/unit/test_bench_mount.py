"""The mount benchmark measures what it says, on any directory, and leaves nothing behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from mdstore.tools.bench import mount as bench


@pytest.fixture(autouse=True)
def asked_for_cold(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where it is asked for: the machine's caches are those of the tests beside, too, some of which look at what they keep."""
    path = tmp_path_factory.mktemp("proc") / "drop_caches"
    monkeypatch.setattr(bench, "DROP_CACHES", str(path))
    return path


def test_every_operation_is_measured_and_the_directory_is_left_as_it_was(tmp_path: Path, asked_for_cold: Path) -> None:
    rows = list(bench.measure(tmp_path, 10, 2, pinned=False, server=os.getpid(), listed=20))
    assert [row.operation for row in rows] == [operation.name for operation in (*bench.OPERATIONS, *bench.LISTINGS)]
    by_name = {row.operation: row for row in rows}
    assert by_name["create"].operations == 20
    assert by_name["create + fsync"].operations == 4
    assert by_name["readdir cold, per entry"].operations == 40
    for row in rows:
        assert row.seconds > 0
        assert abs(row.per_second * row.seconds - row.operations) < 1e-6 * row.operations
        assert row.server_us is not None
        assert row.server_us >= 0
    assert os.listdir(tmp_path) == []
    assert asked_for_cold.read_text() == "3"


def test_rows_are_given_as_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.measure, "__kwdefaults__", {"listed": 10})
    result = CliRunner().invoke(
        bench.mount_bench, ["--at", str(tmp_path), "--count", "5", "--processes", "1", "--pin", "--json"]
    )
    assert result.exit_code == 0, result.output
    rows = json.loads(result.output)
    assert len(rows) == len(bench.OPERATIONS) + len(bench.LISTINGS)
    assert rows[0].keys() == set(bench.Row._fields)
    assert all(row["pinned"] and row["processes"] == 1 and row["server_us"] is None for row in rows)
