"""What a checkpoint does in small steps beside traffic, so that nobody waits long for the store's lock: most of the freeze, ahead
of it; and giving back what was freed.

The steps ahead of a freeze only give addresses and checksums earlier: to leaves (`Tree.seal_leaves`), to blocks of data and to
objects' records; and they tell the tree of free extents what was taken and freed so far. What changes again afterwards gets
another address, and the one before is freed. No step makes anything durable or changes what a read finds.

Invariants
1. Between two steps the tables are whole: the freeze may follow any of them, if the others had never been begun. It does not
   begin before the last has ended, because a step may hold freed runs that it has taken out of the lists but not yet recorded.
2. All steps belong to the epoch of the freeze that follows: no other checkpoint runs in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from mdstore.btree import Tree
from mdstore.store import data, tables
from mdstore.store.allocator import Run
from mdstore.store.onode import Onode
from mdstore.store.space import Space
from mdstore.store.tables import Tables

PASSES: Final = 2  # the second finds what changed during the first
PAGES = 64  # of a tree, blocks of an object, runs of free space: in one step, and left to the freeze
ONODES_LEFT = 256  # objects whose records are left to the freeze


def steps(live: Tables) -> Iterator[None]:
    """Each step, under the store's lock, takes a fraction of a millisecond. NoSpace: the freeze has to do with what is left."""
    for _ in range(PASSES):
        yield from _objects(live)
        for root, tree in live.trees().items():
            if root not in tables.SETTLED:
                yield from _leaves(live.space, tree)
        yield from _free_space(live)


def _objects(live: Tables) -> Iterator[None]:
    """Blocks and leaves of objects that have many; the records of objects where there are many."""
    objects = live.objects
    for key in objects.dirty_keys():
        onode = objects.dirty(key)
        if onode is None:
            continue
        yield from _blocks(live, key, onode)
        for tree in (onode.data, onode.map):
            if tree is not None:
                yield from _leaves(live.space, tree)
        if objects.dirty_onodes > ONODES_LEFT and objects.dirty(key) is onode:
            objects.flush_one(onode)
            yield


def _blocks(live: Tables, key: bytes, onode: Onode) -> Iterator[None]:
    objects = live.objects
    while len(onode.blocks) > PAGES and objects.dirty(key) is onode:
        data.flush(live.space, live.pager, onode, objects.new_tree_id, limit=PAGES)
        yield


def _leaves(space: Space, tree: Tree) -> Iterator[None]:
    at = 0 if tree.dirty_pages > PAGES else -1
    while at >= 0:
        at = tree.seal_leaves(space.allocate, at, PAGES)
        yield


def _free_space(live: Tables) -> Iterator[None]:
    """What the next superblock does not reach is recorded as free, or as dead where a snapshot reaches it."""
    freed = live.pager.take_freed()
    for first in range(0, len(freed), PAGES):
        for start, pages, birth in freed[first : first + PAGES]:
            live.space.died(start, pages, birth)
        tables.record_changes(live)
        yield


def hand_over(live: Tables, released: Sequence[Run]) -> Iterator[None]:
    """Free what `leave_limbo` gave, a part in each step."""
    for first in range(0, len(released), PAGES):
        live.allocator.hand_over(released[first : first + PAGES])
        yield
