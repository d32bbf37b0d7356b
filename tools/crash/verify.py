"""What a workload raises when an engine answers wrongly or does not check: a finding, not an error of the tool."""

from __future__ import annotations

from mdstore.store.check import check
from mdstore.store.store import Store


class Inconsistent(Exception):
    """An engine broke a rule while it worked, or failed its own checker. The text is the evidence."""


def require(holds: bool, *evidence: str) -> None:
    """Raise `Inconsistent` with the evidence unless it holds."""
    if not holds:
        raise Inconsistent("; ".join(evidence))


def require_sound(store: Store) -> None:
    """`Inconsistent` with every violated invariant of the store. Runs a checkpoint."""
    problems = check(store, deep=True)
    require(not problems, *problems)
