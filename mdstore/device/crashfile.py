"""A crash log in a file: what a failing exploration leaves behind, so that the very states can be built and judged again.

The format is JSON lines, see docs/format/crash-log.md. Threads make a second run of a workload differ from the first; its
recorded log does not.
"""

from __future__ import annotations

import binascii
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from crc32c import crc32c

from mdstore.device.crashlog import CrashLog, Flush, Operation, Resize, Rot, Write
from mdstore.device.images import IMAGE_PAGE, PagedImage
from mdstore.device.models import Promise, decode_promise, encode_promise
from mdstore.errors import DamagedFile, UnsupportedFormat

FORMAT: Final = "mdstore crash log"
VERSION: Final = 2
VERSIONS: Final = (1, 2)  # that can be read; version 1 has no promise
_BEGINS: Final = b'{"format":"mdstore crash log"'
SIZE_MAX: Final = 1 << 40  # bytes of the device described; a damaged number must not ask for all memory


@dataclass
class CrashFile:
    """A log, and what is known about it: `origin` (workload, seed, options: whatever replays need), the states in which
    something was wrong, and what had been promised at each point (no models where the file says nothing of that)."""

    log: CrashLog
    origin: dict[str, Any] = field(default_factory=dict)
    states: list[str] = field(default_factory=list)
    promise: Promise = field(default_factory=Promise)


def save_crash_file(path: str | os.PathLike[str], crash: CrashFile) -> None:
    """Write the file anew. Not flushed: it is evidence, not data. OSError; InvalidRequest, with nothing written, for models
    of a type that the format does not know."""
    lines = [*_encode(crash), *encode_promise(crash.promise)]
    with open(path, "w", encoding="ascii") as stream:
        checksum = 0
        for line in lines:
            text = json.dumps(line, separators=(",", ":")) + "\n"
            checksum = crc32c(text.encode(), checksum)
            stream.write(text)
        stream.write(f'{{"end":{checksum}}}\n')


def load_crash_file(path: str | os.PathLike[str]) -> CrashFile:
    """Read a file back. `DamagedFile` for one that is damaged or cut short, `UnsupportedFormat` for another version,
    OSError."""
    with open(path, "rb") as stream:
        start = stream.read(len(_BEGINS))
        if start != _BEGINS:
            raise DamagedFile("crash log", str(path), f"a file that begins with {_BEGINS.decode()}", start)
        content = start + stream.read()
    body, _, last = content.rstrip(b"\n").rpartition(b"\n")
    try:
        found = json.loads(last)["end"]
        lines = [json.loads(line) for line in body.split(b"\n")]
        header = lines[0]
        version = header["version"] if header["format"] == FORMAT else None
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise DamagedFile("crash log", str(path), "JSON lines and an end", str(error)) from None
    if version not in VERSIONS:
        raise UnsupportedFormat(f"{path}: crash log of version {version!r}, this is version {VERSION}")
    expected = crc32c(body + b"\n")
    if found != expected:
        raise DamagedFile("crash log", str(path), f"checksum {expected}", f"{found}")
    try:
        return _decode(header, lines[1:])
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise DamagedFile("crash log", str(path), "lines of the format", repr(error)) from None


def _encode(crash: CrashFile) -> Iterator[Mapping[str, Any]]:
    log = crash.log
    yield {
        "format": FORMAT,
        "version": VERSION,
        "size_bytes": log.base.size_bytes,
        "sector_size": log.sector_size,
        "origin": crash.origin,
        "states": crash.states,
        "first_point": crash.promise.first_point,
    }
    for index, page in log.base.changed_pages():
        yield {"base": index * IMAGE_PAGE, "data": _text(page.rstrip(b"\0"))}
    for operation in log.operations:
        yield _encode_operation(operation)


def _encode_operation(operation: Operation) -> Mapping[str, Any]:
    if isinstance(operation, Flush):
        return {"flush": True}
    if isinstance(operation, Resize):
        return {"resize": operation.size_bytes}
    return {"write" if isinstance(operation, Write) else "rot": operation.offset, "data": _text(operation.data)}


def _text(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def _decode(header: Mapping[str, Any], lines: Iterable[Mapping[str, Any]]) -> CrashFile:
    size_bytes = _bounded(header["size_bytes"], SIZE_MAX)
    log = CrashLog(PagedImage(size_bytes), _bounded(header["sector_size"], SIZE_MAX) or _refuse("sector size 0"))
    promised: list[Mapping[str, Any]] = []
    for line in lines:
        if "model" in line or "acknowledged" in line:
            promised.append(line)
        elif "base" in line:
            offset, data = _place(line, "base", size_bytes)
            log.base.write(offset, data)
        else:
            operation = _decode_operation(line, size_bytes)
            size_bytes = operation.size_bytes if isinstance(operation, Resize) else size_bytes
            log.operations.append(operation)
    promise = decode_promise(_bounded(header.get("first_point", 0), len(log.operations)), promised)
    return CrashFile(log, dict(header["origin"]), list(map(str, header["states"])), promise)


def _decode_operation(line: Mapping[str, Any], size_bytes: int) -> Operation:
    if "flush" in line:
        return Flush()
    if "resize" in line:
        wanted = _bounded(line["resize"], SIZE_MAX)
        return Resize(wanted) if wanted >= size_bytes else _refuse("shrinks")
    if "write" in line:
        return Write(*_place(line, "write", size_bytes))
    return Rot(*_place(line, "rot", size_bytes))


def _place(line: Mapping[str, Any], key: str, size_bytes: int) -> tuple[int, bytes]:
    data = binascii.a2b_base64(line["data"], strict_mode=True)
    return _bounded(line[key], size_bytes - len(data)), data


def _bounded(number: object, maximum: int) -> int:
    return number if isinstance(number, int) and 0 <= number <= maximum else _refuse(f"{number!r} over {maximum}")


def _refuse(reason: str) -> Any:
    raise ValueError(reason)
