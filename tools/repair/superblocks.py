"""The four copies of the superblock: from one another, or from wherever on the device one is left. docs/format/superblock.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mdstore.tools.reader.check_superblock import candidates
from mdstore.tools.reader.scan import readable_pieces
from mdstore.tools.reader.superblock import SIZE, Superblock, decode_or_none, read_copies
from mdstore.tools.repair import encode
from mdstore.tools.repair.bench import Bench, Step

CODES: Final = frozenset({"superblock", "superblock-copy", "superblock-foreign", "superblock-none"})
_PHASE: Final = "superblocks"


def run(bench: Bench) -> Iterator[Step]:
    """Copies that cannot be read, or are of another epoch than they should be, are written from those that can."""
    found = candidates(bench.image)
    if found:
        yield from _copy_slots(bench, found)
    else:
        yield from _search(bench)


def write(bench: Bench, superblock: Superblock) -> None:
    """Both copies of its slot, durable in that order of the shadow."""
    data = encode.superblock(superblock)
    end = bench.shadow.size_bytes // SIZE * SIZE
    slot = superblock.epoch % 2
    for at in (slot * SIZE, end - 2 * SIZE + slot * SIZE):
        bench.shadow.write(at, [data])
    bench.shadow.flush()


def _copy_slots(bench: Bench, found: list[Superblock]) -> Iterator[Step]:
    newest = found[0]
    by_epoch = {superblock.epoch: superblock for superblock in found}
    for copy in read_copies(bench.image):
        due = newest.epoch if copy.slot == newest.epoch % 2 else newest.epoch - 1
        source = by_epoch.get(due)
        foreign = copy.superblock is not None and copy.superblock.uuid != newest.uuid
        if source is None and foreign:
            bench.shadow.write(copy.offset, [bytes(SIZE)])
            bench.shadow.flush()
            yield Step(_PHASE, f"blank out {copy.name} (byte {copy.offset})", ["it is of another image"])
        if source is None or copy.superblock == source:
            continue
        bench.shadow.write(copy.offset, [encode.superblock(source)])
        bench.shadow.flush()
        was = f"of epoch {copy.superblock.epoch}" if copy.superblock is not None else str(copy.error)
        was = "of another image" if foreign else was
        yield Step(_PHASE, f"write {copy.name} (byte {copy.offset}) from the other copy of epoch {due}", [f"it is {was}"])


def _search(bench: Bench) -> Iterator[Step]:
    """None of the four places has one: the file may have been lengthened or moved, so that the copies lie elsewhere."""
    best: tuple[Superblock, int] | None = None
    size = bench.image.size
    tick = bench.ticker("searching for a superblock", size)
    for at, length, data in readable_pieces(bench.image, 0, size, []):
        for offset in range(0, len(data) - SIZE + 1, SIZE):
            superblock = decode_or_none(data[offset : offset + SIZE])
            fits = superblock is not None and superblock.blocks * superblock.block_size <= size - 2 * SIZE
            if superblock is not None and fits and (best is None or superblock.epoch > best[0].epoch):
                best = superblock, at + offset
        tick(length)
    if best is not None:
        write(bench, best[0])
        title = f"write the superblock of epoch {best[0].epoch}, found at byte {best[1]}, to its places"
        yield Step(_PHASE, title, ["none of the four places holds one"])
