"""The whole-store checker: every problem of a live store, not the first. Called by the API and after every store test.

It speaks the engine's own language (`mdstore fsck` is the independent one) and checks the state in memory, which must agree with
itself before and after a checkpoint.

Numbered as in docs/ARCHITECTURE.md, "What must hold":
C1 every tree is sound; C2 no block is used twice; C3 used and free blocks together are the whole space; C4 counts are right;
C5 extents lie inside the image, apart, and before the end of the object; C6 every data block has its recorded checksum (deep);
C7 shared blocks and groups of clones are counted right; C8 revisions of one object do not overlap, and end before it begins;
C9 snapshots reach what they should (mdstore/store/check_space.py, which also has C2 and C3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from mdstore.btree import Tree
from mdstore.errors import MdstoreError
from mdstore.store import data, extents
from mdstore.store.allocator import Run
from mdstore.store.check_space import UsedRun, check_reach, check_space
from mdstore.store.objects import ObjectTable
from mdstore.store.onode import Onode
from mdstore.store.queries import Queries
from mdstore.store.revisions import is_revision, newest, object_of, rev_of
from mdstore.store.snapshots import SnapshotView
from mdstore.store.store import Store
from mdstore.store.superblock import Root


def check(store: Store, *, deep: bool = False) -> list[str]:
    """Every violated invariant in words; empty when sound. Runs a checkpoint first, and holds the store's lock."""
    if not store.read_only:
        store.checkpoint()
    with store.lock:
        return list(_problems(store, deep=deep))


def _problems(store: Store, *, deep: bool) -> Iterator[str]:
    use = _Use()
    yield from _contents(store, use, deep=deep)
    live = use.runs()
    yield from check_space(store.tables, store.superblock, live)
    reached: dict[int, list[UsedRun]] = {}
    for kept in store.tables.space.snapshots:
        if kept.is_deleting:
            continue
        use = _Use()
        with store.open_snapshot(kept.name) as view:
            for problem in _snapshot_contents(view, use, deep=deep):
                yield f"{problem} (in snapshot {kept.name!r})"
        reached[kept.epoch] = use.runs()
    yield from check_reach(store.tables, live, reached)


def _snapshot_contents(view: SnapshotView, use: _Use, *, deep: bool) -> Iterator[str]:
    """A view leaves alone the trees of snapshots and of the dead as they were, but the kept superblock reaches them."""
    yield from _contents(view, use, deep=deep)
    for root in (Root.SNAPSHOTS, Root.DEAD):
        if root in view.superblock.roots:
            yield from _check_tree(root.name.lower(), Tree.open(view.tables.pager, view.superblock.roots[root]), use)


def _contents(store: Queries, use: _Use, *, deep: bool) -> Iterator[str]:
    tables = store.tables
    for root, tree in tables.trees().items():
        yield from _check_tree(root.name.lower(), tree, use)
    counts: dict[int, int] = {}
    stored = 0
    for key in list(tables.objects.tree.keys()):
        try:
            number, name_bytes = object_of(key)
            onode = tables.objects.at(key)
        except MdstoreError as error:
            yield f"C1 object {key!r}: {error}"
            continue
        assert onode is not None, "listed"
        counts[number] = counts.get(number, 0) + (not is_revision(key))
        stored += onode.size
        yield from _check_object(tables.objects, onode, f"{number}/{name_bytes!r}", use, deep=deep)
    yield from _check_revisions(tables.objects)
    yield from _check_counts(store, counts, stored)
    yield from _check_shares(store, use)


class _Use:
    """Who uses which blocks: pages once for each tree family, extents once for each reference."""

    def __init__(self) -> None:
        self.pages: set[tuple[int, int, int]] = set()  # first page, pages, tree id: clones share all three
        self.references: list[Run] = []
        self.groups: dict[int, list[tuple[bytes, bytes]]] = {}
        self.members: Counter[int] = Counter()

    def runs(self) -> list[UsedRun]:
        """Every page and block once."""
        runs = [(start, pages, f"tree {number}") for start, pages, number in self.pages]
        return runs + [(start, blocks, "data") for start, blocks, _ in _tally(self.references)]


def _check_tree(name: str, tree: Tree, use: _Use) -> Iterator[str]:
    for problem in tree.check():
        yield f"C1 tree {name}: {problem}"
    use.pages.update((start, pages, tree.tree_id) for start, pages, _ in tree.pages())


