"""`mdstore ls`, `tree`, `stat` and `cat`: look into an image without changing a byte of it."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, Final

import click

from mdstore.errors import MdstoreError, PosixError
from mdstore.mds.snapdir import SnapshotVfs
from mdstore.mds.vfs import SUPERUSER, Attr, Vfs
from mdstore.tools.images import image_argument, json_option, opened_names
from mdstore.tools.locate import image_path, opened_file, resolve
from mdstore.tools.output import (
    can_write,
    count_text,
    json_name,
    print_json,
    print_json_list,
    print_line,
    shown,
    size_text,
    time_text,
    type_word,
)
from mdstore.tools.unreadable import NO_NAME, UNREADABLE, Descent, LeftOut, Listed, SecondNames, listing

CHUNK: Final = 3 << 18  # bytes of a file held at once; a multiple of three, so that chunks of base64 join
PIECE: Final = 4096  # of a damaged file, read by itself
_NO_TARGET: Final = "its target cannot be read"
_UNKNOWN: Final = f"{'?' * 10} {'?':>3} {'?':>5} {'?':>5} {'?':>12} {'?':>19}"

path_argument = click.argument("path", default="/")


@click.command("ls")
@image_argument
@path_argument
@click.option("-l", "long", is_flag=True, help="Mode, links, owner, group, size and time of change as well.")
@json_option
def ls_command(image: str, path: str, long: bool, as_json: bool) -> int:
    """List the directory PATH (default: the root) of IMAGE, or the file it names.

    \b
    mdstore ls -l photos.img /2024
    mdstore ls photos.img --json | jq '.[].name'

    What cannot be read is named all the same, with question marks (--json: an object with `name` and `error`), a line on standard
    error that says why, and exit code 1. `tree`, `stat` and `cat` do likewise.
    """
    told = LeftOut()
    with opened_names(image, read_only=True) as vfs, SecondNames(image, vfs.snapshots) as names:
        top = image_path(path)
        listed = _listed(vfs, top, names)
        if as_json:
            print_json_list(_row(vfs, top, found, told) for found in listed)
        else:
            for found in listed:
                _print_listed(vfs, top, found, told, long=long)
    return told.exit_code


def _listed(vfs: Vfs, path: bytes, names: SecondNames) -> Iterator[Listed]:
    attr = resolve(vfs, path)
    if stat.S_ISDIR(attr.mode):
        return listing(vfs, attr.ino, names)
    return iter([Listed(path, resolve(vfs, path, follow=False))])


def _row(vfs: Vfs, directory: bytes, found: Listed, told: LeftOut) -> dict[str, Any]:
    """What --json says of one name: all that reads, and `error` where not all does."""
    if found.error is not None:
        return {"name": json_name(found.name) or None, "error": told.note_listed(directory, found)["error"]}
    try:
        return _described(vfs, found.name, found.attr)
    except UNREADABLE as error:
        note = told.note(directory.rstrip(b"/") + b"/" + found.name, error, _NO_TARGET)
        return _attributes(found.name, found.attr) | {"error": note["error"]}


def _print_listed(vfs: Vfs, directory: bytes, found: Listed, told: LeftOut, *, long: bool) -> None:
    if found.error is not None:
        if found.name != NO_NAME:
            print_line(f"{_UNKNOWN} {shown(found.name)}" if long else shown(found.name))
        told.note_listed(directory, found)
        return
    print_line(_long_line(found.name, found.attr, _arrow(vfs, directory, found, told)) if long else shown(found.name))


def _long_line(name: bytes, attr: Attr, target: str) -> str:
    device = stat.S_ISCHR(attr.mode) or stat.S_ISBLK(attr.mode)
    size = f"{os.major(attr.rdev)}, {os.minor(attr.rdev)}" if device else str(attr.size)
    when = time_text(attr.mtime_ns)[:19]
    return f"{stat.filemode(attr.mode)} {attr.nlink:>3} {attr.uid:>5} {attr.gid:>5} {size:>12} {when} {shown(name)}{target}"


def _arrow(vfs: Vfs, directory: bytes, found: Listed, told: LeftOut) -> str:
    """Where a symlink points to; nothing for anything else."""
    if not stat.S_ISLNK(found.attr.mode):
        return ""
    try:
        return f" -> {shown(vfs.readlink(found.attr.ino))}"
    except UNREADABLE as error:
        told.note(directory.rstrip(b"/") + b"/" + found.name, error, _NO_TARGET)
        return " -> ?"


@click.command("tree")
@image_argument
@path_argument
@click.option("-L", "--depth", type=click.IntRange(min=1), help="Levels to show.")
@json_option
def tree_command(image: str, path: str, depth: int | None, as_json: bool) -> int:
    """Show PATH (default: the root) of IMAGE and everything below it.

    \b
    mdstore tree photos.img /2024 -L 2

    With --json: one array, an object with `path` for each file and directory, in the order a walk meets them.
    """
    told = LeftOut()
    with opened_names(image, read_only=True) as vfs, SecondNames(image, vfs.snapshots) as names:
        top = image_path(path)
        walk = _walk(vfs, top, resolve(vfs, top), depth, names)
        if as_json:
            print_json_list({"path": json_name((above + b"/" + found.name).rstrip(b"/") or b"/")} | _row(vfs, above, found, told)
                            for above, found, _ in walk)  # fmt: skip
        else:
            _draw_tree(vfs, top, walk, told)
    return told.exit_code


_BRANCHES: Final = ("├── ", "└── ", "│   ")
_ASCII_BRANCHES: Final = ("|-- ", "`-- ", "|   ")
Walk = Iterator[tuple[bytes, Listed, str]]  # the directory's path, what is in it, and the branch drawn before its name


def _draw_tree(vfs: Vfs, top: bytes, walk: Walk, told: LeftOut) -> None:
    print_line(shown(top))
    directories = files = 0
    for above, found, margin in walk:
        if found.error is not None:
            print_line(f"{margin}{shown(found.name) or '...'}  (cannot be read)")
            told.note_listed(above, found)
            continue
        print_line(f"{margin}{shown(found.name)}{_arrow(vfs, above, found, told)}")
        directories += stat.S_ISDIR(found.attr.mode)
        files += not stat.S_ISDIR(found.attr.mode)
    unread = f", {told.count:,} cannot be read" if told.count else ""
    print_line(f"\n{count_text(directories, 'directory', 'directories')}, {count_text(files, 'file')}{unread}")


def _walk(vfs: Vfs, path: bytes, top: Attr, depth: int | None, names: SecondNames) -> Walk:
    """Everything below `top`, parents first."""
    if not stat.S_ISDIR(top.mode):
        return
    tee, bend, bar = _BRANCHES if can_write("".join(_BRANCHES)) else _ASCII_BRANCHES
    stack = [(path.rstrip(b"/"), "", _marking_last(listing(vfs, top.ino, names)))]
    descent = Descent(vfs, top.ino)
    while stack:
        above, margin, rest = stack[-1]
        found, last = next(rest, (None, True))
        if found is None:
            stack.pop()
            descent.leave()
            continue
        found = descent.looked_at(found)
        yield above, found, margin + (bend if last else tee)
        if found.error is None and stat.S_ISDIR(found.attr.mode) and (depth is None or len(stack) < depth):
            below = _marking_last(listing(vfs, found.attr.ino, names))
            descent.enter(found.attr.ino)
            stack.append((above + b"/" + found.name, margin + ("    " if last else bar), below))


def _marking_last(found: Iterator[Listed]) -> Iterator[tuple[Listed, bool]]:
    """Each entry, and whether it is the last one."""
    held = next(found, None)
    for entry in found:
        assert held is not None
        yield held, False
        held = entry
    if held is not None:
        yield held, True


@click.command("stat")
@image_argument
@click.argument("path", required=False)
@json_option
def stat_command(image: str, path: str | None, as_json: bool) -> int:
    """Show the attributes of PATH in IMAGE; without PATH, the figures of the whole image.

    \b
    mdstore stat photos.img
    mdstore stat photos.img /2024/may.jpg --json

    A symlink is described itself, not what it points to.
    """
    told = LeftOut()
    with opened_names(image, read_only=True) as vfs:
        if path is None:
            _show_figures(_figures(image, vfs), as_json=as_json)
            return told.exit_code
        name = image_path(path)
        found = Listed(name, resolve(vfs, name, follow=False))
        described = _row(vfs, name.rpartition(b"/")[0], found._replace(name=name.rpartition(b"/")[2]), told)
        described["name"] = json_name(name)
        try:
            described["xattrs"] = _xattrs(vfs, found.attr.ino)
        except UNREADABLE as error:
            described["error"] = told.note(name, error, "its attributes cannot be read")["error"]
    if as_json:
        print_json(described)
        return told.exit_code
    for key, value in described.items():
        if key != "error":
            print_line(f"{key:>12}  {time_text(value) + ' UTC' if key.endswith('_ns') else shown(str(value))}")
    return told.exit_code


def _described(vfs: Vfs, name: bytes, attr: Attr) -> dict[str, Any]:
    row = _attributes(name, attr)
    if stat.S_ISLNK(attr.mode):
        row["target"] = json_name(vfs.readlink(attr.ino))
    return row


def _attributes(name: bytes, attr: Attr) -> dict[str, Any]:
    row: dict[str, Any] = {"name": json_name(name), "type": type_word(attr.mode), "mode": f"{stat.S_IMODE(attr.mode):04o}"}
    row |= {key: getattr(attr, key) for key in ("ino", "nlink", "uid", "gid", "size", "blocks")}
    row |= {key: getattr(attr, key) for key in ("atime_ns", "mtime_ns", "ctime_ns")}
    if stat.S_ISCHR(attr.mode) or stat.S_ISBLK(attr.mode):
        row |= {"major": os.major(attr.rdev), "minor": os.minor(attr.rdev)}
    return row


def _xattrs(vfs: Vfs, ino: int) -> dict[str, str]:
    return {json_name(name): json_name(vfs.getxattr(SUPERUSER, ino, name)) for name in vfs.listxattr(ino)}


def _figures(image: str, vfs: SnapshotVfs) -> dict[str, Any]:
    space = vfs.statfs()
    return {
        "image": image,
        "size_bytes": space.blocks * space.block_size,
        "used_bytes": (space.blocks - space.blocks_free) * space.block_size,
        "free_bytes": space.blocks_available * space.block_size,
        "block_size": space.block_size,
        "files": space.files - space.files_free if space.files_free else space.files,
    }


def _show_figures(figures: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(figures)
        return
    for key, value in figures.items():
        print_line(f"{key.removesuffix('_bytes'):>12}  {size_text(value) if key.endswith('_bytes') else value}")


@click.command("cat")
@image_argument
@click.argument("paths", nargs=-1, required=True)
@json_option
def cat_command(image: str, paths: tuple[str, ...], as_json: bool) -> int:
    """Write the files PATHS of IMAGE to standard output, one after another.

    \b
    mdstore cat photos.img /2024/may.jpg > may.jpg

    With --json: an array with `path`, `size` and `base64`, the content, for each file. A damaged file is written up to what
    cannot be read; the line on standard error (--json: `error`) says why, the others follow, and the exit code is 1.
    """
    told = LeftOut()
    with opened_names(image, read_only=True) as vfs:
        files = [(image_path(path), _file_at(vfs, image_path(path))) for path in paths]
        for number, (path, found) in enumerate(files):
            if as_json:
                _write("[\n  " if number == 0 else ",\n  ")
                _write_json(vfs, path, found, told)
            else:
                _write_plain(vfs, path, found, told)
    if as_json:
        _write("\n]\n")
    sys.stdout.buffer.flush()
    return told.exit_code


def _write(text: str) -> None:
    sys.stdout.buffer.write(text.encode("ascii"))


def _write_plain(vfs: Vfs, path: bytes, found: Attr | MdstoreError, told: LeftOut) -> None:
    try:
        for piece in _content(vfs, _read_or_raise(found)):
            sys.stdout.buffer.write(piece)
    except UNREADABLE as error:
        sys.stdout.buffer.flush()
        told.note(path, error, "not written whole")


def _write_json(vfs: Vfs, path: bytes, found: Attr | MdstoreError, told: LeftOut) -> None:
    size = found.size if isinstance(found, Attr) else None
    _write(f'{{"path": {json.dumps(json_name(path))}, "size": {json.dumps(size)}, "base64": "')
    error: MdstoreError | None = None
    try:
        for piece in _content(vfs, _read_or_raise(found)):
            sys.stdout.buffer.write(b64encode(piece))
    except UNREADABLE as failure:
        error = failure
    _write('"')
    if error is not None:
        _write(f', "error": {json.dumps(told.note(path, error, "not written whole")["error"])}')
    _write("}")


def _read_or_raise(found: Attr | MdstoreError) -> Attr:
    if isinstance(found, MdstoreError):
        raise found
    return found


def _file_at(vfs: Vfs, path: bytes) -> Attr | MdstoreError:
    """The file, or why it cannot be read."""
    try:
        attr = resolve(vfs, path)
    except UNREADABLE as error:
        return error
    if not stat.S_ISREG(attr.mode):
        raise PosixError(errno.EISDIR if stat.S_ISDIR(attr.mode) else errno.EINVAL, path, "only files have bytes to show")
    return attr


def _content(vfs: Vfs, attr: Attr) -> Iterator[bytes]:
    """A file's bytes, a chunk at a time; up to the first that cannot be read, then its error."""
    with opened_file(vfs, attr.ino) as handle:
        offset = 0
        while True:
            try:
                data = vfs.read(handle, offset, CHUNK)
            except UNREADABLE:
                yield _before_damage(vfs, handle, offset)
                raise
            if not data:
                return
            yield data
            offset += len(data)


def _before_damage(vfs: Vfs, handle: int, offset: int) -> bytes:
    """What reads of a chunk before its damage."""
    found = bytearray()
    with suppress(*UNREADABLE):
        while len(found) < CHUNK and (piece := vfs.read(handle, offset + len(found), PIECE)):
            found += piece
    return bytes(found)
