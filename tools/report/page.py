"""The report as one HTML file: no network, no script it cannot do without, light and dark, readable by keyboard and eye.

The map is SVG: a square for each cell, split by what lies in it; its title (hover, or a screen reader) says the figures.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mdstore.tools.output import count_text, size_text
from mdstore.tools.reader.problems import Problem
from mdstore.tools.report.image_map import PROBLEMS_MAX, TITLES, ImageMap, Kind

COLOURS: Final = {
    Kind.SUPERBLOCK: "#b3261e", Kind.LOG: "#e8871e", Kind.TREES: "#6a3fb5", Kind.OBJECT_TREES: "#a98be0",
    Kind.LARGE_VALUES: "#d16ba5", Kind.DATA: "#1f77d0", Kind.SHARED: "#12a594", Kind.SNAPSHOTS: "#8a6d3b",
    Kind.FREE: "#d3dccf", Kind.UNKNOWN: "#555555",
}  # fmt: skip
FREE_IN_THE_DARK: Final = "#2b3429"
DAMAGE: Final = "#ff0033"
_CELL: Final = 12  # pixels of a cell on the map
_GAP: Final = 2

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1f1a; --faint: #5c665a; --paper: #fbfcfa; --line: #d9dfd6; --bad: #b3261e;
  --free: #d3dccf }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebe3; --faint: #9aa697; --paper: #161a15; --line: #333b31; --bad: #ff6b5e;
  --free: #2b3429 } }
* { box-sizing: border-box }
body { margin: 2rem auto; max-width: 70rem; padding: 0 1.2rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem }
p.sub { color: var(--faint); margin: .2rem 0 1.2rem }
.state { font-weight: 600 } .state.bad { color: var(--bad) }
table { border-collapse: collapse; width: 100% } th { text-align: left; font-weight: 600; color: var(--faint) }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.key { display: inline-block; width: .9em; height: .9em; border-radius: 2px; margin-right: .5em; vertical-align: -.08em }
.bar { background: #1f77d0; height: .8em; min-width: 1px; border-radius: 2px }
svg { display: block; width: 100%; height: auto } svg g:hover rect { opacity: .65 }
.hurt { fill: none; stroke: #ff0033; stroke-width: 2.5 }
.error { color: var(--bad); font-weight: 600 } .warning { font-weight: 600 }
footer { color: var(--faint); margin: 2.5rem 0 1rem }
"""


@dataclass(frozen=True, slots=True)
class Report:
    """What the page says beside the map. `state`: one or two words; `facts`: name and value, in order."""

    image: str
    state: str
    is_clean: bool
    subtitle: str
    facts: dict[str, str] = field(default_factory=dict)


def write(path: str, report: Report, image_map: ImageMap | None) -> None:
    """Write the page, whole or not at all. OSError."""
    target = Path(path)
    partial = target.with_name(target.name + ".part")
    try:
        with open(partial, "w", encoding="utf-8", errors="backslashreplace") as out:
            out.writelines(_pieces(report, image_map))
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def _pieces(report: Report, image_map: ImageMap | None) -> Iterator[str]:
    name = html.escape(report.image)
    yield f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name}: {html.escape(report.state)}</title>'
    yield f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body><main>'
    yield f"<h1>{name}</h1>"
    word = "" if report.is_clean else " bad"
    yield f'<p class="sub"><span class="state{word}">{html.escape(report.state)}</span> · {html.escape(report.subtitle)}</p>'
    if image_map is not None:
        yield from _problems(image_map)
        yield from _map(image_map)
        yield from _usage(image_map)
        yield from _free(image_map)
    yield from _facts(report.facts)
    yield "<footer>Read with mdstore's second reader, which shares no code with the engine.</footer></main></body></html>\n"


# -- the map -----------------------------------------------------------------------------------------------------------


