"""Which snapshots an image holds, and what only they still reach. Pages: docs/format/snapshots.md.

A snapshot is a superblock that is kept: its record holds all of it. Nobody counts references. Every page and every extent says
in which epoch it was born; when the live state stops reaching a run of blocks, it was born after the newest snapshot, and is
free, or that snapshot reaches it too, and it joins the **dead** of that snapshot: what died after it and before the next one.

Invariants
1. A block is in exactly one of: reached by the live superblock, free, spare, in one dead run.
2. A run that died under snapshot D and was born in epoch B is reached by exactly the snapshots with B <= epoch <= D.
3. Deleting a snapshot frees of its dead what was born after the one before it; the rest joins the dead of that one.
4. A snapshot that is being deleted counts as gone from the checkpoint on that says so: nothing dies under it any more.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from mdstore.btree import Descriptor, Tree, key_size_max
from mdstore.errors import AlreadyExists, CorruptionError, LimitExceeded, NotFound
from mdstore.limits import SNAPSHOT_NAME_MAX
from mdstore.store import superblock as superblock_module
from mdstore.store.allocator import Allocator, merge_deaths
from mdstore.store.limbo import Death
from mdstore.store.operands import limited_name
from mdstore.store.superblock import SLOT_SIZE, Superblock
from mdstore.store.transaction import Name

_HEAD = struct.Struct("<BBHIq")  # version, flags, zero, bytes of the superblock that follow, when it was taken
_DEAD_KEY = struct.Struct(">QQ")  # epoch of the snapshot, first block
_DEAD = struct.Struct("<QQ")  # blocks, epoch in which they were born
_VERSION = 1
_FLAG_DELETING = 1

assert _HEAD.size == 16

RECORDS_DESCRIPTOR = Descriptor(-1, -4)
DEAD_DESCRIPTOR = Descriptor(_DEAD_KEY.size, _DEAD.size)  # never embedded: see tables._settle


class DeadRun(NamedTuple):
    """`blocks` from `start` on, born in epoch `birth`, that the snapshot of `epoch` was the last to reach."""

    epoch: int
    start: int
    blocks: int
    birth: int


@dataclass(slots=True)
class Kept:
    """A snapshot: the superblock as it was."""

    name: bytes
    superblock: Superblock
    created_ns: int
    is_deleting: bool = False

    @property
    def epoch(self) -> int:
        return self.superblock.epoch

    def encode(self) -> bytes:
        raw = self.superblock.encode().rstrip(b"\0")
        return _HEAD.pack(_VERSION, _FLAG_DELETING if self.is_deleting else 0, 0, len(raw), self.created_ns) + raw


def decode(name: bytes, raw: bytes) -> Kept:
    """The record under `name`; CorruptionError when it is not one."""
    where = f"snapshot {name.decode('utf-8', 'backslashreplace')!r}"
    if len(raw) < _HEAD.size:
        raise CorruptionError("snapshot record", where, f"at least {_HEAD.size} bytes", len(raw))
    version, flags, zero, length, created_ns = _HEAD.unpack_from(raw)
    if version != _VERSION or flags & ~_FLAG_DELETING or zero or length != len(raw) - _HEAD.size or length > SLOT_SIZE:
        found = f"version {version}, flags {flags:#x}, {zero}, {length} of {len(raw)} bytes"
        raise CorruptionError("snapshot record", where, f"version {_VERSION}", found)
    kept = superblock_module.decode(raw[_HEAD.size :].ljust(SLOT_SIZE, b"\0"), where)
    return Kept(name, kept, created_ns, bool(flags & _FLAG_DELETING))


def snapshot_name(name: Name) -> bytes:
    """The bytes of a name: 1 to SNAPSHOT_NAME_MAX of any value. InvalidRequest, LimitExceeded."""
    return limited_name("SNAPSHOT_NAME_MAX", name, SNAPSHOT_NAME_MAX)


class SnapshotTable:
    """The snapshots of one image and their dead. Every call happens under the store's lock.

    `newest`: epoch of the newest snapshot that is not being deleted, one included whose record is still to be made; 0: none.
    """

    def __init__(self, records: Tree, dead: Tree, tolerated: list[str] | None = None) -> None:
        """`tolerated`: what is wrong with the records is not raised here, but to whoever asks for one."""
        self.records = records
        self.dead = dead
        self.damage: CorruptionError | None = None  # why nothing is known of the snapshots, where nothing is
        self._kept: dict[bytes, Kept] = {}
        try:
            self._kept.update((name, decode(name, raw)) for name, raw in records.items())
        except CorruptionError as error:
            if tolerated is None:
                raise
            self.damage = error
        self._died: list[Death] = []
        self.newest = 0
        self._fan = max(4, records.pager.page_size // (_DEAD_KEY.size + _DEAD.size) - 3)  # records of a leaf, and some room
        self._find_newest()

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Kept]:
        """In the order of their epochs. CorruptionError when that is not known."""
        self._check()
        return iter(sorted(self._kept.values(), key=lambda kept: kept.epoch))

    def get(self, name: bytes) -> Kept:
        """NotFound when there is none of that name."""
        self._check()
        kept = self._kept.get(name)
        if kept is None:
            raise NotFound("snapshot", name)
        return kept

    def _check(self) -> None:
        if self.damage is not None:
            raise self.damage.with_traceback(None)

    # -- taking and deleting -------------------------------------------------------------------------------------------

    def check_new(self, name: bytes) -> None:
        """AlreadyExists, or LimitExceeded where pages are too small for the name."""
        if name in self._kept:
            raise AlreadyExists("snapshot", name)
        longest = key_size_max(self.records.pager.page_size)
        if len(name) > longest:
            raise LimitExceeded("SNAPSHOT_NAME_MAX", len(name), longest)

    def expect(self, epoch: int) -> None:
        """The superblock of that epoch will be kept: from now on nothing that it reaches is freed."""
        assert not self._died, "what died before was settled by the checkpoint of that epoch"
        self.newest = epoch

    def add(self, kept: Kept) -> None:
        """Record a snapshot; the next checkpoint makes it durable."""
        self.records.put(kept.name, kept.encode())
        self._kept[kept.name] = kept
        self._find_newest()

    def _mark_deleting(self, kept: Kept) -> None:
        """From the next checkpoint on it cannot be opened, and its dead may be given up piece by piece."""
        kept.is_deleting = True
        self.records.put(kept.name, kept.encode())
        self._find_newest()

    def give_up(self, kept: Kept, allocator: Allocator, limit: int) -> tuple[int, bool]:
        """Free, or hand to the snapshot before it, at most `limit` of the dead runs of one that is being deleted from now on; its
        record goes with the last. Returns how many, and whether it is gone."""
        if not kept.is_deleting:
            self._mark_deleting(kept)
        before = self._before(kept.epoch)
        batch = list(islice(self.dead_of(kept.epoch), limit + 1))
        self.dead.delete_many([_DEAD_KEY.pack(run.epoch, run.start) for run in batch[:limit]])
        for run in batch[:limit]:
            if run.birth > before:
                allocator.free(run.start, run.blocks, run.birth)
            else:
                self.dead.put(_DEAD_KEY.pack(before, run.start), _DEAD.pack(run.blocks, run.birth))
        if len(batch) > limit:
            return limit, False
        del self._kept[kept.name]
        self.records.delete(kept.name)
        return len(batch), True

    def _before(self, epoch: int) -> int:
        """The epoch of the last snapshot before that epoch which stays; 0 when there is none."""
        return max((kept.epoch for kept in self._kept.values() if kept.epoch < epoch and not kept.is_deleting), default=0)

    def _find_newest(self) -> None:
        self.newest = max((kept.epoch for kept in self._kept.values() if not kept.is_deleting), default=0)

    # -- the dead ------------------------------------------------------------------------------------------------------

    def died(self, start: int, blocks: int, birth: int) -> None:
        """The live state stopped reaching blocks that a snapshot may reach."""
        self._died.append((start, blocks, birth))

    def burial(self, blocks: int) -> int:
        """Pages that listing the dead may take, when so many blocks are replaced at the next checkpoint beside what died already:
        each may be a run of its own and belong into another leaf, leaves are half full, and so are those added."""
        if not self.newest:
            return 0
        runs = blocks + len(self._died)
        return 2 * runs // self._fan + min(runs, 2 * len(self.dead) // self._fan)

    def bury(self, allocator: Allocator) -> bool:
        """Bring the tree of dead runs up to date with what died; True when something had."""
        died, self._died = self._died, []
        for start, blocks, birth in merge_deaths(died):
            if birth > self.newest:
                allocator.free(start, blocks, birth)
            else:
                self.dead.put(_DEAD_KEY.pack(self.newest, start), _DEAD.pack(blocks, birth))
        return bool(died)

    def dead_of(self, epoch: int) -> Iterator[DeadRun]:
        """The dead of the snapshot of that epoch, by address."""
        for key, value in self.dead.items(_DEAD_KEY.pack(epoch, 0), _DEAD_KEY.pack(epoch + 1, 0)):
            yield decode_dead(key, value)

    def all_dead(self) -> Iterator[DeadRun]:
        """Every dead run, by snapshot and address."""
        for key, value in self.dead.items():
            yield decode_dead(key, value)

    def held_blocks(self, kept: Kept) -> int:
        """Blocks that only this snapshot reaches: what deleting it would free. Cost: its dead runs."""
        before = self._before(kept.epoch)
        return sum(run.blocks for run in self.dead_of(kept.epoch) if run.birth > before)


def decode_dead(key: bytes, value: bytes) -> DeadRun:
    """A record of the tree of dead runs; CorruptionError when it makes no sense."""
    (epoch, start), (blocks, birth) = _DEAD_KEY.unpack(key), _DEAD.unpack(value)
    if not blocks or not 0 < birth <= epoch:
        raise CorruptionError("dead run", f"block {start}, snapshot epoch {epoch}", "blocks born before", f"{blocks}, {birth}")
    return DeadRun(epoch, start, blocks, birth)
