"""What a store answers in: plain named tuples, shared by every engine."""

from __future__ import annotations

from typing import NamedTuple


class Capabilities(NamedTuple):
    """What an engine promises beyond one object's atomicity."""

    multi_object_transactions: bool  # a transaction over several objects is one atom
    durable: bool  # `Commit.wait` means that a crash cannot undo it
    ordered_commits: bool  # transactions become durable in the order of their submission, over all collections
    snapshots: bool = False  # `snapshot` and the calls that belong to it; without, they raise UnsupportedOperation


class ObjectStat(NamedTuple):
    """What `stat` tells of an object."""

    size: int  # bytes of the data stream
    allocated: int  # bytes of space its data takes
    attributes: int  # how many attributes
    map_keys: int  # how many keys in its map
    created_rev: int = 0  # the revision it was created at or last kept at; 0: none
    checksum: str = "crc32c"  # of data written now: "crc32c" or "none"


class SnapshotInfo(NamedTuple):
    """What `snapshots` tells of one."""

    name: bytes
    epoch: int  # of two, the one with the higher epoch is newer
    created_ns: int  # since 1970
    objects: int
    held_bytes: int  # what deleting it would free
    is_deleting: bool  # a deletion has begun and not ended: it cannot be opened, and deleting it again goes on


class Revision(NamedTuple):
    """A kept state of an object: what reads at `created_rev` <= revision < `rev` are answered from."""

    rev: int
    created_rev: int
