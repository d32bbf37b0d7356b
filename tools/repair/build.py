"""Trees from records in order. New pages go to blocks that nothing uses; pages that are right stay where they are.

Invariants
1. `Builder` hands out each block once, and only blocks of the runs it was given.
2. Records and leaves come in rising order of their keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final, NamedTuple

from mdstore.device.protocol import Device
from mdstore.errors import NoSpace, UnsupportedFormat
from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.page import (
    HEADER_SIZE,
    SLOT_SIZE,
    Child,
    PageEntry,
    Record,
    Reference,
    Root,
    Spill,
    entry_size,
    top_entries,
)
from mdstore.tools.repair import encode

Run = tuple[int, int]  # first block, blocks
_SEPARATOR_ROOM: Final = SLOT_SIZE + 20


class KeptLeaf(NamedTuple):
    """A leaf that stays as it is: the first key of it, and what names it."""

    first_key: bytes
    reference: Reference


Item = KeptLeaf | Record


class Builder:
    """Writes pages of `page_size` bytes and `generation` to the blocks of `runs`. Nothing is durable before a flush."""

    def __init__(self, device: Device, page_size: int, generation: int, runs: Iterable[Run]) -> None:
        self.page_size = page_size
        self.generation = generation
        self.device = device
        self._runs = [run for run in runs if run[1]]
        self._runs.sort(key=lambda run: -run[1])
        self.taken: list[Run] = []

    def allocate(self, pages: int = 1) -> list[int]:
        """Blocks for that many pages. NoSpace."""
        found: list[int] = []
        while len(found) < pages:
            if not self._runs:
                raise NoSpace(f"the repair needs {pages - len(found)} more free blocks for what it builds")
            start, blocks = self._runs[0]
            count = min(blocks, pages - len(found))
            found += range(start, start + count)
            self.taken.append((start, count))
            self._runs[0] = (start + count, blocks - count)
            if count == blocks:
                self._runs.pop(0)
        return found

    def free_runs(self) -> list[Run]:
        """What is left, in order."""
        return sorted(self._runs)

    def put(self, like: Root, data: bytes) -> tuple[int, ...]:
        """Write a page to as many places as the tree keeps copies; returns them."""
        if like.copies != 1:
            raise UnsupportedFormat(f"tree {like.tree_id} keeps {like.copies} copies of its pages, which repair does not write")
        (address,) = self.allocate()
        self.device.write(address * self.page_size, [data])
        return (address,)


# -- whole trees -------------------------------------------------------------------------------------------------------
def tree(builder: Builder, like: Root, items: Iterable[Item]) -> bytes:
    """A tree of leaves that stay and records between them, in order. Returns its root record.

    It lies in its root record where the descriptor allows, nothing has spilled, and no leaf was kept.
    """
    stream = iter(items)
    plain: list[tuple[bytes, bytes]] = []
    ahead: list[Item] = []
    while len(encode.embedded(like, plain)) <= like.embed_limit:
        item = next(stream, None)
        if item is None:
            return encode.root(like, len(plain), 0, plain)
        ahead.append(item)
        if not _stays_in_root(builder, like, item):
            break
        plain.append(item)  # type: ignore[arg-type]
    children = list(_leaves(builder, like, chain(ahead, stream)))
    level = 0
    while len(children) > 1:
        level += 1
        children = list(_index_level(builder, like, level, children))
    top = children[0][1]
    return encode.root(like, top.records, level, top)


def _stays_in_root(builder: Builder, like: Root, item: Item) -> bool:
    if isinstance(item, KeptLeaf) or isinstance(item[1], Spill):
        return False
    return not encode.must_spill(like, builder.page_size, item[0], item[1])


# -- levels ------------------------------------------------------------------------------------------------------------
def _leaves(builder: Builder, like: Root, items: Iterable[Item]) -> Iterator[Child]:
    room = builder.page_size - HEADER_SIZE
    pending: list[Record] = []
    size = 0
    for item in items:
        if isinstance(item, KeptLeaf):
            if pending:
                yield _leaf(builder, like, pending)
                pending, size = [], 0
            yield item.first_key, item.reference
            continue
        record = _placed(builder, like, item)
        needed = SLOT_SIZE + len(encode.leaf_cell(like, builder.page_size, record))
        if size + needed > room:
            yield _leaf(builder, like, pending)
            pending, size = [], 0
        pending.append(record)
        size += needed
    if pending:
        yield _leaf(builder, like, pending)


def _leaf(builder: Builder, like: Root, records: list[Record]) -> Child:
    data = encode.leaf(like, builder.page_size, builder.generation, records)
    has_spilled = any(isinstance(value, Spill) for _, value in records)
    below = len(records) | (encode.SPILLED_BELOW if has_spilled else 0)
    return records[0][0], _reference(builder, like, data, below)


def _index_level(builder: Builder, like: Root, level: int, children: list[Child]) -> Iterator[Child]:
    room = builder.page_size - HEADER_SIZE
    pending: list[Child] = []
    size = 0
    for child in children:
        needed = _SEPARATOR_ROOM + 8 * like.copies + len(child[0])
        if pending and size + needed > room:
            yield _index(builder, like, level, pending)
            pending, size = [], 0
        pending.append(child)
        size += needed
    yield _index(builder, like, level, pending)


def _index(builder: Builder, like: Root, level: int, children: list[Child]) -> Child:
    data = encode.index(like, builder.page_size, builder.generation, level, children)
    below = sum(ref.records for _, ref in children)
    if any(ref.has_spilled for _, ref in children):
        below |= encode.SPILLED_BELOW
    return children[0][0], _reference(builder, like, data, below)


def _reference(builder: Builder, like: Root, data: bytes, below: int) -> Reference:
    return Reference(builder.put(like, data), int.from_bytes(data[:4], "little"), builder.generation, below)


# -- spilled values ----------------------------------------------------------------------------------------------------
def _placed(builder: Builder, like: Root, record: Record) -> Record:
    """The record, its value in pages of its own where it must be."""
    key, value = record
    if isinstance(value, Spill) or not encode.must_spill(like, builder.page_size, key, value):
        return record
    size, is_dated = builder.page_size, like.may_be_dated
    entries = [
        PageEntry(builder.put(like, page), crc32c(page), builder.generation)
        for page in (value[at : at + size].ljust(size, b"\0") for at in range(0, len(value), size))
    ]
    bytes_each = entry_size(like.copies, is_dated)
    entries_max = min(4, max(1, ((size - HEADER_SIZE) // 4 - 16) // bytes_each))
    top, level = top_entries(len(value), size, bytes_each, entries_max), 0
    while len(entries) > top:
        level += 1
        entries = list(_overflow_level(builder, like, level, entries, (size - HEADER_SIZE) // bytes_each))
    return key, Spill(len(value), builder.generation, tuple(entries), is_dated)


def _overflow_level(
    builder: Builder, like: Root, level: int, entries: list[PageEntry], fan: int
) -> Iterator[PageEntry]:
    for at in range(0, len(entries), fan):
        data = encode.overflow_index(like, builder.page_size, builder.generation, level, entries[at : at + fan])
        yield PageEntry(builder.put(like, data), int.from_bytes(data[:4], "little"), builder.generation)
