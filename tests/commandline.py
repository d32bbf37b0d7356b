"""A command run in this process, and what it left behind. The fixture `run` is in tests/conftest.py."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple


class Ran(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """Standard output, one JSON document."""
        return json.loads(self.out)


Run = Callable[..., Ran]


def refused(ran: Ran, *words: str, code: int = 1) -> None:
    """The command failed as a command should: that code, nothing on stdout, one line that has these words."""
    assert ran.code == code, ran
    assert ran.out == ""
    assert ran.err.startswith("mdstore: ")
    assert ran.err.count("\n") == 1
    assert ran.err.endswith("\n")
    assert "Traceback" not in ran.err
    for word in words:
        assert word in ran.err, ran.err
