"""Transactions: an ordered list of operations over any objects and collections, all or nothing.

A transaction is built first and submitted whole. Building checks the shape of each operation (names, sizes: the limits of
`mdstore.limits`); submitting checks it against the state of the store. Operations are plain tuples, so that encoding one for
the log is a single call; the pairs of a map are packed as they stand in the log, and tuples of bytes to whoever iterates.
`docs/format/store-log.md` is their page. Opcodes are on-disk facts: never renumber one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any

from crc32c import crc32c

from mdstore.btree import PackedPairs
from mdstore.errors import InvalidRequest, LimitExceeded
from mdstore.limits import (
    ATTR_NAME_MAX,
    ATTR_VALUE_MAX,
    COLLECTION_NAME_MAX,
    OBJECT_NAME_MAX,
    TRANSACTION_BYTES_MAX,
    TRANSACTION_OPS_MAX,
    USER_BLOB_MAX,
)
from mdstore.store.operands import Data as Data
from mdstore.store.operands import Name as Name
from mdstore.store.operands import (
    bound,
    byte_range,
    frozen,
    limited_name,
    many_frozen,
    number,
    optional_number,
    revision,
)

Operation = tuple[Any, ...]


_LOG_FRONT = 10  # bytes before the pairs, besides names, in the log entry of a transaction that sets one map: then none is copied
HINT_UNCHECKED = 1  # a flag of `alloc_hint`: no checksums for data written from then on


class Op(IntEnum):
    """Operation codes, as they stand in the log. Zero is never a valid operation."""

    NOOP = 1
    CREATE_COLLECTION = 2
    REMOVE_COLLECTION = 3
    SPLIT = 4
    MERGE = 5
    CREATE = 10
    TOUCH = 11
    WRITE = 12
    ZERO = 13
    TRUNCATE = 14
    REMOVE = 15
    SETATTR = 16
    RMATTR = 17
    CLONE = 18
    CLONE_RANGE = 19
    RENAME = 20
    ALLOC_HINT = 21
    WRITE_MAPPED = 22  # only in the log: a large write whose blocks went to the device before
    REVISION = 23
    REMOVE_REVISION = 24
    TRIM_REVISIONS = 25
    MAP_SET = 30
    MAP_REMOVE = 31
    MAP_REMOVE_RANGE = 32
    MAP_CLEAR = 33
    MAP_SET_HEADER = 34
    SET_FLOOR = 40


class Transaction:
    """A list of operations to hand to `ObjectStore.submit`. Every method appends one operation and returns the transaction.

    `payload_bytes` is the sum of data, keys and values so far; `epoch` tags every write for fencing (None: untagged); `rev`, when
    not 0, is the first operation: `at_revision(rev)`.
    Names are bytes of any value, or text taken as UTF-8. Buffers are copied when they are mutable, so the caller may reuse them.
    An operand of the wrong type is a TypeError, one that no store can take InvalidRequest or LimitExceeded: either way the
    operation is not part of the transaction. Not safe to build from two threads.
    """

    __slots__ = ("epoch", "operations", "payload_bytes")

    def __init__(self, *, epoch: int | None = None, rev: int = 0) -> None:
        self.operations: list[Operation] = []
        self.payload_bytes = 0
        self.epoch = optional_number("epoch", epoch)
        if type(rev) is not int or rev:
            self.at_revision(rev)

    def __len__(self) -> int:
        return len(self.operations)

    # -- collections ---------------------------------------------------------------------------------------------------

    def create_collection(self, collection: Name) -> Transaction:
        """Make an empty collection. Refused (AlreadyExists) when it is there."""
        return self._add((Op.CREATE_COLLECTION, collection_name(collection)))

    def remove_collection(self, collection: Name) -> Transaction:
        """Remove an empty collection. Refused with NotFound, or NotEmpty while it holds an object."""
        return self._add((Op.REMOVE_COLLECTION, collection_name(collection)))

    def split(self, collection: Name, bits: int, remainder: int, to_collection: Name) -> Transaction:
        """Move the objects whose `object_hash` has `remainder` in its low `bits` bits (0 to 32), with their revisions, to another
        collection, which must exist. Refused: AlreadyExists when the target has an object or a revision of a name that moves;
        LimitExceeded over 65,536 objects and revisions (MOVED_OBJECTS_MAX): move them in several splits of more bits.
        Floors that hold for what moves hold in the target, too. In the log it is one short operation. Cost: a walk over the
        names of the collection, and rewriting the records of what moves, under the store's lock."""
        low = number("bits", bits, 32)
        wanted = number(f"the remainder of {low} bits", remainder, (1 << low) - 1)
        return self._add((Op.SPLIT, collection_name(collection), low, wanted, collection_name(to_collection)))

    def merge(self, collection: Name, to_collection: Name) -> Transaction:
        """Move every object and revision to another collection and remove the emptied one. Refused as `split`; a larger
        collection is emptied by splits first."""
        return self._add((Op.MERGE, collection_name(collection), collection_name(to_collection)))

    # -- objects -------------------------------------------------------------------------------------------------------

    def create(self, collection: Name, name: Name) -> Transaction:
        """Make an empty object. Refused (AlreadyExists) when it is there."""
        return self._object(Op.CREATE, collection, name)

    def touch(self, collection: Name, name: Name) -> Transaction:
        """Make the object when it is not there; otherwise change nothing."""
        return self._object(Op.TOUCH, collection, name)

    def remove(self, collection: Name, name: Name) -> Transaction:
        """Drop the object with all its streams. Refused (NotFound) when it is not there."""
        return self._object(Op.REMOVE, collection, name)

    def rename(self, collection: Name, name: Name, to_collection: Name, to_name: Name) -> Transaction:
        """Move the object to another name or collection, all streams with it. The target must not exist."""
        return self._object(Op.RENAME, collection, name, collection_name(to_collection), object_name(to_name))

    def clone(self, collection: Name, name: Name, to_name: Name) -> Transaction:
        """Replace `to_name` with a copy of `name`, all streams; space is shared until either side is written."""
        return self._object(Op.CLONE, collection, name, object_name(to_name))

    # -- revisions -----------------------------------------------------------------------------------------------------

    def at_revision(self, rev: int) -> Transaction:
        """The operations after this one carry `rev` (0: none): the first of them that changes or removes an object created or
        last kept before `rev` keeps what the object was as its revision `rev`. See docs/edge-rules.md, "Revisions"."""
        return self._add((Op.REVISION, revision(rev)))

    def remove_revision(self, collection: Name, name: Name, rev: int) -> Transaction:
        """Drop one revision of an object, which itself need not exist. Refused (NotFound, kind 'revision') without it."""
        return self._object(Op.REMOVE_REVISION, collection, name, revision(rev))

    def trim_revisions(self, collection: Name, name: Name, rev: int) -> Transaction:
        """Drop every revision of an object that no read at `rev` or later is answered from: those up to `rev`. None: no error."""
        return self._object(Op.TRIM_REVISIONS, collection, name, revision(rev))

    # -- data stream ---------------------------------------------------------------------------------------------------

    def write(self, collection: Name, name: Name, offset: int, data: Data) -> Transaction:
        """Write bytes, making the object when it is not there. No data: makes the object, extends nothing."""
        content = frozen("data", data)
        begin, length = byte_range(offset, len(content))
        return self._sized(length, (Op.WRITE, collection_name(collection), object_name(name), begin, content))

    def zero(self, collection: Name, name: Name, offset: int, length: int) -> Transaction:
        """Make the range read as zeros and give its space back; a range past the end extends the object. Length 0: as `touch`."""
        return self._object(Op.ZERO, collection, name, *byte_range(offset, length))

    def truncate(self, collection: Name, name: Name, size: int) -> Transaction:
        """Set the size. Growing leaves a hole; bytes cut off never show again. Refused (NotFound) when it is not there."""
        return self._object(Op.TRUNCATE, collection, name, byte_range(size, 0)[0])

    def clone_range(self, collection: Name, name: Name, to_name: Name, source: int, length: int, target: int) -> Transaction:
        """Copy `length` bytes of data (holes included) from offset `source` to offset `target` of another object, made when it
        is not there. Only data is copied. The part of the range past the source's end is not copied."""
        begin, count = byte_range(source, length)
        return self._object(Op.CLONE_RANGE, collection, name, object_name(to_name), begin, count, byte_range(target, count)[0])

    def alloc_hint(self, collection: Name, name: Name, object_size: int, write_size: int, flags: int = 0) -> Transaction:
        """Say how large the object and its writes will be (bytes; 0: unknown). Never changes what is read.

        flags: HINT_UNCHECKED, or 0. Data that reaches the medium while the last hint has the flag gets no checksums (`stat` says
        "none"): a damaged block of it reads as it is, and neither a read nor a scrub notices. What is there keeps what it has."""
        sizes, known = byte_range(object_size, write_size), number("flags of an allocation hint:", flags, HINT_UNCHECKED)
        return self._object(Op.ALLOC_HINT, collection, name, *sizes, known)

    # -- attributes ----------------------------------------------------------------------------------------------------

    def setattr(self, collection: Name, name: Name, attribute: Name, value: Data) -> Transaction:
        """Set one attribute, making the object when it is not there."""
        key, content = attribute_name(attribute), frozen("the value of an attribute", value)
        if len(content) > ATTR_VALUE_MAX:
            raise LimitExceeded("ATTR_VALUE_MAX", len(content), ATTR_VALUE_MAX)
        row = (Op.SETATTR, collection_name(collection), object_name(name), key, content)
        return self._sized(len(key) + len(content), row)

    def rmattr(self, collection: Name, name: Name, attribute: Name) -> Transaction:
        """Remove one attribute. Refused with NotFound (kind 'object' or 'attribute') when it is not there."""
        return self._object(Op.RMATTR, collection, name, attribute_name(attribute))

    # -- map stream ----------------------------------------------------------------------------------------------------

    def map_set(
        self, collection: Name, name: Name, items: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]]
    ) -> Transaction:
        """Set keys of the map, making the object when it is not there. Later pairs of one key win. Copies all of them once."""
        home, own = collection_name(collection), object_name(name)
        given = items.items() if isinstance(items, Mapping) else items
        pairs = PackedPairs(given, _LOG_FRONT + len(home) + len(own))
        return self._sized(pairs.payload_bytes, (Op.MAP_SET, home, own, pairs))

    def map_remove(self, collection: Name, name: Name, keys: Iterable[bytes]) -> Transaction:
        """Remove keys; keys that are not there are no error. Refused (NotFound) when the object is not there."""
        wanted = many_frozen("keys", keys)
        row = (Op.MAP_REMOVE, collection_name(collection), object_name(name), wanted)
        return self._sized(sum(map(len, wanted)), row)

    def map_remove_range(self, collection: Name, name: Name, start: bytes | None, stop: bytes | None) -> Transaction:
        """Remove start <= key < stop (None: unbounded). Refused (NotFound) when the object is not there."""
        return self._object(Op.MAP_REMOVE_RANGE, collection, name, bound("start", start), bound("stop", stop))

    def map_clear(self, collection: Name, name: Name) -> Transaction:
        """Remove every key and the header. Refused (NotFound) when the object is not there."""
        return self._object(Op.MAP_CLEAR, collection, name)

    def map_set_header(self, collection: Name, name: Name, header: Data) -> Transaction:
        """Set the map's header (opaque bytes), making the object when it is not there."""
        content = frozen("header", header)
        if len(content) > USER_BLOB_MAX:
            raise LimitExceeded("USER_BLOB_MAX", len(content), USER_BLOB_MAX)
        row = (Op.MAP_SET_HEADER, collection_name(collection), object_name(name), content)
        return self._sized(len(content), row)

    # -- fencing -------------------------------------------------------------------------------------------------------

    def set_floor(
        self, floor: int, collection: Name | None = None, *, name: Name | None = None, prefix: Name | None = None
    ) -> Transaction:
        """Refuse every later transaction of an epoch below `floor` that writes what is named: one object, the objects whose
        names begin with `prefix`, a collection, or (nothing named) the whole store. What is named need not exist. Refused
        (FencedError) when the floor is higher already. Operations of the same transaction are not affected."""
        if (name is not None and prefix is not None) or (collection is None and (name is not None or prefix is not None)):
            raise InvalidRequest("a floor is for a collection, with a name or a prefix in it, or for the whole store")
        level = number("floor", floor)
        home = b"" if collection is None else collection_name(collection)
        if name is not None:
            return self._add((Op.SET_FLOOR, 4, home, object_name(name), level))
        if prefix is not None:
            return self._add((Op.SET_FLOOR, 3, home, object_name(prefix), level))
        return self._add((Op.SET_FLOOR, 1 if collection is None else 2, home, b"", level))

    def noop(self) -> Transaction:
        """Do nothing; still takes its place in the order, and is durable like any other."""
        return self._add((Op.NOOP,))

    # -- inside --------------------------------------------------------------------------------------------------------

    def _object(self, op: Op, collection: Name, name: Name, *rest: Any) -> Transaction:
        return self._add((op, collection_name(collection), object_name(name), *rest))

    def _sized(self, size: int, row: Operation) -> Transaction:
        if self.payload_bytes + size > TRANSACTION_BYTES_MAX:
            raise LimitExceeded("TRANSACTION_BYTES_MAX", self.payload_bytes + size, TRANSACTION_BYTES_MAX)
        self.payload_bytes += size
        return self._add(row)

    def _add(self, row: Operation) -> Transaction:
        if len(self.operations) >= TRANSACTION_OPS_MAX:
            raise LimitExceeded("TRANSACTION_OPS_MAX", len(self.operations) + 1, TRANSACTION_OPS_MAX)
        self.operations.append(row)
        return self


def submitted(transaction: Transaction) -> Transaction:
    """What an engine is handed to apply. TypeError when it is no transaction."""
    if not isinstance(transaction, Transaction):
        raise TypeError(f"a Transaction is submitted, not {type(transaction).__name__}")
    transaction.epoch = optional_number("epoch", transaction.epoch)  # whoever built it may have set another since
    return transaction


def object_hash(name: Name) -> int:
    """The number that `split` goes by: CRC-32C of the object's name."""
    return crc32c(object_name(name))


def collection_name(name: Name) -> bytes:
    """A collection's name as bytes, within its limit."""
    return limited_name("COLLECTION_NAME_MAX", name, COLLECTION_NAME_MAX)


def object_name(name: Name) -> bytes:
    """An object's name as bytes, within its limit."""
    return limited_name("OBJECT_NAME_MAX", name, OBJECT_NAME_MAX)


def attribute_name(name: Name) -> bytes:
    """An attribute's name as bytes, within its limit."""
    return limited_name("ATTR_NAME_MAX", name, ATTR_NAME_MAX)
