"""What `mdstore dump` shows: each view is a list of sections, each section either facts or rows, with stable keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from mdstore.errors import InvalidRequest, NotAnImage, NotFound
from mdstore.tools.reader.check_events import open_name_space
from mdstore.tools.reader.check_log import LogCheck
from mdstore.tools.reader.check_superblock import choose_superblock, own_copies
from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.floors import decode_floor
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.mds_view import NameSpace
from mdstore.tools.reader.onode import Onode, decode_extent
from mdstore.tools.reader.overlay import Overlay
from mdstore.tools.reader.page import KIND_NAMES, Reference, Root, Spill, decode_page, decode_root
from mdstore.tools.reader.problems import Damage, Findings, Problem, readable, readable_name
from mdstore.tools.reader.ring import Ring
from mdstore.tools.reader.scan import Scan
from mdstore.tools.reader.snapshots import dead_runs, offered, snapshots_of
from mdstore.tools.reader.store import DATA_SHAPE, StoreReader
from mdstore.tools.reader.storelog import decode_transaction
from mdstore.tools.reader.superblock import ROOT_FLOORS, ROOT_NAMES, Superblock, read_copies, usable

Facts = dict[str, object]


@dataclass(slots=True)
class Section:
    """A titled part of a view: `facts` (one record) or `rows` (many, read as they are shown). `is_tree`: each row has a
    `path`, and comes after the row of what holds it."""

    name: str
    facts: Facts | None = None
    rows: Iterable[Facts] = field(default_factory=list)
    is_tree: bool = False


class Source:
    """An open image and what was found in it. `problems` collects damage met on the way."""

    def __init__(self, image: Image, kept: Superblock | None = None) -> None:
        """`kept`: that of a snapshot, whose state is meant, instead of the image's newest one with its log."""
        self.image = image
        self.copies = read_copies(image)
        self.problems: list[Problem] = []
        self.findings = Findings(self.problems.append)
        found = usable(own_copies(image, self.copies))
        if not found:
            raise NotAnImage(f"{image.path} has no usable superblock; `mdstore fsck` says why")
        self._with_log = kept is None
        self.superblock: Superblock = kept or choose_superblock(image, found, self.findings)
        self.reader = StoreReader(image, self.superblock, on_damage=self.findings.add_damage)
        self._overlay: Overlay | None = None

    @property
    def overlay(self) -> Overlay:
        """The objects once the log is replayed."""
        if self._overlay is None:
            self._overlay = Overlay(self.reader)
            if self._with_log:
                LogCheck(self.image, self.superblock, self.findings, self.reader).run(self._overlay)
        return self._overlay

    def names(self) -> NameSpace:
        """The name space, events applied. NotFound when the image holds none; Damage when what is damaged may have held it."""
        names = open_name_space(self.overlay, self.findings)
        if names is None and self.findings.errors:
            raise Damage("root-record", "no file system is left to be read; `mdstore fsck` says what is damaged")
        if names is None:
            raise NotFound("file system in", self.image.path)
        return names

    def object(self, collection: str, name: str) -> Onode:
        """An object as the superblock knows it. NotFound."""
        wanted = as_bytes(collection)
        for found, record in self.reader.collections():
            if found == wanted:
                onode = self.reader.find(record.number, as_bytes(name))
                if onode is None:
                    listing = f"`mdstore dump {self.image.path} objects` lists those there are"
                    raise NotFound("object", f"{typed(collection)}/{typed(name)}; {listing}")
                return onode
        there = [readable_name(found) for found, _ in self.reader.collections()]
        raise NotFound("collection", f"{typed(collection)}; {offered(there, 'the image')}")


def as_bytes(text: str) -> bytes:
    """A name as typed: `0x` and hex digits for bytes that are no text."""
    if text.startswith("0x"):
        try:
            return bytes.fromhex(text[2:])
        except ValueError:
            pass
    return text.encode("utf-8", "surrogateescape")


def typed(text: str) -> str:
    """What was typed, as a terminal may see it again: escaped where it is not printable."""
    return readable(text.encode("utf-8", "surrogateescape"))


def as_number(text: str) -> int:
    """A number as typed, below 2**64: decimal, or hexadecimal behind `0x`. InvalidRequest."""
    try:
        number = int(text, 0)
    except ValueError as error:
        raise InvalidRequest(f"{text!r} is no number") from error
    if not 0 <= number < 1 << 64:
        raise InvalidRequest(f"{text} is no number of 64 bits")
    return number


