"""Everything an image holds as one stream of records, object by object, in the order of names: what `dump --all`, `recover` and
`compact` are made of.

The stream depends on the content alone, not on how it lies: blocks of zeros are left out whether they are holes or not, and the
log is replayed in memory. Memory: one chunk, and what the log holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import merge
from typing import Final, TypeVar

from mdstore.tools.reader.check_log import LogCheck
from mdstore.tools.reader.data import DataView
from mdstore.tools.reader.floors import Floor
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.onode import NO_HINT, Onode, decode_extent, hint_of
from mdstore.tools.reader.overlay import ObjectState, Overlay
from mdstore.tools.reader.problems import NOTHING_LOST, Damage, Findings, Problem, readable_name
from mdstore.tools.reader.revisions import sound_start
from mdstore.tools.reader.store import DATA_SHAPE, StoreReader
from mdstore.tools.reader.superblock import ROOT_SNAPSHOTS, Superblock

Result = TypeVar("Result")
CHUNK_BYTES: Final = 256 << 10  # of data in one record
U64_MAX: Final = (1 << 64) - 1
PAIRS_BYTES: Final = 64 << 10  # of keys and values in one record, about


@dataclass(frozen=True, slots=True)
class CollectionRecord:
    """A collection; its objects follow."""

    name: bytes


@dataclass(frozen=True, slots=True)
class ObjectRecord:
    """An object; its data and its map follow. `kept_at` 0: as it is; else what revision `kept_at` of the name holds. Revisions
    of a name come first, oldest first. `created_rev`: the revision since which it is so. `like`: an object of the collection,
    already past, with the same data, which then does not follow. `hint`: expected sizes of the object and of writes, flags."""

    name: bytes
    size: int
    attributes: tuple[tuple[bytes, bytes], ...]
    map_header: bytes
    created_rev: int = 0
    kept_at: int = 0
    like: bytes | None = None
    hint: tuple[int, int, int] = NO_HINT


@dataclass(frozen=True, slots=True)
class DataRecord:
    """Bytes of the object's data. What no record covers is zeros."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class PairsRecord:
    """Keys of the object's map with their values, in order."""

    pairs: tuple[tuple[bytes, bytes], ...]


Record = CollectionRecord | ObjectRecord | DataRecord | PairsRecord | Floor  # floors come last
OnLoss = Callable[[str, Damage], None]  # (whose, what): told of what does not read


