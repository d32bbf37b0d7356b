"""Which superblock counts, and what is wrong with its copies. docs/format/superblock.md."""

from __future__ import annotations

from collections import Counter
from typing import Final

from mdstore.errors import CorruptionError, NotAnImage
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.problems import Damage, Findings, Place
from mdstore.tools.reader.ring import Ring
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

_NO_LOG: Final = 0
_LOG_ENTRIES: Final = 1
_LOG_HEAD: Final = 2


def check_superblocks(image: Image, findings: Findings) -> list[Superblock]:
    """The superblocks that can be believed, newest first; everything wrong with the copies goes to `findings`.

    Empty when all four are damaged (reported). NotAnImage or UnsupportedFormat when there is nothing to check.
    """
    if image.size < 4 * SIZE:
        raise NotAnImage(f"{image.path} is no mdstore image: {image.size} bytes cannot hold one")
    copies = read_copies(image)
    own = own_copies(image, copies)
    found = usable(own)
    if not found:
        _report_none(image, copies, findings)
        return []
    for copy in copies:
        if copy in own:
            _check_copy(copy, found[0], findings)
        elif copy.superblock is not None:
            what = f"{copy.name} is of another image: {copy.superblock.uuid.hex()}, not {found[0].uuid.hex()}"
            findings.add("superblock-foreign", what, Place(copy.name, byte=copy.offset))
    _check_size(image, found[0], findings)
    if unknown_features(found[0]):
        findings.add("superblock-features", unknown_features(found[0]), Place("superblock"))
    return found


def candidates(image: Image) -> list[Superblock]:
    """The image's own superblocks that can be believed, newest first, each epoch once. NewerFormat as `usable`."""
    return usable(own_copies(image, read_copies(image)))


def own_copies(image: Image, copies: list[Copy]) -> list[Copy]:
    """The copies without those of another image. Of the image is what has its log there: the log is not copied with a
    superblock, so this counts for more than how many copies there are. Where nobody has one, what most copies are; where that
    leaves several, what leads to sound trees. Cost: without heads of a log, a read of the log for each image."""
    there = [copy.superblock for copy in copies if copy.superblock is not None]
    counts = Counter(superblock.uuid for superblock in there)
    if len(counts) < 2:
        return copies
    vouched = {id(superblock): _log_evidence(image, superblock) for superblock in there}
    best = max(vouched.values())
    likely = [superblock for superblock in there if vouched[id(superblock)] == best]
    if best == _NO_LOG:
        most = max(counts.values())
        likely = [superblock for superblock in likely if counts[superblock.uuid] == most]
    likely.sort(key=lambda one: (-counts[one.uuid], -one.epoch))
    uuid = choose_superblock(image, likely, Findings(lambda _: None)).uuid
    return [copy for copy in copies if copy.superblock is None or copy.superblock.uuid == uuid]


def _log_evidence(image: Image, superblock: Superblock) -> int:
    """What of this superblock's image lies where it says that its log does: a head, only entries, or nothing."""
    codes: set[str] = set()
    try:
        Ring(image, superblock).read_head(lambda damage: codes.add(damage.code))
    except Damage:
        return _NO_LOG
    if "journal-no-head" not in codes:
        return _LOG_HEAD
    return _NO_LOG if "log-gone" in codes else _LOG_ENTRIES


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
        way = f"`truncate -s {needed} FILE`, then `mdstore repair`"
        gone = f"restore the end of the file from a backup; without one {way} saves what is left (keep a copy as it is now)"
        spares = f"only copies of the superblock were there: {way} writes them"
        findings.add("image-truncated", what, Place("image", byte=image.size), spares if image.size >= end else gone)
