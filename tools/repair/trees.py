"""Trees that lost pages, and records in them that make no sense: what is left is put together again.

Leaves that are right stay where they are, so what is intact stays byte for byte; index pages above them, and leaves some of
whose records go or change, are written anew to blocks that nothing uses. One superblock then names it all (`counts`).

Invariants
1. A record is dropped only when it cannot be read or decoded; what is dropped is named.
2. Two root records that were equal (clones) stay equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Final

from mdstore.tools.reader.check_superblock import candidates
from mdstore.tools.reader.floors import decode_floor
from mdstore.tools.reader.onode import Onode, decode_collection, decode_onode
from mdstore.tools.reader.page import Record, Reference, Root, Shape, decode_root, sort_key
from mdstore.tools.reader.problems import Damage, readable
from mdstore.tools.reader.revisions import check_key, key_in_words
from mdstore.tools.reader.snapshots import decode_snapshot
from mdstore.tools.reader.store import DATA_SHAPE, MAP_SHAPE, StoreReader
from mdstore.tools.reader.superblock import (
    ROOT_COLLECTIONS,
    ROOT_FLOORS,
    ROOT_NAMES,
    ROOT_OBJECTS,
    ROOT_SNAPSHOTS,
    Superblock,
)
from mdstore.tools.reader.tree import Tree
from mdstore.tools.repair import build, encode, revisions
from mdstore.tools.repair.bench import Bench, Step
from mdstore.tools.repair.build import Builder, Item, KeptLeaf, Run
from mdstore.tools.repair.counts import free_records, next_superblock, spare_room
from mdstore.tools.repair.dead import kept_by_snapshots, listed, not_free
from mdstore.tools.repair.extents import ExtentMender
from mdstore.tools.repair.ring import mapped_runs
from mdstore.tools.repair.salvage import FoundLeaf, Losses, Searcher, leaves
from mdstore.tools.repair.superblocks import write
from mdstore.tools.repair.usage import DERIVED, Usage, merged, usage_of

COUNT_CODES: Final = frozenset({
    "free-extent", "free-adjacent", "free-count", "space-leaked", "references", "group", "object-count", "stored-bytes",
    "collection-count", "collection-number", "object-stray", "dead-run",
})  # fmt: skip
TREE_CODES: Final = frozenset({
    "page-checksum", "page-identity", "page-structure", "page-order", "page-separator", "overflow", "overflow-tail",
    "tree-count", "tree-id",
    "root-record", "beyond-image", "collection", "onode", "allocated-count", "extent", "extent-overlap", "extent-outside",
    "extent-beyond-end", "space-shared", "space-false-free", "superblock-fallback", "floor", "snapshot",
}) | revisions.CODES  # fmt: skip
_COUNTED_ANEW: Final = COUNT_CODES | {"tree-id", "space-shared", "space-false-free", "superblock-fallback"}
DATA_CODES: Final = frozenset({"data-checksum", "unreadable"})  # only when damaged data is to be dropped
_PHASE: Final = "store"
_SHAPES: Final = {
    ROOT_OBJECTS: (-2, -4), ROOT_COLLECTIONS: (-1, 20), ROOT_FLOORS: (-2, 8), ROOT_SNAPSHOTS: (-1, -4),
}  # fmt: skip


def _anything(key: bytes, value: bytes) -> object:
    return None


_DECODERS: Final[dict[str, Callable[[bytes, bytes], object]]] = {
    ROOT_NAMES[ROOT_COLLECTIONS]: lambda key, value: decode_collection(value),
    ROOT_NAMES[ROOT_FLOORS]: decode_floor,
    ROOT_NAMES[ROOT_SNAPSHOTS]: decode_snapshot,
}


def run_counts(bench: Bench) -> Iterator[Step]:
    """Free space, reference counts and totals anew; no tree of objects changes."""
    yield from _run(bench, mends_trees=False)


def run_trees(bench: Bench) -> Iterator[Step]:
    """Trees put together again, then everything counted anew."""
    yield from _run(bench, mends_trees=True)


def _run(bench: Bench, *, mends_trees: bool) -> Iterator[Step]:
    superblock = bench.superblock()
    if superblock is None:
        return
    reader = bench.reader(superblock)
    usage = usage_of(reader, bench.ticker("looking at what is used", superblock.objects))
    kept, dead = kept_by_snapshots(bench, superblock), listed(bench, superblock)
    others = not_free(kept, dead)
    room = spare_room(reader, usage, [*others, *mapped_runs(bench, superblock)])
    builder = Builder(bench.shadow, superblock.block_size, _newest_epoch(bench, superblock) + 1, room)
    mended = superblock
    if mends_trees:
        past = [(run.start, run.blocks) for run in dead]
        extents = ExtentMender(reader, usage, others, drops_damaged=bench.options.drops_damaged)
        searcher = _searcher(bench, reader, usage, past)
        mender = TreeMender(bench, reader, builder, extents, searcher)
        mended = replace(superblock, roots=mender.roots())
        if mended == superblock and not bench.verdict.codes.keys() & _COUNTED_ANEW and mender.are_counts_sound():
            return  # the damage is where only snapshots reach
        if mender.details or mender.lost:
            yield Step(_PHASE, "put trees together from the pages that are left", mender.details, mender.lost)
        if mender.begins:
            yield Step(_PHASE, "let revisions begin where those before them end", mender.begins)
    made = next_superblock(bench, mended, builder, kept, dead)
    bench.shadow.flush()
    write(bench, made)
    yield Step(_PHASE, "count free space, references and objects anew", _differences(superblock, made))


def _newest_epoch(bench: Bench, superblock: Superblock) -> int:
    return max([superblock.epoch, *(found.epoch for found in candidates(bench.image))])


def _searcher(bench: Bench, reader: StoreReader, usage: Usage, past: list[Run]) -> Searcher:
    """A search that leaves out what is named, free, data, or only what snapshots reach."""
    superblock = reader.superblock
    space = (superblock.first_block, superblock.blocks)
    others = merged(sorted([*free_records(reader), *past, *usage.data()]))
    return Searcher(bench.image, superblock.block_size, space, usage.pages, list(others))


def _differences(before: Superblock, after: Superblock) -> list[str]:
    names = ("objects", "stored_bytes", "free_blocks", "next_tree_id", "next_collection_id")
    pairs = [(name, getattr(before, name), getattr(after, name)) for name in names]
    said = [f"{name}: {was} becomes {now}" for name, was, now in pairs if was != now]
    return [*said, f"superblock of epoch {after.epoch}"]


class TreeMender:
    """Puts the trees of one superblock together again. `details`, `begins` and `lost` say what that came to."""

    def __init__(
        self, bench: Bench, reader: StoreReader, builder: Builder, extents: ExtentMender, searcher: Searcher
    ) -> None:
        self._bench = bench
        self._reader = reader
        self._builder = builder
        self._extents = extents
        self._searcher = searcher
        self._made: dict[bytes, bytes | None] = {}
        self._collections = {record.number: name for name, record in reader.collections()}
        self._groups: dict[int, bytes | None] = {}
        self._starts = revisions.Starts(reader) if bench.verdict.codes.keys() & revisions.CODES else None
        self.details: list[str] = []
        self.begins: list[str] = []  # revisions, and objects after them, that get another beginning
        self.lost: list[str] = []

    def roots(self) -> dict[int, bytes]:
        """The superblock's roots, those of damaged trees others."""
        roots = dict(self._reader.superblock.roots)
        for kind, (key_size, value_size) in _SHAPES.items():
            if kind not in roots:
                continue
            shape = Shape(key_size, value_size, 1)
            made = self._objects(roots[kind]) if kind == ROOT_OBJECTS else self._tree(roots[kind], shape, ROOT_NAMES[kind])
            if made is not None:
                roots[kind] = made
            if kind == ROOT_SNAPSHOTS and not decode_root(roots[kind]).count:
                del roots[kind]  # it is there only while it holds a record
        return roots

    def are_counts_sound(self) -> bool:
        """Whether every page of the trees that are made anew from the others reads."""
        roots = self._reader.superblock.roots
        return all(self._is_sound(roots[kind], None) for kind in DERIVED if kind in roots)

    # -- any tree ------------------------------------------------------------------------------------------------------
    def _tree(self, record: bytes, shape: Shape, name: str) -> bytes | None:
        """The root of the same tree, sound: `record` itself when it is; None when nothing is left of it."""
        if record not in self._made:
            self._made[record] = self._made_anew(record, shape, name)
        return self._made[record]

    def _made_anew(self, record: bytes, shape: Shape, name: str) -> bytes | None:
        try:
            root = decode_root(record, shape)
        except Damage as damage:
            self.lost.append(f"{name}: everything ({damage.sentence})")
            return None
        if self._is_sound(record, shape, name):
            return record
        losses = Losses()
        made = build.tree(self._builder, root, self._sound_items(root, name, losses))
        self._tell(name, root, losses)
        return made

    def _is_sound(self, record: bytes, shape: Shape | None, name: str = "") -> bool:
        """Every page reads, and every record of the superblock's own trees can be decoded."""
        found: list[Damage] = []
        try:
            tree = Tree(self._bench.image, self._reader.block_size, record, shape, found.append)
        except Damage:
            return False
        decode = _DECODERS.get(name, _anything)
        for key, value in tree.items():
            try:
                decode(key, value)
            except Damage as damage:
                found.append(damage)
        return not [damage for damage in found if damage.code != "page-copy"]

    def _sound_items(self, root: Root, name: str, losses: Losses) -> Iterator[Item]:
        """Leaves and records of a tree, those that cannot be read left out."""
        tree = self._plain_tree(root)
        for part in self._parts(root, losses):
            records = part.page.records if isinstance(part, FoundLeaf) else [part]
            mended = [self._mended(tree, record, name) for record in records]
            if isinstance(part, FoundLeaf) and mended == records:
                yield _kept(part)
            else:
                yield from (record for record in mended if record is not None)

    def _parts(self, root: Root, losses: Losses) -> Iterator[FoundLeaf | Record]:
        """Leaves in order of their keys; the records of all, sorted, when the leaves overlap."""
        if not isinstance(root.content, Reference):
            yield from sorted(root.content)
            return
        found = list(leaves(self._bench.image, self._reader.block_size, root, self._searcher, losses))
        rows = [leaf.page.records for leaf in found if leaf.page.records]
        if all(before[-1][0] < after[0][0] for before, after in pairwise(rows)):
            yield from (leaf for leaf in found if leaf.page.records)
            return
        newest: dict[bytes, tuple[int, Record]] = {}
        for leaf in found:
            for record in leaf.page.records:
                if newest.get(record[0], (-1,))[0] < leaf.page.generation:
                    newest[record[0]] = leaf.page.generation, record
        yield from (newest[key][1] for key in sorted(newest, key=lambda key: sort_key(key, root.comparator)))

    def _plain_tree(self, root: Root) -> Tree:
        return Tree(self._bench.image, self._reader.block_size, encode.root(root, 0, 0, ()), None)

    def _mended(self, tree: Tree, record: Record, name: str) -> Record | None:
        """The record as it should be; None when it cannot be read."""
        key = record[0]
        try:
            value, is_clean = self._value_of(tree, record, f"{name}: the record of {readable(key)}")
            _DECODERS.get(name, _anything)(key, value)
        except Damage as damage:
            self.lost.append(f"{name}: the record of {readable(key)} ({damage.sentence})")
            return None
        return record if is_clean else (key, value)

    def _value_of(self, tree: Tree, record: Record, whose: str) -> tuple[bytes, bool]:
        """(a record's value, whether its pages are as they should be): otherwise it is to be written anew. Damage."""
        found: list[Damage] = []
        tree.on_damage = found.append
        value = tree.value_of(record[1])
        self.details += [f"{whose} is written anew ({damage.sentence})" for damage in found]
        return value, not found

    def _tell(self, name: str, root: Root, losses: Losses) -> None:
        self.details.append(f"{name}: tree {root.tree_id} gets new index pages")
        self.details += [f"{name}: {said}" for said in losses.pages]
        if losses.records:
            self.lost.append(f"{name}: {losses.records} of {root.count} records")

    # -- objects -------------------------------------------------------------------------------------------------------
    def _objects(self, record: bytes) -> bytes | None:
        """The object tree, and below it each object's own trees."""
        try:
            root = decode_root(record, Shape(-2, -4, 1))
        except Damage as damage:
            self.lost.append(f"all objects ({damage.sentence})")
            return None
        losses = Losses()
        was_sound = self._is_sound(record, Shape(-2, -4, 1))
        items = list(self._object_items(root, losses))
        is_same = was_sound and all(isinstance(item, KeptLeaf) for item in items) and isinstance(root.content, Reference)
        if is_same or (was_sound and items == list(root.content if not isinstance(root.content, Reference) else ())):
            return record
        made = build.tree(self._builder, root, items)
        if not was_sound:
            self._tell("objects", root, losses)
        return made

    def _object_items(self, root: Root, losses: Losses) -> Iterator[Item]:
        tree = self._plain_tree(root)
        for part in self._parts(root, losses):
            records = part.page.records if isinstance(part, FoundLeaf) else [part]
            changed = [self._object(tree, record) for record in records]
            if isinstance(part, FoundLeaf) and changed == records:
                yield _kept(part)
            else:
                yield from (record for record in changed if record is not None)

    def _object(self, tree: Tree, record: Record) -> Record | None:
        """An object's record, its trees sound; None when it cannot be read."""
        key = record[0]
        try:
            value, is_clean = self._value_of(tree, record, f"object {self._name(key)}")
            check_key(key)
            onode = decode_onode(value)
        except Damage as damage:
            self.lost.append(f"object {self._name(key)} ({damage.sentence})")
            return None
        start = self._start(key, onode)
        if start is None:
            self.lost.append(f"object {self._name(key)} (no read is answered from such a revision)")
            return None
        made = self._value(self._name(key), onode, value, start)
        return record if made == value and is_clean else (key, made)

    def _start(self, key: bytes, onode: Onode) -> int | None:
        """The revision since which the object is so; None for a revision that makes no sense."""
        start = onode.created_rev if self._starts is None else self._starts.of(key, onode)
        if start is not None and start != onode.created_rev:
            self.begins.append(f"{self._name(key)}: begins at revision {start}, not {onode.created_rev}")
        return start

    def _value(self, name: str, onode: Onode, value: bytes, created_rev: int) -> bytes:
        map_root = self._tree(onode.map_root, MAP_SHAPE, f"map of {name}") if onode.map_root is not None else None
        data_root, allocated = onode.data_root, onode.allocated
        if data_root is not None:
            data_root = self._tree(data_root, DATA_SHAPE, f"data of {name}")
        if data_root is not None:
            data_root, allocated = self._mended_data(name, onode, data_root)
        group = self._group(onode.group, data_root) if onode.group else 0
        if data_root is None:
            allocated = 0
        return encode.onode(
            value, created_rev=created_rev, allocated=allocated, group=group, data_root=data_root, map_root=map_root
        )

    def _mended_data(self, name: str, onode: Onode, data_root: bytes) -> tuple[bytes | None, int]:
        tree = Tree(self._bench.image, self._reader.block_size, data_root, DATA_SHAPE)
        found = self._extents.mend(name, onode, tree)
        self.details += found.details
        self.lost += found.lost
        if not found.is_changed:
            return data_root, found.allocated
        return build.tree(self._builder, tree.root, found.records), found.allocated

    def _group(self, group: int, data_root: bytes | None) -> int:
        """The group of an object: none when its data tree is another than that of the group's first member."""
        first = self._groups.setdefault(group, data_root)
        return group if first == data_root and data_root is not None else 0

    def _name(self, key: bytes) -> str:
        return key_in_words(key, self._collections)


def _kept(leaf: FoundLeaf) -> KeptLeaf:
    """A leaf that stays, its records counted."""
    below = len(leaf.page.records) | (encode.SPILLED_BELOW if leaf.page.has_spilled else 0)
    return KeptLeaf(leaf.page.records[0][0], leaf.reference._replace(below=below))
