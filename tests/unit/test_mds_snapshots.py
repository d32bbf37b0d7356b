"""Snapshots of directories through `Vfs`: what is in them, who may make them, what they survive."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.engines.mem import MemStore
from mdstore.engines.protocol import ObjectStore
from mdstore.errors import CorruptionError, DeviceFailed, PosixError
from mdstore.mds.core import Limits
from mdstore.mds.frozen import FrozenVfs
from mdstore.mds.server import MetadataServer
from mdstore.mds.snapdir import SnapshotVfs
from mdstore.mds.snapshots import NAME_MAX, VIEWS_MAX
from mdstore.mds.vfs import RENAME_EXCHANGE, RENAME_NOREPLACE, ROOT_INO, SUPERUSER, Credentials, SetAttr
from mdstore.store.store import Store

USER = Credentials(1000, 1000)


def _store(kind: str) -> ObjectStore:
    return MemStore() if kind == "mem" else Store.create(MemoryDevice(64 << 20))


@pytest.fixture(params=["mem", "btree"])
def vfs(request: pytest.FixtureRequest) -> Iterator[SnapshotVfs]:
    store = _store(request.param)
    MetadataServer.format(store, now_ns=1)
    served = SnapshotVfs(MetadataServer.mount(store))
    yield served
    served.server.assert_state()
    served.close()
    store.close()


def write(vfs: SnapshotVfs, parent: int, name: bytes, data: bytes) -> int:
    """A file of that content; its number."""
    attr, handle = vfs.create(SUPERUSER, parent, name, 0o644, os.O_RDWR | os.O_TRUNC)
    vfs.write(handle, 0, data)
    vfs.release(handle)
    return attr.ino


def read(vfs: SnapshotVfs, parent: int, *path: bytes) -> bytes:
    """The content of the file at `path`."""
    for name in path:
        parent = vfs.lookup(SUPERUSER, parent, name).ino
    handle = vfs.open(SUPERUSER, parent, os.O_RDONLY)
    data = vfs.read(handle, 0, 1 << 20)
    vfs.release(handle)
    return data


def names(vfs: SnapshotVfs, parent: int, *path: bytes) -> list[bytes]:
    """The entries of the directory at `path`."""
    for name in path:
        parent = vfs.lookup(SUPERUSER, parent, name).ino
    handle = vfs.opendir(SUPERUSER, parent)
    found: list[bytes] = []
    while page := vfs.readdir(handle, found[-1] if found else None, 2):
        found += [entry.name for entry in page]
    vfs.releasedir(handle)
    return found


def snap(vfs: SnapshotVfs, directory: int, name: bytes, cred: Credentials = SUPERUSER) -> int:
    """Freeze `directory`; the number of `.snap/NAME`."""
    return vfs.mkdir(cred, vfs.lookup(cred, directory, b".snap").ino, name, 0o755).ino


def refused(number: int, call: object, *arguments: object) -> None:
    with pytest.raises(PosixError) as raised:
        call(*arguments)  # type: ignore[operator]
    assert raised.value.errno == number, raised.value


def test_a_snapshot_keeps_what_was_there(vfs: SnapshotVfs) -> None:
    home = vfs.mkdir(SUPERUSER, ROOT_INO, b"home", 0o755).ino
    deep = vfs.mkdir(SUPERUSER, home, b"deep", 0o755).ino
    write(vfs, home, b"a", b"first")
    write(vfs, deep, b"b", b"below" * 5000)
    vfs.symlink(SUPERUSER, home, b"link", b"a")
    snap(vfs, home, b"before")

    write(vfs, home, b"a", b"second, and longer")
    vfs.unlink(SUPERUSER, deep, b"b")
    vfs.rmdir(SUPERUSER, home, b"deep")
    write(vfs, home, b"new", b"")

    assert names(vfs, home) == [b"a", b"link", b"new"]
    assert names(vfs, home, b".snap", b"before") == [b"a", b"deep", b"link"]
    assert read(vfs, home, b".snap", b"before", b"a") == b"first"
    assert read(vfs, home, b".snap", b"before", b"deep", b"b") == b"below" * 5000
    assert read(vfs, home, b"a") == b"second, and longer"
    frozen = vfs.lookup(SUPERUSER, vfs.lookup(SUPERUSER, home, b".snap").ino, b"before").ino
    assert vfs.readlink(vfs.lookup(SUPERUSER, frozen, b"link").ino) == b"a"


def test_snapshots_are_listed_by_directory_and_hidden_from_listings(vfs: SnapshotVfs) -> None:
    one, two = (vfs.mkdir(SUPERUSER, ROOT_INO, name, 0o755).ino for name in (b"one", b"two"))
    for name in (b"c", b"a", b"b"):
        snap(vfs, one, name)
    assert names(vfs, one, b".snap") == [b"a", b"b", b"c"]
    assert names(vfs, two, b".snap") == []
    assert names(vfs, one) == []
    assert vfs.getattr(vfs.lookup(SUPERUSER, one, b".snap").ino).size == 3


def test_several_snapshots_each_show_their_moment(vfs: SnapshotVfs) -> None:
    for number in range(6):
        write(vfs, ROOT_INO, b"f", b"%d" % number * 1000)
        snap(vfs, ROOT_INO, b"s%d" % number)
    for number in (3, 0, 5):
        vfs.rmdir(SUPERUSER, vfs.lookup(SUPERUSER, ROOT_INO, b".snap").ino, b"s%d" % number)
    for number in (1, 2, 4):
        assert read(vfs, ROOT_INO, b".snap", b"s%d" % number, b"f") == b"%d" % number * 1000
    assert names(vfs, ROOT_INO, b".snap") == [b"s1", b"s2", b"s4"]


def test_files_of_several_names_and_open_ones_are_as_they_were(vfs: SnapshotVfs) -> None:
    far = vfs.mkdir(SUPERUSER, ROOT_INO, b"far", 0o755).ino
    near = vfs.mkdir(SUPERUSER, ROOT_INO, b"near", 0o755).ino
    ino = write(vfs, far, b"f", b"shared")
    vfs.link(SUPERUSER, ino, near, b"g")
    handle = vfs.open(SUPERUSER, ino, os.O_RDWR)
    vfs.write(handle, 0, b"SHARED, buffered")
    frozen = snap(vfs, near, b"s")
    vfs.write(handle, 0, b"later")
    vfs.release(handle)
    vfs.unlink(SUPERUSER, far, b"f")

    assert read(vfs, frozen, b"g") == b"SHARED, buffered"
    assert vfs.getattr(vfs.lookup(SUPERUSER, frozen, b"g").ino).nlink == 2
    assert vfs.getattr(vfs.lookup(SUPERUSER, near, b"g").ino).nlink == 1


def test_nothing_in_a_snapshot_can_be_changed(vfs: SnapshotVfs) -> None:
    write(vfs, ROOT_INO, b"f", b"x")
    live = vfs.lookup(SUPERUSER, ROOT_INO, b"f").ino
    frozen = snap(vfs, ROOT_INO, b"s")
    inside = vfs.lookup(SUPERUSER, frozen, b"f").ino
    snapdir = vfs.lookup(SUPERUSER, ROOT_INO, b".snap").ino
    for parent in (frozen, snapdir):
        refused(errno.EROFS, vfs.symlink, SUPERUSER, parent, b"n", b"t")
        refused(errno.EROFS, vfs.mknod, SUPERUSER, parent, b"n", 0o100644)
        refused(errno.EROFS, vfs.create, SUPERUSER, parent, b"n", 0o644, os.O_RDWR)
        refused(errno.EROFS, vfs.link, SUPERUSER, live, parent, b"n")
        refused(errno.EROFS, vfs.rename, SUPERUSER, ROOT_INO, b"f", parent, b"n")
        refused(errno.EROFS, vfs.setattr, SUPERUSER, parent, SetAttr(mode=0o700))
        refused(errno.EROFS, vfs.setxattr, SUPERUSER, parent, b"user.a", b"b")
        refused(errno.EROFS, vfs.removexattr, SUPERUSER, parent, b"user.a")
    refused(errno.EROFS, vfs.mkdir, SUPERUSER, frozen, b"n", 0o755)
    refused(errno.EROFS, vfs.unlink, SUPERUSER, frozen, b"f")
    refused(errno.EROFS, vfs.rmdir, SUPERUSER, frozen, b"f")
    refused(errno.EROFS, vfs.rename, SUPERUSER, frozen, b"f", ROOT_INO, b"n")
    refused(errno.EROFS, vfs.open, SUPERUSER, inside, os.O_RDWR)
    refused(errno.EROFS, vfs.open, SUPERUSER, inside, os.O_TRUNC)
    refused(errno.EROFS, vfs.setattr, SUPERUSER, inside, SetAttr(size=0))
    refused(errno.EROFS, vfs.access, SUPERUSER, inside, os.W_OK)
    refused(errno.EXDEV, vfs.link, SUPERUSER, inside, ROOT_INO, b"n")
    refused(errno.EISDIR, vfs.unlink, SUPERUSER, snapdir, b"s")
    assert vfs.create(SUPERUSER, frozen, b"f", 0o644, os.O_RDONLY)[0].size == 1, "what is there can be opened"


def test_the_name_is_taken_and_a_directory_with_snapshots_stays(vfs: SnapshotVfs) -> None:
    home = vfs.mkdir(SUPERUSER, ROOT_INO, b"home", 0o755).ino
    write(vfs, ROOT_INO, b"f", b"")
    refused(errno.EEXIST, vfs.mkdir, SUPERUSER, home, b".snap", 0o755)
    refused(errno.EEXIST, vfs.create, SUPERUSER, home, b".snap", 0o644, os.O_RDWR)
    refused(errno.EEXIST, vfs.rename, SUPERUSER, ROOT_INO, b"f", home, b".snap")
    refused(errno.EBUSY, vfs.rmdir, SUPERUSER, home, b".snap")
    refused(errno.ENOTDIR, vfs.lookup, SUPERUSER, vfs.lookup(SUPERUSER, ROOT_INO, b"f").ino, b".snap")
    snap(vfs, home, b"s")
    refused(errno.EEXIST, snap, vfs, home, b"s")
    refused(errno.ENAMETOOLONG, snap, vfs, home, b"s" * (NAME_MAX + 1))
    refused(errno.ENOTEMPTY, vfs.rmdir, SUPERUSER, ROOT_INO, b"home")
    vfs.mkdir(SUPERUSER, ROOT_INO, b"other", 0o755)
    refused(errno.ENOTEMPTY, vfs.rename, SUPERUSER, ROOT_INO, b"other", ROOT_INO, b"home")
    vfs.rename(SUPERUSER, ROOT_INO, b"home", ROOT_INO, b"moved")
    assert names(vfs, ROOT_INO, b"moved", b".snap") == [b"s"]
    vfs.rmdir(SUPERUSER, vfs.lookup(SUPERUSER, home, b".snap").ino, b"s")
    vfs.rmdir(SUPERUSER, ROOT_INO, b"moved")
    refused(errno.ENOENT, vfs.snapshots.get, home, b"s")


def test_only_the_owner_makes_and_removes_snapshots(vfs: SnapshotVfs) -> None:
    mine = vfs.mkdir(SUPERUSER, ROOT_INO, b"mine", 0o755).ino
    vfs.setattr(SUPERUSER, mine, SetAttr(uid=1000, gid=1000))
    snap(vfs, mine, b"s", USER)
    root_snaps = vfs.lookup(USER, ROOT_INO, b".snap").ino
    refused(errno.EPERM, vfs.mkdir, USER, root_snaps, b"s", 0o755)
    snap(vfs, ROOT_INO, b"r")
    refused(errno.EPERM, vfs.rmdir, USER, root_snaps, b"r")
    secret = vfs.mkdir(SUPERUSER, ROOT_INO, b"secret", 0o700).ino
    refused(errno.EACCES, vfs.lookup, USER, secret, b".snap")
    frozen = vfs.lookup(USER, root_snaps, b"r").ino
    refused(errno.ENOENT, vfs.lookup, USER, frozen, b"secret")


def test_what_is_open_keeps_its_snapshot_and_what_is_gone_is_stale(vfs: SnapshotVfs) -> None:
    write(vfs, ROOT_INO, b"f", b"kept")
    frozen = snap(vfs, ROOT_INO, b"s")
    inside = vfs.lookup(SUPERUSER, frozen, b"f").ino
    handle = vfs.open(SUPERUSER, inside, os.O_RDONLY)
    snapdir = vfs.lookup(SUPERUSER, ROOT_INO, b".snap").ino
    refused(errno.EBUSY, vfs.rmdir, SUPERUSER, snapdir, b"s")
    assert vfs.read(handle, 0, 10) == b"kept"
    vfs.release(handle)
    vfs.rmdir(SUPERUSER, snapdir, b"s")
    refused(errno.ESTALE, vfs.getattr, inside)
    vfs.forget(inside, 1)
    snap(vfs, ROOT_INO, b"s")
    refused(errno.ESTALE, vfs.getattr, inside)


def test_more_snapshots_are_looked_into_than_are_kept_open(vfs: SnapshotVfs) -> None:
    for number in range(20):
        write(vfs, ROOT_INO, b"f", b"%d" % number)
        snap(vfs, ROOT_INO, b"s%02d" % number)
    for _ in range(2):
        for number in range(20):
            assert read(vfs, ROOT_INO, b".snap", b"s%02d" % number, b"f") == b"%d" % number


def test_parents_lead_back_to_the_living(vfs: SnapshotVfs) -> None:
    home = vfs.mkdir(SUPERUSER, ROOT_INO, b"home", 0o755).ino
    vfs.mkdir(SUPERUSER, home, b"deep", 0o755)
    frozen = snap(vfs, home, b"s")
    deep = vfs.lookup(SUPERUSER, frozen, b"deep").ino
    snapdir = vfs.lookup(SUPERUSER, home, b".snap").ino
    assert vfs.parent_of(deep) == frozen
    assert vfs.parent_of(frozen) == snapdir
    assert vfs.parent_of(snapdir) == home


def test_snapshots_are_there_after_a_clean_end_and_after_a_crash() -> None:
    device = MemoryDevice(64 << 20)
    store = Store.create(device)
    MetadataServer.format(store, now_ns=1)
    vfs = SnapshotVfs(MetadataServer.mount(store))
    write(vfs, ROOT_INO, b"f", b"first")
    snap(vfs, ROOT_INO, b"s")
    write(vfs, ROOT_INO, b"f", b"second")
    vfs.syncfs()
    crashed = Store.open(MemoryDevice.from_bytes(device.image()))
    after = SnapshotVfs(MetadataServer.mount(crashed))
    assert names(after, ROOT_INO, b".snap") == [b"s"]
    assert read(after, ROOT_INO, b".snap", b"s", b"f") == b"first"
    assert read(after, ROOT_INO, b"f") == b"second"
    after.close()
    crashed.close()
    vfs.close()
    store.close()
    with Store.open(MemoryDevice.from_bytes(device.image())) as again:
        last = SnapshotVfs(MetadataServer.mount(again))
        assert read(last, ROOT_INO, b".snap", b"s", b"f") == b"first"
        last.rmdir(SUPERUSER, last.lookup(SUPERUSER, ROOT_INO, b".snap").ino, b"s")
        last.close()


def test_a_front_that_holds_too_many_numbers_is_asked_to_let_go() -> None:
    store = MemStore()
    MetadataServer.format(store, now_ns=1)
    limits = Limits(cache_bytes=64 * 700, references_max=200)
    vfs = SnapshotVfs(MetadataServer.mount(store, limits=limits))
    for number in range(1000):
        vfs.forget(vfs.mknod(SUPERUSER, ROOT_INO, b"f%04d" % number, 0o100644).ino, 1)
    vfs.server.write_back()
    held: dict[tuple[int, bytes], int] = {}
    busy = {(ROOT_INO, b"f%04d" % number) for number in range(0, 1000, 100)}
    asked = []

    def recall(directory: int, name: bytes) -> bool:
        asked.append((directory, name))
        return True

    vfs.recall_through(recall)
    for number in range(1000):
        name = b"f%04d" % number
        held[ROOT_INO, name] = vfs.lookup(SUPERUSER, ROOT_INO, name).ino
        for key in [key for key in asked if key not in busy]:
            vfs.forget(held.pop(key), 1)
        asked[:] = [key for key in asked if key in held and key not in busy]
    counters = vfs.server.counters()
    assert int(counters["references"]) == len(held) < 400
    assert int(counters["recalled"]) < 1500, "nobody is asked again and again for what he keeps"
    for (_, name), ino in held.items():
        assert vfs.getattr(ino).ino == vfs.lookup(SUPERUSER, ROOT_INO, name).ino, "what is held is still good"
    vfs.close()


@pytest.mark.parametrize("name", [b".", b"..", b"a/b", b"", b"a\0"])
def test_a_name_that_could_not_be_reached_is_refused(vfs: SnapshotVfs, name: bytes) -> None:
    refused(errno.ENOENT if not name else errno.EINVAL, vfs.snapshots.create, ROOT_INO, name)
    assert vfs.snapshots.all() == []


def test_a_removed_directory_gets_no_snapshot(vfs: SnapshotVfs) -> None:
    gone = vfs.mkdir(SUPERUSER, ROOT_INO, b"gone", 0o755).ino
    snapdir = vfs.lookup(SUPERUSER, gone, b".snap").ino
    vfs.rmdir(SUPERUSER, ROOT_INO, b"gone")
    with pytest.raises(PosixError) as raised:
        vfs.mkdir(SUPERUSER, snapdir, b"s", 0o755)
    assert raised.value.errno in (errno.ENOENT, errno.ESTALE)
    assert vfs.snapshots.all() == []


def test_renames_that_replace_nothing_may_name_a_directory_with_snapshots(vfs: SnapshotVfs) -> None:
    kept = vfs.mkdir(SUPERUSER, ROOT_INO, b"kept", 0o755).ino
    vfs.mkdir(SUPERUSER, ROOT_INO, b"other", 0o755)
    snap(vfs, kept, b"s")
    vfs.rename(SUPERUSER, ROOT_INO, b"kept", ROOT_INO, b"kept")
    refused(errno.EEXIST, vfs.rename, SUPERUSER, ROOT_INO, b"other", ROOT_INO, b"kept", RENAME_NOREPLACE)
    vfs.rename(SUPERUSER, ROOT_INO, b"other", ROOT_INO, b"kept", RENAME_EXCHANGE)
    assert names(vfs, ROOT_INO, b"other", b".snap") == [b"s"]
    refused(errno.ENOTEMPTY, vfs.rename, SUPERUSER, ROOT_INO, b"kept", ROOT_INO, b"other")


def refuse_to_open(monkeypatch: pytest.MonkeyPatch, vfs: SnapshotVfs, damaged: bytes) -> None:
    """The store's snapshots whose name ends so are damaged; none is open."""
    store = vfs.server.store
    opened = store.open_snapshot

    def open_snapshot(key: bytes) -> ObjectStore:
        if key.endswith(damaged):
            raise CorruptionError("page", "the snapshot", "good", "bad")
        return opened(key)

    monkeypatch.setattr(store, "open_snapshot", open_snapshot)
    vfs.snapshots.close()


