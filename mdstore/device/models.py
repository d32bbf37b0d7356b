"""What a workload promised, as JSON values: the models, and at which points of the log they were begun and acknowledged.

Together with the recorded log this makes a crash file complete: the very states can be built, and judged, without running
the workload again. A model that is a mapping is written as its difference from the mapping before it.
"""

from __future__ import annotations

import binascii
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mdstore.errors import InvalidRequest

_SIMPLE: Final = (str, int, bool, type(None))
_ABSENT: Final = object()


@dataclass
class Promise:
    """The models of a run in order. `begun[n]` is the point before model n's operation; `acknowledged` holds
    (point, model), both ascending; states count from `first_point` on."""

    first_point: int = 0
    models: list[object] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    acknowledged: list[tuple[int, int]] = field(default_factory=list)

    def windows(self) -> Callable[[int], tuple[int, int]]:
        """A function from a point to (newest acknowledged, newest begun) there."""
        points = [point for point, _ in self.acknowledged]
        return lambda point: (
            self.acknowledged[bisect_right(points, point) - 1][1],
            bisect_right(self.begun, point) - 1,
        )

    def acknowledged_points(self) -> frozenset[int]:
        return frozenset(point for point, _ in self.acknowledged)


def encode_promise(promise: Promise) -> Iterator[dict[str, Any]]:
    """JSON objects, one for each model and each acknowledgement. `InvalidRequest` for a model of a type without encoding."""
    before: object = {}
    for model, begun in zip(promise.models, promise.begun, strict=True):
        yield {"model": _difference(before, model), "begun": begun}
        before = model
    for point, number in promise.acknowledged:
        yield {"acknowledged": number, "point": point}


def decode_promise(first_point: int, lines: Iterable[Mapping[str, Any]]) -> Promise:
    """What `encode_promise` wrote. ValueError, KeyError or TypeError for anything else."""
    promise, before = Promise(first_point), object()
    for line in lines:
        if "model" in line:
            before = _applied(before if promise.models else {}, line["model"])
            promise.models.append(before)
            promise.begun.append(_natural(line["begun"]))
        else:
            promise.acknowledged.append((_natural(line["point"]), _natural(line["acknowledged"])))
    _check(promise)
    return promise


def _check(promise: Promise) -> None:
    points, numbers = [point for point, _ in promise.acknowledged], [number for _, number in promise.acknowledged]
    if promise.begun != sorted(promise.begun) or points != sorted(points) or numbers != sorted(numbers):
        raise ValueError("points and models that do not ascend")
    if promise.models and (not numbers or numbers[0] != 0 or numbers[-1] >= len(promise.models)):
        raise ValueError(f"acknowledgements of {len(promise.models)} models: {numbers[:1]}..{numbers[-1:]}")


def _difference(before: object, model: object) -> dict[str, Any]:
    if not isinstance(before, Mapping) or not isinstance(model, Mapping):
        return {"is": encode_value(model)}
    changed = [(key, value) for key, value in model.items() if before.get(key, _ABSENT) != value]
    return {
        "set": [[encode_value(key), encode_value(value)] for key, value in changed],
        "gone": [encode_value(key) for key in before if key not in model],
    }


def _applied(before: object, difference: Mapping[str, Any]) -> object:
    if "is" in difference:
        return decode_value(difference["is"])
    if not isinstance(before, Mapping):
        raise ValueError("a difference from what is no mapping")
    gone = {decode_value(key) for key in difference["gone"]}
    kept = {key: value for key, value in before.items() if key not in gone}
    return kept | {decode_value(key): decode_value(value) for key, value in difference["set"]}


def encode_value(value: object) -> Any:
    """Text, integers, true, false and None as they are; bytes, tuples, lists and mappings as an object of one key."""
    if isinstance(value, _SIMPLE):
        return value
    if isinstance(value, bytes):
        return {"bytes": binascii.b2a_base64(value, newline=False).decode("ascii")}
    if isinstance(value, tuple):
        return {"tuple": [encode_value(item) for item in value]}
    if isinstance(value, list):
        return {"list": [encode_value(item) for item in value]}
    if isinstance(value, Mapping):
        return {"map": [[encode_value(key), encode_value(item)] for key, item in value.items()]}
    raise InvalidRequest(
        f"a model holds a value of type {type(value).__name__}: crash files keep text, bytes, integers, tuples, lists, mappings"
    )


def decode_value(value: Any) -> Any:
    """What `encode_value` was given (mappings come back as dict). ValueError, TypeError for anything else."""
    if isinstance(value, _SIMPLE):
        return value
    ((kind, content),) = value.items() if isinstance(value, dict) else ((None, value),)
    if kind == "bytes":
        return binascii.a2b_base64(content, strict_mode=True)
    if kind == "tuple":
        return tuple(map(decode_value, content))
    if kind == "list":
        return list(map(decode_value, content))
    if kind == "map":
        return {decode_value(key): decode_value(item) for key, item in content}
    raise ValueError(f"no value: {value!r:.80}")


def _natural(number: object) -> int:
    if not isinstance(number, int) or number < 0:
        raise ValueError(f"{number!r} is no count")
    return number
