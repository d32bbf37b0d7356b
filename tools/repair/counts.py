"""Free space, reference counts, groups of clones and totals, made anew from what the trees use. docs/format/space.md, shares.md.

Everything is written to blocks that nothing uses, then one superblock of the next epoch names it: a crash in between leaves the
image as it was. The log's position stays, so what the log holds is replayed over the new superblock as over the old one.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from mdstore.tools.reader.page import COMPARE_BYTES, COMPARE_U64_BE, Root, decode_root
from mdstore.tools.reader.problems import Damage
from mdstore.tools.reader.snapshots import DeadRun
from mdstore.tools.reader.store import StoreReader
from mdstore.tools.reader.superblock import (
    FEATURE_SNAPSHOTS,
    FLAG_CLEAN,
    FLAG_LOG_ENDS,
    ROOT_COLLECTIONS,
    ROOT_DEAD,
    ROOT_FREE,
    ROOT_GROUPS,
    ROOT_REFERENCES,
    ROOT_SHARED,
    ROOT_SNAPSHOTS,
    SPARES_MAX,
    Superblock,
)
from mdstore.tools.repair import build, encode
from mdstore.tools.repair.bench import Bench
from mdstore.tools.repair.build import Builder, Run
from mdstore.tools.repair.dead import LIKE as DEAD_LIKE
from mdstore.tools.repair.dead import Kept, derived, not_free, records
from mdstore.tools.repair.usage import Usage, gaps, merged, usage_of

_INTERVAL: Final = struct.Struct("<II")
_ENOUGH: Final = 64  # blocks with which most repairs get by
_LIKE: Final = {
    ROOT_FREE: Root(4, COMPARE_U64_BE, 0, 8, 0, 8, ROOT_FREE, 0, b"", ()),
    ROOT_REFERENCES: Root(4, COMPARE_U64_BE, 0, 8, 0, 4, ROOT_REFERENCES, 0, b"", ()),
    ROOT_SHARED: Root(4, COMPARE_U64_BE, 0, 8, 128, 8, ROOT_SHARED, 0, b"", ()),
    ROOT_GROUPS: Root(4, COMPARE_U64_BE, 0, 8, 128, 4, ROOT_GROUPS, 0, b"", ()),
    ROOT_COLLECTIONS: Root(4, COMPARE_BYTES, 0, -1, 256, 20, ROOT_COLLECTIONS, 0, b"", ()),
}


def like(superblock: Superblock, kind: int) -> Root:
    """The descriptor of one of the superblock's own trees: its record's where that can be read, else the format page's."""
    try:
        return decode_root(superblock.roots[kind])
    except (Damage, KeyError):
        return _LIKE[kind]


def spare_room(reader: StoreReader, usage: Usage, others: Iterable[Run]) -> list[Run]:
    """Blocks that nothing uses: no tree of the superblock that counts, and none of the `others` (snapshots, the log's own data).

    Only what the free tree calls free as well, as far as that can be read: what seems unused may be lost, and be found again.
    """
    superblock = reader.superblock
    taken = sorted([*usage.used(), *usage.derived, *others])
    unused = list(gaps(merged(taken), superblock.first_block, superblock.blocks))
    free = list(free_records(reader))
    both = list(_common(unused, free))
    is_enough = 2 * _blocks(both) >= _blocks(unused) or (usage.is_partial and _blocks(both) >= _ENOUGH)
    return both if is_enough else unused


def _blocks(runs: list[Run]) -> int:
    return sum(blocks for _, blocks in runs)


def free_records(reader: StoreReader) -> Iterator[Run]:
    """What the free tree says, as far as it can be read and makes sense."""
    end = reader.superblock.first_block
    try:
        tree = reader.root_tree(ROOT_FREE)
    except Damage:
        return
    tree.on_damage = lambda _: None
    for key, value in tree.items():
        start, blocks = int.from_bytes(key, "big"), int.from_bytes(value, "little")
        if start >= end and blocks and start + blocks <= reader.superblock.blocks:
            end = start + blocks
            yield start, blocks


def _common(first: list[Run], second: list[Run]) -> Iterator[Run]:
    """What lies in both; both are in order."""
    at = 0
    for start, blocks in first:
        while at < len(second) and sum(second[at]) <= start:
            at += 1
        look = at
        while look < len(second) and second[look][0] < start + blocks:
            low, high = max(start, second[look][0]), min(start + blocks, sum(second[look]))
            if low < high:
                yield low, high - low
            look += 1


