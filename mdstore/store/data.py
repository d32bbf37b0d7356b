"""The data stream of an object: read, write, zero, truncate, over extents and blocks not yet written.

Edge rules (docs/edge-rules.md): no bytes extend nothing; a write past the end leaves a hole; what truncation cut off never shows
again; zeroed whole blocks become holes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from operator import itemgetter

from mdstore.btree import Pager, Tree, crc32c_blocks
from mdstore.device.protocol import Buffer
from mdstore.store import extents
from mdstore.store.allocator import Run
from mdstore.store.extents import Extent
from mdstore.store.onode import Onode, data_descriptor
from mdstore.store.space import Space

TreeIds = Callable[[], int]  # gives out a tree id never used before
Piece = tuple[int, Buffer | Extent]  # (first logical block, one block's content or an extent on the device)
_READ_BLOCKS_MAX = 2048  # in one read of the device
_logical = itemgetter(0)


class ReadPlan:
    """What a read will return, collected under the store's lock; `run` does the I/O without it.

    The owner keeps the blocks named here from being reused while it runs (see `Store.read`).
    """

    __slots__ = ("first", "length", "name", "offset", "pieces", "space")

    def __init__(self, space: Space, onode: Onode, offset: int, length: int, name: str) -> None:
        self.space = space
        self.name = name
        self.offset = offset
        self.length = max(0, min(length, onode.size - offset))
        self.first = offset // space.block_size
        last = -(-(offset + self.length) // space.block_size)
        self.pieces = _neighbours_joined(_pieces(space, onode, self.first, last)) if self.length else []

    def run(self) -> bytes:
        """The bytes; every block from the device is checked. CorruptionError names the first bad one.

        Cost: one read of the device for each run of neighbouring blocks, and one copy where there is more than one part.
        """
        size, at, end = self.space.block_size, self.offset, self.offset + self.length
        parts: list[Buffer] = []
        for logical, piece in self.pieces:
            content, start = self._load(piece), logical * size
            if at < start:
                parts.append(bytes(start - at))
                at = start
            stop = min(end, start + len(content))
            whole = at == start and stop == start + len(content)
            parts.append(content if whole else memoryview(content)[at - start : stop - start])
            at = stop
        if at < end:
            parts.append(bytes(end - at))
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def _load(self, piece: Buffer | Extent) -> Buffer:
        return load_extent(self.space, piece, self.name) if isinstance(piece, Extent) else piece


def _neighbours_joined(pieces: list[Piece]) -> list[Piece]:
    """The pieces in order, extents that follow one another both in the object and on the device made one."""
    joined: list[Piece] = []
    run: list[Extent] = []
    blocks = 0
    for logical, piece in sorted(pieces, key=_logical):
        if isinstance(piece, Extent):
            if run and _follows(piece, run[-1]) and blocks + piece.blocks <= _READ_BLOCKS_MAX:
                run.append(piece)
                blocks += piece.blocks
                continue
            joined += _as_one(run)
            run, blocks = [piece], piece.blocks
        else:
            joined += _as_one(run)
            run = []
            joined.append((logical, piece))
    return joined + _as_one(run)


def _follows(extent: Extent, last: Extent) -> bool:
    apart = extent.logical != last.logical + last.blocks or extent.start != last.start + last.blocks
    return not apart and bool(extent.checksums) == bool(last.checksums)


def _as_one(run: list[Extent]) -> list[Piece]:
    if len(run) < 2:
        return [(extent.logical, extent) for extent in run]
    first, last = run[0], run[-1]
    checksums = b"".join([extent.checksums for extent in run])
    return [(first.logical, Extent(first.logical, first.start, last.end - first.logical, first.birth, checksums))]


def load_extent(space: Space, extent: Extent, name: str) -> bytes:
    """The checked bytes of an extent, staged blocks included."""
    staged = space.staged_within(extent.start, extent.blocks)
    if len(staged) == extent.blocks:
        return b"".join(content for _, content in staged)
    if extent.checksums:
        raw, checksums = space.read_checked(extent.start, extent.blocks)
    else:
        raw, checksums = space.read(extent.start, extent.blocks), b""
    if staged:
        patched = bytearray(raw)
        for address, content in staged:
            at = (address - extent.start) * space.block_size
            patched[at : at + space.block_size] = content
        raw = bytes(patched)
        checksums = crc32c_blocks(raw, space.block_size) if extent.checksums else b""
    extents.verify(checksums, space.block_size, extent, name)
    return raw


def _pieces(space: Space, onode: Onode, first: int, last: int) -> list[Piece]:
    """Content of logical blocks first..last that is not a hole. No two pieces overlap; what changed hides what is on disk."""
    pieces: list[Piece] = []
    span = range(first, last)
    few = len(span) < len(onode.blocks)
    changed = [b for b in span if b in onode.blocks] if few else sorted(b for b in onode.blocks if b in span)
    if onode.data is not None:
        for extent in extents.overlapping(onode.data, first, last):
            start, stop = max(first, extent.logical), min(last, extent.end)
            for block in changed[bisect_left(changed, start) : bisect_left(changed, stop)]:
                if start < block:
                    pieces.append((start, extent.part(start, block)))
                start = block + 1
            if start < stop:
                pieces.append((start, extent.part(start, stop)))
    pieces += [(block, bytes(onode.blocks[block])) for block in changed]
    return pieces


def ranges(space: Space, onode: Onode, offset: int, length: int) -> list[tuple[int, int]]:
    """(offset, length) of what is not a hole, in order, merged, block granularity, cut at the request and the size."""
    size = space.block_size
    end = min(offset + length, onode.size)
    if end <= offset:
        return []
    spans = []
    for logical, piece in _pieces(space, onode, offset // size, -(-end // size)):
        count = piece.blocks if isinstance(piece, Extent) else 1
        spans.append((max(offset, logical * size), min(end, (logical + count) * size)))
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return [(start, stop - start) for start, stop in merged]


# -- changes -----------------------------------------------------------------------------------------------------------


def prefetch(space: Space, onode: Onode, offset: int, length: int, name: str) -> None:
    """Read (and check) the blocks that a write of this range changes only in part, so that applying it cannot fail."""
    size = space.block_size
    for block in {offset // size, (offset + length) // size}:
        start = block * size
        whole = offset <= start and offset + length >= start + size
        if not whole and block not in onode.blocks and onode.data is not None:
            _disk_block(space, onode, block, name)


def write(space: Space, onode: Onode, offset: int, data: Buffer, name: str) -> None:
    """Put bytes into changed blocks; they reach the device with the next flush of the object."""
    size, view = space.block_size, memoryview(data)
    done, length = 0, len(view)
    while done < length:
        block, skip = divmod(offset + done, size)
        count = min(size - skip, length - done)
        if count == size:
            _set_block(space, onode, block, bytes(view[done : done + size]))
        else:
            buffer = _changeable(space, onode, block, name)
            buffer[skip : skip + count] = view[done : done + count]
        done += count
    onode.size = max(onode.size, offset + length)


def write_mapped(
    space: Space, pager: Pager, onode: Onode, new_tree_id: TreeIds, logical: int, runs: Sequence[Run], checksums: bytes
) -> None:
    """Map whole blocks that are on the device already (a large write went there directly)."""
    count = sum(blocks for _, blocks in runs)
    _drop_changed(space, onode, logical, logical + count)
    _map(space, pager, onode, new_tree_id, logical, runs, checksums if onode.is_checked else b"")


def zero(space: Space, onode: Onode, offset: int, length: int, name: str) -> None:
    """Make the range read as zeros; whole blocks in it become holes. Extends the object when it ends past its size."""
    if not length:
        return
    size, end = space.block_size, offset + length
    first, last = -(-offset // size), end // size
    old_size = onode.size
    if first > last:
        _zero_part(space, onode, offset, end, name)
    else:
        _zero_part(space, onode, offset, first * size, name)
        punch(space, onode, first, last)
        _zero_part(space, onode, last * size, min(end, max(old_size, last * size)), name)
    onode.size = max(old_size, end)


def truncate(space: Space, onode: Onode, new_size: int, name: str) -> None:
    """Set the size; what lay past it is gone for good."""
    if new_size < onode.size:
        size = space.block_size
        first = -(-new_size // size)
        _zero_part(space, onode, new_size, min(first * size, onode.size), name)
        punch(space, onode, first, -(-onode.size // size))
    onode.size = new_size


def punch(space: Space, onode: Onode, first: int, last: int) -> None:
    """Make logical blocks first..last (last not included) holes and free them."""
    if first >= last:
        return
    _drop_changed(space, onode, first, last)
    if onode.data is not None:
        own(space, onode)
        onode.allocated -= extents.punch(onode.data, first, last, space.release)


def own(space: Space, onode: Onode) -> None:
    """The data tree is about to change: leave the group of clones it is shared with. O(extents), once after each clone."""
    if onode.group:
        group, onode.group = onode.group, 0
        if space.shares.leave(group) and onode.data is not None:
            for key, value in onode.data.items():
                extent = extents.decode_extent(key, value)
                space.shares.share(extent.start, extent.blocks)


def share(space: Space, pager: Pager, origin: Onode, copy: Onode, new_tree_id: TreeIds, blocks: range, target: int) -> None:
    """Let `copy` hold the whole blocks of `origin` at logical block `target` on, holes included, without copying data."""
    own(space, copy)  # also where its tree has no record: a member of a group has all its extents from that
    punch(space, copy, target, target + len(blocks))
    shift = target - blocks.start
    for logical, piece in _pieces(space, origin, blocks.start, blocks.stop):
        if not isinstance(piece, Extent):
            _set_block(space, copy, logical + shift, bytes(piece))
            continue
        if copy.data is None:
            copy.data = Tree(pager, data_descriptor(space.block_size), new_tree_id())
        space.shares.share(piece.start, piece.blocks)
        extents.put(copy.data, piece._replace(logical=logical + shift))
        copy.allocated += piece.blocks


def flush(space: Space, pager: Pager, onode: Onode, new_tree_id: TreeIds, limit: int | None = None) -> None:
    """Give every changed block, or the first `limit` of them, an address and a checksum and stage it for writing."""
    numbers = sorted(onode.blocks)[:limit]
    start = 0
    while start < len(numbers):
        stop = start + 1
        while stop < len(numbers) and numbers[stop] == numbers[stop - 1] + 1:
            stop += 1
        content = [onode.blocks[number] for number in numbers[start:stop]]
        runs = space.allocate_data(len(content))
        checksums = crc32c_blocks(b"".join(content), space.block_size) if onode.is_checked else b""
        _map(space, pager, onode, new_tree_id, numbers[start], runs, checksums)
        space.stage(runs, content)
        start = stop
    space.changed_blocks -= len(numbers)
    onode.blocks = {number: onode.blocks[number] for number in sorted(onode.blocks.keys() - set(numbers))} if limit else {}


def _map(
    space: Space, pager: Pager, onode: Onode, new_tree_id: TreeIds, logical: int, runs: Sequence[Run], checksums: bytes
) -> None:
    if onode.data is None:
        onode.data = Tree(pager, data_descriptor(space.block_size), new_tree_id())
    own(space, onode)
    count = sum(blocks for _, blocks in runs)
    onode.allocated -= extents.punch(onode.data, logical, logical + count, space.release)
    limit = extents.max_extent_blocks(space.block_size)
    extents.insert(onode.data, logical, runs, checksums, pager.generation, limit)
    onode.allocated += count


def _zero_part(space: Space, onode: Onode, start: int, stop: int, name: str) -> None:
    """Zero bytes inside one block, unless the block is a hole."""
    if start >= stop:
        return
    block, skip = divmod(start, space.block_size)
    if block not in onode.blocks and (onode.data is None or _mapped(onode.data, block) is None):
        return
    _changeable(space, onode, block, name)[skip : skip + stop - start] = bytes(stop - start)


def _changeable(space: Space, onode: Onode, block: int, name: str) -> bytearray:
    """The block's content as a bytearray in `onode.blocks`."""
    content = onode.blocks.get(block)
    if type(content) is bytearray:
        return content
    if content is None:
        content = _disk_block(space, onode, block, name) if onode.data is not None else space.zero_block
    buffer = bytearray(content)
    _set_block(space, onode, block, buffer)
    return buffer


def _disk_block(space: Space, onode: Onode, block: int, name: str) -> bytes:
    assert onode.data is not None
    extent = _mapped(onode.data, block)
    return space.zero_block if extent is None else load_extent(space, extent, name)


def _mapped(tree: Tree, block: int) -> Extent | None:
    for extent in extents.overlapping(tree, block, block + 1):
        return extent.part(block, block + 1)
    return None


def _set_block(space: Space, onode: Onode, block: int, content: bytes | bytearray) -> None:
    if block not in onode.blocks:
        space.changed_blocks += 1
    onode.blocks[block] = content


def _drop_changed(space: Space, onode: Onode, first: int, last: int) -> None:
    if not onode.blocks:
        return
    doomed = [block for block in onode.blocks if first <= block < last]
    for block in doomed:
        del onode.blocks[block]
    space.changed_blocks -= len(doomed)
