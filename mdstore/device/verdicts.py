"""What a recovered state is held against: the models a crash may leave, and the names for what may be wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

_ABSENT: Final = object()
SHOWN_KEYS: Final = 5


class Problem(Enum):
    """What a crash did to the data."""

    LOST = "lost"  # something acknowledged is gone, or older than it was when it was acknowledged
    RESURRECTED = "resurrected"  # something whose removal was acknowledged is back
    TORN = "torn"  # a value, or a mixture of values, that never was
    ERROR = "error"  # the engine could not open, or could not read what it holds


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong with one state; `detail` is the evidence."""

    state: str
    problem: Problem
    detail: str

    def __str__(self) -> str:
        return f"{self.problem.value}: {self.detail} [{self.state}]"


Judgement = list[tuple[Problem, str]]


def judge(found: object, models: Sequence[object], acknowledged: int, begun: int) -> Judgement:
    """Compare what was recovered with the models that are allowed: `models[acknowledged]` to `models[begun]`.

    Any of them, whole, is right. Mappings are compared key by key to say what is wrong; of other models only equality
    is used.
    """
    allowed = models[acknowledged : begun + 1]
    if any(found == model for model in allowed):
        return []
    if isinstance(found, Mapping) and all(isinstance(model, Mapping) for model in models):
        return _judge_mapping(found, models, acknowledged, begun)  # type: ignore[arg-type]  # checked just above
    if any(found == model for model in models[:acknowledged]):
        age = max(i for i in range(acknowledged) if models[i] == found)
        return [(Problem.LOST, f"model {age} came back, {acknowledged} was acknowledged")]
    return [(Problem.TORN, f"what was recovered is no model between {acknowledged} and {begun}")]


def _judge_mapping(
    found: Mapping[object, object], models: Sequence[Mapping[object, object]], acknowledged: int, begun: int
) -> Judgement:
    allowed = models[acknowledged : begun + 1]
    wrong: dict[Problem, list[object]] = {}
    for key in set(found).union(*allowed):
        problem = _judge_key(key, found, allowed, models[:acknowledged])
        if problem is not None:
            wrong.setdefault(problem, []).append(key)
    if not wrong:
        return [(Problem.TORN, f"every value is right, together they were never (models {acknowledged} to {begun})")]
    return [(problem, _name_keys(keys)) for problem, keys in wrong.items()]


def _judge_key(
    key: object,
    found: Mapping[object, object],
    allowed: Sequence[Mapping[object, object]],
    older: Sequence[Mapping[object, object]],
) -> Problem | None:
    value = found.get(key, _ABSENT)
    rightful = [model.get(key, _ABSENT) for model in allowed]
    if value in rightful:
        return None
    if value is _ABSENT:
        return Problem.LOST
    was_there_before = any(model.get(key, _ABSENT) == value for model in older)
    if all(right is _ABSENT for right in rightful):
        return Problem.RESURRECTED if was_there_before else Problem.TORN
    return Problem.LOST if was_there_before else Problem.TORN


def _name_keys(keys: list[object]) -> str:
    shown = ", ".join(sorted(map(repr, keys))[:SHOWN_KEYS])
    return f"{len(keys)} of its keys: {shown}" + (" ..." if len(keys) > SHOWN_KEYS else "")