def _check_object(objects: ObjectTable, onode: Onode, name: str, use: _Use, *, deep: bool) -> Iterator[str]:
    for stream, tree in (("map", onode.map), ("data", onode.data)):
        if tree is not None:
            yield from _check_tree(f"{stream} of {name}", tree, use)
    records = list(onode.data.items()) if onode.data is not None else []
    first = use.groups.setdefault(onode.group, records) if onode.group else records
    use.members[onode.group] += 1
    if first != records:
        yield f"C7 object {name}: its extents differ from those of its group {onode.group}"
    space, allocated, end = objects.space, 0, 0
    for key, value in records:
        try:
            extent = extents.decode_extent(key, value)
        except MdstoreError as error:
            yield f"C5 object {name}: {error}"
            continue
        if deep:
            yield from _check_blocks(objects, extent, name)
        if extent.logical < end:
            yield f"C5 object {name}: extent at {extent.logical} overlaps the one before"
        end = extent.end
        allocated += extent.blocks
        if first is records:
            use.references.append((extent.start, extent.blocks))
    if end * space.block_size >= onode.size + space.block_size:
        yield f"C5 object {name}: extents up to block {end}, size {onode.size}"
    if allocated != onode.allocated:
        yield f"C4 object {name}: {allocated} blocks of data, {onode.allocated} recorded"


def _check_blocks(objects: ObjectTable, extent: extents.Extent, name: str) -> Iterator[str]:
    try:
        data.load_extent(objects.space, extent, name)
    except MdstoreError as error:
        yield f"C6 object {name}: {error}"


def _check_revisions(objects: ObjectTable) -> Iterator[str]:
    """C8: invariants 1 and 2 of mdstore/store/revisions.py."""
    if not objects.has_revisions:
        return
    owner, end = (0, b""), 0
    for key in list(objects.tree.keys()):
        onode, (number, name) = objects.at(key), object_of(key)
        assert onode is not None, "listed"
        if not is_revision(key):
            if onode.created_rev < newest(objects, number, name):
                yield f"C8 object {number}/{name!r}: created at {onode.created_rev}, before its newest revision"
            continue
        end = end if (number, name) == owner else 0
        if not end <= onode.created_rev < rev_of(onode):
            yield f"C8 revision {rev_of(onode)} of {number}/{name!r}: from {onode.created_rev} on, the one before ends at {end}"
        owner, end = (number, name), rev_of(onode)


def _check_shares(store: Queries, use: _Use) -> Iterator[str]:
    """C7: the counts of shared blocks and of groups are what the objects say."""
    shares = store.tables.space.shares
    expected = [(start, count, refs - 1) for start, count, refs in _tally(use.references) if refs > 1]
    if expected != list(shares):
        yield f"C7 shared blocks: {expected[:5]} by the extents, {list(shares)[:5]} recorded"
    del use.members[0]
    recorded = {int.from_bytes(key, "big"): int.from_bytes(value, "little") for key, value in shares.groups.items()}
    if recorded != use.members:
        yield f"C7 groups of clones: {dict(use.members)} by the objects, {recorded} recorded"


def _tally(references: list[Run]) -> list[tuple[int, int, int]]:
    """(first block, blocks, references), in order, neighbours of equal count merged, blocks without any left out."""
    steps: Counter[int] = Counter()
    for start, blocks in references:
        steps[start] += 1
        steps[start + blocks] -= 1
    pieces: list[tuple[int, int, int]] = []
    depth, position = 0, 0
    for block in sorted(steps):
        if depth and block > position:
            last = pieces[-1] if pieces else (0, 0, 0)
            if last[0] + last[1] == position and last[2] == depth:
                pieces[-1] = (last[0], last[1] + block - position, depth)
            else:
                pieces.append((position, block - position, depth))
        depth += steps[block]
        position = block
    return pieces


def _check_counts(store: Queries, counts: dict[int, int], stored: int) -> Iterator[str]:
    tables = store.tables
    for name in tables.collections.names():
        collection = tables.collections.get(name)
        assert collection is not None, "listed"
        found = counts.pop(collection.number, 0)
        if found != collection.objects:
            yield f"C4 collection {name!r}: {found} objects, {collection.objects} recorded"
    for number, found in counts.items():
        yield f"C4 {found} objects in collection number {number}, which does not exist"
    if stored != tables.objects.stored_bytes:
        yield f"C4 {stored} bytes stored, {tables.objects.stored_bytes} recorded"
