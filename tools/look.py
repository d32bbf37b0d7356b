"""`mdstore ls`, `tree`, `stat` and `cat`: look into an image without changing a byte of it."""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from base64 import b64encode
from collections.abc import Iterator
from typing import Any, Final

import click

from mdstore.errors import PosixError
from mdstore.mds.snapdir import SnapshotVfs
from mdstore.mds.vfs import SUPERUSER, Attr, DirEntry, Vfs
from mdstore.tools.images import image_argument, json_option, opened_names
from mdstore.tools.locate import entries, image_path, opened_file, resolve
from mdstore.tools.output import (
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

CHUNK: Final = 3 << 18  # bytes of a file held at once; a multiple of three, so that chunks of base64 join

path_argument = click.argument("path", default="/")


@click.command("ls")
@image_argument
@path_argument
@click.option("-l", "long", is_flag=True, help="Mode, links, owner, group, size and time of change as well.")
@json_option
def ls_command(image: str, path: str, long: bool, as_json: bool) -> None:
    """List the directory PATH (default: the root) of IMAGE, or the file it names.

    \b
    mdstore ls -l photos.img /2024
    mdstore ls photos.img --json | jq '.[].name'
    """
    with opened_names(image, read_only=True) as vfs:
        listed = _listed(vfs, image_path(path))
        if as_json:
            print_json_list(_described(vfs, name, attr) for name, attr in listed)
            return
        for name, attr in listed:
            print_line(_long_line(vfs, name, attr) if long else shown(name))


def _listed(vfs: Vfs, path: bytes) -> Iterator[DirEntry]:
    attr = resolve(vfs, path)
    if stat.S_ISDIR(attr.mode):
        return entries(vfs, attr.ino)
    return iter([DirEntry(path, resolve(vfs, path, follow=False))])


def _long_line(vfs: Vfs, name: bytes, attr: Attr) -> str:
    device = stat.S_ISCHR(attr.mode) or stat.S_ISBLK(attr.mode)
    size = f"{os.major(attr.rdev)}, {os.minor(attr.rdev)}" if device else str(attr.size)
    target = f" -> {shown(vfs.readlink(attr.ino))}" if stat.S_ISLNK(attr.mode) else ""
    when = time_text(attr.mtime_ns)[:19]
    return f"{stat.filemode(attr.mode)} {attr.nlink:>3} {attr.uid:>5} {attr.gid:>5} {size:>12} {when} {shown(name)}{target}"


@click.command("tree")
@image_argument
@path_argument
@click.option("-L", "--depth", type=click.IntRange(min=1), help="Levels to show.")
@json_option
def tree_command(image: str, path: str, depth: int | None, as_json: bool) -> None:
    """Show PATH (default: the root) of IMAGE and everything below it.

    \b
    mdstore tree photos.img /2024 -L 2

    With --json: one array, an object with `path` for each file and directory, in the order a walk meets them.
    """
    with opened_names(image, read_only=True) as vfs:
        top = image_path(path)
        attr = resolve(vfs, top)
        if as_json:
            print_json_list({"path": json_name(top.rstrip(b"/") + b"/" + name)} | _described(vfs, name.rpartition(b"/")[2], it)
                            for name, it, _ in _walk(vfs, attr, depth))  # fmt: skip
            return
        _draw_tree(vfs, top, attr, depth)


def _draw_tree(vfs: Vfs, top: bytes, attr: Attr, depth: int | None) -> None:
    print_line(shown(top))
    directories = files = 0
    for name, it, margin in _walk(vfs, attr, depth):
        target = f" -> {shown(vfs.readlink(it.ino))}" if stat.S_ISLNK(it.mode) else ""
        print_line(f"{margin}{shown(name.rpartition(b'/')[2])}{target}")
        directories += stat.S_ISDIR(it.mode)
        files += not stat.S_ISDIR(it.mode)
    print_line(f"\n{count_text(directories, 'directory', 'directories')}, {count_text(files, 'file')}")


def _walk(vfs: Vfs, top: Attr, depth: int | None) -> Iterator[tuple[bytes, Attr, str]]:
    """Everything below `top`, parents first: the path under it, the attributes, and the branch drawn before its name."""
    if not stat.S_ISDIR(top.mode):
        return
    stack = [(b"", "", _marking_last(entries(vfs, top.ino)))]
    while stack:
        path, margin, rest = stack[-1]
        entry, last = next(rest, (None, True))
        if entry is None:
            stack.pop()
            continue
        below = path + entry.name
        yield below, entry.attr, margin + ("└── " if last else "├── ")
        if stat.S_ISDIR(entry.attr.mode) and (depth is None or len(stack) < depth):
            stack.append((below + b"/", margin + ("    " if last else "│   "), _marking_last(entries(vfs, entry.attr.ino))))


def _marking_last(found: Iterator[DirEntry]) -> Iterator[tuple[DirEntry, bool]]:
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
def stat_command(image: str, path: str | None, as_json: bool) -> None:
    """Show the attributes of PATH in IMAGE; without PATH, the figures of the whole image.

    \b
    mdstore stat photos.img
    mdstore stat photos.img /2024/may.jpg --json

    A symlink is described itself, not what it points to.
    """
    with opened_names(image, read_only=True) as vfs:
        if path is None:
            _show_figures(_figures(image, vfs), as_json=as_json)
            return
        name = image_path(path)
        described = _described(vfs, name, resolve(vfs, name, follow=False))
        described["xattrs"] = _xattrs(vfs, described["ino"])
    if as_json:
        print_json(described)
        return
    for key, value in described.items():
        print_line(f"{key:>12}  {time_text(value) + ' UTC' if key.endswith('_ns') else shown(str(value))}")


def _described(vfs: Vfs, name: bytes, attr: Attr) -> dict[str, Any]:
    row: dict[str, Any] = {"name": json_name(name), "type": type_word(attr.mode), "mode": f"{stat.S_IMODE(attr.mode):04o}"}
    row |= {key: getattr(attr, key) for key in ("ino", "nlink", "uid", "gid", "size", "blocks")}
    row |= {key: getattr(attr, key) for key in ("atime_ns", "mtime_ns", "ctime_ns")}
    if stat.S_ISLNK(attr.mode):
        row["target"] = json_name(vfs.readlink(attr.ino))
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
def cat_command(image: str, paths: tuple[str, ...], as_json: bool) -> None:
    """Write the files PATHS of IMAGE to standard output, one after another.

    \b
    mdstore cat photos.img /2024/may.jpg > may.jpg

    With --json: an array with `path`, `size` and `base64`, the content, for each file.
    """
    with opened_names(image, read_only=True) as vfs:
        files = [(image_path(path), _file_at(vfs, image_path(path))) for path in paths]
        for number, (path, attr) in enumerate(files):
            if as_json:
                _write("[\n  " if number == 0 else ",\n  ")
                _write(f'{{"path": {json.dumps(json_name(path))}, "size": {attr.size}, "base64": "')
            for piece in _content(vfs, attr):
                sys.stdout.buffer.write(b64encode(piece) if as_json else piece)
            if as_json:
                _write('"}' if number + 1 < len(files) else '"}\n]\n')
    sys.stdout.buffer.flush()


def _write(text: str) -> None:
    sys.stdout.buffer.write(text.encode("ascii"))


def _file_at(vfs: Vfs, path: bytes) -> Attr:
    attr = resolve(vfs, path)
    if not stat.S_ISREG(attr.mode):
        raise PosixError(errno.EISDIR if stat.S_ISDIR(attr.mode) else errno.EINVAL, path, "only files have bytes to show")
    return attr


def _content(vfs: Vfs, attr: Attr) -> Iterator[bytes]:
    """A file's bytes, a chunk at a time."""
    with opened_file(vfs, attr.ino) as handle:
        offset = 0
        while data := vfs.read(handle, offset, CHUNK):
            yield data
            offset += len(data)
