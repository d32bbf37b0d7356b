"""Object revisions: their keys in the object tree, and whether they fit one another. docs/format/onode.md, "Revisions"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from mdstore.tools.reader.onode import OBJECT_NAME_MAX, Onode, split_object_key
from mdstore.tools.reader.problems import Damage, Findings, Place, readable

if TYPE_CHECKING:
    from mdstore.tools.reader.store import StoreReader

_MARK: Final = 1 << 63
_GROUP: Final = 8


class RevisionKey(NamedTuple):
    """A key of the object tree with the highest bit of the collection number set."""

    number: int
    name: bytes
    rev: int


def collection_of(key: bytes) -> tuple[int, bool]:
    """(collection number, whether a revision) of any key of the object tree."""
    number = int.from_bytes(key[:8], "big")
    return number & ~_MARK, number >= _MARK


def decode_revision_key(key: bytes) -> RevisionKey:
    """The parts of a revision's key. Damage (`onode`)."""
    groups = key[8:-8]
    name = b"".join(groups[at : at + min(8, groups[at + 8])] for at in range(0, len(groups) - _GROUP, _GROUP + 1))
    if not 0 < len(name) <= OBJECT_NAME_MAX or groups != encode_name(name):
        raise Damage("onode", "key of a revision", "a name in groups of eight bytes", groups)
    return RevisionKey(int.from_bytes(key[:8], "big") & ~_MARK, name, int.from_bytes(key[-8:], "big"))


def encode_revision_key(key: RevisionKey) -> bytes:
    """The key of the object tree for a revision."""
    return (key.number | _MARK).to_bytes(8, "big") + encode_name(key.name) + key.rev.to_bytes(8, "big")


def encode_name(name: bytes) -> bytes:
    """Groups of eight bytes, the last filled with zeros, each with how many count; one with less than eight is the last."""
    parts = []
    for at in range(0, len(name) + 1, _GROUP):
        group = name[at : at + _GROUP]
        parts.append(group + bytes(_GROUP - len(group)) + bytes([len(group)]))
    return b"".join(parts)


def revision_bounds(number: int, name: bytes) -> tuple[bytes, bytes]:
    """The first key that a revision of the object may have, and one behind the last."""
    prefix = (number | _MARK).to_bytes(8, "big") + encode_name(name)
    return prefix, prefix + b"\xff" * 9


def check_key(key: bytes) -> None:
    """Any key of the object tree: that of an object, or of a revision. Damage (`onode`)."""
    if key[:1] >= b"\x80":
        decode_revision_key(key)
    else:
        split_object_key(key)


def key_in_words(key: bytes, collections: Mapping[int, bytes]) -> str:
    """What a key of the object tree names, for people. `collections`: names by number."""
    number, is_revision = collection_of(key)
    name, suffix = key[8:], ""
    if is_revision:
        try:
            _, name, rev = decode_revision_key(key)
            suffix = f" at revision {rev}"
        except Damage:
            suffix = " (a revision)"
    return f"{readable(collections.get(number, b'#%d' % number))}/{readable(name)}{suffix}"


def sound_start(created_rev: int, kept_at: int, end_before: int) -> int | None:
    """The created_rev of revision `kept_at` of a name, as its neighbours allow: its own where that can be, else where the one
    before ends. `end_before`: that end, 0 for the first. None where there is no such number.

    Where it was too low no read changes: those before `end_before` are answered from the revision before in any case. Where it
    was too high, no read was answered from the revision at all; now the whole stretch up to it is.
    """
    if end_before <= created_rev < kept_at:
        return created_rev
    return end_before if end_before < kept_at else None


class RevisionCheck:
    """Revisions in the order of their keys: each begins where the one before ends or later, and ends before the object begins."""

    def __init__(self, reader: StoreReader, findings: Findings) -> None:
        self._reader = reader
        self._findings = findings
        self._current: tuple[int, bytes] | None = None
        self._end = 0

    def see(self, key: RevisionKey, onode: Onode, owner: str) -> None:
        """The next revision."""
        if (key.number, key.name) != self._current:
            self.finish()
            self._current, self._end = (key.number, key.name), 0
        if sound_start(onode.created_rev, key.rev, self._end) != onode.created_rev:
            what = f"begins at {onode.created_rev}, must begin from {self._end} on and before {key.rev}"
            self._findings.add("revision", what, Place(owner, "objects"))
        self._end = key.rev

    def finish(self) -> None:
        """No more revisions of this object: hold the object itself against them."""
        if self._current is None:
            return
        try:
            live = self._reader.find(*self._current)
        except Damage:
            return  # reported by the walk
        if live is not None and live.created_rev < self._end:
            what = f"was created at revision {live.created_rev}, but one that ends at {self._end} was kept of it"
            self._findings.add("revision", what, Place(f"object {readable(self._current[1])}", "objects"))
