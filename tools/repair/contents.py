"""Bytes behind the end of objects, which would show when one grows: zeros, as the format wants. docs/format/onode.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from mdstore.store import Store, Transaction
from mdstore.tools.reader.onode import Onode, decode_extent
from mdstore.tools.reader.problems import Damage, readable
from mdstore.tools.reader.store import DATA_SHAPE, StoreReader
from mdstore.tools.repair.bench import Bench, Step

CODES: Final = frozenset({"data-tail"})


class _Tail(NamedTuple):
    """The last block of an object, with other bytes than zeros behind the end. `at`: where it begins in the object."""

    collection: bytes
    name: bytes
    at: int
    size: int


def run(bench: Bench) -> Iterator[Step]:
    """The last blocks of such objects are written anew, by the engine."""
    with bench.store() as store:
        store.checkpoint()
        superblock = bench.superblock()
        assert superblock is not None, "a checkpoint was just written"
        found = list(_tails(bench, bench.reader(superblock)))
        for tail in found:
            _rewrite(store, tail)
    if found:
        details = [f"{readable(tail.collection)}/{readable(tail.name)}: behind byte {tail.size - 1}" for tail in found]
        yield Step("data", "write zeros behind the end of objects", details)


def _tails(bench: Bench, reader: StoreReader) -> Iterator[_Tail]:
    tick = bench.ticker("reading the ends of objects", reader.superblock.objects)
    for collection, record in reader.collections():
        for name, onode in reader.objects(record.number):
            tick(1)
            at = onode.size // reader.block_size * reader.block_size
            if onode.data_root is not None and at < onode.size and _has_bytes_behind(reader, onode, at):
                yield _Tail(collection, name, at, onode.size)


def _has_bytes_behind(reader: StoreReader, onode: Onode, at: int) -> bool:
    assert onode.data_root is not None
    logical = at // reader.block_size
    for key, value in reader.tree(onode.data_root, DATA_SHAPE).items():
        extent = decode_extent(key, value)
        if extent.logical <= logical < extent.logical + extent.blocks:
            index = logical - extent.logical
            try:
                data = reader.read_block(extent.start + index, extent.checksum(index))
            except Damage:
                return False
            return any(data[onode.size - at :])
    return False


def _rewrite(store: Store, tail: _Tail) -> None:
    data = store.read(tail.collection, tail.name, tail.at, tail.size - tail.at)
    change = Transaction().truncate(tail.collection, tail.name, tail.at)
    store.apply(change.write(tail.collection, tail.name, tail.at, data))
