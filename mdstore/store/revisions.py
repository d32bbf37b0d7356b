"""Object revisions: kept states of an object, each under a key of its own in the object tree. Page: docs/format/onode.md.

An operation that carries revision `rev` and changes or removes an object whose `created_rev` is lower first keeps the object as
it is, as its revision `rev`: a clone that shares all space. So a read at a revision finds the state that held then.

Invariants
1. Of the revisions of one name, in order, each has created_rev >= the `rev` of the one before, and created_rev < its own rev.
2. The live object's created_rev is at least the `rev` of its newest revision.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from mdstore.errors import CorruptionError
from mdstore.limits import REVISION_MAX

if TYPE_CHECKING:
    from mdstore.store.objects import ObjectTable
    from mdstore.store.onode import Onode

MARK: Final = 1 << 63  # set in the collection number of a revision's key, so that no listing of objects meets one
_NUMBER: Final = struct.Struct(">Q")
_GROUP: Final = 8  # bytes of the name before each count


def ordered_name(name: bytes) -> bytes:
    """A name so written that no other begins with it and the order is kept: groups of 8 bytes, the last one filled with
    zeros, each followed by how many of them count; the group with less than 8 ends the name."""
    groups = (name[at : at + _GROUP] for at in range(0, len(name) + 1, _GROUP))
    return b"".join(group.ljust(_GROUP, b"\0") + bytes((len(group),)) for group in groups)


def plain_name(ordered: bytes) -> bytes:
    """The name that `ordered_name` made this of. CorruptionError when it made it of none."""
    groups = (ordered[at : at + _GROUP + 1] for at in range(0, len(ordered), _GROUP + 1))
    name = b"".join(group[: group[-1]] for group in groups)
    if not name or ordered_name(name) != ordered:
        raise CorruptionError("object key", ordered.hex(), "a name in groups of eight bytes", "another form")
    return name


def revision_key(number: int, name: bytes, rev: int) -> bytes:
    """The object tree's key of a revision of object `name` in collection `number`."""
    return revisions_prefix(number, name) + _NUMBER.pack(rev)


def revisions_prefix(number: int, name: bytes) -> bytes:
    """What the keys of all revisions of one object begin with, and no other key does."""
    return _NUMBER.pack(number | MARK) + ordered_name(name)


def collection_bounds(number: int) -> tuple[bytes, bytes]:
    """All revisions of the collection's objects lie between these two keys."""
    return _NUMBER.pack(number | MARK), _NUMBER.pack((number | MARK) + 1)


def is_revision(key: bytes) -> bool:
    """Whether a key of the object tree is that of a revision."""
    return key[0] >= 0x80


def split_revision_key(key: bytes) -> tuple[int, bytes, int]:
    """(collection number, name, rev) of a revision's key. CorruptionError when it is not one."""
    name = plain_name(key[_NUMBER.size : -_NUMBER.size])
    return _NUMBER.unpack_from(key)[0] & ~MARK, name, _NUMBER.unpack(key[-_NUMBER.size :])[0]


def with_collection(key: bytes, number: int) -> bytes:
    """The key of the same name (and revision) in another collection."""
    return _NUMBER.pack(number | MARK if is_revision(key) else number) + key[_NUMBER.size :]


def object_of(key: bytes) -> tuple[int, bytes]:
    """(collection number, name) of the object that any key of the object tree belongs to."""
    if is_revision(key):
        return split_revision_key(key)[:2]
    return _NUMBER.unpack_from(key)[0], key[_NUMBER.size :]


def numbers(objects: ObjectTable, number: int, name: bytes) -> list[int]:
    """The numbers of an object's revisions, oldest first. Reads keys alone."""
    prefix = revisions_prefix(number, name)
    if not objects.has_revisions:
        return []
    keys = objects.tree.keys(prefix + _NUMBER.pack(0), prefix + _NUMBER.pack(REVISION_MAX) + b"\0")
    return [_NUMBER.unpack(key[-_NUMBER.size :])[0] for key in keys]


def keys_of_collection(objects: ObjectTable, number: int) -> Iterator[bytes]:
    """The keys of all revisions of the collection's objects, in the order of names, then of revisions."""
    return objects.tree.keys(*collection_bounds(number)) if objects.has_revisions else iter(())


def names(objects: ObjectTable, number: int, start: bytes, stop: bytes | None) -> Iterator[bytes]:
    """Names start <= name < stop of the collection's objects that have revisions, in order. One descent each."""
    low, end = collection_bounds(number)
    after = low + ordered_name(start)
    while objects.has_revisions:
        record = objects.tree.seek(after)
        if record is None or record[0] >= end:
            return
        name = split_revision_key(record[0])[1]
        if stop is not None and name >= stop:
            return
        yield name
        after = revisions_prefix(number, name) + _NUMBER.pack(REVISION_MAX) + b"\0"


def of_object(objects: ObjectTable, number: int, name: bytes) -> Iterator[Onode]:
    """The revisions of one object, oldest first."""
    for rev in numbers(objects, number, name):
        yield _present(objects, revision_key(number, name, rev))


def newest(objects: ObjectTable, number: int, name: bytes) -> int:
    """The number of an object's newest revision, 0 without one. One descent."""
    if not objects.has_revisions:
        return 0
    record = objects.tree.seek(revision_key(number, name, REVISION_MAX), reverse=True)
    if record is None or not record[0].startswith(revisions_prefix(number, name)):
        return 0
    return int(_NUMBER.unpack(record[0][-_NUMBER.size :])[0])


def find_at(objects: ObjectTable, number: int, name: bytes, rev: int) -> Onode | None:
    """What a read at `rev` is answered from: the revision with created_rev <= rev < its own, else the live object when it was
    created by then; 0: the live object. None: it did not exist then, or that revision was trimmed."""
    if not rev:
        return objects.get(number, name)
    if objects.has_revisions and rev < REVISION_MAX:
        record = objects.tree.seek(revision_key(number, name, rev + 1))
        if record is not None and record[0].startswith(revisions_prefix(number, name)):
            kept = _present(objects, record[0])
            return kept if kept.created_rev <= rev else None
    live = objects.get(number, name)
    return live if live is not None and live.created_rev <= rev else None


def rev_of(onode: Onode) -> int:
    """The number of the revision that the onode is."""
    return int(_NUMBER.unpack(onode.key[-_NUMBER.size :])[0])


def _present(objects: ObjectTable, key: bytes) -> Onode:
    onode = objects.at(key)
    assert onode is not None, "the key was just read from the tree"
    return onode
