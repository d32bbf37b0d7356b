"""A line of a comparison."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """Rates per second of whatever `work` counts; `ratio` is ours to the peer's, `reach` what is aimed at, 0 where nothing is."""

    work: str
    ours_per_s: float
    peer: str
    peer_per_s: float
    ratio: float
    reach: float
