"""`mdstore mount` and `mdstore umount`: an image as a directory, through the kernel."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Final

import click

from mdstore.client.mount import (
    MountOptions,
    check_mountpoint,
    image_at,
    in_background,
    is_dead,
    mount,
    server_at,
    unmount,
)
from mdstore.client.mount_ending import EndingListener
from mdstore.client.mount_options import parse_options
from mdstore.client.mount_syscalls import FILE_SYSTEM_TYPE, mounted_at, open_device
from mdstore.device.file import FileDevice
from mdstore.device.lock import locks_held
from mdstore.errors import ImageBusy, MdstoreError
from mdstore.limits import SESSION_NAME_MAX
from mdstore.mds.driver import Driver
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import Vfs
from mdstore.store.store import Store
from mdstore.tools.images import image_argument, json_option, opened_names, opened_store
from mdstore.tools.output import EXIT_FAILED, EXIT_OK, CommandFailed, complain, explain, print_json, print_line, shown

log = logging.getLogger(__name__)
_LOOK_EVERY_S: Final = 0.05
_WRITE_BACK_TIMEOUT_S: Final = 120.0
_WORD_TIMEOUT_S: Final = 5.0


Serve = Callable[[Callable[[], None]], int]  # serves until the mount ends, calls its argument once it works; the exit code
background_option = click.option(
    "--background", is_flag=True, help="Return once the mount works; the server goes on by itself."
)


@click.command("mount")
@image_argument
@click.argument("directory", type=click.Path(readable=False))
@click.option("-o", "options", default="", metavar="OPTIONS", help="As for mount(8): ro,noatime,attr_timeout=10 ...")
@background_option
@click.option("--read-only", is_flag=True, help="Change nothing in the image, not even to recover it.")
@click.option("--allow-other", is_flag=True, help="Let other users in; root's mounts do so anyway.")
@click.option("--log", "log_path", type=click.Path(dir_okay=False), metavar="FILE", help="Append the server's messages to FILE.")
@json_option
def mount_command(
    image: str, directory: str, options: str, background: bool, read_only: bool, allow_other: bool, log_path: str | None,
    as_json: bool,
) -> int:  # fmt: skip
    """Serve IMAGE at DIRECTORY until it is unmounted.

    \b
    mdstore mount photos.img /mnt --background
    mdstore umount /mnt

    In the foreground, Ctrl-C unmounts. What programs fsync survives a crash at once, everything else after about a second.
    Root mounts by itself; other users need fusermount3 (package fuse3). After a crash, or kill -9, mount again: recovery takes
    the time to replay the last few seconds. docs/howto/mount.md has all options.

    Messages of the server (a medium that fails, a dead mount that was cleaned) go to --log, or to standard error; in the
    background nobody sees them there.
    """
    _log_to(log_path)
    path = check_mountpoint(directory)
    if os.geteuid() == 0:
        os.close(open_device())  # FUSE missing is said before the image is opened and recovered
    image = os.path.abspath(image)
    allow_other = allow_other or os.geteuid() == 0
    chosen = parse_options(options, MountOptions(read_only=read_only, source=image, image=image, allow_other=allow_other))
    return in_foreground_or_not(
        lambda ready: serve(image, path, chosen, ready), lambda: announce(image, path, as_json=as_json), background=background
    )


def in_foreground_or_not(serve_until_end: Serve, say: Callable[[], None], *, background: bool) -> int:
    """Serve here, or in a process of its own; `say` that it works once it does. The exit code."""
    if not background:
        return serve_until_end(say)
    code = in_background(lambda ready: _or_complain(serve_until_end, ready))
    if code == EXIT_OK:
        say()
    return code


def serve(image: str, directory: str, options: MountOptions, ready: Callable[[], None]) -> int:
    """Open the image, mount it, say so, and serve until the end. Durable when it returns EXIT_OK: everything."""
    client = b"mount " + os.fsencode(directory)
    with (
        ExitStack() as reopened,
        opened_names(image, read_only=options.read_only, client=client[:SESSION_NAME_MAX]) as vfs,
        Driver(vfs.server, failed=lambda error: _fall_back(image, vfs.server, error, reopened)) as driver,
    ):
        code = serve_at(vfs, directory, options, ready)
    return EXIT_FAILED if vfs.failure is not None or driver.error is not None else code


def serve_at(vfs: Vfs, directory: str, options: MountOptions, ready: Callable[[], None]) -> int:
    """Mount a name space, say so, and serve until the end."""
    session = mount(vfs, directory, options)
    ready()
    session.run()
    return EXIT_OK


def _fall_back(image: str, server: MetadataServer, error: Exception, reopened: ExitStack) -> None:
    """The medium failed, or the server did: serve what is durable from here on, read-only."""
    foreseen = isinstance(error, MdstoreError | OSError)
    log.error("nothing more is written: %s", explain(error) if foreseen else repr(error), exc_info=None if foreseen else error)

    def reopen() -> Store:
        with suppress(MdstoreError):
            server.store.close()
        return reopened.enter_context(opened_store(image, read_only=True))

    try:
        server.fall_back(reopen, error)
    except (MdstoreError, OSError) as failure:
        log.error("%s cannot be read either: %s; unmount it", image, explain(failure))
        return
    log.error("%s is served read-only, with what was durable: unmount it, see to its medium, and run `mdstore fsck`", image)
    while server.background_work():
        time.sleep(_LOOK_EVERY_S)


def _or_complain(serve_until_end: Serve, ready: Callable[[], None]) -> int:
    try:
        return serve_until_end(ready)
    except (MdstoreError, OSError) as error:
        complain(explain(error))
        return EXIT_FAILED


def _log_to(path: str | None) -> None:
    """One line a message, `mdstore:` first on standard error, the moment first in a file."""
    if path is None:
        logging.basicConfig(format="mdstore: %(message)s")
    else:
        logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", filename=path)


def announce(image: str, directory: str, *, as_json: bool) -> None:
    """Say that it works."""
    if as_json:
        print_json({"image": image, "mounted_at": directory})
    else:
        print_line(f"{shown(image)} is mounted at {shown(directory)}; `mdstore umount {shown(directory)}` ends it")
    sys.stdout.flush()  # whoever started the server waits for this line


@click.command("umount")
@click.argument("directory", type=click.Path(readable=False))
@click.option("--lazy", is_flag=True, help="Take it out of sight now, end it when its last user has let go.")
@json_option
def umount_command(directory: str, lazy: bool, as_json: bool) -> int:
    """End the mount at DIRECTORY, and wait until its server has written everything back.

    \b
    mdstore umount /mnt

    When the command is done, everything is durable and the image is free: fsck, or another mount, can follow at once. It ends
    with 1, and says why, where the server could not save everything, had fallen back to read-only, was killed, or could not be
    heard.
    """
    path = os.path.realpath(os.path.abspath(directory)) if os.path.exists(directory) else os.path.abspath(directory)
    found = mounted_at(path)
    if found is None or found.fs_type != FILE_SYSTEM_TYPE:
        raise CommandFailed(f"{shown(directory)}: no image is mounted there; `findmnt -t {FILE_SYSTEM_TYPE}` lists what is")
    image = image_at(path) or found.source  # of a server that has gone there is nothing to wait for
    dead = is_dead(path)
    with EndingListener(path) as server:
        pid = None if dead else server_at(path)
        lets_go = _watch_lock(pid, image)
        unmount(path, lazy=lazy)
        released = lazy or _wait_for_release(image, lets_go)
        failure = server.heard() if lazy or dead or pid is not None else _wait_for_word(server)
    if not released:
        complain(f"{image} is unmounted, but its server still writes back; wait before using it")
    if failure:
        complain(f"{image} is unmounted, but not all of it was saved: {failure}; run `mdstore fsck {shown(image)}`")
    elif dead:
        failure = "its server had ended without unmounting: what was not durable by then is lost"
        complain(f"{image} is unmounted, but {failure}; mount it again, which recovers it, or run `mdstore fsck {shown(image)}`")
    elif failure is None and released and not lazy:
        failure = f"whether all was saved is not known: {_why_unheard(server)}"
        complain(f"{image} is unmounted, but {failure}; run `mdstore fsck {shown(image)}`")
    if as_json:
        print_json({"unmounted": path, "image": image, "released": released and not lazy, "failure": failure or None})
    return EXIT_OK if released and not failure else EXIT_FAILED


def _why_unheard(server: EndingListener) -> str:
    if not server.listening:
        return "another process listened for the server's word, which goes to the first"
    return "its server said nothing: it was killed, or is in another network name space"


def _wait_for_word(server: EndingListener) -> str | None:
    """What a server says that could not be watched letting go of the image. None where nothing comes in time."""
    deadline = time.monotonic() + _WORD_TIMEOUT_S
    while (failure := server.heard()) is None and server.listening and time.monotonic() < deadline:
        time.sleep(_LOOK_EVERY_S)
    return failure


def _watch_lock(server: int | None, image: str) -> Callable[[], bool]:
    """What tells whether that process has let go of the image since. A server that only reads shares its lock with others, so the
    lock itself tells nothing. Always true where its descriptors cannot be seen."""
    before = None if server is None else locks_held(server, image)
    if server is None or not before:
        return lambda: True
    pid, held = server, before
    return lambda: (locks_held(pid, image) or 0) < held


def _wait_for_release(image: str, lets_go: Callable[[], bool]) -> bool:
    """Whether the server gave the image's lock back in time."""
    deadline = time.monotonic() + _WRITE_BACK_TIMEOUT_S
    while time.monotonic() < deadline:
        if lets_go() and not _is_written(image):
            return True
        time.sleep(_LOOK_EVERY_S)
    return False


def _is_written(image: str) -> bool:
    """Whether a process has the image open for writing."""
    try:
        FileDevice.open(image, read_only=True).close()
    except ImageBusy:
        return True
    except MdstoreError:  # removed, or not ours to read: nothing to wait for
        return False
    return False
