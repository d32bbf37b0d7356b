"""Views of the metadata server's state for `mdstore dump`: its log, one inode, a part of the tree."""

from __future__ import annotations

from collections.abc import Iterator

from mdstore.errors import NotFound
from mdstore.tools.reader.mds_directory import COLLECTION, Header, decode_header, object_name
from mdstore.tools.reader.mds_events import KINDS, decode_event
from mdstore.tools.reader.mds_inode import ROOT, Entry, Inode, decode_entry, xattrs_of
from mdstore.tools.reader.mds_log import Stripes, read_head
from mdstore.tools.reader.mds_tables import INODES, STRAYS, decode_row
from mdstore.tools.reader.mds_view import NameSpace
from mdstore.tools.reader.problems import Damage, readable
from mdstore.tools.reader.scan import Scan
from mdstore.tools.reader.views import Facts, Section, Source, as_number, moment, typed

_TYPES = {1: "fifo", 2: "character", 4: "directory", 6: "block", 8: "file", 10: "symlink", 12: "socket"}


def journal_view(source: Source) -> Iterator[Section]:
    """The metadata server's log from its expire position on."""
    source.names()
    head = read_head(source.overlay, source.findings.add_damage)
    yield Section("head", {name: getattr(head, name) for name in head.__slots__})
    scan = Scan(Stripes(source.overlay, head), head, head.expire)
    yield Section("events", rows=_event_rows(scan))
    tail = scan.tail()
    for _, _, damage in tail.unreadable:
        source.findings.add_damage(damage)
    yield Section("tail", {"end": tail.end, "kind": tail.kind, "events": scan.count, "pads": scan.pads})


def _event_rows(scan: Scan) -> Iterator[Facts]:
    for entry in scan.entries():
        facts: Facts = {
            "position": entry.header.position,
            "sequence": entry.header.sequence,
            "kind": KINDS.get(entry.header.type, str(entry.header.type)),
            "bytes": entry.header.length,
        }
        try:
            records = decode_event(entry.header.type, entry.payload)
            facts["records"] = [_record_words(record) for record in records]
        except Damage as damage:
            facts["records"] = [str(damage)]
        yield facts


def _record_words(record: object) -> str:
    parts = []
    for name in getattr(record, "_fields", ()):
        value: object = getattr(record, name)
        if name in ("directory", "version", "table"):
            parts.append(f"{name} {value}")
        elif name in ("name", "key") and isinstance(value, bytes):
            parts.append(readable(value))
        elif value is None:
            parts.append("gone")
    return " ".join([type(record).__name__, *parts])


def inode_view(source: Source, number: str) -> Iterator[Section]:
    """One inode, wherever it stands. Directories and inodes of several names are found by number; other files by a walk."""
    names = source.names()
    ino = as_number(number)
    try:
        where, inode, header = _find(names, ino)
    except NotFound as error:
        raise NotFound("inode", f"{ino}; `mdstore dump {source.image.path} tree /` shows those there are") from error
    facts = {"where": where, **inode_facts(inode)}
    yield Section("inode", facts)
    yield Section(
        "xattrs", rows=[{"name": readable(key), "value": value.hex()} for key, value in xattrs_of(inode).items()]
    )
    if header is not None:
        yield Section("directory", _header_facts(header))


def _find(names: NameSpace, ino: int) -> tuple[str, Inode, Header | None]:
    header = header_of(names, ino)
    if header is not None:
        return f"directory {header.parent}, name {readable(header.name)}", header.inode, header
    for table in (INODES, STRAYS):
        for key, value in names.table(table):
            if int.from_bytes(key, "big") == ino:
                return f"table {table}", decode_row(value, ino)[1], None
    for directory, found, change in names.directories():
        for name, value in names.entries(found, change):
            if value[9:17] == ino.to_bytes(8, "little"):
                entry = decode_entry(value)
                if entry.inode is not None:
                    return f"directory {directory}, name {readable(name)}", entry.inode, None
    raise NotFound("inode", ino)


def header_of(names: NameSpace, ino: int) -> Header | None:
    """A directory's header, events applied; None where there is no such directory."""
    change = names.changed.get(ino)
    if change is not None and (change.header is not None or change.is_rebuilt):
        known: Header | None = change.header
        return known
    found = names.store.find(COLLECTION, object_name(ino))
    return decode_header(names.store.header_of(found)) if found is not None else None


def inode_facts(inode: Inode) -> Facts:
    """An inode for people and programs."""
    return {
        "ino": inode.ino,
        "type": _TYPES[inode.type],
        "mode": f"{inode.mode & 0o7777:04o}",
        "nlink": inode.nlink,
        "uid": inode.uid,
        "gid": inode.gid,
        "size": inode.size,
        "rdev": inode.rdev,
        "allocated": inode.allocated,
        "flags": inode.flags,
        "generation": inode.generation,
        "change": inode.change,
        "target": readable(inode.target),
        "atime": moment(inode.atime),
        "mtime": moment(inode.mtime),
        "ctime": moment(inode.ctime),
        "btime": moment(inode.btime),
    }


def _header_facts(header: Header) -> Facts:
    return {
        name: readable(header.name) if name == "name" else getattr(header, name)
        for name in header.__slots__
        if name != "inode"
    }


def tree_view(source: Source, path: str) -> Iterator[Section]:
    """A directory and everything below it."""
    names = source.names()
    ino = ROOT
    for part in [part for part in path.split("/") if part]:
        entry = _entry(names, ino, part.encode("utf-8", "surrogateescape"))
        if entry is None or entry.tag != 3:
            raise NotFound("directory", f"{typed(path)}; `mdstore dump {source.image.path} tree /` shows those there are")
        ino = entry.ino
    yield Section("tree", rows=_tree_rows(names, ino, path.rstrip("/"), frozenset()), is_tree=True)


def _entry(names: NameSpace, ino: int, name: bytes) -> Entry | None:
    change = names.changed.get(ino)
    found = names.store.find(COLLECTION, object_name(ino))
    for key, value in names.entries(found, change) if found is not None or change is not None else ():
        if key == name:
            return decode_entry(value)
    return None


def _tree_rows(names: NameSpace, ino: int, path: str, above: frozenset[int]) -> Iterator[Facts]:
    change = names.changed.get(ino)
    found = names.store.find(COLLECTION, object_name(ino))
    if (found is None and change is None) or ino in above:
        return
    for name, value in names.entries(found, change):
        here = f"{path}/{readable(name)}"
        try:
            entry = decode_entry(value)
        except Damage as damage:
            yield {"path": here, "ino": None, "type": str(damage), "size": None, "mode": None}
            continue
        inode = entry.inode
        yield {
            "path": here,
            "ino": entry.ino,
            "type": _TYPES[entry.file_type],
            "size": inode.size if inode else None,
            "mode": f"{inode.mode & 0o7777:04o}" if inode else None,
        }
        if entry.tag == 3:
            yield from _tree_rows(names, entry.ino, here, above | {ino})
