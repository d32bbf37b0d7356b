"""`mdstore import` and `mdstore export`: whole trees into an image and out of it."""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import click

from mdstore.mds.vfs import Vfs
from mdstore.tools.export_tree import Exporter
from mdstore.tools.images import image_argument, json_option, opened_image, opened_names
from mdstore.tools.import_entry import Imported
from mdstore.tools.import_tree import Acknowledger, Importer
from mdstore.tools.locate import image_path, make_directories, resolve
from mdstore.tools.output import (
    EXIT_FAILED,
    EXIT_OK,
    CommandFailed,
    complain,
    count_text,
    duration_text,
    print_json,
    print_line,
    progress,
    shown,
    size_text,
)
from mdstore.tools.unreadable import SecondNames


@click.command("import")
@image_argument
@click.argument("directory", type=click.Path(readable=False))
@click.option("--to", "to", default="/", show_default=True, metavar="PATH", help="Directory of the image; made if missing.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out names that match, such as '*.o'. Repeatable.")
@click.option("--ack", metavar="FILE", help="Append each path to FILE once it is durable ('-': standard output).")
@json_option
def import_command(image: str, directory: str, to: str, exclude: tuple[str, ...], ack: str | None, as_json: bool) -> int:
    """Copy everything in DIRECTORY into IMAGE, under --to (default: its root).

    \b
    mdstore import photos.img ~/Pictures
    mdstore import photos.img ~/Pictures --to /2024 --exclude '*.tmp'

    Modes, owners, times, symlinks, hard links, FIFOs, devices, holes and the attributes user.* come along. A run that was
    stopped, even by kill -9 or a power failure, is completed by running it again: files that are complete (same type, size
    and time of change) are passed by. Everything is durable when the command is done; --ack tells as it goes: a JSON string
    for each path, written only after the path was flushed to the medium.

    What cannot be read is named and left out; the exit code is 1 then.
    """
    if not os.path.isdir(directory):
        what = "is not a directory" if os.path.lexists(directory) else "does not exist"
        raise CommandFailed(f"{shown(directory)} {what}; name the directory to import")
    started = time.monotonic()
    os.listdir(directory)  # a source that cannot be read is said before the image is touched
    with _acknowledgements(ack) as out, opened_image(image, read_only=False) as vfs:
        done = import_tree(vfs, image, directory, to, exclude, out, quiet=as_json)
        vfs.purge_all()  # what a run before this one had left half made
    took = time.monotonic() - started
    if as_json:
        print_json({"image": image, "source": directory, "to": to, "seconds": round(took, 3)} | done.as_row())
    else:
        print_line(_import_summary(done, took))
    return EXIT_FAILED if done.troubles else EXIT_OK


def import_tree(
    vfs: Vfs, image: str, directory: str, to: str, exclude: tuple[str, ...], out: TextIO | None, *, quiet: bool
) -> Imported:
    """What `mdstore import` does once the image is open."""
    target = make_directories(vfs, image_path(to))
    status = os.stat(image)
    acknowledger = Acknowledger(vfs.syncfs, out, time.monotonic) if out is not None else None
    with progress("importing", quiet=quiet or out is sys.stdout) as bar:
        importer = Importer(
            vfs, os.fsencode(directory), exclude=tuple(map(os.fsencode, exclude)), avoid=(status.st_dev, status.st_ino),
            acknowledger=acknowledger, progress=bar, complain=complain,
        )  # fmt: skip
        return importer.run(target)


@contextmanager
def _acknowledgements(ack: str | None) -> Iterator[TextIO | None]:
    if ack is None or ack == "-":
        yield sys.stdout if ack else None
        return
    with open(ack, "a", encoding="ascii") as out:
        yield out


def _import_summary(done: Imported, seconds: float) -> str:
    made = [count_text(done.files, "file"), count_text(done.directories, "directory", "directories")]
    made += [count_text(number, word) for number, word in
             ((done.symlinks, "symlink"), (done.links, "hard link"), (done.specials, "special file")) if number]  # fmt: skip
    made.append(size_text(done.bytes))
    kept = f"; {count_text(done.skipped, 'file')} complete already" if done.skipped else ""
    return f"{', '.join(made)} in {duration_text(seconds)}{kept}"


@click.command("export")
@image_argument
@click.argument("path")
@click.argument("directory", type=click.Path(readable=False))
@click.option("--force", is_flag=True, help="Replace files that are in the way, and fill directories up.")
@click.option("--partial", is_flag=True, help="Write damaged files, too, with zeros for what cannot be read.")
@json_option
def export_command(image: str, path: str, directory: str, force: bool, partial: bool, as_json: bool) -> int:
    """Copy PATH of IMAGE out: a directory becomes DIRECTORY, a file goes into DIRECTORY under its own name.

    \b
    mdstore export photos.img / ~/restored
    mdstore export photos.img /2024/may.jpg . --force

    Content, modes, times (to the nanosecond), links, holes and attributes user.* are restored; owners and devices too when
    run as root. DIRECTORY must not exist yet, or be empty, unless --force is given. The image is not changed.

    Of a damaged image everything comes that reads: what does not is named and left out, and the exit code is 1. With --partial a
    file that cannot be read whole is written all the same; the line names the bytes that are zeros instead.
    """
    started = time.monotonic()
    with opened_names(image, read_only=True) as vfs, SecondNames(image, vfs.snapshots) as names:
        name = image_path(path)
        source = resolve(vfs, name)
        target = _export_target(name, directory, is_directory=stat.S_ISDIR(source.mode), force=force)
        with progress("exporting", quiet=as_json) as bar:
            exporter = Exporter(
                vfs, replace=force, superuser=os.geteuid() == 0, progress=bar, complain=complain, partial=partial, names=names
            )
            done = exporter.run(source, target, name)
    took = time.monotonic() - started
    if as_json:
        print_json({"image": image, "path": path, "target": directory, "seconds": round(took, 3)} | done.as_row())
    else:
        print_line(f"{count_text(done.files, 'file')}, {count_text(done.directories, 'directory', 'directories')}, "
                   f"{size_text(done.bytes)} in {duration_text(took)}")  # fmt: skip
    return EXIT_FAILED if done.troubles else EXIT_OK


def _export_target(path: bytes, directory: str, *, is_directory: bool, force: bool) -> bytes:
    """Where the export goes, once it is known that nothing would be overwritten unasked."""
    target = os.fsencode(directory)
    if not is_directory:
        if not os.path.isdir(target):
            raise CommandFailed(f"{shown(directory)} is not a directory; make it, or name one that exists")
        target = os.path.join(target, path.rpartition(b"/")[2])
        if os.path.lexists(target) and not force:
            raise CommandFailed(f"{shown(target)} exists already; --force replaces it")
    elif os.path.lexists(target):
        if not os.path.isdir(target):
            raise CommandFailed(f"{shown(directory)} exists and is not a directory; name another place")
        if os.listdir(target) and not force:
            raise CommandFailed(f"{shown(directory)} is not empty; --force replaces files in it, or name another place")
    return target
