"""Space: the device seen as blocks, with the allocator, and with the blocks whose write is still under way.

Invariant: a block handed to `stage` reads as staged from then on, whether or not its write has been issued. Staged blocks
are written by the checkpoint that names them, before its superblock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain

from mdstore.btree import Pager, crc32c_blocks, read_blocks
from mdstore.device.protocol import Buffer, Device
from mdstore.store.allocator import Allocator, Run
from mdstore.store.shares import Shares
from mdstore.store.snapshot_table import SnapshotTable

_WRITE_BYTES_MAX = 8 << 20  # of staged blocks merged into one device write
_FORGET_BYTES_MIN = 64 << 10  # of a freed run that is worth a system call
Hint = Callable[[int, int], None]  # byte offset, bytes; what only files understand


class Space:
    """One image's blocks. `allocate` may be called under the store's lock only; reads from any thread."""

    def __init__(self, pager: Pager, allocator: Allocator, shares: Shares, snapshots: SnapshotTable) -> None:
        """Of the pager's device, in blocks of its page size."""
        self.device: Device = pager.device
        self.block_size = pager.page_size
        self._pager = pager
        self.allocator = allocator
        self.shares = shares
        self.snapshots = snapshots
        self._write_behind: Hint = getattr(self.device, "write_behind", _no_hint)
        self._uncache: Hint = getattr(self.device, "uncache", _no_hint)
        self.changed_blocks = 0  # blocks held in onodes, waiting for an address
        self._staged: dict[int, Buffer] = {}
        self._zeros = bytes(self.block_size)

    def allocate(self, blocks: int) -> Sequence[Run]:
        """Runs for exactly that many blocks (NoSpace otherwise). The shape `Tree.seal` wants."""
        return self.allocator.allocate(blocks)

    def allocate_data(self, blocks: int) -> Sequence[Run]:
        """The same for blocks of an object's data, on whole stripes of the medium as far as it goes."""
        return self.allocator.allocate_data(blocks)

    def release(self, start: int, blocks: int, birth: int) -> None:
        """Drop one reference to these blocks, which epoch `birth` wrote; those nobody else refers to die."""
        for run in self.shares.release(start, blocks):
            self.died(*run, birth)

    def died(self, start: int, blocks: int, birth: int) -> None:
        """The live state stopped reaching these blocks: free, unless a snapshot reaches them."""
        if birth > self.snapshots.newest:
            self.allocator.free(start, blocks, birth)
        else:
            self.snapshots.died(start, blocks, birth)

    # -- staged blocks -------------------------------------------------------------------------------------------------

    def stage(self, runs: Sequence[Run], blocks: Sequence[Buffer]) -> None:
        """Give whole blocks their addresses; `write_staged` writes them."""
        addresses = chain.from_iterable(range(start, start + count) for start, count in runs)
        self._staged.update(zip(addresses, blocks, strict=True))

    def write_staged(self) -> Callable[[], None]:
        """Write every block staged so far, in address order, neighbours merged. Returns the call that forgets them, to be
        made under the store's lock. Durable only after a flush of the device."""
        snapshot = dict(self._staged)
        run: list[Buffer] = []
        first = 0
        limit = max(1, _WRITE_BYTES_MAX // self.block_size)
        for address in sorted(snapshot):
            if run and (address != first + len(run) or len(run) >= limit):
                self.device.write(first * self.block_size, run)
                run = []
            if not run:
                first = address
            run.append(snapshot[address])
        if run:
            self.device.write(first * self.block_size, run)

        def forget() -> None:
            for address, block in snapshot.items():
                if self._staged.get(address) is block:
                    del self._staged[address]

        return forget

    def staged_within(self, start: int, blocks: int) -> list[tuple[int, Buffer]]:
        """(address, content) of staged blocks among start..start+blocks."""
        if not self._staged:
            return []
        staged = self._staged
        return [(address, staged[address]) for address in range(start, start + blocks) if address in staged]

    # -- the device in blocks ------------------------------------------------------------------------------------------

    def read(self, start: int, blocks: int) -> bytes:
        """Whole blocks as they are on the device."""
        return self.device.read(start * self.block_size, blocks * self.block_size)

    def read_checked(self, start: int, blocks: int) -> tuple[bytes, bytes]:
        """Whole blocks as they are on the device, and what `crc32c_blocks` says of them. Of a file in one step, without the
        interpreter lock."""
        offset, length = start * self.block_size, blocks * self.block_size
        found = read_blocks(self._pager, offset, length, self.block_size)
        if found is not None:
            return found
        content = self.device.read(offset, length)
        return content, crc32c_blocks(content, self.block_size)

    def write(self, runs: Sequence[Run], data: memoryview) -> None:
        """Write whole blocks of `data` onto the runs, in order, at once; the device begins to take them before it is flushed.
        Not durable before a flush."""
        done = 0
        for start, blocks in runs:
            size = blocks * self.block_size
            self.device.write(start * self.block_size, [data[done : done + size]])
            self._write_behind(start * self.block_size, size)
            done += size

    def forget(self, runs: Iterable[Run]) -> None:
        """These blocks were freed for good: no memory of the system's cache is kept for them, so that what is written next
        finds some. Plain files do as much when they are truncated."""
        for start, blocks in runs:
            if blocks * self.block_size >= _FORGET_BYTES_MIN:
                self._uncache(start * self.block_size, blocks * self.block_size)

    @property
    def zero_block(self) -> bytes:
        return self._zeros


def _no_hint(offset: int, length: int) -> None:
    """For a device that has no cache below it."""
