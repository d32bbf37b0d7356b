"""Every kind of finding: its severity, what follows from it, what to do. `docs/damage.md` lists the same codes."""

from __future__ import annotations

from typing import Final, NamedTuple

_RECOVER: Final = "`mdstore repair` saves what is left and names what is lost; a backup has the rest"
_REOPEN: Final = "open the image for writing once"
_REPORT: Final = "`mdstore repair` says what would set it right; --apply does it"


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
    "superblock-foreign": _error(
        "The image may not open, or open as of the past: the newest superblock is taken, whosever it is"
    ),
    "superblock-stale": _note(
        "A crash interrupted a checkpoint; the newer copy counts", "the next checkpoints rewrite it"
    ),
    "superblock-none": _error("The image cannot be opened", _RECOVER),
    "superblock-fallback": _error(
        "The newest superblock leads to damaged trees; an older one is used for this check", _RECOVER
    ),
    "superblock-features": _note(
        "A newer mdstore made this image; this one leaves those features as they are, and may not know all that is wrong",
        "check it with the version that made it",
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
    "overflow-tail": _error("Nothing is lost: bytes behind the end of a long value show when it grows"),
    "tree-count": _error("The number of records shown is wrong"),
    "tree-id": _error("The next new tree gets this id too; a stale page of one could pass for a page of the other"),
}

_LOG: Final = {
    "log-ring": _error("The log cannot be replayed", _RECOVER),
    "journal-head": _warning("One of the log's two heads is lost; the other one counts"),
    "journal-no-head": _warning("Both of the log's heads are lost; a search for its entries stands for them"),
    "log-gone": _error("Whatever was acknowledged since the last checkpoint is gone; opening stops rather than hide that"),
    "log-unreadable": _error("Entries may lie where the log does not read; opening stops rather than lose them"),
    "log-unreadable-behind": _warning("The log was closed before it and opens; a write that comes there may fail", _REPORT),
    "log-torn": _note("A write that never finished; the next opening drops it"),
    "log-rot": _error("Acknowledged transactions of the log are damaged; opening stops rather than lose them"),
    "log-entry": _error("The log cannot be replayed from here on"),
    "log-replay": _error("The log cannot be replayed from here on"),
    "log-mapped": _error("Data that a durable log entry names is damaged", _RECOVER),
    "log-mapped-tail": _note("The last transaction's data never arrived; the next opening drops it"),
    "log-clean": _error("The superblock says that nothing follows, but the log does"),
}

_OBJECTS: Final = {
    "collection": _error("The collection cannot be listed"),
    "unjudged": _note("More may be wrong than what is listed", "restore what is damaged, then check again"),
    "onode": _error("The object cannot be read", _RECOVER),
    "object-stray": _error("The object belongs to no collection: nobody can name it, its space is lost"),
    "revision": _error("Reads at a revision are answered from the wrong state, or from none"),
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
    "floor": _error("The image cannot be opened: a writer that was replaced could be let in again"),
    "free-extent": _error("The image cannot be opened: its free space makes no sense"),
    "free-adjacent": _error("Free pieces that should be one are two: large files fragment"),
    "free-count": _error("The free space shown is wrong"),
    "space-leaked": _error("Space that nothing uses is never given out again"),
    "space-false-free": _error("The next writes overwrite what lies there: do not write to the image"),
    "references": _error("A count too high leaks space; one too low frees what is in use: do not write to the image"),
    "group": _error("Clones that share one data tree are miscounted: changing one could change or lose the other"),
    "snapshot": _error("The snapshot cannot be read"),
    "dead-run": _error("Deleting a snapshot would free what is in use, or leave it behind: delete none"),
    "space-shared": _error("Two owners hold the same block: writing one changes the other"),
}

_EVENTS: Final = {
    "server-record": _error("The file system cannot be mounted", _RECOVER),
    "event-head": _warning(
        "One of the metadata log's two heads is lost; the other one counts", "mount the file system once"
    ),
    "event-no-head": _error("The metadata log cannot be replayed; what it holds is not applied"),
    "event-log": _error("The metadata log cannot be read"),
    "event-torn": _note("An event that was never acknowledged; the next mount drops it"),
    "event-rot": _error("Acknowledged events are damaged; mounting stops rather than lose them"),
    "event": _error("The file system does not open for writing: this event cannot be applied"),
    "event-directory": _error("Changes of a directory are in the log, but the directory is nowhere"),
    "event-partial": _note("The name space is judged without the events that could not be read"),
}

_NAMES: Final = {
    "directory": _error("The directory and all below it answer EIO"),
    "inode": _error("The entry answers EIO"),
    "entry": _error("The entry answers EIO"),
    "entry-name": _error("The entry cannot be named by any program"),
    "entry-dangling": _error("The name leads to no inode: using it gives EIO"),
    "entry-type": _error("Listings show another type than the inode has"),
    "directory-orphan": _error(
        "The directory and all below it cannot be reached", "its entries can be seen with `mdstore dump`"
    ),
    "directory-loop": _error("The directory and all below it cannot be reached: it lies inside itself"),
    "directory-links": _error("The directory has two places in the tree"),
    "directory-parent": _error("`..` leads to another place than where the directory hangs"),
    "directory-size": _error("The number of entries shown for the directory is wrong"),
    "link-count": _error("The link count shown is wrong; a file could be purged too early or never"),
    "inode-duplicate": _error("Two places own one inode: removing one destroys the other's bytes"),
    "inode-orphan": _error(
        "The inode has no name: nobody can reach it", "its record can be seen with `mdstore dump IMAGE inode`"
    ),
    "inode-number": _error("The number will be given out again, to another file"),
    "link-table": _error("Removing names of this inode goes wrong: its link table does not match its names"),
    "link-home": _error("The statistics of no directory, or of the wrong one, count the inode's bytes"),
    "table-row": _error("The inode of this row answers EIO"),
    "stray": _error("The file without a name cannot be purged; its space is lost"),
    "statistics": _error("The recursive statistics shown are wrong"),
    "backtrace": _error("The file could not be found again if its directory were lost"),
    "backtrace-old": _note("The file was moved or renamed since; only a rebuild of a lost directory would notice"),
    "data-orphan": _warning("A crash left bytes that belong to no inode; their space is lost", _REPORT),
    "data-flag": _warning("The inode does not know that it has bytes: removing it would leave them", _REPORT),
    "damage-row": _note("The metadata server met damage here and noted it"),
    "session-row": _error("A request could be done twice, or a file without a name be lost or never removed"),
    "quota-orphan": _note("A quota of a directory that is gone"),
    "foreign-object": _warning("An object in the file system's collections that is none of its own"),
}

KINDS: Final[dict[str, Kind]] = {**_IMAGE, **_TREES, **_LOG, **_OBJECTS, **_SPACE, **_EVENTS, **_NAMES}
