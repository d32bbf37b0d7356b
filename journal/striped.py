"""A log striped over named objects (docs/format/journal.md, "Stripes").

Position `p` lies in block `p // stripe_unit`; blocks go round `stripe_count` objects until those are full, then to the
next set of objects. Object `n` of log `x` is named `x.%08x`; the head copies are `x.head0` and `x.head1`. The stream
begins one period in, so no entry sits at position 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from journal.errors import JournalError
from journal.head import COPIES, HEAD_SIZE
from journal.medium import Buffer, ObjectIO
from journal.pack import split_buffers

Piece = tuple[int, int, int]  # (object number, offset in it, bytes)


@dataclass(frozen=True, slots=True)
class Layout:
    """How positions map to objects. `object_size` is a multiple of `stripe_unit`; all in bytes."""

    stripe_unit: int = 1 << 20
    stripe_count: int = 1
    object_size: int = 1 << 22

    def __post_init__(self) -> None:
        if self.stripe_unit < 1 or self.stripe_count < 1 or self.object_size < self.stripe_unit:
            raise ValueError(f"impossible layout {self}")
        if self.object_size % self.stripe_unit:
            raise ValueError(f"object_size {self.object_size} is no multiple of stripe_unit {self.stripe_unit}")

    @property
    def period(self) -> int:
        """Bytes of one set of objects."""
        return self.object_size * self.stripe_count

    def pieces(self, position: int, length: int) -> Iterator[Piece]:
        """The ranges of objects that hold `[position, position + length)`, in stream order, neighbours merged."""
        number = offset = size = 0
        while length > 0:
            piece = self._piece(position, length)
            if size and piece[0] == number and piece[1] == offset + size:
                size += piece[2]
            else:
                if size:
                    yield number, offset, size
                number, offset, size = piece
            position += piece[2]
            length -= piece[2]
        if size:
            yield number, offset, size

    def _piece(self, position: int, length: int) -> Piece:
        block, inside = divmod(position, self.stripe_unit)
        stripe, column = divmod(block, self.stripe_count)
        object_set, row = divmod(stripe, self.object_size // self.stripe_unit)
        number = object_set * self.stripe_count + column
        return number, row * self.stripe_unit + inside, min(length, self.stripe_unit - inside)

    def position_of(self, number: int, offset: int) -> int:
        """The position of byte `offset` of object `number`."""
        object_set, column = divmod(number, self.stripe_count)
        row, inside = divmod(offset, self.stripe_unit)
        return object_set * self.period + (row * self.stripe_count + column) * self.stripe_unit + inside

    def size_below(self, number: int, position: int) -> int:
        """How many bytes of object `number` lie below `position`."""
        object_set, column = divmod(number, self.stripe_count)
        rest = min(max(position - object_set * self.period, 0), self.period)
        rows, inside = divmod(rest, self.stripe_unit * self.stripe_count)
        return rows * self.stripe_unit + min(max(inside - column * self.stripe_unit, 0), self.stripe_unit)


_UNREADABLE = b"unreadable"


class StripedMedium:
    """The log `name` over `objects`. Any thread may read; one writes."""

    capacity = None

    def __init__(
        self, objects: ObjectIO, name: str, layout: Layout | None = None, *, prezero_periods: int = 2
    ) -> None:
        self.name = name
        self.layout = layout or Layout()
        self.unit = self.layout.stripe_unit
        self.period = self.layout.period
        self.start = self.period
        self.prezero_periods = prezero_periods
        self._objects = objects
        self._lowest_set: int | None = None  # sets below are known to be gone

    @property
    def epoch(self) -> int:
        return self._objects.epoch

    def object_name(self, number: int) -> str:
        return f"{self.name}.{number:08x}"

    def head_name(self, slot: int) -> str:
        return f"{self.name}.head{slot}"

    def read(self, position: int, length: int) -> bytes:
        return self._read(position, length, None)

    def read_fenced(self, position: int, length: int, floor: int) -> bytes:
        return self._read(position, length, floor)

    def _read(self, position: int, length: int, floor: int | None) -> bytes:
        parts = []
        for number, offset, size in self.layout.pieces(position, length):
            name = self.object_name(number)
            if floor is None:
                data = self._objects.read(name, offset, size)
            else:
                data = self._objects.set_floor_and_read(name, floor, offset, size)
            parts.append(data if len(data) == size else data + bytes(size - len(data)))
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def write(self, position: int, buffers: Sequence[Buffer]) -> None:
        rest = list(buffers)
        pieces = list(self.layout.pieces(position, sum(map(len, buffers))))
        for number, offset, size in pieces[:-1]:
            now, rest = split_buffers(rest, size)
            self._objects.write(self.object_name(number), offset, now)
        if pieces:
            self._objects.write(self.object_name(pieces[-1][0]), pieces[-1][1], rest)

    def flush(self) -> None:
        self._objects.flush()

    def trim(self, before: int) -> None:
        first_kept = before // self.period
        if self._lowest_set is None:
            numbers = [number for number in self._numbers() if number // self.layout.stripe_count < first_kept]
        else:
            count = self.layout.stripe_count
            numbers = list(range(self._lowest_set * count, first_kept * count))
        for number in numbers:
            self._objects.remove(self.object_name(number))
        self._lowest_set = max(first_kept, self._lowest_set or 0)

    def truncate(self, position: int, dirty_end: int | None = None) -> None:
        for number in self._numbers():
            if number // self.layout.stripe_count >= position // self.period:
                self._cut(number, position)
        self.flush()

    def prezero(self, position: int, until: int) -> None:
        count = self.layout.stripe_count
        last_set = -(-until // self.period)
        for number in range(position // self.period * count, last_set * count):
            self._cut(number, position)

    def _cut(self, number: int, position: int) -> None:
        """Leave only what lies below `position` of object `number`."""
        size = self.layout.size_below(number, position)
        if size:
            self._objects.truncate(self.object_name(number), size)
        else:
            self._objects.remove(self.object_name(number))

    def reach(self, low: int) -> int:
        sets = {number // self.layout.stripe_count for number in self._numbers()}
        for object_set in sorted(sets, reverse=True):
            end = self._end_of_set(object_set)
            if end is not None:
                return max(low, end)
        return low

    def probe(self, low: int) -> int:
        end, object_set = low, low // self.period
        while (reached := self._end_of_set(object_set)) is not None:
            end = max(end, reached)
            object_set += 1
        return end

    def _end_of_set(self, object_set: int) -> int | None:
        """Behind the last byte of the set's objects; None when all of them are missing or empty."""
        count = self.layout.stripe_count
        ends = []
        for number in range(object_set * count, (object_set + 1) * count):
            size = self._objects.stat(self.object_name(number))
            if size:
                ends.append(self.layout.position_of(number, size - 1) + 1)
        return max(ends, default=None)

    def lowest(self) -> int:
        numbers = self._numbers()
        return min(numbers) // self.layout.stripe_count * self.period if numbers else self.start

    def read_heads(self) -> list[bytes]:
        """A copy that cannot be read is as good as a damaged one, as long as another one can. The error of the last otherwise."""
        copies: list[bytes] = []
        failures: list[Exception] = []
        for slot in range(COPIES):
            try:
                copies.append(self._objects.read(self.head_name(slot), 0, HEAD_SIZE))
            except JournalError:
                raise
            except Exception as error:
                failures.append(error)
                copies.append(_UNREADABLE)
        if len(failures) == COPIES:
            raise failures[-1]
        return copies

    def write_head(self, slot: int, data: bytes) -> None:
        self._objects.write(self.head_name(slot), 0, [data])

    def fence(self, floor: int) -> None:
        self._objects.set_floor(self.name + ".", floor)
        for slot in range(COPIES):
            self._objects.set_floor_and_read(self.head_name(slot), floor, 0, HEAD_SIZE)

    def missing(self, position: int, end: int) -> list[tuple[str, int]]:
        """Objects of `[position, end)` that are not there, each with the first position it would hold."""
        found: list[tuple[str, int]] = []
        for number, offset, _ in self.layout.pieces(position, end - position):
            name = self.object_name(number)
            if self._objects.stat(name) is None and (not found or found[-1][0] != name):
                found.append((name, self.layout.position_of(number, offset)))
        return sorted(set(found), key=lambda item: item[1])

    def erase(self) -> None:
        """Remove every object of the log, the heads last. Durable on return; running it again finishes it."""
        for number in self._numbers():
            self._objects.remove(self.object_name(number))
        self.flush()
        for slot in range(COPIES):
            self._objects.remove(self.head_name(slot))
        self.flush()

    def describe(self) -> dict[str, int]:
        layout = self.layout
        return {
            "unit": layout.stripe_unit, "stripe_count": layout.stripe_count, "object_size": layout.object_size,
        }  # fmt: skip

    def _numbers(self) -> list[int]:
        prefix = self.name + "."
        tails = (name[len(prefix) :] for name in self._objects.list_names(prefix))
        return [int(tail, 16) for tail in tails if len(tail) >= 8 and set(tail) <= set("0123456789abcdef")]
