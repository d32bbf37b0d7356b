"""MessagePack, decoding only: the subset that the format pages use (nil, booleans, integers, floats, text, bytes, arrays, maps).

Every length is checked before anything is made from it; nesting is bounded; bytes left over are damage.
"""

from __future__ import annotations

import struct
from typing import Final, TypeAlias

from mdstore.tools.reader.problems import Damage

Value: TypeAlias = "bool | int | float | str | bytes | list[Value] | dict[Value, Value] | None"

DEPTH_MAX: Final = 32

_INTEGERS: Final = {
    0xCC: struct.Struct(">B"),
    0xCD: struct.Struct(">H"),
    0xCE: struct.Struct(">I"),
    0xCF: struct.Struct(">Q"),
    0xD0: struct.Struct(">b"),
    0xD1: struct.Struct(">h"),
    0xD2: struct.Struct(">i"),
    0xD3: struct.Struct(">q"),
}
_FLOATS: Final = {0xCA: struct.Struct(">f"), 0xCB: struct.Struct(">d")}
_LENGTHS: Final = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4}
_CONSTANTS: Final = {0xC0: None, 0xC2: False, 0xC3: True}


def decode(data: bytes, code: str) -> Value:
    """The one value that `data` is. Damage of kind `code` when it is anything else."""
    reader = _Reader(data, code)
    value = reader.value(0)
    if reader.at != len(data):
        raise Damage(code, "MessagePack value with bytes after its end", reader.at, len(data))
    return value


class _Reader:
    def __init__(self, data: bytes, code: str) -> None:
        self.data = data
        self.at = 0
        self.code = code

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise Damage(self.code, "MessagePack value cut short", f"{count} bytes", f"{len(self.data) - self.at}")
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def value(self, depth: int) -> Value:
        tag = self.take(1)[0]
        if tag < 0x80:
            return tag
        if tag >= 0xE0:
            return tag - 0x100
        if tag in _CONSTANTS:
            return _CONSTANTS[tag]
        for numbers in (_INTEGERS, _FLOATS):
            if tag in numbers:
                number: int | float = numbers[tag].unpack(self.take(numbers[tag].size))[0]
                return number
        return self._sized(tag, depth)

    def _sized(self, tag: int, depth: int) -> Value:
        """Text, bytes, arrays and maps: what begins with a length."""
        if tag < 0x90:
            return self._map(tag & 0x0F, depth)
        if tag < 0xA0:
            return self._array(tag & 0x0F, depth)
        if tag < 0xC0:
            return self._text(tag & 0x1F)
        if tag not in _LENGTHS:
            raise Damage(self.code, "MessagePack tag", "one the format uses", f"{tag:#x}")
        length = int.from_bytes(self.take(_LENGTHS[tag]), "big")
        if tag <= 0xC6:
            return self.take(length)
        if tag <= 0xDB:
            return self._text(length)
        return self._array(length, depth) if tag <= 0xDD else self._map(length, depth)

    def _text(self, length: int) -> str:
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError as error:
            raise Damage(self.code, "MessagePack text", "UTF-8", error.reason) from error

    def _array(self, count: int, depth: int) -> list[Value]:
        self._check_count(count, depth)
        return [self.value(depth + 1) for _ in range(count)]

    def _map(self, count: int, depth: int) -> dict[Value, Value]:
        self._check_count(2 * count, depth)
        result: dict[Value, Value] = {}
        for _ in range(count):
            key = self.value(depth + 1)
            if isinstance(key, list | dict):
                raise Damage(self.code, "MessagePack map key", "a plain value", type(key).__name__)
            result[key] = self.value(depth + 1)
        return result

    def _check_count(self, count: int, depth: int) -> None:
        if depth >= DEPTH_MAX:
            raise Damage(self.code, "MessagePack nesting", f"at most {DEPTH_MAX}", depth + 1)
        if count > len(self.data) - self.at:
            raise Damage(self.code, "MessagePack count", f"at most {len(self.data) - self.at}", count)
