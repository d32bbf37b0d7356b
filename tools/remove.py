"""`mdstore rm`: remove files and directories."""

from __future__ import annotations

import errno
import stat

import click

from mdstore.errors import PosixError
from mdstore.mds.vfs import SUPERUSER, Vfs
from mdstore.tools.images import image_argument, json_option, opened_image
from mdstore.tools.locate import image_path, resolve, resolve_parent
from mdstore.tools.output import Progress, print_json, progress
from mdstore.tools.unreadable import UNREADABLE, Descent, LeftOut, SecondNames, listing


@click.command("rm")
@image_argument
@click.argument("paths", nargs=-1, required=True)
@click.option("-r", "--recursive", is_flag=True, help="Remove directories with everything in them.")
@json_option
def rm_command(image: str, paths: tuple[str, ...], recursive: bool, as_json: bool) -> int:
    """Remove PATHS from IMAGE. Durable when the command is done; all PATHS must exist, or nothing is removed. What cannot be read
    stays, is named, and makes the exit code 1.

    \b
    mdstore rm photos.img /2024/may.jpg
    mdstore rm -r photos.img /2019 /2020
    """
    left_out = LeftOut()
    with opened_image(image, read_only=False) as vfs, SecondNames(image) as second:
        names = [image_path(path) for path in paths]
        for name in names:
            _check_removable(vfs, name, recursive=recursive)
        with progress("removing", quiet=as_json) as shown:
            removing = Removing(vfs, left_out, second, shown)
            for name in names:
                removing.remove(name)
        vfs.syncfs()
        vfs.purge_all()
    if as_json:
        print_json({"image": image, "removed": removing.removed, "left_out": removing.left_out})
    return left_out.exit_code


def _check_removable(vfs: Vfs, path: bytes, *, recursive: bool) -> None:
    try:
        resolve_parent(vfs, path)
        attr = resolve(vfs, path, follow=False)
    except UNREADABLE:
        return  # told when its turn comes
    vfs.forget(attr.ino, 1)
    if stat.S_ISDIR(attr.mode) and not recursive:
        raise PosixError(errno.EISDIR, path, "-r removes a directory with everything in it")


class Removing:
    """Removes what it is told to, and what is in it. What cannot be read stays, with the directories above it, and is named."""

    def __init__(self, vfs: Vfs, told: LeftOut, names: SecondNames, shown: Progress) -> None:
        self._vfs = vfs
        self._told = told
        self._names = names
        self._shown = shown
        self.removed = 0
        self.left_out: list[dict[str, str]] = []

    def remove(self, path: bytes) -> None:
        """Remove what `path` names, a directory with all below it. A symlink is not followed."""
        try:
            parent, name = resolve_parent(self._vfs, path)
            attr = resolve(self._vfs, path, follow=False)
        except UNREADABLE as error:
            self.left_out.append(self._told.note(path, error))
            return
        except PosixError as error:
            if error.errno == errno.ENOENT:  # it lay below another path of the same command
                return
            raise
        if stat.S_ISDIR(attr.mode):
            self._empty(path, attr.ino)
            self._remove(parent.ino, path, name, is_directory=True)
        else:
            self._remove(parent.ino, path, name, is_directory=False)
        self._vfs.forget(attr.ino, 1)

    def _empty(self, path: bytes, top: int) -> None:
        """Remove everything below `top`, children before parents. Memory: that of `Descent`, and a page of names for each
        directory of one path."""
        stack = [(path, top, listing(self._vfs, top, self._names))]
        descent = Descent(self._vfs, top, strict=True)  # what hangs elsewhere is not to be removed here
        while True:
            above, directory, rest = stack[-1]
            entry = next(rest, None)
            if entry is None:
                stack.pop()
                descent.leave()
                if not stack:
                    return
                self._remove(stack[-1][1], above, above.rpartition(b"/")[2], is_directory=True)
            elif (entry := descent.looked_at(entry)).error is not None:
                self.left_out.append(self._told.note_listed(above, entry))
            elif stat.S_ISDIR(entry.attr.mode):
                descent.enter(entry.attr.ino)
                stack.append((above + b"/" + entry.name, entry.attr.ino, listing(self._vfs, entry.attr.ino, self._names)))
            else:
                self._remove(directory, above + b"/" + entry.name, entry.name, is_directory=False)

    def _remove(self, directory: int, path: bytes, name: bytes, *, is_directory: bool) -> None:
        try:
            if is_directory:
                self._vfs.rmdir(SUPERUSER, directory, name)
            else:
                self._vfs.unlink(SUPERUSER, directory, name)
        except UNREADABLE as error:
            self.left_out.append(self._told.note(path, error))
            return
        except PosixError as error:
            if error.errno == errno.ENOTEMPTY and self._told.count:  # what is left in it was named
                return
            raise
        self.removed += 1
        self._shown.step(1, 0)
