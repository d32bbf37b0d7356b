"""`mdstore dump`: an image's structures in words, or as JSON. Read with the second reader, so it needs no working engine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Final

import click

from mdstore.errors import CorruptionError, InvalidRequest, MdstoreError
from mdstore.tools.fsck import progress_display
from mdstore.tools.output import Told, count_text, print_json_failure
from mdstore.tools.present import printer
from mdstore.tools.reader.check import Options, check_image
from mdstore.tools.reader.dump_lines import DumpHeader, encode_dump
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.mds_views import inode_view, journal_view, tree_view
from mdstore.tools.reader.views import (
    Section,
    Source,
    collections_view,
    floors_view,
    log_view,
    object_view,
    objects_view,
    page_view,
    raw_view,
    snapshots_view,
    superblock_view,
    trees_view,
)
from mdstore.tools.reader.whole import stream_of
from mdstore.tools.report.fsck_report import Mapper, map_sections, refuse_to_overwrite, write_report

EXIT_OK: Final = 0
EXIT_USAGE: Final = 2
EXIT_DAMAGED: Final = 4
EXIT_FAILED: Final = 8

View = Callable[..., Iterator[Section]]

# what: (arguments, view)
_VIEWS: Final[dict[str, tuple[str, View]]] = {
    "superblock": ("", superblock_view),
    "trees": ("", trees_view),
    "collections": ("", collections_view),
    "snapshots": ("", snapshots_view),
    "log": ("", log_view),
    "objects": ("", objects_view),
    "object": ("COLLECTION NAME", object_view),
    "page": ("N", page_view),
    "raw": ("N", raw_view),
    "floors": ("", floors_view),
    "journal": ("", journal_view),
    "inode": ("INO", inode_view),
    "tree": ("PATH", tree_view),
}


@click.command("dump")
@click.argument("image")
@click.argument("what", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output, keys stable.")
@click.option("--all", "as_lines", is_flag=True, help="Everything, as lines that `mdstore load` makes an image of.")
@click.option("--snapshot", metavar="NAME", help="With --all: what a snapshot of the store knows.")
@click.option("--map", "as_map", is_flag=True, help="Where in the image what lies, by kind.")
@click.option("--html", "html", type=click.Path(dir_okay=False), metavar="FILE", help="With --map: draw it, as a page.")
def dump_command(
    image: str, what: tuple[str, ...], as_json: bool, as_lines: bool, snapshot: str | None, as_map: bool, html: str | None
) -> None:
    """Show what IMAGE holds. Reads only; needs no lock and no working engine.

    \b
    WHAT is one of
      (nothing)               superblock, trees and collections
      superblock              the superblock and the state of its four copies
      trees | collections     the store's own trees; its collections
      snapshots               snapshots of the store, and the blocks that only they hold
      log                     the store's log: head, entries after the checkpoint, tail
      objects                 all objects
      object COLLECTION NAME  onode, attributes, extents, map (0x... for names that are no text)
      page N                  the page at block N, decoded
      raw N                   the bytes of block N
      floors                  the lowest epochs that writers must carry
      journal                 the metadata server's log: head, events, tail
      inode INO               one inode, logs applied
      tree PATH               a directory and everything below it

    \b
    `mdstore dump --all IMAGE` writes every object as JSON lines (docs/format/dump.md), the same for the same content; it ends at
    the first damage, and a dump that was cut short is not loaded (`mdstore recover` reads around damage).

    \b
    Exit codes: 0 shown, 2 no such view, 4 damage was met on the way (said on standard error), 8 could not be shown.
    """
    if snapshot is not None and not as_lines:
        raise click.UsageError("--snapshot needs --all")
    if as_lines:
        if what or as_map or as_json:
            raise click.UsageError("--all shows everything, as lines of JSON: neither a view nor --json goes with it")
        sys.exit(run_dump_all(image, snapshot))
    if html and not as_map:
        raise click.UsageError("--html needs --map")
    if as_map:
        if what:
            raise click.UsageError("--map shows the whole image: no view goes with it")
        sys.exit(run_map(image, as_json=as_json, html=html))
    sys.exit(run_dump(image, what, as_json=as_json))


def run_dump_all(path: str, snapshot: str | None = None) -> int:
    """Write every object to standard output; returns the exit code."""
    write = sys.stdout.buffer.write
    try:
        with Image(path) as image:
            stream = stream_of(image, snapshot)
            for line in encode_dump(DumpHeader(image.size, stream.block_size, stream.log_bytes), stream.records()):
                write(line)
    except CorruptionError as error:
        click.echo(f"dump: {error}; `mdstore recover` saves what still reads", err=True)
        return EXIT_DAMAGED
    except MdstoreError as error:
        click.echo(f"dump: {error}", err=True)
        return EXIT_FAILED
    return EXIT_OK


def run_map(path: str, *, as_json: bool = False, html: str | None = None) -> int:
    """Show what lies where; returns the exit code. `html`: where the picture goes."""
    mapper, started = Mapper(), time.monotonic()
    try:
        refuse_to_overwrite(path, html)
        with progress_display() as progress:
            result = check_image(path, Options(watch=mapper.watch), mapper.problem, progress)
    except MdstoreError as error:
        return _failed(error, as_json=as_json, code=EXIT_FAILED)
    if html:
        write_report(html, path, result, time.monotonic() - started, mapper)
    if mapper.image_map is not None:
        printer(as_json=as_json)(map_sections(mapper.image_map))
    if result.errors:
        click.echo(f"dump: met {count_text(result.errors, 'error')}; `mdstore fsck` says which", err=True)
    return EXIT_DAMAGED if result.errors else EXIT_OK


def run_dump(path: str, what: tuple[str, ...], *, as_json: bool = False) -> int:
    """Show and return the exit code."""
    try:
        with Image(path) as image:
            source = Source(image)
            sections = _sections(source, what)
            printer(as_json=as_json)(sections)
    except Told as told:
        return _failed(told.cause, as_json=False)
    except MdstoreError as error:
        return _failed(error, as_json=as_json)
    for problem in source.problems:
        if problem.severity != "note":
            click.echo(f"dump: {problem.as_line()}", err=True)
    return EXIT_DAMAGED if source.findings.errors else EXIT_OK


def _failed(error: Exception, *, as_json: bool, code: int | None = None) -> int:
    if code is None:
        codes = ((InvalidRequest, EXIT_USAGE), (CorruptionError, EXIT_DAMAGED))
        code = next((code for kind, code in codes if isinstance(error, kind)), EXIT_FAILED)
    if as_json:
        print_json_failure(str(error), code)
    click.echo(f"dump: {error}", err=True)
    return code


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
