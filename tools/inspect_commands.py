"""`mdstore inspect`: single structures, decoded by themselves with the second reader."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any, Final

import click

from mdstore.errors import CorruptionError, NotAnImage, UnsupportedFormat
from mdstore.tools.images import SIZE_MAX, json_option
from mdstore.tools.output import CommandFailed, print_json, print_line, shown
from mdstore.tools.reader.decode_one import STRUCTURES, TREES, Context, decode_one
from mdstore.tools.reader.views import as_bytes

EXIT_DAMAGED: Final = 4
LENGTH_MAX: Final = 64 << 20  # of one structure


@click.group("inspect")
def inspect() -> None:
    """Look at structures one by one.

    \b
    mdstore inspect types
    mdstore inspect decode superblock photos.img
    mdstore inspect decode page photos.img --offset 0x64000 --length 4096 --tree objects
    """


@inspect.command("types")
@json_option
def types_command(as_json: bool) -> None:
    """List what `decode` knows.

    \b
    mdstore inspect types
    """
    if as_json:
        print_json([{"type": name, "about": structure.about} for name, structure in STRUCTURES.items()])
        return
    for name, structure in STRUCTURES.items():
        print_line(f"{name:<13} {structure.about}")


@inspect.command("decode")
@click.argument("structure", metavar="TYPE", type=click.Choice(list(STRUCTURES)))
@click.argument("file", type=click.Path(allow_dash=True))
@click.option("--offset", default="0", show_default=True, help="Where it begins in FILE, in bytes (0x... for hex).")
@click.option("--length", help="How many bytes it has [to the end of FILE].")
@click.option("--tree", type=click.Choice(list(TREES)), default="map", show_default=True, help="page: of which tree.")
@click.option("--key", default="", help="extent, floor, snapshot: its key (text, or 0x... in hex).")
@click.option("--kind", type=int, default=1, show_default=True, help="event: its type.")
@click.option("--ino", type=int, default=0, help="backtrace: the file's number.")
@json_option
def decode_command(
    structure: str, file: str, offset: str, length: str | None, as_json: bool, tree: str, key: str, kind: int, ino: int
) -> None:
    """Decode one structure from the bytes of FILE (an image, or a piece of one; `-` for standard input).

    \b
    mdstore inspect decode superblock photos.img
    mdstore inspect decode page photos.img --offset 0x8000 --length 4096 --json

    Exit code 4 when it is damaged, with what is wrong.
    """
    start, count = _number(offset, "--offset"), LENGTH_MAX if length is None else _number(length, "--length")
    with _opened(file) as opened:
        if opened.seekable():
            opened.seek(start)
        else:
            opened.read(start)
        data = opened.read(min(count, LENGTH_MAX))
    if not data and count:
        raise CommandFailed(f"{shown(file)} ends before byte {start}")
    try:
        value = decode_one(structure, data, Context(tree, as_bytes(key), kind, ino))
    except (CorruptionError, NotAnImage, UnsupportedFormat) as error:
        raise CommandFailed(f"no {structure} in {len(data)} bytes from {start} on: {error}", EXIT_DAMAGED) from error
    if as_json:
        print_json(value)
    else:
        _print(value, "")


@contextmanager
def _opened(path: str) -> Iterator[IO[bytes]]:
    """The bytes at `path`, or standard input. Waits for nobody: what is neither a file nor a block device is refused."""
    if path == "-":
        yield sys.stdin.buffer
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)))
        except OSError as error:
            raise click.BadParameter(f"{shown(path)}: {error.strerror}", param_hint="FILE") from error
        mode = os.fstat(file.fileno()).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise CommandFailed(f"{shown(path)} is neither a file nor a block device; `-` reads standard input")
        yield file


def _number(text: str, option: str) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not 0 <= number <= SIZE_MAX:
        raise click.BadParameter(f"{text!r} is no number of bytes in a file", param_hint=option)
    return number


def _print(value: Any, indent: str) -> None:
    """Nested values, a line each."""
    rows = value.items() if isinstance(value, dict) else enumerate(value)
    for name, item in rows:
        if isinstance(item, dict | list) and item and not _is_short(item):
            print_line(f"{indent}{name}:")
            _print(item, indent + "  ")
        else:
            print_line(f"{indent}{name}: {_text(item)}")


def _is_short(item: Any) -> bool:
    return isinstance(item, list) and len(item) <= 4 and not any(isinstance(part, dict | list) for part in item)


def _text(item: Any) -> str:
    if isinstance(item, list):
        return ", ".join(map(str, item)) or "(none)"
    return "(none)" if item in (None, {}) else str(item)
