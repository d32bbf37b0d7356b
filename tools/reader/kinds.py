"""Every kind of finding: its severity, what follows from it, what to do. `docs/damage.md` lists the same codes."""

from __future__ import annotations

from typing import Final, NamedTuple

_RECOVER: Final = "copy what still reads to another place, then restore from a backup"
_REOPEN: Final = "open the image for writing once"
_REPORT: Final = "keep a copy of the image, then run `mdstore repair`"


class Kind(NamedTuple):
    """What a code means."""

    severity: str
    consequence: str
    remedy: str


def _error(consequence: str, remedy: str = _REPORT) -> Kind:
    return Kind("error", consequence, remedy)


def _warning(consequence: str, remedy: str = _REOPEN) -> Kind:
    return Kind("warning", consequence, remedy)


def _note(consequence: str, remedy: str = "nothing to do") -> Kind:
    return Kind("note", consequence, remedy)


_IMAGE: Final = {
    "image-truncated": _error("Everything beyond the end is lost", "restore the end of the file from a backup"),
    "beyond-image": _error("What is named there cannot be read"),
    "unreadable": _error("The medium does not give these bytes", "copy the medium with ddrescue and check the copy"),
    "superblock": _error("This copy of the superblock cannot be used"),
    "superblock-copy": _warning("One of four copies is lost; the others are used"),
    "superblock-stale": _note(
        "A crash interrupted a checkpoint; the newer copy counts", "the next checkpoints rewrite it"
    ),
    "superblock-none": _error("The image cannot be opened", _RECOVER),
    "superblock-fallback": _error(
        "The newest superblock leads to damaged trees; an older one is used for this check", _RECOVER
    ),
    "superblock-unclean": _note("The image was not closed; opening it replays its log"),
}

_TREES: Final = {
    "root-record": _error("The tree cannot be opened"),
    "page-checksum": _error("Every record below this page is lost to readers", _RECOVER),
    "page-identity": _error("Another page lies where this one belongs; records below it are lost", _RECOVER),
    "page-structure": _error("The page's records cannot be read", _RECOVER),
    "page-order": _error("Look-ups miss records that are there"),
    "page-separator": _error("Look-ups miss records that are there"),
    "page-copy": _warning("One copy of a page is damaged; another one reads", "run a scrub: it rewrites the copy"),
    "overflow": _error("The value cannot be read", _RECOVER),
    "tree-count": _error("The number of records shown is wrong"),
    "tree-id": _error("A stale page of one tree could pass for a page of the other"),
}

_LOG: Final = {
    "log-ring": _error("The log cannot be replayed", _RECOVER),
    "journal-head": _warning("One of the log's two heads is lost; the other one counts"),
    "journal-no-head": _error("The log cannot be replayed; what it holds is not applied"),
    "log-torn": _note("A write that never finished; the next opening drops it"),
    "log-stale": _note("An entry of an earlier lap or writer; the next opening drops it"),
    "log-rot": _error("Acknowledged transactions of the log are damaged; opening stops rather than lose them"),
    "log-entry": _error("The log cannot be replayed from here on"),
    "log-replay": _error("The log cannot be replayed from here on"),
    "log-mapped": _error("Data that a durable log entry names is damaged", _RECOVER),
    "log-mapped-tail": _note("The last transaction's data never arrived; the next opening drops it"),
    "log-clean": _error("The superblock says that nothing follows, but the log does"),
}

_OBJECTS: Final = {
    "collection": _error("The collection cannot be listed"),
    "onode": _error("The object cannot be read", _RECOVER),
    "object-stray": _error("The object belongs to no collection: nobody can name it, its space is lost"),
    "collection-count": _error("The number of objects shown for the collection is wrong"),
    "collection-number": _error("The next new collection could show another one's objects"),
    "object-count": _error("The number of objects shown is wrong"),
    "allocated-count": _error("The object's allocated space is shown wrong"),
    "stored-bytes": _error("The stored bytes shown are wrong"),
    "extent": _error("The part of the object that the extent names cannot be read", _RECOVER),
    "extent-overlap": _error("Two extents hold the same part of the object; either may be the right one"),
    "extent-outside": _error("The part of the object that lies there cannot be read", _RECOVER),
    "extent-beyond-end": _error("Blocks behind the end of the object are held for nothing and may show old bytes"),
    "data-checksum": _error("Reading this block of the object gives EIO; its other blocks read", _RECOVER),
    "data-tail": _error("Bytes behind the end show when the object grows"),
}

_SPACE: Final = {
    "free-extent": _error("The image cannot be opened: its free space makes no sense"),
    "free-adjacent": _error("Free pieces that should be one are two: large files fragment"),
    "free-count": _error("The free space shown is wrong"),
    "space-leaked": _error("Space that nothing uses is never given out again"),
    "space-false-free": _error("The next writes overwrite what lies there: do not write to the image"),
    "space-shared": _error("Two owners hold the same block: writing one changes the other"),
}

KINDS: Final[dict[str, Kind]] = {**_IMAGE, **_TREES, **_LOG, **_OBJECTS, **_SPACE}
