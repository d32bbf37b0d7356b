"""Blocks that can be had exactly as they were, in snapshots too: what belongs there lies somewhere else, or one bit of it turned.

Every reference has the checksum of what it names, so bytes that match it are what was there: written back in place they change
nothing for anybody else who names the block. All other repair makes something new beside what is left, and never of a snapshot.

Invariants
1. A block is written only inside the allocator's space, and where everything that names it (live state, log, superblocks beside,
   snapshots) expects the same checksum, which what lies there does not have. So nothing that reads is ever written over. Where
   not all that names blocks can be read, none is if some block is said to be used twice, and no whole page if it would be gone.
2. A page is written only if it decodes as every reference to it says: checksum, tree, generation, level, records. It comes from
   any place that has it, or from its own with one bit turned, or its own checksum set; where these differ, from none.
3. Other blocks (data) have nothing but the checksum: they come from blocks that are damaged too (two that were swapped).
4. Of blocks that are something else altogether chance makes one match in at most 1 of 100,000 runs: what would go beyond that
   is not tried (`_Run.untried` says so).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from mdstore.tools.output import count_text, size_text
from mdstore.tools.reader.check import DEEP, Options, check_opened
from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.named import PAGE, RAW, Key, Named, keys_of
from mdstore.tools.reader.page import MAGIC
from mdstore.tools.reader.problems import Damage, Problem
from mdstore.tools.repair.bench import Bench, Step
from mdstore.tools.repair.naming import names_of
from mdstore.tools.repair.salvage import looks_like_pages

CODES: Final = frozenset({"page-checksum", "page-copy", "overflow", "data-checksum"})
_DOUBTFUL: Final = frozenset({"space-shared", "extent-overlap"})  # a block may be somebody else's by right,
_DOUBTFUL_IN_PART: Final = frozenset({"dead-run", "space-false-free", "references", "group"})  # and here who, cannot be read
_BYTES_MAX: Final = 64 << 20  # of damaged blocks that are looked at in one run: they are kept in memory
_CHANCES_MAX: Final = (1 << 32) // 100_000  # comparisons with a checksum, of which each may match by chance
_MAGIC: Final = MAGIC.to_bytes(4, "little")
_POLYNOMIAL: Final = 0x82F63B78  # of CRC-32C, reflected
_PHASE: Final = "store"


class _Found(NamedTuple):
    data: bytes
    source: str


@dataclass(slots=True)
class _Run:
    """One run, of several levels. `displaced`: what lay where something was restored, a page further down may be wanted only
    then. `strange`: pages for which there is nothing, so that a bit would fit them only by chance. `kept`: not to be written."""

    restored: dict[int, str] = field(default_factory=dict)
    displaced: dict[int, bytes] = field(default_factory=dict)
    strange: set[int] = field(default_factory=set)
    kept: set[int] = field(default_factory=set)
    untried: dict[str, None] = field(default_factory=dict)


def run(bench: Bench) -> Iterator[Step]:
    """Write back what can be had exactly, level by level: a page that reads again shows what is wrong below it.

    Cost, for each level with damage: a deep check, a walk of the metadata of every snapshot, and a read of all blocks. All of it
    again where a page would be gone."""
    this = _Run()
    while gone := _tried(bench, this):
        this = _Run(kept=this.kept | gone)
    if this.kept:
        words = f"{count_text(len(this.kept), 'page')} would be gone for it, and what may name them cannot be read"
        this.untried[f"not all is put back: {words}"] = None
    bench.untried = list(this.untried)
    if this.restored:
        details = [f"block {block}: {source}" for block, source in this.restored.items()]
        yield Step(_PHASE, "restore blocks to what every reference to them has", details)


def _tried(bench: Bench, this: _Run) -> set[int]:
    """All levels, on a shadow of their own; what they wrote is taken over unless pages would be gone: then, where those lie."""
    trial = Bench(bench.shadow, bench.options, bench.progress)
    try:
        while done := _restored(trial, this):
            this.restored |= done
        gone = _gone(trial, this)
        for change in () if gone else trial.shadow.changes():
            if change is None:
                bench.shadow.flush()
            else:
                bench.shadow.write(change[0], [change[1]])
        return gone
    finally:
        trial.shadow.drop()


def _gone(bench: Bench, this: _Run) -> set[int]:
    """Where whole pages lay, younger than what is there now, that are nowhere any more, while not all that names blocks reads."""
    pages = {block: data for block, data in this.displaced.items() if data[4:8] == _MAGIC and keys_of(data)[0][0] == PAGE}
    superblock = bench.superblock()
    if not pages or superblock is None or not names_of(bench.image, superblock, ()).is_partial:
        return set()
    lost, size = set(pages.values()), superblock.block_size
    space = (superblock.first_block, min(superblock.blocks, bench.image.size // size))
    for _, data in looks_like_pages(bench.image, size, space):
        lost.discard(data)
    return {block for block, data in pages.items() if data in lost and _is_younger(data, bench.image.read(block * size, size))}


def _is_younger(page: bytes, restored: bytes) -> bool:
    """Whether the block may have been given to the page after it held what is restored: an older one is of the past."""
    generation, before = (int.from_bytes(data[16:24], "little") for data in (page, restored))
    return restored[4:8] != _MAGIC or generation > before


def _restored(bench: Bench, this: _Run) -> dict[int, str]:
    """What was written back of the blocks that are damaged now, none of them before: so the levels end."""
    superblock = bench.superblock()
    if superblock is None:
        return {}
    size = superblock.block_size
    space = (superblock.first_block, min(superblock.blocks, bench.image.size // size))
    damaged, codes = _damaged(bench, size, space, this)
    if not damaged or codes & _DOUBTFUL:
        return {}
    names = names_of(bench.image, superblock, damaged)
    if names.is_partial and codes & _DOUBTFUL_IN_PART:
        return {}
    there = {block: data for block in sorted(damaged) if (data := _read(bench, block, size)) is not None}
    wanted = {block: agreed for block in there if block not in this.kept and (agreed := names.agreed(block))}
    found = _pages(bench, wanted, there, space, size, this) | _plain(wanted, there, this)
    for block, one in found.items():
        assert all(named.accepts(one.data) for named in wanted[block])
        bench.shadow.write(block * size, [one.data])
        this.displaced[block] = there[block]
    bench.shadow.flush()
    return {block: one.source for block, one in found.items()}


def _damaged(bench: Bench, size: int, space: tuple[int, int], this: _Run) -> tuple[set[int], set[str]]:
    """(blocks, of the live state and of snapshots, that something found damaged, everything else that is wrong)."""
    damaged: set[int] = set()
    codes: set[str] = set()
    room = _BYTES_MAX // size - len(this.restored)

    def note(problem: Problem) -> None:
        codes.add(problem.code)
        place = problem.place
        byte = place.byte if place.page is None else place.page * size
        if problem.code not in CODES or byte is None or byte % size:
            return
        block = byte // size
        if block in damaged or block in this.restored or not space[0] <= block < space[1]:
            return
        if len(damaged) < room:
            damaged.add(block)
        else:
            this.untried[f"more than {size_text(_BYTES_MAX)} of blocks are damaged: the others were not looked for"] = None

    try:
        check_opened(bench.image, Options(DEEP), note, bench.progress)
    except Damage:
        return set(), codes
    return damaged, codes


def _read(bench: Bench, block: int, size: int) -> bytes | None:
    try:
        return bench.image.read(block * size, size)
    except Damage:
        return None


# -- pages -------------------------------------------------------------------------------------------------------------
def _pages(
    bench: Bench, wanted: dict[int, list[Named]], there: dict[int, bytes], space: tuple[int, int], size: int, this: _Run
) -> dict[int, _Found]:
    """Pages that lie elsewhere, and those of which one bit turned."""
    wanting: dict[Key, list[int]] = {}
    for block, named in wanted.items():
        if named[0].key[0] == PAGE:
            wanting.setdefault(named[0].key, []).append(block)
    found = _elsewhere(bench, wanting, wanted, space, size, this) if wanting else {}
    turned: dict[int, _Found] = {}
    for block in (block for blocks in wanting.values() for block in blocks):
        one = _turned_back(there[block], wanted[block][0].crc)
        if one is not None and all(named.accepts(one.data) for named in wanted[block]):
            turned[block] = one
        elif block not in found and there[block][4:8] == _MAGIC:
            this.strange.add(block)
    contested = {block for block in found.keys() & turned.keys() if found[block].data != turned[block].data}
    exact = {block: one for block, one in turned.items() if there[block][4:] == one.data[4:]}
    if turned.keys() - exact.keys() and (len(this.strange) + 1) * (size - 4) * 8 > _CHANCES_MAX:
        words = count_text(len(this.strange), "damaged page")
        this.untried[f"no bit is turned back: beside {words} that no bit sets right, one might match by chance"] = None
        turned = exact
    return {block: one for block, one in (found | turned).items() if block not in contested}


def _elsewhere(
    bench: Bench, wanting: dict[Key, list[int]], wanted: dict[int, list[Named]], space: tuple[int, int], size: int, this: _Run
) -> dict[int, _Found]:
    found: dict[int, _Found] = {}

    def offer(data: bytes, source: str) -> None:
        for block in wanting.get((PAGE, int.from_bytes(data[:4], "little")), ()):
            if all(named.accepts(data) for named in wanted[block]):
                found[block] = _Found(data, source)

    for block, data in looks_like_pages(bench.image, size, space):
        offer(data, f"its content lies in block {block}")
    for block, data in this.displaced.items():
        offer(data, f"its content lay in block {block}")
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


# -- blocks that nothing but a checksum tells of -----------------------------------------------------------------------
def _plain(wanted: dict[int, list[Named]], there: dict[int, bytes], this: _Run) -> dict[int, _Found]:
    """What lies in another damaged block. Blocks that go round (a pair, a cycle) bear each other out, however many are damaged;
    others count while there are so few that none is likely to match by chance."""
    keys = {block: keys_of(data) for block, data in (this.displaced | there).items()}
    holders: dict[Key, list[int]] = {}
    for block, own in keys.items():
        for key in own:
            holders.setdefault(key, []).append(block)
    sources: dict[int, int] = {}
    for block, named in wanted.items():
        held = holders.get(named[0].key, ())
        mutual = (one for one in held if one in wanted and wanted[one][0].key in keys[block])
        if held:
            sources[block] = next(mutual, held[0])
    plain = {block for block in sources if wanted[block][0].key[0] == RAW}
    few = sum(named[0].key[0] == RAW for named in wanted.values()) * len(keys) <= _CHANCES_MAX
    chosen = {block for block in plain if few or _goes_round(sources, block)}
    if plain - chosen:
        words = count_text(len(plain - chosen), "block")
        this.untried[f"{words} of data that may lie elsewhere: among so many damaged blocks one might match by chance"] = None
    contents = this.displaced | there
    return {
        block: _Found(contents[sources[block]], f"its content lay in block {sources[block]}")
        for block in sorted(chosen) if all(named.accepts(contents[sources[block]]) for named in wanted[block])
    }  # fmt: skip


def _goes_round(sources: dict[int, int], start: int) -> bool:
    """Whether what lies in `start`'s place is wanted where its own content lies, directly or over others."""
    at, seen = sources.get(start), set[int]()
    while at is not None and at != start and at not in seen:
        seen.add(at)
        at = sources.get(at)
    return at == start
