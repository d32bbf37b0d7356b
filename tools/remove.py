"""`mdstore rm`: remove files and directories."""

from __future__ import annotations

import errno
import stat

import click

from mdstore.errors import PosixError
from mdstore.mds.vfs import SUPERUSER, Vfs
from mdstore.tools.images import image_argument, json_option, opened_image
from mdstore.tools.locate import entries, image_path, resolve, resolve_parent
from mdstore.tools.output import Progress, print_json, progress


@click.command("rm")
@image_argument
@click.argument("paths", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="Remove directories with everything in them.")
@json_option
def rm_command(image: str, paths: tuple[str, ...], recursive: bool, as_json: bool) -> None:
    """Remove PATHS from IMAGE. Durable when the command is done; all PATHS must exist, or nothing is removed.

    \b
    mdstore rm photos.img /2024/may.jpg
    mdstore rm -r photos.img /2019 /2020
    """
    with opened_image(image, read_only=False) as vfs:
        names = [image_path(path) for path in paths]
        for name in names:
            _check_removable(vfs, name, recursive=recursive)
        with progress("removing", quiet=as_json) as shown:
            removed = sum(remove(vfs, name, shown) for name in names)
        vfs.syncfs()
        vfs.purge_all()
    if as_json:
        print_json({"image": image, "removed": removed})


def _check_removable(vfs: Vfs, path: bytes, *, recursive: bool) -> None:
    resolve_parent(vfs, path)
    attr = resolve(vfs, path, follow=False)
    vfs.forget(attr.ino, 1)
    if stat.S_ISDIR(attr.mode) and not recursive:
        raise PosixError(errno.EISDIR, path, "-r removes a directory with everything in it")


def remove(vfs: Vfs, path: bytes, shown: Progress) -> int:
    """Remove what `path` names, a directory with all below it; returns how many names went. A symlink is not followed."""
    parent, name = resolve_parent(vfs, path)
    try:
        attr = resolve(vfs, path, follow=False)
    except PosixError as error:
        if error.errno == errno.ENOENT:  # it lay below another path of the same command
            return 0
        raise
    removed = 0
    if stat.S_ISDIR(attr.mode):
        removed = _empty(vfs, attr.ino, shown)
        vfs.rmdir(SUPERUSER, parent.ino, name)
    else:
        vfs.unlink(SUPERUSER, parent.ino, name)
    vfs.forget(attr.ino, 1)
    return removed + 1


def _empty(vfs: Vfs, top: int, shown: Progress) -> int:
    """Remove everything below `top`, children before parents, with memory for one path only."""
    removed = 0
    stack = [(top, entries(vfs, top))]
    names: list[bytes] = []
    while True:
        directory, rest = stack[-1]
        entry = next(rest, None)
        if entry is None:
            stack.pop()
            if not stack:
                return removed
            vfs.rmdir(SUPERUSER, stack[-1][0], names.pop())
        elif stat.S_ISDIR(entry.attr.mode):
            names.append(entry.name)
            stack.append((entry.attr.ino, entries(vfs, entry.attr.ino)))
            continue
        else:
            vfs.unlink(SUPERUSER, directory, entry.name)
        removed += 1
        shown.step(1, 0)
