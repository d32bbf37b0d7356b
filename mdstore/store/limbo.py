"""Limbo: freed blocks that the newest durable superblock, or a reader that is still at it, may reach.

Blocks are **born** in epoch b, when the trees begin to reach them, and **freed** in epoch e, when they stop: superblocks b .. e-1
reach them, e does not. Where b = e no superblock does, but whoever looked in between may. A reader **pins** one epoch p:

- who looks at the live trees, the one being prepared then, `Pager.generation`. It reaches what was born by then and not freed
  yet: b <= p <= e. Later it meets only what it shares in memory, which the freeze of p gave its address: b = p. That takes that
  a freeze leaves no tree unsealed but empty ones, and that the generation moves on at its very end.
- who looks at the durable superblock p: b <= p < e.

Invariants
1. Blocks wait until superblock e is durable, whoever reads: before, a crash comes back to one that reaches them.
2. Blocks whose superblock e is durable wait while there is a pin p with b <= p <= e, and no longer. So a reader keeps what it
   reaches, and what is born after it comes and goes beside it.
3. No pin is taken anew for what waits under invariant 2: the live epoch is past e by then, the durable one is e at least, and
   does not reach it. So what waits need not be looked at again before the pin that it was put under is gone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

Run = tuple[int, int]  # (first block, blocks)
Death = tuple[int, int, int]  # first block, blocks, epoch in which they were born


class Batch(NamedTuple):
    """Runs that epoch `freed` freed, `blocks` in all."""

    freed: int
    number: int  # no other has it, so that no two are equal in a heap
    blocks: int
    runs: list[Run]


class Waiting:
    """The batches under one pin, the first freed on top."""

    def __init__(self) -> None:
        self.heap: list[Batch] = []
        self.blocks = 0

    def add(self, batch: Batch) -> None:
        heappush(self.heap, batch)
        self.blocks += batch.blocks

    def pop(self) -> Batch:
        batch = heappop(self.heap)
        self.blocks -= batch.blocks
        return batch


class Limbo:
    """What waits: by the epoch that freed it, then by the pin it waits for. Not thread-safe: the store's lock guards it.

    `pins`, in every call, are those of all readers, ascending, each once.
    """

    def __init__(self) -> None:
        self._undurable: deque[tuple[int, Mapping[int, list[Run]]]] = deque()  # epoch that freed them, and the runs by birth
        self._held: dict[int, Waiting] = {}  # by the first pin that reaches them
        self._number = count()

    def seal(self, freed: int, by_birth: Mapping[int, list[Run]]) -> None:
        """Superblock `freed`, which is not durable yet, is the first not to reach these runs. Epochs come in order."""
        assert not self._undurable or self._undurable[-1][0] < freed, "one checkpoint at a time"
        self._undurable.append((freed, by_birth))

    def leave(self, durable: int, pins: Sequence[int]) -> list[Run]:
        """The runs that wait no longer, superblock `durable` being so.

        Cost: a step for each epoch of birth among what became durable, and for each batch that leaves; of those that wait on when
        their pin goes, the fewer of its and the next one's.
        """
        released: list[Run] = []
        for pin in sorted(self._held.keys() - set(pins)):
            self._pass_on(pin, pins, released)
        while self._undurable and self._undurable[0][0] <= durable:
            freed, by_birth = self._undurable.popleft()
            for birth, runs in by_birth.items():
                pin = _holder(birth, freed, pins)
                if pin:
                    blocks = sum(blocks for _, blocks in runs)
                    self._held.setdefault(pin, Waiting()).add(Batch(freed, next(self._number), blocks, runs))
                else:
                    released += runs
        return released

    def held_blocks(self, pins: Sequence[int]) -> int:
        """How many blocks `leave` would go on to hold of those it does. Cost: a step for each pin, and for each batch under one
        that is gone."""
        there = set(pins)
        return sum(
            waiting.blocks if pin in there else sum(batch.blocks for batch in waiting.heap if _holder(pin, batch.freed, pins))
            for pin, waiting in self._held.items()
        )

    def _pass_on(self, pin: int, pins: Sequence[int], released: list[Run]) -> None:
        """What waited for a pin that is gone waits for the next one, as far as that reaches it."""
        waiting = self._held.pop(pin)
        while waiting.heap and not _holder(pin, waiting.heap[0].freed, pins):
            released += waiting.pop().runs
        if not waiting.heap:
            return
        heir = _holder(pin, waiting.heap[0].freed, pins)
        fewer, more = sorted((waiting, self._held.get(heir, Waiting())), key=lambda one: len(one.heap))
        for batch in fewer.heap:
            more.add(batch)
        self._held[heir] = more


def _holder(first: int, freed: int, pins: Sequence[int]) -> int:
    """The first pin of `first` .. `freed`; 0, which is no epoch, where there is none."""
    at = bisect_left(pins, first)
    return pins[at] if at < len(pins) and pins[at] <= freed else 0
