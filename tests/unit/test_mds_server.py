"""The metadata server's own promises: how it is opened, what survives, how much it keeps in memory."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from mdstore.engines.mem import MemStore
from mdstore.errors import AlreadyExists, DeviceFailed, NotAnImage, PosixError, ReadOnly
from mdstore.mds.core import Limits
from mdstore.mds.layout import META, TABLE_OBJECTS, Tab
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER, SetAttr
from tests.model.mds_check import problems
from tests.unit.mds_calls import content_of, formatted, make_file, names_in, refused

SMALL = Limits(cache_bytes=64 * 700, dirty_entries=64, dirty_entries_low=16)


@pytest.fixture
def store() -> MemStore:
    return formatted()


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
