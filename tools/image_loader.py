"""Making an image of a stream of records: what `load`, `recover` and `compact` end in."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from mdstore.device.file import FileDevice, sync_directory_of
from mdstore.errors import AlreadyExists, DamagedFile, InvalidRequest, LimitExceeded, NoSpace
from mdstore.limits import MIB
from mdstore.store.commit import Commit
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from mdstore.tools.output import CommandFailed
from mdstore.tools.reader.floors import Floor
from mdstore.tools.reader.onode import NO_HINT
from mdstore.tools.reader.stream import CollectionRecord, DataRecord, ObjectRecord, PairsRecord, Record

BATCH_BYTES: Final = MIB  # of one transaction, less where the log is small
COMMITS_KEPT: Final = 64  # that nobody waits for yet


@dataclass
class Loaded:
    """What an image was made of."""

    collections: int = 0
    objects: int = 0
    revisions: int = 0
    data_bytes: int = 0
    pairs: int = 0


class Loader:
    """Puts records into an empty store. Nothing is durable before `finish`."""

    def __init__(self, store: Store) -> None:
        self.loaded = Loaded()
        self._store = store
        self._batch_bytes = min(BATCH_BYTES, max(4096, int(store.statistics()["log_bytes"]) // 8))
        self._transaction = Transaction()
        self._commits: deque[Commit] = deque(maxlen=COMMITS_KEPT)
        self._collection: bytes | None = None
        self._object: ObjectRecord | None = None

    def put(self, record: Record) -> None:
        """The next record. DamagedFile for one that cannot come here, NoSpace inside TransactionError."""
        if isinstance(record, CollectionRecord):
            self._end_object()
            self._collection = record.name
            self._transaction.create_collection(record.name)
            self.loaded.collections += 1
        elif isinstance(record, ObjectRecord):
            self._end_object()
            self._begin_object(record)
        elif isinstance(record, DataRecord):
            self._put_data(record)
        elif isinstance(record, Floor):
            self._put_floor(record)
        else:
            self._put_pairs(record)
        if self._transaction.payload_bytes >= self._batch_bytes or len(self._transaction) >= _OPERATIONS_MAX:
            self._submit()

    def finish(self) -> None:
        """Everything put is durable when this returns."""
        self._end_object()
        self._submit()
        self._store.sync()

    def _begin_object(self, record: ObjectRecord) -> None:
        home, transaction = self._home(), self._transaction
        self._object = record
        if record.like is not None:
            transaction.at_revision(record.created_rev).clone(home, record.like, record.name).at_revision(0)
            self._submit()  # what the other has is read from the store
            for attribute in self._store.getattrs(home, record.name):
                self._transaction.rmattr(home, record.name, attribute)
            self._transaction.map_clear(home, record.name)
        else:
            transaction.at_revision(record.created_rev).create(home, record.name).at_revision(0)
        if record.hint != NO_HINT or record.like is not None:  # a clone has that of its origin
            self._transaction.alloc_hint(home, record.name, *record.hint)
        for attribute, value in record.attributes:
            self._transaction.setattr(home, record.name, attribute, value)
            if self._transaction.payload_bytes >= self._batch_bytes:
                self._submit()
        if record.map_header:
            self._transaction.map_set_header(home, record.name, record.map_header)

    def _end_object(self) -> None:
        """The object has its size; one that a revision holds becomes that revision, by being removed."""
        record, self._object = self._object, None
        if record is None:
            return
        home = self._home()
        self._transaction.truncate(home, record.name, record.size)
        if record.kept_at:
            self._transaction.at_revision(record.kept_at).remove(home, record.name).at_revision(0)
            self.loaded.revisions += 1
        else:
            self.loaded.objects += 1

    def _put_data(self, record: DataRecord) -> None:
        owner = self._owner()
        if record.offset + len(record.data) > owner.size:
            raise DamagedFile("dump", f"data of {owner.name!r}", f"bytes below {owner.size}", record.offset)
        self._transaction.write(self._home(), owner.name, record.offset, record.data)
        self.loaded.data_bytes += len(record.data)

    def _put_pairs(self, record: PairsRecord) -> None:
        owner = self._owner()
        part, length = list[tuple[bytes, bytes]](), 0
        for pair in record.pairs:
            part.append(pair)
            length += len(pair[0]) + len(pair[1])
            if length >= self._batch_bytes:
                self._transaction.map_set(self._home(), owner.name, part)
                self._submit()
                part, length = [], 0
        if part:
            self._transaction.map_set(self._home(), owner.name, part)
        self.loaded.pairs += len(record.pairs)

    def _put_floor(self, floor: Floor) -> None:
        """They hold from now on for whoever writes with an epoch; the loader has none."""
        self._end_object()
        home = floor.collection or None
        name = floor.name if floor.scope == "object" else None
        self._transaction.set_floor(floor.floor, home, name=name, prefix=floor.name if floor.scope == "prefix" else None)

    def _home(self) -> bytes:
        if self._collection is None:
            raise DamagedFile("dump", "its beginning", "a collection", "an object")
        return self._collection

    def _owner(self) -> ObjectRecord:
        if self._object is None:
            raise DamagedFile("dump", "a collection", "an object", "its content")
        return self._object

    def _submit(self) -> None:
        if len(self._transaction):
            self._commits.append(self._store.submit(self._transaction))
            self._transaction = Transaction()


_OPERATIONS_MAX: Final = 2000
_FILE_BYTES_MAX: Final = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Shape:
    """How an image is laid out: its size, that of its blocks, the stripes of the medium below (0: none), and the size of its log
    (None: what its own size asks for). sparse: its space is taken as it fills, instead of being reserved at once."""

    size_bytes: int
    block_size: int
    stripe_bytes: int = 0
    stripe_offset: int = 0
    sparse: bool = False
    log_bytes: int | None = None


def make_image_of(path: str, shape: Shape, records: Iterable[Record], *, force: bool = False) -> Loaded:
    """Make an image at `path` that holds the records, whole or not at all: it takes its name once it is durable, and until then
    a file that was there stays what it was.

    CommandFailed when there is a file already (unless `force`), when it is no plain file, the disk has no room, or the records
    are no possible content; LimitExceeded; ImageBusy when somebody has it open; NoSpace inside TransactionError when the size
    does not do; DamagedFile of the records.
    """
    path = os.path.realpath(path)
    if not os.path.exists(path):
        return _made(path, shape, records)
    if not force:
        raise CommandFailed(f"{path} exists already; --force overwrites it, or choose another name")
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise CommandFailed(f"{path} is no plain file and cannot be replaced by one; choose another name")
    replaced = FileDevice.open(path)  # nobody has it open meanwhile
    try:
        return _made(path, shape, records)
    finally:
        replaced.close()


def _empty_store(device: FileDevice, path: str, shape: Shape) -> Store:
    """In the file that is to be `path`."""
    try:
        return Store.create(
            device, block_size=shape.block_size, log_bytes=shape.log_bytes, stripe_bytes=shape.stripe_bytes,
            stripe_offset=shape.stripe_offset,
        )  # fmt: skip
    except InvalidRequest as error:
        said = str(error).replace(device.name, path)
        raise CommandFailed(f"{said}; --size and --log-size say how large the image and its log are") from error


def _made(path: str, shape: Shape, records: Iterable[Record]) -> Loaded:
    partial = f"{path}.part"
    if shape.size_bytes > _FILE_BYTES_MAX:
        raise LimitExceeded("the size of an image", shape.size_bytes, _FILE_BYTES_MAX)
    try:
        device = FileDevice.create(partial, shape.size_bytes, sparse=shape.sparse)
    except NoSpace as error:
        raise CommandFailed(f"{str(error).replace(partial, path)}; --sparse does not reserve the image's space") from error
    except AlreadyExists:
        raise CommandFailed(f"{partial} is in the way: what an earlier run left; remove it and try again") from None
    try:
        with _empty_store(device, path, shape) as store:
            loader = Loader(store)
            for record in records:
                loader.put(record)
            loader.finish()
        os.replace(partial, path)
        sync_directory_of(path)
    except BaseException:
        device.close()
        with suppress(OSError):
            os.unlink(partial)
        raise
    return loader.loaded
