"""Crash a workload at every operation, in every way the device allows, and hold what recovers against the promise.

The promise: after a crash, an engine holds one of the models from the newest acknowledged to the newest begun, whole.

    def workload(device, history):
        engine = Engine.format(device)
        history.start({})                      # from here on, every crash must recover
        index = history.begin({b"k": b"v"})    # the operation that leads to this model is about to be issued
        engine.put(b"k", b"v")
        history.acknowledge(index)             # the engine said: durable

    report = explore(workload, lambda device: dict(Engine.open(device).items()), seed=1, size_bytes=1 << 20)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from threading import Lock
from typing import Final

from mdstore.device.crashlog import CrashLog
from mdstore.device.crashstates import DEFAULT_PLAN, CrashState, Plan, crash_states
from mdstore.device.faulty import Crashed, Fault, FaultyDevice
from mdstore.device.models import Promise
from mdstore.device.protocol import Buffer, Device
from mdstore.device.verdicts import Finding, Judgement, Problem, judge
from mdstore.errors import InvalidRequest

STATES_PER_POINT: Final = 17  # what the default plan makes of a point with several pending writes
FINDINGS_KEPT: Final = 20
SUMMARY_PREFIX: Final = "crash exploration: "  # of the first and the last line said
IN_RECOVERY: Final = " then in its recovery "  # between the two parts of the name of a crash of a recovery
NESTED_PLAN: Final = Plan(drops=1, subsets=1, tears=1)


class History:
    """What a workload asked of its engine and what the engine acknowledged, tied to the operations of the device.

    A model is a snapshot that later work does not change (copy it). All methods may be called from any thread.
    """

    def __init__(self, device: FaultyDevice) -> None:
        self._device = device
        self._lock = Lock()
        self.promise = Promise()

    def start(self, model: object) -> None:
        """The engine is ready and durable with `model`: states count from here on. Once, before any `begin`."""
        if self.promise.models:
            raise InvalidRequest("a history starts once")
        self.promise.first_point = self._device.point
        self.acknowledge(self.begin(model))

    @property
    def point(self) -> int:
        """The device's point now, for a `begin` that comes later."""
        return self._device.point

    def begin(self, model: object, at: int | None = None) -> int:
        """The operation that leads to `model` is about to be issued, or was issued at point `at` (one that may be refused
        leads nowhere, and is known only afterwards). Returns the model's number."""
        with self._lock:
            self.promise.models.append(model)
            self.promise.begun.append(self._device.point if at is None else at)
            return len(self.promise.models) - 1

    def acknowledge(self, number: int) -> None:
        """The engine said that model `number`, and so every one before it, is durable."""
        with self._lock:
            acknowledged = self.promise.acknowledged
            if not acknowledged or number > acknowledged[-1][1]:
                acknowledged.append((self._device.point, number))


Workload = Callable[[Device, History], None]
Reopen = Callable[[Device], object]


