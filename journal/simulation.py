"""Media that remember what was done to them, so that a test can stop anywhere and look at what a crash may leave.

`CrashRegion` is a device range for `RingMedium`, `CrashObjects` an object store for `StripedMedium`. Both keep the list of
operations since they were made; `images` builds the states that a crash after the first `count` of them may leave, given
that only flushed operations are certain. Everything random comes from the `random.Random` handed in.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from journal.errors import JournalFenced
from journal.medium import Buffer

SECTOR = 512
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing done to a medium. `kind` is write, truncate, remove, flush; or, seen by hooks only, read, list, floor."""

    kind: str
    name: str = ""
    offset: int = 0
    data: bytes = b""


Hook = Callable[[Operation], None]


def crash_subsets(
    pending: list[Operation], rng: random.Random, extra: int = 4, every_up_to: int = 3
) -> Iterator[list[Operation]]:
    """Which of the unflushed operations survive: every subset where there are few; else none, all, every prefix, all but one.

    And `extra` ones at random, in which writes are torn at sectors too.
    """
    if len(pending) <= every_up_to:
        for bits in range(1 << len(pending)):
            yield [operation for index, operation in enumerate(pending) if bits >> index & 1]
    else:
        for length in range(len(pending) + 1):
            yield pending[:length]
        for index in range(len(pending) - 1):
            yield pending[:index] + pending[index + 1 :]
    for _ in range(extra if pending else 0):
        kept = [operation for operation in pending if rng.random() < 0.6]
        yield [part for operation in kept for part in _torn(operation, rng)]


