"""How a journal is written, and what it has done."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from journal.ceilings import Ceilings
from journal.scan import WINDOW


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a journal is written; nothing here changes what can be read.

    allow_split: False pads, so that an entry that fits a unit never crosses one (needs a medium with units).
    window_bytes: read-ahead. buffer_bytes: appended bytes held back before a write starts without being asked.
    head_every_bytes: a head is written after a flush when the last one lags that much, so followers and recovery by
    the head alone lag no more; None: only when needed.
    """

    allow_split: bool = True
    window_bytes: int = WINDOW
    buffer_bytes: int = 4 << 20
    head_every_bytes: int | None = None
    ceilings: Ceilings = field(default_factory=Ceilings)
    clock: Callable[[], float] = time.monotonic


@dataclass(slots=True)
class Counters:
    """What this journal has done since it was opened."""

    appends: int = 0
    writes: int = 0
    flushes: int = 0
    bytes: int = 0