def _map(image_map: ImageMap) -> Iterator[str]:
    cells = len(image_map.cells[0])
    columns = max(1, min(cells, max(16, round(math.sqrt(cells * 2.2)))))
    width, height = columns * (_CELL + _GAP), -(-cells // columns) * (_CELL + _GAP)
    per_cell = size_text(image_map.cell_blocks * image_map.block_size)
    yield f'<h2>Map</h2><p class="sub">One square is {per_cell}, from the first byte to the last, row by row.</p>'
    yield f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Map of the image">'
    for cell in range(cells):
        x, y = cell % columns * (_CELL + _GAP), cell // columns * (_CELL + _GAP)
        yield from _cell(image_map, cell, x, y)
    yield "</svg>"


def _cell(image_map: ImageMap, cell: int, x: int, y: int) -> Iterator[str]:
    """A square, cut into stripes as wide as the kinds' shares; findings draw a frame around it."""
    first, blocks = image_map.cell_bounds(cell)
    found = image_map.in_cell(cell)
    words = ", ".join(f"{TITLES[kind]} {count / blocks:.0%}" for kind, count in found.items())
    hurt = image_map.damaged[cell]
    damage = f"; {count_text(hurt, 'finding')}" if hurt else ""
    yield f"<g><title>byte {first * image_map.block_size:,}: {words}{damage}</title>"
    left = float(x)
    for kind, count in found.items():
        width = _CELL * count / blocks
        yield f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="{_CELL}" fill="{_paint(kind)}"/>'
        left += width
    if hurt:
        yield f'<rect class="hurt" x="{x - 1}" y="{y - 1}" width="{_CELL + 2}" height="{_CELL + 2}"/>'
    yield "</g>"


def _paint(kind: Kind) -> str:
    """A colour for CSS: what is free keeps in the background, light or dark."""
    return "var(--free)" if kind is Kind.FREE else COLOURS[kind]


def _usage(image_map: ImageMap) -> Iterator[str]:
    heads = "".join(f'<th class="n">{word}</th>' for word in ("Size", "Blocks", "Share"))
    yield f"<table><thead><tr><th>What</th>{heads}<th></th></tr></thead><tbody>"
    for kind, blocks in image_map.totals().items():
        share = blocks / image_map.blocks
        yield (
            f'<tr><td><span class="key" style="background:{_paint(kind)}"></span>{TITLES[kind]}</td>'
            f'<td class="n">{size_text(blocks * image_map.block_size)}</td><td class="n">{blocks:,}</td>'
            f'<td class="n">{share:.2%}</td><td style="width:40%"><div class="bar" '
            f'style="width:{share:.4%};background:{_paint(kind)}"></div></td></tr>'
        )
    yield "</tbody></table>"


def _free(image_map: ImageMap) -> Iterator[str]:
    pieces = sum(image_map.free_extents.values())
    yield "<h2>Free space</h2>"
    if not pieces:
        yield '<p class="sub">None.</p>'
        return
    largest = size_text(image_map.largest_free * image_map.block_size)
    yield (
        f'<p class="sub">{count_text(pieces, "extent")}, the largest {largest}; fragmentation '
        f"{image_map.fragmentation():.2f} (0: all in one extent).</p><table><tbody>"
    )
    most = max(image_map.free_extents.values())
    for power, count in sorted(image_map.free_extents.items()):
        size = size_text((1 << power) * image_map.block_size)
        yield (
            f'<tr><td class="n" style="width:9em">from {size}</td><td class="n" style="width:7em">{count:,}</td>'
            f'<td><div class="bar" style="width:{count / most:.2%}"></div></td></tr>'
        )
    yield "</tbody></table>"


# -- words -------------------------------------------------------------------------------------------------------------


def _problems(image_map: ImageMap) -> Iterator[str]:
    if not image_map.problem_count:
        return
    yield f"<h2>{count_text(image_map.problem_count, 'finding')}</h2><table><thead><tr><th></th><th>What</th><th>Where</th>"
    yield "<th>What follows</th><th>What to do</th></tr></thead><tbody>"
    for problem in image_map.problems:
        yield _row(problem)
    yield "</tbody></table>"
    if image_map.problem_count > PROBLEMS_MAX:
        left = image_map.problem_count - PROBLEMS_MAX
        yield f'<p class="sub">and {left:,} more: `mdstore fsck --json` lists all.</p>'


def _row(problem: Problem) -> str:
    cells = (problem.what, str(problem.place), problem.consequence, problem.remedy)
    severity = html.escape(problem.severity)
    return f'<tr><td class="{severity}">{severity}</td>' + "".join(f"<td>{html.escape(text)}</td>" for text in cells) + "</tr>"


def _facts(facts: dict[str, str]) -> Iterator[str]:
    if facts:
        yield "<h2>Figures</h2><table><tbody>"
        for name, value in facts.items():
            yield f'<tr><td>{html.escape(name)}</td><td class="n">{html.escape(value)}</td></tr>'
        yield "</tbody></table>"
