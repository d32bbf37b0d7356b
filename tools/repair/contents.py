"""Bytes of objects: blocks that do not match their checksum become holes, when asked for; bytes behind an end become zeros.

A damaged block answers with an error for as long as it is left alone, which is better than zeros that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from mdstore.store import Store, Transaction
from mdstore.tools.reader.onode import Onode, decode_extent
from mdstore.tools.reader.problems import Damage, readable
from mdstore.tools.reader.store import DATA_SHAPE, StoreReader
from mdstore.tools.repair.bench import Bench, Step

TAIL_CODES: Final = frozenset({"data-tail"})
DAMAGE_CODES: Final = frozenset({"data-checksum", "unreadable"})
_PHASE: Final = "data"


class _Block(NamedTuple):
    """A block of an object's data that is not as it should be."""

    collection: bytes
    name: bytes
    logical: int
    size: int  # of the object, in bytes
    is_damaged: bool  # else only the bytes behind the end are wrong


def run(bench: Bench) -> Iterator[Step]:
    """Bytes behind the end of objects, and, when the options say so, damaged blocks."""
    with bench.store() as store:
        store.checkpoint()
        superblock = bench.superblock()
        assert superblock is not None, "a checkpoint was just written"
        size = superblock.block_size
        found = list(_wrong_blocks(bench, bench.reader(superblock)))
        tails = [block for block in found if not block.is_damaged]
        damaged = [block for block in found if block.is_damaged] if bench.options.drops_damaged else []
        for block in tails:
            _rewrite_tail(store, block, size)
        for block in damaged:
            _make_hole(store, block, size)
    if tails:
        yield Step(_PHASE, "write zeros behind the end of objects", [_words(block, size) for block in tails])
    if damaged:
        lost = [_words(block, size) for block in damaged]
        yield Step(_PHASE, "make holes of blocks that do not match their checksum", [f"{len(damaged)} blocks"], lost)


def _wrong_blocks(bench: Bench, reader: StoreReader) -> Iterator[_Block]:
    tick = bench.ticker("reading data", reader.superblock.objects)
    for collection, record in reader.collections():
        for name, onode in reader.objects(record.number):
            tick(1)
            for logical, is_damaged in _wrong_of(reader, onode) if onode.data_root is not None else ():
                yield _Block(collection, name, logical, onode.size, is_damaged)


def _wrong_of(reader: StoreReader, onode: Onode) -> Iterator[tuple[int, bool]]:
    assert onode.data_root is not None
    size = reader.block_size
    for key, value in reader.tree(onode.data_root, DATA_SHAPE).items():
        extent = decode_extent(key, value)
        for index in range(extent.blocks):
            logical = extent.logical + index
            try:
                data = reader.read_block(extent.start + index, extent.checksum(index))
            except Damage:
                yield logical, True
                continue
            if logical * size < onode.size < (logical + 1) * size and any(data[onode.size - logical * size :]):
                yield logical, False


def _rewrite_tail(store: Store, block: _Block, size: int) -> None:
    at = block.logical * size
    data = store.read(block.collection, block.name, at, block.size - at)
    change = Transaction().truncate(block.collection, block.name, at)
    store.apply(change.write(block.collection, block.name, at, data))


def _make_hole(store: Store, block: _Block, size: int) -> None:
    at = block.logical * size
    if at + size <= block.size:
        store.apply(Transaction().zero(block.collection, block.name, at, size))
    else:
        change = Transaction().truncate(block.collection, block.name, at)
        store.apply(change.truncate(block.collection, block.name, block.size))


def _words(block: _Block, size: int) -> str:
    at = block.logical * size
    return f"{readable(block.collection)}/{readable(block.name)}: bytes {at} .. {min(at + size, block.size) - 1}"
