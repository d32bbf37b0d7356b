"""What a store is asked: the queries of a live store and of a snapshot, over the tables of either."""

from __future__ import annotations

import gc
import threading
from _thread import RLock
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

from mdstore.btree import Tree
from mdstore.device import forks
from mdstore.device.protocol import Device
from mdstore.errors import CorruptionError, DeviceFailed, MdstoreError, NotFound
from mdstore.store import data, revisions
from mdstore.store.answers import ObjectStat, Revision
from mdstore.store.exiting import STOPPED, EndingLock, are_free
from mdstore.store.onode import Onode, object_key, split_key
from mdstore.store.operands import bound, frozen, many_frozen, name_bound, name_bytes, page_limit, revision, window
from mdstore.store.superblock import Superblock
from mdstore.store.tables import Tables
from mdstore.store.transaction import Name, collection_name, object_name

_KERNEL = Tree.__module__


class Queries(ABC):
    """Reads of `tables` under `lock`. `superblock`: the newest durable one whose blocks the tables reach."""

    def __init__(self, device: Device, superblock: Superblock, tables: Tables, lock: EndingLock) -> None:
        self.device = device
        self.superblock = superblock
        self.tables = tables
        self.lock: RLock = lock
        self._pins: dict[object, int] = {}  # the epoch whose blocks a reader needs; taken out in one step, without the lock
        self._left: MdstoreError | None = None  # behind, see `left_behind`
        if device.fileno() >= 0:
            forks.watch(self)

    def left_behind(self, error: MdstoreError) -> None:
        """In a forked child, and where threads were stopped inside for good: every call raises `error`. No page, tree or view is
        ever freed there: that may wait for the cache's lock, which a thread that is no more may have held."""
        self._left = error
        self.lock = threading.RLock()
        self.tables.objects.changes |= 1  # so that nobody reads without looking here
        forks.never_free(each for each in gc.get_objects() if type(each).__module__ == _KERNEL)

    def is_at_rest(self) -> bool:
        """At the end of the interpreter: whether no thread was stopped inside."""
        return are_free([self.lock])

    def _give_up(self) -> MdstoreError:
        """There: one was. See `EndingLock`."""
        error = DeviceFailed("lock", self.device.name, STOPPED)
        self.left_behind(error)
        return error

    @abstractmethod
    def check_usable(self) -> None:
        """Raise why nothing can be asked any more: closed, or failed."""

    @abstractmethod
    def check_whole(self) -> None:
        """The same under `lock`; also raises where a change is half done."""

    def exists(self, collection: Name, name: Name, *, rev: int = 0) -> bool:
        """Whether the object is there. This and every query below: `rev` asks for it as it was at that revision (0: now)."""
        with self.lock:
            return self._lookup(collection, name, rev) is not None

    def stat(self, collection: Name, name: Name, *, rev: int = 0) -> ObjectStat:
        """Size, bytes on the medium, number of attributes and of map keys, revision of creation, checksum. Cost: the onode,
        which is cached or one descent."""
        with self.lock:
            onode = self._find(collection, name, rev)
            allocated = (onode.allocated + len(onode.blocks)) * self.superblock.block_size
            keys = len(onode.map) if onode.map is not None else 0
            checksum = "crc32c" if onode.is_checked else "none"
            return ObjectStat(onode.size, allocated, len(onode.attributes), keys, onode.created_rev, checksum)

    def read(self, collection: Name, name: Name, offset: int = 0, length: int | None = None, *, rev: int = 0) -> bytes:
        """Bytes of the data stream: short at its end, empty past it, zeros where it has holes. Every block is checked:
        CorruptionError names the first that is damaged. Cost: one read of the device for
        each run of neighbouring blocks."""
        offset, length = window(offset, length)
        pin = object()
        try:
            with self.lock:
                onode = self._find(collection, name, rev)
                wanted = onode.size - offset if length is None else length
                plan = data.ReadPlan(self.tables.space, onode, offset, wanted, f"object {object_name(name)!r}")
                self._pins[pin] = self.tables.pager.generation
            content = plan.run()
        except (CorruptionError, DeviceFailed):
            self.check_usable()  # closed meanwhile, the blocks may be another's
            raise
        finally:
            self._pins.pop(pin, None)
        self.check_usable()
        return content

    def extents(
        self, collection: Name, name: Name, offset: int = 0, length: int | None = None, *, rev: int = 0
    ) -> list[tuple[int, int]]:
        """Ranges (offset, length) of the data that are not holes, in order, in whole blocks, cut at the size. Reads the
        list of extents, no data."""
        offset, length = window(offset, length)
        with self.lock:
            onode = self._find(collection, name, rev)
            return data.ranges(self.tables.space, onode, offset, onode.size if length is None else length)

    def getattr(self, collection: Name, name: Name, attribute: Name, *, rev: int = 0) -> bytes:
        """One attribute; NotFound("attribute") where the object has it not. Cost: the onode."""
        key = name_bytes("attribute", attribute)
        with self.lock:
            value = self._find(collection, name, rev).attributes.get(key)
        if value is None:
            raise NotFound("attribute", key)
        return value

    def getattrs(self, collection: Name, name: Name, *, rev: int = 0) -> dict[bytes, bytes]:
        """All attributes in the order of their names, as a dict of the caller's own. Cost: the onode."""
        with self.lock:
            return dict(sorted(self._find(collection, name, rev).attributes.items()))

    def map_get(self, collection: Name, name: Name, key: bytes, *, rev: int = 0) -> bytes | None:
        """The value of one key of the object's map, None where there is none. Cost: the onode and one descent of the map, most
        of it in the page cache; `Store.map` keeps hold of the tree and is quicker."""
        wanted = frozen("key", key)
        with self.lock:
            tree = self._find(collection, name, rev).map
            return tree.get(wanted) if tree is not None else None

    def map_get_many(self, collection: Name, name: Name, keys: Sequence[bytes], *, rev: int = 0) -> list[bytes | None]:
        """The values of many keys, in the order of `keys`, all from one moment. Cost: the descents overlap, without the GIL."""
        wanted = many_frozen("keys", keys)
        with self.lock:
            tree = self._find(collection, name, rev).map
            return tree.get_many(wanted) if tree is not None else [None] * len(wanted)

    def map_header(self, collection: Name, name: Name, *, rev: int = 0) -> bytes:
        """The map's header, b"" where none was set. Cost: the onode."""
        with self.lock:
            tree = self._find(collection, name, rev).map
            return tree.user_blob if tree is not None else b""

    def map_items(
        self, collection: Name, name: Name, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False,
        rev: int = 0,
    ) -> Iterator[tuple[bytes, bytes]]:  # fmt: skip
        """start <= key < stop in order (reverse: from its end): the map as it was at the call, whatever writers do."""
        first, end = bound("start", start), bound("stop", stop)
        with self.lock:
            tree = self._find(collection, name, rev).map
            return tree.items(first, end, reverse=reverse) if tree is not None else iter(())

    def list_objects(
        self, collection: Name, start: Name | None = None, stop: Name | None = None, limit: int | None = None, *,
        reverse: bool = False,
    ) -> list[bytes]:  # fmt: skip
        """Names in order, start <= name < stop (reverse: the same range from its end), at most `limit`. Cost: a descent and each
        page that holds one of them; no other page is read than, to the end of the range, the one with the name behind it
        (reverse: before it)."""
        limit, low, high = page_limit(limit), name_bound("start", start) or b"", name_bound("stop", stop)
        with self.lock:
            number = self._collection_number(collection)
            first = object_key(number, low)
            last = object_key(number, high) if high is not None else object_key(number + 1, b"")
            self.tables.objects.isolated.check_range(first, last)
            keys = self.tables.objects.tree.keys(first, last, reverse=reverse)
            return [split_key(key)[1] for key in islice(keys, limit)]  # and no page behind the last of them is read

    def revisions(self, collection: Name, name: Name) -> list[Revision]:
        """The object's revisions, oldest first; the object itself need not exist. Cost: one onode for each."""
        home, raw = collection_name(collection), object_name(name)
        with self.lock:
            number = self._collection_number(home)
            self.tables.objects.isolated.check(object_key(number, raw))
            kept = revisions.of_object(self.tables.objects, number, raw)
            return [Revision(revisions.rev_of(onode), onode.created_rev) for onode in kept]

    def list_revised(
        self, collection: Name, start: Name | None = None, stop: Name | None = None, limit: int | None = None
    ) -> list[bytes]:
        """Names that have revisions, whether the object exists or not: start <= name < stop in order, at most `limit`.
        Cost: one descent for each name."""
        limit, first, last = page_limit(limit), name_bound("start", start) or b"", name_bound("stop", stop)
        with self.lock:
            number = self._collection_number(collection)
            end = object_key(number + 1, b"") if last is None else object_key(number, last)
            self.tables.objects.isolated.check_range(object_key(number, first), end)
            names = revisions.names(self.tables.objects, number, first, last)
            return list(islice(names, limit))

    def list_collections(self) -> list[bytes]:
        """Names of all collections, in order, from memory."""
        with self.lock:
            self.check_whole()
            return self.tables.collections.names()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _collection_number(self, name: Name) -> int:
        raw = collection_name(name)
        self.check_whole()
        collection = self.tables.collections.get(raw)
        if collection is None:
            raise NotFound("collection", raw)
        return collection.number

    def _lookup(self, collection: Name, name: Name, rev: int = 0) -> Onode | None:
        home, raw, rev = collection_name(collection), object_name(name), revision(rev)
        number, objects = self._collection_number(home), self.tables.objects
        if rev and objects.isolated:
            objects.isolated.check(object_key(number, raw))
        return revisions.find_at(objects, number, raw, rev) if rev else objects.get(number, raw)

    def _find(self, collection: Name, name: Name, rev: int = 0) -> Onode:
        onode = self._lookup(collection, name, rev)
        if onode is None:
            raise NotFound("object", object_name(name))
        return onode

    @contextmanager
    def pinned(self) -> Iterator[Superblock]:
        """The newest durable superblock; nothing it reaches is written over until the `with` ends."""
        pin = object()
        try:
            with self.lock:
                self.check_usable()
                chosen = self.superblock
                self._pins[pin] = chosen.epoch
            yield chosen
        finally:
            self._pins.pop(pin, None)
