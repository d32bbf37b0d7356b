"""Room: whether a transaction finds some in the log and in the image, and whether a checkpoint should make some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from mdstore.errors import LimitExceeded, MdstoreError, NoSpace, TransactionError
from mdstore.store import log
from mdstore.store.snapshots import reserve_blocks
from mdstore.store.transaction import Transaction
from mdstore.store.validate import Validator

if TYPE_CHECKING:
    from mdstore.store.store import Store

_CHANGED_ONODES: Final = 1 << 16  # so that replay, which keeps them all in memory, never meets more


class Room:
    """One store's. Every call happens under the store's lock, but for those that ask whether a checkpoint is due."""

    def __init__(self, store: Store, dirty_bytes: int) -> None:
        self._store = store
        self._dirty_bytes = dirty_bytes
        self._log_capacity = store.journal.capacity or 0
        self._reserve = 0
        self.image_grew()

    def image_grew(self) -> None:
        """The reserve follows the size of the image."""
        self._reserve = max(8, self._store.superblock.blocks // 64)

    def log_refusal(self, log_bytes: int) -> MdstoreError | None:
        """Why the log has no room now (a checkpoint makes some), or None. LimitExceeded when it never will."""
        journal = self._store.journal
        largest = log.largest_entry(journal.medium)
        if log_bytes > largest:
            raise LimitExceeded("the size of the transaction in the log", log_bytes, largest)
        free = journal.free or 0
        return NoSpace(f"the log has {free} bytes free, {log_bytes} are needed") if log_bytes > free else None

    def refusal(self, transaction: Transaction, placed_blocks: int) -> MdstoreError | None:
        """Why the image has no room now, or None. TransactionError for an operation that cannot be applied."""
        tables = self._store.tables
        validator = Validator(tables.collections, tables.objects, tables.floors)
        validator.check(transaction.operations, transaction.epoch)
        has_snapshots = len(tables.space.snapshots) > 0
        if validator.only_frees and not has_snapshots:
            return None
        allocator, superblock = tables.allocator, self._store.superblock
        used = superblock.blocks - superblock.first_block - allocator.free_blocks
        needed = min(validator.rewrites, used) + max(0, validator.growth - placed_blocks)
        needed += tables.space.snapshots.burial(needed)
        needed += self.pending_blocks() + self._kept_back(only_frees=validator.only_frees)
        if needed <= allocator.free_blocks:
            return None
        found = f"{needed} blocks may be needed, {allocator.free_blocks} are free{self.hint()}"
        return TransactionError(0, "space", NoSpace(found))

    def hint(self) -> str:
        """To end a refusal with: what would make room, where anything but removing would."""
        hint = "; what snapshots hold is not free: deleting one frees it" if len(self._store.tables.space.snapshots) else ""
        held = self._store.held_blocks()
        return hint + (f"; open iterators, snapshots of maps and reads under way hold {held}: end them" if held else "")

    def blocks(self) -> int:
        """Blocks that may be taken without touching what the next checkpoint, and the reserve, will need."""
        return self._store.tables.allocator.free_blocks - self.pending_blocks() - self._kept_back()

    def _kept_back(self, *, only_frees: bool = False) -> int:
        """Blocks that a transaction must leave free. While there are snapshots, removing takes space too (what it replaces is
        not given back), so it has a reserve of its own, and so has deleting a snapshot."""
        if not len(self._store.tables.space.snapshots):
            return self._reserve
        return (self._reserve + reserve_blocks(self._store.superblock.block_size)) // (2 if only_frees else 1)

    def pending_blocks(self) -> int:
        """Blocks that the next checkpoint will take for what has changed already (an upper bound, but for the reserve). Pages
        that only open snapshots hold (`Pager.held_bytes`) are never written, and not among them."""
        tables, block_size = self._store.tables, self._store.superblock.block_size
        dirty_pages = tables.pager.dirty_bytes // block_size
        records = tables.objects.pending_bytes // block_size
        changing = tables.space.changed_blocks + dirty_pages + records
        return changing + tables.space.snapshots.burial(changing)

    def checkpoint_is_due(self) -> bool:
        """Whether the log is half full, or what changed since the last checkpoint is more than should be in memory."""
        if (self._store.journal.free or 0) * 2 < self._log_capacity:
            return True
        tables = self._store.tables
        dirty = tables.pager.dirty_bytes + tables.space.changed_blocks * tables.space.block_size
        return dirty > self._dirty_bytes or tables.objects.changed_onodes > _CHANGED_ONODES
