"""Holding an image against what an import acknowledged: each path must be there, whole, with the source's attributes."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator

from mdstore.errors import MdstoreError
from mdstore.mds.vfs import Attr, Vfs
from mdstore.tools.locate import opened_file, resolve
from mdstore.tools.output import explain, shown
from mdstore.tools.source_tree import CHUNK


def acknowledged_paths(text: str) -> list[bytes]:
    """The paths in the lines an import wrote. A last line without its newline was cut off by a kill: it counts for nothing."""
    whole, _, _ = text.rpartition("\n")
    return [os.fsencode(json.loads(line)) for line in whole.splitlines()]


def wrong_paths(vfs: Vfs, source: bytes, paths: Iterable[bytes], below: bytes = b"") -> Iterator[str]:
    """A line for each of `paths` (relative to `source`) that the image does not hold, under `below`, as the source has it."""
    for path in paths:
        try:
            attr = resolve(vfs, below + b"/" + path, follow=False)
            wrong = _difference(vfs, attr, source + b"/" + path)
            vfs.forget(attr.ino, 1)
        except MdstoreError as error:
            wrong = explain(error)
        if wrong is not None:
            yield f"{shown(path)}: {wrong}"


def _difference(vfs: Vfs, attr: Attr, source: bytes) -> str | None:
    status = os.lstat(source)
    for name, found, expected in (
        ("mode", attr.mode, status.st_mode), ("owner", attr.uid, status.st_uid), ("group", attr.gid, status.st_gid),
        ("time of change", attr.mtime_ns, status.st_mtime_ns),
    ):  # fmt: skip
        if found != expected:
            return f"{name} is {found}, was {expected}"
    if stat.S_ISLNK(status.st_mode) and vfs.readlink(attr.ino) != os.readlink(source):
        return "points elsewhere"
    if stat.S_ISREG(status.st_mode):
        return _content_difference(vfs, attr, source, status.st_size)
    return None


def _content_difference(vfs: Vfs, attr: Attr, source: bytes, size_bytes: int) -> str | None:
    if attr.size != size_bytes:
        return f"has {attr.size} bytes, had {size_bytes}"
    with open(source, "rb") as stream, opened_file(vfs, attr.ino) as handle:
        for offset in range(0, size_bytes, CHUNK):
            if vfs.read(handle, offset, CHUNK) != stream.read(CHUNK):
                return f"content differs in the {CHUNK} bytes from {offset} on"
    return None