@dataclass
class Report:
    """What an exploration did and found."""

    seed: int
    operations: int = 0
    points: int = 0  # crash points of which a state was tried
    points_in_all: int = 0  # one at the start, and one after each operation
    tried: int = 0
    distinct: int = 0
    nested: int = 0  # of the tried ones, crashes of a recovery
    counts: dict[Problem, int] = field(default_factory=lambda: dict.fromkeys(Problem, 0))
    findings: list[Finding] = field(default_factory=list)  # the first few, with their evidence
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not any(self.counts.values())

    @property
    def states_per_second(self) -> float:
        return self.tried / self.seconds if self.seconds else 0.0

    def add(self, finding: Finding) -> None:
        self.counts[finding.problem] += 1
        if len(self.findings) < FINDINGS_KEPT:
            self.findings.append(finding)

    def merge(self, other: Report) -> None:
        """Add what an exploration of another recording did and found."""
        for name in ("operations", "points", "points_in_all", "tried", "distinct", "nested", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for problem, count in other.counts.items():
            self.counts[problem] += count
        self.findings += other.findings[: FINDINGS_KEPT - len(self.findings)]

    def __str__(self) -> str:
        found = ", ".join(f"{count} {problem.value}" for problem, count in self.counts.items())
        return (
            f"{self.points} of {self.points_in_all} crash points, {self.tried} states tried "
            f"({self.nested} of them crashes of a recovery), "
            f"{self.distinct} distinct: {found}; {self.seconds:.1f} s, {self.states_per_second:.0f} states/s"
        )

    def as_json(self) -> dict[str, object]:
        return {
            "seed": self.seed,
            "operations": self.operations,
            "points": self.points,
            "points_in_all": self.points_in_all,
            "states_tried": self.tried,
            "states_distinct": self.distinct,
            "states_nested": self.nested,
            **{problem.value: count for problem, count in self.counts.items()},
            "findings": [str(finding) for finding in self.findings],
            "seconds": round(self.seconds, 3),
            "states_per_second": round(self.states_per_second, 1),
        }


@dataclass(frozen=True)
class Recording:
    """A workload's run: its device's log and what was promised meanwhile."""

    log: CrashLog
    promise: Promise


def record(
    workload: Workload,
    base: int | Buffer,
    seed: int,
    *,
    sector_size: int = 512,
    faults: Iterable[Fault] = (),
) -> Recording:
    """Run the workload once on a faulty device. A `Crashed` fault ends it; every other exception is the caller's."""
    device = FaultyDevice(base, seed, sector_size=sector_size, faults=faults)
    history = History(device)
    try:
        workload(device, history)
    except Crashed:
        if not device.crashed:
            raise
    if not history.promise.models:
        raise InvalidRequest("the workload never called history.start: there is nothing to compare with")
    return Recording(device.log, history.promise)


def explore(
    workload: Workload,
    reopen: Reopen,
    *,
    seed: int,
    size_bytes: int | None = None,
    base: Buffer | None = None,
    sector_size: int = 512,
    budget_states: int = 10_000,
    nested_states: int = 0,
    plan: Plan = DEFAULT_PLAN,
    faults: Iterable[Fault] = (),
    stop_at_first: bool = False,
    say: Callable[[str], None] = print,
) -> Report:
    """Run `workload` once, then reopen every crash state of it (at most `budget_states`) and judge what is there.

    `reopen` gets a device, recovers, and returns what it finds, comparable with the models. It releases what it opened,
    and raises when the state cannot be opened or is inconsistent; that counts as an error.
    `nested_states`: of this many states, spread over the run, the recovery is crashed in its turn; what that tries comes
    on top of the budget.
    `faults` strike the device that the workload runs on: a lost flush makes a canary, which must be found.

    The seed is said first and last; with the same workload it gives the same states.
    """
    say(f"{SUMMARY_PREFIX}seed {seed}")
    run = record(workload, _base(size_bytes, base), seed, sector_size=sector_size, faults=faults)
    exploration = Exploration(run, reopen, seed, plan)
    started = time.monotonic()
    stride = max(1, budget_states // nested_states) if nested_states else budget_states + 1
    for number, state in enumerate(exploration.states(budget_states), 1):
        found = exploration.check(state, nested=number % stride == 0)
        if found and stop_at_first:
            break
    report = exploration.report
    report.seconds = time.monotonic() - started
    for finding in report.findings:
        say(f"  {finding}")
    say(f"{SUMMARY_PREFIX}{report}; seed {seed}")
    return report


def _base(size_bytes: int | None, base: Buffer | None) -> int | Buffer:
    if (size_bytes is None) == (base is None):
        raise InvalidRequest("an exploration starts from a size or from an image, one of the two")
    return size_bytes if size_bytes is not None else base if base is not None else 0


class Exploration:
    """The states of one recording, checked one by one. Not thread-safe."""

    def __init__(self, run: Recording, reopen: Reopen, seed: int, plan: Plan = DEFAULT_PLAN) -> None:
        self._run = run
        self._reopen = reopen
        self._seed = seed
        self._plan = plan
        self._window = run.promise.windows()
        self._images: set[int] = set()
        self._judged: set[tuple[int, int, int]] = set()  # (image, acknowledged, begun)
        self._points: set[int] = set()
        operations = len(run.log.operations)
        self.report = Report(seed, operations, points_in_all=operations + 1 - run.promise.first_point)

    def states(self, budget: int, first_pass: int = 0) -> Iterator[CrashState]:
        """`budget` states: those of seeded samples of the points while one pass over all of them would exceed it, and
        in as many passes as it takes when one does not use it up. Ends early when a pass brings no state at all."""
        return islice(self._passes(max(1, budget // STATES_PER_POINT), first_pass), budget)

    def _passes(self, sample_points: int, pass_number: int) -> Iterator[CrashState]:
        log, first = self._run.log, self._run.promise.first_point
        points = list(range(first, len(log.operations) + 1))
        if len(points) > sample_points:
            Random(self._seed).shuffle(points)
        any_state = True
        while any_state:
            any_state = False
            for at in range(0, len(points), sample_points):
                for state in crash_states(
                    log,
                    self._seed,
                    plan=self._plan,
                    first=first,
                    points=frozenset(points[at : at + sample_points]),
                    in_full=self._run.promise.acknowledged_points(),
                    pass_number=pass_number,
                ):
                    any_state = True
                    yield state
            pass_number += 1

    def check(self, state: CrashState, *, nested: bool = False) -> list[Finding]:
        """Reopen one state and judge it; one that was judged by the same measure before is only counted."""
        acknowledged, begun = self._window(state.state_id.op)
        digest = state.image.digest()
        self.report.tried += 1
        self._points.add(state.state_id.op)
        self.report.points = len(self._points)
        self._images.add(digest)
        self.report.distinct = len(self._images)
        if (digest, acknowledged, begun) in self._judged:
            return []
        self._judged.add((digest, acknowledged, begun))
        device = state.device()
        findings = self._open_and_judge(device, str(state.state_id), acknowledged, begun)
        if nested and not findings:
            findings = self._crash_recovery(device.log, state, acknowledged, begun)
        return findings

    def _crash_recovery(self, log: CrashLog, state: CrashState, acknowledged: int, begun: int) -> list[Finding]:
        """Recovery writes too: stop it everywhere. What was promised before it still holds."""
        findings = list[Finding]()
        for inner in crash_states(log, self._seed, plan=NESTED_PLAN):
            self.report.tried += 1
            self.report.nested += 1
            digest = inner.image.digest()
            if (digest, acknowledged, begun) not in self._judged:
                self._judged.add((digest, acknowledged, begun))
                self._images.add(digest)
                name = f"{state.state_id}{IN_RECOVERY}{inner.state_id}"
                findings += self._open_and_judge(inner.device(), name, acknowledged, begun)
        self.report.distinct = len(self._images)
        return findings

    def _open_and_judge(self, device: FaultyDevice, state: str, acknowledged: int, begun: int) -> list[Finding]:
        judgement: Judgement
        try:
            found = self._reopen(device)
        except Exception as error:  # whatever an engine raises on a crash state is a finding, and is reported as one
            judgement = [(Problem.ERROR, f"{type(error).__name__}: {error}")]
        else:
            judgement = judge(found, self._run.promise.models, acknowledged, begun)
        findings = [Finding(state, problem, detail) for problem, detail in judgement]
        for finding in findings:
            self.report.add(finding)
        return findings
