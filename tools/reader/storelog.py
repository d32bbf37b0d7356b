"""Transactions of the store's log: docs/format/store-log.md."""

from __future__ import annotations

from typing import Final, NamedTuple

from mdstore.tools.reader.packed import Value, decode
from mdstore.tools.reader.problems import Damage

ENTRY_TYPE: Final = 1
VERSION: Final = 1

# opcode: (name, operands); b: bytes, n: number, o: bytes or nil, B: array of bytes, P: of [key, value], R: of [block, blocks]
OPERATIONS: Final = {
    1: ("NOOP", ""),
    2: ("CREATE_COLLECTION", "b"),
    3: ("REMOVE_COLLECTION", "b"),
    4: ("SPLIT", "bnnb"),
    5: ("MERGE", "bb"),
    10: ("CREATE", "bb"),
    11: ("TOUCH", "bb"),
    12: ("WRITE", "bbnb"),
    13: ("ZERO", "bbnn"),
    14: ("TRUNCATE", "bbn"),
    15: ("REMOVE", "bb"),
    16: ("SETATTR", "bbbb"),
    17: ("RMATTR", "bbb"),
    18: ("CLONE", "bbb"),
    19: ("CLONE_RANGE", "bbbnnn"),
    20: ("RENAME", "bbbb"),
    21: ("ALLOC_HINT", "bbnnn"),
    22: ("WRITE_MAPPED", "bbnRb"),
    23: ("REVISION", "n"),
    24: ("REMOVE_REVISION", "bbn"),
    25: ("TRIM_REVISIONS", "bbn"),
    30: ("MAP_SET", "bbP"),
    31: ("MAP_REMOVE", "bbB"),
    32: ("MAP_REMOVE_RANGE", "bboo"),
    33: ("MAP_CLEAR", "bb"),
    34: ("MAP_SET_HEADER", "bbb"),
    40: ("SET_FLOOR", "nbbn"),
}


class Operation(NamedTuple):
    """One operation: its name and its operands, types checked."""

    name: str
    operands: tuple[Value, ...]


class LoggedTransaction(NamedTuple):
    """One entry of the store's log."""

    epoch: int | None
    operations: list[Operation]


def decode_transaction(payload: bytes) -> LoggedTransaction:
    """An entry's payload. Damage (`log-entry`)."""
    value = decode(payload, "log-entry")
    operations = value[2] if isinstance(value, list) and len(value) == 3 else None
    if not isinstance(value, list) or not isinstance(operations, list):
        raise Damage("log-entry", "log entry", "an array of version, epoch and operations", type(value).__name__)
    version, epoch = value[0], value[1]
    if version != VERSION:
        raise Damage("log-entry", "log entry version", VERSION, version)
    if epoch is not None and not _is_number(epoch):
        raise Damage("log-entry", "log entry epoch", "a number or nil", epoch)
    assert epoch is None or isinstance(epoch, int)
    return LoggedTransaction(epoch, [_operation(item) for item in operations])


def _operation(item: Value) -> Operation:
    if not isinstance(item, list) or not item or not isinstance(item[0], int) or item[0] not in OPERATIONS:
        raise Damage("log-entry", "log operation", "an array that begins with a known opcode", item)
    name, shape = OPERATIONS[item[0]]
    operands = item[1:]
    if len(operands) != len(shape):
        raise Damage("log-entry", f"operands of {name}", len(shape), len(operands))
    for letter, operand in zip(shape, operands, strict=True):
        if not _fits(letter, operand):
            raise Damage("log-entry", f"operand of {name}", _WORDS[letter], operand)
    if name == "WRITE_MAPPED":
        _check_mapped(operands)
    return Operation(name, tuple(operands))


_WORDS: Final = {
    "b": "bytes",
    "n": "an unsigned number",
    "o": "bytes or nil",
    "B": "an array of bytes",
    "P": "an array of pairs of bytes",
    "R": "an array of pairs of numbers",
}


def _fits(letter: str, operand: Value) -> bool:
    if letter == "b":
        return isinstance(operand, bytes)
    if letter == "n":
        return _is_number(operand)
    if letter == "o":
        return operand is None or isinstance(operand, bytes)
    if not isinstance(operand, list):
        return False
    return all(_fits_item(letter, item) for item in operand)


def _fits_item(letter: str, item: Value) -> bool:
    if letter == "B":
        return isinstance(item, bytes)
    part = "b" if letter == "P" else "n"
    return isinstance(item, list) and len(item) == 2 and _fits(part, item[0]) and _fits(part, item[1])


def _is_number(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_mapped(operands: list[Value]) -> None:
    runs, checksums = operands[3], operands[4]
    assert isinstance(runs, list)
    assert isinstance(checksums, bytes)
    blocks = sum(run[1] for run in runs)  # type: ignore[index,misc]
    if len(checksums) != 4 * blocks:
        raise Damage("log-entry", "checksums of WRITE_MAPPED", 4 * blocks, len(checksums))
