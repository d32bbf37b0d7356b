"""What an engine must offer to be crashed: the seam by which other engines, ours and anyone's, are put to the test.

An adapter is a `Subject`; what it is asked to do is a `Script`. Two runners take both:

* `explore_subject`: a subject on a `Device`, every operation of the device a crash point;
* `kill.kill_loop`: a subject on a path, in real processes under SIGKILL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol, TypeVar

from mdstore.device.explore import History, Reopen, Report, Workload, explore
from mdstore.device.protocol import Device

Medium = TypeVar("Medium", contravariant=True)


class Session(Protocol):
    """An engine that is open."""

    def apply(self, operation: Any) -> None:
        """Do one operation of the script; may return before it is durable."""

    def acknowledged(self) -> int:
        """How many of the operations this session applied, counted from the first, the engine calls durable."""

    def dump(self) -> object:
        """Everything the engine holds, comparable with the script's models. Raises where it cannot be read."""

    def close(self) -> None:
        """Release the medium and every thread. Raises nothing for a session that was never used."""


class Subject(Protocol[Medium]):
    """An engine that can be opened on a medium: a `Device`, or a path for `kill_loop`."""

    def format(self, medium: Medium, /) -> Session:
        """Make an empty one. Durable on return."""

    def open(self, medium: Medium, /) -> Session:
        """Open, and so recover, what is there. Raises when it cannot."""


@dataclass(frozen=True)
class Script:
    """What the engine is asked to do, and a pure model of what that means.

    `step(model, operation)` returns the model after the operation; it never changes the one it was given.
    """

    operations: Sequence[Any]
    step: Callable[[Any, Any], object]
    empty: object

    def models(self, start: object | None = None) -> list[object]:
        """The model before the first operation and after each."""
        models = [self.empty if start is None else start]
        for operation in self.operations:
            models.append(self.step(models[-1], operation))
        return models


@dataclass(frozen=True, slots=True)
class Put:
    """Set a key."""

    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove a key, which may be absent."""

    key: bytes


def key_value_script(seed: int, count: int, *, keys: int = 20, value_bytes: int = 200, puts: float = 0.75) -> Script:
    """`count` puts and deletes of random keys, values of 0 to `value_bytes` bytes that occur only once."""
    random = Random(f"{seed}/key_value_script")
    operations = list[Put | Delete]()
    for number in range(count):
        key = b"key-%03d" % random.randrange(keys)
        value = b"%d:" % number + random.randbytes(random.randrange(value_bytes + 1))
        operations.append(Put(key, value) if random.random() < puts else Delete(key))
    return Script(operations, step_key_value, {})


def step_key_value(model: Mapping[bytes, bytes], operation: Put | Delete) -> dict[bytes, bytes]:
    """The model of `key_value_script`."""
    if isinstance(operation, Put):
        return {**model, operation.key: operation.value}
    return {key: value for key, value in model.items() if key != operation.key}


def workload_of(subject: Subject[Device], script: Script) -> Workload:
    """The script as a workload: format, apply each operation, note what is acknowledged after each, close."""

    def run(device: Device, history: History) -> None:
        session = subject.format(device)
        models = script.models()
        history.start(models[0])
        for operation, model in zip(script.operations, models[1:], strict=True):
            history.begin(model)
            session.apply(operation)
            history.acknowledge(session.acknowledged())
        session.close()

    return run


def reopen_of(subject: Subject[Device]) -> Reopen:
    """Open, dump, close."""

    def reopen(device: Device) -> object:
        session = subject.open(device)
        try:
            return session.dump()
        finally:
            session.close()

    return reopen


def explore_subject(subject: Subject[Device], script: Script, *, seed: int, size_bytes: int, **options: Any) -> Report:
    """`explore` for an adapter; `options` are those of `explore`."""
    return explore(workload_of(subject, script), reopen_of(subject), seed=seed, size_bytes=size_bytes, **options)