# -- superblocks -------------------------------------------------------------------------------------------------------
def superblock_view(source: Source) -> Iterator[Section]:
    """The superblock that counts, and the state of its copies."""
    block = source.superblock
    yield Section(
        "superblock",
        {
            "version": block.version,
            "uuid": block.uuid.hex(),
            "epoch": block.epoch,
            "closed_in_order": block.is_clean,
            "block_size": block.block_size,
            "blocks": block.blocks,
            "size_bytes": block.blocks * block.block_size,
            "free_blocks": block.free_blocks,
            "spare_runs": [list(run) for run in block.spare_runs],
            "objects": block.objects,
            "stored_bytes": block.stored_bytes,
            "log_start": block.log_start,
            "log_blocks": block.log_blocks,
            "log_position": block.log_position,
            "next_tree_id": block.next_tree_id,
            "next_collection_id": block.next_collection_id,
            "cursor": block.cursor,
            "features_compatible": block.features_compatible,
            "features_read_only": block.features_read_only,
            "features_incompatible": block.features_incompatible,
            "created": moment(block.created_ns),
            "written": moment(block.written_ns),
        },
    )
    yield Section(
        "copies",
        rows=[
            {
                "slot": copy.slot,
                "copy": "spare" if copy.is_spare else "primary",
                "byte": copy.offset,
                "epoch": copy.superblock.epoch if copy.superblock else None,
                "state": str(copy.error) if copy.error else "intact",
            }
            for copy in source.copies
        ],
    )


def moment(nanoseconds: int) -> str:
    """A time for people, to the nanosecond, in UTC."""
    seconds, rest = divmod(nanoseconds, 10**9)
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{rest:09}Z"
    except (OverflowError, ValueError, OSError):
        return str(nanoseconds)


def snapshots_view(source: Source) -> Iterator[Section]:
    """The snapshots of the store, and what only they hold."""
    kept = sorted(snapshots_of(source.reader), key=lambda found: found.superblock.epoch)
    yield Section(
        "snapshots",
        rows=[
            {
                "name": readable_name(found.name),
                "epoch": found.superblock.epoch,
                "created": moment(found.created_ns),
                "objects": found.superblock.objects,
                "stored_bytes": found.superblock.stored_bytes,
                "deleting": found.is_deleting,
            }
            for found in kept
        ],
    )
    yield Section("dead", rows=(run._asdict() for run in dead_runs(source.reader)))


# -- trees and objects -------------------------------------------------------------------------------------------------
def trees_view(source: Source) -> Iterator[Section]:
    """The superblock's own trees."""
    yield Section("trees", rows=[_tree_row(source, kind) for kind in source.superblock.roots])


def _tree_row(source: Source, kind: int) -> Facts:
    try:
        return {"name": ROOT_NAMES[kind], **source.reader.root_tree(kind).root.as_facts()}
    except Damage as damage:
        return {"name": ROOT_NAMES[kind], "damage": str(damage)}


def collections_view(source: Source) -> Iterator[Section]:
    """All collections."""
    yield Section(
        "collections",
        rows=(
            {"name": readable(name), "number": record.number, "objects": record.objects}
            for name, record in source.reader.collections()
        ),
    )


def objects_view(source: Source) -> Iterator[Section]:
    """All objects, as of the superblock."""
    yield Section("objects", rows=_object_rows(source))


def _object_rows(source: Source) -> Iterator[Facts]:
    for collection, record in source.reader.collections():
        for name, onode in source.reader.objects(record.number):
            yield {"collection": readable(collection), "name": readable(name), **_onode_facts(onode)}


def _onode_facts(onode: Onode) -> Facts:
    return {
        "size": onode.size,
        "allocated_blocks": onode.allocated,
        "attributes": len(onode.attributes),
        "has_map": onode.map_root is not None,
    }


def object_view(source: Source, collection: str, name: str) -> Iterator[Section]:
    """One object: onode, attributes, extents, map."""
    onode = source.object(collection, name)
    facts: Facts = {"collection": collection, "name": name, **_onode_facts(onode)}
    facts.update(created_rev=onode.created_rev, group=onode.group, hint=list(onode.hint) if onode.hint else None)
    yield Section("object", facts)
    yield Section(
        "attributes",
        rows=[
            {"name": readable(key), "bytes": len(value), "value": value[:64].hex()} for key, value in onode.attributes
        ],
    )
    if onode.data_root is not None:
        tree = source.reader.tree(onode.data_root, DATA_SHAPE)
        yield Section("data_tree", tree.root.as_facts())
        extents = (decode_extent(key, value) for key, value in tree.items())
        yield Section(
            "extents",
            rows=(
                {
                    "logical": extent.logical,
                    "start": extent.start,
                    "blocks": extent.blocks,
                    "checksums": extent.checksums.hex(),
                }
                for extent in extents
            ),
        )
    if onode.map_root is not None:
        yield Section("map_tree", source.reader.tree(onode.map_root, None).root.as_facts())
        yield Section(
            "map_header",
            {"bytes": len(source.reader.map_header(onode)), "value": source.reader.map_header(onode).hex()},
        )
        yield Section(
            "map",
            rows=(
                {"key": readable(key), "bytes": len(value), "value": value[:64].hex()}
                for key, value in source.reader.map_items(onode)
            ),
        )


