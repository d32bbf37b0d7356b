"""Opening an image for a command: device, store and metadata server, closed in the right order whatever happens.

Whoever can open the image file is its superuser: commands act as uid 0 inside it, as `tar` does inside an archive.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import click

from mdstore.device.file import FileDevice
from mdstore.errors import MdstoreError
from mdstore.mds.server import MetadataServer
from mdstore.mds.snapdir import SnapshotVfs
from mdstore.store.store import Store
from mdstore.tools.output import complain, replay_progress

SIZE_MAX: Final = (1 << 63) - 1  # of a file, in bytes
_SIZE_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50, "E": 1 << 60}


def size(text: str | int) -> int:
    """`4096`, `64K`, `1.5G`, `2TiB`: bytes, powers of 1024. A type for click, which shows the function's name."""
    bare = str(text).strip().upper().removesuffix("IB").removesuffix("B")
    unit = _SIZE_UNITS.get(bare[-1:], 1)
    number = bare if unit == 1 else bare[:-1]
    try:
        size_bytes = int(float(number) * unit) if "." in number else int(number) * unit
    except (ValueError, OverflowError):
        raise click.BadParameter(f"{text!r} is not a size; write one like 4096, 64K, 512M or 1.5G") from None
    if not 0 < size_bytes <= SIZE_MAX:
        raise click.BadParameter(f"a size of {text} makes no sense: there is 1 byte to 8 EiB")
    return size_bytes


image_argument = click.argument("image", type=click.Path(readable=False))
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@contextmanager
def opened_store(image: str, *, read_only: bool) -> Iterator[Store]:
    """The image's store, recovered; closed at the end. Errors: those of `FileDevice.open` and `Store.open`."""
    device = FileDevice.open(image, read_only=read_only)
    try:
        store = Store.open(device, read_only=read_only)
    except BaseException:
        device.close()
        raise
    for sentence in store.recovery.warnings:  # what was set apart is among them
        about = sentence if image in sentence else f"{image}: {sentence}"
        complain(f"{about}; `mdstore fsck` says what follows from it and what to do")
    with store:
        yield store


@contextmanager
def opened_image(image: str, *, read_only: bool, client: bytes | None = None) -> Iterator[MetadataServer]:
    """The image's name space, recovered. On leaving everything is written back and the image is closed.

    read_only: recovery happens in memory only, and the image may be open read-only elsewhere at the same time. `client`: the
    name of a session for all that is done, see `MetadataServer.mount`.
    """
    with opened_store(image, read_only=read_only) as store, _mounted(store, read_only=read_only, client=client) as server:
        yield server


@contextmanager
def _mounted(store: Store, *, read_only: bool, client: bytes | None) -> Iterator[MetadataServer]:
    with replay_progress() as progress:
        server = MetadataServer.mount(store, read_only=read_only, client=client, progress=progress)
    try:
        yield server
    except BaseException:
        with suppress(MdstoreError):  # write back what can be; the failure on its way out says more than one met here
            server.close()
        raise
    server.close()


@contextmanager
def opened_names(image: str, *, read_only: bool, client: bytes | None = None) -> Iterator[SnapshotVfs]:
    """`opened_image` with its snapshots: paths may lead through `.snap`."""
    with opened_store(image, read_only=read_only) as store, _mounted(store, read_only=read_only, client=client) as server:
        vfs = SnapshotVfs(server)
        try:
            yield vfs
        finally:
            vfs.snapshots.close()


def now_ns() -> int:
    """The clock of commands."""
    return time.time_ns()
