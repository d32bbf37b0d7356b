"""Everything a store holds in memory, and how one image's trees become it and become an image again.

`Tables` is what a superblock names: the trees, opened, with the allocator. `freeze` turns them into the next superblock.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from mdstore.btree import COMPARE_U64_BE, REFS_DESCRIPTOR, Descriptor, Pager, Tree
from mdstore.device.protocol import Device
from mdstore.errors import CorruptionError
from mdstore.store import collections as collection_module
from mdstore.store import floors as floors_module
from mdstore.store import objects as object_module
from mdstore.store.allocator import Allocator, Run, Stripes
from mdstore.store.collections import CollectionTable
from mdstore.store.floors import Floors
from mdstore.store.objects import ObjectTable
from mdstore.store.shares import GROUPS_DESCRIPTOR, INTERVALS_DESCRIPTOR, Shares
from mdstore.store.snapshot_table import DEAD_DESCRIPTOR, RECORDS_DESCRIPTOR, SnapshotTable
from mdstore.store.space import Space
from mdstore.store.superblock import FEATURE_SNAPSHOTS, SPARE_RUNS_MAX, Root, Superblock

_START = struct.Struct(">Q")
_LENGTH = struct.Struct("<Q")
FREE_DESCRIPTOR = Descriptor(8, 8, comparator=COMPARE_U64_BE)  # never embedded: see _settle
DESCRIPTORS = {
    Root.OBJECTS: object_module.DESCRIPTOR, Root.COLLECTIONS: collection_module.DESCRIPTOR, Root.FREE: FREE_DESCRIPTOR,
    Root.PAGE_REFERENCES: REFS_DESCRIPTOR, Root.SHARED_INTERVALS: INTERVALS_DESCRIPTOR, Root.CLONE_GROUPS: GROUPS_DESCRIPTOR,
    Root.FLOORS: floors_module.DESCRIPTOR, Root.SNAPSHOTS: RECORDS_DESCRIPTOR, Root.DEAD: DEAD_DESCRIPTOR,
}  # fmt: skip
_OPTIONAL = {Root.SNAPSHOTS, Root.DEAD}  # named by a superblock while there is a snapshot
SETTLED = (Root.DEAD, Root.FREE)  # sealed last: where every page goes that sealing the others takes and gives back

TREE_ID_FIRST = 16  # ids below belong to the trees of the superblock: the root's kind is the id


@dataclass(slots=True)
class Tables:
    """The live state of one image. Changes happen under the store's lock."""

    space: Space
    pager: Pager
    allocator: Allocator
    collections: CollectionTable
    objects: ObjectTable
    free_tree: Tree
    references: Tree
    floors: Floors
    floors_tree: Tree
    spare_runs: list[Run]

    def flush_floors(self) -> None:
        """Bring the tree of floors up to date. There are few, and they change when a writer is replaced."""
        for row in self.floors:
            key, value = floors_module.encode(*row)
            if self.floors_tree.get(key) != value:
                self.floors_tree.put(key, value)

    def trees(self) -> dict[Root, Tree]:
        """The trees that hang from the superblock, in the order in which they are sealed: each after those that change it."""
        return {
            Root.OBJECTS: self.objects.tree, Root.COLLECTIONS: self.collections.tree, Root.FLOORS: self.floors_tree,
            Root.SHARED_INTERVALS: self.space.shares.intervals, Root.CLONE_GROUPS: self.space.shares.groups,
            Root.PAGE_REFERENCES: self.references, Root.SNAPSHOTS: self.space.snapshots.records,
            Root.DEAD: self.space.snapshots.dead, Root.FREE: self.free_tree,
        }  # fmt: skip


