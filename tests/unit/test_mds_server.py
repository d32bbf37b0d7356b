"""The metadata server's own promises: what survives, what is counted, what is refused, what damage touches."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

import pytest

from mdstore.engines.mem import MemStore
from mdstore.errors import (
    AlreadyExists,
    CorruptionError,
    DeviceFailed,
    MdstoreError,
    NotAnImage,
    PosixError,
    ReadOnly,
    errno_of,
)
from mdstore.mds.core import Limits
from mdstore.mds.layout import DATA, META, TABLE_OBJECTS, Tab, directory_object
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER, Credentials, SetAttr
from mdstore.store.transaction import Transaction
from tests.model.mds_check import problems

USER = Credentials(1000, 1000)
SMALL = Limits(cache_bytes=64 * 700, dirty_entries=64, dirty_entries_low=16)


def formatted(object_size: int = 64 << 20) -> MemStore:
    store = MemStore(delayed=True)
    MetadataServer.format(store, now_ns=1, object_size=object_size, log_unit=4096, log_object_size=8192)
    return store


@pytest.fixture
def store() -> MemStore:
    return formatted()


def refused(number: int, call: Callable[[], object]) -> None:
    with pytest.raises(MdstoreError) as caught:
        call()
    assert errno_of(caught.value) == number, os.strerror(errno_of(caught.value))


def make_file(server: MetadataServer, parent: int, name: bytes, content: bytes = b"") -> int:
    attr, handle = server.create(SUPERUSER, parent, name, 0o644, os.O_RDWR)
    if content:
        server.write(handle, 0, content)
    server.release(handle)
    return attr.ino


def content_of(server: MetadataServer, ino: int) -> bytes:
    handle = server.open(SUPERUSER, ino, os.O_RDONLY)
    data = server.read(handle, 0, 1 << 30)
    server.release(handle)
    return data


def names_in(server: MetadataServer, ino: int = ROOT_INO, page: int = 7) -> list[bytes]:
    handle = server.opendir(SUPERUSER, ino)
    found: list[bytes] = []
    while entries := server.readdir(handle, found[-1] if found else None, page):
        found += [entry.name for entry in entries]
    server.releasedir(handle)
    return found


# -- opening -----------------------------------------------------------------------------------------------------------


def test_a_store_without_a_file_system_is_named_so() -> None:
    with pytest.raises(NotAnImage):
        MetadataServer.mount(MemStore())
    store = formatted()
    with pytest.raises(AlreadyExists):
        MetadataServer.format(store, now_ns=2)


def test_read_only_shows_what_the_log_holds_and_writes_nothing(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    ino = make_file(server, ROOT_INO, b"f", b"bytes")
    server.syncfs()
    left = store.crash()
    before = left.list_objects(META)
    reader = MetadataServer.mount(left, read_only=True)
    assert content_of(reader, ino) == b"bytes"
    for change in (
        lambda: reader.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755),
        lambda: reader.unlink(SUPERUSER, ROOT_INO, b"f"),
        lambda: reader.setattr(SUPERUSER, ino, SetAttr(mode=0)),
    ):
        refused(errno.EROFS, change)
    reader.close()
    assert left.list_objects(META) == before
    assert len(list(left.durable_prefixes())) == 1, "nothing was submitted"


def test_a_closed_server_replays_nothing_and_answers_nothing(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    make_file(server, ROOT_INO, b"f")
    server.close()
    server.close()
    refused(errno.EBADF, lambda: server.getattr(ROOT_INO))
    assert MetadataServer.mount(store).recovery.events == 0


# -- durability --------------------------------------------------------------------------------------------------------


def test_fsync_of_one_file_keeps_every_name_made_before_it(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    directory = server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755).ino
    make_file(server, directory, b"before")
    attr, handle = server.create(SUPERUSER, directory, b"synced", 0o644, os.O_RDWR)
    server.write(handle, 3, b"payload")
    server.fsync(handle)
    make_file(server, directory, b"after")
    survivor = MetadataServer.mount(store.crash())
    assert names_in(survivor, directory) == [b"before", b"synced"]
    assert content_of(survivor, attr.ino) == b"\0\0\0payload"


def test_a_tick_makes_old_bytes_durable_without_being_asked(store: MemStore) -> None:
    now = [10**9]
    server = MetadataServer.mount(store, clock=lambda: now[0])
    ino = make_file(server, ROOT_INO, b"f", b"unasked")
    now[0] += 5 * 10**9
    server.tick(now[0])
    assert content_of(MetadataServer.mount(store.crash()), ino) == b"unasked"


def test_the_first_failure_latches_and_what_was_synced_is_there(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    directory = server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755).ino
    make_file(server, directory, b"kept")
    server.syncfs()
    state = next(iter(store.durable_prefixes()))
    store.fail(DeviceFailed("write", "medium", "gone"))
    make_file(server, directory, b"lost")  # the log takes it in memory
    refused(errno.EIO, server.syncfs)
    refused(errno.EIO, lambda: server.mkdir(SUPERUSER, directory, b"e", 0o755))
    refused(errno.EIO, server.syncfs)
    assert server.getattr(directory).size == 2, "what memory has can still be read"
    server.close()
    refused(errno.EIO, lambda: server.getattr(directory))
    assert names_in(MetadataServer.mount(state), directory) == [b"kept"]


def test_many_threads_share_flushes_and_lose_nothing(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            directory = server.mkdir(SUPERUSER, ROOT_INO, b"t%d" % number, 0o755).ino
            for index in range(40):
                _, handle = server.create(SUPERUSER, directory, b"f%d" % index, 0o644, os.O_RDWR)
                server.write(handle, 0, b"x" * number)
                if index % 8 == 0:
                    server.fsync(handle)
                server.release(handle)
                if index % 10 == 9:
                    server.rename(SUPERUSER, directory, b"f%d" % index, ROOT_INO, b"m%d-%d" % (number, index))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 7)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        server.tick(1 << 62)
    for thread in threads:
        thread.join()
    assert not errors
    server.write_back()
    assert list(problems(store)) == []
    assert server.getxattr(SUPERUSER, ROOT_INO, b"mdstore.rfiles") == b"240"


# -- memory ------------------------------------------------------------------------------------------------------------


def test_a_directory_larger_than_the_cache_lists_every_name_once_while_others_come_and_go(store: MemStore) -> None:
    server = MetadataServer.mount(store, limits=SMALL, count_references=False)
    stay = [b"stay%04d" % number for number in range(600)]
    for name in stay:
        make_file(server, ROOT_INO, name)
    handle = server.opendir(SUPERUSER, ROOT_INO)
    found: list[bytes] = []
    step = 0
    while page := server.readdir(handle, found[-1] if found else None, 13):
        found += [entry.name for entry in page]
        step += 1
        make_file(server, ROOT_INO, b"come%04d" % step)
        make_file(server, ROOT_INO, b"stay%04d-new" % (step * 13 + 5))
        server.unlink(SUPERUSER, ROOT_INO, b"come%04d" % step)
    server.releasedir(handle)
    assert [name for name in found if name in set(stay)] == stay
    assert len(found) == len(set(found))
    assert int(server.counters()["inodes_cached"]) <= 64 + 16
    server.write_back()
    assert list(problems(store)) == []


def test_a_number_handed_out_means_its_inode_after_eviction(store: MemStore) -> None:
    server = MetadataServer.mount(store, limits=SMALL)
    directory = server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755).ino
    inos = {number: make_file(server, directory, b"f%d" % number, b"%d" % number) for number in range(300)}
    server.link(SUPERUSER, inos[5], ROOT_INO, b"second")
    server.rename(SUPERUSER, ROOT_INO, b"d", ROOT_INO, b"moved")
    server.drop_caches()
    assert int(server.counters()["inodes_cached"]) < 10
    for number, ino in inos.items():
        assert server.getattr(ino).ino == ino
        assert content_of(server, ino) == b"%d" % number
    assert server.getattr(inos[5]).nlink == 2


def test_a_number_from_before_the_restart_is_found_by_its_backtrace(store: MemStore) -> None:
    """An NFS client, or a handle kept outside, knows nothing but the number."""
    server = MetadataServer.mount(store)
    first = server.mkdir(SUPERUSER, ROOT_INO, b"first", 0o755).ino
    second = server.mkdir(SUPERUSER, first, b"second", 0o755).ino
    ino = make_file(server, first, b"f", b"bytes")
    server.rename(SUPERUSER, first, b"f", second, b"g")
    server.close()
    server = MetadataServer.mount(store)
    assert content_of(server, ino) == b"bytes"
    assert server.parent_of(second) == first
    refused(errno.ESTALE, lambda: server.getattr(99999))


def test_the_log_keeps_its_ceiling(store: MemStore) -> None:
    limits = Limits(log_bytes=64 << 10, dirty_entries=1 << 30, dirty_entries_low=1 << 29)
    server = MetadataServer.mount(store, limits=limits, count_references=False)
    for number in range(2000):
        make_file(server, ROOT_INO, b"f%d" % number)
        assert int(server.counters()["log_bytes"]) < (64 << 10) + 256 * 400
    names = store.list_objects(b"log")
    assert len(names) < 60, "old objects of the log are given up"


# -- files without a name ----------------------------------------------------------------------------------------------


def test_an_unlinked_open_file_keeps_its_bytes_until_closed_and_then_gives_them_up(store: MemStore) -> None:
    server = MetadataServer.mount(store, count_references=False)
    attr, handle = server.create(SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)
    server.write(handle, 0, b"still here")
    server.fsync(handle)
    server.unlink(SUPERUSER, ROOT_INO, b"f")
    server.write(handle, 10, b" and more")
    assert server.read(handle, 0, 100) == b"still here and more"
    assert server.getattr(attr.ino).nlink == 0
    server.purge_all()
    assert server.read(handle, 0, 100) == b"still here and more"
    server.release(handle)
    assert server.counters()["purge_backlog"] == 1
    server.purge_all()
    assert store.list_objects(DATA) == []
    refused(errno.ESTALE, lambda: server.getattr(attr.ino))


def test_an_unlinked_open_file_of_a_dead_process_is_purged_after_the_restart(store: MemStore) -> None:
    server = MetadataServer.mount(store, count_references=False)
    _, handle = server.create(SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)
    server.write(handle, 0, b"x" * 10_000)
    server.unlink(SUPERUSER, ROOT_INO, b"f")
    server.fsync(handle)
    left = store.crash()
    assert left.list_objects(DATA) != []
    server = MetadataServer.mount(left)
    server.purge_all()
    server.close()
    assert left.list_objects(DATA) == []
    assert list(problems(left)) == []


def test_a_file_of_many_objects_is_purged_in_steps() -> None:
    store = formatted(object_size=4096)
    server = MetadataServer.mount(store, count_references=False)
    _, handle = server.create(SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)
    for number in range(700):
        server.write(handle, number * 4096, b"x")
    server.release(handle)
    server.syncfs()
    assert len(store.list_objects(DATA)) == 700
    server.unlink(SUPERUSER, ROOT_INO, b"f")
    server.tick(1)
    assert 0 < len(store.list_objects(DATA)) < 700
    server.purge_all()
    assert store.list_objects(DATA) == []


# -- bytes -------------------------------------------------------------------------------------------------------------


def test_bytes_cross_objects_and_sizes_pass_four_gigabytes() -> None:
    store = formatted(object_size=1 << 20)
    server = MetadataServer.mount(store)
    attr, handle = server.create(SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)
    far = (5 << 30) - 3
    server.write(handle, far, b"across")
    server.write(handle, (1 << 20) - 2, b"edge")
    server.fsync(handle)
    assert server.getattr(attr.ino).size == far + 6
    assert server.getattr(attr.ino).blocks < 100, "holes take no space"
    assert server.read(handle, far - 2, 100) == b"\0\0across"
    assert server.read(handle, (1 << 20) - 3, 6) == b"\0edge\0"
    assert server.lseek(handle, 0, os.SEEK_DATA) in range((1 << 20) - 4096, 1 << 20)
    assert server.lseek(handle, 3 << 20, os.SEEK_DATA) in range(far - 4096, far + 1)
    assert server.lseek(handle, far, os.SEEK_HOLE) == far + 6
    refused(errno.ENXIO, lambda: server.lseek(handle, far + 6, os.SEEK_DATA))
    refused(errno.EFBIG, lambda: server.write(handle, 1 << 53, b"x"))
    server.setattr(SUPERUSER, attr.ino, SetAttr(size=10))
    server.setattr(SUPERUSER, attr.ino, SetAttr(size=2 << 20))
    assert server.read(handle, 0, 2 << 20) == bytes(2 << 20), "cut bytes never come back"


def test_bytes_that_a_crash_left_behind_the_end_never_show(store: MemStore) -> None:
    """1. written bytes reach the store; 2. the process dies before the event with the size is durable; 3. after the restart the
    file is written again further on: the gap must read as zeros, not as what was left there."""
    server = MetadataServer.mount(store)
    attr, handle = server.create(SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)
    server.write(handle, 0, b"0123456789")
    server.fsync(handle)
    server.write(handle, 10, b"L" * 90)
    server._data.publish(list(server._core.buffered.values()))
    states = [s for s in store.durable_prefixes() if s.stat(DATA, b"%016x.00000000" % attr.ino).size == 100]
    sizes = set()
    for state in states:
        again = MetadataServer.mount(state)
        size = again.lookup(SUPERUSER, ROOT_INO, b"f").size
        sizes.add(size)
        handle = again.open(SUPERUSER, attr.ino, os.O_RDWR)
        again.write(handle, 50, b"new")
        again.fsync(handle)
        expected = b"0123456789" + (b"L" * 90 if size == 100 else bytes(43))
        expected = expected[:50] + b"new" + expected[53:]
        assert again.read(handle, 0, 1000) == expected
    assert 10 in sizes, "a state with bytes behind the end was met"


def test_copy_file_range_and_fallocate(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    _, source = server.create(SUPERUSER, ROOT_INO, b"a", 0o644, os.O_RDWR)
    _, target = server.create(SUPERUSER, ROOT_INO, b"b", 0o644, os.O_RDWR)
    server.write(source, 0, b"0123456789" * 1000)
    assert server.copy_file_range(source, 5, target, 100, 20) == 20
    assert server.read(target, 99, 22) == b"\0" + (b"0123456789" * 4)[5:25]
    refused(errno.EINVAL, lambda: server.copy_file_range(source, 0, source, 5, 10))
    server.fallocate(source, 3, 10, 4086)
    assert server.read(source, 8, 4) == b"89\0\0"
    assert server.read(source, 4096, 4) == (b"0123456789" * 1000)[4096:4100]
    server.fallocate(target, 0, 0, 5000)
    assert server.read(target, 4999, 10) == b"\0"
    refused(errno.EOPNOTSUPP, lambda: server.fallocate(target, 8, 0, 1))


# -- who may -----------------------------------------------------------------------------------------------------------


def test_writing_by_another_takes_set_id_bits_and_a_set_group_directory_hands_down_its_group(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    directory = server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o777).ino
    server.setattr(SUPERUSER, directory, SetAttr(mode=0o2777, gid=50))
    attr, handle = server.create(USER, directory, b"f", 0o4777, os.O_RDWR)
    assert (attr.gid, attr.mode & 0o7777) == (50, 0o4777)
    server.write(handle, 0, b"x")
    assert server.getattr(attr.ino).mode & 0o7777 == 0o777
    below = server.mkdir(USER, directory, b"below", 0o755)
    assert below.gid == 50
    assert below.mode & 0o2000


def test_names_at_their_limit(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    for length in (254, 255):
        assert server.mknod(SUPERUSER, ROOT_INO, b"n" * length, 0o644).size == 0
    refused(errno.ENAMETOOLONG, lambda: server.mknod(SUPERUSER, ROOT_INO, b"n" * 256, 0o644))
    every = bytes(value for value in range(1, 256) if value != ord("/"))
    server.mknod(SUPERUSER, ROOT_INO, every[:200], 0o644)
    server.symlink(SUPERUSER, ROOT_INO, b"s", b"t" * 4095)
    refused(errno.ENAMETOOLONG, lambda: server.symlink(SUPERUSER, ROOT_INO, b"s2", b"t" * 4096))
    server.close()
    server = MetadataServer.mount(store)
    assert every[:200] in names_in(server)
    assert server.readlink(server.lookup(SUPERUSER, ROOT_INO, b"s").ino) == b"t" * 4095


def test_attributes_at_their_limits(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    ino = make_file(server, ROOT_INO, b"f")
    server.setxattr(SUPERUSER, ino, b"user." + b"n" * 250, b"v" * 65536)
    refused(errno.ERANGE, lambda: server.setxattr(SUPERUSER, ino, b"user." + b"n" * 251, b""))
    refused(errno.E2BIG, lambda: server.setxattr(SUPERUSER, ino, b"user.a", b"v" * 65537))
    refused(errno.ENOSPC, lambda: server.setxattr(SUPERUSER, ino, b"user.a", b"v" * 65536))
    refused(errno.EOPNOTSUPP, lambda: server.setxattr(SUPERUSER, ino, b"system.other", b"x"))
    directory = server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755).ino
    server.setxattr(SUPERUSER, directory, b"user.a", b"v" * 40_000)
    refused(errno.ENOSPC, lambda: server.setxattr(SUPERUSER, directory, b"user.b", b"v" * 10_000))
    server.close()
    server = MetadataServer.mount(store)
    assert server.getxattr(SUPERUSER, directory, b"user.a") == b"v" * 40_000
    assert server.listxattr(server.lookup(SUPERUSER, ROOT_INO, b"f").ino) == [b"user." + b"n" * 250]


# -- statistics and quotas ---------------------------------------------------------------------------------------------


def statistics(server: MetadataServer, ino: int) -> tuple[int, ...]:
    kinds = (b"rbytes", b"rfiles", b"rsubdirs", b"rentries")
    return tuple(int(server.getxattr(SUPERUSER, ino, b"mdstore." + kind)) for kind in kinds)


def test_recursive_statistics_are_right_after_every_change_and_after_a_crash(store: MemStore) -> None:
    server = MetadataServer.mount(store, count_references=False)
    first = server.mkdir(SUPERUSER, ROOT_INO, b"first", 0o755).ino
    second = server.mkdir(SUPERUSER, first, b"second", 0o755).ino
    third = server.mkdir(SUPERUSER, second, b"third", 0o755).ino
    ino = make_file(server, third, b"f", b"x" * 1000)
    server.syncfs()
    assert statistics(server, ROOT_INO) == (1000, 1, 3, 4)
    server.link(SUPERUSER, ino, first, b"again")
    assert statistics(server, first) == (1000, 2, 2, 4)
    server.rename(SUPERUSER, second, b"third", ROOT_INO, b"third")
    assert statistics(server, first) == (0, 1, 1, 2)
    assert statistics(server, ROOT_INO) == (1000, 2, 3, 5)
    server.unlink(SUPERUSER, third, b"f")
    assert statistics(server, first) == (1000, 1, 1, 2), "the bytes go where a name is left"
    server.setattr(SUPERUSER, ino, SetAttr(size=400))
    server.syncfs()
    server = MetadataServer.mount(store.crash())
    assert statistics(server, first) == (400, 1, 1, 2)
    assert statistics(server, ROOT_INO) == (400, 1, 3, 4)


def test_a_quota_refuses_what_would_pass_it_and_survives(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    top = server.mkdir(SUPERUSER, ROOT_INO, b"top", 0o777).ino
    deep = server.mkdir(SUPERUSER, top, b"deep", 0o777).ino
    server.setxattr(SUPERUSER, top, b"mdstore.quota.max_bytes", b"1000")
    server.setxattr(SUPERUSER, top, b"mdstore.quota.max_files", b"3")
    refused(errno.EPERM, lambda: server.setxattr(USER, top, b"mdstore.quota.max_files", b"9"))
    _, handle = server.create(USER, deep, b"a", 0o644, os.O_RDWR)
    server.write(handle, 0, b"x" * 900)
    refused(errno.EDQUOT, lambda: server.write(handle, 900, b"x" * 101))
    server.write(handle, 900, b"x" * 100)
    make_file(server, deep, b"b")
    refused(errno.EDQUOT, lambda: make_file(server, deep, b"c"))
    refused(errno.EDQUOT, lambda: server.mkdir(USER, top, b"c", 0o755))
    outside = make_file(server, ROOT_INO, b"outside", b"y" * 10)
    refused(errno.EDQUOT, lambda: server.rename(SUPERUSER, ROOT_INO, b"outside", top, b"inside"))
    server.release(handle)
    server.close()
    server = MetadataServer.mount(store)
    refused(errno.EDQUOT, lambda: make_file(server, deep, b"c"))
    server.removexattr(SUPERUSER, top, b"mdstore.quota.max_files")
    make_file(server, deep, b"c")
    assert outside


# -- damage ------------------------------------------------------------------------------------------------------------


def test_a_damaged_directory_answers_eio_below_it_and_leaves_a_row_and_the_rest_works(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    bad = server.mkdir(SUPERUSER, ROOT_INO, b"bad", 0o755).ino
    good = server.mkdir(SUPERUSER, ROOT_INO, b"good", 0o755).ino
    make_file(server, bad, b"f")
    make_file(server, good, b"f")
    server.close()
    store.apply(Transaction().map_set_header(META, directory_object(bad), b"rubbish"))
    store.apply(Transaction().map_set(META, directory_object(good), {b"f2": b"\1rubbish"}))
    server = MetadataServer.mount(store)
    for call in (
        lambda: server.lookup(SUPERUSER, bad, b"f"),
        lambda: server.opendir(SUPERUSER, bad),
        lambda: server.lookup(SUPERUSER, good, b"f2"),
    ):
        refused(errno.EIO, call)
    assert server.lookup(SUPERUSER, good, b"f").size == 0
    make_file(server, good, b"new")
    server.close()
    server = MetadataServer.mount(store)
    assert [(row.directory, row.name) for row in server.damage()] == [(bad, b""), (good, b"f2")]
    assert "rubbish" in server.damage()[0].message or "directory header" in server.damage()[0].message
    assert server.forget_damage(bad, b"")
    assert not server.forget_damage(bad, b"")


def test_a_damaged_log_is_named_and_nothing_is_changed(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    for number in range(50):
        make_file(server, ROOT_INO, b"f%d" % number)
        server.syncfs()
    left = store.crash()
    name = left.list_objects(b"log", b"events.0", b"events.1")[0]
    left.apply(Transaction().write(b"log", name, 300, b"\xee" * 40))
    with pytest.raises(CorruptionError, match="log"):
        MetadataServer.mount(left)


def test_no_space_is_said_before_anything_changes_and_removing_works(store: MemStore) -> None:
    server = MetadataServer.mount(store, count_references=False)
    make_file(server, ROOT_INO, b"f", b"x" * 5000)
    server.syncfs()
    free = {"size_bytes": 1 << 40, "free_bytes": 1 << 20}
    store.statistics = lambda: free  # type: ignore[method-assign,assignment,return-value]
    server._space.look()
    refused(errno.ENOSPC, lambda: server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755))
    handle = server.open(SUPERUSER, server.lookup(SUPERUSER, ROOT_INO, b"f").ino, os.O_RDWR)
    refused(errno.ENOSPC, lambda: server.write(handle, 0, b"y" * 100))
    server.release(handle)
    server.unlink(SUPERUSER, ROOT_INO, b"f")
    free["free_bytes"] = 1 << 30
    server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755)
    assert names_in(server) == [b"d"]


def test_numbers_are_never_given_out_twice(store: MemStore) -> None:
    seen = set()
    for _ in range(5):
        server = MetadataServer.mount(store, count_references=False)
        ino = make_file(server, ROOT_INO, b"f")
        assert ino not in seen
        seen.add(ino)
        server.unlink(SUPERUSER, ROOT_INO, b"f")
        server.syncfs()
        store = store.crash()


def test_posix_errors_are_posix_errors(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    with pytest.raises(PosixError):
        server.lookup(SUPERUSER, ROOT_INO, b"none")
    with pytest.raises(ReadOnly):
        MetadataServer.mount(store, read_only=True).mkdir(SUPERUSER, ROOT_INO, b"d", 0o755)
    assert TABLE_OBJECTS[Tab.STRAYS] in store.list_objects(META)
