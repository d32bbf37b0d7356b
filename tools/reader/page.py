"""Tree pages and root records: docs/format/page.md, tree-root.md."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Final, NamedTuple, TypeAlias

from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.problems import Damage

MAGIC: Final = 0x3174626D
HEADER_SIZE: Final = 40
SLOT_SIZE: Final = 8
LEAF: Final = 1
INDEX: Final = 2
OVERFLOW_INDEX: Final = 3
DATED_OVERFLOW_INDEX: Final = 4
OVERFLOW_KINDS: Final = (OVERFLOW_INDEX, DATED_OVERFLOW_INDEX)
KIND_NAMES: Final = {
    LEAF: "leaf", INDEX: "index", OVERFLOW_INDEX: "overflow index", DATED_OVERFLOW_INDEX: "dated overflow index",
}  # fmt: skip
COMPARE_BYTES: Final = 1
COMPARE_U64_LE: Final = 2
COMPARE_U64_BE: Final = 3
COMPARE_I64: Final = 4
COMPARE_REVERSE: Final = 5
COMPARE_PAIR: Final = 6
KEY_MAX: Final = 1024
VALUE_MAX: Final = 1 << 30
SPILLED: Final = 0xFFFF  # in the place of a value's length: it lies in pages of its own,
DATED: Final = 0xFFFE  # or does, with a generation for each of them
ROOT_PLAIN: Final = 1
ROOT_DATED: Final = 2
RECORDS_MASK: Final = (1 << 63) - 1

PAGE_HEADER: Final = struct.Struct("<IIQQBBHIIHH")
SLOT: Final = struct.Struct("<IHH")
ROOT_RECORD: Final = struct.Struct("<BBBBhHiIQQ")
REFERENCE_TAIL: Final = struct.Struct("<IQQ")  # of a reference, behind its addresses: crc, generation, records
TWO_NUMBERS: Final = struct.Struct("<QQ")
assert (PAGE_HEADER.size, SLOT.size, ROOT_RECORD.size, REFERENCE_TAIL.size) == (HEADER_SIZE, SLOT_SIZE, 32, 20)


class Shape(NamedTuple):
    """What an owner expects its tree to be."""

    key_size: int
    value_size: int
    comparator: int


class Reference(NamedTuple):
    """What names a page: addresses of its copies, its checksum, generation, and how many records lie below."""

    addresses: tuple[int, ...]
    crc: int
    generation: int
    below: int

    @property
    def records(self) -> int:
        return self.below & RECORDS_MASK

    @property
    def has_spilled(self) -> bool:
        """Some value below lies in pages of its own."""
        return bool(self.below >> 63)


class PageEntry(NamedTuple):
    """What names a page of a spilled value. `generation`: its own, or (undated) that of the whole value."""

    addresses: tuple[int, ...]
    crc: int
    generation: int


class Spill(NamedTuple):
    """A value in pages of its own."""

    length: int
    generation: int
    entries: tuple[PageEntry, ...]
    is_dated: bool


Record: TypeAlias = tuple[bytes, bytes | Spill]
Child: TypeAlias = tuple[bytes, Reference]


@dataclass(frozen=True, slots=True)
class Root:
    """A root record. `content` is the reference to the root page, or the embedded records."""

    flags: int
    comparator: int
    level: int
    key_size: int
    embed_limit: int
    value_size: int
    tree_id: int
    count: int
    user_blob: bytes
    content: Reference | tuple[tuple[bytes, bytes], ...]
    may_be_dated: bool = False

    @property
    def has_duplicates(self) -> bool:
        return bool(self.flags & 1)

    @property
    def copies(self) -> int:
        return self.flags >> 2 & 3

    def as_facts(self) -> dict[str, object]:
        """For people and programs."""
        facts: dict[str, object] = {
            "tree": self.tree_id,
            "records": self.count,
            "level": self.level,
            "key_size": self.key_size,
            "value_size": self.value_size,
            "comparator": self.comparator,
            "copies": self.copies,
            "embed_limit": self.embed_limit,
            "blob_bytes": len(self.user_blob),
        }
        if isinstance(self.content, Reference):
            facts.update(
                page=self.content.addresses[0], crc=f"{self.content.crc:08x}", generation=self.content.generation
            )
        return facts


@dataclass(frozen=True, slots=True)
class Page:
    """A page, checked by itself: its records (leaf), children (index) or entries (overflow index)."""

    tree_id: int
    generation: int
    level: int
    kind: int
    records: list[Record]
    children: list[Child]
    entries: list[PageEntry]
    has_spilled: bool


# -- root records ------------------------------------------------------------------------------------------------------
def decode_root(data: bytes, expect: Shape | None = None) -> Root:
    """A root record. Damage (`root-record`)."""
    if len(data) < ROOT_RECORD.size:
        raise Damage("root-record", "root record cut short", f"at least {ROOT_RECORD.size} bytes", len(data))
    version, flags, comparator, level, key_size, embed_limit, value_size, blob_length, tree_id, count = (
        ROOT_RECORD.unpack_from(data)
    )
    if version not in (ROOT_PLAIN, ROOT_DATED) or flags & ~0xF or not 1 <= flags >> 2 & 3 <= 3 or not 1 <= comparator <= 6:
        raise Damage("root-record", "root record", "version 1 or 2, known flags and comparator", data[:4])
    if not (key_size > 0 or key_size in (-1, -2, -4)) or not (value_size >= 0 or value_size in (-1, -2, -4)):
        raise Damage("root-record", "root record's sizes", "fixed or a prefix of 1, 2 or 4", (key_size, value_size))
    if expect is not None and (key_size, value_size, comparator, flags & 1) != (*expect, 0):
        raise Damage("root-record", "root record's descriptor", tuple(expect), (key_size, value_size, comparator))
    at = ROOT_RECORD.size + blob_length
    if at > len(data):
        raise Damage("root-record", "root record's blob", f"at most {len(data) - ROOT_RECORD.size} bytes", blob_length)
    content: Reference | tuple[tuple[bytes, bytes], ...]
    if flags & 2:
        copies = flags >> 2 & 3
        if len(data) != at + 8 * copies + REFERENCE_TAIL.size:
            raise Damage("root-record", "root record length", at + 8 * copies + REFERENCE_TAIL.size, len(data))
        content = _reference(data, at, copies)
    else:
        content = _embedded(data, at, key_size, value_size, bool(flags & 1))
        if level or len(content) != count:
            raise Damage(
                "root-record", "records embedded in the root", f"level 0, {count} records", (level, len(content))
            )
    blob = data[ROOT_RECORD.size : at]
    may_be_dated = version == ROOT_DATED
    return Root(
        flags, comparator, level, key_size, embed_limit, value_size, tree_id, count, blob, content, may_be_dated
    )


def _embedded(
    data: bytes, at: int, key_size: int, value_size: int, has_duplicates: bool
) -> tuple[tuple[bytes, bytes], ...]:
    records = []
    while at < len(data):
        key, at = _sized(data, at, key_size if not has_duplicates else -2)
        value, at = _sized(data, at, value_size) if not has_duplicates else (b"", at)
        records.append((key, value))
    return tuple(records)


def _sized(data: bytes, at: int, size: int) -> tuple[bytes, int]:
    """A key or value of fixed size, or behind its length prefix."""
    length = size
    if size < 0:
        length = int.from_bytes(data[at : at - size], "little")
        at -= size
    if at + length > len(data):
        raise Damage("root-record", "record embedded in the root", f"{length} bytes", f"{len(data) - at} are left")
    return data[at : at + length], at + length


def _reference(data: bytes, at: int, copies: int) -> Reference:
    addresses = struct.unpack_from(f"<{copies}Q", data, at)
    return Reference(addresses, *REFERENCE_TAIL.unpack_from(data, at + 8 * copies))


# -- pages -------------------------------------------------------------------------------------------------------------
def decode_page(data: bytes, root: Root) -> Page:
    """A page whose checksum is that of its reference. Damage (`page-identity`, `page-structure`, `page-order`)."""
    _, magic, tree_id, generation, level, kind, count, heap, dead, skip, reserved = PAGE_HEADER.unpack_from(data)
    if magic != MAGIC or kind not in KIND_NAMES or reserved:
        raise Damage("page-identity", "page header", "magic mbt1, a known kind, reserved 0", data[4:40])
    if kind in OVERFLOW_KINDS:
        entries = _overflow_entries(data, count, root.copies, generation, kind == DATED_OVERFLOW_INDEX)
        return Page(tree_id, generation, level, kind, [], [], entries, False)
    if (level == 0) != (kind == LEAF):
        raise Damage("page-identity", "page level", "0 exactly in a leaf", f"level {level}, {KIND_NAMES[kind]}")
    slots = _slots(data, count, heap)
    cells: list[tuple[int, int]] = []
    if kind == LEAF:
        records = [_leaf_record(data, offset, length, root, cells) for _, offset, length in slots]
        _check_keys([key for key, _ in records], slots, skip, root, kind)
        _check_heap(data, cells, heap, dead)
        _check_dates("a spilled value", [value.generation for _, value in records if type(value) is Spill], generation)
        return Page(
            tree_id, generation, level, kind, records, [], [], any(type(value) is Spill for _, value in records)
        )
    children = [_index_record(data, offset, length, root.copies, cells) for _, offset, length in slots]
    if not children or children[0][0]:
        raise Damage(
            "page-structure", "first slot of an index page", "no key", children[0][0] if children else "no slot"
        )
    _check_keys([key for key, _ in children], slots, skip, root, kind)
    _check_heap(data, cells, heap, dead)
    _check_dates("a reference", [reference.generation for _, reference in children], generation)
    return Page(tree_id, generation, level, kind, [], children, [], False)


def _check_dates(what: str, found: list[int], generation: int) -> None:
    """Nothing that a page names, or was written in it, is younger than the page."""
    youngest = max(found, default=0)
    if youngest > generation:
        raise Damage("page-structure", f"generation of {what}", f"at most {generation}", youngest)


def _slots(data: bytes, count: int, heap: int) -> list[tuple[int, int, int]]:
    end = HEADER_SIZE + SLOT_SIZE * count
    if not end <= heap <= len(data):
        raise Damage("page-structure", "page heap", f"{end} .. {len(data)}", heap)
    if any(data[end:heap]):
        raise Damage("page-structure", "bytes between slots and cells", "zeros", "others")
    return [(slot[0], slot[1], slot[2]) for slot in SLOT.iter_unpack(data[HEADER_SIZE:end])]


def _leaf_record(data: bytes, offset: int, length: int, root: Root, cells: list[tuple[int, int]]) -> Record:
    at = offset + length
    key = data[offset:at]
    size = root.value_size
    value: bytes | Spill
    if root.has_duplicates:
        value = b""
    elif 0 <= size <= fixed_value_max(len(data), root.copies):
        value = data[at : at + size]
        at += size
    else:
        size = int.from_bytes(data[at : at + 2], "little")
        at += 2
        if size == SPILLED or (size == DATED and root.may_be_dated):
            value, at = _spill(data, at, root.copies, size == DATED)
        else:
            value = data[at : at + size]
            at += size
    if at > len(data) or (root.key_size > 0 and length != root.key_size and not root.has_duplicates):
        raise Damage("page-structure", "leaf cell", f"inside the page, keys of {root.key_size}", (offset, length, at))
    cells.append((offset, max(1, at - offset)))
    return key, value


@cache
def fixed_value_max(page_size: int, copies: int) -> int:
    """The largest fixed size at which values stand alone: a quarter, and beside the longest key and a slot half of the room."""
    room = page_size - HEADER_SIZE
    key_max = min(KEY_MAX, room // 3 - SLOT_SIZE - 8 * copies - REFERENCE_TAIL.size)
    return min(room // 4, room // 2 - key_max - SLOT_SIZE)


def entry_size(copies: int, is_dated: bool) -> int:
    """Bytes of what names a page of a spilled value: addresses, checksum, and where it is dated the generation."""
    return 8 * copies + (12 if is_dated else 4)


def _spill(data: bytes, at: int, copies: int, is_dated: bool) -> tuple[Spill, int]:
    """Length, generation and entries of a spilled value."""
    size = entry_size(copies, is_dated)
    quarter = (len(data) - HEADER_SIZE) // 4
    entries_max = min(4, max(1, (quarter - 16) // size))
    if at + 16 > len(data):
        raise Damage("page-structure", "spilled value's cell", "inside the page", at)
    length, generation = TWO_NUMBERS.unpack_from(data, at)
    if not length or length > VALUE_MAX:
        raise Damage("page-structure", "length of a spilled value", f"1 .. {VALUE_MAX}", length)
    count = top_entries(length, len(data), size, entries_max)
    at += 16
    if at + count * size > len(data):
        raise Damage("page-structure", "spilled value's entries", "inside the page", at)
    entries = tuple(_entry(data, at + index * size, copies, generation, is_dated) for index in range(count))
    return Spill(length, generation, entries, is_dated), at + count * size


def top_entries(length: int, page_size: int, size: int, entries_max: int) -> int:
    """How many entries a cell holds for a value of `length` bytes: levels are added until few enough are left."""
    fanout = (page_size - HEADER_SIZE) // size
    count = -(-length // page_size)
    while count > entries_max:
        count = -(-count // fanout)
    return count


def overflow_level(length: int, page_size: int, copies: int, is_dated: bool) -> int:
    """Levels of overflow index pages above the data pages."""
    size = entry_size(copies, is_dated)
    entries_max = min(4, max(1, ((page_size - HEADER_SIZE) // 4 - 16) // size))
    fanout = (page_size - HEADER_SIZE) // size
    count, level = -(-length // page_size), 0
    while count > entries_max:
        count, level = -(-count // fanout), level + 1
    return level


def _entry(data: bytes, at: int, copies: int, holder: int, is_dated: bool) -> PageEntry:
    """An entry in a page or cell of generation `holder`: nothing below that is younger."""
    addresses = struct.unpack_from(f"<{copies}Q", data, at)
    crc = int.from_bytes(data[at + 8 * copies : at + 8 * copies + 4], "little")
    if not is_dated:
        return PageEntry(addresses, crc, holder)
    generation = int.from_bytes(data[at + 8 * copies + 4 : at + 8 * copies + 12], "little")
    if generation > holder:
        raise Damage("page-structure", "generation of a page of a spilled value", f"at most {holder}", generation)
    return PageEntry(addresses, crc, generation)


def _overflow_entries(data: bytes, count: int, copies: int, generation: int, is_dated: bool) -> list[PageEntry]:
    size = entry_size(copies, is_dated)
    end = HEADER_SIZE + count * size
    if not count or end > len(data) or any(data[end:]):
        raise Damage("page-structure", "overflow index page", "entries, then zeros", f"{count} entries")
    return [_entry(data, HEADER_SIZE + index * size, copies, generation, is_dated) for index in range(count)]


def _index_record(data: bytes, offset: int, length: int, copies: int, cells: list[tuple[int, int]]) -> Child:
    at = offset + length
    end = at + 8 * copies + REFERENCE_TAIL.size
    if end > len(data):
        raise Damage("page-structure", "index cell", "inside the page", (offset, length))
    cells.append((offset, end - offset))
    return data[offset:at], _reference(data, at, copies)


def _check_heap(data: bytes, cells: list[tuple[int, int]], heap: int, dead: int) -> None:
    """Cells fill heap .. end without overlapping, but for `dead` zero bytes."""
    cells.sort()
    at, unused = heap, 0
    for offset, size in cells:
        if offset < at:
            raise Damage("page-structure", "cells", f"from byte {at} on", offset)
        if offset > at:
            if any(data[at:offset]):
                raise Damage("page-structure", "bytes that no cell holds", "zeros", f"others at {at}")
            unused += offset - at
        at = offset + size
    if at < len(data):
        if any(data[at:]):
            raise Damage("page-structure", "bytes that no cell holds", "zeros", f"others at {at}")
        unused += len(data) - at
    if unused != dead:
        raise Damage("page-structure", "dead bytes", unused, dead)


def _check_keys(keys: list[bytes], slots: list[tuple[int, int, int]], skip: int, root: Root, kind: int) -> None:
    """Rising order, heads, and the bytes all keys begin with."""
    first = 1 if kind == INDEX else 0
    if first and slots[0][0]:
        raise Damage("page-structure", "head of the first slot of an index page", 0, slots[0][0])
    if root.comparator in (COMPARE_BYTES, COMPARE_U64_BE):
        _check_plain(keys[first:], slots[first:], skip, root.has_duplicates)
        return
    ordered = [sort_key(key, root.comparator) for key in keys[first:]] if not root.has_duplicates else []
    for before, after in pairwise(ordered):
        if not before < after:
            raise Damage("page-order", "keys of a page", "rising", (before, after))


def _check_plain(keys: list[bytes], slots: list[tuple[int, int, int]], skip: int, has_duplicates: bool) -> None:
    """The same for keys that order as bytes."""
    if not keys:
        return
    prefix = keys[0][:skip]
    if len(prefix) < skip or (has_duplicates and skip):
        raise Damage("page-structure", "bytes that all keys begin with", f"at most {len(keys[0])}", skip)
    last: bytes | None = None
    for key, slot in zip(keys, slots, strict=True):
        if last is not None and last >= key and not has_duplicates:
            raise Damage("page-order", "keys of a page", f"above {last.hex()}", key)
        if slot[0] != int.from_bytes(key[skip : skip + 4].ljust(4, b"\0"), "big"):
            raise Damage("page-structure", "head of a slot", key[skip : skip + 4], f"{slot[0]:08x}")
        if not key.startswith(prefix):
            raise Damage("page-structure", "bytes that all keys begin with", prefix, key)
        last = key


def sort_key(key: bytes, comparator: int) -> tuple[Any, ...]:
    """Something that orders as the comparator orders keys."""
    if comparator == COMPARE_U64_LE:
        return (int.from_bytes(key, "little"),)
    if comparator == COMPARE_I64:
        return (int.from_bytes(key, "little", signed=True),)
    if comparator == COMPARE_REVERSE:
        return (*(255 - byte for byte in key), 256)
    if comparator == COMPARE_PAIR:
        middle = 2 + int.from_bytes(key[:2], "little")
        return (key[2:middle], key[middle + 2 :])
    return (key,)


def verify(data: bytes, reference: Reference, root: Root, level: int) -> Page:
    """A page as its reference says it must be. Damage (`page-checksum`, `page-identity`, ...)."""
    crc = crc32c(data[4:])
    if crc != reference.crc:
        raise Damage("page-checksum", "page checksum", f"{reference.crc:08x}", f"{crc:08x}")
    if int.from_bytes(data[:4], "little") != crc:
        raise Damage("page-checksum", "checksum in the page", f"{crc:08x}", data[:4])
    page = decode_page(data, root)
    found = (page.tree_id, page.generation, page.level)
    if found != (root.tree_id, reference.generation, level) or page.kind in OVERFLOW_KINDS:
        expected = (root.tree_id, reference.generation, level)
        raise Damage("page-identity", "tree, generation and level of a page", expected, found)
    return page