def test_a_damaged_snapshot_hides_none_beside_it(vfs: SnapshotVfs, monkeypatch: pytest.MonkeyPatch) -> None:
    # `ls .snap` failed whole, and what it had counted before stayed counted.
    for name in (b"a", b"b", b"c"):
        snap(vfs, ROOT_INO, name)
    snapdir = vfs.lookup(SUPERUSER, ROOT_INO, b".snap").ino
    with monkeypatch.context() as patched:
        refuse_to_open(patched, vfs, b"b")
        handle = vfs.opendir(SUPERUSER, snapdir)
        page = vfs.readdir(handle, None, 10, count_lookups=True)
        assert [(name, attr.ino > 0) for name, attr in page] == [(b"a", True), (b"b", False), (b"c", True)]
        assert {attr.mode >> 12 for _, attr in page} == {4}
        assert [entry.name for entry in vfs.readdir(handle, b"a", 1)] == [b"b"]
        assert [view.references for view in vfs.snapshots._views.values()] == [1, 1]
        for _, attr in page:
            if attr.ino:
                vfs.forget(attr.ino, 2)
        assert [view.references for view in vfs.snapshots._views.values()] == [0, 0]
        with pytest.raises(CorruptionError):
            vfs.lookup(SUPERUSER, snapdir, b"b")
        vfs.rmdir(SUPERUSER, snapdir, b"b")
        assert [entry.name for entry in vfs.readdir(handle, None, 10)] == [b"a", b"c"]
        vfs.releasedir(handle)
        refused(errno.EBADF, vfs.readdir, handle, None, 10)
        refused(errno.EBADF, vfs.releasedir, handle)


