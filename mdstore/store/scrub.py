"""Scrub: read everything an image holds from the medium and check it, beside traffic. Persisted state: docs/format/scrub.md.

What is read is the image of the newest superblock, through a page cache of its own, so that what memory holds cannot hide what
the medium lost: the log, the superblocks, every page of every tree, every block of data. The superblock is pinned for
a step at a time (bytes or seconds, whichever comes first): freed space waits no longer than that. No lock is held while reading.

Repairs: a page with copies is rewritten by the kernel from a good one; a damaged log is made superfluous by a checkpoint, and
damaged superblocks are rewritten by two. Data blocks have one copy: a finding names the object and the bytes of it that are lost.

Invariants
1. Everything before `Position` was read; after a crash or a stop the next run goes on there.
2. A finding is durable before the position that lies behind it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from journal import JournalCorrupt, JournalTrimmed
from mdstore.btree import Pager, Tree, crc32c_blocks
from mdstore.errors import AlreadyExists, CorruptionError, DeviceFailed, NotFound, TransactionError
from mdstore.limits import MIB
from mdstore.store import superblock
from mdstore.store.extents import Extent, decode_extent
from mdstore.store.onode import Record, data_descriptor, map_descriptor, split_key
from mdstore.store.snapshots import SnapshotView
from mdstore.store.superblock import Root, Superblock
from mdstore.store.transaction import Transaction

if TYPE_CHECKING:
    from mdstore.store.store import Store

COLLECTION = b"mdstore.scrub"
STATE = b"state"
KEY_POSITION = b"position"
KEY_REPORT = b"report"
KEY_FINDING = b"finding/"
VERSION = 1

PIN_BYTES = 64 * MIB  # read from one superblock before the next is taken
PIN_SECONDS = 2.0
CACHE_BYTES = 4 * MIB
_RECORDS_AT_ONCE = 256  # of a tree, between two looks at the clock
_STREAM_DATA, _STREAM_MAP = 1, 2
_DAMAGE = (CorruptionError, DeviceFailed)


class Position(NamedTuple):
    """Where to go on: tree of the superblock, its key; inside that object the stream and its key."""

    root: int = 0  # 0: log and superblocks come first
    key: bytes = b""
    stream: int = 0
    inner: bytes = b""


class Finding(msgspec.Struct, frozen=True, array_like=True):
    """One damage. `collection_number`, `name`: the object it belongs to (0 and empty: none); `repaired`: from a copy or by
    writing anew."""

    what: str
    where: str
    expected: str
    found: str
    collection_number: int
    name: bytes
    repaired: bool
    epoch: int


@dataclass(slots=True)
class ScrubReport:
    """What a scrub has read and found; of the whole pass, resumed runs included."""

    complete: bool = False
    resumed: bool = False
    objects: int = 0
    pages: int = 0
    bytes_read: int = 0
    bytes_total: int = 0  # an estimate: what the superblock says is in use
    copies_repaired: int = 0
    seconds: float = 0.0  # of this run
    findings: list[Finding] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether everything read so far was as it was written, or is so again."""
        return all(finding.repaired for finding in self.findings)


class _Saved(msgspec.Struct, array_like=True):
    """The record under `KEY_POSITION`."""

    version: int
    root: int
    key: bytes
    stream: int
    inner: bytes
    objects: int
    pages: int
    bytes_read: int
    copies_repaired: int
    findings: int


