"""Canaries: bugs put in on purpose, each of which the exploration must find within a bounded number of states.

They replace named seams of the running process for the length of a `with`, so that no switch for them exists in the engine.
One that is not found says that the exploration has gone blind, whatever it says of the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final
from unittest.mock import patch

import journal.journal
from journal import Entry, JournalError, RingMedium
from journal.entry import HEADER_SIZE, decode_header
from journal.heads import HeadKeeper
from journal.recovery import Recovered, recover
from journal.scan import Walk
from mdstore.device.explore import Exploration
from mdstore.device.verdicts import Finding, Problem
from mdstore.errors import MdstoreError
from mdstore.mds.core import Core
from mdstore.mds.objectio import StoreObjects
from mdstore.store import checkpoint, log, recovery, superblock
from mdstore.store.checkpoint import Checkpointer
from mdstore.store.superblock import Superblock
from mdstore.store.tables import Tables, freeze
from mdstore.store.transaction import Transaction
from mdstore.tools.crash.verify import Inconsistent
from mdstore.tools.crash.workloads import crash_workload

STATES_PER_RUN: Final = 400  # of one run of the workload; then the next seed is taken


@dataclass(frozen=True)
class Canary:
    """A bug, the workload that meets it, and within how many states it must be found."""

    name: str
    about: str
    workload: str
    bound_states: int
    bug: Callable[[], AbstractContextManager[Any]]


@dataclass
class Sighting:
    """What became of a canary: `states` tried until it was found, or in all."""

    canary: Canary
    states: int
    finding: Finding | None


def look_for(canary: Canary, seed: int) -> Sighting:
    """Explore run after run with the bug in, until it is found or the bound is reached."""
    tried = 0
    with canary.bug():
        while tried < canary.bound_states:
            sighting = _look_in_run(canary, seed, min(STATES_PER_RUN, canary.bound_states - tried))
            tried += sighting.states
            if sighting.finding is not None:
                break
            seed += 1
    return replace(sighting, states=tried)


def _look_in_run(canary: Canary, seed: int, budget: int) -> Sighting:
    chosen = crash_workload(canary.workload)
    try:
        run = chosen.record(seed, chosen.steps)
    except (Inconsistent, MdstoreError, JournalError) as error:  # so bad that it shows without a crash
        return Sighting(canary, 1, Finding(f"seed={seed}, no crash yet", Problem.ERROR, str(error)))
    exploration = Exploration(run, chosen.reopen, seed)
    tried = 0
    for tried, state in enumerate(exploration.states(budget), 1):
        found = exploration.check(state)
        if found:
            return Sighting(canary, tried, replace(found[0], state=f"seed={seed} {found[0].state}"))
    return Sighting(canary, max(tried, 1), None)


# -- the bugs: of the store --------------------------------------------------------------------------------------------


def _nothing(*_: object) -> None:
    """Stands in for a flush."""


def superblock_unflushed() -> AbstractContextManager[Any]:
    """Blocks are reused and the log is trimmed although the superblock that allows it may not have arrived."""
    return patch.object(Checkpointer, "_flush_superblock", _nothing)


def pages_unflushed() -> AbstractContextManager[Any]:
    """The superblock may arrive before the pages that it names."""

    def flush_nothing(self: Checkpointer, position: int) -> None:
        with patch.object(log.LogRegion, "flush", _nothing):
            self._store.journal.wait(position)

    return patch.object(Checkpointer, "_flush_pages_and_log", flush_nothing)


def superblock_first() -> AbstractContextManager[Any]:
    """The superblock is on the medium, durably, before anything that it names is written."""
    def freeze_and_write(tables: Tables, *rest: Any) -> Superblock:
        frozen = freeze(tables, *rest)
        superblock.write(tables.space.device, frozen)
        tables.space.device.flush()
        return frozen

    return patch.object(checkpoint, "freeze", freeze_and_write)


def blocks_believed() -> AbstractContextManager[Any]:
    """Recovery takes the blocks of a large write for there because the log names them, whatever their checksums say."""
    return patch.object(recovery._Replayer, "_arrived", lambda self, entry: True)


# -- of the journal ----------------------------------------------------------------------------------------------------


def log_unflushed() -> AbstractContextManager[Any]:
    """Entries are called durable once they are written."""
    return patch.object(RingMedium, "flush", _nothing)


@contextmanager
def tail_kept() -> Iterator[None]:
    """The new owner neither removes what lies behind the valid end nor tells its entries from those by a generation.

    (Each of the two alone does no harm while the other is there.)
    """
    begin_first = HeadKeeper._begin

    def same_generation(*arguments: Any, **named: Any) -> Recovered:
        found = recover(*arguments, **named)
        return replace(found, generation=found.generation - 1)

    def begin(self: HeadKeeper, *arguments: Any) -> None:
        if self.durable.generation == 0:  # the log is new, and nothing lies behind its end
            begin_first(self, *arguments)
        self.begun = True

    with ExitStack() as stack:
        stack.enter_context(patch.object(journal.journal, "recover", same_generation))
        stack.enter_context(patch.object(HeadKeeper, "_begin", begin))
        yield


@contextmanager
def payloads_believed() -> Iterator[None]:
    """An entry counts when its header is right, whatever the checksum of its payload says."""

    def step(self: Walk) -> list[Entry]:
        data = self._have(HEADER_SIZE)
        header = decode_header(data) if any(data) else "zeros"
        refused = header if isinstance(header, str) else self._refused(header)
        if refused is not None or isinstance(header, str):
            return [] if self._skip_zeros() else self._break(refused or "")
        return self._accept(header, self._payload(header))

    with ExitStack() as stack:
        stack.enter_context(patch.object(Walk, "_parse_window", lambda self: []))
        stack.enter_context(patch.object(Walk, "_step", step))
        yield


def floors_ignored() -> AbstractContextManager[Any]:
    """A writer that was replaced is let write on."""
    return patch.object(StoreObjects, "_begin", lambda self: Transaction())


# -- of the metadata server --------------------------------------------------------------------------------------------


def events_unflushed() -> AbstractContextManager[Any]:
    """fsync and syncfs return with the events still in memory."""
    return patch.object(Core, "flush_log", _nothing)


CANARIES: Final = (
    Canary("superblock-unflushed", "a flush is skipped: of the superblock", "full", 6000, superblock_unflushed),
    Canary("pages-unflushed", "a flush is skipped: of what the superblock names", "transactions", 1200, pages_unflushed),
    Canary("superblock-first", "the superblock is written before what it names", "transactions", 200, superblock_first),
    Canary("blocks-believed", "a checksum is ignored: of a large write's blocks", "transactions", 800, blocks_believed),
    Canary("log-unflushed", "a flush is skipped: of the log", "pairs", 20, log_unflushed),
    Canary("tail-kept", "what recovery dropped is not removed", "restarts", 2400, tail_kept),
    Canary("payloads-believed", "a checksum is ignored: of a log entry", "pairs", 100, payloads_believed),
    Canary("floors-ignored", "a replaced writer is let write on", "takeover", 100, floors_ignored),
    Canary("events-unflushed", "fsync does not wait for the metadata log", "names", 100, events_unflushed),
)