def page_view(source: Source, number: str) -> Iterator[Section]:
    """One page, whatever tree it belongs to, decoded by what its own bytes say (its tree's descriptor is looked for)."""
    address, size = _block_number(source, number), source.superblock.block_size
    data = source.image.read(address * size, size)
    tree_id = int.from_bytes(data[8:16], "little")
    stored, computed = int.from_bytes(data[:4], "little"), crc32c(data[4:])
    facts: Facts = {
        "page": address,
        "byte": address * size,
        "tree": tree_id,
        "crc": f"{stored:08x}",
        "crc_computed": f"{computed:08x}",
    }
    roots = [_root_of(source, kind) for kind in source.superblock.roots]
    root = next((root for root in roots if root is not None and root.tree_id == tree_id), decode_root(_SOME_ROOT))
    try:
        page = decode_page(data, root)
    except Damage as damage:
        source.findings.add_damage(damage.located(page=address, byte=address * size))
        yield Section("page", {**facts, "damage": str(damage)})
        return
    kind = KIND_NAMES[page.kind]
    yield Section("page", {**facts, "kind": kind, "level": page.level, "generation": page.generation})
    if page.children:
        yield Section("children", rows=[_child_facts(separator, reference) for separator, reference in page.children])
    if page.records:
        yield Section("records", rows=[_record_facts(key, value) for key, value in page.records])
    if page.entries:
        yield Section(
            "entries", rows=[{"page": entry.addresses[0], "crc": f"{entry.crc:08x}"} for entry in page.entries]
        )


def _block_number(source: Source, number: str) -> int:
    address, blocks = as_number(number), source.image.size // source.superblock.block_size
    if not 0 <= address < blocks:
        raise InvalidRequest(f"block {address}: the image has blocks 0 to {blocks - 1}")
    return address


def raw_view(source: Source, number: str) -> Iterator[Section]:
    """The bytes of one block, sixteen to a row."""
    address, size = _block_number(source, number), source.superblock.block_size
    data = source.image.read(address * size, size)
    yield Section("block", {"block": address, "byte": address * size, "bytes": size, "crc_of_all": f"{crc32c(data):08x}"})
    yield Section(
        "bytes",
        rows=(
            {"byte": address * size + at, "hex": data[at : at + 16].hex(" "), "text": _printable(data[at : at + 16])}
            for at in range(0, size, 16)
        ),
    )


def _printable(data: bytes) -> str:
    return "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)


def floors_view(source: Source) -> Iterator[Section]:
    """The lowest epochs that writers must carry, as of the superblock."""
    rows = source.reader.root_tree(ROOT_FLOORS).items() if ROOT_FLOORS in source.superblock.roots else iter(())
    yield Section("floors", rows=(_floor_facts(source, key, value) for key, value in rows))


def _floor_facts(source: Source, key: bytes, value: bytes) -> Facts:
    try:
        floor = decode_floor(key, value)
    except Damage as damage:
        source.findings.add_damage(damage)
        return {"scope": "(damaged)", "collection": key.hex(), "name": "", "floor": None}
    return {
        "scope": floor.scope,
        "collection": readable(floor.collection),
        "name": readable(floor.name),
        "floor": floor.floor,
    }


# What most trees of objects look like: for pages whose tree is not one of the superblock's own.
_SOME_ROOT: Final = bytes([1, 4, 1, 0]) + b"\xfe\xff\0\0\xfc\xff\xff\xff" + bytes(20)


def _root_of(source: Source, kind: int) -> Root | None:
    try:
        return source.reader.root_tree(kind).root
    except Damage:
        return None


def _child_facts(separator: bytes, reference: Reference) -> Facts:
    return {
        "separator": separator.hex(),
        "page": reference.addresses[0],
        "crc": f"{reference.crc:08x}",
        "generation": reference.generation,
        "records": reference.records,
    }


def _record_facts(key: bytes, value: bytes | Spill) -> Facts:
    size = value.length if isinstance(value, Spill) else len(value)
    start = value[:32].hex() if isinstance(value, bytes) else f"spilled to page {value.entries[0].addresses[0]}"
    return {"key": key.hex(), "text": readable(key), "bytes": size, "value": start}


# -- the log -----------------------------------------------------------------------------------------------------------
def log_view(source: Source) -> Iterator[Section]:
    """The store's log after the checkpoint."""
    ring = Ring(source.image, source.superblock)
    head = ring.read_head(source.findings.add_damage)
    yield Section("head", {name: getattr(head, name) for name in head.__slots__})
    scan = Scan(ring, head, source.superblock.log_position)
    yield Section("entries", rows=_log_rows(scan))
    tail = scan.tail()
    for _, _, damage in tail.unreadable:
        source.findings.add_damage(damage)
    yield Section("tail", {"end": tail.end, "kind": tail.kind, "entries": scan.count, "witness": tail.witness})


def _log_rows(scan: Scan) -> Iterator[Facts]:
    for entry in scan.entries():
        facts: Facts = {
            "position": entry.header.position,
            "sequence": entry.header.sequence,
            "generation": entry.header.generation,
            "bytes": entry.header.length,
        }
        try:
            transaction = decode_transaction(entry.payload)
        except Damage as damage:
            yield {**facts, "operations": str(damage)}
            continue
        yield {
            **facts,
            "epoch": transaction.epoch,
            "operations": [_words(op.name, op.operands) for op in transaction.operations],
        }


def _words(name: str, operands: tuple[object, ...]) -> str:
    parts = [readable(part[:40]) if isinstance(part, bytes) else str(part)[:80] for part in operands]
    return " ".join([name.lower(), *parts])