class ObjectStream:
    """The records of an image as one superblock knows it, its log applied unless told otherwise.

    Damage is raised (`Damage`, a CorruptionError); with `on_loss` it is told and read around: a bad block costs its own bytes,
    a bad page what lies below it. `finds_shares`: objects with the same data say so (`like`), where the image's trees show it.
    """

    def __init__(
        self, image: Image, superblock: Superblock, *, with_log: bool = True, on_loss: OnLoss | None = None,
        finds_shares: bool = False,
    ) -> None:  # fmt: skip
        self._on_loss = on_loss
        self._whose = "the store"
        self._finds_shares = finds_shares
        self._reader = StoreReader(image, superblock, on_damage=self._lost if on_loss else None)
        self._overlay = Overlay(self._reader)
        if with_log:
            LogCheck(image, superblock, Findings(self._log_problem), self._reader).run(self._overlay)

    @property
    def block_size(self) -> int:
        """Bytes of a block of the image."""
        return self._reader.block_size

    @property
    def log_bytes(self) -> int:
        """Bytes of the image's log."""
        return self._reader.superblock.log_blocks * self._reader.block_size

    def has_snapshots(self) -> bool:
        """Whether the store keeps any, which are no part of the stream."""
        return next(self._reader.root_records(ROOT_SNAPSHOTS), None) is not None

    def records(self) -> Iterator[Record]:
        """The stream."""
        for collection in self._overlay.collections():
            yield CollectionRecord(collection)
            yield from self._objects(collection)
        self._whose = "the floors"
        yield from self._read(self._overlay.floors) or ()

    def _objects(self, collection: bytes) -> Iterator[Record]:
        first_of_group: dict[int, bytes] = {}
        ended: tuple[bytes, int] = (b"", 0)  # the name that had revisions last, and where the newest of them ends
        self._whose = f"the objects of {readable_name(collection)}"
        revised = ((name, 0, None) for name in self._overlay.revised(collection))
        there = ((name, 1, found) for name, found in self._overlay.objects(collection))
        for name, _, found in merge(revised, there, key=lambda row: row[:2]):
            self._whose = f"{readable_name(collection)}/{readable_name(name)}"
            if found is None:
                for rev, state in self._overlay.revisions(collection, name).items():
                    start = self._start(state.created_rev, rev, ended[1] if ended[0] == name else 0)
                    if start is not None:
                        yield from self._object(name, state, start, rev)
                    ended = name, rev
                continue
            start = self._start(found.created_rev, U64_MAX + 1, ended[1] if ended[0] == name else 0)
            assert start is not None, "an object has no end"
            like = None
            if self._finds_shares and isinstance(found, Onode) and found.group:
                like = first_of_group.setdefault(found.group, name)
            yield from self._object(name, found, start, 0, like if like != name else None)
            self._whose = f"the objects of {readable_name(collection)} behind {readable_name(name)}"

    def _start(self, created_rev: int, kept_at: int, end_before: int) -> int | None:
        """The revision since which something is so, as what was kept before it allows; None for a revision that cannot be."""
        start = sound_start(created_rev, kept_at, end_before)
        if start != created_rev:
            what = f"begins at {created_rev}, must begin from {end_before} on and before {kept_at}"
            damage = Damage("revision", what, owner=self._whose)
            if self._on_loss is None:
                raise damage
            self._tell(f"{self._whose} at revision {kept_at}" if kept_at <= U64_MAX else self._whose, damage)
        return start

    def _object(
        self, name: bytes, found: ObjectState | Onode, created_rev: int, kept_at: int, like: bytes | None = None
    ) -> Iterator[Record]:
        overlay = self._overlay
        attributes = tuple(sorted(overlay.attributes_of(found).items()))
        header = self._read(lambda: overlay.header_of(found)) or b""
        hint = hint_of(found.hint)
        yield ObjectRecord(name, overlay.size_of(found), attributes, header, created_rev, kept_at, like, hint)
        if like is None:
            yield from self._data(found.data if isinstance(found, ObjectState) else DataView(found))
        yield from self._pairs(found)

    # -- streams -------------------------------------------------------------------------------------------------------

    def _data(self, view: DataView) -> Iterator[DataRecord]:
        done = 0
        for start, stop in _joined(self._ranges(view)):
            for at in range(max(start, done) // CHUNK_BYTES * CHUNK_BYTES, min(stop, view.size), CHUNK_BYTES):
                if at >= done:
                    yield from self._chunk(view, at)
                    done = at + CHUNK_BYTES

    def _chunk(self, view: DataView, at: int) -> Iterator[DataRecord]:
        """The runs of blocks of one chunk that are not zeros."""
        size = self._reader.block_size
        try:
            data = view.read(self._reader, at, CHUNK_BYTES)
        except Damage:
            if self._on_loss is None:
                raise
            data = self._what_reads(view, at)
        begin: int | None = None
        for offset in range(0, len(data) + size, size):
            block = data[offset : offset + size]
            if block.count(0) != len(block):
                begin = offset if begin is None else begin
            elif begin is not None:
                yield DataRecord(at + begin, data[begin:offset])
                begin = None

    def _what_reads(self, view: DataView, at: int) -> bytes:
        """A chunk block by block: zeros for what does not read, which is told, once for each run of blocks."""
        size, parts, lost = self._reader.block_size, list[bytes](), list[tuple[int, int, Damage]]()
        for offset in range(at, min(at + CHUNK_BYTES, view.size), size):
            length = min(size, view.size - offset)
            try:
                parts.append(view.read(self._reader, offset, length))
            except Damage as damage:
                parts.append(bytes(length))
                begin, _, first = lost.pop() if lost and lost[-1][1] == offset else (offset, 0, damage)
                lost.append((begin, offset + length, first))
        for begin, end, first in lost:
            self._tell(f"{self._whose} bytes {begin} .. {end}", first)
        return b"".join(parts)

    def _ranges(self, view: DataView) -> Iterator[tuple[int, int]]:
        """Where there may be something, in order: extents and patches."""
        runs = [
            iter([(patch.offset, patch.offset + patch.length)]) if not isinstance(patch.source, Onode)
            else self._extents(patch.source, patch.offset - patch.source_offset, patch.offset, patch.offset + patch.length)
            for patch in view.patches if patch.source is not None
        ]  # fmt: skip
        return merge(*runs)

    def _extents(self, onode: Onode, shift: int, low: int, high: int) -> Iterator[tuple[int, int]]:
        """The extents of an onode, moved by `shift` and cut to a window."""
        size = self._reader.block_size
        tree = self._read(lambda: self._reader.tree(onode.data_root, DATA_SHAPE) if onode.data_root is not None else None)
        for key, value in tree.items() if tree is not None else ():
            extent = self._read(lambda key=key, value=value: decode_extent(key, value))  # type: ignore[misc]
            if extent is not None:
                start, stop = extent.logical * size + shift, (extent.logical + extent.blocks) * size + shift
                if max(start, low) < min(stop, high):
                    yield max(start, low), min(stop, high)

    def _pairs(self, found: ObjectState | Onode) -> Iterator[PairsRecord]:
        pairs, length = list[tuple[bytes, bytes]](), 0
        for key, value in self._overlay.items_of(found):
            pairs.append((key, value))
            length += len(key) + len(value)
            if length >= PAIRS_BYTES:
                yield PairsRecord(tuple(pairs))
                pairs, length = [], 0
        if pairs:
            yield PairsRecord(tuple(pairs))

    # -- damage --------------------------------------------------------------------------------------------------------

    def _read(self, action: Callable[[], Result]) -> Result | None:
        """What the action returns; None, and told, for what does not read."""
        try:
            return action()
        except Damage as damage:
            if self._on_loss is None:
                raise
            self._tell(self._whose, damage)
            return None

    def _lost(self, damage: Damage) -> None:
        """The reader met damage and goes on behind it."""
        if damage.code not in NOTHING_LOST:
            self._tell(self._whose, damage)

    def _tell(self, whose: str, damage: Damage) -> None:
        assert self._on_loss is not None, "only then is damage read around"
        self._on_loss(whose, damage)

    def _log_problem(self, problem: Problem) -> None:
        """What is wrong with the log, beyond what a crash may leave."""
        if problem.severity != "error":
            return
        damage = Damage(problem.code, problem.what, owner="store log")
        if self._on_loss is None:
            raise damage
        self._tell("the store's log", damage)


def _joined(ranges: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Sorted ranges, those that touch made one."""
    begin, end = 0, -1
    for start, stop in ranges:
        if start > end and end >= 0:
            yield begin, end
            begin, end = start, stop
        elif end < 0:
            begin, end = start, stop
        else:
            end = max(end, stop)
    if end >= 0:
        yield begin, end
