"""Every fault at every point: what an engine must do when its device fails, fills up, or lies.

Each case strikes one call of the device once, while the workload runs or while a crashed image is recovered. Then:

* nothing but typed errors may come out of the engine, and no wrong bytes;
* after an honest fault (EIO, ENOSPC, a short write: the device said so) what was acknowledged is there when the image is opened
  again, in every state a crash may leave;
* after a lie (a lost write or flush, a bit that flipped on its way to the medium) the engine may have lost data, but it hands
  out what was there at some moment, or refuses.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Final, get_args

from journal import JournalError
from mdstore.device.crashlog import CrashLog
from mdstore.device.crashstates import CrashState, Plan, crash_states
from mdstore.device.explore import History
from mdstore.device.faulty import ALLOWED_EFFECTS, Effect, Fault, FaultyDevice, OperationName
from mdstore.device.models import Promise
from mdstore.device.verdicts import Finding, Judgement, Problem, judge
from mdstore.errors import InvalidRequest, MdstoreError
from mdstore.tools.crash.verify import Inconsistent, Unsound
from mdstore.tools.crash.workloads import CrashWorkload

WORK: Final = "work"
RECOVERY: Final = "recovery"
CASES_AT_ONCE: Final = 10  # of one process; when that dies, it was one of these
CASE_SECONDS: Final = 30.0  # one that takes longer hangs
_PLAN: Final = Plan(drops=1, subsets=2, tears=1)  # of the last point of a run that a fault ended
_TYPED: Final = (MdstoreError, JournalError)


@dataclass(frozen=True, slots=True)
class Case:
    """One fault in one phase: while working, or while recovering what a crash in the middle of the work left."""

    phase: str
    fault: Fault

    def __str__(self) -> str:
        fault = self.fault
        return f"{self.phase}:{fault.operation}:{fault.nth}:{fault.effect.value}" + (":sticky" if fault.sticky else "")

    @classmethod
    def parse(cls, text: str) -> Case:
        """The case that `str` wrote. InvalidRequest for anything else."""
        parts = text.split(":")
        try:
            phase, operation, nth, effect, *rest = parts
            if phase not in (WORK, RECOVERY) or rest not in ([], ["sticky"]) or operation not in get_args(OperationName):
                raise ValueError(text)
            return cls(phase, Fault(operation, int(nth), Effect(effect), bool(rest)))  # type: ignore[arg-type]  # just checked
        except ValueError:
            raise InvalidRequest(f"no fault: {text!r} (wanted: work:write:17:EIO, recovery:read:3:flip)") from None


@dataclass
class FaultReport:
    """What the cases came to. `told`: the engine raised a typed error; `unnoticed`: it never knew, rightly or not;
    `refused`: an image, after a lie, that says it is damaged."""

    seed: int
    cases: int = 0
    states: int = 0  # images reopened
    told: Counter[str] = field(default_factory=Counter)  # by effect
    unnoticed: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    findings: list[Finding] = field(default_factory=list)

    def merge(self, other: FaultReport) -> None:
        """Add the other's cases."""
        self.cases += other.cases
        self.states += other.states
        self.told += other.told
        self.unnoticed += other.unnoticed
        self.refused += other.refused
        self.findings += other.findings

    def as_json(self) -> dict[str, object]:
        """Everything, keys stable."""
        return {
            "seed": self.seed, "cases": self.cases, "states": self.states, "told": dict(self.told),
            "unnoticed": dict(self.unnoticed), "refused": self.refused, "findings": [str(found) for found in self.findings],
        }  # fmt: skip


def fault_cases(chosen: CrashWorkload, seed: int, steps: int) -> list[Case]:
    """Every effect at every call that the workload, and a recovery from its middle, make. Runs both once.
    InvalidRequest for an engine that works on files."""
    if chosen.is_recorded:
        raise InvalidRequest("faults are injected into a device, and this engine works on files: explore or kill it")
    device, _ = _recorded(chosen, seed, steps)
    recovering = _middle(chosen, seed, device.log).device()
    chosen.reopen(recovering)
    return [*_cases_of(WORK, device), *_cases_of(RECOVERY, recovering)]


def _cases_of(phase: str, device: FaultyDevice) -> Iterator[Case]:
    for operation, effects in ALLOWED_EFFECTS.items():
        for nth in range(device.calls(operation)):
            for effect in sorted(effects - {Effect.CRASH, Effect.TOLD_ONCE}, key=lambda effect: effect.value):
                yield Case(phase, Fault(operation, nth, effect))
                if effect is Effect.EIO and operation in ("write", "flush"):
                    yield Case(phase, Fault(operation, nth, effect, sticky=True))


def some_cases(cases: list[Case], count: int, seed: int) -> list[Case]:
    """All of them for 0; else a seeded sample, in their order."""
    if count == 0 or count >= len(cases):
        return cases
    return [cases[i] for i in sorted(Random(f"{seed}/faults").sample(range(len(cases)), count))]


def run_cases(chosen: CrashWorkload, seed: int, steps: int, cases: list[Case], jobs: int = 1) -> Iterator[FaultReport]:
    """A report for every few cases, in order. In processes of their own: one that dies or hangs is a finding, and the last."""
    fork = multiprocessing.get_context("fork")  # somebody else's engine need not be picklable
    global _chosen
    _chosen = chosen
    with ProcessPoolExecutor(jobs, mp_context=fork) as pool:
        batches = [cases[at : at + CASES_AT_ONCE] for at in range(0, len(cases), CASES_AT_ONCE)]
        futures = [(batch, pool.submit(_run_batch, seed, steps, batch)) for batch in batches]
        for batch, future in futures:
            report = _outcome(batch, future, seed)
            yield report
            if report.findings and not report.cases:
                pool.shutdown(wait=False, cancel_futures=True)
                return


