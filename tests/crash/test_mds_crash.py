"""Every store that a crash may leave, under a mixed workload: it mounts, all invariants hold, the names are those of some moment
since the last sync, and no size covers bytes that were not written.

One seed drives everything: MDS_CRASH_SEED=n replays it, MDS_CRASH_RUNS=n takes more of them."""

from __future__ import annotations

import os
import random
import stat
from typing import Any

import pytest

from mdstore.device.explore import History, explore
from mdstore.device.faulty import FaultyDevice
from mdstore.device.protocol import Device
from mdstore.engines.mem import MemStore
from mdstore.engines.protocol import ObjectStore
from mdstore.errors import PosixError
from mdstore.mds.core import Limits
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER, SetAttr, Vfs
from mdstore.store.check import check as check_store
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from tests.model.mds_check import problems
from tests.model.memory_vfs import MemoryVfs

SEED = int(os.environ.get("MDS_CRASH_SEED", "0"))
RUNS = int(os.environ.get("MDS_CRASH_RUNS", "6"))
TINY = Limits(
    cache_bytes=64 * 700, dirty_entries=16, dirty_entries_low=6, log_bytes=12 << 10, file_buffer=700, data_buffer=1500
)
OBJECT_SIZE = 4096
NAMES = [b"a", b"b", b"c", b"d", b"e", b"f"]
Tree = dict[bytes, tuple[int, int, int, bytes]]


