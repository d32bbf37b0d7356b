"""`mdstore fsck`: check an image and say everything that is wrong with it. Never writes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import click

from mdstore.errors import MdstoreError
from mdstore.tools.output import count_text, counted_text, explain
from mdstore.tools.reader.check import DEEP, NORMAL, QUICK, Options, Progress, Result, check_image
from mdstore.tools.reader.problems import Problem
from mdstore.tools.reader.views import as_bytes
from mdstore.tools.report.fsck_report import Mapper, refuse_to_overwrite, write_report

EXIT_CLEAN: Final = 0
EXIT_ERRORS: Final = 4
EXIT_FAILED: Final = 8


@click.command("fsck")
@click.argument("image")
@click.option("--quick", is_flag=True, help="Superblocks and log only; of a --snapshot, the ways into its trees.")
@click.option("--deep", is_flag=True, help="All metadata, and every data block against its checksum.")
@click.option(
    "--sample",
    type=click.FloatRange(0, 100),
    default=100.0,
    metavar="N",
    help="With --deep: N percent of the data extents.",
)
@click.option("--seed", type=int, default=0, help="Which extents --sample takes.")
@click.option(
    "--snapshot",
    metavar="NAME",
    help="This snapshot of the store and nothing else; IMAGE may be mounted: what a snapshot keeps does not change.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@click.option("--html", "html", type=click.Path(dir_okay=False), metavar="FILE", help="Write a page with a map as well.")
def fsck_command(
    image: str, quick: bool, deep: bool, sample: float, seed: int, snapshot: str | None, as_json: bool, html: str | None
) -> None:
    """Check IMAGE and report every problem: what, where, what follows from it, what to do.

    \b
    mdstore fsck photos.img
    mdstore fsck photos.img --deep --html photos.html

    Reads only; works on an image that was not closed (its logs are replayed in memory). Snapshots of the store are checked with
    it; with --snapshot one of them alone, also while another process has the image open.

    \b
    Exit codes: 0 clean (warnings and notes do not count), 4 errors, 8 could not check
    (not an image, no permission, unknown format).
    """
    if not 0 <= sample <= 100:  # what is no number passes click's range
        raise click.UsageError(f"--sample {sample}: write a number from 0 to 100")
    if quick and deep:
        raise click.UsageError("--quick and --deep do not go together: the one reads little, the other everything")
    if sample != 100 and not deep:
        raise click.UsageError("--sample is a part of the data that --deep reads: it needs --deep")
    wanted = None if snapshot is None else as_bytes(snapshot)
    level = DEEP if deep else QUICK if quick else NORMAL
    options = Options(level, sample / 100, seed, wanted)
    sys.exit(run_fsck(image, options, as_json=as_json, html=html))


def run_fsck(image: str, options: Options, *, as_json: bool = False, html: str | None = None) -> int:
    """Check and print; returns the exit code. `html`: where a page with a map of the image goes."""
    front: _Front = _JsonFront() if as_json else _TextFront()
    mapper = Mapper()

    def problem(found: Problem) -> None:
        front.problem(found)
        mapper.problem(found)

    started = time.monotonic()
    try:
        refuse_to_overwrite(image, html)
        with progress_display() as progress:
            watched = replace(options, watch=mapper.watch) if html else options
            result = check_image(image, watched, problem if html else front.problem, progress)
        seconds = time.monotonic() - started
        if html:
            write_report(html, image, result, seconds, mapper)
        front.finished(image, result, seconds)
    except BrokenPipeError:
        raise
    except (MdstoreError, OSError) as error:
        front.failed(image, error)
        return EXIT_FAILED
    return EXIT_ERRORS if result.errors else EXIT_CLEAN


class _TextFront:
    """One line for each problem, one for the sum."""

    def problem(self, problem: Problem) -> None:
        click.echo(problem.as_line())

    def failed(self, image: str, error: Exception) -> None:
        click.echo(f"fsck: {explain(error)}", err=True)

    def finished(self, image: str, result: Result, seconds: float) -> None:
        state = "clean" if not result.errors else count_text(result.errors, "error")
        rest = "".join(
            f", {count_text(result.severities[name], name)}" for name in ("warning", "note") if result.severities.get(name)
        )
        counts = ", ".join(counted_text(value, name.replace("_", " ")) for name, value in result.counts.items() if value)
        click.echo(
            f"{image}: {state}{rest}; epoch {result.epoch}; {counts or 'nothing'}; {seconds:.2f} s ({result.level} check)"
        )


class _JsonFront:
    """One document, written as the problems come, so that memory does not grow with damage."""

    def __init__(self) -> None:
        self._count = 0

    def problem(self, problem: Problem) -> None:
        click.echo(("," if self._count else '{"problems": [') + "\n  " + json.dumps(problem.as_json()), nl=False)
        self._count += 1

    def failed(self, image: str, error: Exception) -> None:
        self._close({"image": image, "status": "failed", "error": str(error), "error_kind": type(error).__name__})

    def finished(self, image: str, result: Result, seconds: float) -> None:
        self._close(
            {
                "image": image,
                "status": "errors" if result.errors else "clean",
                "level": result.level,
                "size": result.size,
                "epoch": result.epoch,
                "closed_in_order": result.is_clean,
                "counts": result.counts,
                "severities": {name: result.severities.get(name, 0) for name in ("error", "warning", "note")},
                "codes": result.codes,
                "seconds": round(seconds, 3),
            }
        )

    def _close(self, fields: dict[str, object]) -> None:
        start = "\n]" if self._count else '{"problems": []'
        click.echo(f"{start}, {json.dumps(fields)[1:]}")


_Front = _TextFront | _JsonFront


@contextmanager
def progress_display() -> Iterator[Progress]:
    """A progress display on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Display

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Display(*columns, console=Console(stderr=True), transient=True) as display:
        yield _shown_on(display)


def _shown_on(display: object) -> Callable[[str, int, int], None]:
    from rich.progress import Progress as Display

    assert isinstance(display, Display)
    tasks: dict[str, object] = {}

    def show(phase: str, done: int, total: int) -> None:
        if phase not in tasks:
            tasks[phase] = display.add_task(phase, total=total or None)
        display.update(tasks[phase], completed=done)  # type: ignore[arg-type]

    return show
