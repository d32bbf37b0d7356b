"""The store: every tree, object and extent once, in order. docs/format/onode.md, space.md.

The collection tree and the object tree are walked side by side (both streams are ordered by collection number once the
collections are held: 40 bytes each); each object's own trees are walked when its onode comes by.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mdstore.tools.reader.check_sharing import Groups, SharedPages
from mdstore.tools.reader.check_space import DATA, OVERFLOW, PAGE, Observer, Space, owner
from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.floors import decode_floor
from mdstore.tools.reader.onode import (
    OBJECT_NAME_MAX,
    UNCHECKED,
    Collection,
    Extent,
    Onode,
    decode_collection,
    decode_extent,
    decode_onode,
    extent_blocks_max,
    split_object_key,
)
from mdstore.tools.reader.problems import NOTHING_LOST, Damage, Findings, Place, readable
from mdstore.tools.reader.revisions import RevisionCheck, collection_of, decode_revision_key, key_in_words
from mdstore.tools.reader.snapshots import dead_runs
from mdstore.tools.reader.store import DATA_SHAPE, MAP_SHAPE, StoreReader
from mdstore.tools.reader.superblock import (
    ROOT_COLLECTIONS,
    ROOT_DEAD,
    ROOT_FLOORS,
    ROOT_FREE,
    ROOT_GROUPS,
    ROOT_NAMES,
    ROOT_OBJECTS,
    ROOT_REFERENCES,
    ROOT_SHARED,
    ROOT_SNAPSHOTS,
)
from mdstore.tools.reader.tree import Tree


@dataclass(slots=True)
class StoreCounts:
    """What was seen."""

    collections: int = 0
    objects: int = 0
    stored_bytes: int = 0
    extents: int = 0
    data_blocks: int = 0
    verified_blocks: int = 0
    pages: int = 0
    records: int = 0


class StoreCheck:
    """One check of one superblock's trees. `is_deep` verifies data; `sample` is the share of blocks verified then. Of an
    image whose end is missing space is not judged; what lies outside it is reported."""

    def __init__(
        self,
        reader: StoreReader,
        findings: Findings,
        *,
        is_deep: bool = False,
        sample: float = 1.0,
        seed: int = 0,
        tick: Callable[[int], None] = lambda _: None,
        observe: Observer | None = None,
        verified_epoch: int = 0,
    ) -> None:
        self._reader = reader
        self._superblock = reader.superblock
        self._findings = findings
        self._is_deep = is_deep
        self._sample = sample
        self._random = random.Random(seed)
        self._tick = tick
        self._verified_epoch = verified_epoch  # data written up to it was verified before
        self._is_partial = False
        self.on_uses: Callable[[Iterator[bytes], bool], None] | None = None  # hears of all that was found in use, at the end
        is_whole = reader.superblock.ends_in(reader.image.size)
        on_space = findings if is_whole else Findings(lambda _: None)  # what is missing at the end is said once, as such
        self._space = Space(reader.superblock, reader.image.size, on_space, observe)
        self._shared_pages = SharedPages()
        self._groups = Groups(lambda root: reader.tree(root, DATA_SHAPE).items())
        self._revisions = RevisionCheck(reader, findings)
        self._names: dict[int, bytes] = {}
        self._extent_max = extent_blocks_max(reader.block_size)
        self.counts = StoreCounts()

    def run(self) -> None:
        """Walk everything, then compare used with free."""
        try:
            self._check_counting_trees()
            self._check_floors()
            collections = self._check_collections()
            self._check_objects(collections)
            self._check_space()
            self._groups.judge(self._findings, is_partial=self._is_partial)
            if self.on_uses is not None:
                self.on_uses(self._space.uses(), self._is_partial)
        finally:
            self._space.close()

    # -- trees ---------------------------------------------------------------------------------------------------------
    def _watch(self, tree: Tree, name: str) -> Tree:
        """Have every page of a tree noted as used, and every damage of it reported."""
        page_code, overflow_code = owner(PAGE, tree.root.tree_id), owner(OVERFLOW, tree.root.tree_id)

        def on_pages(start: int, pages: int, is_overflow: bool) -> bool:
            """Note a reference; whether what the page names is still to be counted."""
            if not self._space.holds(start, pages):
                what = f"pages {start} .. {start + pages - 1} lie outside the allocator's space"
                self._findings.add("extent-outside", what, Place(tree=name, page=start))
                return True
            self._space.use(start, pages, overflow_code if is_overflow else page_code)
            self.counts.pages += pages
            return self._shared_pages.is_first_visit(start)

        tree.on_pages = on_pages
        tree.on_damage = lambda damage: self._lost(damage.located(tree=name))
        if not 0 < tree.root.tree_id < self._superblock.next_tree_id:  # clones share theirs, so it may come twice
            self._findings.add("tree-id", f"tree id {tree.root.tree_id} was not given out", Place(tree=name))
        return tree

    def _lost(self, damage: Damage) -> None:
        """Damage that hides what lies below: from here on nothing can be called leaked or miscounted."""
        self._findings.add_damage(damage)
        self._is_partial = self._is_partial or damage.code not in NOTHING_LOST

    def _check_counting_trees(self) -> None:
        """The references tree first: it says which pages are shared, and so visited once only."""
        for kind in (ROOT_REFERENCES, ROOT_SHARED, ROOT_GROUPS):
            tree = self._root(kind) if kind in self._superblock.roots else None
            for key, value in tree.items() if tree is not None else ():
                if kind == ROOT_REFERENCES:
                    self._shared_pages.add(int.from_bytes(key, "big"))
                elif kind == ROOT_GROUPS:
                    self._groups.claim(int.from_bytes(key, "big"), int.from_bytes(value, "little"))

    def _check_floors(self) -> None:
        tree = self._root(ROOT_FLOORS) if ROOT_FLOORS in self._superblock.roots else None
        for key, value in tree.items() if tree is not None else ():
            try:
                decode_floor(key, value)
            except Damage as damage:
                self._findings.add_damage(damage.located(owner="superblock"))

    def _records(self, kind: int) -> Iterator[tuple[bytes, bytes]]:
        """A root tree's records once more, what was reported not again."""
        if kind not in self._superblock.roots:
            return iter(())
        try:
            tree = self._reader.root_tree(kind)
        except Damage:
            return iter(())
        tree.on_damage = lambda _: None
        return tree.items()

    def _root(self, kind: int) -> Tree | None:
        try:
            return self._watch(self._reader.root_tree(kind), ROOT_NAMES[kind])
        except Damage as damage:
            self._lost(damage.located(owner="superblock", tree=ROOT_NAMES[kind]))
            return None

    # -- collections and objects ---------------------------------------------------------------------------------------
    def _check_collections(self) -> dict[int, Collection]:
        found: dict[int, Collection] = {}
        tree = self._root(ROOT_COLLECTIONS)
        for name, value in tree.items() if tree is not None else ():
            place = Place(f"collection {readable(name)}", "collections")
            try:
                record = decode_collection(value)
            except Damage as damage:
                self._lost(damage.located(owner=place.owner, tree="collections"))
                continue
            if record.number in found or record.number >= self._superblock.next_collection_id:
                what = f"collection number {record.number} " + ("twice" if record.number in found else "not given out")
                self._findings.add("collection-number", what, place)
            found[record.number] = record
            self._names[record.number] = name
        self.counts.collections = len(found)
        return found

    def _check_objects(self, collections: dict[int, Collection]) -> None:
        tree = self._root(ROOT_OBJECTS)
        records = 0
        counted: dict[int, int] = {}
        for key, value in tree.items() if tree is not None else ():
            records += 1
            number, is_revision = collection_of(key)
            counted[number] = counted.get(number, 0) + (not is_revision)
            self._check_object(key, value, is_revision=is_revision)
            if not records & 0x3FF:
                self._space.settle()
                self._tick(0x400)
        self._revisions.finish()
        self._tick(records & 0x3FF)
        self._compare_counts(collections, counted)

    def _compare_counts(self, collections: dict[int, Collection], counted: dict[int, int]) -> None:
        for number in sorted(counted.keys() - collections.keys()):
            what = f"no collection has number {number}, which {counted[number]} objects belong to"
            self._findings.add("object-stray", what, Place(f"collection number {number}", "objects"))
        if self._is_partial:
            self._findings.add("unjudged", "counts and leaks were not judged: parts of the trees cannot be read")
            return
        for number, record in collections.items():
            has = counted.get(number, 0)
            if record.objects != has:
                what = f"collection says {record.objects} objects, has {has}"
                self._findings.add(
                    "collection-count", what, Place(f"collection {readable(self._names[number])}", "collections")
                )
        if self._superblock.objects != self.counts.objects:
            what = f"superblock says {self._superblock.objects} objects, there are {self.counts.objects}"
            self._findings.add("object-count", what, Place("superblock"))
        if self._superblock.stored_bytes != self.counts.stored_bytes:
            what = f"superblock says {self._superblock.stored_bytes} stored bytes, there are {self.counts.stored_bytes}"
            self._findings.add("stored-bytes", what, Place("superblock"))

    def _check_object(self, key: bytes, value: bytes, *, is_revision: bool) -> None:
        ordinal = self.counts.objects
        self.counts.objects += 1
        try:
            onode = decode_onode(value)
            if is_revision:
                self._revisions.see(decode_revision_key(key), onode, self._name(key))
            elif not 8 < len(key) <= 8 + OBJECT_NAME_MAX:
                split_object_key(key)
        except Damage as damage:
            self._lost(damage.located(owner=self._name(key), tree="objects"))
            return
        self.counts.stored_bytes += onode.size
        is_counted = self._groups.is_first_member(onode.group, onode.data_root) if onode.group else True
        allocated = self._check_data(key, onode, ordinal, is_counted) if onode.data_root is not None else 0
        if allocated is not None and allocated != onode.allocated:
            what = f"onode says {onode.allocated} blocks, its extents take {allocated}"
            self._findings.add("allocated-count", what, Place(self._name(key), "objects"))
        if onode.map_root is not None:
            self._check_map(key, onode.map_root)

    def _name(self, key: bytes) -> str:
        return key_in_words(key, self._names)

    def _check_map(self, key: bytes, root: bytes) -> None:
        name = self._name(key)
        try:
            tree = self._watch(self._reader.tree(root, MAP_SHAPE), f"map of {name}")
        except Damage as damage:
            self._lost(damage.located(owner=name, tree="map"))
            return
        for _ in tree.items():
            self.counts.records += 1

    # -- data ----------------------------------------------------------------------------------------------------------
    def _check_data(self, key: bytes, onode: Onode, ordinal: int, is_counted: bool) -> int | None:
        """The object's extents; returns the blocks they take, None when not all of them were looked at (shared pages)."""
        assert onode.data_root is not None
        try:
            tree = self._watch(self._reader.tree(onode.data_root, DATA_SHAPE), f"data of {self._name(key)}")
        except Damage as damage:
            self._lost(damage.located(owner=self._name(key), tree="data"))
            return None
        tree.follows_counted = is_counted  # each owner holds its extents, also those that a page shared with others names
        allocated = end = 0
        blocks_needed = -(-onode.size // self._reader.block_size)
        for record_key, value in tree.items():
            try:
                extent = decode_extent(record_key, value)
            except Damage as damage:
                self._lost(damage.located(owner=self._name(key), tree="data"))
                continue
            allocated += extent.blocks
            self._check_extent(key, extent, end, blocks_needed, ordinal if is_counted else -1)
            end = max(end, extent.logical + extent.blocks)
            if self._is_deep and is_counted and extent.birth > self._verified_epoch:
                self._verify(key, extent, onode.size)
        return None if tree.is_partial else allocated

    def _check_extent(self, key: bytes, extent: Extent, end: int, blocks_needed: int, ordinal: int) -> None:
        """`ordinal` -1: the group's other members hold the reference."""
        self.counts.extents += 1
        self.counts.data_blocks += extent.blocks
        if extent.logical < end:
            self._report_extent(
                "extent-overlap", f"begins before block {end}, where the one before it ends", key, extent
            )
        if extent.logical + extent.blocks > blocks_needed:
            self._report_extent(
                "extent-beyond-end", f"reaches beyond block {blocks_needed}, the end of the object", key, extent
            )
        if extent.blocks > self._extent_max:
            self._report_extent(
                "extent", f"has {extent.blocks} blocks, at most {self._extent_max} are allowed", key, extent
            )
        if self._space.holds(extent.start, extent.blocks):
            if ordinal >= 0:
                self._space.use(extent.start, extent.blocks, owner(DATA, ordinal))
        else:
            self._report_extent("extent-outside", "lies outside the allocator's space", key, extent)

    def _report_extent(self, code: str, what: str, key: bytes, extent: Extent) -> None:
        place = Place(self._name(key), "data", byte=extent.start * self._reader.block_size)
        where = f"extent of logical block {extent.logical} ({extent.blocks} blocks at {extent.start})"
        self._findings.add(code, f"{where} {what}", place)

    def _verify(self, key: bytes, extent: Extent, size: int) -> None:
        """The extent's data against its checksums, in one read."""
        if self._sample < 1.0 and self._random.random() >= self._sample:
            return
        length = self._reader.block_size
        try:
            data = self._reader.image.read(extent.start * length, extent.blocks * length)
        except Damage as damage:
            self._findings.add_damage(damage.located(owner=self._name(key), tree="data"))
            return
        for index in range(extent.blocks):
            block = data[index * length : (index + 1) * length]
            self.counts.verified_blocks += 1
            logical = extent.logical + index
            place = Place(self._name(key), "data", byte=(extent.start + index) * length)
            expected = extent.checksum(index)
            if expected != UNCHECKED and crc32c(block) != expected:
                what = f"checksum of logical block {logical}: expected {expected:08x}, found {crc32c(block):08x}"
                self._findings.add("data-checksum", what, place)
            elif logical * length < size < (logical + 1) * length and any(block[size - logical * length :]):
                self._findings.add("data-tail", f"bytes behind the end in logical block {logical}", place)

    # -- space ---------------------------------------------------------------------------------------------------------
    def _note_free_pages(self) -> bool:
        """Note the own pages of the trees of free space, of snapshots and of the dead; False without the first."""
        tree = self._root(ROOT_FREE)
        others = [self._root(kind) for kind in (ROOT_SNAPSHOTS, ROOT_DEAD) if kind in self._superblock.roots]
        for one in (tree, *others):
            for _ in one.items() if one is not None else ():
                pass
        return tree is not None

    def _check_space(self) -> None:
        """The free tree's own pages are noted first: its records are then read a second time, in step with the sweep."""
        if not self._note_free_pages():
            return
        free, references, shared = (self._records(kind) for kind in (ROOT_FREE, ROOT_REFERENCES, ROOT_SHARED))
        dead = dead_runs(StoreReader(self._reader.image, self._superblock, on_damage=lambda _: None))
        self._space.sweep(free, references, shared, self._name_objects, dead=dead, is_partial=self._is_partial)

    def _name_objects(self, ordinals: set[int]) -> dict[int, str]:
        """Names of objects by their place in the object tree: one more walk, only when something is wrong."""
        names: dict[int, str] = {}
        if not ordinals:
            return names
        for ordinal, (key, _) in enumerate(self._records(ROOT_OBJECTS)):
            if ordinal in ordinals:
                names[ordinal] = self._name(key)
                if len(names) == len(ordinals):
                    break
        return names
