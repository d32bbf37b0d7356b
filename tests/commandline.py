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
