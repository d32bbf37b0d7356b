"""What must hold of a name space in a store once it is written back: the lists of docs/format/mds-directory.md and
mds-tables.md. Yields every problem."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from mdstore.engines.protocol import ObjectStore
from mdstore.mds.fnode import Fnode, decode_fnode
from mdstore.mds.layout import DATA, HOME, META, TABLE_OBJECTS, Tab
from mdstore.mds.records import InodeRecord, Link, decode_entry, decode_inode

ROOT = 1


class _Seen:
    def __init__(self) -> None:
        self.fnodes: dict[int, Fnode] = {}
        self.entries: dict[int, dict[bytes, InodeRecord | Link]] = {}
        self.rows: dict[int, tuple[int, InodeRecord]] = {}
        self.strays: dict[int, InodeRecord] = {}
        self.links: set[tuple[int, int, bytes]] = set()


def problems(store: ObjectStore, *, settled: bool = True) -> Iterator[str]:
    """Every sentence is something wrong. `settled`: the log is empty, so statistics are handed up."""
    seen = _read(store)
    yield from _tree(seen)
    yield from _counts(seen, settled)
    yield from _names(seen)
    known = set(seen.rows) | set(seen.strays)
    known |= {e.ino for entries in seen.entries.values() for e in entries.values() if isinstance(e, InodeRecord)}
    for name in store.list_objects(DATA):
        if int(name[:16], 16) not in known:
            yield f"object {name!r} belongs to nobody"


def _read(store: ObjectStore) -> _Seen:
    seen = _Seen()
    for name in store.list_objects(META):
        if name.startswith(b"table."):
            continue
        ino = int(name, 16)
        seen.fnodes[ino] = decode_fnode(store.map_header(META, name), name.decode())
        seen.entries[ino] = {key: decode_entry(raw, f"{ino} {key!r}") for key, raw in store.map_items(META, name)}
    for key, raw in store.map_items(META, TABLE_OBJECTS[Tab.INODES]):
        seen.rows[int.from_bytes(key, "big")] = HOME.unpack_from(raw)[0], decode_inode(raw, "inode table", 8)
    for key, raw in store.map_items(META, TABLE_OBJECTS[Tab.STRAYS]):
        seen.strays[int.from_bytes(key, "big")] = decode_inode(raw, "strays", 8)
    for key, _ in store.map_items(META, TABLE_OBJECTS[Tab.LINKS]):
        seen.links.add((int.from_bytes(key[:8], "big"), int.from_bytes(key[8:16], "big"), key[16:]))
    return seen


def _tree(seen: _Seen) -> Iterator[str]:
    hung = Counter(e.ino for es in seen.entries.values() for e in es.values() if isinstance(e, Link) and e.tag == 3)
    for ino, fnode in seen.fnodes.items():
        if fnode.inode.ino != ino:
            yield f"directory {ino} holds the inode {fnode.inode.ino}"
        if ino == ROOT:
            continue
        entry = seen.entries.get(fnode.parent, {}).get(fnode.name)
        if not isinstance(entry, Link) or entry.tag != 3 or entry.ino != ino:
            yield f"directory {ino} is not in {fnode.parent} as {fnode.name!r}"
        if hung[ino] != 1:
            yield f"directory {ino} hangs {hung[ino]} times"
    for ino in hung:
        if ino not in seen.fnodes:
            yield f"directory {ino} has an entry and no object"


def _counts(seen: _Seen, settled: bool) -> Iterator[str]:
    for ino, fnode in seen.fnodes.items():
        entries = seen.entries[ino].values()
        below = [seen.fnodes[e.ino] for e in entries if isinstance(e, Link) and e.tag == 3 and e.ino in seen.fnodes]
        files = [e for e in entries if not (isinstance(e, Link) and e.tag == 3)]
        own = sum(e.size for e in files if isinstance(e, InodeRecord))
        own += sum(row.size for home, row in seen.rows.values() if home == ino)
        expected = {
            "size": (fnode.inode.size, len(entries)),
            "nlink": (fnode.inode.nlink, 2 + len(below)),
            "rfiles": (fnode.rfiles, len(files) + sum(d.accounted_files for d in below)),
            "rdirs": (fnode.rdirs, len(below) + sum(d.accounted_dirs for d in below)),
            "rbytes": (fnode.rbytes, own + sum(d.accounted_bytes for d in below)),
        }
        for field, (found, right) in expected.items():
            if found != right:
                yield f"directory {ino}: {field} is {found}, should be {right}"
        handed = (fnode.accounted_bytes, fnode.accounted_files, fnode.accounted_dirs, fnode.accounted_ctime)
        if settled and ino != ROOT and handed != (fnode.rbytes, fnode.rfiles, fnode.rdirs, fnode.rctime):
            yield f"directory {ino}: statistics {handed} were not handed up"


def _names(seen: _Seen) -> Iterator[str]:
    remote = {
        (entry.ino, ino, name)
        for ino, entries in seen.entries.items()
        for name, entry in entries.items()
        if isinstance(entry, Link) and entry.tag == 2
    }
    for lone in remote ^ seen.links:
        yield f"link {lone} is in {'entries' if lone in remote else 'the link table'} only"
    names = Counter(ino for ino, _, _ in remote)
    for ino, (home, row) in seen.rows.items():
        if row.nlink != names[ino]:
            yield f"inode {ino}: nlink {row.nlink}, {names[ino]} names"
        if home and not any(link[:2] == (ino, home) for link in remote):
            yield f"inode {ino}: its home {home} has no name of it"
    for ino in set(names) - set(seen.rows):
        yield f"inode {ino} has names and no row"
    for ino, record in seen.strays.items():
        if record.nlink or ino in seen.rows:
            yield f"stray {ino}: nlink {record.nlink}"
    owned = Counter(e.ino for es in seen.entries.values() for e in es.values() if isinstance(e, InodeRecord))
    for ino, count in owned.items():
        if count > 1 or ino in seen.strays or ino in seen.rows:
            yield f"inode {ino} stands in {count} entries"
