"""The metadata server's log, gone in part or whole: mounting refuses where events may be lost; repair goes on without them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.errors import CorruptionError
from mdstore.mds.making import format_file_system
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.store import Store, Transaction
from tests.unit.reader_images import check
from tests.unit.repair_images import repaired, tree_of


def killed() -> bytes:
    """Closed once, so that the heads say where it ended; then a directory made, durably, and killed."""
    device = MemoryDevice(4 << 20)
    store = Store.create(device, background=False, block_size=512, log_bytes=1 << 18)
    format_file_system(store, now_ns=1)
    for name in (b"old", b"new"):
        server = MetadataServer.mount(store, clock=lambda: 10**18)
        server.mkdir(SUPERUSER, ROOT_INO, name, 0o755)
        server.syncfs()
        if name == b"old":
            server.close()
            store = Store.open(MemoryDevice.from_bytes(device.image()), background=False)
    store.sync()
    return store.device.image()  # type: ignore[attr-defined, no-any-return]


def without(image: bytes, is_lost: Callable[[bytes], bool]) -> bytes:
    """The image after the loss of some objects of the log."""
    device = MemoryDevice.from_bytes(image)
    store = Store.open(device, background=False)
    gone = [name for name in store.list_objects("log") if is_lost(name)]
    assert gone
    for name in gone:
        store.apply(Transaction().remove("log", name))
    return device.image()


def is_head(name: bytes) -> bool:
    return b".head" in name


@pytest.mark.parametrize(
    ("is_lost", "code", "left"),
    [
        (lambda name: not is_head(name), "event-rot", {"/", "/old"}),
        (lambda name: True, "event-no-head", {"/", "/old"}),
        (is_head, "event-no-head", {"/", "/old", "/new"}),
    ],
    ids=["events", "everything", "heads"],
)
def test_a_log_that_is_gone_is_refused_and_repair_goes_on_with_what_is_left(
    is_lost: Callable[[bytes], bool], code: str, left: set[str], tmp_path: Path
) -> None:
    """With intact heads, and every event's object missing, it mounted as if nothing had happened since the last close."""
    whole = killed()
    assert tree_of(whole).keys() == {"/", "/old", "/new"}
    image = without(whole, is_lost)
    for read_only in (False, True):
        store = Store.open(MemoryDevice.from_bytes(image), background=False, read_only=read_only)
        with pytest.raises(CorruptionError, match="metadata log"):
            MetadataServer.mount(store, clock=lambda: 10**18, read_only=read_only)
    assert code in {problem.code for problem in check(image, tmp_path)}
    _, after = repaired(image)
    assert tree_of(after).keys() - {"/lost+found"} == left
    assert not [problem for problem in check(after, tmp_path) if problem.severity != "note"]
    assert "/new" in tree_of(whole)


def test_a_log_that_ended_in_order_needs_no_object() -> None:
    device = MemoryDevice.from_bytes(killed())
    store = Store.open(device, background=False)
    MetadataServer.mount(store, clock=lambda: 10**18).close()
    store.sync()
    assert tree_of(without(device.image(), lambda name: not is_head(name))).keys() == {"/", "/old", "/new"}
