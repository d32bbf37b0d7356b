"""`mdstore load`, `recover`, `compact`, `copy`: whole images, made anew from what the second reader reads of others."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import IO, Final

import click

from mdstore.device.file import FileDevice, sync_directory_of
from mdstore.errors import NoSpace, TransactionError
from mdstore.limits import IMAGE_SIZE_MIN, MAP_VALUE_MAX, MIB
from mdstore.store.log import log_size
from mdstore.tools.image_loader import Loaded, Shape, make_image_of
from mdstore.tools.images import image_argument, json_option, size
from mdstore.tools.output import CommandFailed, complain, count_text, print_json, print_line, size_text
from mdstore.tools.reader.dump_lines import DumpLines
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.stream import ObjectStream
from mdstore.tools.reader.whole import Salvage, newest_superblock, stream_of

EXIT_LOST: Final = 4
_SLACK_BYTES: Final = 4 * MIB
_BEHIND_BLOCKS: Final = 8192  # bytes of an image behind its blocks: the spare superblocks
_GROWTH: Final = 1.5  # of an image that turned out too small
_ATTEMPTS: Final = 6
_FIRST_LINE_MAX: Final = 4096
_LINE_MAX: Final = MAP_VALUE_MAX * 3 // 2  # the longest holds a value in base 64


class TooSmall(CommandFailed):
    """The content does not fit the image."""


_force = click.option("--force", is_flag=True, help="Overwrite a file that is there.")
_sparse = click.option("--sparse", is_flag=True, help="Do not reserve the new image's space: it is taken as the image fills.")
_log = click.option(
    "--log-size", "log_bytes", type=size, help="Size of the new image's log [that of the old one where it was chosen]."
)
_source = click.argument("source", type=click.Path(readable=False))
_target = click.argument("target", type=click.Path(readable=False))


@click.command("load")
@image_argument
@click.argument("dump", type=click.File("rb"), default="-")
@click.option("--size", "size_bytes", type=size, help="Size of the image [that of the one dumped].")
@_log
@_force
@_sparse
@json_option
def load_command(
    image: str, dump: IO[bytes], size_bytes: int | None, log_bytes: int | None, force: bool, sparse: bool, as_json: bool
) -> None:
    """Make IMAGE from a DUMP (a file, or standard input) that `mdstore dump --all` wrote.

    \b
    mdstore dump --all old.img | mdstore load new.img
    zstdcat backup.zst | mdstore load new.img --size 40G

    The new image holds the same: dumped again, it gives the same bytes (with the same --size). A dump that is not whole makes
    no image.
    """
    if os.path.exists(image) and os.path.samestat(os.stat(image), os.fstat(dump.fileno())):
        raise CommandFailed(f"{image} is the dump itself: name another file to write to")
    lines = DumpLines(_lines(dump), getattr(dump, "name", "dump"))
    shape = Shape(
        size_bytes or lines.header.size_bytes, lines.header.block_size, sparse=sparse,
        log_bytes=log_bytes or chosen_log(*lines.header),
    )  # fmt: skip
    with _room_said(image, "--size"):
        loaded = make_image_of(image, shape, lines.records(), force=force)
    _say(image, loaded, as_json=as_json)


def _lines(dump: IO[bytes]) -> Iterator[bytes]:
    """Lines, cut off where no dump has one so long: memory does not grow with what is no dump."""
    longest = _FIRST_LINE_MAX
    while line := dump.readline(longest):
        yield line
        longest = _LINE_MAX


@click.command("recover")
@_source
@_target
@click.option("--snapshot", metavar="NAME", help="What this snapshot of the store knows; SOURCE may be in use meanwhile.")
@click.option("--size", "size_bytes", type=size, help="Size of the new image [that of the old].")
@_log
@_force
@_sparse
@json_option
def recover_command(
    source: str, target: str, snapshot: str | None, size_bytes: int | None, log_bytes: int | None, force: bool, sparse: bool,
    as_json: bool,
) -> int:  # fmt: skip
    """Salvage whatever still reads of SOURCE into TARGET, a new image; list what was lost, by name. SOURCE is never written.

    \b
    mdstore recover broken.img saved.img
    mdstore repair saved.img --apply
    mdstore recover work.img monday.img --snapshot monday     a snapshot of which a part is damaged

    A damaged block costs its own bytes (they read as zeros), a damaged page what lies below it. What refers to something lost
    still does: let `mdstore repair` set the new image's name space right. Exit code 4 when something was lost.
    """
    _refuse_same(source, target)
    with _guard(source, held=snapshot is None), Image(source) as image:
        salvage = Salvage(image, snapshot)
        shape = _like(image, size_bytes, log_bytes, sparse=sparse)
        loaded = _made_like(target, shape, salvage.stream(), force=force)
        losses = salvage.named()
    if as_json:
        print_json({"image": target, **asdict(loaded), "lost": [asdict(loss) for loss in losses]})
        return EXIT_LOST if losses else 0
    for loss in losses:
        print_line(str(loss))
    _say(target, loaded, as_json=False)
    if losses:
        complain(f"{count_text(len(losses), 'thing')} of {source} could not be read; they are listed above")
    return EXIT_LOST if losses else 0


@click.command("copy")
@_source
@_target
@click.option("--snapshot", metavar="NAME", help="What this snapshot of the store knows; SOURCE may be in use meanwhile.")
@click.option("--size", "size_bytes", type=size, help="Size of the new image [that of the old].")
@_log
@_force
@_sparse
@json_option
def copy_command(
    source: str, target: str, snapshot: str | None, size_bytes: int | None, log_bytes: int | None, force: bool, sparse: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Copy the content of SOURCE into TARGET, a new image: a backup.

    \b
    mdstore copy work.img backup.img
    mdstore copy work.img backup.img --snapshot before      hot: work.img is mounted and in use

    Damage ends the copy: a backup is whole or it is none.
    """
    _refuse_same(source, target)
    with _guard(source, held=snapshot is None), Image(source) as image:
        shape = _like(image, size_bytes, log_bytes, sparse=sparse)
        loaded = _made_like(target, shape, stream_of(image, snapshot, finds_shares=True), force=force)
    _say(target, loaded, as_json=as_json)


