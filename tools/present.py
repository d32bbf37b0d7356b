"""Showing sections of facts and rows: as JSON, as plain text, or, on a terminal, with rich's tables and trees.

Rows stream in every form: a table takes its widths from the first rows, and what is longer than a screenful of screenfuls goes on
in plain columns. A tree is drawn for what fits memory easily, and listed beyond.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

import click

from mdstore.errors import MdstoreError
from mdstore.tools.output import Told, explain
from mdstore.tools.reader.views import Facts, Section

if TYPE_CHECKING:
    from rich.console import Console
    from rich.tree import Tree

_WIDTHS_FROM: Final = 200  # rows looked at to choose the widths of the columns; the others stream
_DRAWN_MAX: Final = 20_000  # rows that a drawn table or tree holds at most
_CELL_MAX: Final = 100
_FOLDED_MIN: Final = 8  # characters of a line of a cell that is folded

Print = Callable[[Iterator[Section]], None]


def printer(*, as_json: bool) -> Print:
    """What prints sections, for who reads standard output."""
    if as_json:
        return print_json_sections
    return print_drawn if sys.stdout.isatty() else print_plain


# -- JSON --------------------------------------------------------------------------------------------------------------


def print_json_sections(sections: Iterator[Section]) -> None:
    """One object: a key for each section, an object or an array each; rows are written as they are read. What goes wrong on the
    way ends the object with a key `error`, and raises `Told`; what goes wrong before, is raised as it is, nothing written."""
    separator, closing = "{", ""
    try:
        for section in sections:
            click.echo(f"{separator}\n{json.dumps(section.name)}: ", nl=False)
            separator = ","
            if section.facts is not None:
                click.echo(json.dumps(section.facts), nl=False)
                continue
            click.echo("[", nl=False)
            closing = "]"
            for number, row in enumerate(section.rows):
                click.echo((",\n  " if number else "\n  ") + json.dumps(row), nl=False)
            click.echo(closing, nl=False)
            closing = ""
    except MdstoreError as error:
        if separator == "{":
            raise
        click.echo(f'{closing},\n"error": {json.dumps(explain(error))}\n}}')
        raise Told(error) from error
    click.echo("\n}" if separator == "," else "{}")


# -- plain text --------------------------------------------------------------------------------------------------------


def print_plain(sections: Iterator[Section]) -> None:
    """Titles, facts and columns, aligned, without escapes: for pipes and files."""
    for index, section in enumerate(sections):
        if index:
            click.echo()
        click.echo(section.name.replace("_", " "))
        if section.facts is not None:
            _print_facts(section.facts)
        else:
            _print_rows(section.rows)


def _print_facts(facts: Facts) -> None:
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        click.echo(f"  {name.replace('_', ' '):<{width}}  {_cell(value)}")


def _print_rows(all_rows: Iterable[Facts]) -> None:
    rows = iter(all_rows)
    first = list(islice(rows, _WIDTHS_FROM))
    if not first:
        click.echo("  (none)")
        return
    names = list(first[0])
    widths = [max(len(name), *(len(_cell(row.get(name))) for row in first)) for name in names]
    widths[-1] = 0
    titles = (f"{name.replace('_', ' '):<{width}}" for name, width in zip(names, widths, strict=True))
    click.echo("  " + "  ".join(titles).rstrip())
    for chunk in (iter(first), rows):
        for row in chunk:
            cells = (f"{_cell(row.get(name)):<{width}}" for name, width in zip(names, widths, strict=True))
            click.echo("  " + "  ".join(cells).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    text = "; ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= _CELL_MAX else text[: _CELL_MAX - 3] + "..."


# -- on a terminal -----------------------------------------------------------------------------------------------------


def print_drawn(sections: Iterator[Section]) -> None:
    """The same with rich: tables with lines, trees with branches."""
    from rich.console import Console

    console = Console(highlight=False)
    for section in sections:
        console.print(f"\n[bold]{section.name.replace('_', ' ')}[/]")
        if section.facts is not None:
            _draw_table(console, ({"": name.replace("_", " "), " ": value} for name, value in section.facts.items()))
        elif section.is_tree:
            _draw_tree(console, section.rows)
        else:
            _draw_table(console, section.rows)


def _draw_table(console: Console, all_rows: Iterable[Facts]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    rows = iter(all_rows)
    first = list(islice(rows, _DRAWN_MAX))
    if not first:
        console.print("  (none)")
        return
    if _width_needed(first) > console.width:
        _print_rows(chain(first, rows))
        return
    table = Table(box=box.SIMPLE_HEAD, show_header=any(name.strip() for name in first[0]), header_style="dim")
    for name in first[0]:
        is_number = all(isinstance(row.get(name), int) and not isinstance(row.get(name), bool) for row in first)
        table.add_column(name.replace("_", " "), justify="right" if is_number else "left", overflow="fold")
    for row in first:
        table.add_row(*(escape(_cell(row.get(name))) for name in first[0]))
    console.print(table)
    rest = next(rows, None)
    if rest is not None:
        console.print("  and further:")
        _print_rows(_chained(rest, rows))


def _width_needed(rows: list[Facts]) -> int:
    """Characters below which a drawn table becomes a stack of single letters."""
    longest = (max(len(name), *(len(_cell(row.get(name))) for row in rows)) for name in rows[0])
    return sum(min(width, _FOLDED_MIN) + 3 for width in longest)


def _draw_tree(console: Console, all_rows: Iterable[Facts]) -> None:
    """Rows with a `path` each, a directory before what is in it."""
    from rich.markup import escape
    from rich.tree import Tree as Branch

    rows = iter(all_rows)
    top = Branch("/")
    branches: dict[str, Tree] = {}
    for row in islice(rows, _DRAWN_MAX):
        above, _, name = str(row["path"]).rpartition("/")
        figures = ", ".join(f"{key} {_cell(value)}" for key, value in row.items() if key != "path" and value is not None)
        label = f"{escape(name)}  [dim]{escape(figures)}[/]"
        branches[str(row["path"])] = branches.get(above, top).add(label)
    console.print(top)
    rest = next(rows, None)
    if rest is not None:
        console.print("  and further:")
        _print_rows(_chained(rest, rows))


def _chained(first: Facts, rest: Iterator[Facts]) -> Iterator[Facts]:
    yield first
    yield from rest
