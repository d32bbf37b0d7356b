"""What callers hand in, looked at once where it comes in: operands of transactions and arguments of queries, for every engine.

One rule. What has the wrong type is a TypeError; a value that no store can take is InvalidRequest (LimitExceeded: a size over its
limit). Either is raised before anything has changed, names the argument, and leaves transaction and store usable. A query
looks at all its arguments before it looks at the store (closed, failed, no such collection): at what is asked for first, then
collection, name, revision.

Numbers are whatever Python takes as an index (no float, no text), and come out as plain ints: what MessagePack makes of anything
else is not what the log's page says. Bytes are buffers, copied unless they are `bytes`: `bytes(5)` would be five zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import index
from sys import maxsize
from typing import Final, SupportsIndex

from mdstore.errors import InvalidRequest, LimitExceeded, show_number
from mdstore.limits import OBJECT_SIZE_MAX, REVISION_MAX

Name = bytes | str
Data = bytes | bytearray | memoryview
Callback = Callable[[BaseException | None], None]

U64_MAX: Final = (1 << 64) - 1


def number(what: str, given: SupportsIndex, most: int = U64_MAX, least: int = 0) -> int:
    """`given` as a plain int from `least` to `most`."""
    exact = given if type(given) is int else _index(what, given)
    if not least <= exact <= most:
        raise InvalidRequest(f"{what} {show_number(exact)} is not in {least}..{most}")
    return exact


def optional_number(what: str, given: SupportsIndex | None, most: int = U64_MAX, least: int = 0) -> int | None:
    """The same where there may be none."""
    return None if given is None else number(what, given, most, least)


def size(what: str, given: SupportsIndex) -> int:
    """A count of bytes, or an offset, of which only the sign is asked."""
    exact = given if type(given) is int else _index(what, given)
    if exact < 0:
        raise InvalidRequest(f"{what} {show_number(exact)} must not be negative")
    return exact


def byte_range(offset: SupportsIndex, length: SupportsIndex) -> tuple[int, int]:
    """Offset and length of bytes inside what an object can hold."""
    begin, count = size("offset", offset), size("length", length)
    if begin + count > OBJECT_SIZE_MAX:
        raise LimitExceeded("OBJECT_SIZE_MAX", begin + count, OBJECT_SIZE_MAX)
    return begin, count


def window(offset: SupportsIndex, length: SupportsIndex | None) -> tuple[int, int | None]:
    """What a read asks for (None: to the end). Beyond what an object can hold there is nothing, so it is cut there."""
    begin = min(size("offset", offset), OBJECT_SIZE_MAX)
    return begin, None if length is None else min(size("length", length), OBJECT_SIZE_MAX)


def revision(rev: SupportsIndex) -> int:
    """The number of a revision, or 0."""
    return number("revision", rev, REVISION_MAX)


def page_limit(limit: SupportsIndex | None) -> int | None:
    """How many names a listing may give (None: all)."""
    return None if limit is None else min(size("limit", limit), maxsize)


def frozen(what: str, data: Data) -> bytes:
    """The bytes of a buffer, as nobody else can change them."""
    return data if type(data) is bytes else _copied(what, data)


def many_frozen(what: str, given: Iterable[Data]) -> list[bytes]:
    """The same for each of several, which text and bytes are not."""
    if isinstance(given, (str, bytes, bytearray, memoryview)):
        raise TypeError(f"{what}: several of them are wanted, not {type(given).__name__}")
    return [item if type(item) is bytes else _copied(what, item) for item in given]


def bound(what: str, key: Data | None) -> bytes | None:
    """An end of a range of keys: any bytes, or None."""
    return key if key is None or type(key) is bytes else _copied(what, key)


def name_bytes(what: str, given: Name | Data) -> bytes:
    """A name of any length: text is taken as UTF-8."""
    if type(given) is bytes:
        return given
    return _encoded(what, given) if isinstance(given, str) else _copied(what, given)


def name_bound(what: str, given: Name | Data | None) -> bytes | None:
    """An end of a listing: any bytes or text, or None."""
    return None if given is None else name_bytes(what, given)


def limited_name(limit: str, given: Name | Data, most: int) -> bytes:
    """A name of 1 to `most` bytes; `limit` is what `mdstore.limits` calls that."""
    raw = given if type(given) is bytes else name_bytes("a name", given)
    if not raw:
        raise InvalidRequest(f"an empty name is not allowed ({limit} counts from 1)")
    if len(raw) > most:
        raise LimitExceeded(limit, len(raw), most)
    return raw


def check_callback(callback: Callback) -> Callback:
    """What is to be called when a commit is durable, in a thread that could tell nobody of a mistake."""
    if not callable(callback):
        raise TypeError(f"a callback is wanted, not {type(callback).__name__}")
    return callback


def _index(what: str, given: SupportsIndex) -> int:
    try:
        return index(given)
    except TypeError:
        raise TypeError(f"{what}: a whole number is wanted, not {type(given).__name__}") from None


def _copied(what: str, data: Data) -> bytes:
    try:
        return bytes(memoryview(data))
    except (TypeError, ValueError, BufferError):  # no buffer, or one that was released
        raise TypeError(f"{what}: bytes, or a buffer of them, are wanted, not {type(data).__name__}") from None


def _encoded(what: str, text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{what}: UTF-8 cannot say {text[error.start : error.end]!r}; give the bytes") from None
