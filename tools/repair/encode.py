"""Pages, roots, records and superblocks as bytes, from the format pages alone.

The counterpart of `mdstore.tools.reader`: what is written here is read back by that and by the engine, which know nothing of it.
docs/format/page.md, tree-root.md, superblock.md, onode.md, mds-*.md.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from mdstore.errors import UnsupportedFormat
from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.mds_directory import DIRECTORY_HEADER, Header
from mdstore.tools.reader.mds_inode import INODE_CORE, LINK, Inode
from mdstore.tools.reader.mds_tables import ServerRecord
from mdstore.tools.reader.onode import EXTENT, ONODE
from mdstore.tools.reader.page import (
    COMPARE_BYTES,
    COMPARE_U64_BE,
    DATED,
    DATED_OVERFLOW_INDEX,
    HEADER_SIZE,
    INDEX,
    LEAF,
    MAGIC,
    OVERFLOW_INDEX,
    PAGE_HEADER,
    REFERENCE_TAIL,
    ROOT_DATED,
    ROOT_PLAIN,
    ROOT_RECORD,
    SLOT,
    SLOT_SIZE,
    SPILLED,
    TWO_NUMBERS,
    Child,
    PageEntry,
    Record,
    Reference,
    Root,
    Spill,
    fixed_value_max,
)
from mdstore.tools.reader.superblock import MAGIC as SUPERBLOCK_MAGIC
from mdstore.tools.reader.superblock import ROOT_ENTRY, RUN, SIZE, SUPERBLOCK_HEAD, VERSION, Superblock

SPILLED_BELOW: Final = 1 << 63

_HAS_PAGES: Final = 2


# -- superblock --------------------------------------------------------------------------------------------------------
def superblock(block: Superblock) -> bytes:
    """The 4,096 bytes of a slot."""
    head = SUPERBLOCK_HEAD.pack(
        SUPERBLOCK_MAGIC, 0, VERSION, block.uuid, block.features_compatible, block.features_read_only,
        block.features_incompatible, block.epoch, block.block_size, block.flags, block.blocks, block.log_start,
        block.log_blocks, block.log_position, block.next_tree_id, block.next_collection_id, block.cursor, block.objects,
        block.stored_bytes, block.free_blocks, block.created_ns, block.written_ns, block.stripe_bytes, block.stripe_offset,
        bytes(16), len(block.spare_runs),
    )  # fmt: skip
    parts = [head, *(RUN.pack(*run) for run in block.spare_runs), struct.pack("<H", len(block.roots))]
    for kind, record in sorted(block.roots.items()):
        parts += [ROOT_ENTRY.pack(kind, len(record)), record]
    data = b"".join(parts).ljust(SIZE, b"\0")
    assert len(data) == SIZE, "root records are bounded, so a superblock always fits its slot"
    return data[:8] + crc32c(data[12:]).to_bytes(4, "little") + data[12:]


# -- roots and references ----------------------------------------------------------------------------------------------
def reference(ref: Reference) -> bytes:
    """What names a page."""
    return struct.pack(f"<{len(ref.addresses)}Q", *ref.addresses) + REFERENCE_TAIL.pack(ref.crc, ref.generation, ref.below)


def root(like: Root, count: int, level: int, content: Reference | Sequence[tuple[bytes, bytes]]) -> bytes:
    """A root record with the descriptor, id and user blob of `like`."""
    flags = like.flags & ~_HAS_PAGES | (_HAS_PAGES if isinstance(content, Reference) else 0)
    head = ROOT_RECORD.pack(
        ROOT_DATED if like.may_be_dated else ROOT_PLAIN, flags, like.comparator, level, like.key_size, like.embed_limit,
        like.value_size, len(like.user_blob), like.tree_id, count,
    )  # fmt: skip
    body = reference(content) if isinstance(content, Reference) else embedded(like, content)
    return head + like.user_blob + body


def embedded(like: Root, records: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Records as a root record holds them."""
    return b"".join(_sized(key, like.key_size) + _sized(value, like.value_size) for key, value in records)


def _sized(data: bytes, size: int) -> bytes:
    return data if size >= 0 else len(data).to_bytes(-size, "little") + data


# -- pages -------------------------------------------------------------------------------------------------------------
def leaf_cell(like: Root, page_size: int, record: Record) -> bytes:
    """A record as a leaf holds it. The value is one that stays in the leaf, or spilled already."""
    key, value = record
    if isinstance(value, Spill):
        body = TWO_NUMBERS.pack(value.length, value.generation) + b"".join(entry(one, value.is_dated) for one in value.entries)
        return key + (DATED if value.is_dated else SPILLED).to_bytes(2, "little") + body
    if 0 <= like.value_size <= fixed_value_max(page_size, like.copies):
        return key + value or b"\0"
    return key + len(value).to_bytes(2, "little") + value


def must_spill(like: Root, page_size: int, key: bytes, value: bytes) -> bool:
    """Whether a value is too long for its leaf: over a quarter of the room, or over half of it with slot and cell."""
    room = page_size - HEADER_SIZE
    if 0 <= like.value_size <= fixed_value_max(page_size, like.copies):
        return False
    return len(value) > room // 4 or SLOT_SIZE + len(key) + 2 + len(value) > room // 2


def entry(page: PageEntry, is_dated: bool) -> bytes:
    """What names a page of a spilled value."""
    data = struct.pack(f"<{len(page.addresses)}Q", *page.addresses) + page.crc.to_bytes(4, "little")
    return data + page.generation.to_bytes(8, "little") if is_dated else data


