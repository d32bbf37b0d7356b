"""`mdstore snapshot`: freeze a directory, list what is frozen, look into it, let go of it.

A target is an image that nobody has mounted, or a directory inside a mount: there `.snap` does the same with mkdir, ls and rmdir.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any, NamedTuple

import click

from mdstore.client.mount import MountOptions, check_mountpoint
from mdstore.client.mount_options import parse_options
from mdstore.client.mount_syscalls import FILE_SYSTEM_TYPE, mounted_at
from mdstore.errors import NotFound, PosixError
from mdstore.mds.frozen import FrozenVfs
from mdstore.mds.snapdir import SNAP, SNAPDIR, SnapshotVfs
from mdstore.mds.snapshots import PREFIX, DirectorySnapshot
from mdstore.mds.vfs import ROOT_INO
from mdstore.tools.images import image_argument, json_option, opened_names, opened_store
from mdstore.tools.locate import image_path, resolve
from mdstore.tools.mounting import announce, background_option, in_foreground_or_not, serve_at
from mdstore.tools.output import (
    CommandFailed,
    json_name,
    print_json,
    print_json_list,
    print_line,
    shown,
    size_text,
    time_text,
)
from mdstore.tools.reader.snapshots import NoSuchSnapshot, offered
from mdstore.tools.reader.views import as_bytes
from mdstore.tools.unreadable import UNREADABLE, LeftOut

target_argument = click.argument("target", type=click.Path(readable=False))
name_argument = click.argument("name")
path_argument = click.argument("path", default="/")


@click.group("snapshot")
def snapshot() -> None:
    """Freeze directories as they are; look into them later; give the space back.

    TARGET is an image file that is not mounted, or a directory of a mount. In a mount, plain commands do as well:

    \b
    mkdir .snap/before; ls .snap; cp .snap/before/a .; rmdir .snap/before
    """


@snapshot.command("create")
@target_argument
@name_argument
@path_argument
@json_option
def create_command(target: str, name: str, path: str, as_json: bool) -> None:
    """Freeze the directory PATH (default: the root) of TARGET under NAME. Durable when the command is done.

    \b
    mdstore snapshot create photos.img before-cleanup /2024
    mdstore snapshot create /mnt/photos/2024 before-cleanup

    Nothing is copied: a snapshot costs what is changed after it.
    """
    _change(target, path, name, os.mkdir, lambda vfs, directory: vfs.snapshots.create(directory, os.fsencode(name)))
    if as_json:
        print_json({"target": target, "path": path, "created": name})


@snapshot.command("list")
@target_argument
@click.argument("path", required=False)
@json_option
def list_command(target: str, path: str | None, as_json: bool) -> int:
    """List the snapshots of TARGET, or only those of its directory PATH.

    \b
    mdstore snapshot list photos.img
    mdstore snapshot list photos.img /2024 --json
    """
    told = LeftOut()
    rows = _rows_of_mount(target, path or "") if os.path.isdir(target) else _rows_of_image(target, path, told)
    if as_json:
        print_json_list(row.as_json() for row in rows)
        return told.exit_code
    for row in rows:
        print_line(row.as_text())
    return told.exit_code


@snapshot.command("delete")
@target_argument
@name_argument
@path_argument
@click.option("--store", "of_store", is_flag=True, help="A snapshot of the store itself, made by a program; there is no PATH.")
@json_option
def delete_command(target: str, name: str, path: str, of_store: bool, as_json: bool) -> None:
    """Forget snapshot NAME of the directory PATH (default: the root) of TARGET; what it alone kept becomes free.

    \b
    mdstore snapshot delete photos.img before-cleanup /2024
    mdstore snapshot delete objects.img monday --store
    """
    if of_store:
        _delete_of_store(target, name, path)
        if as_json:
            print_json({"target": target, "deleted": name})
        return
    _change(target, path, name, _remove, lambda vfs, directory: _delete(vfs, directory, path, name))
    if as_json:
        print_json({"target": target, "path": path, "deleted": name})


@snapshot.command("mount")
@image_argument
@name_argument
@click.argument("directory", type=click.Path(readable=False))
@click.option("--path", default="/", help="The directory that was frozen (default: the root).")
@click.option("-o", "options", default="", metavar="OPTIONS", help="As for `mdstore mount`.")
@background_option
@json_option
def mount_command(
    image: str, name: str, directory: str, path: str, options: str, background: bool, as_json: bool
) -> int:
    """Serve snapshot NAME of IMAGE at DIRECTORY, read-only, until it is unmounted.

    \b
    mdstore snapshot mount photos.img before-cleanup /mnt/then --path /2024 --background
    mdstore umount /mnt/then

    Of an image that is mounted already, look into .snap there instead.
    """
    at = check_mountpoint(directory)
    image = os.path.abspath(image)
    chosen = parse_options(options, MountOptions(read_only=True, source=image, image=image, allow_other=os.geteuid() == 0))

    def serve(ready: Callable[[], None]) -> int:
        with opened_names(image, read_only=True) as vfs:
            return serve_at(_frozen(vfs, path, name), at, chosen, ready)

    return in_foreground_or_not(serve, lambda: announce(image, at, as_json=as_json), background=background)


def _change(
    target: str, path: str, name: str, in_mount: Callable[[str], None], in_image: Callable[[SnapshotVfs, int], object]
) -> None:
    """Make or remove a snapshot where it is: through the mount, or in the image. A name that leads out of `.snap` is none."""
    if not os.path.isdir(target):
        with opened_names(target, read_only=False) as vfs:
            in_image(vfs, _directory(vfs, path))
        return
    if name in ("", ".", "..") or "/" in name:
        raise CommandFailed(f"{shown(name)}: a snapshot cannot be called so")
    in_mount(_inside_mount(target, path, name))


def _remove(snapshot: str) -> None:
    """One in the `.snap` of a mounted directory. CommandFailed."""
    try:
        os.rmdir(snapshot)
    except FileNotFoundError:
        there, name = os.path.split(snapshot)
        directory = os.path.dirname(there)
        if not os.path.isdir(there):
            raise CommandFailed(f"{shown(directory)}: No such file or directory") from None
        raise _missing(name, [shown(found) for found in sorted(os.listdir(there))], directory) from None


def _delete(vfs: SnapshotVfs, directory: int, path: str, name: str) -> None:
    _check_there(vfs, directory, path, name)
    vfs.snapshots.delete(directory, os.fsencode(name))


def _check_there(vfs: SnapshotVfs, directory: int, path: str, name: str) -> None:
    """CommandFailed where the directory has no snapshot of that name."""
    there = [found.name for found in vfs.snapshots.of(directory)]
    if os.fsencode(name) not in there:
        raise _missing(name, [shown(found) for found in there], path)


def _missing(name: str, there: list[str], directory: str) -> CommandFailed:
    others = "" if there else "; `mdstore snapshot list` shows those of other directories"
    return CommandFailed(f"{shown(directory)} has no snapshot '{shown(name)}'; {offered(there, 'it')}{others}")


def _delete_of_store(target: str, name: str, path: str) -> None:
    """One that no directory has: `mdstore fsck` and `mdstore dump IMAGE snapshots` show it by this name."""
    if path != "/" or os.path.isdir(target):
        raise CommandFailed("--store takes an image that is not mounted, and no PATH")
    key = as_bytes(name)
    if key.startswith(PREFIX):
        raise CommandFailed(f"{shown(name)} is a directory's snapshot: delete it by the name and path that `snapshot list` shows")
    with opened_store(target, read_only=False) as store:
        try:
            store.delete_snapshot(key)
        except NotFound:
            raise NoSuchSnapshot(key, [row.name for row in store.snapshots() if not row.name.startswith(PREFIX)]) from None


def _frozen(vfs: SnapshotVfs, path: str, name: str) -> FrozenVfs:
    """The directory as it was, as a name space whose root it is."""
    directory = _directory(vfs, path)
    _check_there(vfs, directory, path, name)
    slot = vfs.snapshots.slot(directory, os.fsencode(name))
    inner = vfs.snapshots.view(slot, SNAPDIR).frozen.inner
    return FrozenVfs(inner, top=directory, top_as=ROOT_INO)


def _directory(vfs: SnapshotVfs, path: str) -> int:
    found = resolve(vfs, image_path(path))
    if not stat.S_ISDIR(found.mode):
        raise CommandFailed(f"{shown(path)}: only directories have snapshots")
    return found.ino


def _inside_mount(target: str, path: str, name: str) -> str:
    """Where `.snap` of a mounted directory has that snapshot. CommandFailed where nothing of ours is mounted."""
    where = os.path.join(target, path.strip("/"))
    at = os.path.realpath(where)
    while not os.path.ismount(at) and at != os.path.dirname(at):
        at = os.path.dirname(at)
    found = mounted_at(at)
    if found is None or found.fs_type != FILE_SYSTEM_TYPE:
        raise CommandFailed(f"{shown(where)} is in no mounted image; give the image file, or mount it first")
    return os.path.join(where, os.fsdecode(SNAP), name)


class _Row(NamedTuple):
    """One line of the list. `directory`: its path, None where it is not in the name space any more."""

    directory: str | None
    name: str
    created_ns: int | None
    held_bytes: int | None
    error: str | None = None  # why it is not known which directory's it is

    def as_json(self) -> dict[str, Any]:
        row = {"path": self.directory, "name": self.name, "created_ns": self.created_ns, "held_bytes": self.held_bytes}
        return row if self.error is None else row | {"error": self.error}

    def as_text(self) -> str:
        removed = "(directory removed)" if self.error is None else "(directory cannot be read)"
        where = removed if self.directory is None else shown(self.directory)
        if self.created_ns is None or self.held_bytes is None:
            return f"{shown(self.name)}  {where}"
        return f"{time_text(self.created_ns)[:19]}  {size_text(self.held_bytes):>10}  {shown(self.name)}  {where}"


def _rows_of_image(image: str, path: str | None, told: LeftOut) -> list[_Row]:
    with opened_names(image, read_only=True) as vfs:
        only = None if path is None else _directory(vfs, path)
        return [_row(vfs, found, told) for found in vfs.snapshots.all() if only in (None, found.directory)]


def _row(vfs: SnapshotVfs, found: DirectorySnapshot, told: LeftOut) -> _Row:
    where, error = None, None
    try:
        where = json_name(vfs.server.path_of(found.directory))
    except UNREADABLE as damage:
        error = told.note(found.name, damage, "the path of its directory cannot be read")["error"]
    except PosixError:
        pass
    return _Row(where, json_name(found.name), found.created_ns, found.held_bytes, error)


def _rows_of_mount(target: str, path: str) -> list[_Row]:
    """Names only: that is what a listing tells."""
    where = _inside_mount(target, path, "")
    return [_Row(os.path.dirname(where.rstrip("/")), name, None, None) for name in sorted(os.listdir(where))]
