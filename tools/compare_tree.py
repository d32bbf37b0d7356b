"""Comparing two directories of the machine: names, types, content, modes, times of change, owners, links, attributes.

For the demonstration and the tests: what came out of an image is held against what went in.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from mdstore.tools.output import shown, time_text, type_word
from mdstore.tools.source_tree import CHUNK, names_in, xattrs_of


@dataclass(slots=True)
class Compared:
    """How much was found equal or not."""

    entries: int = 0
    files: int = 0
    bytes: int = 0


def differences(
    left: bytes, right: bytes, *, exclude: tuple[bytes, ...] = (), owners: bool = False, compared: Compared | None = None
) -> Iterator[str]:
    """A line for everything in which `right` is not what `left` is; nothing when they are equal.

    exclude: patterns of names to leave out on both sides. owners: compare owner and group as well.
    """
    count = compared if compared is not None else Compared()
    twins: dict[tuple[int, int], tuple[int, int]] = {}  # a left file of several names: its right one
    pending = [b""]
    while pending:
        path = pending.pop()
        one, other = os.lstat(left + path), os.lstat(right + path)
        count.entries += 1
        yield from (f"{shown(path or b'/')}: {text}" for text in _entry(left + path, one, right + path, other, owners, count))
        if one.st_nlink > 1 and not stat.S_ISDIR(one.st_mode):
            found = twins.setdefault((one.st_dev, one.st_ino), (other.st_dev, other.st_ino))
            if found != (other.st_dev, other.st_ino):
                yield f"{shown(path)}: not a link to the same file as in the source"
        if stat.S_ISDIR(one.st_mode) and stat.S_ISDIR(other.st_mode):
            mine, theirs = set(names_in(left + path, exclude)), set(names_in(right + path, exclude))
            yield from (f"{shown(path + b'/' + name)}: missing" for name in sorted(mine - theirs))
            yield from (f"{shown(path + b'/' + name)}: was not in the source" for name in sorted(theirs - mine))
            pending += [path + b"/" + name for name in sorted(mine & theirs, reverse=True)]


def _entry(
    left: bytes, one: os.stat_result, right: bytes, other: os.stat_result, owners: bool, count: Compared
) -> Iterator[str]:
    if stat.S_IFMT(one.st_mode) != stat.S_IFMT(other.st_mode):
        yield f"is a {type_word(other.st_mode)}, was a {type_word(one.st_mode)}"
        return
    if one.st_mode != other.st_mode:
        yield f"mode is {stat.S_IMODE(other.st_mode):04o}, was {stat.S_IMODE(one.st_mode):04o}"
    if one.st_mtime_ns != other.st_mtime_ns:
        yield f"time of change is {time_text(other.st_mtime_ns)}, was {time_text(one.st_mtime_ns)}"
    if owners and (one.st_uid, one.st_gid) != (other.st_uid, other.st_gid):
        yield f"owner is {other.st_uid}:{other.st_gid}, was {one.st_uid}:{one.st_gid}"
    if not stat.S_ISDIR(one.st_mode) and one.st_nlink < other.st_nlink:
        yield f"has {other.st_nlink} names, had {one.st_nlink}"
    if xattrs_of(left) != xattrs_of(right):
        yield "extended attributes differ"
    if stat.S_ISLNK(one.st_mode) and os.readlink(left) != os.readlink(right):
        yield f"points to {shown(os.readlink(right))}, did to {shown(os.readlink(left))}"
    if stat.S_ISREG(one.st_mode):
        count.files += 1
        count.bytes += one.st_size
        where = first_difference(left, right)
        if where is not None:
            yield f"content differs from byte {where} on (sizes {one.st_size} and {other.st_size})"


def first_difference(left: bytes, right: bytes) -> int | None:
    """The offset of the first byte in which two files differ (one may just be longer), None when they are equal."""
    with open(left, "rb") as mine, open(right, "rb") as theirs:
        offset = 0
        while True:
            one, other = mine.read(CHUNK), theirs.read(CHUNK)
            if one != other:
                pairs = zip(one, other)
                return offset + next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
            if not one:
                return None
            offset += len(one)
