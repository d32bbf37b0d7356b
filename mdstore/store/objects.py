"""The object table: the tree of onodes, and the bounded set of onodes in memory.

Invariants
1. The object tree holds a record for exactly the objects that exist: creating and removing change it at once. A dirty onode's
   record may be old; `flush` brings every record up to date, and a checkpoint flushes first.
2. An onode in `_cached` is the only copy in memory; whoever changes it marks it dirty in the same step.
3. Only clean onodes are dropped; a dirty one is written into the tree first. While `replaying`, dirty ones stay: writing one
   takes blocks, and a later entry of the log may name the very blocks it would take.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mdstore.btree import Descriptor, Pager, Tree
from mdstore.limits import OBJECT_SIZE_MAX
from mdstore.store import data
from mdstore.store.isolated import Isolated
from mdstore.store.onode import (
    Onode,
    Record,
    data_descriptor,
    map_descriptor,
    object_key,
    record_bound,
    record_need,
    split_key,
)
from mdstore.store.revisions import is_revision, revision_key, with_collection
from mdstore.store.space import Space
from mdstore.store.uninterrupted import uninterrupted

EMBED_LIMIT = 512
DESCRIPTOR = Descriptor(-2, -4, embed_limit=EMBED_LIMIT)


_MOVED_AT_ONCE = 1024  # records held beside the tree
ONODES_MIN = 64  # so that the few onodes one operation holds are never the ones dropped


class ObjectTable:
    """Objects by key. Every call happens under the store's lock."""

    def __init__(self, space: Space, pager: Pager, tree: Tree, next_tree_id: int, onodes_max: int) -> None:
        self.space = space
        self.pager = pager
        self.tree = tree
        self.next_tree_id = next_tree_id
        self.stored_bytes = 0
        self.replaying = False
        self.isolated = Isolated()
        self.changed_onodes = 0  # since the last checkpoint, each time one was dirtied
        self.pending_bytes = 0  # of space that records of dirty objects may take, `Onode.need` summed
        self.changes = 0  # odd while a transaction is being applied, and for good once the store is closed or latched
        self._has_revisions: bool | None = None  # not known before somebody asks
        self._onodes_max = max(ONODES_MIN, onodes_max)
        self._cached: dict[bytes, Onode] = {}
        self._dirty: dict[bytes, Onode] = {}

    def __len__(self) -> int:
        return len(self.tree)

    @property
    def cached(self) -> Mapping[bytes, Onode]:
        """The objects in memory by key, live: one held elsewhere is current as long as this holds it."""
        return self._cached

    # -- finding -------------------------------------------------------------------------------------------------------

    def get(self, collection_number: int, name: bytes) -> Onode | None:
        """The object, or None. One descent of the object tree when it is not in memory."""
        return self.at(object_key(collection_number, name))

    def at(self, key: bytes) -> Onode | None:
        """The object or the revision under a key, or None. The same cost."""
        onode = self._cached.get(key)
        if onode is None:
            if self.isolated:
                self.isolated.check(key)
            raw = self.tree.get(key)
            if raw is None:
                return None
            onode = self._load(key, raw)
        onode.touched = True
        return onode

    @property
    def has_revisions(self) -> bool:
        """Whether any object may have a revision: their keys come last. One descent, the first time; False costs nothing."""
        if self._has_revisions is None:
            last = next(self.tree.keys(reverse=True), None)
            self._has_revisions = last is not None and is_revision(last)
        return self._has_revisions

    def _load(self, key: bytes, raw: bytes) -> Onode:
        record = Record(key, raw)
        onode, size = record.onode, self.space.block_size
        if record.data_root:
            onode.data = Tree.open(self.pager, record.data_root, data_descriptor(size))
        if record.map_root:
            onode.map = Tree.open(self.pager, record.map_root, map_descriptor(size))
        return self._remember(onode)

    def _remember(self, onode: Onode) -> Onode:
        if len(self._cached) >= self._onodes_max:
            self._evict()
        self._cached[onode.key] = onode
        return onode

    def isolate(self, key: bytes, cause: str) -> None:
        """The object's state is not known: from now on whoever asks for it gets CorruptionError."""
        self.isolated.add(key, cause)
        self._forget(key)

    # -- changing ------------------------------------------------------------------------------------------------------

    def create(self, collection_number: int, name: bytes) -> Onode:
        """A new, empty object; it must not exist."""
        return self._create_at(object_key(collection_number, name))

    def _create_at(self, key: bytes) -> Onode:
        onode = Onode(key)
        self._cached.pop(key, None)
        self.tree.put(onode.key, onode.encode(b"", b""))
        return self._remember(onode)

    def remove(self, onode: Onode) -> None:
        """Drop the object and free all it held."""
        if onode.group:
            self._leave_group(onode)
        data.punch(self.space, onode, 0, OBJECT_SIZE_MAX)
        self.stored_bytes -= onode.size
        for tree in (onode.data, onode.map):
            if tree is not None:
                tree.clear()
        self._forget(onode.key)
        self.tree.delete(onode.key)

    def _leave_group(self, onode: Onode) -> None:
        """An object that goes: if other clones remain, they keep the blocks, and only its hold on the tree's pages ends."""
        others = self.space.shares.leave(onode.group)
        onode.group = 0
        if others and onode.data is not None:
            onode.data.clear()
            onode.data = None

    def clone(self, source: Onode, target: Onode) -> None:
        """Make an empty object equal to another, sharing pages and blocks until either side changes. O(1), but for what the
        source holds in memory."""
        target.size, target.allocated, target.hint = source.size, source.allocated, source.hint
        target.attributes = dict(source.attributes)
        target.blocks = {number: bytes(block) for number, block in source.blocks.items()}
        self.space.changed_blocks += len(target.blocks)
        if source.map is not None:
            target.map = source.map.clone()
        if source.data is not None:
            target.data = source.data.clone()
            if source.group:
                self.space.shares.join(source.group)
            else:
                source.group = self.new_tree_id()
                self.space.shares.found(source.group)
            target.group = source.group
        self.stored_bytes += target.size

    def keep(self, onode: Onode, rev: int) -> None:
        """Keep the object as it is as its revision `rev`; it goes on as created at `rev`. O(1), as `clone`."""
        kept = self._create_at(revision_key(*split_key(onode.key), rev))
        self._has_revisions = True
        self.clone(onode, kept)
        kept.created_rev, onode.created_rev = onode.created_rev, rev
        self.mark_dirty(kept)
        self.mark_dirty(onode)

    def keep_only(self, onode: Onode, rev: int) -> None:
        """Turn an object that goes into its revision `rev`."""
        self.rekey(onode.key, revision_key(*split_key(onode.key), rev))
        self._has_revisions = True

    def rekey(self, key: bytes, new_key: bytes) -> None:
        """Give an object or a revision another key; nothing else of it moves. Takes no block, not even for what is dirty: in
        replay a later entry of the log may name any free one."""
        raw = self.tree.get(key)
        assert raw is not None, "invariant 1"
        self.tree.delete(key)
        self.tree.put(new_key, raw)
        self._rename_cached(key, new_key)

    def move(self, keys: Sequence[bytes], number: int) -> None:
        """Give objects and revisions the same names in another collection; takes no block, as `rekey`. The records are in
        memory until the next checkpoint, which is due after as many as make one due by being changed."""
        moved = [with_collection(key, number) for key in keys]
        for at in range(0, len(keys), _MOVED_AT_ONCE):
            old, new = keys[at : at + _MOVED_AT_ONCE], moved[at : at + _MOVED_AT_ONCE]
            records = self.tree.get_many(old)
            self.tree.delete_many(old)
            self.tree.update([(key, raw) for key, raw in zip(new, records, strict=True) if raw is not None])
        for key, new_key in zip(keys, moved, strict=True):
            self._rename_cached(key, new_key)
        self.changed_onodes += len(keys)

    def _rename_cached(self, key: bytes, new_key: bytes) -> None:
        onode = self._cached.pop(key, None)
        if onode is not None:
            onode.key = new_key
            self._cached[new_key] = onode
            if self._dirty.pop(key, None) is not None:
                self._dirty[new_key] = onode

    def _forget(self, key: bytes) -> None:
        self._cached.pop(key, None)
        onode = self._dirty.pop(key, None)
        if onode is not None:
            self._counted(onode)

    def mark_dirty(self, onode: Onode) -> None:
        if not onode.dirty:
            onode.dirty = True
            self.changed_onodes += 1
            self._dirty[onode.key] = onode
            self.measure(onode)

    def measure(self, onode: Onode) -> None:
        """Count what writing the object's record back may take, after it changed."""
        if onode.dirty:
            size = self.space.block_size
            need = record_need(record_bound(onode, size), size)
            self.pending_bytes += need - onode.need
            onode.need = need

    def _counted(self, onode: Onode) -> None:
        """The object is not dirty any more, or gone."""
        onode.dirty = False
        self.pending_bytes -= onode.need
        onode.need = 0

    def map_of(self, onode: Onode) -> Tree:
        """The object's map tree, made when there is none."""
        if onode.map is None:
            onode.map = Tree(self.pager, map_descriptor(self.space.block_size), self.new_tree_id())
        return onode.map

    def new_tree_id(self) -> int:
        self.next_tree_id += 1
        return self.next_tree_id - 1

    # -- into the tree -------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Bring every record of the object tree up to date: blocks get addresses, changed trees are sealed."""
        while self._dirty:
            self.flush_one(next(iter(self._dirty.values())))
        self.changed_onodes = 0

    def dirty_keys(self) -> list[bytes]:
        """Of every object whose record may be old, now."""
        return list(self._dirty)

    def dirty(self, key: bytes) -> Onode | None:
        """The object of that key if its record may be old."""
        return self._dirty.get(key)

    def flush_one(self, onode: Onode) -> None:
        """The same for one object."""
        if not onode.dirty:
            self._dirty.pop(onode.key, None)  # where an interrupt came between the last two steps below
            return
        if onode.blocks:
            data.flush(self.space, self.pager, onode, self.new_tree_id)
        roots = [self._seal(tree) for tree in (onode.data, onode.map)]
        self.tree.put(onode.key, onode.encode(*roots))
        self._counted(onode)
        self._dirty.pop(onode.key, None)

    def _seal(self, tree: Tree | None) -> bytes:
        if tree is None or (not len(tree) and not tree.user_blob):
            return b""
        return tree.seal(self.space.allocate)

    def _evict(self) -> None:
        """Second chance: an onode used since the last look stays, another one goes, written into the tree first if dirty. It may
        be a reader that does this, and is interrupted: between any two steps each object is in memory or up to date in the tree.
        """
        wanted = self._onodes_max // 8 + 1
        going: list[Onode] = []
        for onode in list(self._cached.values())[: 2 * wanted]:
            if len(going) >= wanted:
                break
            if onode.touched or (onode.dirty and self.replaying):
                onode.touched = False
                del self._cached[onode.key]
                self._cached[onode.key] = onode  # behind all others; no call between the two, so no interrupt either
            else:
                going.append(onode)
        if any(onode.dirty for onode in going):
            self._flush_each(going)
        for onode in going:
            del self._cached[onode.key]

    def _flush_each(self, onodes: Sequence[Onode]) -> None:
        """Half of it would lose changes. While a transaction is applied an interrupt latches the store in any case."""

        def flush() -> None:
            for onode in onodes:
                self.flush_one(onode)

        if self.changes & 1:
            flush()
        else:
            uninterrupted(flush)

    @property
    def dirty_onodes(self) -> int:
        return len(self._dirty)

    def trees(self) -> list[Tree]:
        """Trees of the onodes in memory that have changed."""
        changed = (tree for onode in self._dirty.values() for tree in (onode.data, onode.map))
        return [tree for tree in changed if tree is not None and tree.is_dirty]