def pattern(ino_key: int, offset: int, length: int) -> bytes:
    """The bytes a file has at `offset`: never zero, different everywhere nearby."""
    return bytes(1 + (ino_key * 31 + at * 7 + at // 256) % 255 for at in range(offset, offset + length))


def tree_of(vfs: Vfs) -> Tree:
    """Path to (mode, links, owner, target): what the name space is, without what buffered writes may still change."""
    found: Tree = {}
    work = [(ROOT_INO, b"")]
    while work:
        ino, path = work.pop()
        handle = vfs.opendir(SUPERUSER, ino)
        for name, attr in vfs.readdir(handle, None, 10_000):
            target = vfs.readlink(attr.ino) if stat.S_ISLNK(attr.mode) else b""
            found[path + b"/" + name] = (attr.mode, attr.nlink, attr.uid, target)
            if stat.S_ISDIR(attr.mode):
                work.append((attr.ino, path + b"/" + name))
        vfs.releasedir(handle)
    return found


class Workload:
    """The same random operations on the server and on the model; `snapshots` are the model's trees, one per change."""

    def __init__(self, seed: int, limits: Limits = TINY, store: ObjectStore | None = None) -> None:
        self.limits = limits
        self.random = random.Random(seed)
        self.now = 1_000_000
        self.memory = MemStore(delayed=True)
        self.store = store or self.memory
        MetadataServer.format(
            self.store, now_ns=1, object_size=OBJECT_SIZE, log_unit=1024, log_object_size=2048, identity=bytes(16)
        )
        self.start()
        self.model = MemoryVfs(clock=lambda: self.now)
        self.snapshots: list[Tree] = [tree_of(self.model)]
        self.checked = 0

    def start(self) -> None:
        self.server = MetadataServer.mount(
            self.store, clock=lambda: self.now, limits=self.limits, count_references=False
        )  # fmt: skip
        self.handles: list[int] = []

    def places(self) -> list[bytes]:
        return [b"", *(path for path, (mode, *_) in self.snapshots[-1].items() if stat.S_ISDIR(mode))]

    def paths(self) -> list[bytes]:
        return list(self.snapshots[-1]) or [b"/none"]

    def step(self) -> None:
        self.now += 1_000_000
        verb = self.random.choice(
            [self.create, self.create, self.append, self.append, self.mkdir, self.link, self.unlink, self.unlink, self.rmdir,
             self.rename, self.rename, self.symlink, self.chmod, self.cut, self.close_one]
        )  # fmt: skip
        verb()
        tree = tree_of(self.model)
        if tree != self.snapshots[-1]:
            self.snapshots.append(tree)

    # -- both sides ----------------------------------------------------------------------------------------------------

    def both(self, call) -> list[object] | None:  # type: ignore[no-untyped-def]
        results = []
        for vfs in (self.model, self.server):
            try:
                results.append(call(vfs))
            except PosixError as error:
                results.append(error.errno)
        failed = [type(result) is int and result < 200 for result in results]
        assert failed[0] == failed[1], results
        return None if failed[0] else results

    def at(self, vfs: Vfs, path: bytes) -> int:
        ino = ROOT_INO
        for name in path.split(b"/")[1:]:
            ino = vfs.lookup(SUPERUSER, ino, name).ino
        return ino

    def parted(self, path: bytes) -> tuple[bytes, bytes]:
        above, _, name = path.rpartition(b"/")
        return above, name

    def new_path(self) -> tuple[bytes, bytes]:
        return self.random.choice(self.places()), self.random.choice(NAMES)

    # -- verbs ---------------------------------------------------------------------------------------------------------

    def create(self) -> None:
        above, name = self.new_path()
        if self.snapshots[-1].get(above + b"/" + name, (0o100000,))[0] >> 12 != 8:
            return
        made = self.both(lambda vfs: vfs.create(SUPERUSER, self.at(vfs, above), name, 0o644, os.O_RDWR))
        if made:
            self.handles.append(made[1][1])  # type: ignore[index]

    def append(self) -> None:
        """Extend the file by its pattern, through an open handle; the pattern is the server's number's."""
        if not self.handles:
            return
        handle = self.random.choice(self.handles)
        node = self.server._handles.file(handle).node
        length = self.random.choice([1, 50, 300, 900, 3000])
        self.server.write(handle, node.size, pattern(node.ino, node.size, length))
        if self.random.random() < 0.1:
            self.server.fsync(handle)
            self.synced()

    def mkdir(self) -> None:
        above, name = self.new_path()
        self.both(lambda vfs: vfs.mkdir(SUPERUSER, self.at(vfs, above), name, 0o755))

    def symlink(self) -> None:
        above, name = self.new_path()
        self.both(lambda vfs: vfs.symlink(SUPERUSER, self.at(vfs, above), name, b"to/" + name))

    def link(self) -> None:
        path = self.random.choice(self.paths())
        above, name = self.new_path()
        self.both(lambda vfs: vfs.link(SUPERUSER, self.at(vfs, path), self.at(vfs, above), name))

    def unlink(self) -> None:
        above, name = self.parted(self.random.choice(self.paths()))
        self.both(lambda vfs: vfs.unlink(SUPERUSER, self.at(vfs, above), name))

    def rmdir(self) -> None:
        above, name = self.parted(self.random.choice(self.places()[1:] or [b"/none"]))
        self.both(lambda vfs: vfs.rmdir(SUPERUSER, self.at(vfs, above), name))

    def rename(self) -> None:
        above, name = self.parted(self.random.choice(self.paths()))
        to, new_name = self.new_path()
        flags = self.random.choice([0, 0, 0, 2])
        self.both(lambda vfs: vfs.rename(SUPERUSER, self.at(vfs, above), name, self.at(vfs, to), new_name, flags))

    def chmod(self) -> None:
        path = self.random.choice(self.paths())
        mode = self.random.choice([0o600, 0o755, 0o777])
        self.both(lambda vfs: vfs.setattr(SUPERUSER, self.at(vfs, path), SetAttr(mode=mode)))

    def cut(self) -> None:
        """Shorten a file, or give it a hole at its end."""
        path = self.random.choice(self.paths())
        if self.snapshots[-1].get(path, (0,))[0] >> 12 != 8:
            return
        ino = self.at(self.server, path)
        size = self.random.choice([0, 10, 500, 4096])
        self.server.setattr(SUPERUSER, ino, SetAttr(size=min(size, self.server.getattr(ino).size)))

    def close_one(self) -> None:
        if self.handles:
            self.server.release(self.handles.pop(self.random.randrange(len(self.handles))))

    # -- crashes -------------------------------------------------------------------------------------------------------

    def synced(self) -> None:
        tree = tree_of(self.model)
        self.snapshots = [tree]

    def check_every_crash(self) -> None:
        for store in self.memory.durable_prefixes():
            self.check(store)
            self.checked += 1

    def check(self, store: MemStore) -> None:
        reader = MetadataServer.mount(store, clock=lambda: self.now, read_only=True)
        tree = tree_of(reader)
        assert tree in self.snapshots, f"not a moment since the last sync: {tree}"
        server = MetadataServer.mount(store, clock=lambda: self.now, limits=TINY, count_references=False)
        assert tree_of(server) == tree
        check_contents(server)
        server.purge_all()
        server.write_back()
        assert list(problems(store)) == []
        again = MetadataServer.mount(store.crash(), clock=lambda: self.now)
        assert tree_of(again) == tree
        assert again.recovery.events == 0, "written back, so nothing is left to replay"


def check_contents(server: MetadataServer) -> None:
    """Every file is its pattern from beginning to end."""
    work = [ROOT_INO]
    while work:
        directory = server.opendir(SUPERUSER, work.pop())
        for _, attr in server.readdir(directory, None, 10_000):
            if stat.S_ISDIR(attr.mode):
                work.append(attr.ino)
            elif stat.S_ISREG(attr.mode):
                handle = server.open(SUPERUSER, attr.ino, os.O_RDONLY)
                assert server.read(handle, 0, 1 << 20) == pattern(attr.ino, 0, attr.size), f"inode {attr.ino}"
                server.release(handle)
        server.releasedir(directory)


@pytest.mark.parametrize("seed", range(SEED, SEED + RUNS))
def test_every_crash_leaves_a_moment_since_the_last_sync_and_no_invented_bytes(seed: int) -> None:
    print(f"seed {seed}")
    work = Workload(seed)
    for _ in range(220):
        work.step()
        chance = work.random.random()
        if chance < 0.06 or 0.155 < chance < 0.25:
            work.check_every_crash()
        elif chance < 0.08:
            work.server.syncfs()
            work.synced()
        elif chance < 0.12:
            work.server.tick(work.now + 2_000_000_000)
        elif chance < 0.14:
            work.server.purge_all()
        elif chance < 0.155:
            work.server.syncfs()
            work.store = work.memory = work.memory.crash()
            work.start()
            work.synced()
    work.check_every_crash()
    print(f"seed {seed}: {work.checked} crash states")
    assert work.checked >= 30


# -- the whole house: this server, its log, the store, its log, a device that loses what was not flushed -----------------

IMAGE = 4 << 20
GEOMETRY: dict[str, Any] = {"block_size": 512, "log_bytes": 64 * 1024}
SMALL: dict[str, Any] = {"cache_bytes": 256 * 1024, "dirty_bytes": 128 * 1024, "background": False}


def whole_workload(seed: int, steps: int):  # type: ignore[no-untyped-def]
    def workload(device: FaultyDevice, history: History) -> None:
        store = Store.create(device, **GEOMETRY, **SMALL)
        work = Workload(seed, store=store)
        history.start(work.snapshots[-1])
        for number in range(steps):
            work.step()
            begun = history.begin(work.snapshots[-1])
            if number % 7 == 0:
                work.server.syncfs()
                history.acknowledge(begun)
            elif number % 11 == 0:
                work.server.tick(work.now + 2_000_000_000)
        work.server.close()
        store.close()
        history.acknowledge(begun)

    return workload


def whole_reopen(device: Device) -> Tree:
    """Recover both, check both, and hand out the names; then once more, with the log empty."""
    store = Store.open(device, **SMALL)
    server = MetadataServer.mount(store, clock=lambda: 1, limits=TINY, count_references=False)
    tree = tree_of(server)
    check_contents(server)
    server.purge_all()
    server.close()
    assert list(problems(store)) == []
    assert not check_store(store, deep=True)
    assert tree_of(MetadataServer.mount(store, clock=lambda: 1)) == tree
    store.close()
    return tree


def test_every_write_of_the_device_under_the_whole_house_is_a_crash_point() -> None:
    report = explore(
        whole_workload(SEED + 7, 90), whole_reopen, seed=SEED + 7, size_bytes=IMAGE, budget_states=2500, nested_states=3
    )
    print(report)
    assert report.clean, report.findings
    assert report.points == report.points_in_all > 50, "no write was left out"
    assert report.distinct > 800


def test_a_crash_during_replay_is_replayed_again() -> None:
    """Replay writes back when memory is full; what a crash in the middle leaves must lead to the same state."""
    work = Workload(12345, Limits())
    for _ in range(150):
        work.step()
    work.server.syncfs()
    work.synced()
    store = work.memory.crash()
    before = tree_of(MetadataServer.mount(store, clock=lambda: work.now, read_only=True))
    small = Limits(dirty_entries=2, dirty_entries_low=1)
    MetadataServer.mount(store, clock=lambda: work.now, limits=small)
    states = list(store.durable_prefixes())
    assert len(states) > 3
    for state in states:
        server = MetadataServer.mount(state, clock=lambda: work.now)
        assert tree_of(server) == before
        server.purge_all()
        server.write_back()
        assert list(problems(state)) == []


def test_a_lost_write_back_is_found_by_this_suite() -> None:
    """Canary: a store that drops a directory's write-back, and a log that forgot the events, must fail the checks."""
    store = MemStore(delayed=True)
    MetadataServer.format(store, now_ns=1)
    server = MetadataServer.mount(store)
    server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755)
    server.close()
    child = next(name for name in store.list_objects(b"meta") if name != b"%016x" % ROOT_INO)
    store.apply(Transaction().remove(b"meta", child))
    assert any("no object" in problem for problem in problems(store))
