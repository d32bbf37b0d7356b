"""Snapshots and their dead: docs/format/snapshots.md."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from mdstore.errors import InvalidRequest, MdstoreError, NotFound
from mdstore.tools.reader.problems import Damage, Place, readable, readable_name
from mdstore.tools.reader.store import StoreReader
from mdstore.tools.reader.superblock import ROOT_DEAD, ROOT_SNAPSHOTS, SIZE, Superblock, decode

NAME_MAX: Final = 255
FLAG_DELETING: Final = 1
_DIRECTORY: Final = b"dir\0"  # then the directory's number, 8 bytes
_SHOWN_MAX: Final = 8  # names that are offered for one that is not there
_HEAD: Final = struct.Struct("<BBHIq")
_DEAD_KEY: Final = struct.Struct(">QQ")
_DEAD: Final = struct.Struct("<QQ")
assert (_HEAD.size, _DEAD_KEY.size, _DEAD.size) == (16, 16, 16)


class NoSuchSnapshot(NotFound):
    """There is none of that name. Says which there are: name one of them."""

    def __init__(self, name: bytes, there: list[bytes]) -> None:
        super().__init__("snapshot", name)
        self.there = there
        self.args = (f"{self}; {offered(there_as_typed(there), 'the image')}",)


class Snapshot(NamedTuple):
    """A superblock that is kept."""

    name: bytes
    created_ns: int
    is_deleting: bool
    superblock: Superblock


class DeadRun(NamedTuple):
    """Blocks born in epoch `birth` that died after the snapshot of `epoch` and before the next."""

    epoch: int
    start: int
    blocks: int
    birth: int


def decode_snapshot(name: bytes, value: bytes) -> Snapshot:
    """A record of the tree of snapshots. Damage (`snapshot`)."""
    owner = _owner(name)
    if not 0 < len(name) <= NAME_MAX:
        raise Damage("snapshot", "length of a snapshot's name", f"1 .. {NAME_MAX}", len(name), owner=owner)
    if len(value) < _HEAD.size:
        raise Damage("snapshot", "length of a snapshot's record", f"at least {_HEAD.size}", len(value), owner=owner)
    version, flags, zero, length, created_ns = _HEAD.unpack_from(value)
    if version != 1 or flags & ~FLAG_DELETING or zero:
        raise Damage("snapshot", "version, flags and zeros", "1, 0 or 1, 0", f"{version}, {flags}, {zero}", owner=owner)
    if length != len(value) - _HEAD.size or length > SIZE:
        raise Damage("snapshot", "length of the superblock kept", len(value) - _HEAD.size, length, owner=owner)
    try:
        superblock = decode(value[_HEAD.size :].ljust(SIZE, b"\0"))
    except MdstoreError as error:
        what = error.sentence if isinstance(error, Damage) else str(error)
        raise Damage("snapshot", f"superblock kept: {what}", owner=owner) from error
    return Snapshot(name, created_ns, bool(flags & FLAG_DELETING), superblock)


def decode_dead(key: bytes, value: bytes) -> DeadRun:
    """A record of the tree of dead runs. Damage (`dead-run`)."""
    (epoch, start), (blocks, birth) = _DEAD_KEY.unpack(key), _DEAD.unpack(value)
    if not blocks or not 0 < birth <= epoch:
        what = f"dead run of {blocks} blocks at block {start}, born in {birth}, under epoch {epoch}"
        raise Damage("dead-run", what, tree="dead")
    return DeadRun(epoch, start, blocks, birth)


def snapshots_of(reader: StoreReader) -> Iterator[Snapshot]:
    """Every snapshot whose record reads, by name. Damage to the others goes to the reader's `on_damage`, or is raised."""
    for name, value in reader.root_records(ROOT_SNAPSHOTS):
        try:
            found = decode_snapshot(name, value)
            _check_kept(found, reader.superblock)
        except Damage as damage:
            if reader.on_damage is None:
                raise
            reader.on_damage(damage)
            continue
        yield found


def find_snapshot(reader: StoreReader, name: bytes) -> Snapshot:
    """The snapshot of that name, or the only one of a directory that is called so. NotFound, InvalidRequest, Damage."""
    every = list(snapshots_of(reader))
    exact = [found for found in every if found.name == name]
    of_directories = [found for found in every if directory_name(found.name) == name]
    chosen = exact or of_directories
    if len(chosen) > 1:
        directories = ", ".join(readable_name(found.name) for found in chosen)
        raise InvalidRequest(f"several directories have a snapshot {readable(name)!r}; say which in full: {directories}")
    if not chosen:
        raise NoSuchSnapshot(name, [found.name for found in every if not found.is_deleting])
    return chosen[0]


def directory_name(name: bytes) -> bytes | None:
    """What a directory's snapshot is called in its `.snap` (docs/format/mds-tables.md); None for another snapshot's name."""
    prefix = len(_DIRECTORY) + 8
    return name[prefix:] if name.startswith(_DIRECTORY) and len(name) > prefix else None


def there_as_typed(names: list[bytes]) -> list[str]:
    """Names of snapshots as `find_snapshot` takes them: a directory's by what it is called there, where no other is called so."""
    called = [directory_name(name) or name for name in names]
    return [readable_name(short if called.count(short) == 1 else name) for name, short in zip(names, called, strict=True)]


def offered(names: Sequence[str], whose: str) -> str:
    """What there is instead of a name that is not there: the first few, or that `whose` has none."""
    shown = ", ".join(names[:_SHOWN_MAX]) + (" and others" if len(names) > _SHOWN_MAX else "")
    return f"there are: {shown}" if names else f"{whose} has none"


def dead_runs(reader: StoreReader) -> Iterator[DeadRun]:
    """Every dead run that reads, by snapshot and address."""
    for key, value in reader.root_records(ROOT_DEAD):
        try:
            yield decode_dead(key, value)
        except Damage as damage:
            if reader.on_damage is None:
                raise
            reader.on_damage(damage)


def _check_kept(found: Snapshot, newest: Superblock) -> None:
    """A kept superblock is an older one of the same image."""
    kept = found.superblock
    for field, expected, value in (
        ("uuid", newest.uuid.hex(), kept.uuid.hex()),
        ("block_size", newest.block_size, kept.block_size),
        ("log_start", newest.log_start, kept.log_start),
        ("log_blocks", newest.log_blocks, kept.log_blocks),
    ):
        if value != expected:
            raise Damage("snapshot", f"{field} of the superblock kept", expected, value, owner=_owner(found.name))
    if not kept.epoch < newest.epoch or kept.blocks > newest.blocks:
        what = f"superblock kept, of epoch {kept.epoch} and {kept.blocks} blocks"
        raise Damage("snapshot", what, f"before {newest.epoch}, at most {newest.blocks}", owner=_owner(found.name))


def _owner(name: bytes) -> str:
    """The name as the commands take it; of a directory's also in words."""
    called = directory_name(name)
    words = "" if called is None else f" ({readable(called)} of inode {int.from_bytes(name[len(_DIRECTORY) :][:8], 'big')})"
    return f"snapshot {readable_name(name)}{words}"


def place_in(name: bytes, place: Place) -> Place:
    """A place inside a snapshot."""
    return place._replace(owner=f"{_owner(name)}, {place.owner}" if place.owner else _owner(name))
