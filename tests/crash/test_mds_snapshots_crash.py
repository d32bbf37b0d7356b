"""Crashes while snapshots of directories are made and removed, over the whole stack, at every write: a snapshot is there whole
or not at all, one that was acknowledged is there, one that was removed is gone, and the living names are those of some moment.

One seed drives it: MDS_CRASH_SEED=n replays it."""

from __future__ import annotations

import stat

from mdstore.device.explore import History, explore
from mdstore.device.faulty import FaultyDevice
from mdstore.device.protocol import Device
from mdstore.mds.server import MetadataServer
from mdstore.mds.snapdir import SnapshotVfs
from mdstore.mds.vfs import ROOT_INO, SUPERUSER, Vfs
from mdstore.store.check import check as check_store
from mdstore.store.store import Store
from tests.crash.test_mds_crash import GEOMETRY, IMAGE, SEED, SMALL, TINY, Tree, Workload, check_contents, tree_of
from tests.model.mds_check import problems

State = tuple[Tree, dict[bytes, Tree]]
KEPT_MAX = 3


def whole_tree(vfs: Vfs, top: int) -> Tree:
    """What lies below `top`, contents of files included (as the target)."""
    found: Tree = {}
    work = [(top, b"")]
    while work:
        ino, path = work.pop()
        handle = vfs.opendir(SUPERUSER, ino)
        for entry, attr in vfs.readdir(handle, None, 10_000):
            found[path + b"/" + entry] = (attr.mode, attr.nlink, attr.uid, _content(vfs, attr.ino, attr.mode))
            if stat.S_ISDIR(attr.mode):
                work.append((attr.ino, path + b"/" + entry))
        vfs.releasedir(handle)
    return found


def _content(vfs: Vfs, ino: int, mode: int) -> bytes:
    if stat.S_ISLNK(mode):
        return vfs.readlink(ino)
    if not stat.S_ISREG(mode):
        return b""
    handle = vfs.open(SUPERUSER, ino, 0)
    try:
        return vfs.read(handle, 0, 1 << 20)
    finally:
        vfs.release(handle)


def snapshots_of(vfs: SnapshotVfs) -> dict[bytes, Tree]:
    """Every snapshot of the root with all it shows."""
    snapdir = vfs.lookup(SUPERUSER, ROOT_INO, b".snap").ino
    return {
        one.name: whole_tree(vfs, vfs.lookup(SUPERUSER, snapdir, one.name).ino) for one in vfs.snapshots.of(ROOT_INO)
    }


def workload(device: FaultyDevice, history: History) -> None:
    store = Store.create(device, **GEOMETRY, **SMALL)
    work = Workload(SEED + 3, store=store)
    vfs = SnapshotVfs(work.server)
    kept: dict[bytes, Tree] = {}
    history.start((work.snapshots[-1], {}))
    for number in range(48):
        work.step()
        begun = history.begin((work.snapshots[-1], dict(kept)))
        if number % 6 == 5:
            name = b"s%d" % number
            kept[name] = whole_tree(vfs, ROOT_INO)
            begun = history.begin((work.snapshots[-1], dict(kept)))
            vfs.snapshots.create(ROOT_INO, name)
            history.acknowledge(begun)
        if len(kept) > KEPT_MAX:
            gone = work.random.choice(sorted(kept))
            del kept[gone]
            begun = history.begin((work.snapshots[-1], dict(kept)))
            vfs.snapshots.delete(ROOT_INO, gone)
        elif number % 11 == 0:
            work.server.tick(work.now + 2_000_000_000)
    vfs.close()
    store.close()
    history.acknowledge(begun)


def reopen(device: Device) -> State:
    """Recover, check everything there is, and hand out the living names and every snapshot."""
    store = Store.open(device, **SMALL)
    vfs = SnapshotVfs(MetadataServer.mount(store, clock=lambda: 1, limits=TINY, count_references=False))
    state = tree_of(vfs), snapshots_of(vfs)
    check_contents(vfs.server)
    vfs.server.purge_all()
    vfs.close()
    assert list(problems(store)) == []
    assert not check_store(store, deep=True)
    store.close()
    return state


def test_a_snapshot_is_there_whole_or_not_at_all_at_every_write() -> None:
    report = explore(workload, reopen, seed=SEED + 3, size_bytes=IMAGE, budget_states=2000, nested_states=2)
    print(report)
    assert report.clean, report.findings
    assert report.points == report.points_in_all > 50, "no write was left out"
    assert report.distinct > 400
