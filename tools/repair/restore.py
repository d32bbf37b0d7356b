"""Blocks that can be had exactly as they were, in snapshots too: what belongs there lies somewhere else, or one bit of it turned.

Every reference has the checksum of what it names, so bytes that match it are what was there: written back in place they change
nothing for anybody else who names the block. All other repair makes something new beside what is left, and never of a snapshot.

Invariants
1. A block is written only where each reference to it that was found damaged expects the same checksum, and nothing says that
   blocks are shared that should not be.
2. What is written has that checksum, and comes from one of: a page anywhere that carries this checksum itself; a block that is
   damaged too (two that were swapped), while these are few; the page as it is there, with one bit turned or its own checksum set.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from mdstore.tools.reader.check import DEEP, Options, check_opened
from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.page import MAGIC
from mdstore.tools.reader.problems import Damage, Problem
from mdstore.tools.repair.bench import Bench, Step
from mdstore.tools.repair.salvage import looks_like_pages

CODES: Final = frozenset({"page-checksum", "page-copy", "overflow", "data-checksum"})
_DOUBTFUL: Final = frozenset({"space-shared", "extent-overlap"})  # a block may be somebody else's by right
_EXPECTED: Final = re.compile(r": expected ([0-9a-f]{8}), found ")
_BLOCKS_MAX: Final = 1 << 14  # damaged blocks that are looked at in one run: their bytes are kept in memory
_PLAIN_MAX: Final = 200  # damaged blocks, beyond which chance might match one of them with another's checksum: 1 in 100,000
_MAGIC: Final = MAGIC.to_bytes(4, "little")
_POLYNOMIAL: Final = 0x82F63B78  # of CRC-32C, reflected
_PHASE: Final = "store"


class _Found(NamedTuple):
    data: bytes
    source: str


def run(bench: Bench) -> Iterator[Step]:
    """Write back what can be had exactly, level by level: a page that reads again shows what is wrong below it.

    Cost, for each level with damage: a deep check, and a read of all blocks."""
    restored: dict[int, str] = {}
    displaced: dict[int, _Found] = {}  # what lay where something was restored: a page further down may be wanted only then
    while found := _restored(bench, restored, displaced):
        restored |= found
    if restored:
        details = [f"block {block}: {source}" for block, source in restored.items()]
        yield Step(_PHASE, "restore blocks to what every reference to them has", details)


def _restored(bench: Bench, before: dict[int, str], displaced: dict[int, _Found]) -> dict[int, str]:
    """What was written back of the blocks that are damaged now, none of them `before`: so the rounds end."""
    superblock = bench.superblock()
    if superblock is None:
        return {}
    size = superblock.block_size
    wanted = _wanted(bench, size)
    there = {block: data for block in wanted if block not in before and (data := _read(bench, block, size)) is not None}
    space = (superblock.first_block, min(superblock.blocks, bench.image.size // size))
    elsewhere = displaced | _elsewhere(bench, set(wanted.values()), there, space, size)
    done = {}
    for block, data in sorted(there.items()):
        found = elsewhere.get(wanted[block]) or _turned_back(data, wanted[block])
        if found is not None:
            bench.shadow.write(block * size, [found.data])
            done[block] = found.source
            displaced |= _by_checksum(block, data)
    bench.shadow.flush()
    return done


def _wanted(bench: Bench, size: int) -> dict[int, int]:
    """Damaged blocks, of the live state and of snapshots, and the checksums that they should have; none in doubtful cases."""
    wanted: dict[int, int] = {}
    codes: set[str] = set()
    contradicted: set[int] = set()

    def note(problem: Problem) -> None:
        codes.add(problem.code)
        place, expected = problem.place, _EXPECTED.search(problem.what)
        byte = place.byte if place.page is None else place.page * size
        if problem.code not in CODES or expected is None or byte is None or byte % size or len(wanted) == _BLOCKS_MAX:
            return
        block, crc = byte // size, int(expected[1], 16)
        if wanted.setdefault(block, crc) != crc:
            contradicted.add(block)

    try:
        check_opened(bench.image, Options(DEEP), note, bench.progress)
    except Damage:
        return {}
    return {} if codes & _DOUBTFUL else {block: crc for block, crc in wanted.items() if block not in contradicted}


def _read(bench: Bench, block: int, size: int) -> bytes | None:
    try:
        return bench.image.read(block * size, size)
    except Damage:
        return None


def _by_checksum(block: int, data: bytes) -> dict[int, _Found]:
    """A block's content as a page, if it is one, and as data."""
    found = _Found(data, f"its content lay in block {block}")
    crc = crc32c(data[4:])
    is_page = data[4:8] == _MAGIC and int.from_bytes(data[:4], "little") == crc
    return {crc: found} if is_page else {crc32c(data): found}


def _elsewhere(
    bench: Bench, wanted: set[int], there: dict[int, bytes], space: tuple[int, int], size: int
) -> dict[int, _Found]:
    """What has one of these checksums, by checksum."""
    found: dict[int, _Found] = {}
    if not there:
        return found
    if len(there) <= _PLAIN_MAX:
        for block, data in there.items():
            found[crc32c(data)] = _Found(data, f"its content lay in block {block}")
    for block, data in looks_like_pages(bench.image, size, space):
        crc = int.from_bytes(data[:4], "little")
        if crc in wanted and crc32c(data[4:]) == crc:
            found[crc] = _Found(data, f"its content lies in block {block}")
    return found


def _turned_back(data: bytes, crc: int) -> _Found | None:
    """A page of which one bit turned, or its own checksum was overwritten."""
    now = crc32c(data[4:])
    if now == crc and data[4:8] == _MAGIC:
        return _Found(crc.to_bytes(4, "little") + data[4:], "its checksum is written again")
    bit = _syndromes(len(data) - 4).get(now ^ crc)
    if bit is None:
        return None
    turned = bytearray(crc.to_bytes(4, "little") + data[4:])
    turned[4 + bit // 8] ^= 1 << bit % 8
    if turned[4:8] != _MAGIC or crc32c(bytes(turned[4:])) != crc:
        return None
    return _Found(bytes(turned), f"one bit of byte {4 + bit // 8} is turned back")


@lru_cache(maxsize=1)
def _syndromes(length: int) -> dict[int, int]:
    """What one wrong bit adds to the checksum of so many bytes, and which bit does. A shift register run from the last bit on."""
    found, syndrome = {}, _POLYNOMIAL
    for bit in range(length * 8 - 1, -1, -1):
        found[syndrome] = bit
        syndrome = syndrome >> 1 ^ (_POLYNOMIAL if syndrome & 1 else 0)
    return found
