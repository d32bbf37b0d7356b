"""fsck of sessions: a session with done requests and a file without a name is clean, and each wrong row is found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.mds.layout import HELD_VALUE, NEXT_SESSION_KEY, REQUEST_KEY, Tab
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.store import Store, Transaction
from tests.unit.reader_images import BLOCK, changed, check, codes

LONG_NS = 10**18


def with_a_session(*, is_closed: bool) -> bytes:
    """A killed or closed file system: session 1 made `d` and a file, which it has open without a name."""
    device = MemoryDevice(4 << 20)
    store = Store.create(device, block_size=BLOCK, background=False)
    MetadataServer.format(store, now_ns=1)
    server = MetadataServer.mount(store)
    session = server.clients.open(b"client", timeout_ns=LONG_NS)
    server.clients.perform(session, 1, 1, "mkdir", SUPERUSER, ROOT_INO, b"d", 0o755)
    server.clients.perform(session, 2, 1, "create", SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)
    server.clients.perform(session, 3, 1, "unlink", SUPERUSER, ROOT_INO, b"f")
    server.syncfs()
    if is_closed:
        server.close()
        store.close()
    return device.image()


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_session_with_what_it_keeps_is_clean(is_closed: bool, tmp_path: Path) -> None:
    assert check(with_a_session(is_closed=is_closed), tmp_path, "deep") == []


@pytest.mark.parametrize(
    ("table", "key", "value", "expected"),
    [
        (Tab.SESSIONS, (1).to_bytes(8, "big"), b"nonsense", {"table-row", "session-row"}),
        (Tab.SESSIONS, (1).to_bytes(8, "big"), None, {"session-row"}),
        (Tab.REQUESTS, REQUEST_KEY.pack(1, 1), b"short", {"session-row"}),
        (Tab.REQUESTS, REQUEST_KEY.pack(9, 1), bytes(16), {"session-row"}),
        (Tab.REQUESTS, b"short", bytes(16), {"table-row"}),
        (Tab.OPEN, REQUEST_KEY.pack(1, 999), HELD_VALUE, {"session-row"}),
        (Tab.OPEN, REQUEST_KEY.pack(1, 1), b"\x02", {"session-row"}),
        (Tab.SERVER, NEXT_SESSION_KEY, (1).to_bytes(8, "little"), {"session-row"}),
        (Tab.SERVER, NEXT_SESSION_KEY, b"\x02", {"session-row"}),
    ],
)
def test_each_wrong_row_is_found(
    tmp_path: Path, table: Tab, key: bytes, value: bytes | None, expected: set[str]
) -> None:
    def change(store: Store) -> None:
        name = f"table.{table.name.lower()}"
        if value is None:
            store.apply(Transaction().map_remove("meta", name, [key]))
        else:
            store.apply(Transaction().map_set("meta", name, {key: value}))

    found = check(changed(with_a_session(is_closed=True), change), tmp_path)
    assert codes(found) == expected, found
