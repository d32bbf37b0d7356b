"""Revisions that do not fit one another, or their object: where each should begin. docs/format/onode.md, "Revisions".

What a revision holds and where it ends (the number in its key) stand. Where what it says of its beginning cannot be, that follows
from its neighbours. Nothing is lost by it: no read that was answered is answered from anything else.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Final

from mdstore.tools.reader.onode import Onode, object_key
from mdstore.tools.reader.problems import Damage
from mdstore.tools.reader.revisions import RevisionKey, encode_revision_key, sound_start
from mdstore.tools.reader.store import StoreReader

CODES: Final = frozenset({"revision"})
_FIRST_KEY: Final = (1 << 63).to_bytes(8, "big")
_BEHIND: Final = b"\xff" * 9


class Starts:
    """The created_rev that records of the object tree should have. Memory: those that have another."""

    def __init__(self, reader: StoreReader) -> None:
        """Reads every revision, and the object of each name that has some. `reader` reads around damage."""
        self._reader = reader
        self._due: dict[bytes, int | None] = {}
        records = reader.revision_records(_FIRST_KEY, _BEHIND)
        for (number, name), group in groupby(records, key=lambda row: row[0][:2]):
            self._judge(number, name, group)

    def of(self, key: bytes, onode: Onode) -> int | None:
        """What the record under `key` should say; None for a revision that no read could be answered from."""
        return self._due.get(key, onode.created_rev)

    def _judge(self, number: int, name: bytes, revisions: Iterator[tuple[RevisionKey, Onode]]) -> None:
        end = 0
        for key, onode in revisions:
            due = sound_start(onode.created_rev, key.rev, end)
            if due != onode.created_rev:
                self._due[encode_revision_key(key)] = due
            end = key.rev
        try:
            live = self._reader.find(number, name)
        except Damage:
            return  # it goes, or is mended first: what is left of it is judged in the next round
        if live is not None and live.created_rev < end:
            self._due[object_key(number, name)] = end
