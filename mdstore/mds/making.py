"""Making a file system in a store, and the way to its log."""

from __future__ import annotations

from secrets import token_bytes

from journal import Journal, JournalError, Layout, StripedMedium
from mdstore.engines.protocol import ObjectStore
from mdstore.errors import AlreadyExists, CorruptionError, MdstoreError
from mdstore.mds.boundary import clamped_time, owner
from mdstore.mds.inode import Directory
from mdstore.mds.layout import (
    DATA,
    FIRST_FREE_INO,
    LOG,
    LOG_NAME,
    META,
    NEXT_INO,
    NEXT_INO_KEY,
    TABLE_OBJECTS,
    ServerRecord,
    Tab,
    directory_object,
    encode_server,
)
from mdstore.mds.objectio import StoreObjects
from mdstore.mds.vfs import ROOT_INO
from mdstore.store.transaction import Transaction


def format_file_system(
    store: ObjectStore, *, now_ns: int, root_mode: int = 0o755, uid: int = 0, gid: int = 0, object_size: int = 64 << 20,
    log_unit: int | None = None, log_object_size: int | None = None, identity: bytes | None = None,
) -> None:  # fmt: skip
    """Make an empty file system. Durable on return. AlreadyExists when there is one in the store, EINVAL
    for a user or group that no file can have.

    `object_size`: bytes of a file in one object. `log_unit`, `log_object_size`: how the log is striped; by default
    objects of 4 MiB, smaller in a small store.
    """
    owner(uid, "uid")
    owner(gid, "gid")
    now_ns = clamped_time(now_ns)
    if log_object_size is None:
        share = int(store.statistics()["size_bytes"]) >> 6
        log_object_size = 1 << max(16, min(22, share.bit_length() - 1))
    log_unit = log_unit or min(1 << 20, log_object_size)
    server = ServerRecord(identity or token_bytes(16), now_ns, object_size, log_unit, log_object_size)
    if META in store.list_collections():
        raise AlreadyExists("file system", META)
    for collection in (META, DATA, LOG):
        store.submit(Transaction().create_collection(collection))
    root = Directory(ROOT_INO, 0o040000 | root_mode & 0o7777, uid, gid, now_ns, ROOT_INO, b"")
    for name in TABLE_OBJECTS.values():
        store.submit(Transaction().create(META, name))
    first = NEXT_INO.pack(FIRST_FREE_INO)
    store.submit(Transaction().map_set(META, TABLE_OBJECTS[Tab.SERVER], {NEXT_INO_KEY: first}))
    store.submit(Transaction().map_set_header(META, directory_object(ROOT_INO), root.encode_header()))
    Journal.create(event_medium(store, server)).close()
    store.apply(Transaction().map_set_header(META, TABLE_OBJECTS[Tab.SERVER], encode_server(server)))


def event_medium(store: ObjectStore, server: ServerRecord) -> StripedMedium:
    """Where the events of a file system are."""
    layout = Layout(stripe_unit=server.log_unit, object_size=server.log_object_size)
    return StripedMedium(StoreObjects(store, LOG), LOG_NAME, layout)


def log_error(error: JournalError) -> MdstoreError:
    """A log that cannot be opened, in the words of this package."""
    if isinstance(error.__cause__, MdstoreError):
        return error.__cause__
    return CorruptionError("metadata log", f"{LOG.decode()}/{LOG_NAME}", "an intact log", error)