class Scrub:
    """One pass over a store, in one thread. `run` until it says `complete`; progress survives in the image."""

    def __init__(
        self, store: Store | SnapshotView, *, bytes_per_second: float | None = None, resume: bool = True,
        clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        """bytes_per_second: a ceiling for the whole run. resume: go on where the last run stopped, if one did. A snapshot is
        read whole each time, without the log, and keeps no state; what only a snapshot reaches is read by scrubbing that."""
        self._store = store
        self._rate = bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._position = Position()
        self._unsaved: list[Finding] = []
        self._groups: set[int] = set()  # of clones whose shared data was read in this run
        self._detour = 0  # reading behind damage, from the other end: the position stands still
        self._owner = (0, b"")
        self._base = 0
        self._run_bytes = 0
        self.report = ScrubReport()
        if isinstance(store, SnapshotView):
            return
        if resume:
            self._load(store)
        elif not store.read_only:
            _forget(store)

    def run(
        self, *, progress: Callable[[ScrubReport], None] | None = None, stop: Callable[[], bool] | None = None
    ) -> ScrubReport:
        """Read on to the end, or until `stop()`; `progress` is called about once per step. Durable: position and findings.

        Errors: StoreClosed; DeviceFailed when the position cannot be written. Damage is not an error but a finding.
        """
        report, began, before = self.report, self._clock(), self._run_bytes
        while not report.complete:
            with self._store.pinned() as pinned:
                report.bytes_total = (pinned.blocks - pinned.free_blocks) * pinned.block_size
                finished = self._step(pinned, began, before, stop)
            report.complete = finished
            report.seconds = self._clock() - began
            self._save()
            if progress is not None:
                progress(report)
            if stop is not None and stop():
                break
        return report

    def _step(self, pinned: Superblock, began: float, before: int, stop: Callable[[], bool] | None) -> bool:
        """Read until the pin has lasted long enough; True when nothing is left."""
        pager = Pager(self._store.device, page_size=pinned.block_size, cache_bytes=CACHE_BYTES)
        pager.generation = pinned.epoch + 1
        pager.page_bounds = pinned.first_block, pinned.blocks
        started, start_bytes = self._clock(), self._run_bytes
        base_pages, base_bytes, base_data = self.report.pages, self.report.bytes_read, self._run_bytes
        self._base = 0
        for _ in self._walk(pager, pinned):
            counters = pager.counters()
            self._run_bytes = base_data + self._base + counters["bytes_read"]
            self.report.bytes_read = base_bytes + self._base + counters["bytes_read"]
            self.report.pages = base_pages + counters["pages_read"]
            self._throttle(began, self._run_bytes - before)
            if self._position.root and self._is_enough(started, start_bytes, stop):
                self.report.copies_repaired += counters["copies_repaired"]
                return False
        self.report.copies_repaired += pager.counters()["copies_repaired"]
        return True

    def _is_enough(self, started: float, start_bytes: int, stop: Callable[[], bool] | None) -> bool:
        """Whether this superblock was pinned long enough."""
        if self._run_bytes - start_bytes >= PIN_BYTES or self._clock() - started >= PIN_SECONDS:
            return True
        return stop is not None and stop()

    def _throttle(self, began: float, done: int) -> None:
        if self._rate:
            ahead = done / self._rate - (self._clock() - began)
            if ahead > 0:
                self._sleep(ahead)

    # -- the walk ------------------------------------------------------------------------------------------------------

    def _walk(self, pager: Pager, pinned: Superblock) -> Iterator[None]:
        """Everything from the position on; yields between two reads, where it may be left."""
        if self._position.root == 0:
            if not isinstance(self._store, SnapshotView):
                yield from self._log_and_superblocks(self._store)
            self._position = Position(min(pinned.roots))
        for root in sorted(pinned.roots):
            if root < self._position.root:
                continue
            if root > self._position.root:
                self._position = Position(root)
            tree = Tree.open(pager, pinned.roots[root])
            if root == Root.OBJECTS:
                yield from self._objects(pager, tree, pinned)
            else:
                yield from self._records(tree, f"tree {root}", self._position.key, Position(root))
        self._position = Position(max(pinned.roots) + 1)

    def _objects(self, pager: Pager, tree: Tree, pinned: Superblock) -> Iterator[None]:
        resumed = self._position
        for key, raw in self._each(tree, "tree objects", resumed.key):
            here = Position(Root.OBJECTS, key)
            inside = resumed if key == resumed.key else here
            self._owner = split_key(key)
            self._advance(inside)
            try:
                yield from self._object(pager, Record(key, raw), inside, pinned.block_size)
            except CorruptionError as error:
                self._note(error)
            self._owner = (0, b"")
            self.report.objects += 1
            self._advance(Position(Root.OBJECTS, _next(tree, key)))
            yield

    def _object(self, pager: Pager, record: Record, inside: Position, block_size: int) -> Iterator[None]:
        group = record.onode.group
        if record.data_root and inside.stream <= _STREAM_DATA and group not in self._groups:
            tree = Tree.open(pager, record.data_root, data_descriptor(block_size))
            start = inside.inner if inside.stream == _STREAM_DATA else b""
            for key, value in self._each(tree, "data", start):
                self._extent(decode_extent(key, value), block_size)
                self._advance(Position(inside.root, inside.key, _STREAM_DATA, _next(tree, key)))
                yield
            if group:
                self._groups.add(group)
        if record.map_root:
            tree = Tree.open(pager, record.map_root, map_descriptor(block_size))
            start = inside.inner if inside.stream == _STREAM_MAP else b""
            yield from self._records(tree, "map", start, Position(inside.root, inside.key, _STREAM_MAP))

    def _records(self, tree: Tree, name: str, start: bytes, at: Position) -> Iterator[None]:
        """Read every record and value of a tree; yields now and then. `at`: the position of the tree, without its key."""
        for count, (key, _) in enumerate(self._each(tree, name, start)):
            if count % _RECORDS_AT_ONCE == _RECORDS_AT_ONCE - 1:
                following = _next(tree, key)
                self._advance(at._replace(inner=following) if at.stream else at._replace(key=following))
                yield

    def _advance(self, position: Position) -> None:
        if not self._detour:
            self._position = position

    def _each(self, tree: Tree, name: str, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The records from `start` on. Where a page cannot be read, those behind it follow from the other end: what lies
        between two bad pages is not seen, and the two findings say so."""
        last = start
        try:
            for pair in tree.items(start or None):
                last = pair[0]
                yield pair
            return
        except _DAMAGE as error:
            first = error.where
            self._note(error, f"{name}, after key {last.hex() or 'none'}")
        self._detour += 1
        try:
            for pair in tree.items(last or None, reverse=True):
                if pair[0] == last:
                    break
                yield pair
        except _DAMAGE as error:
            if error.where != first:
                self._note(error, f"{name}; nothing between this page and the one before was read")
        finally:
            self._detour -= 1

    def _extent(self, extent: Extent, block_size: int) -> None:
        """Read an extent from the medium and note every block that is not what was written."""
        device = self._store.device
        offset, length = extent.start * block_size, extent.blocks * block_size
        self._base += length
        try:
            found = crc32c_blocks(device.read(offset, length), block_size)
        except DeviceFailed as error:
            if extent.blocks == 1:
                self._note(error, f"data block {extent.logical}")
                return
            for block in range(extent.logical, extent.end):
                self._base -= block_size
                self._extent(extent.part(block, block + 1), block_size)
            return
        for i in range(extent.blocks if extent.checksums and found != extent.checksums else 0):
            expected, actual = extent.checksums[4 * i : 4 * i + 4], found[4 * i : 4 * i + 4]
            if expected != actual:
                where = f"bytes {(extent.logical + i) * block_size}+{block_size} of its data, device block {extent.start + i}"
                self._note(CorruptionError("data block", where, f"crc {expected[::-1].hex()}", actual[::-1].hex()))

    # -- log and superblocks -------------------------------------------------------------------------------------------

    def _log_and_superblocks(self, store: Store) -> Iterator[None]:
        bad = self._bad_superblocks()
        yield from self._log(store)
        if bad and not store.read_only:
            store.checkpoint()
            store.checkpoint()
        left = self._bad_superblocks() if bad else {}
        for where, reason in bad.items():
            self._note(CorruptionError("superblock", where, "a superblock of this image", reason), repaired=where not in left)
        yield

    def _log(self, store: Store) -> Iterator[None]:
        try:
            for batch in store.journal.batches():
                self._base += sum(len(entry.payload) for entry in batch)
                yield
        except JournalTrimmed:
            pass  # a checkpoint made the rest of it superfluous meanwhile
        except (JournalCorrupt, DeviceFailed) as error:
            if isinstance(error, JournalCorrupt) and error.position < store.journal.expire:
                return  # likewise, and it was wiped at once
            if not store.read_only:
                store.checkpoint()  # memory knows what the log said
            if isinstance(error, JournalCorrupt):
                evidence = CorruptionError("log entry", f"position {error.position}", error.evidence, error.found)
                self._note(evidence, repaired=not store.read_only)
            else:
                self._note(error, "the log", repaired=not store.read_only)

    def _bad_superblocks(self) -> dict[str, str]:
        """Copies that are bad in two looks: one may have met a checkpoint's write."""
        looks = [
            {where: str(error) for _, where, error in superblock.candidates(self._store.device) if error is not None}
            for _ in range(2)
        ]
        return {where: error for where, error in looks[0].items() if where in looks[1]}

    def _note(self, error: CorruptionError | DeviceFailed, context: str = "", *, repaired: bool = False) -> None:
        self._store.check_usable()  # what a store that was closed meanwhile cannot read is no damage
        number, name = self._owner
        if isinstance(error, CorruptionError):
            what, where, expected, found = error.what, error.where, str(error.expected), str(error.found)
        else:
            what, where, expected, found = f"unreadable ({error.operation})", error.where, "bytes", str(error.cause)
        where = f"{where} ({context})" if context else where
        finding = Finding(what, where, expected, found, number, name, repaired, self._store.superblock.epoch)
        if finding not in self._unsaved:
            self._unsaved.append(finding)

    # -- what is kept in the image -------------------------------------------------------------------------------------

    def _load(self, store: Store) -> None:
        raw = _state(store).get(KEY_POSITION)
        if raw is None:
            if not store.read_only:
                _forget(store)
            return
        saved = msgspec.msgpack.decode(raw, type=_Saved)
        self._position = Position(saved.root, saved.key, saved.stream, saved.inner)
        self.report = ScrubReport(
            resumed=True, objects=saved.objects, pages=saved.pages, bytes_read=saved.bytes_read,
            copies_repaired=saved.copies_repaired, findings=findings(store),
        )  # fmt: skip

    def _save(self) -> None:
        report = self.report
        fresh = [finding for finding in self._unsaved if finding not in report.findings]
        first = len(report.findings)
        report.findings += fresh
        self._unsaved = []
        if isinstance(self._store, SnapshotView) or self._store.read_only:
            return
        rows = {_finding_key(first + i): msgspec.msgpack.encode(finding) for i, finding in enumerate(fresh)}
        saved = _Saved(
            VERSION, *self._position, report.objects, report.pages, report.bytes_read, report.copies_repaired,
            len(report.findings),
        )  # fmt: skip
        rows[KEY_REPORT if report.complete else KEY_POSITION] = msgspec.msgpack.encode(saved)
        transaction = Transaction().map_set(COLLECTION, STATE, rows)
        if report.complete:
            transaction.map_remove(COLLECTION, STATE, [KEY_POSITION])
        _apply(self._store, transaction)


def scrub(store: Store | SnapshotView, *, bytes_per_second: float | None = None, resume: bool = True) -> ScrubReport:
    """Read and check the whole image now; see `Scrub`. Safe beside every other use of the store."""
    return Scrub(store, bytes_per_second=bytes_per_second, resume=resume).run()


def findings(store: Store) -> list[Finding]:
    """What the last scrub (or the one under way) has found, oldest first."""
    state = _state(store)
    rows = sorted((key, value) for key, value in state.items() if key.startswith(KEY_FINDING))
    return [msgspec.msgpack.decode(value, type=Finding) for _, value in rows]


def _next(tree: Tree, key: bytes) -> bytes:
    """The smallest key a tree may hold after `key`."""
    if tree.descriptor.key_size > 0:
        return ((int.from_bytes(key, "big") + 1) % (1 << 8 * len(key))).to_bytes(len(key), "big")
    return key + b"\0"


def _finding_key(number: int) -> bytes:
    return KEY_FINDING + number.to_bytes(8, "big")


def _state(store: Store) -> dict[bytes, bytes]:
    try:
        return dict(store.map_items(COLLECTION, STATE))
    except NotFound:
        return {}


def _forget(store: Store) -> None:
    if _state(store):
        store.apply(Transaction().map_clear(COLLECTION, STATE))


def _apply(store: Store, transaction: Transaction) -> None:
    try:
        store.apply(transaction)
    except TransactionError as error:
        if not isinstance(error.cause, NotFound):
            raise
        try:
            store.apply(Transaction().create_collection(COLLECTION))
        except TransactionError as other:
            if not isinstance(other.cause, AlreadyExists):
                raise
        store.apply(transaction)
