"""Large writes: their whole blocks go straight to fresh extents of the device, once, before the log entry that names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mdstore.btree import crc32c_blocks
from mdstore.errors import NoSpace, TransactionError
from mdstore.limits import KIB
from mdstore.store.transaction import Op, Operation, Transaction
from mdstore.store.uninterrupted import uninterrupted

if TYPE_CHECKING:
    from mdstore.store.store import Store

Run = tuple[int, int]  # (first block, blocks)
CHECKPOINTS_FOR_ROOM = 2  # one turns changes into trees, the next gives back what the first replaced
_DIRECT_BYTES = 64 * KIB  # a write with that many bytes of whole blocks goes straight to the device


class LargeWrites:
    """Places the large writes of transactions, and takes back what a transaction that was refused does not use."""

    def __init__(self, store: Store, log_bytes: int) -> None:
        """`log_bytes`: of the log; what would take a large part of a small one is placed too."""
        self._store = store
        size = store.superblock.block_size
        self._limit = max(2, min(_DIRECT_BYTES, (log_bytes or _DIRECT_BYTES) // 16) // size) * size

    def place(self, transaction: Transaction, mapped: list[Run]) -> list[Operation]:
        """The operations, with the whole blocks of each large write on the device already; `mapped` takes where these lie, also
        when this raises: TransactionError (NoSpace), the failure that latches the store."""
        if transaction.payload_bytes < self._limit or not any(map(self._is_large, transaction.operations)):
            return transaction.operations
        operations: list[Operation] = []
        for operation in transaction.operations:
            operations += self._place(operation, mapped) if self._is_large(operation) else [operation]
        return operations

    def give_back(self, runs: list[Run]) -> None:
        """Blocks that no transaction took are free again."""
        if runs:
            uninterrupted(lambda: self._give_back(runs))

    def _give_back(self, runs: list[Run]) -> None:
        with self._store.lock:
            self._store.tables.allocator.hand_over(runs)
            self._store.wiper.want(runs)

    def _is_large(self, operation: Operation) -> bool:
        return operation[0] == Op.WRITE and len(operation[4]) >= self._limit

    def _place(self, operation: Operation, mapped: list[Run]) -> list[Operation]:
        _, collection, name, offset, content = operation
        store = self._store
        size, view = store.superblock.block_size, memoryview(content)
        head = -offset % size
        blocks = (len(view) - head) // size
        whole = view[head : head + blocks * size]
        runs = self._allocate(blocks, mapped)
        try:
            store.tables.space.write(runs, whole)
        except Exception as error:  # an interrupt fails nothing: no transaction names these blocks yet
            store.latch(error)
            raise
        placed: list[Operation] = []
        if head:
            placed.append((Op.WRITE, collection, name, offset, bytes(view[:head])))
        placed.append((Op.WRITE_MAPPED, collection, name, (offset + head) // size, runs, crc32c_blocks(whole, size)))
        if head + len(whole) < len(view):
            placed.append((Op.WRITE, collection, name, offset + head + len(whole), bytes(view[head + len(whole) :])))
        return placed

    def _allocate(self, blocks: int, mapped: list[Run]) -> list[Run]:
        """As many blocks, which `mapped` knows of whatever interrupts the caller."""
        for attempt in range(CHECKPOINTS_FOR_ROOM + 1):
            # Interrupted half-way the blocks would be nobody's. The thread that cannot be takes the lock itself: waiting for it
            # with the lock held would keep readers waiting for two changes of threads, of 5 ms each beside busy ones.
            runs, free, room, hint = uninterrupted(lambda: self._reserve(blocks, mapped))
            if runs:
                return runs
            if attempt < CHECKPOINTS_FOR_ROOM:
                self._store.checkpointer.run()
        kept = f"{max(0, room)} may be taken: of {free} that are free the rest is for the next checkpoint and the reserve{hint}"
        raise TransactionError(0, "write", NoSpace(f"{blocks} blocks are needed for the data, {kept}"))

    def _reserve(self, blocks: int, mapped: list[Run]) -> tuple[list[Run], int, int, str]:
        """(as many blocks, or none where there are too few; blocks free, blocks that may be taken; what would make room)."""
        store = self._store
        with store.lock:
            store.check_writable()
            free, room = store.tables.allocator.free_blocks, store.room.blocks()
            runs = store.tables.allocator.reserve(blocks) if blocks <= room else []
            mapped.extend(runs)
            hint = "" if runs else store.room.hint()
        return runs, free, room, hint
