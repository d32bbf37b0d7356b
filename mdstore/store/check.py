"""The whole-store checker: every problem of a live store, not the first. Called by the API and after every store test.

It speaks the engine's own language (`mdstore fsck` is the independent one) and checks the state in memory, which must agree with
itself before and after a checkpoint.

Numbered as in docs/ARCHITECTURE.md, "What must hold":
C1 every tree is sound; C2 no block is used twice; C3 used and free blocks together are the whole space; C4 counts are right;
C5 extents lie inside the image, apart, and before the end of the object; C6 every data block has its recorded checksum (deep).
"""

from __future__ import annotations

from collections.abc import Iterator

from mdstore.btree import Tree
from mdstore.errors import MdstoreError
from mdstore.store import data, extents
from mdstore.store.allocator import Run
from mdstore.store.objects import ObjectTable
from mdstore.store.onode import Onode, split_key
from mdstore.store.store import Store


def check(store: Store, *, deep: bool = False) -> list[str]:
    """Every violated invariant in words; empty when sound. Runs a checkpoint first, and holds the store's lock."""
    if not store.read_only:
        store.checkpoint()
    with store.lock:
        return list(_problems(store, deep=deep))


def _problems(store: Store, *, deep: bool) -> Iterator[str]:
    tables = store.tables
    used: list[tuple[int, int, str]] = []
    for name, tree in (("objects", tables.objects.tree), ("collections", tables.collections.tree), ("free", tables.free_tree)):
        yield from _check_tree(name, tree, used)
    counts: dict[int, int] = {}
    stored = 0
    for key in list(tables.objects.tree.keys()):
        number, name_bytes = split_key(key)
        counts[number] = counts.get(number, 0) + 1
        try:
            onode = tables.objects.get(number, name_bytes)
        except MdstoreError as error:
            yield f"C1 object {number}/{name_bytes!r}: {error}"
            continue
        assert onode is not None, "listed"
        stored += onode.size
        yield from _check_object(tables.objects, onode, f"{number}/{name_bytes!r}", used, deep=deep)
    yield from _check_counts(store, counts, stored)
    yield from _check_space(store, used)


def _check_tree(name: str, tree: Tree, used: list[tuple[int, int, str]]) -> Iterator[str]:
    for problem in tree.check():
        yield f"C1 tree {name}: {problem}"
    used += [(start, pages, f"tree {name}") for start, pages, _ in tree.pages()]


def _check_object(
    objects: ObjectTable, onode: Onode, name: str, used: list[tuple[int, int, str]], *, deep: bool
) -> Iterator[str]:
    for stream, tree in (("map", onode.map), ("data", onode.data)):
        if tree is not None:
            yield from _check_tree(f"{stream} of {name}", tree, used)
    if onode.data is None:
        return
    space, allocated, end = objects.space, 0, 0
    for key, value in onode.data.items():
        try:
            extent = extents.decode_extent(key, value)
            if deep:
                data.load_extent(space, extent, name)
        except MdstoreError as error:
            yield f"C6 object {name}: {error}"
            continue
        if extent.logical < end:
            yield f"C5 object {name}: extent at {extent.logical} overlaps the one before"
        end = extent.end
        allocated += extent.blocks
        used.append((extent.start, extent.blocks, f"data of {name}"))
    if end * space.block_size >= onode.size + space.block_size:
        yield f"C5 object {name}: extents up to block {end}, size {onode.size}"
    if allocated != onode.allocated:
        yield f"C4 object {name}: {allocated} blocks of data, {onode.allocated} recorded"


def _check_counts(store: Store, counts: dict[int, int], stored: int) -> Iterator[str]:
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


def _check_space(store: Store, used: list[tuple[int, int, str]]) -> Iterator[str]:
    """C2 and C3: sorted runs must tile the space from the end of the log to the end of the image."""
    tables, chosen = store.tables, store.superblock
    recorded = list(_free_runs(tables.free_tree))
    runs = used + [(start, blocks, "free") for start, blocks in recorded]
    runs += [(start, blocks, "spare") for start, blocks in tables.spare_runs]
    end, owner = chosen.first_block, "the log"
    for start, blocks, what in sorted(runs):
        if start < end:
            yield f"C2 block {start} belongs to {what} and to {owner}"
        elif start > end:
            yield f"C3 blocks {end}..{start - 1} are neither used nor free (leaked)"
        if start + blocks > end:
            end, owner = start + blocks, what
    if end != chosen.blocks:
        yield f"C3 space ends at block {end}, the image at {chosen.blocks}"


def _free_runs(tree: Tree) -> Iterator[Run]:
    for key, value in tree.items():
        yield int.from_bytes(key, "big"), int.from_bytes(value, "little")
