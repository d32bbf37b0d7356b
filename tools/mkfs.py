"""`mdstore mkfs`: make an image."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import Any

import click

from mdstore.device.file import FileDevice
from mdstore.errors import AlreadyExists, NoSpace
from mdstore.limits import BLOCK_SIZE_DEFAULT, GIB, IMAGE_SIZE_MIN
from mdstore.mds.server import MetadataServer
from mdstore.store.store import Store
from mdstore.tools.images import image_argument, json_option, now_ns, size
from mdstore.tools.output import CommandFailed, print_json, print_line, size_text


def stripe(text: str) -> tuple[int, int]:
    """(bytes of a stripe, where the first begins) of `256K` or `256K@4K`. A type for click, as `size`."""
    length, at, offset = text.partition("@")
    return size(length), 0 if not at or offset == "0" else size(offset)


@click.command("mkfs")
@image_argument
@click.option("--size", "size_bytes", type=size, help="Size of the image file (default 1G; a block device is used whole).")
@click.option("--block-size", type=size, default=BLOCK_SIZE_DEFAULT, show_default=True, help="Bytes of a block.")
@click.option("--log-size", "log_bytes", type=size, help="Size of the log [a sixteenth of the image, within reason].")
@click.option("--force", is_flag=True, help="Overwrite a file, or use a block device, whatever it holds.")
@click.option("--sparse", is_flag=True, help="Do not reserve the file's space: it is taken as the image fills.")
@click.option(
    "--stripe", "stripe_of", type=stripe, metavar="SIZE[@OFFSET]",
    help="Stripe of the disks below: large files lie on whole ones.",
)  # fmt: skip
@json_option
def mkfs_command(
    image: str, size_bytes: int | None, block_size: int, log_bytes: int | None, force: bool, sparse: bool,
    stripe_of: tuple[int, int] | None, as_json: bool,
) -> None:  # fmt: skip
    """Make IMAGE, an empty file system in one file (or on a block device).

    \b
    mdstore mkfs photos.img --size 20G
    mdstore mkfs /dev/sdx1 --force

    The file's space is reserved at once, so that writing into the image cannot meet a full disk later; --sparse leaves
    that out. --stripe 256K is for a disk that writes 256 KiB at once best (a RAID: chunk size times data disks); @OFFSET
    says where the first stripe begins, if not at the start of the device. A file that exists is left alone unless --force
    is given, and an image in use is never touched.
    """
    made = make_image(
        image, size_bytes, block_size=block_size, force=force, sparse=sparse, stripe=stripe_of or (0, 0), log_bytes=log_bytes
    )
    if as_json:
        print_json(made)
        return
    usable = size_text(made["free_bytes"])
    print_line(f"{image}: {size_text(made['size_bytes'])}, {usable} free, blocks of {made['block_size']} bytes")


def make_image(
    image: str, size_bytes: int | None, *, block_size: int = BLOCK_SIZE_DEFAULT, force: bool, sparse: bool = False,
    stripe: tuple[int, int] = (0, 0), log_bytes: int | None = None,
) -> dict[str, Any]:
    """Make an image and say what was made. Durable on return; a file that was new is gone again after a failure."""
    is_new = not os.path.lexists(image)
    device = _device(image, size_bytes, force=force, sparse=sparse)
    try:
        with Store.create(
            device, block_size=block_size, log_bytes=log_bytes, stripe_bytes=stripe[0], stripe_offset=stripe[1]
        ) as store:
            MetadataServer.format(store, now_ns=now_ns(), uid=os.getuid(), gid=os.getgid(), root_mode=0o755)
            made = store.statistics() | {"size_bytes": device.size_bytes, "free_bytes": _free_bytes(store)}
    except BaseException:
        device.close()
        if is_new:
            with suppress(OSError):
                os.unlink(image)
        raise
    return {"image": image} | {key: made[key] for key in ("size_bytes", "block_size", "free_bytes", "log_bytes")}


def _free_bytes(store: Store) -> int:
    """What files may take: less than is free, for some is kept back so that a full image can still be changed."""
    server = MetadataServer.mount(store, read_only=True)
    space = server.statfs()
    server.close()
    return space.blocks_available * space.block_size


def _device(image: str, size_bytes: int | None, *, force: bool, sparse: bool) -> FileDevice:
    """What the image will lie on, locked. Nothing of an existing file is dropped before all that can be refused was."""
    if _is_block_device(image):
        if not force:
            raise CommandFailed(f"{image} is a block device; --force makes an image of all of it, whatever it holds")
        if size_bytes is not None:
            raise CommandFailed(f"{image} is a block device and is used whole: leave --size out")
        return FileDevice.open(image)
    if os.path.isdir(image):
        raise CommandFailed(f"{image} is a directory; name a file to make")
    size_bytes = GIB if size_bytes is None else size_bytes
    if size_bytes < IMAGE_SIZE_MIN:
        raise CommandFailed(f"{image}: a size of {size_text(size_bytes)} is too small, at least {size_text(IMAGE_SIZE_MIN)}")
    try:
        return FileDevice.create(image, size_bytes, exclusive=not force, sparse=sparse)
    except AlreadyExists:
        raise CommandFailed(f"{image} exists already; --force overwrites it, or choose another name") from None
    except NoSpace as error:
        raise CommandFailed(f"{error}; make room where {image} lies, choose a smaller --size, or --sparse") from error


def _is_block_device(path: str) -> bool:
    try:
        return stat.S_ISBLK(os.stat(path).st_mode)
    except OSError:
        return False
