"""Snapshots of a whole store, the same for every engine that has them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mdstore.errors import (
    AlreadyExists,
    InvalidRequest,
    LimitExceeded,
    NotFound,
    ReadOnly,
    SnapshotBusy,
    StoreClosed,
    UnsupportedOperation,
)
from mdstore.limits import SNAPSHOT_NAME_MAX
from mdstore.store.transaction import Transaction
from tests.conformance.conftest import opened
from tests.conformance.subjects import KINDS, RIGS, Rig, Subject, everything

T = Transaction


WITHOUT = {"lmdb"}  # engines whose capabilities say that they keep none


@pytest.fixture(params=[name for name in RIGS if name not in WITHOUT])
def keeping(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """An engine that keeps snapshots, with one empty collection `c`."""
    yield from opened(RIGS[request.param](tmp_path))


@pytest.mark.parametrize("engine", RIGS)
def test_each_engine_says_whether_it_keeps_snapshots(engine: str, tmp_path: Path) -> None:
    made = RIGS[engine](tmp_path)
    assert made.store.capabilities.snapshots == (engine not in WITHOUT)
    made.store.close()


def test_an_engine_without_snapshots_says_so(rig: Rig) -> None:
    if rig.store.capabilities.snapshots:
        assert rig.store.snapshots() == []
        return
    with pytest.raises(UnsupportedOperation):
        rig.store.snapshots()
    for call in (rig.store.snapshot, rig.store.open_snapshot, rig.store.delete_snapshot):
        with pytest.raises(UnsupportedOperation):
            call("s")


def change(rig: Rig, round_: int) -> None:
    """Something of everything: data small and large, attributes, maps, clones, removals, revisions of what was there."""
    name, other = f"o{round_ % 3}", f"o{(round_ + 1) % 3}"
    rig.store.apply(
        T()
        .write("c", name, 100 * round_, bytes([round_ + 1]) * 9000)
        .setattr("c", name, "a", bytes([round_]))
        .map_set("c", name, {bytes([round_, i]): bytes([i]) * 40 for i in range(30)})
        .map_set_header("c", name, b"header %d" % round_)
        .clone("c", name, f"clone{round_}")
        .touch("c", other)
        .remove("c", other)
        .create_collection(f"d{round_}")
    )


@pytest.mark.parametrize("disturb", ["as-is", "reopened", "killed"])
def test_each_snapshot_shows_what_was_there(keeping: Rig, disturb: str) -> None:
    kept = {}
    for round_ in range(5):
        change(keeping, round_)
        keeping.store.snapshot(f"s{round_}")
        kept[f"s{round_}".encode()] = everything(keeping.store)
        if disturb == "reopened":
            keeping.reopen()
        elif disturb == "killed":
            keeping.kill()
    assert len({len(str(content)) for content in kept.values()}) > 1
    if not keeping.store.snapshots():
        pytest.fail("a snapshot is durable when it returns")
    for name in (b"s1", b"s4", b"s0"):
        keeping.store.delete_snapshot(name)
        del kept[name]
        assert [info.name for info in keeping.store.snapshots()] == list(kept)
        for left, content in kept.items():
            view = keeping.store.open_snapshot(left)
            assert everything(view) == content
            view.close()


def test_what_was_submitted_before_is_in_it_and_durable(keeping: Rig) -> None:
    keeping.store.submit(T().write("c", "o", 0, b"before"))
    keeping.store.snapshot("s")
    keeping.store.submit(T().write("c", "o", 0, b"after!"))
    view = keeping.store.open_snapshot("s")
    assert view.read("c", "o") == b"before"
    view.close()
    keeping.kill()
    view = keeping.store.open_snapshot("s")
    assert view.read("c", "o") == b"before"
    view.close()


def test_a_snapshot_refuses_every_change(keeping: Rig) -> None:
    keeping.store.snapshot("s")
    view = keeping.store.open_snapshot("s")
    assert view.read_only
    with pytest.raises(ReadOnly):
        view.submit(T().touch("c", "o"))
    with pytest.raises(ReadOnly):
        view.apply(T().touch("c", "o"))
    with pytest.raises(ReadOnly):
        view.set_floor_and_read("c", "o", 1)
    with pytest.raises(ReadOnly):
        view.snapshot("t")
    with pytest.raises(ReadOnly):
        view.delete_snapshot("s")
    with pytest.raises(NotFound):
        view.open_snapshot("s")
    assert view.snapshots() == []
    assert view.statistics()["objects"] == 0
    view.sync()
    view.close()
    view.close()
    with pytest.raises(StoreClosed):
        view.list_collections()


def test_names_of_snapshots(keeping: Rig) -> None:
    store = keeping.store
    for name in (b"\x00", b"\xff" * 40, "ü"):
        store.snapshot(name)
    with pytest.raises(AlreadyExists):
        store.snapshot("ü".encode())
    with pytest.raises(InvalidRequest):
        store.snapshot(b"")
    store.snapshot(b"m" * SNAPSHOT_NAME_MAX)
    with pytest.raises(LimitExceeded):
        store.snapshot(b"m" * (SNAPSHOT_NAME_MAX + 1))
    with pytest.raises(NotFound):
        store.delete_snapshot("none")
    assert [info.name for info in store.snapshots()] == [b"\x00", b"\xff" * 40, "ü".encode(), b"m" * SNAPSHOT_NAME_MAX]
    epochs = [info.epoch for info in store.snapshots()]
    assert epochs == sorted(set(epochs))


def test_one_that_is_read_is_not_deleted(keeping: Rig) -> None:
    keeping.store.snapshot("s")
    view = keeping.store.open_snapshot("s")
    with pytest.raises(SnapshotBusy):
        keeping.store.delete_snapshot("s")
    view.close()
    keeping.store.delete_snapshot("s")
    keeping.store.snapshot("s")
    assert [info.name for info in keeping.store.snapshots()] == [b"s"]


KEEPING = {f"{kind.engine}-{kind.disturbance}": kind for kind in KINDS if kind.engine not in WITHOUT}


@pytest.mark.parametrize("store", KEEPING.values(), ids=KEEPING, indirect=True)
def test_floors_of_the_live_store_do_not_reach_into_snapshots(store: Subject) -> None:
    store.rig.store.apply(T().write("c", "o", 0, b"x"))
    store.rig.store.snapshot("s")
    store.rig.store.apply(T().set_floor(9, "c"))
    view = store.rig.store.open_snapshot("s")
    assert view.read("c", "o") == b"x"
    view.close()
