"""The lines of a dump: docs/format/dump.md."""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any, Final, NamedTuple, TypeVar

from mdstore.errors import DamagedFile, UnsupportedFormat
from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.floors import SCOPES, Floor
from mdstore.tools.reader.onode import NO_HINT, hint_of
from mdstore.tools.reader.stream import CollectionRecord, DataRecord, ObjectRecord, PairsRecord, Record

Result = TypeVar("Result")
FORMAT: Final = "mdstore dump"
VERSION: Final = 3
READ_VERSIONS: Final = (1, 2, 3)
U64_MAX: Final = (1 << 64) - 1
_PRINTABLE: Final = frozenset(range(32, 127))


class DumpHeader(NamedTuple):
    """The first line."""

    size_bytes: int
    block_size: int
    log_bytes: int = 0  # 0: a dump before version 3, which does not say


def encode_dump(header: DumpHeader, records: Iterable[Record]) -> Iterator[bytes]:
    """The lines, line feeds included."""
    line = _line({"format": FORMAT, "version": VERSION, **header._asdict()})
    yield line
    count, checksum = 1, crc32c(line)
    for record in records:
        line = _line(_encode(record))
        yield line
        count, checksum = count + 1, crc32c(line, checksum)
    yield _line({"end": count, "crc": checksum})


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def _encode(record: Record) -> dict[str, Any]:
    if isinstance(record, DataRecord):
        return {"data": record.offset, "bytes": _base64(record.data)}
    if isinstance(record, PairsRecord):
        return {"pairs": _encode_pairs(record.pairs)}
    if isinstance(record, Floor):
        names = {"collection": _encode_bytes(record.collection), "name": _encode_bytes(record.name)}
        return {"floor": record.floor, "scope": record.scope, **names}
    if isinstance(record, CollectionRecord):
        return {"collection": _encode_bytes(record.name)}
    assert record.like is None, "a dump says what an object holds, not whom it is like"
    return {
        **({"revision": record.kept_at} if record.kept_at else {}),
        "object": _encode_bytes(record.name), "size": record.size, "attributes": _encode_pairs(record.attributes),
        "map_header": _encode_bytes(record.map_header), "created_rev": record.created_rev,
        **({"hint": list(record.hint)} if record.hint != NO_HINT else {}),
    }  # fmt: skip


def _encode_bytes(value: bytes) -> str | dict[str, str]:
    return value.decode("ascii") if _PRINTABLE.issuperset(value) else {"b": _base64(value)}


def _encode_pairs(pairs: Iterable[tuple[bytes, bytes]]) -> list[list[str | dict[str, str]]]:
    return [[_encode_bytes(key), _encode_bytes(value)] for key, value in pairs]


def _base64(value: bytes) -> str:
    return binascii.b2a_base64(value, newline=False).decode("ascii")


# -- reading -----------------------------------------------------------------------------------------------------------


class DumpLines:
    """A dump that is read: the header at once, the records as they are asked for.

    The last record has been handed out before the checksum is known to be right: what was made of them counts only once the
    iteration has ended without DamagedFile.
    """

    def __init__(self, lines: Iterable[bytes], name: str) -> None:
        """`lines`: with their line feeds; `name`: of the source, for messages. DamagedFile, UnsupportedFormat."""
        self._lines = iter(lines)
        self._name = name
        self._count = 0
        self._checksum = 0
        first = self._next()
        if first.get("format") != FORMAT:
            raise DamagedFile("dump", name, f'a first line with format "{FORMAT}"', first.get("format"))
        version = first.get("version")
        if type(version) is not int or version not in READ_VERSIONS:  # True is 1, and 3.0 is 3
            known = f"this mdstore reads versions up to {VERSION}"
            raise UnsupportedFormat(f"{name}: dump of version {version!r}; {known}")
        self.header = self._checked(partial(_decode_header, first))

    def records(self) -> Iterator[Record]:
        """The records, in order; DamagedFile for a line that is none or comes where it may not, and for one that is not whole."""
        order = _Order()
        while True:
            before, count = self._checksum, self._count
            line = self._next()
            if "end" in line:
                break
            record = self._checked(partial(_decode, line))
            if not order.takes(record):
                raise self._damaged("lines in their order, each name once", record)
            yield record
        if (line.get("end"), line.get("crc")) != (count, before):
            raise self._damaged(f"end {count} and crc {before}", line)
        if next(self._lines, b""):
            raise self._damaged("nothing behind the last line", "more")

    def _next(self) -> dict[str, Any]:
        raw = next(self._lines, b"")
        self._count += 1
        if not raw.endswith(b"\n"):
            raise self._damaged("a line with a line feed, and a last one that says so", raw[:40] or "the end of the dump")
        self._checksum = crc32c(raw, self._checksum)
        value: object = self._checked(partial(json.loads, raw))
        if not isinstance(value, dict):
            raise self._damaged("an object", raw[:40])
        return value

    def _checked(self, action: Callable[[], Result]) -> Result:
        try:
            return action()
        except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
            found = "no JSON" if isinstance(error, json.JSONDecodeError) else repr(error)
            raise self._damaged("a line of the format", found) from None

    def _damaged(self, expected: object, found: object) -> DamagedFile:
        return DamagedFile("dump", f"{self._name} line {self._count}", expected, found)


