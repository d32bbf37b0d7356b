"""One structure, decoded by itself from bytes that a person has cut out of an image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final, NamedTuple

from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.entry import HEADER_SIZE as ENTRY_HEADER_SIZE
from mdstore.tools.reader.entry import decode_head, decode_header
from mdstore.tools.reader.floors import decode_floor
from mdstore.tools.reader.mds_directory import decode_header as decode_directory
from mdstore.tools.reader.mds_events import decode_event
from mdstore.tools.reader.mds_inode import decode_entry, decode_inode
from mdstore.tools.reader.mds_tables import decode_backtrace, decode_server, decode_session
from mdstore.tools.reader.onode import decode_collection, decode_extent, decode_onode
from mdstore.tools.reader.page import COMPARE_BYTES, KIND_NAMES, Page, Root, Shape, decode_page, decode_root
from mdstore.tools.reader.problems import Damage, readable
from mdstore.tools.reader.snapshots import decode_snapshot
from mdstore.tools.reader.store import (
    COLLECTION_SHAPE,
    DATA_SHAPE,
    DEAD_SHAPE,
    FLOORS_SHAPE,
    FREE_SHAPE,
    GROUPS_SHAPE,
    MAP_SHAPE,
    OBJECT_SHAPE,
    SHARED_SHAPE,
    SNAPSHOTS_SHAPE,
)
from mdstore.tools.reader.storelog import decode_transaction
from mdstore.tools.reader.superblock import SIZE as SUPERBLOCK_SIZE
from mdstore.tools.reader.superblock import decode as decode_superblock

TREES: Final = {
    "map": MAP_SHAPE, "data": DATA_SHAPE, "objects": OBJECT_SHAPE, "collections": COLLECTION_SHAPE, "free": FREE_SHAPE,
    "shared": SHARED_SHAPE, "groups": GROUPS_SHAPE, "floors": FLOORS_SHAPE, "snapshots": SNAPSHOTS_SHAPE, "dead": DEAD_SHAPE,
}  # fmt: skip
_PAGE_MIN: Final = 256


@dataclass(frozen=True)
class Context:
    """What some structures need beside their bytes: the tree of a page, the key of a record, the kind of an event, the inode
    that a backtrace belongs to."""

    tree: str = "map"
    key: bytes = b""
    kind: int = 1
    ino: int = 0


class Structure(NamedTuple):
    """A structure that can be decoded alone. `size`: bytes it takes, 0 for all there are."""

    about: str
    size: int
    decode: Callable[[bytes, Context], object]


def _page(data: bytes, context: Context) -> object:
    if len(data) < _PAGE_MIN or len(data) & (len(data) - 1):
        raise Damage("page-structure", "length of a page", "a power of two from 256 on (the image's block size)", len(data))
    stored, computed = int.from_bytes(data[:4], "little"), crc32c(data[4:])
    if stored != computed:
        raise Damage("page-checksum", "checksum of a page", f"{stored:08x}", f"{computed:08x}")
    page = decode_page(data, _root_like(TREES[context.tree]))
    return {**plain_fields(page), "kind": KIND_NAMES[page.kind]} if isinstance(page, Page) else page


def _root_like(shape: Shape) -> Root:
    """A root record of the shape that the store gives that tree, with one copy of each page."""
    return Root(1 << 2, shape[2] or COMPARE_BYTES, 0, shape[0], 0, shape[1], 0, 0, b"", (), may_be_dated=True)


def _entry(data: bytes, context: Context) -> object:
    header = decode_header(data)
    if header is None:
        raise Damage("log-entry", "header of an entry", "an intact one at the first byte", data[:16])
    payload = data[ENTRY_HEADER_SIZE : ENTRY_HEADER_SIZE + header.length]
    found = crc32c(payload)
    return {
        **plain_fields(header),
        "payload": "cut short" if len(payload) < header.length else "intact" if found == header.payload_crc else "damaged",
        "payload_crc_computed": found,
    }


def _head(data: bytes, context: Context) -> object:
    return decode_head(data) or "an empty slot: zeros"


STRUCTURES: Final[dict[str, Structure]] = {
    "superblock": Structure("docs/format/superblock.md", SUPERBLOCK_SIZE, lambda data, _: decode_superblock(data)),
    "page": Structure("docs/format/page.md; the bytes are one block; --tree says whose", 0, _page),
    "root": Structure("a root record, docs/format/tree-root.md", 0, lambda data, _: decode_root(data)),
    "journal-head": Structure("docs/format/journal-head.md", 0, _head),
    "entry": Structure("an entry's header and its payload's checksum, docs/format/journal.md", 0, _entry),
    "transaction": Structure(
        "the payload of a store's entry, docs/format/store-log.md", 0, lambda data, _: decode_transaction(data)
    ),
    "event": Structure(
        "the payload of a metadata event, docs/format/mds-events.md; --kind is its type", 0,
        lambda data, context: decode_event(context.kind, data),
    ),
    "onode": Structure("docs/format/onode.md", 0, lambda data, _: decode_onode(data)),
    "collection": Structure("a record of the collections, docs/format/onode.md", 0, lambda data, _: decode_collection(data)),
    "extent": Structure(
        "a record of a data tree, docs/format/onode.md; --key is its key", 0,
        lambda data, context: decode_extent(context.key, data),
    ),
    "floor": Structure(
        "docs/format/floors.md; --key is its key", 0, lambda data, context: decode_floor(context.key, data)
    ),
    "snapshot": Structure(
        "docs/format/snapshots.md; --key is its name", 0, lambda data, context: decode_snapshot(context.key, data)
    ),
    "directory": Structure("a directory's header, docs/format/mds-directory.md", 0, lambda data, _: decode_directory(data)),
    "dentry": Structure("a directory's entry, docs/format/mds-directory.md", 0, lambda data, _: decode_entry(data)),
    "inode": Structure("docs/format/mds-inode.md", 0, lambda data, _: decode_inode(data)),
    "backtrace": Structure(
        "docs/format/mds-inode.md; --ino is the file's number", 0, lambda data, context: decode_backtrace(data, context.ino)
    ),
    "server": Structure("the server's record, docs/format/mds-tables.md", 0, lambda data, _: decode_server(data)),
    "session": Structure("a client's session, docs/format/mds-tables.md", 0, lambda data, _: decode_session(data)),
}  # fmt: skip


def decode_one(name: str, data: bytes, context: Context) -> Any:
    """The structure as plain values: mappings, lists, numbers, text. Damage, NotAnImage, UnsupportedFormat say what is wrong
    with it; bytes behind a structure of fixed size are left out of account."""
    structure = STRUCTURES[name]
    value = plain(structure.decode(data[: structure.size] if structure.size else data, context))
    return value if isinstance(value, dict) else {name: value}


def plain(value: object) -> Any:
    """Decoded values for people and programs; bytes as text, or `0x` and hex digits where they are none."""
    if isinstance(value, bytes):
        text = readable(value)
        return text if text.encode() == value and value else f"0x{value.hex()}"
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(item) for name, item in value._asdict().items()}
    if is_dataclass(value):
        return plain_fields(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, int | str | float | type(None)) else str(value)


def plain_fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass, plain."""
    return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