def test_snapshots_deleted_while_they_are_listed_are_left_out_and_the_page_is_full(
    vfs: SnapshotVfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (b"a", b"b", b"c", b"d"):
        snap(vfs, ROOT_INO, name)
    listed = vfs.snapshots.of

    def deleting(directory: int) -> object:
        found = listed(directory)
        for name in (b"a", b"b"):
            vfs.snapshots.delete(directory, name)
        return found

    handle = vfs.opendir(SUPERUSER, vfs.lookup(SUPERUSER, ROOT_INO, b".snap").ino)
    monkeypatch.setattr(vfs.snapshots, "of", deleting)
    assert [entry.name for entry in vfs.readdir(handle, None, 2)] == [b"c", b"d"]


def test_a_list_that_cannot_be_read_is_the_one_before(vfs: SnapshotVfs, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = vfs.mkdir(SUPERUSER, ROOT_INO, b"kept", 0o755).ino
    snap(vfs, kept, b"s")

    def broken() -> list[object]:
        raise DeviceFailed("read", "the list", "told to fail")

    with monkeypatch.context() as patched:
        patched.setattr(vfs.server.store, "snapshots", broken)
        with pytest.raises(DeviceFailed):
            vfs.snapshots.all()
        refused(errno.ENOTEMPTY, vfs.rmdir, SUPERUSER, ROOT_INO, b"kept")
    assert [one.name for one in vfs.snapshots.all()] == [b"s"]


def while_inside(vfs: SnapshotVfs, method: str, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object]) -> None:
    """The next call of that method of a snapshot runs `meanwhile` before it returns, when its view is not counted in use yet."""
    original = getattr(FrozenVfs, method)

    def call(self: FrozenVfs, *arguments: object) -> object:
        answer = original(self, *arguments)
        monkeypatch.setattr(FrozenVfs, method, original)
        meanwhile()
        return answer

    monkeypatch.setattr(FrozenVfs, method, call)


def test_a_view_that_is_being_looked_into_is_not_closed_to_make_room(
    vfs: SnapshotVfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between finding the view and counting the handle, others closed it: the program's handle led nowhere."""
    count = VIEWS_MAX + 3
    write(vfs, ROOT_INO, b"file", b"content")
    snap = vfs.lookup(SUPERUSER, ROOT_INO, b".snap").ino
    for number in range(count):
        vfs.mkdir(SUPERUSER, snap, b"%d" % number, 0o755)
    first = vfs.lookup(SUPERUSER, vfs.lookup(SUPERUSER, snap, b"0").ino, b"file").ino

    def look_into_others() -> None:
        for number in range(1, count):
            assert read(vfs, ROOT_INO, b".snap", b"%d" % number, b"file") == b"content"

    while_inside(vfs, "open", monkeypatch, look_into_others)
    handle = vfs.open(SUPERUSER, first, os.O_RDONLY)
    assert vfs.read(handle, 0, 100) == b"content"
    vfs.release(handle)
    look_into_others()
    assert len(vfs.snapshots._views) <= VIEWS_MAX, "it was let go of"


@pytest.mark.parametrize(("method", "outcome"), [("open", errno.EBUSY), ("getattr", 0)])
def test_a_snapshot_that_is_being_looked_into_is_deleted_after_that(
    method: str, outcome: int, vfs: SnapshotVfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(vfs, ROOT_INO, b"file", b"content")
    snap = vfs.lookup(SUPERUSER, ROOT_INO, b".snap").ino
    vfs.mkdir(SUPERUSER, snap, b"s", 0o755)
    inside = vfs.lookup(SUPERUSER, vfs.lookup(SUPERUSER, snap, b"s").ino, b"file").ino
    ended: list[int] = []

    def delete() -> None:
        try:
            vfs.rmdir(SUPERUSER, snap, b"s")
            ended.append(0)
        except PosixError as error:
            ended.append(error.errno)

    deleting = threading.Thread(target=delete)

    def begin_to_delete() -> None:
        deleting.start()
        while not vfs.snapshots._unused._waiters and deleting.is_alive():  # type: ignore[attr-defined]
            threading.Event().wait(0.0005)
        assert not ended, "it waits"

    while_inside(vfs, method, monkeypatch, begin_to_delete)
    if method == "open":
        handle = vfs.open(SUPERUSER, inside, os.O_RDONLY)
        deleting.join()
        assert vfs.read(handle, 0, 100) == b"content"
        vfs.release(handle)
        vfs.rmdir(SUPERUSER, snap, b"s")
    else:
        assert vfs.getattr(inside).size == 7
        deleting.join()
    assert ended == [outcome]
    assert names(vfs, snap) == []
