"""What the superuser asks of a server through the root's attributes: scrub, damage, sessions, counters."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from typing import Any

import pytest

from mdstore.engines.mem import MemStore
from mdstore.errors import DeviceFailed, MdstoreError, errno_of
from mdstore.mds import scrub as scrub_module
from mdstore.mds.layout import INO_KEY, META, TABLE_OBJECTS, Tab, directory_object
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER, Credentials
from mdstore.store.transaction import Transaction

USER = Credentials(1000, 1000)


@pytest.fixture
def store() -> MemStore:
    store = MemStore(delayed=True)
    MetadataServer.format(store, now_ns=1)
    return store


def refused(number: int, call: Callable[[], object]) -> None:
    with pytest.raises(MdstoreError) as caught:
        call()
    assert errno_of(caught.value) == number


def ask(server: MetadataServer, name: str) -> Any:
    return json.loads(server.getxattr(SUPERUSER, ROOT_INO, f"mdstore.{name}".encode()))


def tell(server: MetadataServer, name: str, value: bytes) -> None:
    server.setxattr(SUPERUSER, ROOT_INO, f"mdstore.{name}".encode(), value)


def make_file(server: MetadataServer, parent: int, name: bytes) -> int:
    attr, handle = server.create(SUPERUSER, parent, name, 0o644, os.O_RDWR)
    server.write(handle, 0, b"bytes")
    server.release(handle)
    return attr.ino


def with_wrong_counts(store: MemStore, files: int) -> int:
    """A directory that says it has 99 entries; its number."""
    server = MetadataServer.mount(store)
    directory = server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755).ino
    for number in range(files):
        make_file(server, directory, b"f%03d" % number)
    server.close()
    raw = bytearray(store.map_header(META, directory_object(directory)))
    at = raw.index((files).to_bytes(8, "little"), 88)  # the size, in the inode record behind header and name
    raw[at] = 99
    store.apply(Transaction().map_set_header(META, directory_object(directory), bytes(raw)))
    return directory


def test_a_scrub_is_started_worked_on_in_pieces_and_remembered(store: MemStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub_module, "PAGE", 3)
    directory = with_wrong_counts(store, files=10)
    server = MetadataServer.mount(store, clock=lambda: 77)
    assert ask(server, "scrub") == {"state": "none", "repair": False, "last": None}
    assert not server.background_work()
    tell(server, "scrub", b"repair")
    refused(errno.EAGAIN, lambda: tell(server, "scrub", b"start"))
    pieces = 0
    while server.background_work():
        pieces += 1
        assert ask(server, "scrub")["state"] == "running"
    assert pieces > 4, "ten entries, three at a time"
    found = ask(server, "scrub")
    assert (found["state"], found["problems"], found["repaired"]) == ("finished", 1, 1)
    assert (found["directories"], found["entries"], found["by_check"]) == (2, 11, {"S2": 1})
    assert found["first_problems"][0]["ino"] == directory
    server.close()
    server = MetadataServer.mount(store)
    assert server.getattr(directory).size == 10
    last = {"finished_at": 77, "directories": 2, "entries": 11, "problems": 1, "repaired": 1}
    assert ask(server, "scrub") == {"state": "none", "repair": False, "last": last}
    tell(server, "scrub", b"start")
    while server.background_work():
        pass
    assert ask(server, "scrub")["problems"] == 0


def test_a_directory_that_changes_while_it_is_scrubbed_is_judged_right(store: MemStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub_module, "PAGE", 3)
    server = MetadataServer.mount(store)
    directory = server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755).ino
    for number in range(20):
        make_file(server, directory, b"f%03d" % number)
    tell(server, "scrub", b"start")
    step = 0
    while server.background_work():
        step += 1
        make_file(server, directory, b"new%03d" % step)
        if step % 2:
            server.unlink(SUPERUSER, directory, b"new%03d" % step)
    found = ask(server, "scrub")
    assert (found["problems"], found["directories"]) == (0, 2), found
    assert step > 15, "it was looked at more than once"


def test_a_directory_removed_while_it_is_scrubbed_is_no_problem_and_not_kept(
    store: MemStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrub_module, "PAGE", 1)
    server = MetadataServer.mount(store, count_references=False)
    directory = server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755).ino
    names = [b"a", b"b", b"c"]
    for name in names:
        server.mkdir(SUPERUSER, directory, name, 0o755)
    tell(server, "scrub", b"start")
    while ask(server, "scrub")["directories"] < 1:
        server.background_work()
    server.background_work()  # one entry of `d`
    for name in names:
        server.rmdir(SUPERUSER, directory, name)
    server.rmdir(SUPERUSER, ROOT_INO, b"d")
    while server.background_work():
        pass
    assert ask(server, "scrub")["problems"] == 0
    refused(errno.ESTALE, lambda: server.getattr(directory))


def test_a_stopped_scrub_holds_nothing(store: MemStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub_module, "PAGE", 1)
    server = MetadataServer.mount(store)
    for name in (b"a", b"b"):
        server.mkdir(SUPERUSER, ROOT_INO, name, 0o755)
    tell(server, "scrub", b"start")
    server.background_work()
    tell(server, "scrub", b"stop")
    assert ask(server, "scrub")["state"] == "stopped"
    assert not server.background_work()
    assert server._cache.directory(ROOT_INO).handles == 0
    tell(server, "scrub", b"start")


def test_a_scrub_ends_when_the_medium_fails(store: MemStore) -> None:
    with_wrong_counts(store, files=3)
    server = MetadataServer.mount(store)
    tell(server, "scrub", b"repair")
    store.fail(DeviceFailed("write", "medium", "gone"))
    while server.scrubbing.step():
        pass
    status = server.scrubbing.status()
    assert status["state"] == "failed"
    assert "gone" in status["error"]


@pytest.mark.parametrize("how", ["read-only", "fallen back"])
def test_a_scrub_that_changes_nothing_can_be_started_and_stopped_where_nothing_can_be_changed(store: MemStore, how: str) -> None:
    # Whatever was told counted as a change: `mdstore scrub --stop IMAGE` failed, and so did a scrub after a medium's failure.
    with_wrong_counts(store, files=3)
    server = MetadataServer.mount(store, read_only=how == "read-only")
    if how == "fallen back":
        server.fall_back(lambda: store, DeviceFailed("write", "medium", "gone"))
    tell(server, "scrub", b"stop")
    assert ask(server, "scrub")["state"] == "none"
    tell(server, "scrub", b"start")
    while server.background_work():
        pass
    assert (ask(server, "scrub")["state"], ask(server, "scrub")["problems"]) == ("finished", 1)
    refused(errno.EROFS, lambda: tell(server, "scrub", b"repair"))
    refused(errno.EROFS, lambda: tell(server, "damage.forget", b"1/f"))
    refused(errno.EROFS, lambda: server.setxattr(SUPERUSER, ROOT_INO, b"mdstore.quota.max_files", b"5"))


def test_a_link_that_leads_nowhere_becomes_damage_that_can_be_forgotten(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    ino = make_file(server, ROOT_INO, b"f")
    server.link(SUPERUSER, ino, ROOT_INO, b"g")
    server.close()
    store.apply(Transaction().map_remove(META, TABLE_OBJECTS[Tab.INODES], [INO_KEY.pack(ino)]))
    server = MetadataServer.mount(store)
    tell(server, "scrub", b"repair")
    while server.background_work():
        pass
    found = ask(server, "scrub")
    assert found["problems"] > found["repaired"]
    server = MetadataServer.mount((server.syncfs(), store.crash())[1])
    rows = ask(server, "damage")["damage"]
    assert [(row["directory"], row["name"]) for row in rows] == [(ROOT_INO, "f"), (ROOT_INO, "g")]
    tell(server, "damage.forget", b"1/f")
    refused(errno.ENOENT, lambda: tell(server, "damage.forget", b"1/f"))
    refused(errno.EINVAL, lambda: tell(server, "damage.forget", b"f"))
    assert [row["name"] for row in ask(server, "damage")["damage"]] == ["g"]


def test_only_the_superuser_may_ask_and_only_of_the_root(store: MemStore) -> None:
    server = MetadataServer.mount(store, client=b"mine")
    refused(errno.EPERM, lambda: server.getxattr(USER, ROOT_INO, b"mdstore.status"))
    refused(errno.EPERM, lambda: server.setxattr(USER, ROOT_INO, b"mdstore.scrub", b"start"))
    refused(errno.EPERM, lambda: tell(server, "status", b"x"))
    refused(errno.ENODATA, lambda: ask(server, "damage.forget"))
    refused(errno.EINVAL, lambda: tell(server, "scrub", b"nonsense"))
    below = server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755).ino
    refused(errno.ENODATA, lambda: server.getxattr(SUPERUSER, below, b"mdstore.status"))
    assert ask(server, "status")["purge_backlog"] == 0
    assert [row["name"] for row in ask(server, "sessions")["sessions"]] == ["mine"]
    assert server.listxattr(ROOT_INO) == []


def test_more_damage_than_an_attribute_holds_is_counted(store: MemStore) -> None:
    server = MetadataServer.mount(store)
    core = server._core
    for number in range(400):
        core.put_row(core.damage, INO_KEY.pack(number) + b"name", b"x" * 400)
    found = ask(server, "damage")
    assert found["more"] > 0
    assert len(found["damage"]) + found["more"] == 400