_chosen: CrashWorkload | None = None  # what forked processes work on; adapters cannot be sent to them


def _outcome(batch: list[Case], future: Future[FaultReport], seed: int) -> FaultReport:
    try:
        return future.result(CASE_SECONDS * len(batch) * 2)
    except BrokenProcessPool:
        what = "the process died in one of these cases"
    except TimeoutError:
        what = "the process hangs in one of these cases"
    return FaultReport(seed, findings=[Finding(f"{batch[0]} .. {batch[-1]}", Problem.ERROR, what)])


def _run_batch(seed: int, steps: int, cases: list[Case]) -> FaultReport:
    assert _chosen is not None, "set before the fork"
    report = FaultReport(seed)
    for case in cases:
        report.merge(run_case(_chosen, seed, steps, case))
    return report


# -- one case ----------------------------------------------------------------------------------------------------------


def run_case(chosen: CrashWorkload, seed: int, steps: int, case: Case) -> FaultReport:
    """Let the fault strike, and judge what comes of it."""
    report = FaultReport(seed, cases=1)
    judgement = (_strike_work if case.phase == WORK else _strike_recovery)(chosen, seed, steps, case.fault, report)
    report.findings = [Finding(str(case), problem, detail) for problem, detail in judgement]
    return report


def _strike_work(chosen: CrashWorkload, seed: int, steps: int, fault: Fault, report: FaultReport) -> Judgement:
    device, history = _prepared(chosen, seed, fault)
    is_lie = _is_lie(fault)
    try:
        chosen.workload(seed, steps)(device, history)
    except (*_TYPED, Unsound) as error:
        report.told[fault.effect.value] += 1
        may_be_seen = is_lie or fault.operation == "read"  # the checker reads too, and rightly reports what it met
        if isinstance(error, Unsound) and not may_be_seen:
            return [(Problem.ERROR, f"the checker says {error}")]
    except Inconsistent as error:
        return [(Problem.TORN, f"wrong answer: {error}")]
    except Exception as error:
        return [(Problem.ERROR, f"untyped {type(error).__name__}: {error}")]
    else:
        report.unnoticed[fault.effect.value] += 1
    promise = history.promise
    if not promise.models:
        return []  # it struck while the image was made: there is none
    return _judge_states(chosen, seed, device.log, promise, report, is_lie=is_lie)


def _judge_states(
    chosen: CrashWorkload, seed: int, log: CrashLog, promise: Promise, report: FaultReport, *, is_lie: bool
) -> Judgement:
    """What a crash after the last operation may leave."""
    last = len(log.operations)
    if last < promise.first_point:
        return []
    acknowledged, begun = promise.windows()(last)
    wrong: Judgement = []
    for state in crash_states(log, seed, plan=_PLAN, first=last):
        report.states += 1
        try:
            found = chosen.reopen(state.device())
        except (*_TYPED, Unsound) as error:
            report.refused += 1
            if not is_lie:
                wrong.append((Problem.ERROR, f"{state.state_id}: {type(error).__name__}: {error}"))
        except Exception as error:
            wrong.append((Problem.ERROR, f"{state.state_id}: untyped {type(error).__name__}: {error}"))
        else:
            oldest = 0 if is_lie else acknowledged
            wrong += [
                (problem, f"{state.state_id}: {detail}") for problem, detail in judge(found, promise.models, oldest, begun)
            ]
    return wrong


def _strike_recovery(chosen: CrashWorkload, seed: int, steps: int, fault: Fault, report: FaultReport) -> Judgement:
    """Recover a crashed image while the fault strikes; and once more without it."""
    device, promise = _recorded(chosen, seed, steps)
    state = _middle(chosen, seed, device.log)
    acknowledged, begun = promise.windows()(state.state_id.op)
    recovering = state.device()
    recovering.inject(fault)
    try:
        found = chosen.reopen(recovering)
    except (*_TYPED, Unsound):
        report.told[fault.effect.value] += 1
    except Exception as error:
        return [(Problem.ERROR, f"untyped {type(error).__name__}: {error}")]
    else:
        report.unnoticed[fault.effect.value] += 1
        wrong = judge(found, promise.models, acknowledged, begun)
        if wrong:
            return wrong
    last = len(recovering.log.operations)
    after = Promise(0, promise.models, [0] * (begun + 1), [(0, acknowledged)])
    after.models = promise.models[: begun + 1]
    return _judge_states(chosen, seed, recovering.log, after, report, is_lie=_is_lie(fault)) if last else []


def _is_lie(fault: Fault) -> bool:
    """Whether the medium may now hold something else than the engine was told."""
    return fault.effect is Effect.LOST or (fault.effect is Effect.FLIP and fault.operation == "write")


def _prepared(chosen: CrashWorkload, seed: int, fault: Fault | None) -> tuple[FaultyDevice, History]:
    device = FaultyDevice(chosen.size_bytes, seed, faults=[fault] if fault else [])
    return device, History(device)


@lru_cache(maxsize=1)
def _recorded(chosen: CrashWorkload, seed: int, steps: int) -> tuple[FaultyDevice, Promise]:
    """A run without faults; nobody changes what it returns."""
    device, history = _prepared(chosen, seed, None)
    chosen.workload(seed, steps)(device, history)
    return device, history.promise


def _middle(chosen: CrashWorkload, seed: int, log: CrashLog) -> CrashState:
    """A state in the middle of the run with much to recover: everything written, nothing flushed since."""
    points = range(len(log.operations) * 2 // 3, len(log.operations) + 1)
    for state in crash_states(log, seed, points=points):
        if state.state_id.kind == "all":
            return state
    raise InvalidRequest(f"workload {chosen.name} writes too little to be struck")
