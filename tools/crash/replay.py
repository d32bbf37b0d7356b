"""Replaying a failure: the recorded log gives the very states again, and the promises in the file judge them."""

from __future__ import annotations

from collections.abc import Iterator

from mdstore.device.crashfile import CrashFile
from mdstore.device.crashstates import CrashState, StateId, rebuild_state
from mdstore.device.explore import IN_RECOVERY, Reopen
from mdstore.device.verdicts import Finding, Problem, judge
from mdstore.errors import InvalidRequest


def replay(crash: CrashFile, reopen: Reopen, states: list[str]) -> Iterator[tuple[str, list[Finding]]]:
    """Each state, and what is wrong with it now (of a file without models: whether it opens).
    InvalidRequest for a state that the log does not have."""
    for name in states:
        state, point = _built(crash, reopen, name)
        yield name, _judged(crash, reopen, state, point, name)


def _built(crash: CrashFile, reopen: Reopen, name: str) -> tuple[CrashState, int]:
    """The state, and the point of the workload whose promises hold for it."""
    outer, _, inner = name.partition(IN_RECOVERY)
    point = StateId.parse(outer).op
    state = rebuild_state(crash.log, outer)
    if not inner:
        return state, point
    device = state.device()
    reopen(device)
    return rebuild_state(device.log, inner), point


def _judged(crash: CrashFile, reopen: Reopen, state: CrashState, point: int, name: str) -> list[Finding]:
    try:
        found = reopen(state.device())
    except Exception as error:  # whatever an engine raises here is what the replay shows
        return [Finding(name, Problem.ERROR, f"{type(error).__name__}: {error}")]
    if not crash.promise.models:
        return []
    if point < crash.promise.first_point:
        raise InvalidRequest(f"{name}: nothing was promised before point {crash.promise.first_point}")
    acknowledged, begun = crash.promise.windows()(point)
    judgement = judge(found, crash.promise.models, acknowledged, begun)
    return [Finding(name, problem, detail) for problem, detail in judgement]