# -- the next superblock -----------------------------------------------------------------------------------------------
def next_superblock(
    bench: Bench, superblock: Superblock, builder: Builder, kept: list[Kept], dead: list[DeadRun]
) -> Superblock:
    """The superblock of the next epoch: the roots of `superblock`, and everything that can be counted counted anew.

    `superblock` may name trees that the builder just made. Nothing is written but pages; the caller writes the superblock.
    """
    usage = usage_of(bench.reader(superblock), bench.ticker("counting", superblock.objects))
    roots = dict(superblock.roots)
    roots[ROOT_COLLECTIONS], highest = _collections(bench, superblock, usage, builder)
    roots[ROOT_REFERENCES] = build.tree(
        builder, like(superblock, ROOT_REFERENCES),
        ((_key(page), extra.to_bytes(4, "little")) for page, extra in usage.page_references()),
    )  # fmt: skip
    roots[ROOT_SHARED] = build.tree(
        builder, like(superblock, ROOT_SHARED),
        ((_key(start), _INTERVAL.pack(blocks, extra)) for start, blocks, extra in usage.shared_data()),
    )  # fmt: skip
    roots[ROOT_GROUPS] = build.tree(
        builder, like(superblock, ROOT_GROUPS),
        ((_key(group), members.to_bytes(4, "little")) for group, members in sorted(usage.groups.items())),
    )  # fmt: skip
    runs = derived(kept, dead, merged(sorted([*usage.used(), *builder.taken])))
    roots.pop(ROOT_DEAD, None)
    if runs:
        roots[ROOT_DEAD] = build.tree(builder, DEAD_LIKE, records(runs))
    usage.runs += [(start, blocks, 0) for start, blocks in builder.taken]  # the trees made since the walk; the others again
    usage.runs += [(start, blocks, 0) for start, blocks in not_free([], runs)]
    usage.runs.sort()
    roots[ROOT_FREE], spare, free_blocks = _free_tree(superblock, usage, builder)
    return replace(
        superblock,
        epoch=builder.generation,
        flags=superblock.flags & (FLAG_CLEAN | FLAG_LOG_ENDS),
        features_incompatible=superblock.features_incompatible & ~FEATURE_SNAPSHOTS
        | (FEATURE_SNAPSHOTS if roots.keys() & {ROOT_SNAPSHOTS, ROOT_DEAD} else 0),
        next_tree_id=max(superblock.next_tree_id, usage.highest_tree_id + 1, 16, *(group + 1 for group in usage.groups)),
        next_collection_id=max(superblock.next_collection_id, highest + 1),
        objects=usage.objects,
        stored_bytes=usage.stored_bytes,
        free_blocks=free_blocks,
        spare_runs=spare,
        roots=roots,
    )


def _collections(bench: Bench, superblock: Superblock, usage: Usage, builder: Builder) -> tuple[bytes, int]:
    """(the collection tree, its counts right; the highest number). Objects of a number that no collection has get one to be
    found in."""
    stored = list(bench.reader(superblock).collections())
    numbers: dict[int, bytes] = {}
    for name, record in stored:
        numbers.setdefault(record.number, name)
    for number in usage.collections.keys() - numbers.keys():
        numbers[number] = b"recovered.%d" % number
    rows = sorted((name, number, usage.collections.get(number, 0)) for number, name in numbers.items())
    if rows == [(name, *record) for name, record in stored]:
        return superblock.roots[ROOT_COLLECTIONS], max(numbers, default=0)
    usage.forget_tree(ROOT_COLLECTIONS)
    rows_made = ((name, encode.collection(number, objects)) for name, number, objects in rows)
    return build.tree(builder, like(superblock, ROOT_COLLECTIONS), rows_made), max(numbers, default=0)


def _free_tree(superblock: Superblock, usage: Usage, builder: Builder) -> tuple[bytes, tuple[Run, ...], int]:
    """(root, spare runs, free blocks): a tree of everything unused, its own pages and a few to spare excepted."""
    template = like(superblock, ROOT_FREE)
    pieces = sum(1 for _ in gaps(usage.used(), superblock.first_block, superblock.blocks))
    room = builder.page_size - 40
    leaves = -(-(pieces + 8) // (room // 24))
    pages = leaves + 2 + 2 * (leaves // max(1, room // 44 - 1))
    own = list(merged((page, 1) for page in sorted(builder.allocate(pages))))
    free = list(gaps(merged(sorted([*usage.used(), *own])), superblock.first_block, superblock.blocks))
    maker = Builder(builder.device, builder.page_size, builder.generation, own)
    root = build.tree(maker, template, ((_key(start), blocks.to_bytes(8, "little")) for start, blocks in free))
    spare = maker.free_runs()[:SPARES_MAX]
    return root, tuple(spare), sum(blocks for _, blocks in free)


def _key(number: int) -> bytes:
    return number.to_bytes(8, "big")