def _torn(operation: Operation, rng: random.Random) -> list[Operation]:
    """A write in pieces of a sector, some of them lost; anything else as it is."""
    if operation.kind != "write" or rng.random() < 0.3:
        return [operation]
    parts, begin, end = [], operation.offset, operation.offset + len(operation.data)
    while begin < end:
        cut = min(end, (begin // SECTOR + 1) * SECTOR)
        if rng.random() < 0.6:
            data = operation.data[begin - operation.offset : cut - operation.offset]
            parts.append(Operation("write", operation.name, begin, data))
        begin = cut
    return parts


@dataclass
class CrashRegion:
    """A region of `size_bytes`. `hook` sees every operation before it happens and may raise to make it fail."""

    size_bytes: int
    content: bytearray = field(default_factory=bytearray)
    operations: list[Operation] = field(default_factory=list)
    hook: Hook | None = None

    def __post_init__(self) -> None:
        self.content = self.content or bytearray(self.size_bytes)
        self._initial = bytes(self.content)

    def read(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= self.size_bytes, "a read outside the region"
        return bytes(self.content[offset : offset + length])

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        data = b"".join(buffers)
        assert 0 <= offset <= offset + len(data) <= self.size_bytes, "a write outside the region"
        self._do(Operation("write", "", offset, data))
        self.content[offset : offset + len(data)] = data

    def flush(self) -> None:
        self._do(Operation("flush"))

    def _do(self, operation: Operation) -> None:
        if self.hook is not None:
            self.hook(operation)
        self.operations.append(operation)

    def images(self, count: int, rng: random.Random) -> Iterator[CrashRegion]:
        """Regions as a crash after the first `count` operations may leave them."""
        durable, pending = split_at_flush(self.operations[:count])
        base = bytearray(self._initial)
        _apply_writes(base, durable)
        for subset in crash_subsets(pending, rng):
            content = bytearray(base)
            _apply_writes(content, subset)
            yield CrashRegion(self.size_bytes, content)


def split_at_flush(operations: list[Operation]) -> tuple[list[Operation], list[Operation]]:
    """(operations up to the last flush, operations after it)"""
    flushes = [index for index, operation in enumerate(operations) if operation.kind == "flush"]
    cut = flushes[-1] + 1 if flushes else 0
    return operations[:cut], operations[cut:]


def _apply_writes(content: bytearray, operations: Sequence[Operation]) -> None:
    for operation in operations:
        content[operation.offset : operation.offset + len(operation.data)] = operation.data


class CrashObjects:
    """An object store in memory with floors. `view(epoch)` gives the `ObjectIO` of one writer.

    Floors are durable at once, as the protocol asks. A write tagged with an epoch below the floor of its object raises
    `JournalFenced` when it arrives; one that arrived before the floor rose is visible, but its writer's flush fails.
    A flush makes everything visible durable, whoever wrote it.
    """

    def __init__(self, objects: dict[str, bytearray] | None = None, floors: dict[str, int] | None = None) -> None:
        self.objects = objects or {}
        self.floors = floors or {}  # by name prefix; a whole name is the longest prefix
        self.operations: list[Operation] = []
        self._initial = {name: bytes(data) for name, data in self.objects.items()}

    def view(self, epoch: int = 0, hook: Hook | None = None) -> ObjectsView:
        return ObjectsView(self, epoch, hook)

    def floor_of(self, name: str) -> int:
        return max((floor for prefix, floor in self.floors.items() if name.startswith(prefix)), default=0)

    def images(self, count: int, rng: random.Random, every_up_to: int = 3) -> Iterator[CrashObjects]:
        """Stores as a crash after the first `count` operations may leave them."""
        durable, pending = split_at_flush(self.operations[:count])
        for subset in crash_subsets(pending, rng, every_up_to=every_up_to):
            objects = {name: bytearray(data) for name, data in self._initial.items()}
            for operation in durable + subset:
                apply_operation(objects, operation)
            yield CrashObjects(objects, dict(self.floors))


def apply_operation(objects: dict[str, bytearray], operation: Operation) -> None:
    """What one operation does to a store."""
    name, offset, data = operation.name, operation.offset, operation.data
    if operation.kind == "remove":
        objects.pop(name, None)
    elif operation.kind == "truncate" and name in objects:
        del objects[name][offset:]
    elif operation.kind == "write":
        content = objects.setdefault(name, bytearray())
        if offset > len(content):
            content.extend(bytes(offset - len(content)))
        content[offset : offset + len(data)] = data


class ObjectsView:
    """One writer's access to a `CrashObjects`."""

    def __init__(self, store: CrashObjects, epoch: int, hook: Hook | None) -> None:
        self.epoch = epoch
        self.hook = hook
        self.touched: set[str] = set()  # written and not flushed
        self.seen = 0  # a digest of every answer so far
        self._store = store

    def read(self, name: str, offset: int, length: int) -> bytes:
        self._see("read", name)
        return self._answer(self._peek(name, offset, length))

    def write(self, name: str, offset: int, buffers: Sequence[Buffer]) -> None:
        self._do(Operation("write", name, offset, b"".join(buffers)))

    def truncate(self, name: str, size: int) -> None:
        self._do(Operation("truncate", name, size))

    def remove(self, name: str) -> None:
        self._do(Operation("remove", name))

    def stat(self, name: str) -> int | None:
        self._see("read", name)
        data = self._store.objects.get(name)
        return self._answer(None if data is None else len(data))

    def list_names(self, prefix: str) -> list[str]:
        self._see("list", prefix)
        return self._answer(sorted(name for name in self._store.objects if name.startswith(prefix)))

    def flush(self) -> None:
        self._see("flush", "")
        for name in self.touched:
            self._check(name)
        self.touched.clear()
        self._store.operations.append(Operation("flush"))

    def set_floor(self, prefix: str, floor: int) -> None:
        self._see("floor", prefix)
        self._raise_floor(prefix, floor)

    def set_floor_and_read(self, name: str, floor: int, offset: int, length: int) -> bytes:
        self._see("floor", name)
        self._raise_floor(name, floor)
        return self._answer(self._peek(name, offset, length))

    def _answer(self, answer: Answer) -> Answer:
        self.seen = hash((self.seen, repr(answer)))
        return answer

    def _peek(self, name: str, offset: int, length: int) -> bytes:
        return bytes(self._store.objects.get(name, b"")[offset : offset + length])

    def _raise_floor(self, prefix: str, floor: int) -> None:
        if floor < self._store.floor_of(prefix):
            self._answer("fenced")
            raise JournalFenced(prefix, floor, self._store.floor_of(prefix))
        self._store.floors[prefix] = floor

    def _check(self, name: str) -> None:
        floor = self._store.floor_of(name)
        if self.epoch < floor:
            self._answer("fenced")
            raise JournalFenced(name, self.epoch, floor)

    def _see(self, kind: str, name: str) -> None:
        if self.hook is not None:
            self.hook(Operation(kind, name))

    def _do(self, operation: Operation) -> None:
        if self.hook is not None:
            self.hook(operation)
        self._check(operation.name)
        self.touched.add(operation.name)
        apply_operation(self._store.objects, operation)
        self._store.operations.append(operation)
