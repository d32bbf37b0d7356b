"""Reading a map around what is damaged: every record that can be read, whatever lies beside it.

A damaged page takes a range of keys with it, and nothing says where that ends. But whoever starts to read inside it meets the
same error, with the same evidence, and whoever starts behind it does not: so its end is looked for between a key that fails so
and one that does not, always at the shortest key in between, because what parts two pages is the shortest key that does.
Cost of each damaged page: some 20 to 60 looks at one record, a descent each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Protocol

from mdstore.errors import MdstoreError
from mdstore.limits import MAP_KEY_MAX
from mdstore.mds.core import UNREADABLE

Pair = tuple[bytes, bytes]
_BEHIND_ALL: Final = b"\xff" * (MAP_KEY_MAX + 1)


class Read(Protocol):
    """Records with start <= key < stop in order, or from the end; may raise at the call and at every step."""

    def __call__(self, start: bytes | None, stop: bytes | None, *, reverse: bool = False) -> Iterator[Pair]: ...


def read_around(read: Read, start: bytes | None, limit: int) -> tuple[list[Pair], MdstoreError | None]:
    """Up to `limit` records from `start` on, those that can be read; and the first error of those that cannot and lie before the
    last of them, or behind it where fewer are returned."""
    found: list[Pair] = []
    first: MdstoreError | None = None
    at = start
    while len(found) < limit:
        try:
            for pair in read(at, None):
                found.append(pair)
                at = pair[0] + b"\0"
                if len(found) == limit:
                    break
            break
        except UNREADABLE as error:
            first = first or error
            at = behind(read, at or b"", error)
            if at is None:
                break
    return found, first


def behind(read: Read, start: bytes, error: MdstoreError) -> bytes | None:
    """Reading from `start` on met `error` at once: the first key from which it goes on, or meets another one; None where there is
    none. Where reads fail only now and then it may be another one, but never `start` or before."""
    same = str(error)
    if _look(read, start, None, reverse=True) == same:
        return None
    low, high = _bounds(read, start, same)
    while low < high and (high == _BEHIND_ALL or _look(read, _just_before(high), None) != same):
        middle = _between(low, high)
        while middle is not None and (found := _look(read, middle, None)) == same:
            low, middle = middle, _between(middle, high)
        if middle is None:
            break
        high = middle
        if not isinstance(found, str):  # all from here to `found` is empty; what lies before that?
            before = _look(read, low, found, reverse=True)
            if before in (same, None):  # None: a moment later all of it reads
                return found
            high = before if isinstance(before, bytes) else high
    return None if high == _BEHIND_ALL else max(high, start + b"\0")


def _bounds(read: Read, start: bytes, same: str) -> tuple[bytes, bytes]:
    """A key that fails so; and one that does not, or lies behind all. Both have as many bytes in common with `start` as any key
    that does not."""
    low, high = start, _BEHIND_ALL
    first, last = 0, len(start)  # with that many bytes in common the key behind fails not, or does
    while first < last:
        size = (first + last + 1) // 2
        middle = _behind_all_with(start[:size])
        if _look(read, middle, None) == same:
            low, last = middle, size - 1
        else:
            high, first = middle, size
    return low, high


def _behind_all_with(prefix: bytes) -> bytes:
    """The first key behind all that begin so."""
    cut = prefix.rstrip(b"\xff")
    return cut[:-1] + bytes([cut[-1] + 1]) if cut else _BEHIND_ALL


def _look(read: Read, start: bytes, stop: bytes | None, *, reverse: bool = False) -> bytes | str | None:
    """The first key of the range, or what reading it fails with; None where it is empty."""
    try:
        return next((key for key, _ in read(start or None, stop, reverse=reverse)), None)
    except UNREADABLE as error:
        return str(error)


def _between(low: bytes, high: bytes) -> bytes | None:
    """A short key between two, nearer to the middle than to either where there is a choice; None where there is none."""
    if low >= high:
        return None
    at = next((i for i, (a, b) in enumerate(zip(low, high)) if a != b), min(len(low), len(high)))
    first, last = low[at] if at < len(low) else -1, high[at]
    if last - first > 1:
        return high[:at] + bytes([(first + last) // 2])
    if len(high) > at + 1:
        return high[: at + 1]
    if first < 0:
        return None
    at += 1
    while at < len(low) and low[at] == 0xFF:
        at += 1
    if at >= MAP_KEY_MAX:
        return None
    return low[:at] + bytes([((low[at] if at < len(low) else -1) + 0x100) // 2])


def _just_before(key: bytes) -> bytes:
    """The last key of any length a map takes before this one."""
    if key[-1] == 0:
        return key[:-1]
    return (key[:-1] + bytes([key[-1] - 1])).ljust(MAP_KEY_MAX, b"\xff")
