"""Which superblock a stream of a whole image starts from, and what of it did not read."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from mdstore.errors import MdstoreError, NotAnImage, NotFound
from mdstore.tools.reader.check_superblock import candidates
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.mds_views import tree_view
from mdstore.tools.reader.problems import Damage
from mdstore.tools.reader.snapshots import find_snapshot
from mdstore.tools.reader.store import StoreReader
from mdstore.tools.reader.stream import ObjectStream
from mdstore.tools.reader.superblock import Superblock
from mdstore.tools.reader.views import Source, as_bytes

_FILE_OBJECT: Final = re.compile(r"(data|meta)/([0-9a-f]{16})(\.[0-9a-f]{8})?\b")
_FINDS: Final = 5  # times a snapshot is looked for in an image that is written meanwhile


def newest_superblock(image: Image) -> Superblock:
    """The one that opening the image would take. NotAnImage."""
    found = candidates(image)
    if not found:
        raise NotAnImage(f"{image.path} has no usable superblock; `mdstore fsck` says why")
    return found[0]


def snapshot_superblock(image: Image, name: bytes) -> Superblock:
    """That of a snapshot of the store, also while the image is in use: what a snapshot reaches does not change.
    NotFound, InvalidRequest; Damage."""
    for attempt in range(_FINDS):
        try:
            return find_snapshot(StoreReader(image, newest_superblock(image)), name).superblock
        except Damage:
            if attempt == _FINDS - 1:  # the first ones may be the trace of a checkpoint under way
                raise
    raise AssertionError("the last attempt returns or raises")


def stream_of(image: Image, snapshot: str | None = None, *, finds_shares: bool = False) -> ObjectStream:
    """All of an image as it is, its log applied, or as a snapshot knows it. Damage is raised as it is met."""
    if snapshot is None:
        return ObjectStream(image, newest_superblock(image), finds_shares=finds_shares)
    chosen = snapshot_superblock(image, as_bytes(snapshot))
    return ObjectStream(image, chosen, with_log=False, finds_shares=finds_shares)


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that does not read: whose it is, and the evidence."""

    whose: str
    what: str
    path: str = ""  # of the file or directory it belongs to, where that is known

    def __str__(self) -> str:
        return f"lost: {self.path + ': ' if self.path else ''}{self.whose}: {self.what}"


@dataclass
class Salvage:
    """Whatever still reads of an image, or of a snapshot in it, and what does not, each thing once."""

    image: Image
    snapshot: str | None = None
    losses: dict[tuple[str, str], Loss] = field(default_factory=dict)
    _kept: Superblock | None = None

    def stream(self) -> ObjectStream:
        """The stream of the newest superblock whose own trees can be entered, or of the snapshot. NotAnImage when there is none
        at all; NotFound, InvalidRequest of a snapshot."""
        found = candidates(self.image)
        if not found:
            raise NotAnImage(f"{self.image.path} has no usable superblock left; `mdstore repair` may find one")
        if self.snapshot is not None:
            self._kept = self._find(found, as_bytes(self.snapshot))
            return ObjectStream(self.image, self._kept, with_log=False, on_loss=self._lost)
        chosen = next((superblock for superblock in found if self._can_be_entered(superblock)), found[0])
        if chosen is not found[0]:
            self.lose("the store", f"the superblock of epoch {found[0].epoch} leads nowhere; epoch {chosen.epoch} is taken")
        return ObjectStream(self.image, chosen, on_loss=self._lost)

    def _lost(self, whose: str, damage: Damage) -> None:
        self.lose(whose, _sentence(damage))

    def _find(self, found: list[Superblock], name: bytes) -> Superblock:
        """That of the snapshot, by the newest superblock that still knows it."""
        missing: NotFound | None = None
        for superblock in found:
            try:
                snapshot = find_snapshot(StoreReader(self.image, superblock, on_damage=lambda _: None), name)
            except NotFound as error:
                missing = missing or error
                continue
            if not snapshot.is_deleting:
                return snapshot.superblock
        raise missing or NotFound("snapshot (it is being deleted)", name)

    def lose(self, whose: str, what: str) -> None:
        """Note something that does not read."""
        self.losses.setdefault((whose, what), Loss(whose, what))

    def named(self) -> list[Loss]:
        """What was lost, with the paths of files and directories. Reads the name space once when there is need for it."""
        numbers = {int(match[2], 16) for loss in self.losses.values() if (match := _FILE_OBJECT.match(loss.whose))}
        paths = self._paths(numbers) if numbers else {}
        named = []
        for loss in self.losses.values():
            match = _FILE_OBJECT.match(loss.whose)
            path = paths.get(int(match[2], 16), "") if match else ""
            named.append(Loss(loss.whose, loss.what, path))
        return named

    def _paths(self, numbers: set[int]) -> dict[int, str]:
        paths = {1: "/"} if 1 in numbers else {}
        try:
            for section in tree_view(Source(self.image, self._kept), "/"):
                for row in section.rows:
                    if row["ino"] in numbers:
                        paths.setdefault(int(str(row["ino"])), str(row["path"]))
        except MdstoreError:
            return paths  # names are a courtesy: the objects' own are given in any case
        return paths

    def _can_be_entered(self, superblock: Superblock) -> bool:
        reader = StoreReader(self.image, superblock)
        try:
            for _, collection in reader.collections():
                next(iter(reader.objects(collection.number)), None)
        except Damage:
            return False
        return True


def _sentence(damage: Damage) -> str:
    return f"{damage.sentence} ({damage.place})"