@click.command("compact")
@_source
@click.argument("target", type=click.Path(readable=False), required=False)
@click.option("--size", "size_bytes", type=size, help="Size of the new image, in whole MiB [as small as its content allows].")
@_log
@_force
@_sparse
@json_option
def compact_command(
    source: str, target: str | None, size_bytes: int | None, log_bytes: int | None, force: bool, sparse: bool, as_json: bool
) -> None:
    """Make a smaller image of the same content: TARGET, or SOURCE itself, replaced in one step once the new one is whole.

    \b
    mdstore compact photos.img
    mdstore compact photos.img small.img --size 2G

    Snapshots are not carried over: an image that has some is compacted only into another file. What shares space keeps sharing it
    where it is all of an object; parts of objects that were cloned are stored twice.
    """
    in_place = target is None
    source = os.path.realpath(source) if in_place else source  # the image, not a link to it
    new = f"{source}.compact" if target is None else target
    if not in_place:
        _refuse_same(source, new)
    with _held(source), Image(source) as image:
        if in_place:
            _refuse_replacing(source, image)
        shape = _like(image, size_bytes, log_bytes, sparse=sparse)
        loaded = _compacted(image, new, shape, is_asked=size_bytes is not None, force=force)
        before = image.size
        if in_place:
            _replace(new, source)
    after = os.stat(source if in_place else new).st_size
    if as_json:
        name = source if in_place else new
        print_json({"image": name, **asdict(loaded), "size_bytes_before": before, "size_bytes": after})
        return
    _say(source if in_place else new, loaded, as_json=False)
    print_line(f"{size_text(before)} before, {size_text(after)} now")


