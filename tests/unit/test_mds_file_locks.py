"""Locks of open files: who waits is granted, whoever lets go and whenever; what is closed leaves nothing; sessions keep apart."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

import pytest

from mdstore.client.fuse_locks import LockOperations
from mdstore.client.fuse_protocol import INTERRUPT_IN, LK_FLOCK, LK_IN
from mdstore.device.memory import MemoryDevice
from mdstore.engines.mem import MemStore
from mdstore.errors import DeviceFailed, InvalidRequest, PosixError
from mdstore.mds import scrub as scrub_module
from mdstore.mds.locks import RANGE_END, FileLocks, Lock
from mdstore.mds.server import MetadataServer
from mdstore.mds.snapdir import SnapshotVfs
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.store.store import Store

MINUTE = 60 * 10**9
WHOLE = Lock(0, 0, RANGE_END, exclusive=True)
SHARED = WHOLE._replace(exclusive=False)


@pytest.fixture
def store() -> MemStore:
    store = MemStore(delayed=True)
    MetadataServer.format(store, now_ns=1)
    return store


@pytest.fixture
def server(store: MemStore) -> Iterator[MetadataServer]:
    server = MetadataServer.mount(store, client=b"mount")
    yield server
    server._locks.assert_state()


def made(server: MetadataServer, name: bytes = b"f") -> tuple[int, int]:
    """A new file: its number and a handle."""
    attr, handle = server.create(SUPERUSER, ROOT_INO, name, 0o644, os.O_RDWR)
    return attr.ino, handle


def wanted(owner: int, start: int = 0, end: int = 9) -> Lock:
    return Lock(owner, start, end, exclusive=True)


class Racing:
    """A name space in which another thread lets go of a lock just before or just after `wait_for_lock`."""

    def __init__(self, server: MetadataServer, when: str, let_go: Callable[[], None]) -> None:
        self._server, self._when, self._let_go = server, when, let_go

    def __getattr__(self, name: str) -> Any:
        return getattr(self._server, name)

    def wait_for_lock(self, *args: Any, **named: Any) -> Any:
        if self._when == "before":
            self._let_go()
        found = self._server.wait_for_lock(*args, **named)
        if self._when == "after":
            self._let_go()
        return found


@pytest.mark.parametrize("flock", [False, True], ids=["posix", "flock"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lock_given_back_while_another_begins_to_wait_is_granted_once(server: MetadataServer, when: str, flock: bool) -> None:
    # Let go between the refusal and the wait, the waiter was queued for a free lock, and slept until somebody unlocked that file.
    ino, held = made(server)
    mine = server.open(SUPERUSER, ino, os.O_RDWR)
    assert server.take_lock(held, wanted(1), flock=flock)
    answers: list[tuple[int, object]] = []
    racing = Racing(server, when, lambda: server.drop_lock(held, 1, flock=flock))
    front = LockOperations(racing, lambda unique, reply: answers.append((unique, reply)))
    body = memoryview(LK_IN.pack(mine, 2, 0, 9, fcntl.F_WRLCK, 77, LK_FLOCK if flock else 0))
    reply = front.setlkw(5, 0, SUPERUSER, body)
    assert (reply, answers) == ((b"", []) if when == "before" else (None, [(5, b"")]))
    assert not server.take_lock(held, wanted(1), flock=flock), "it is held"
    assert front.interrupt(6, 0, SUPERUSER, memoryview(INTERRUPT_IN.pack(5))) is None
    assert len(answers) == (when == "after"), "an interrupt that comes too late changes nothing"


def test_two_fronts_that_number_alike_do_not_take_each_others_waits(server: MetadataServer) -> None:
    _, handle = made(server)
    server.take_lock(handle, wanted(1))
    answers: list[str] = []
    one = LockOperations(server, lambda unique, reply: answers.append("one"))
    two = LockOperations(server, lambda unique, reply: answers.append("two"))
    for owner, front in ((2, one), (3, two)):
        assert front.setlkw(5, 0, SUPERUSER, memoryview(LK_IN.pack(handle, owner, 0, 9, fcntl.F_WRLCK, 7, 0))) is None
    two.interrupt(6, 0, SUPERUSER, memoryview(INTERRUPT_IN.pack(5)))
    assert answers == ["two"]
    server.drop_lock(handle, 1)
    assert answers == ["two", "one"]


def test_a_wait_that_finds_the_lock_free_holds_it_and_lets_in_who_may_share() -> None:
    locks, granted = FileLocks(), list[str]()
    assert locks.wait(1, WHOLE._replace(owner=1), "a", lambda: granted.append("a"), flock=False)
    assert not locks.wait(1, SHARED._replace(owner=2), "b", lambda: granted.append("b"), flock=False)
    assert locks.wait(1, SHARED._replace(owner=1), "a", lambda: granted.append("a"), flock=False)
    assert granted == ["b"], "the exclusive lock became a shared one"
    locks.assert_state()


def test_a_token_waits_once_at_a_time() -> None:
    locks = FileLocks()
    locks.acquire(1, WHOLE._replace(owner=1), flock=False)
    locks.wait(1, WHOLE._replace(owner=2), "a", lambda: None, flock=False)
    with pytest.raises(InvalidRequest, match="waits for a lock already"):
        locks.wait(1, WHOLE._replace(owner=3), "a", lambda: None, flock=False)
    locks.assert_state()


def test_two_who_share_a_flock_and_both_want_it_alone_get_it_one_after_the_other() -> None:
    # Each kept its shared lock while it waited for the other's to go: both waited for ever.
    locks, granted = FileLocks(), list[str]()
    for owner in (1, 2):
        assert locks.acquire(1, SHARED._replace(owner=owner), flock=True)
    assert not locks.wait(1, WHOLE._replace(owner=1), "one", lambda: granted.append("one"), flock=True)
    assert locks.wait(1, WHOLE._replace(owner=2), "two", lambda: granted.append("two"), flock=True)
    locks.release(1, 2, flock=True)
    assert granted == ["one"]
    locks.assert_state()


# -- what is closed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_flock_ends_with_its_handle(server: MetadataServer, what: str) -> None:
    # `releasedir` did not give it back: the directory stayed locked until the session ended.
    if what == "file":
        ino, first = made(server)
        second, close = server.open(SUPERUSER, ino, os.O_RDWR), server.release
    else:
        first, second = (server.opendir(SUPERUSER, ROOT_INO) for _ in range(2))
        close = server.releasedir
    assert server.take_lock(first, WHOLE, flock=True)
    assert not server.take_lock(second, WHOLE, flock=True)
    close(first)
    assert server.take_lock(second, WHOLE, flock=True)


@pytest.mark.parametrize("what", ["file", "directory"])
def test_a_closed_handle_that_waited_is_granted_nothing(server: MetadataServer, what: str) -> None:
    if what == "file":
        ino, first = made(server)
        others, close = [server.open(SUPERUSER, ino, os.O_RDWR) for _ in range(2)], server.release
    else:
        first, *others = (server.opendir(SUPERUSER, ROOT_INO) for _ in range(3))
        close = server.releasedir
    granted: list[int] = []
    assert server.take_lock(first, WHOLE, flock=True)
    for handle in others:
        server.wait_for_lock(handle, WHOLE, handle, partial(granted.append, handle), flock=True)
    close(others[0])
    close(first)
    assert granted == [others[1]]
    assert not server.cancel_lock(others[0])


def test_a_flock_is_on_the_whole_file_whatever_range_is_named(server: MetadataServer) -> None:
    ino, first = made(server)
    second = server.open(SUPERUSER, ino, os.O_RDWR)
    assert server.take_lock(first, Lock(7, 0, 9, exclusive=True), flock=True)
    assert not server.take_lock(second, Lock(7, 10, 19, exclusive=True), flock=True)
    server.drop_lock(first, 7, 3, 4, flock=True)
    assert server.take_lock(second, Lock(7, 10, 19, exclusive=True), flock=True)


def test_posix_locks_go_with_the_sessions_last_handle_of_the_file(server: MetadataServer) -> None:
    # Nobody could give them back any more: a handle is wanted for it.
    ino, mine = made(server)
    client = server.clients.open(b"c", timeout_ns=MINUTE)
    handles = [server.clients.call(client, "open", SUPERUSER, ino, os.O_RDWR) for _ in range(2)]
    assert server.clients.call(client, "take_lock", handles[0], wanted(1))
    server.clients.call(client, "release", handles[0])
    assert not server.take_lock(mine, wanted(1)), "the session has it open still"
    server.clients.call(client, "release", handles[1])
    assert server.take_lock(mine, wanted(1))
    server.release(mine)
    again = server.open(SUPERUSER, ino, os.O_RDWR)
    assert server.take_lock(again, wanted(2)), "the mount's own went with its last handle, too"


@pytest.mark.parametrize("who", ["another session", "a scrub"])
def test_posix_locks_and_waits_go_though_somebody_else_has_the_inode_open(
    server: MetadataServer, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    # The handles of everybody were counted: the mount's locks and waits outlived its last handle, and nobody could end them.
    client = server.clients.open(b"c", timeout_ns=MINUTE)
    for name in (b"a", b"b", b"c"):
        server.release(made(server, name)[1])
    theirs = server.clients.call(client, "opendir", SUPERUSER, ROOT_INO)
    scrub = server.scrub()
    if who == "a scrub":
        monkeypatch.setattr(scrub_module, "PAGE", 2)
        scrub.step()
    mine, granted = server.opendir(SUPERUSER, ROOT_INO), list[str]()
    assert server.take_lock(mine, wanted(1))
    server.clients.call(client, "take_lock", theirs, wanted(2, 10, 19))
    assert not server.wait_for_lock(mine, wanted(3, 10, 19), "mine", lambda: granted.append("mine"))
    if who == "another session":
        server.releasedir(mine)
        assert server.clients.call(client, "take_lock", theirs, wanted(2))
        server.clients.call(client, "releasedir", theirs)
    else:
        server.clients.call(client, "releasedir", theirs)
        assert granted.pop() == "mine"
        server.releasedir(mine)
        assert server._core.nodes[ROOT_INO].handles == 1, "the scrub's"
    assert granted == []
    assert server._locks.table(flock=False).is_empty()
    scrub.close()


def test_who_waits_in_a_session_that_ends_is_granted_nothing_on_the_way(server: MetadataServer) -> None:
    ino, mine = made(server)
    client = server.clients.open(b"c", timeout_ns=MINUTE)
    theirs = server.clients.call(client, "open", SUPERUSER, ino, os.O_RDWR)
    granted: list[str] = []
    assert server.clients.call(client, "take_lock", theirs, wanted(1))
    for owner in (2, 3):
        server.clients.call(client, "wait_for_lock", theirs, wanted(owner), owner, lambda: granted.append("one that ends"))
    server.wait_for_lock(mine, wanted(1), "mine", lambda: granted.append("the one that stays"))
    server.clients.end(client)
    assert granted == ["the one that stays"]


def test_who_waits_for_a_file_that_is_gone_after_falling_back_is_told(server: MetadataServer, store: MemStore) -> None:
    server.syncfs()
    _, handle = made(server)
    granted: list[int] = []
    assert server.take_lock(handle, wanted(1))
    assert server.take_lock(handle, WHOLE, flock=True)
    for owner in (2, 3):
        server.wait_for_lock(handle, wanted(owner), owner, partial(granted.append, owner))
    left = store.crash()
    server.fall_back(lambda: left, DeviceFailed("write", "the medium", "told to fail"))
    assert granted == [2, 3], "their holder cannot give anything back: its handle is none any more"
    assert server._locks.table(flock=True).is_empty()


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_no_session_cancels_anothers_wait(server: MetadataServer) -> None:
    # Tokens were 0, 1, 2 ... of all sessions together: anybody could take anybody out of the queue.
    ino, mine = made(server)
    one, two = (server.clients.open(name, timeout_ns=MINUTE) for name in (b"one", b"two"))
    handles = {client: server.clients.call(client, "open", SUPERUSER, ino, os.O_RDWR) for client in (one, two)}
    granted: list[int] = []
    server.take_lock(mine, wanted(1))

    def wait(client: int, token: Hashable) -> bool:
        held: bool = server.clients.call(
            client, "wait_for_lock", handles[client], wanted(1), token, lambda: granted.append(client)
        )  # fmt: skip
        return held

    assert not wait(one, 0)
    assert not server.clients.call(two, "cancel_lock", 0)
    assert not server.cancel_lock(0)
    assert not wait(two, 0), "each session names its own"
    assert server.clients.call(two, "cancel_lock", 0)
    server.drop_lock(mine, 1)
    assert granted == [one]


@pytest.mark.parametrize(
    "bad",
    [Lock(1, 9, 0, True), Lock(1, -5, 9, True), Lock(1, 0, 1 << 63, True), Lock(-1, 0, 9, True), Lock(1 << 64, 0, 9, True)],
)
def test_a_range_or_an_owner_that_cannot_be_is_refused(server: MetadataServer, bad: Lock) -> None:
    # An owner of 65 bits was another session's; a range whose end is before its start was held, and never given back.
    ino, mine = made(server)
    client = server.clients.open(b"c", timeout_ns=MINUTE)
    theirs = server.clients.call(client, "open", SUPERUSER, ino, os.O_RDWR)
    calls: list[tuple[object, ...]] = [
        ("take_lock", bad), ("test_lock", bad), ("wait_for_lock", bad, "token", lambda: None),
        ("drop_lock", bad.owner, bad.start, bad.end),
    ]  # fmt: skip
    for verb, *args in calls:
        with pytest.raises(InvalidRequest):
            server.clients.call(client, str(verb), theirs, *args)
    assert server._locks.table(flock=False).is_empty()
    limit = Lock((1 << 64) - 1, 0, RANGE_END, True)
    assert server.clients.call(client, "take_lock", theirs, limit)
    assert server.test_lock(mine, wanted(1)) == limit


def test_less_than_no_reference_cannot_be_given_back(server: MetadataServer) -> None:
    # Given back -1000 times, a number counted as handed out 1002 times.
    ino, _ = made(server)
    client = server.clients.open(b"c", timeout_ns=MINUTE)
    server.clients.call(client, "lookup", SUPERUSER, ROOT_INO, b"f")
    for call in (lambda: server.clients.call(client, "forget", ino, -1000), lambda: server.forget(ino, -1000)):
        with pytest.raises(InvalidRequest):
            call()
    assert server._core.references[ino] == 2
    server.clients.call(client, "forget", ino, 1000)
    assert server._core.references[ino] == 1, "the mount's"
    server.clients.call(client, "forget", ino, 1)
    assert server._core.references[ino] == 1


@pytest.mark.parametrize("timeout_ns", [-1, 1 << 63, 1 << 80])
def test_a_session_with_a_timeout_that_cannot_be_kept_is_refused(server: MetadataServer, timeout_ns: int) -> None:
    with pytest.raises(InvalidRequest):
        server.clients.open(b"c", timeout_ns=timeout_ns)
    assert len(server.clients.list()) == 1
    server.clients.open(b"c", timeout_ns=(1 << 63) - 1)


@pytest.mark.parametrize("limit", [-1, 0, 1 << 63, 1 << 80])
def test_a_page_of_no_entries_or_of_more_than_there_can_be_is_refused(server: MetadataServer, limit: int) -> None:
    vfs = SnapshotVfs(server)
    for handle in (vfs.opendir(SUPERUSER, ROOT_INO), vfs.opendir(SUPERUSER, vfs.lookup(SUPERUSER, ROOT_INO, b".snap").ino)):
        if limit > 0 and handle > 1 << 62:
            continue  # whatever is asked for, there are no more snapshots than there are
        with pytest.raises(PosixError) as caught:
            vfs.readdir(handle, None, limit)
        assert caught.value.errno == errno.EINVAL


# -- snapshots ---------------------------------------------------------------------------------------------------------


def test_a_wait_in_a_snapshot_can_be_cancelled_and_is_granted() -> None:
    store = Store.create(MemoryDevice(64 << 20))
    MetadataServer.format(store, now_ns=1)
    vfs = SnapshotVfs(MetadataServer.mount(store))
    vfs.release(vfs.create(SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)[1])
    frozen = vfs.mkdir(SUPERUSER, vfs.lookup(SUPERUSER, ROOT_INO, b".snap").ino, b"s", 0o755).ino
    ino = vfs.lookup(SUPERUSER, frozen, b"f").ino
    handle = vfs.open(SUPERUSER, ino, os.O_RDONLY)
    granted: list[int] = []
    assert vfs.take_lock(handle, SHARED._replace(owner=1))
    for owner in (2, 3):
        assert not vfs.wait_for_lock(handle, wanted(owner), owner, partial(granted.append, owner))
    assert vfs.cancel_lock(2)
    assert not vfs.cancel_lock(2)
    vfs.drop_lock(handle, 1)
    assert granted == [3]
    vfs.release(handle)
    with pytest.raises(PosixError) as caught:
        vfs.take_lock(handle, wanted(1))
    assert caught.value.errno == errno.EBADF
    vfs.close()
    store.close()
