"""Large writes: their whole blocks go straight to fresh extents of the device, once, before the log entry that names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mdstore.btree import crc32c_blocks
from mdstore.errors import NoSpace, TransactionError
from mdstore.limits import KIB
from mdstore.store.transaction import Op, Operation, Transaction

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

    def place(self, transaction: Transaction) -> tuple[list[Operation], list[Run]]:
        """The operations, with the whole blocks of each large write on the device already, and where these lie.
        TransactionError (NoSpace), the failure that latches the store; nothing is kept then."""
        if transaction.payload_bytes < self._limit or not any(map(self._is_large, transaction.operations)):
            return transaction.operations, []
        operations: list[Operation] = []
        mapped: list[Run] = []
        try:
            for operation in transaction.operations:
                operations += self._place(operation, mapped) if self._is_large(operation) else [operation]
        except BaseException:
            self.give_back(mapped)
            raise
        return operations, mapped

    def give_back(self, runs: list[Run]) -> None:
        """Blocks that no transaction took are free again."""
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
        runs = self._allocate(blocks)
        mapped += runs
        store.guarded(lambda: store.tables.space.write(runs, whole))
        placed: list[Operation] = []
        if head:
            placed.append((Op.WRITE, collection, name, offset, bytes(view[:head])))
        placed.append((Op.WRITE_MAPPED, collection, name, (offset + head) // size, runs, crc32c_blocks(whole, size)))
        if head + len(whole) < len(view):
            placed.append((Op.WRITE, collection, name, offset + head + len(whole), bytes(view[head + len(whole) :])))
        return placed

    def _allocate(self, blocks: int) -> list[Run]:
        store = self._store
        for attempt in range(CHECKPOINTS_FOR_ROOM + 1):
            with store.lock:
                store.check_writable()
                free, room = store.tables.allocator.free_blocks, store.room.blocks()
                if blocks <= room:
                    return store.tables.allocator.reserve(blocks)
            if attempt < CHECKPOINTS_FOR_ROOM:
                store.checkpointer.run()
        kept = f"{max(0, room)} may be taken: of {free} that are free the rest is for the next checkpoint and the reserve"
        raise TransactionError(0, "write", NoSpace(f"{blocks} blocks are needed for the data, {kept}"))
