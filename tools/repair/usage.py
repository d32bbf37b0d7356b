"""What every block is used for, as the trees say, whatever the counting trees claim.

The walk is that of `fsck` (`StoreCheck`), with its findings left out and every page remembered instead of only those that the
references tree calls shared. Memory: some 60 bytes for each page and 100 for each run of data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from mdstore.tools.reader.check_sharing import SharedPages
from mdstore.tools.reader.check_space import DATA, OVERFLOW, PAGE, RUN, owner, split_owner
from mdstore.tools.reader.check_store import StoreCheck
from mdstore.tools.reader.onode import Collection
from mdstore.tools.reader.problems import Findings
from mdstore.tools.reader.store import StoreReader
from mdstore.tools.reader.superblock import ROOT_DEAD, ROOT_FREE, ROOT_GROUPS, ROOT_REFERENCES, ROOT_SHARED
from mdstore.tools.repair.build import Run

DERIVED: Final = frozenset({ROOT_FREE, ROOT_REFERENCES, ROOT_SHARED, ROOT_GROUPS, ROOT_DEAD})  # kinds, which are their trees' ids


class _EveryPage(SharedPages):
    """Any page may be shared: each is walked below once."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def is_first_visit(self, page: int) -> bool:
        """Whether it was not visited yet."""
        if page in self.seen:
            return False
        self.seen.add(page)
        return True


@dataclass(slots=True)
class Usage:
    """What one walk found. Runs are (first block, blocks, owner code of `check_space`), in order, once for each reference."""

    runs: list[tuple[int, int, int]] = field(default_factory=list)
    derived: list[Run] = field(default_factory=list)  # pages of the trees that are made anew from the others
    groups: Counter[int] = field(default_factory=Counter)
    collections: dict[int, int] = field(default_factory=dict)  # number: objects
    objects: int = 0
    stored_bytes: int = 0
    highest_tree_id: int = 0
    pages: set[int] = field(default_factory=set)  # every page that something names
    is_partial: bool = False  # something could not be read, and what it uses is not known

    def used(self) -> Iterator[Run]:
        """Runs of blocks that something uses, in order, apart from one another."""
        yield from merged((start, blocks) for start, blocks, _ in self.runs)

    def forget_tree(self, tree_id: int) -> None:
        """Leave out the pages of one tree: another one is made in its place."""
        gone = {owner(PAGE, tree_id), owner(OVERFLOW, tree_id)}
        self.runs = [run for run in self.runs if run[2] not in gone]

    def data(self) -> Iterator[Run]:
        """Runs that hold data of objects."""
        return ((start, blocks) for start, blocks, code in self.runs if split_owner(code)[0] == DATA)

    def page_references(self) -> Iterator[tuple[int, int]]:
        """(page, references beyond the first) of every shared page, in order."""
        counts = Counter(start for start, _, code in self.runs if split_owner(code)[0] in (PAGE, OVERFLOW))
        yield from sorted((page, count - 1) for page, count in counts.items() if count > 1)

    def shared_data(self) -> Iterator[tuple[int, int, int]]:
        """(first block, blocks, references beyond the first) of every stretch of data with more than one, in order."""
        steps: Counter[int] = Counter()
        for start, blocks, code in self.runs:
            if split_owner(code)[0] == DATA:
                steps[start] += 1
                steps[start + blocks] -= 1
        depth = last = 0
        pending: tuple[int, int, int] | None = None
        for at in sorted(steps):
            if not steps[at]:
                continue
            if depth > 1:
                pending, done = _extended(pending, last, at, depth - 1)
                if done is not None:
                    yield done
            depth += steps[at]
            last = at
        if pending is not None:
            yield pending


def _extended(
    pending: tuple[int, int, int] | None, start: int, stop: int, extra: int
) -> tuple[tuple[int, int, int], tuple[int, int, int] | None]:
    """(the interval so far, the one before it when that is complete)."""
    if pending is not None and pending[0] + pending[1] == start and pending[2] == extra:
        return (pending[0], stop - pending[0], extra), None
    return (start, stop - start, extra), pending


class _Walk(StoreCheck):
    """`fsck`'s walk, up to the point where it would compare."""

    def __init__(self, reader: StoreReader, tick: Callable[[int], None]) -> None:
        super().__init__(reader, Findings(lambda _: None), tick=tick)
        self._pages = self._shared_pages = _EveryPage()
        self.usage = Usage()

    def _compare_counts(self, collections: dict[int, Collection], counted: dict[int, int]) -> None:
        self.usage.collections = {number: count for number, count in counted.items() if number != -1}

    def _check_space(self) -> None:
        super()._note_free_pages()
        usage = self.usage
        for record in self._space.uses():
            start, blocks, code = RUN.unpack(record)
            kind, number = split_owner(code)
            if kind in (PAGE, OVERFLOW):
                usage.highest_tree_id = max(usage.highest_tree_id, number)
                if number in DERIVED:
                    usage.derived.append((start, blocks))
                    continue
            usage.runs.append((start, blocks, code))
        usage.groups = self._groups.seen()
        usage.objects, usage.stored_bytes = self.counts.objects, self.counts.stored_bytes
        usage.pages = self._pages.seen
        usage.is_partial = self._is_partial


def usage_of(reader: StoreReader, tick: Callable[[int], None] = lambda _: None) -> Usage:
    """Walk everything that the reader's superblock reaches."""
    walk = _Walk(reader, tick)
    walk.run()
    return walk.usage


# -- runs --------------------------------------------------------------------------------------------------------------
def merged(runs: Iterable[Run]) -> Iterator[Run]:
    """Runs in order as runs that lie apart."""
    start = end = -1
    for low, blocks in runs:
        if low > end:
            if end > start:
                yield start, end - start
            start, end = low, low + blocks
        else:
            end = max(end, low + blocks)
    if end > start:
        yield start, end - start


def gaps(runs: Iterable[Run], first: int, last: int) -> Iterator[Run]:
    """What lies between `first` and `last` in none of the runs, which are in order."""
    at = first
    for start, blocks in runs:
        if start > at:
            yield at, min(start, last) - at
        at = max(at, start + blocks)
        if at >= last:
            return
    if at < last:
        yield at, last - at