def _decode_header(first: dict[str, Any]) -> DumpHeader:
    log_bytes = _natural(first["log_bytes"]) if first["version"] >= 3 else 0
    return DumpHeader(_natural(first["size_bytes"]), _natural(first["block_size"]), log_bytes)


def _decode(line: dict[str, Any]) -> Record:
    if "data" in line:
        return DataRecord(_natural(line["data"]), binascii.a2b_base64(line["bytes"], strict_mode=True))
    if "pairs" in line:
        return PairsRecord(_decode_pairs(line["pairs"]))
    if "object" in line:
        return ObjectRecord(
            _decode_bytes(line["object"]), _natural(line["size"]), _decode_pairs(line["attributes"]),
            _decode_bytes(line["map_header"]), _natural(line["created_rev"]), _natural(line.get("revision", 0)),
            hint=_decode_hint(line.get("hint", NO_HINT)),
        )  # fmt: skip
    if "floor" in line:
        return _decode_floor(line)
    return CollectionRecord(_decode_bytes(line["collection"]))


def _decode_hint(value: Any) -> tuple[int, int, int]:
    object_size, write_size, flags = map(_natural, value)
    hint = object_size, write_size, flags
    if hint_of(hint) != hint:
        raise ValueError(f"{hint!r} is no allocation hint")
    return hint


def _decode_floor(line: dict[str, Any]) -> Floor:
    floor = Floor(line["scope"], _decode_bytes(line["collection"]), _decode_bytes(line["name"]), _natural(line["floor"]))
    is_named = floor.scope in ("prefix", "object")
    if floor.scope not in SCOPES.values() or bool(floor.collection) == (floor.scope == "store") or (floor.name and not is_named):
        raise ValueError(f"{floor.scope!r} is no scope of those names")
    return floor


def _decode_bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode("ascii")
    return binascii.a2b_base64(value["b"], strict_mode=True)


def _decode_pairs(pairs: Any) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((_decode_bytes(key), _decode_bytes(value)) for key, value in pairs)


def _natural(number: Any) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= U64_MAX:
        raise ValueError(f"{number!r} is no size")
    return number


class _Order:
    """Where the reader of a dump is: which records may come next."""

    def __init__(self) -> None:
        self._collection: bytes | None = None
        self._object: tuple[bytes, int] | None = None
        self._data_end = 0
        self._pair: bytes | None = None
        self._floor: tuple[int, bytes, bytes] | None = None

    def takes(self, record: Record) -> bool:
        """Whether the record may come here; it has, then."""
        if isinstance(record, Floor):
            number = next(number for number, scope in SCOPES.items() if scope == record.scope)
            before, self._floor = self._floor, (number, record.collection, record.name)
            return before is None or before < self._floor
        if self._floor is not None:
            return False
        if isinstance(record, CollectionRecord):
            before_name, self._collection, self._object = self._collection, record.name, None
            return before_name is None or before_name < record.name
        if isinstance(record, ObjectRecord):
            return self._takes_object(record)
        return self._takes_data(record) if isinstance(record, DataRecord) else self._takes_pairs(record)

    def _takes_object(self, record: ObjectRecord) -> bool:
        before, self._object = self._object, (record.name, record.kept_at or U64_MAX + 1)
        self._data_end, self._pair = 0, None
        names = [name for name, _ in record.attributes]
        is_possible = not record.kept_at or record.created_rev < record.kept_at
        return is_possible and _rises(names) and (before is None or before < self._object)

    def _takes_data(self, record: DataRecord) -> bool:
        before, self._data_end = self._data_end, record.offset + len(record.data)
        return self._pair is None and before <= record.offset

    def _takes_pairs(self, record: PairsRecord) -> bool:
        keys = ([] if self._pair is None else [self._pair]) + [key for key, _ in record.pairs]
        self._pair = keys[-1] if keys else None
        return _rises(keys)


def _rises(names: list[bytes]) -> bool:
    return all(low < high for low, high in pairwise(names))
