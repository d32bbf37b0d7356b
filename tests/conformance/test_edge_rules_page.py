"""The page of edge rules names tests that exist, and every rule names one."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "edge-rules.md"


def rules() -> list[tuple[str, list[str]]]:
    """(rule, names of its tests) for every row of the page's tables."""
    rows = [line.split("|") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [(row[1].strip(), re.findall(r"`(test_\w+)`", row[2])) for row in rows if row[1].strip() != "rule"]


def test_every_rule_names_a_test_and_every_test_named_exists() -> None:
    defined = {
        name for path in HERE.glob("test_*.py") for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.M)
    }
    found = rules()
    assert len(found) > 40
    assert [rule for rule, tests in found if not tests] == []
    assert {name for _, tests in found for name in tests} - defined == set()
