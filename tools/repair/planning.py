"""The plan of a repair: check, set right what was found, check again, until nothing is found that can be set right.

All of it happens on the shadow, in the order in which one part needs another: the superblock before the log, the log and the
trees before the engine, the engine before the name space. What comes out is judged twice, by the second reader and by the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mdstore.device.protocol import Device
from mdstore.errors import MdstoreError
from mdstore.tools.reader.problems import Damage
from mdstore.tools.repair import contents, events, name_space, restore, ring, settle, superblocks, trees
from mdstore.tools.repair.bench import Bench, Progress, RepairOptions, Step, Verdict
from mdstore.tools.repair.shadow import NoRoomForPlan

_RUNS_MAX: Final = 4  # of one part: what it did not set right by then it never will


class _Part(NamedTuple):
    name: str
    codes: frozenset[str]
    run: Callable[[Bench], Iterator[Step]]


_PARTS: Final = (
    _Part("superblocks", superblocks.CODES, superblocks.run),
    _Part("log heads", ring.HEAD_CODES, ring.mend_heads),
    _Part("log's bad sectors", ring.UNREADABLE_CODES, ring.fill_unreadable),
    _Part("log", ring.ROT_CODES, ring.skip_damaged),
    _Part("misplaced blocks", restore.CODES, restore.run),
    _Part("older superblock", settle.FALLBACK_CODES, settle.fall_back),
    _Part("trees", trees.TREE_CODES, trees.run_trees),
    _Part("damaged data", trees.DATA_CODES, trees.run_trees),
    _Part("counts", trees.COUNT_CODES, trees.run_counts),
    _Part("log entries", ring.REFUSED_CODES, ring.skip_refused),
    _Part("server record", events.SERVER_CODES, events.mend_server),
    _Part("event heads", events.HEAD_CODES, events.mend_heads),
    _Part("event log", events.ROT_CODES, events.skip_damaged),
    _Part("events", events.REFUSED_CODES, events.skip_refused),
    _Part("names", name_space.CODES, name_space.run),
    _Part("ends of data", contents.CODES, contents.run),
    _Part("checkpoint", settle.CODES, settle.checkpoint),
)


_DOUBTFUL: Final = ring.ROT_CODES  # with these, the superblock may be older than what it leads to


@dataclass(slots=True)
class Plan:
    """What a repair does and what it leaves. `shadow` holds the changes; nothing was written to the image."""

    bench: Bench
    before: Verdict
    after: Verdict
    steps: list[Step] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)  # parts that could not do their work, and why
    engine: list[str] = field(default_factory=list)  # what the engine says of the result

    @property
    def left(self) -> int:
        """Problems that stay. What the engine says counts where the second reader finds nothing, else it is the same again."""
        return self.after.open_problems or len(self.engine)


def plan(device: Device, options: RepairOptions, progress: Progress = lambda *_: None) -> Plan:
    """Carry the whole repair out on a shadow of `device`. NoRoomForPlan. Cost: several checks, and what is to be built."""
    bench = Bench(device, options, progress)
    bench.check_writable()
    before = bench.check()
    made = Plan(bench, before, before)
    runs = dict.fromkeys((part.name for part in _PARTS), 0)
    if before.codes.keys() & _DOUBTFUL and (why := bench.outdated()):
        made.failed.append(f"{why}; what it leads to is the past, so nothing is changed")
        return made
    if "image-truncated" in before.codes:
        made.failed.append("the image ends too early: lengthen it (`mdstore fsck` says how), zeros stand for what is gone")
        return made
    if not options.drops_damaged:
        runs["damaged data"] = _RUNS_MAX
    while (part := _next(made.after, runs)) is not None:
        runs[part.name] += 1
        try:
            steps = list(part.run(bench))
        except NoRoomForPlan:
            raise
        except (MdstoreError, Damage) as error:
            made.failed.append(f"{part.name}: {error}")
            runs[part.name] = _RUNS_MAX
            steps = []
        if steps:
            made.steps += steps
            made.after = bench.check()
        else:
            runs[part.name] = _RUNS_MAX
    made.failed += [f"misplaced blocks: {line}" for line in bench.untried]
    if made.steps:
        made.engine = bench.engine_problems()
    return made


def _next(verdict: Verdict, runs: dict[str, int]) -> _Part | None:
    """The first part that has something to do and has not tried too often."""
    for part in _PARTS:
        if runs[part.name] < _RUNS_MAX and part.codes & verdict.codes.keys():
            return part
    return None