def empty(device: Device, superblock: Superblock, cache_bytes: int, onodes_max: int) -> Tables:
    """The state of a new image: no object, all space after the log free."""
    pager = Pager(device, page_size=superblock.block_size, cache_bytes=cache_bytes)
    pager.generation = superblock.epoch + 1
    pager.page_bounds = superblock.first_block, superblock.blocks
    allocator = Allocator(superblock.first_block, _stripes(superblock))
    allocator.load([(superblock.first_block, superblock.blocks - superblock.first_block)])
    trees = {root: Tree(pager, descriptor, root) for root, descriptor in DESCRIPTORS.items()}
    pager.refs = trees[Root.PAGE_REFERENCES]
    space = _space(pager, allocator, trees)
    tables = Tables(
        space, pager, allocator, CollectionTable(trees[Root.COLLECTIONS], 1),
        ObjectTable(space, pager, trees[Root.OBJECTS], TREE_ID_FIRST, onodes_max), trees[Root.FREE],
        trees[Root.PAGE_REFERENCES], Floors(), trees[Root.FLOORS], [],
    )  # fmt: skip
    for start, blocks in allocator.extents():
        _tree_free(tables.free_tree, start, blocks)
    return tables


def load(
    device: Device, superblock: Superblock, cache_bytes: int, onodes_max: int, *, to_read_only: bool = False,
    tolerated: list[str] | None = None,
) -> Tables:  # fmt: skip
    """Open the trees a superblock names and read the first page of each: CorruptionError when one cannot be read.

    to_read_only: nothing will ever be taken or given back (a snapshot), so free space and snapshots are left alone.
    tolerated: takes a sentence for each damage that does not keep what is elsewhere from being read, instead of raising it: all
    but that of the roots, and of the table of collections. Only for an opening that never writes: free space, counts of
    references and floors may be anything then.
    Cost: one page for each tree, all pages of the tree of free extents (its size follows the free space's pieces, not
    the number of objects), and the record of each snapshot.
    """
    pager = Pager(device, page_size=superblock.block_size, cache_bytes=cache_bytes)
    pager.generation = superblock.epoch + 1
    pager.page_bounds = superblock.first_block, superblock.blocks
    trees = {root: _open(pager, superblock, root, descriptor, tolerated) for root, descriptor in DESCRIPTORS.items()}
    if not to_read_only:  # else the pager would keep the tree, which keeps the pager, and its cache, after both were dropped
        pager.refs = trees[Root.PAGE_REFERENCES]
    allocator = Allocator(superblock.cursor, _stripes(superblock))
    if to_read_only:
        trees |= {root: Tree(pager, DESCRIPTORS[root], root) for root in _OPTIONAL}
    else:
        _load_free(allocator, trees[Root.FREE], superblock, tolerated)
    space = _space(pager, allocator, trees, tolerated)
    _check_snapshots(space.snapshots, superblock, tolerated)
    object_table = ObjectTable(space, pager, trees[Root.OBJECTS], superblock.next_tree_id, onodes_max)
    object_table.stored_bytes = superblock.stored_bytes
    floors = _load_floors(trees[Root.FLOORS], tolerated)
    collection_table = CollectionTable(trees[Root.COLLECTIONS], superblock.next_collection_id)
    tables = Tables(
        space, pager, allocator, collection_table, object_table, trees[Root.FREE], trees[Root.PAGE_REFERENCES], floors,
        trees[Root.FLOORS], [],
    )  # fmt: skip
    object_table.replaying = to_read_only
    for start, blocks in superblock.spare_runs:
        allocator.free(start, blocks, pager.generation)  # listed as free nowhere: the next checkpoint gives them back
    return tables


def _load_free(allocator: Allocator, tree: Tree, superblock: Superblock, tolerated: list[str] | None) -> None:
    try:
        allocator.load(_free_extents(tree, superblock))
    except CorruptionError as error:
        if tolerated is None:
            raise
        tolerated.append(f"what is free is not known: {error}")
        allocator.load([(superblock.first_block, superblock.blocks - superblock.first_block)])


def _load_floors(tree: Tree, tolerated: list[str] | None) -> Floors:
    try:
        return Floors(dict(floors_module.decode(key, value) for key, value in tree.items()))
    except CorruptionError as error:
        if tolerated is None:
            raise
        tolerated.append(f"the floors of writers are not known: {error}")
        return Floors({})


def _space(
    pager: Pager, allocator: Allocator, trees: dict[Root, Tree], tolerated: list[str] | None = None
) -> Space:
    shares = Shares(trees[Root.SHARED_INTERVALS], trees[Root.CLONE_GROUPS])
    snapshots = SnapshotTable(trees[Root.SNAPSHOTS], trees[Root.DEAD], tolerated)
    return Space(pager, allocator, shares, snapshots)