def _compacted(image: Image, new: str, shape: Shape, *, is_asked: bool, force: bool) -> Loaded:
    """Of the size asked for; else try the one that should do, and a larger one where it does not (what was shared in parts takes
    more)."""
    superblock = newest_superblock(image)
    used = (superblock.blocks - superblock.free_blocks - superblock.log_blocks) * superblock.block_size
    room = max(IMAGE_SIZE_MIN, used + used // 4 + _SLACK_BYTES)
    for attempt in range(_ATTEMPTS):
        wanted = shape.size_bytes if is_asked else room + (shape.log_bytes or 0)
        stream = stream_of(image, finds_shares=True)
        try:
            with _room_said(new, "--size"):
                return make_image_of(new, replace(shape, size_bytes=_whole_mib(wanted)), stream.records(), force=force)
        except TooSmall:
            if is_asked or attempt == _ATTEMPTS - 1:
                raise
            room = int(room * _GROWTH)
    raise AssertionError("the last attempt returns or raises")


def _made_like(target: str, shape: Shape, stream: ObjectStream, *, force: bool) -> Loaded:
    with _room_said(target, "--size"):
        return make_image_of(target, shape, stream.records(), force=force)


def _like(image: Image, size_bytes: int | None, log_bytes: int | None, *, sparse: bool) -> Shape:
    """As large as the image it is made of, unless told otherwise; blocks, stripes, and a log of another size than its own
    asks for, as there."""
    superblock = newest_superblock(image)
    size_before = max(image.size, superblock.blocks * superblock.block_size + _BEHIND_BLOCKS)  # as it was before it was cut short
    log_before = superblock.log_blocks * superblock.block_size
    return Shape(
        size_bytes or size_before, superblock.block_size, superblock.stripe_bytes, superblock.stripe_offset, sparse,
        log_bytes or chosen_log(size_before, superblock.block_size, log_before),
    )  # fmt: skip


def chosen_log(size_bytes: int, block_size: int, log_bytes: int) -> int | None:
    """The size of an image's log where it is not the one that an image of `size_bytes` is given; else None. `log_bytes` 0: not
    known."""
    return log_bytes if log_bytes and log_bytes != log_size(size_bytes, block_size) else None


def _whole_mib(size_bytes: int) -> int:
    return -(-size_bytes // MIB) * MIB


def _refuse_replacing(source: str, image: Image) -> None:
    if not stat.S_ISREG(os.stat(source).st_mode):
        raise CommandFailed(f"{source} is no plain file and cannot be replaced by one; name a TARGET")
    if ObjectStream(image, newest_superblock(image), with_log=False).has_snapshots():
        raise CommandFailed(f"{source} has snapshots, which are not carried over: delete them, or name a TARGET")


def _replace(new: str, source: str) -> None:
    """The new image takes the old one's owner, mode and name; durable on return."""
    old = os.stat(source)
    os.chmod(new, stat.S_IMODE(old.st_mode))
    if os.geteuid() == 0:
        os.chown(new, old.st_uid, old.st_gid)
    os.replace(new, source)
    sync_directory_of(source)


# -- what they share ---------------------------------------------------------------------------------------------------


def _say(image: str, loaded: Loaded, *, as_json: bool) -> None:
    if as_json:
        print_json({"image": image, **asdict(loaded)})
        return
    revisions = f", {count_text(loaded.revisions, 'revision')}" if loaded.revisions else ""
    print_line(
        f"{image}: {count_text(loaded.objects, 'object')}{revisions} in {count_text(loaded.collections, 'collection')}, "
        f"{size_text(loaded.data_bytes)} of data, {count_text(loaded.pairs, 'key')}"
    )


def _refuse_same(source: str, target: str) -> None:
    if os.path.exists(source) and os.path.exists(target) and os.path.samefile(source, target):
        raise CommandFailed(f"{source} and {target} are one file: name another to write to")


@contextmanager
def _held(path: str) -> Iterator[None]:
    """Nobody writes the image meanwhile. ImageBusy, NotFound, NotAnImage."""
    device = FileDevice.open(path, read_only=True)
    try:
        yield
    finally:
        device.close()


@contextmanager
def _guard(path: str, *, held: bool) -> Iterator[None]:
    if not held:
        yield
        return
    with _held(path):
        yield


@contextmanager
def _room_said(image: str, option: str) -> Iterator[None]:
    """An image that turns out too small says what to do."""
    try:
        yield
    except (NoSpace, TransactionError) as error:
        cause = error.cause if isinstance(error, TransactionError) else error
        if not isinstance(cause, NoSpace):
            raise
        raise TooSmall(f"{image} is too small for the content ({cause}); make it larger ({option})") from error