def leaf(like: Root, page_size: int, generation: int, records: Sequence[Record]) -> bytes:
    """A leaf page. The records fit."""
    cells = [leaf_cell(like, page_size, record) for record in records]
    return _page(like, page_size, generation, 0, [key for key, _ in records], cells)


def index(like: Root, page_size: int, generation: int, level: int, children: Sequence[Child]) -> bytes:
    """An index page; the first child's separator is left out."""
    keys = [b"", *(key for key, _ in children[1:])]
    cells = [key + reference(ref) for key, (_, ref) in zip(keys, children, strict=True)]
    return _page(like, page_size, generation, level, keys, cells)


def _page(like: Root, page_size: int, generation: int, level: int, keys: Sequence[bytes], cells: Sequence[bytes]) -> bytes:
    if like.comparator not in (COMPARE_BYTES, COMPARE_U64_BE):
        raise UnsupportedFormat(f"tree {like.tree_id} orders its keys by comparator {like.comparator}: not written by repair")
    at, slots = page_size, []
    for number, (key, cell) in enumerate(zip(keys, cells, strict=True)):
        at -= len(cell)
        head = 0 if level and not number else int.from_bytes(key[:4].ljust(4, b"\0"), "big")
        slots.append(SLOT.pack(head, at, len(key)))
    front = PAGE_HEADER.pack(
        0, MAGIC, like.tree_id, generation, level, INDEX if level else LEAF, len(keys), at, 0, 0, 0
    ) + b"".join(slots)
    assert len(front) <= at, "whoever packs a page counts its bytes"
    return sealed(front + bytes(at - len(front)) + b"".join(reversed(cells)))


def overflow_index(like: Root, page_size: int, generation: int, level: int, entries: Sequence[PageEntry]) -> bytes:
    """A page of entries above the pages of a spilled value, dated where the root's version allows it."""
    kind = DATED_OVERFLOW_INDEX if like.may_be_dated else OVERFLOW_INDEX
    head = PAGE_HEADER.pack(0, MAGIC, like.tree_id, generation, level, kind, len(entries), 0, 0, 0, 0)
    return sealed((head + b"".join(entry(one, like.may_be_dated) for one in entries)).ljust(page_size, b"\0"))


def sealed(data: bytes) -> bytes:
    """A page with its checksum."""
    return crc32c(data[4:]).to_bytes(4, "little") + data[4:]


# -- records -----------------------------------------------------------------------------------------------------------
def onode(
    value: bytes, *, created_rev: int, allocated: int, group: int, data_root: bytes | None, map_root: bytes | None
) -> bytes:
    """An object's record with some of its fields others; what follows the roots stays as it is."""
    version, flags, attributes, size, _, _, _ = ONODE.unpack_from(value)
    at = ONODE.size
    for flag in (1, 2):
        if flags & flag:
            at += 4 + int.from_bytes(value[at : at + 4], "little")
    flags = flags & ~3 | (1 if data_root is not None else 0) | (2 if map_root is not None else 0)
    head = ONODE.pack(version, flags, attributes, size, allocated, created_rev, group)
    roots = b"".join(len(part).to_bytes(4, "little") + part for part in (data_root, map_root) if part is not None)
    return head + roots + value[at:]


def extent_piece(value: bytes, skip: int, count: int) -> bytes:
    """Blocks `skip` .. `skip + count - 1` of an extent's record."""
    start, _, flags, birth = EXTENT.unpack_from(value)
    sums = value[EXTENT.size + 4 * skip : EXTENT.size + 4 * (skip + count)]
    return EXTENT.pack(start + skip, count, flags, birth) + sums


def collection(number: int, objects: int) -> bytes:
    """A collection's record."""
    return struct.pack("<BBHQQ", 1, 0, 0, number, objects)


# -- the name space ----------------------------------------------------------------------------------------------------
def inode(record: Inode) -> bytes:
    """An inode record."""
    core = INODE_CORE.pack(
        1, record.flags, 0, record.mode, record.ino, record.generation, record.nlink, record.uid, record.gid, record.rdev,
        record.size, record.allocated, record.atime, record.mtime, record.ctime, record.btime, record.change,
        len(record.target), 0, len(record.xattrs),
    )  # fmt: skip
    return core + record.target + record.xattrs


def link(tag: int, file_type: int, ino: int) -> bytes:
    """An entry whose inode lives elsewhere."""
    return LINK.pack(tag, file_type, 0, ino)


def directory_header(header: Header) -> bytes:
    """A directory's map header."""
    head = DIRECTORY_HEADER.pack(
        1, 0, len(header.name), 0, header.version, header.parent, header.rbytes, header.rfiles, header.rdirs, header.rctime,
        header.accounted_bytes, header.accounted_files, header.accounted_dirs, header.accounted_ctime,
    )  # fmt: skip
    return head + header.name + inode(header.inode)


def backtrace(directory: int, name: bytes, record: Inode) -> bytes:
    """The attribute of a file's first object."""
    return struct.pack("<BBHIQ", 1, 0, len(name), 0, directory) + name + inode(record)


def server_record(record: ServerRecord) -> bytes:
    """The map header of `table.server`."""
    return struct.pack(
        "<6sH16sqQQQQ", b"mdsfs\0", 1, record.identity, record.made_at, record.object_size, record.log_unit,
        record.log_object_size, 0,
    )  # fmt: skip
