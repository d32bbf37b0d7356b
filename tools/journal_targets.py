"""Which log a `mdstore journal` command means, and opening its medium without opening the log.

| target           | the log                                                             |
|------------------|---------------------------------------------------------------------|
| `IMAGE`          | the metadata server's events                                        |
| `IMAGE` `--ring` | the store's own write-ahead log; read-only: the superblock rules it |
| `dir:PATH/NAME`  | a striped log of that name in a directory of objects                |
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from journal import Head, JournalError, Layout, Medium, StripedMedium
from journal.directory import DirectoryObjects
from journal.head import decode_head, newest_head
from mdstore.device.file import FileDevice
from mdstore.errors import NotAnImage, NotFound
from mdstore.mds.layout import LOG, LOG_NAME, META, TABLE_OBJECTS, Tab, decode_server
from mdstore.mds.objectio import StoreObjects
from mdstore.store import superblock
from mdstore.store.recovery import ring_of
from mdstore.tools.images import opened_store
from mdstore.tools.output import CommandFailed

_DIRECTORY = re.compile(r"dir:(.+)/([^/]+)")


@dataclass(frozen=True, slots=True)
class Target:
    """A log's medium; `head` is set where something else than the log's own head says where it begins."""

    medium: Medium
    events: bool  # the entries are metadata events
    head: Head | None = None

    def current_head(self) -> Head:
        """Errors: `NoJournal`, `HeadLost`."""
        return self.head or newest_head(self.medium.read_heads(), self.medium.name)


@contextmanager
def opened_log(target: str, *, ring: bool, read_only: bool) -> Iterator[Target]:
    """The log that `target` names. What goes wrong with the log itself is one line, as everything a person can mend."""
    try:
        matched = _DIRECTORY.fullmatch(target)
        if matched is not None:
            yield _directory_log(Path(matched[1]), matched[2])
        elif ring:
            with _ring(target, read_only=read_only) as found:
                yield found
        else:
            with opened_store(target, read_only=read_only) as store:
                yield _events(store)
    except JournalError as error:
        raise CommandFailed(str(error)) from error


def _directory_log(path: Path, name: str) -> Target:
    """The layout is in the head; a log that lost both must have the default one."""
    if not path.is_dir():
        raise CommandFailed(f"{path} is no directory")
    objects = DirectoryObjects(path, epoch=(1 << 63) - 1)
    plain = StripedMedium(objects, name)
    heads = [head for copy in plain.read_heads() if isinstance(head := decode_head(copy), Head)]
    layout = Layout(heads[0].unit, heads[0].stripe_count, heads[0].object_size) if heads else None
    return Target(StripedMedium(objects, name, layout), events=False)


def _events(store: object) -> Target:
    try:
        server = decode_server(store.map_header(META, TABLE_OBJECTS[Tab.SERVER]))  # type: ignore[attr-defined]
    except NotFound:
        raise NotAnImage("the store holds no file system, so no events; --ring shows the store's own log") from None
    layout = Layout(stripe_unit=server.log_unit, object_size=server.log_object_size)
    objects = StoreObjects(store, LOG)  # type: ignore[arg-type]
    return Target(StripedMedium(objects, LOG_NAME, layout), events=True)


@contextmanager
def _ring(image: str, *, read_only: bool) -> Iterator[Target]:
    if not read_only:
        raise CommandFailed("the store's own log cannot be changed by hand: the superblock and the log belong together")
    device = FileDevice.open(image, read_only=True)
    try:
        chosen = superblock.read_all(device)[0][0][0]
        medium = ring_of(device, chosen)
        head = newest_head(medium.read_heads(), medium.name)
        start = chosen.log_position
        yield Target(medium, events=False, head=replace(head, expire=start, trimmed=start, safe=max(start, head.safe)))
    finally:
        device.close()
