"""The page that `mdstore fsck --html` and `mdstore dump IMAGE --map --html` write."""

from __future__ import annotations

import os
from collections.abc import Iterator

from mdstore.errors import InvalidRequest
from mdstore.tools.output import count_text, duration_text, size_text
from mdstore.tools.reader.check import Result
from mdstore.tools.reader.check_space import Observer
from mdstore.tools.reader.problems import Problem
from mdstore.tools.reader.superblock import MAGIC, Superblock
from mdstore.tools.reader.views import Facts, Section
from mdstore.tools.report.image_map import TITLES, ImageMap
from mdstore.tools.report.page import Report, write


class Mapper:
    """Draws the map while a check runs: hand `watch` to its options, and every problem to `problem`."""

    def __init__(self) -> None:
        self.image_map: ImageMap | None = None
        self._early: list[Problem] = []  # met before a superblock was chosen

    def watch(self, superblock: Superblock, size: int) -> Observer:
        """The check begins: this is the image."""
        self.image_map = ImageMap(superblock, size)
        for problem in self._early:
            self.image_map.problem(problem)
        return self.image_map.run

    def problem(self, problem: Problem) -> None:
        """A finding."""
        if self.image_map is None:
            self._early.append(problem)
        else:
            self.image_map.problem(problem)


def refuse_to_overwrite(image: str, page: str | None) -> None:
    """InvalidRequest when the page would replace the image, or another one."""
    if page is None or not os.path.isfile(page):
        return
    with open(page, "rb") as there:
        if (os.path.exists(image) and os.path.samefile(image, page)) or there.read(len(MAGIC)) == MAGIC:
            raise InvalidRequest(f"{page} is an image, which the page would replace; choose another name")


def write_report(path: str, image: str, result: Result, seconds: float, mapper: Mapper) -> None:
    """Write the page to `path`. OSError."""
    state = "clean" if not result.errors else count_text(result.errors, "error")
    others = [count_text(result.severities[name], name) for name in ("warning", "note") if result.severities.get(name)]
    words = [*others, size_text(result.size), f"epoch {result.epoch}", f"{result.level} check", duration_text(seconds)]
    closed = "" if result.is_clean else "not closed in order: what the logs hold is checked too"
    facts = {name.replace("_", " "): f"{value:,}" for name, value in result.counts.items() if value}
    report = Report(image, state, not result.errors, " · ".join([*words, closed] if closed else words), facts)
    write(path, report, mapper.image_map)


def map_sections(image_map: ImageMap) -> Iterator[Section]:
    """What lies where, as `mdstore dump` shows it: by kind, then the free extents by size."""
    size = image_map.block_size
    totals = image_map.totals()
    rows: list[Facts] = [
        {"what": TITLES[kind], "bytes": blocks * size, "blocks": blocks, "share": round(blocks / image_map.blocks, 6)}
        for kind, blocks in totals.items()
    ]
    yield Section("map", rows=rows)
    pieces: list[Facts] = [
        {"from_bytes": (1 << power) * size, "extents": count} for power, count in sorted(image_map.free_extents.items())
    ]
    yield Section("free_extents", rows=pieces)
    yield Section(
        "free_space",
        facts={
            "extents": sum(image_map.free_extents.values()),
            "largest_bytes": image_map.largest_free * size,
            "fragmentation": round(image_map.fragmentation(), 4),
        },
    )
