"""`mdstore damage` and `mdstore scrub`: what was found broken, looking for more, putting right what can be."""

from __future__ import annotations

import os
import sys
from typing import Any, Final

import click

from mdstore.tools.images import image_argument, json_option
from mdstore.tools.output import EXIT_FAILED, EXIT_OK, CommandFailed, count_text, print_json, print_line, shown
from mdstore.tools.reach import damage_of, forget_damage, reached, stop_scrub

EXIT_PROBLEMS: Final = 4  # as fsck's: something is wrong and stays so


@click.group("damage")
def damage_group() -> None:
    """The list of what a name space found broken: it answers EIO there, and works everywhere else.

    IMAGE may be mounted, and may be the directory it is mounted at; root asks the server then.
    """


@damage_group.command("list")
@image_argument
@json_option
def list_command(image: str, as_json: bool) -> int:
    """Show what was found broken and not forgotten since.

    \b
    mdstore damage list photos.img
    """
    with reached(image, read_only=True) as space:
        rows, more = damage_of(space)
    if as_json:
        print_json({"damage": rows, "more": more})
        return EXIT_OK
    for row in rows:
        print_line(f"directory {row['directory']}  {shown(row['name']) or '(all of it)'}  {shown(row['message'])}")
    if more:
        print_line(f"and {more} more")
    elif not rows:
        print_line("nothing was found broken")
    return EXIT_OK


@damage_group.command("forget")
@image_argument
@click.argument("directory", type=click.IntRange(0, (1 << 64) - 1))
@click.argument("name", default="")
@json_option
def forget_command(image: str, directory: int, name: str, as_json: bool) -> int:
    """Drop one row of the list: DIRECTORY is a number and NAME an entry in it, as `list` shows them. Repairs nothing.

    \b
    mdstore damage forget photos.img 17 holiday.jpg
    """
    with reached(image, read_only=False) as space:
        forget_damage(space, directory, os.fsencode(name))
    if as_json:
        print_json({"forgotten": {"directory": directory, "name": name}})
    return EXIT_OK


@click.command("scrub")
@image_argument
@click.option("--repair", is_flag=True, help="Set right wrong statistics, link counts, links, parents and backtraces.")
@click.option("--stop", is_flag=True, help="End the scrub of a mounted image, if one is running.")
@click.option("--status", is_flag=True, help="Show the running scrub, or the last one, and start none.")
@json_option
def scrub_command(image: str, repair: bool, stop: bool, status: bool, as_json: bool) -> int:
    """Check the name space against itself: counts, statistics, links, parents, backtraces.

    \b
    mdstore scrub photos.img
    mdstore scrub /mnt --repair

    IMAGE may be mounted, and may be the directory it is mounted at: then its server does it beside everything else, slowly,
    and goes on when this command is interrupted. Where it is not mounted, nothing is written without --repair. `mdstore fsck`
    looks deeper, at every structure, but only at rest.

    Exit codes: 0 nothing wrong is left, 4 something is, 1 it could not go on.
    """
    if stop + status + repair > 1:
        raise click.UsageError("--stop, --status and --repair do not go together")
    if stop or status:
        with reached(image, read_only=True) as space:
            stopped = stop and stop_scrub(space)
            found = space.ask(b"mdstore.scrub")
        if stop and not stopped and not as_json:
            print_line("no scrub is running")
        _show(found, as_json=as_json)
        return EXIT_OK
    told = _Progress()
    with reached(image, read_only=not repair) as space:
        found = space.scrub(told.show, repair=repair)
    told.end()
    _show(found, as_json=as_json)
    if found["state"] != "finished":
        raise CommandFailed(f"the scrub {found['state']}: {found.get('error') or 'somebody stopped it'}", EXIT_FAILED)
    return EXIT_PROBLEMS if found["problems"] > found["repaired"] else EXIT_OK


class _Progress:
    """One line on a terminal, overwritten; nothing elsewhere."""

    def __init__(self) -> None:
        self._shown = False

    def show(self, status: dict[str, Any]) -> None:
        if sys.stderr.isatty():
            self._shown = True
            done, left = status["directories"], status["directories_known"] - status["directories"]
            sys.stderr.write(f"\r{done:,} directories, {status['entries']:,} entries; {left:,} to look at \x1b[K")
            sys.stderr.flush()

    def end(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")


def _show(status: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(status)
        return
    if status["state"] == "none":
        last = status["last"]
        if last is None:
            print_line("never scrubbed")
        else:
            print_line(f"last scrub: {count_text(last['entries'], 'entry', 'entries')}, "
                       f"{count_text(last['problems'], 'problem')}, {last['repaired']:,} repaired")  # fmt: skip
        return
    for problem in status["first_problems"]:
        done = "repaired" if problem["repaired"] else "left"
        print_line(f"{problem['check']}  inode {problem['ino']}  {shown(problem['message'])}  ({done})")
    unseen = status["problems"] - len(status["first_problems"])
    if unseen:
        print_line(f"and {unseen} more")
    print_line(
        f"{status['state']}: {count_text(status['directories'], 'directory', 'directories')}, "
        f"{count_text(status['entries'], 'entry', 'entries')}, {count_text(status['problems'], 'problem')}, "
        f"{status['repaired']:,} repaired"
    )
