"""What a command cannot read of an image, and goes on without: named on stderr as it is met, counted for the exit code.

Damage is local, so are its consequences here: `listing` gives every name that reads, whatever lies beside it, and an error in the
place of what does not. Where the pages of a directory are damaged, the second reader says which names lie behind them.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Final, NamedTuple, Self

from mdstore.errors import CorruptionError, DeviceFailed, MdstoreError, NotFound, PosixError
from mdstore.mds.frozen import INO_MASK
from mdstore.mds.records import INO_BITS
from mdstore.mds.snapdir import SNAPDIR
from mdstore.mds.snapshots import Snapshots
from mdstore.mds.vfs import SUPERUSER, Attr, DirEntry, Vfs, unreadable
from mdstore.tools.output import EXIT_FAILED, EXIT_OK, complain, explain, json_name, shown
from mdstore.tools.reader.check_events import open_name_space
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.mds_directory import COLLECTION, object_name
from mdstore.tools.reader.mds_view import NameSpace
from mdstore.tools.reader.overlay import Overlay
from mdstore.tools.reader.problems import Findings
from mdstore.tools.reader.store import StoreReader
from mdstore.tools.reader.views import Source
from mdstore.tools.reader.whole import snapshot_superblock

UNREADABLE: Final = (CorruptionError, DeviceFailed)
NO_NAME: Final = b""
PAGE: Final = 512  # entries of a directory asked for at once


class Listed(NamedTuple):
    """A name of a directory. `error`: why it cannot be used; `attr` is that of nothing then. `NO_NAME` with an error: names that
    cannot even be listed."""

    name: bytes
    attr: Attr
    error: MdstoreError | None = None


class LeftOut:
    """What one command left out."""

    def __init__(self, say: Callable[[str], None] = complain) -> None:
        self._say = say
        self.count = 0

    def note(self, path: bytes, error: MdstoreError, what: str = "left out") -> dict[str, str]:
        """Name it on stderr, in one line: what, where, what to do. Returns the same for a JSON document."""
        self.count += 1
        said = f"{what}: {explain(error)}"
        said += "; save the rest with `mdstore recover`" if isinstance(error, DeviceFailed) else ", then `mdstore repair`"
        self._say(f"{shown(path)}: {said}")
        return {"path": json_name(path), "error": said}

    def note_listed(self, directory: bytes, listed: Listed) -> dict[str, str]:
        """The same for a name of a listing that came with an error."""
        assert listed.error is not None
        if listed.name == NO_NAME:
            return self.note(directory or b"/", listed.error, "some names in it cannot be listed")
        return self.note(directory.rstrip(b"/") + b"/" + listed.name, listed.error)

    @property
    def exit_code(self) -> int:
        """EXIT_FAILED where anything was left out."""
        return EXIT_FAILED if self.count else EXIT_OK


class SecondNames:
    """The names in directories of an image, as the second reader sees them: it reads around damaged pages. `snapshots`: those of
    the name space looked into, so that its numbers are understood. Opened at the first question; to be left at the end."""

    def __init__(self, image: str, snapshots: Snapshots | None = None) -> None:
        self._path = image
        self._snapshots = snapshots
        self._opened = ExitStack()
        self._image: Image | None = None
        self._known: dict[int, NameSpace] = {}  # by slot of a snapshot; 0: the living name space

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def behind(self, directory: int, after: bytes | None) -> Iterator[bytes]:
        """Names behind `after`, in order, as far as they read. Cost: the directory; the first time in a name space the log."""
        if directory >= SNAPDIR:
            return
        try:
            names = self._name_space(directory >> INO_BITS)
            ino = directory & INO_MASK
            found, change = names.store.find(COLLECTION, object_name(ino)), names.changed.get(ino)
            if found is None and change is None:
                return
            for name, _ in names.entries(found, change):
                if after is None or name > after:
                    yield name
        except (MdstoreError, OSError):  # it reads no more than the engine did, and that was told
            return

    def _name_space(self, slot: int) -> NameSpace:
        known = self._known.get(slot)
        if known is None:
            if self._image is None:
                self._image = self._opened.enter_context(Image(self._path))
            known = self._known[slot] = self._snapshot(self._image, slot) if slot else Source(self._image).names()
        return known

    def _snapshot(self, image: Image, slot: int) -> NameSpace:
        key = None if self._snapshots is None else self._snapshots.key_of(slot)
        if key is None:
            raise NotFound("snapshot", slot)
        reader = StoreReader(image, snapshot_superblock(image, key), on_damage=lambda _: None)
        names = open_name_space(Overlay(reader), Findings(lambda _: None))
        if names is None:
            raise NotFound("file system in snapshot", slot)
        return names


def listing(vfs: Vfs, directory: int, names: SecondNames | None = None) -> Iterator[Listed]:
    """Every name of a directory in byte order, read page by page. What cannot be read comes with its error and hides nothing;
    what cannot be listed is one of `NO_NAME`, and no name without an error leads out of the directory. An entry's inode is
    referenced, and its number good, until the next is asked for. `names`: where to look for those behind damage, or None."""
    try:
        handle = vfs.opendir(SUPERUSER, directory)
    except UNREADABLE as error:
        yield Listed(NO_NAME, unreadable(), error)
        return
    held: list[DirEntry] = []
    after: bytes | None = None
    try:
        while True:
            try:
                page = vfs.readdir(handle, after, PAGE, count_lookups=True)
            except UNREADABLE as error:
                yield Listed(NO_NAME, unreadable(), error)
                if names is not None:
                    yield from _around(vfs, directory, names.behind(directory, after))
                return
            if not page:
                return
            after = page[-1].name
            held = page[::-1]
            while held:
                if held[-1].attr.ino:
                    name, attr = held[-1]
                    yield Listed(name, attr) if is_component(name) else _misnamed(directory, name)
                    vfs.forget(held.pop().attr.ino, 1)
                else:  # damaged: the lookup says how
                    yield from _around(vfs, directory, iter([held.pop().name]))
    finally:
        for entry in held:
            if entry.attr.ino:
                vfs.forget(entry.attr.ino, 1)
        vfs.releasedir(handle)


class Descent:
    """A walk down from `top`, and which directories it may enter. In an image that was forged, or that damage left so,
    directories lie inside themselves, or in several places at once: a walk by names alone never ends, or goes every way there is.
    Here each is entered where it says that it hangs, in one other place at most (`strict`: in none), and never inside itself.
    Memory: some 60 bytes for each directory that was entered where it does not hang, or from one of the path the walk is in."""

    def __init__(self, vfs: Vfs, top: int, *, strict: bool = False) -> None:
        self._vfs = vfs
        self._strict = strict
        self._above = [top]
        self._entered: list[set[int]] = [set()]  # of each directory above, what was entered from it
        self._elsewhere: set[int] = set()  # entered where they do not hang

    def looked_at(self, found: Listed) -> Listed:
        """What is listed in the directory that the walk is in: a directory that is not to be entered comes with why."""
        if found.error is not None or not stat.S_ISDIR(found.attr.mode):
            return found
        error = self._objection(found)
        return found if error is None else Listed(found.name, found.attr, error)

    def _objection(self, found: Listed) -> CorruptionError | None:
        """None, and counted as entered, where there is none."""
        ino, directory = found.attr.ino, self._above[-1]
        if ino in self._above:
            return self._astray(found.name, "one that it lies in")
        parent = self._vfs.parent_of(ino)
        if parent == directory and ino not in self._entered[-1]:
            self._entered[-1].add(ino)
            return None
        if self._strict or ino in self._elsewhere or parent == directory:
            return self._astray(found.name, f"one that hangs in inode {parent & INO_MASK}, under another name")
        self._elsewhere.add(ino)
        return None

    def _astray(self, name: bytes, found: str) -> CorruptionError:
        where = f"inode {self._above[-1] & INO_MASK} entry {name!r}"
        return CorruptionError("directory entry", where, "a directory that hangs here", found)

    def enter(self, ino: int) -> None:
        """The walk goes on in that directory."""
        self._above.append(ino)
        self._entered.append(set())

    def leave(self) -> None:
        """And back in the one above."""
        self._above.pop()
        self._entered.pop()


def is_component(name: bytes) -> bool:
    """Whether a name from an image is one component of a path, and leads nowhere else."""
    return not (b"/" in name or b"\0" in name or name in (b"", b".", b".."))


def _misnamed(directory: int, name: bytes) -> Listed:
    where = f"inode {directory & INO_MASK}"
    return Listed(name, unreadable(), CorruptionError("directory entry", where, "a name without slashes", name))


def _around(vfs: Vfs, directory: int, names: Iterator[bytes]) -> Iterator[Listed]:
    """Each of `names`, looked up by itself."""
    for name in names:
        if not is_component(name):  # a lookup of `..` would lead out of the directory
            yield _misnamed(directory, name)
            continue
        try:
            attr = vfs.lookup(SUPERUSER, directory, name)
        except UNREADABLE as error:
            yield Listed(name, unreadable(), error)
        except PosixError as error:
            if error.errno != errno.ENOENT:  # otherwise it was removed meanwhile
                where = f"inode {directory & INO_MASK}"
                yield Listed(name, unreadable(), CorruptionError("directory entry", where, "a name to look up", error))
        else:
            try:
                yield Listed(name, attr)
            finally:
                vfs.forget(attr.ino, 1)

