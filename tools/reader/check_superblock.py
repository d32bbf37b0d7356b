"""Which superblock counts, and what is wrong with its copies. docs/format/superblock.md."""

from __future__ import annotations

from mdstore.errors import CorruptionError, NotAnImage
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.problems import Damage, Findings, Place
from mdstore.tools.reader.store import StoreReader
from mdstore.tools.reader.superblock import (
    MAGIC,
    ROOT_COLLECTIONS,
    ROOT_FREE,
    ROOT_OBJECTS,
    SIZE,
    Copy,
    Superblock,
    read_copies,
    unknown_features,
    usable,
)


def check_superblocks(image: Image, findings: Findings) -> list[Superblock]:
    """The superblocks that can be believed, newest first; everything wrong with the copies goes to `findings`.

    Empty when all four are damaged (reported). NotAnImage or UnsupportedFormat when there is nothing to check.
    """
    if image.size < 4 * SIZE:
        raise NotAnImage(f"{image.path} is no mdstore image: {image.size} bytes cannot hold one")
    copies = read_copies(image)
    found = usable(copies)
    if not found:
        _report_none(image, copies, findings)
        return []
    for copy in copies:
        _check_copy(copy, found[0], findings)
    _check_size(image, found[0], findings)
    if unknown_features(found[0]):
        findings.add("superblock-features", unknown_features(found[0]), Place("superblock"))
    return found


def choose_superblock(image: Image, candidates: list[Superblock], findings: Findings) -> Superblock:
    """The newest superblock whose trees can be opened; the newest of all when none can."""
    for superblock in candidates:
        reader = StoreReader(image, superblock)
        try:
            for kind in (ROOT_OBJECTS, ROOT_COLLECTIONS, ROOT_FREE):
                next(reader.root_tree(kind).items(), None)
        except Damage as damage:
            findings.add_damage(damage)
            continue
        if superblock is not candidates[0]:
            what = f"the superblock of epoch {candidates[0].epoch} leads to damaged trees; epoch {superblock.epoch} is read"
            findings.add("superblock-fallback", what, Place("superblock"))
        return superblock
    return candidates[0]


def _report_none(image: Image, copies: list[Copy], findings: Findings) -> None:
    """No copy can be used: say why, or that this never was an image."""
    if not any(isinstance(copy.error, CorruptionError) for copy in copies):
        raise NotAnImage(f"{image.path} is no mdstore image: none of the four superblocks begins with {MAGIC.decode()}")
    for copy in copies:
        _add(copy, "superblock", findings)
    findings.add("superblock-none", "no copy of the superblock can be used", Place("superblock"))


def _check_copy(copy: Copy, newest: Superblock, findings: Findings) -> None:
    """Judge one copy against the newest superblock."""
    expected = newest.epoch if copy.slot == newest.epoch % 2 else newest.epoch - 1
    place = Place(copy.name, byte=copy.offset)
    if copy.superblock is None:
        if expected > 0:
            _add(copy, "superblock-copy", findings)
    elif copy.superblock.epoch != expected:
        what = f"{copy.name} is of epoch {copy.superblock.epoch}, not {expected}"
        findings.add("superblock-stale", what, place)
    elif copy.superblock.epoch == newest.epoch and copy.superblock != newest:
        findings.add("superblock", f"{copy.name} differs from the other copy of epoch {newest.epoch}", place)


def _add(copy: Copy, code: str, findings: Findings) -> None:
    error = copy.error
    what = error.sentence if isinstance(error, Damage) else str(error)
    findings.add(code, what, Place(copy.name, byte=copy.offset))


def _check_size(image: Image, newest: Superblock, findings: Findings) -> None:
    end = newest.blocks * newest.block_size
    needed = -(-end // SIZE) * SIZE + 2 * SIZE  # the spare copies lie behind the blocks
    if image.size < needed:
        what = f"the image has {image.size} bytes, its superblock says {needed}"
        spares = f"only copies of the superblock were there: `truncate -s {needed} FILE`, then `mdstore repair` writes them"
        findings.add("image-truncated", what, Place("image", byte=image.size), spares if image.size >= end else None)
