"""The damage table: what was found broken, kept so that somebody sees it.

A row's key is the directory's number (8 bytes, big-endian) and the entry's name (empty: the directory as a whole, or a file
without a name); its value is the sentence of the error. What is broken answers EIO, everything else works.
"""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

from mdstore.errors import MdstoreError
from mdstore.limits import MAP_KEY_MAX
from mdstore.mds.core import UNREADABLE, Core
from mdstore.mds.events import Kind
from mdstore.mds.layout import INO_KEY

log = logging.getLogger(__name__)

TOLD_MAX: Final = 1024  # places that the server's messages name, until it is started anew


class Damage(NamedTuple):
    """One row: where, and what was found."""

    directory: int
    name: bytes
    message: str


def note_damage(core: Core, directory: int, name: bytes, error: MdstoreError) -> None:
    """Keep a row about `error`, where there is none and it can be written; durable with the log. The server's messages tell it
    once, whoever meets it how often."""
    key = INO_KEY.pack(directory) + name[: MAP_KEY_MAX - INO_KEY.size]
    if key not in core.damage_told and len(core.damage_told) < TOLD_MAX:
        core.damage_told.add(key)
        log.warning("inode %d%s: %s", directory, f", entry {name!r}" if name else "", error)
    if core.journal is None or core.failed is not None or core.replaying:
        return
    try:
        known = core.damage.get(key)
    except UNREADABLE:
        return  # the table itself is broken; the caller still raises `error`
    if known is None:
        unlogged = core.unlogged  # of a change that is under way: this event is not its end
        core.append(Kind.TABLE, core.put_row(core.damage, key, str(error).encode()[:4096]))
        core.unlogged = unlogged


def list_damage(core: Core) -> list[Damage]:
    """All rows in order."""
    return [Damage(INO_KEY.unpack_from(key)[0], key[8:], raw.decode()) for key, raw in core.damage.rows()]


def forget_damage(core: Core, directory: int, name: bytes) -> bool:
    """Drop one row; False when there is none."""
    if not 0 <= directory < 1 << 64 or len(name) > MAP_KEY_MAX - INO_KEY.size:
        return False
    key = INO_KEY.pack(directory) + name
    if core.damage.get(key) is None:
        return False
    core.damage_told.discard(key)
    core.append(Kind.TABLE, core.drop_row(core.damage, key))
    return True
