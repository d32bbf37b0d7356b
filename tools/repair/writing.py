"""Bringing the store to a mended name space: only what differs is written, as transactions of the engine.

The log's events are in the model already; at the end it is emptied, since replaying rows of tables would undo what was mended.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from mdstore.store import Store, Transaction
from mdstore.tools.reader.mds_directory import COLLECTION, decode_header, ino_of, object_name
from mdstore.tools.reader.mds_tables import BACKTRACE, DATA, INODES, LINKS, STRAYS, TABLES
from mdstore.tools.reader.problems import Damage
from mdstore.tools.repair import encode
from mdstore.tools.repair.names import DIRECTORY, PRIMARY, REMOTE, Folder, Model, Slot

_PAIRS_MAX: Final = 500  # of one transaction

Pairs = dict[bytes, bytes]


def write_model(store: Store, model: Model) -> None:
    """Directories, tables, backtraces."""
    for name in store.list_objects(COLLECTION):
        ino = ino_of(name)
        if ino is not None and ino not in model.folders:
            store.apply(Transaction().remove(COLLECTION, name))  # the log says that it is gone
    for folder in model.folders.values():
        _write_folder(store, folder)
    for table in TABLES:
        name = TABLES[table]
        if not store.exists(COLLECTION, name):
            store.apply(Transaction().touch(COLLECTION, name))
        _write_pairs(store, name, dict(store.map_items(COLLECTION, name)), _rows(model, table))
    _move_data(store, model)
    _write_traces(store, model)


def _move_data(store: Store, model: Model) -> None:
    for ino, number in model.moves.items():
        prefix = b"%016x." % ino
        for name in store.list_objects(DATA, prefix, prefix + b"g"):
            store.apply(Transaction().rename(DATA, name, DATA, b"%016x." % number + name[len(prefix) :]))


def _write_folder(store: Store, folder: Folder) -> None:
    name = object_name(folder.ino)
    there = store.exists(COLLECTION, name)
    stored = dict(store.map_items(COLLECTION, name)) if there else {}
    due = {key: _value(slot) for key, slot in folder.entries.items()}
    raw = store.map_header(COLLECTION, name) if there else b""
    header = folder.header
    assert header is not None, "every directory has one by now"
    if stored == due and encode.directory_header(header) == raw:
        return
    try:
        version = decode_header(raw).version
    except Damage:
        version = 0
    _write_pairs(store, name, stored, due)
    newer = replace(header, version=max(header.version, version) + 1)
    store.apply(Transaction().map_set_header(COLLECTION, name, encode.directory_header(newer)))


def _value(slot: Slot) -> bytes:
    if slot.raw:
        return slot.raw
    if slot.tag == PRIMARY:
        assert slot.inode is not None
        return bytes([PRIMARY]) + encode.inode(slot.inode)
    return encode.link(slot.tag, slot.file_type, slot.ino)


def _rows(model: Model, table: int) -> Pairs:
    """What a table should hold."""
    if table == INODES:
        return {_key(ino): row.home.to_bytes(8, "little") + encode.inode(row.inode) for ino, row in model.rows.items()}
    if table == STRAYS:
        return {_key(ino): bytes(8) + encode.inode(inode) for ino, inode in model.strays.items()}
    if table == LINKS:
        return {_key(ino) + _key(directory) + name: b"\x01" for ino, directory, name in model.links}
    return model.others[table]


def _key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _write_pairs(store: Store, name: bytes, stored: Pairs, due: Pairs) -> None:
    gone = sorted(stored.keys() - due.keys())
    for at in range(0, len(gone), _PAIRS_MAX):
        store.apply(Transaction().map_remove(COLLECTION, name, gone[at : at + _PAIRS_MAX]))
    for batch in _batches(sorted((key, value) for key, value in due.items() if stored.get(key) != value), _bytes_max(store)):
        store.apply(Transaction().map_set(COLLECTION, name, batch))


def _batches(pairs: list[tuple[bytes, bytes]], size_max: int) -> Iterator[Pairs]:
    batch: Pairs = {}
    size = 0
    for key, value in pairs:
        if batch and (len(batch) == _PAIRS_MAX or size + len(key) + len(value) > size_max):
            yield batch
            batch, size = {}, 0
        batch[key] = value
        size += len(key) + len(value)
    if batch:
        yield batch


def _bytes_max(store: Store) -> int:
    """What one transaction may carry: a share of the store's log, which must take it whole."""
    return max(4096, int(store.statistics()["log_bytes"]) // 8)


def _write_traces(store: Store, model: Model) -> None:
    """Backtraces that could not be read."""
    damaged = {ino for ino, held in model.data.items() if held.is_trace_damaged}
    if not damaged:
        return
    for directory, folder in model.folders.items():
        for name, slot in folder.entries.items():
            if slot.ino in damaged and slot.inode is not None:
                _set_trace(store, slot.ino, encode.backtrace(directory, name, slot.inode))
    for ino in damaged & model.rows.keys():
        _set_trace(store, ino, encode.backtrace(0, b"", model.rows[ino].inode))
    for ino in damaged & model.strays.keys():
        _set_trace(store, ino, encode.backtrace(0, b"", model.strays[ino]))


def _set_trace(store: Store, ino: int, trace: bytes) -> None:
    store.apply(Transaction().setattr(DATA, b"%016x.%08x" % (ino, 0), BACKTRACE, trace))


assert {PRIMARY, REMOTE, DIRECTORY} == {1, 2, 3}