def _check_snapshots(snapshots: SnapshotTable, superblock: Superblock, tolerated: list[str] | None) -> None:
    """A kept superblock is an older one of the same image."""
    try:
        for kept in snapshots:
            old = kept.superblock
            if old.uuid != superblock.uuid or old.block_size != superblock.block_size or old.epoch >= superblock.epoch:
                found = f"epoch {old.epoch} of {old.uuid.hex()}"
                expected = f"one before {superblock.epoch} of {superblock.uuid.hex()}"
                raise CorruptionError("snapshot record", repr(kept.name), expected, found)
    except CorruptionError as error:
        if tolerated is None:
            raise
        tolerated.append(f"the snapshots are not known: {error}")
        snapshots.damage = error


def _stripes(superblock: Superblock) -> Stripes | None:
    size = superblock.block_size
    return Stripes(superblock.stripe_bytes // size, superblock.stripe_offset // size) if superblock.stripe_bytes else None


def _open(pager: Pager, superblock: Superblock, root: Root, expect: Descriptor, tolerated: list[str] | None) -> Tree:
    record = superblock.roots.get(root)
    if record is None and root in _OPTIONAL:
        return Tree(pager, expect, root)
    if record is None:
        raise CorruptionError("superblock", f"epoch {superblock.epoch}", f"a root of {root.name.lower()}", "none")
    tree = Tree.open(pager, record, expect)
    try:
        tree.first()
    except CorruptionError as error:
        if tolerated is None or root is Root.COLLECTIONS:
            raise
        if root is Root.OBJECTS:
            next(tree.pages())  # without the root page nothing can be found
        tolerated.append(f"the tree of {root.name.lower().replace('_', ' ')} is damaged: {error}")
    return tree


def _free_extents(tree: Tree, superblock: Superblock) -> Iterator[Run]:
    """The recorded free extents, checked: in order, apart, inside the image."""
    end = superblock.first_block
    for key, value in tree.items():
        (start,), (blocks,) = _START.unpack(key), _LENGTH.unpack(value)
        if start < end or not blocks or start + blocks > superblock.blocks:
            where = f"free extent {start}, {blocks} blocks"
            raise CorruptionError("free space", where, f"within blocks {end}..{superblock.blocks - 1}", "not so")
        end = start + blocks + 1
        yield start, blocks


# -- towards the next superblock ---------------------------------------------------------------------------------------


def freeze(tables: Tables, previous: Superblock, log_position: int, written_ns: int, flags: int = 0) -> Superblock:
    """Give everything that changed an address and a checksum, and return the superblock that names it all.

    Nothing is written yet: blocks and pages are staged. Later changes go to copies. No I/O but reads of tree pages.
    """
    epoch = previous.epoch + 1
    pager, space, allocator = tables.pager, tables.space, tables.allocator
    assert pager.generation == epoch, "pages sealed now belong to this epoch"
    tables.objects.flush()
    tables.collections.flush()
    tables.flush_floors()
    trees = tables.trees()
    roots = {int(root): tree.seal(space.allocate) for root, tree in trees.items() if root not in SETTLED}
    runs = _settle(tables)
    for root in SETTLED:
        roots[int(root)] = trees[root].seal(lambda pages: _take_pages(runs, pages))
    for root in _OPTIONAL:
        if not len(trees[root]):
            del roots[int(root)]
    tables.spare_runs = runs
    allocator.seal_limbo(epoch)
    pager.generation = epoch + 1
    return Superblock(
        uuid=previous.uuid, block_size=previous.block_size, blocks=previous.blocks, log_start=previous.log_start,
        log_blocks=previous.log_blocks, epoch=epoch, flags=flags, log_position=log_position,
        next_tree_id=tables.objects.next_tree_id, next_collection_id=tables.collections.next_number,
        cursor=allocator.cursor, objects=len(tables.objects), stored_bytes=tables.objects.stored_bytes,
        free_blocks=allocator.free_blocks + allocator.limbo_blocks, created_ns=previous.created_ns,
        written_ns=written_ns, features_compatible=previous.features_compatible,
        features_read_only=previous.features_read_only,
        features_incompatible=FEATURE_SNAPSHOTS if len(space.snapshots) else 0,
        stripe_bytes=previous.stripe_bytes, stripe_offset=previous.stripe_offset, spare_runs=list(runs), roots=roots,
    )  # fmt: skip


def _settle(tables: Tables) -> list[Run]:
    """Bring the trees of free extents and of dead runs up to date, their own pages included; returns runs for those pages.

    Sealing them afterwards must not free a page (nobody would record that), so neither is ever embedded unless empty.
    Changing a tree dirties pages of it, which need addresses, which changes the trees; and the pages they replace are free or
    dead themselves. Each round takes what the last one found missing; a page is replaced once, so rounds dirty fewer and fewer
    new pages, and what is left over becomes spare runs of the superblock.
    """
    space, dead = tables.space, tables.space.snapshots.dead
    now = tables.pager.generation  # before it nothing reached what is spare, nor does anything now
    runs: list[Run] = []
    for start, blocks in tables.spare_runs:
        tables.allocator.free(start, blocks, now)
    while True:
        for start, pages, birth in tables.pager.take_freed():
            space.died(start, pages, birth)
        changed = record_changes(tables)
        needed = tables.free_tree.dirty_pages + dead.dirty_pages
        missing = needed - sum(blocks for _, blocks in runs)
        excess = _spare_runs(runs, needed) - SPARE_RUNS_MAX if missing <= 0 else 0
        if missing > 0:
            runs += tables.allocator.allocate(missing)
        elif excess > 0:
            for start, blocks in runs[-excess:]:
                tables.allocator.free(start, blocks, now)
            del runs[-excess:]
        elif not changed:
            return runs


def record_changes(tables: Tables) -> bool:
    """Tell the trees of free extents and of dead runs what was taken, freed and died since then; True when anything was."""
    buried = tables.space.snapshots.bury(tables.allocator)
    allocated, freed = tables.allocator.take_changes()
    for start, blocks in allocated:
        _tree_allocate(tables.free_tree, start, blocks)
    for start, blocks in freed:
        _tree_free(tables.free_tree, start, blocks)
    return bool(buried or allocated or freed)


def _spare_runs(runs: list[Run], needed: int) -> int:
    """How many of the runs are left, whole or in part, when that many pages were taken off their front."""
    left = list(runs)
    _take_pages(left, needed)
    return len(left)


def _take_pages(runs: list[Run], pages: int) -> list[Run]:
    """Cut exactly that many pages off the front of `runs`."""
    taken: list[Run] = []
    while pages:
        start, blocks = runs.pop(0)
        count = min(blocks, pages)
        taken.append((start, count))
        if count < blocks:
            runs.insert(0, (start + count, blocks - count))
        pages -= count
    return taken


def _tree_allocate(tree: Tree, start: int, blocks: int) -> None:
    """Take start..start+blocks out of the recorded free extent that holds it."""
    record = tree.seek(_START.pack(start), reverse=True)
    first, length = _run(record) if record is not None else (0, 0)
    if record is None or start + blocks > first + length:
        raise CorruptionError("free space", f"blocks {start}..{start + blocks - 1}", "recorded as free", "in use")
    tree.delete(record[0])
    if first < start:
        tree.put(record[0], _LENGTH.pack(start - first))
    if start + blocks < first + length:
        tree.put(_START.pack(start + blocks), _LENGTH.pack(first + length - start - blocks))


def _tree_free(tree: Tree, start: int, blocks: int) -> None:
    """Record start..start+blocks as free, merged with its neighbours."""
    after = tree.get(_START.pack(start + blocks))
    if after is not None:
        tree.delete(_START.pack(start + blocks))
        blocks += _LENGTH.unpack(after)[0]
    before = tree.seek(_START.pack(start), reverse=True)
    if before is not None:
        first, length = _run(before)
        if first + length > start:
            raise CorruptionError("free space", f"blocks {start}..{start + blocks - 1}", "in use", "recorded as free")
        if first + length == start:
            start, blocks = first, length + blocks
    tree.put(_START.pack(start), _LENGTH.pack(blocks))


def _run(record: tuple[bytes, bytes]) -> Run:
    return _START.unpack(record[0])[0], _LENGTH.unpack(record[1])[0]
