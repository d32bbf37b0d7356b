"""Who else uses a data block: the counts behind clones. Page: docs/format/shares.md.

Cloning an object is O(1): its data tree is cloned (the kernel counts shared pages), and both objects join a **group**. The
extents of a group's tree are held once, by the group. A member that is about to change its tree leaves: if others remain, it
takes a reference of its own to each of its extents, and the tree stays theirs; the last one simply keeps what the group held.

References beyond the first are kept as intervals of device blocks, which split and merge.

Invariants
1. Intervals are disjoint, have at least one extra reference, and two that touch differ in their count.
2. The references of a block are: one for each object outside any group that names it, one for each group that does; the
   interval's count is that number less one.
3. A group has at least two members, or one (the others have left); it goes with its last member.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from mdstore.btree import COMPARE_U64_BE, Descriptor, Tree
from mdstore.errors import CorruptionError
from mdstore.store.allocator import Run

_KEY = struct.Struct(">Q")
_INTERVAL = struct.Struct("<II")  # blocks, extra references
_MEMBERS = struct.Struct("<I")
_BLOCKS_MAX = (1 << 32) - 1

INTERVALS_DESCRIPTOR = Descriptor(8, _INTERVAL.size, comparator=COMPARE_U64_BE, embed_limit=128)
GROUPS_DESCRIPTOR = Descriptor(8, _MEMBERS.size, comparator=COMPARE_U64_BE, embed_limit=128)

Interval = tuple[int, int, int]  # first block, blocks, extra references


class Shares:
    """Extra references to data blocks, and the groups of clones. Every call happens under the store's lock."""

    def __init__(self, intervals: Tree, groups: Tree) -> None:
        self.intervals = intervals
        self.groups = groups

    # -- groups --------------------------------------------------------------------------------------------------------

    def found(self, group: int) -> None:
        """A new group of two: an object and its first clone."""
        self.groups.put(_KEY.pack(group), _MEMBERS.pack(2))

    def join(self, group: int) -> None:
        """One more clone."""
        self.groups.put(_KEY.pack(group), _MEMBERS.pack(self.members(group) + 1))

    def leave(self, group: int) -> bool:
        """One member less. True when others remain: they keep the group's references, the leaver needs its own."""
        left = self.members(group) - 1
        if left:
            self.groups.put(_KEY.pack(group), _MEMBERS.pack(left))
        else:
            self.groups.delete(_KEY.pack(group))
        return bool(left)

    def members(self, group: int) -> int:
        """How many objects share the group's tree. CorruptionError when there is no such group."""
        raw = self.groups.get(_KEY.pack(group))
        if raw is None:
            raise CorruptionError("group of clones", f"group {group}", "a record", "none")
        return int(_MEMBERS.unpack(raw)[0])

    # -- intervals -----------------------------------------------------------------------------------------------------

    def share(self, start: int, blocks: int) -> None:
        """One more reference to each of these blocks. Cost: a few descents, more where counts differ inside the range."""
        self._replace([(first, count, extra + 1) for first, count, extra in self._take(start, blocks)])

    def release(self, start: int, blocks: int) -> list[Run]:
        """One reference less to each of these blocks; returns the runs that nobody refers to any more."""
        if not len(self.intervals):
            return [(start, blocks)]
        pieces = self._take(start, blocks)
        self._replace([(first, count, extra - 1) for first, count, extra in pieces if extra])
        return [(first, count) for first, count, extra in pieces if not extra]

    def __iter__(self) -> Iterator[Interval]:
        for key, value in self.intervals.items():
            yield _decode(key, value)

    def _take(self, start: int, blocks: int) -> list[Interval]:
        """Take the range out of the tree, cutting intervals that reach over its ends; returns pieces that tile it."""
        end, position = start + blocks, start
        pieces: list[Interval] = []
        for first, count, extra in self._overlapping(start, end):
            self.intervals.delete(_KEY.pack(first))
            if first < start:
                self._put(first, start - first, extra)
            if first + count > end:
                self._put(end, first + count - end, extra)
            low, high = max(first, start), min(first + count, end)
            if position < low:
                pieces.append((position, low - position, 0))
            pieces.append((low, high - low, extra))
            position = high
        if position < end:
            pieces.append((position, end - position, 0))
        return pieces

    def _overlapping(self, start: int, end: int) -> list[Interval]:
        found = []
        before = self.intervals.seek(_KEY.pack(start), reverse=True)
        if before is not None:
            interval = _decode(*before)
            if interval[0] < start < interval[0] + interval[1]:
                found.append(interval)
        found += [_decode(key, value) for key, value in self.intervals.items(_KEY.pack(start), _KEY.pack(end))]
        return found

    def _replace(self, pieces: list[Interval]) -> None:
        """Put pieces into the free range they came from, merged with equal neighbours (invariant 1)."""
        for start, blocks, extra in pieces:
            if not extra:
                continue
            before = self.intervals.seek(_KEY.pack(start), reverse=True)
            if before is not None:
                first, count, other = _decode(*before)
                if first + count == start and other == extra and count + blocks <= _BLOCKS_MAX:
                    start, blocks = first, count + blocks
            after = self.intervals.get(_KEY.pack(start + blocks))
            if after is not None:
                _, count, other = _decode(_KEY.pack(start + blocks), after)
                if other == extra and blocks + count <= _BLOCKS_MAX:
                    self.intervals.delete(_KEY.pack(start + blocks))
                    blocks += count
            self._put(start, blocks, extra)

    def _put(self, start: int, blocks: int, extra: int) -> None:
        self.intervals.put(_KEY.pack(start), _INTERVAL.pack(blocks, extra))


def _decode(key: bytes, value: bytes) -> Interval:
    (start,) = _KEY.unpack(key)
    blocks, extra = _INTERVAL.unpack(value)
    if not blocks or not extra:
        raise CorruptionError("shared interval", f"block {start}", "blocks and references", f"{blocks}, {extra}")
    return start, blocks, extra
