"""`mdstore dump`: an image's structures in words, or as JSON. Read with the second reader, so it needs no working engine."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

import click

from mdstore.errors import InvalidRequest, MdstoreError
from mdstore.tools.fsck import progress_display
from mdstore.tools.reader.check import Options, check_image
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.mds_views import inode_view, journal_view, tree_view
from mdstore.tools.reader.views import (
    Facts,
    Section,
    Source,
    collections_view,
    log_view,
    object_view,
    objects_view,
    page_view,
    superblock_view,
    trees_view,
)
from mdstore.tools.report.fsck_report import Mapper, map_sections, write_report

EXIT_OK: Final = 0
EXIT_USAGE: Final = 2
EXIT_DAMAGED: Final = 4
EXIT_FAILED: Final = 8
_WIDTHS_FROM: Final = 200  # rows looked at to choose the widths of the columns; the others stream
_CELL_MAX: Final = 100

View = Callable[..., Iterator[Section]]

# what: (arguments, view)
_VIEWS: Final[dict[str, tuple[str, View]]] = {
    "superblock": ("", superblock_view),
    "trees": ("", trees_view),
    "collections": ("", collections_view),
    "log": ("", log_view),
    "objects": ("", objects_view),
    "object": ("COLLECTION NAME", object_view),
    "page": ("N", page_view),
    "journal": ("", journal_view),
    "inode": ("INO", inode_view),
    "tree": ("PATH", tree_view),
}


@click.command("dump")
@click.argument("image")
@click.argument("what", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output, keys stable.")
@click.option("--map", "as_map", is_flag=True, help="Where in the image what lies, by kind.")
@click.option("--html", "html", type=click.Path(dir_okay=False), metavar="FILE", help="With --map: draw it, as a page.")
def dump_command(image: str, what: tuple[str, ...], as_json: bool, as_map: bool, html: str | None) -> None:
    """Show what IMAGE holds. Reads only; needs no lock and no working engine.

    \b
    WHAT is one of
      (nothing)               superblock, trees and collections
      superblock              the superblock and the state of its four copies
      trees | collections     the store's own trees; its collections
      log                     the store's log: head, entries after the checkpoint, tail
      objects                 all objects
      object COLLECTION NAME  onode, attributes, extents, map (0x... for names that are no text)
      page N                  the page at block N, decoded
      journal                 the metadata server's log: head, events, tail
      inode INO               one inode, logs applied
      tree PATH               a directory and everything below it

    \b
    Exit codes: 0 shown, 2 no such view, 4 damage was met on the way (said on standard error), 8 could not be shown.
    """
    if html and not as_map:
        raise click.UsageError("--html needs --map")
    if as_map:
        if what:
            raise click.UsageError("--map shows the whole image: no view goes with it")
        sys.exit(run_map(image, as_json=as_json, html=html))
    sys.exit(run_dump(image, what, as_json=as_json))


def run_map(path: str, *, as_json: bool = False, html: str | None = None) -> int:
    """Show what lies where; returns the exit code. `html`: where the picture goes."""
    mapper, started = Mapper(), time.monotonic()
    try:
        with progress_display() as progress:
            result = check_image(path, Options(watch=mapper.watch), mapper.problem, progress)
    except MdstoreError as error:
        click.echo(f"dump: {error}", err=True)
        return EXIT_FAILED
    if mapper.image_map is not None:
        (_print_json if as_json else _print_text)(map_sections(mapper.image_map))
    if html:
        write_report(html, path, result, time.monotonic() - started, mapper)
    if result.errors:
        click.echo(f"dump: {result.errors} errors were met; `mdstore fsck` says which", err=True)
    return EXIT_DAMAGED if result.errors else EXIT_OK


def run_dump(path: str, what: tuple[str, ...], *, as_json: bool = False) -> int:
    """Show and return the exit code."""
    try:
        with Image(path) as image:
            source = Source(image)
            sections = _sections(source, what)
            (_print_json if as_json else _print_text)(sections)
    except InvalidRequest as error:
        click.echo(f"dump: {error}", err=True)
        return EXIT_USAGE
    except MdstoreError as error:
        click.echo(f"dump: {error}", err=True)
        return EXIT_FAILED
    for problem in source.problems:
        if problem.severity != "note":
            click.echo(f"dump: {problem.as_line()}", err=True)
    return EXIT_DAMAGED if source.findings.errors else EXIT_OK


def _sections(source: Source, what: tuple[str, ...]) -> Iterator[Section]:
    if not what:
        for view in (superblock_view, trees_view, collections_view):
            yield from view(source)
        return
    if what[0] not in _VIEWS:
        raise InvalidRequest(f"no view {what[0]!r}; `mdstore dump --help` lists them")
    usage, view = _VIEWS[what[0]]
    if len(what) - 1 != len(usage.split()):
        raise InvalidRequest(f"usage: mdstore dump IMAGE {what[0]} {usage}".rstrip())
    yield from view(source, *what[1:])


# -- JSON --------------------------------------------------------------------------------------------------------------
def _print_json(sections: Iterator[Section]) -> None:
    """One object: a key for each section, an object or an array each; rows are written as they are read."""
    click.echo("{", nl=False)
    for index, section in enumerate(sections):
        click.echo(("," if index else "") + f"\n{json.dumps(section.name)}: ", nl=False)
        if section.facts is not None:
            click.echo(json.dumps(section.facts), nl=False)
            continue
        click.echo("[", nl=False)
        for number, row in enumerate(section.rows):
            click.echo((",\n  " if number else "\n  ") + json.dumps(row), nl=False)
        click.echo("]", nl=False)
    click.echo("\n}")


# -- text --------------------------------------------------------------------------------------------------------------
def _print_text(sections: Iterator[Section]) -> None:
    for index, section in enumerate(sections):
        if index:
            click.echo()
        click.echo(click.style(section.name.replace("_", " "), bold=True))
        if section.facts is not None:
            _print_facts(section.facts)
        else:
            _print_rows(iter(section.rows))


def _print_facts(facts: Facts) -> None:
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        click.echo(f"  {name.replace('_', ' '):<{width}}  {_cell(value)}")


def _print_rows(rows: Iterator[Facts]) -> None:
    """A table whose widths come from its first rows; the rest streams, so that memory does not grow with it."""
    first = list(islice(rows, _WIDTHS_FROM))
    if not first:
        click.echo("  (none)")
        return
    names = list(first[0])
    widths = [max(len(name), *(len(_cell(row.get(name))) for row in first)) for name in names]
    widths[-1] = 0
    click.echo(
        "  " + "  ".join(f"{name.replace('_', ' '):<{width}}" for name, width in zip(names, widths, strict=True))
    )
    for chunk in (iter(first), rows):
        for row in chunk:
            cells = (f"{_cell(row.get(name)):<{width}}" for name, width in zip(names, widths, strict=True))
            click.echo("  " + "  ".join(cells))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = (
        f"{value:,}"
        if isinstance(value, int)
        else "; ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
    )
    return text if len(text) <= _CELL_MAX else text[: _CELL_MAX - 3] + "..."
