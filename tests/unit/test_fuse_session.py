"""A session without a kernel: requests written by hand into a socket that stands for /dev/fuse."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from mdstore.client import fuse_protocol as protocol
from mdstore.client.fuse_credentials import GROUPS_LIFETIME_S, CredentialCache
from mdstore.client.fuse_directories import FIRST_COOKIE, PackedCookies, SharedCookies
from mdstore.client.fuse_init import SessionOptions
from mdstore.client.fuse_protocol import Opcode
from mdstore.client.fuse_session import FuseSession
from mdstore.errors import InvalidRequest, PosixError
from mdstore.mds.vfs import SUPERUSER, Credentials, DirEntry
from tests.model.memory_vfs import MemoryVfs


class Kernel:
    """The other end: sends requests, receives replies. A SEQPACKET socket keeps their borders, as /dev/fuse does."""

    def __init__(self, vfs: MemoryVfs, options: SessionOptions) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.session = FuseSession(os.dup(theirs.fileno()), vfs, options)
        theirs.close()
        self.unique = 0
        self.thread = threading.Thread(target=self.session.run)

    def start(self) -> tuple[int, bytes]:
        self.send(Opcode.INIT, protocol.INIT_IN.pack(7, 40, 131072, 0xFFFFFFFF) + protocol.INIT_IN_EXT.pack(0))
        self.session.handshake()
        self.thread.start()
        return self.reply()[1:]

    def send(self, opcode: int, body: bytes = b"", node: int = 1, uid: int = 0, pid: int = 0) -> int:
        self.unique += 1
        length = protocol.IN_HEADER.size + len(body)
        self.socket.send(protocol.IN_HEADER.pack(length, opcode, self.unique, node, uid, uid, pid, 0) + body)
        return self.unique

    def reply(self) -> tuple[int, int, bytes]:
        data = self.socket.recv(1 << 21)
        length, error, unique = protocol.OUT_HEADER.unpack_from(data)
        assert length == len(data)
        return unique, -error, data[protocol.OUT_HEADER.size :]

    def ask(self, opcode: int, body: bytes = b"", node: int = 1, uid: int = 0, pid: int = 0) -> tuple[int, bytes]:
        unique = self.send(opcode, body, node, uid, pid)
        answered, error, payload = self.reply()
        assert answered == unique
        return error, payload

    def end(self) -> None:
        self.session.stop()
        self.thread.join()
        self.socket.close()
        assert not self.thread.is_alive()


@pytest.fixture
def vfs() -> MemoryVfs:
    return MemoryVfs()


@pytest.fixture(params=[0, 200], ids=["sleeping", "looking"])
def kernel(vfs: MemoryVfs, request: pytest.FixtureRequest) -> Iterator[Kernel]:
    kernel = Kernel(vfs, SessionOptions(server_locks=True, poll_us=request.param))
    kernel.start()
    yield kernel
    kernel.end()


def test_unknown_operations_are_answered_with_enosys(kernel: Kernel) -> None:
    for opcode in (7, 19, 49, 63, 64, 4096, 0xFFFFFFFF):
        assert kernel.ask(opcode, bytes(100)) == (errno.ENOSYS, b"")
    assert kernel.ask(Opcode.IOCTL, bytes(32))[0] == errno.ENOTTY


def test_every_operation_cut_short_is_refused_and_nothing_breaks(kernel: Kernel) -> None:
    minimum = protocol.request_body_minimum()
    for opcode in Opcode:
        for length in {0, minimum[opcode] // 2, minimum[opcode] - 1} - {-1}:
            if length < minimum[opcode] and opcode != Opcode.INIT:
                assert kernel.ask(opcode, b"\1" * length) == (errno.EINVAL, b""), opcode.name
    assert kernel.ask(Opcode.GETATTR, bytes(16))[0] == 0
    assert kernel.session.unexpected_errors == 0


def test_requests_full_of_ones_get_an_errno_not_a_crash(kernel: Kernel) -> None:
    """Handles, offsets, sizes and names of nonsense: each is answered, and the session goes on."""
    silent = {Opcode.INIT, Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY, Opcode.SETLKW}
    for opcode in Opcode:
        for filler in (b"\xff", b"\x01"):
            if opcode not in silent:
                error, _ = kernel.ask(opcode, filler * 200)
                assert 0 <= error < 200
    assert kernel.ask(Opcode.GETATTR, bytes(16))[0] == 0


def test_a_name_without_its_zero_is_refused(kernel: Kernel) -> None:
    assert kernel.ask(Opcode.MKDIR, protocol.MKDIR_IN.pack(0o755, 0) + b"name")[0] == errno.EINVAL
    assert kernel.ask(Opcode.RENAME, protocol.RENAME_IN.pack(1) + b"one\0two")[0] == errno.EINVAL


def test_supplementary_groups_are_read_only_when_they_decide(vfs: MemoryVfs) -> None:
    asked: list[int] = []

    def groups(pid: int) -> tuple[int, ...]:
        asked.append(pid)
        return (500,)

    now = [0.0]
    cache = CredentialCache(groups, lambda: now[0])
    first = cache.of(1, 2, 30)
    assert (first, asked) == (Credentials(1, 2, (), 30), [])
    assert cache.complete(first).groups == (500,)
    assert cache.of(1, 2, 30).groups == (500,)
    assert asked == [30]
    now[0] += GROUPS_LIFETIME_S
    assert cache.of(1, 2, 30).groups == ()
    assert cache.complete(SUPERUSER) is SUPERUSER
    assert asked == [30]


@pytest.fixture
def group() -> Iterator[int]:
    """One of the supplementary groups of this process."""
    before = os.getgroups()
    if not before:
        try:
            os.setgroups([0])
        except PermissionError:
            pytest.skip("this process is in no supplementary group, and may not enter one")
    yield os.getgroups()[0]
    if not before:
        os.setgroups(before)


def test_a_refusal_is_tried_again_with_the_processes_groups(kernel: Kernel, vfs: MemoryVfs, group: int) -> None:
    directory = vfs.mkdir(Credentials(0, group), 1, b"shared", 0o070).ino
    body = protocol.MKDIR_IN.pack(0o755, 0) + b"new\0"
    assert kernel.ask(Opcode.MKDIR, body, directory, uid=1234, pid=1 << 22)[0] == errno.EACCES
    assert kernel.ask(Opcode.MKDIR, body, directory, uid=1234, pid=os.getpid())[0] == 0


def test_an_exception_nobody_expected_becomes_eio_and_the_session_goes_on(
    kernel: Kernel, vfs: MemoryVfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(vfs, "statfs", broken)
    assert kernel.ask(Opcode.STATFS)[0] == errno.EIO
    assert kernel.session.unexpected_errors == 1
    assert kernel.ask(Opcode.GETATTR, bytes(16))[0] == 0


FIRST_HANDLE = 1


def _lock(kind: int, owner: int, start: int = 0, end: int = 99, flags: int = 0) -> bytes:
    return protocol.LK_IN.pack(FIRST_HANDLE, owner, start, end, kind, owner, flags)


def test_a_waiting_lock_is_answered_when_granted_and_when_interrupted(kernel: Kernel, vfs: MemoryVfs) -> None:
    write, unlock = 1, 2
    assert vfs.create(SUPERUSER, 1, b"file", 0o644, os.O_RDWR)[1] == FIRST_HANDLE
    assert kernel.ask(Opcode.SETLK, _lock(write, 10)) == (0, b"")
    assert kernel.ask(Opcode.SETLK, _lock(write, 20))[0] == errno.EAGAIN
    first = kernel.send(Opcode.SETLKW, _lock(write, 20))
    second = kernel.send(Opcode.SETLKW, _lock(write, 30))
    kernel.send(Opcode.INTERRUPT, protocol.INTERRUPT_IN.pack(second))
    assert kernel.reply() == (second, errno.EINTR, b"")
    released = kernel.send(Opcode.SETLK, _lock(unlock, 10))
    assert sorted([kernel.reply(), kernel.reply()]) == [(first, 0, b""), (released, 0, b"")]
    kernel.send(Opcode.INTERRUPT, protocol.INTERRUPT_IN.pack(first))  # it came too late: nothing happens
    assert kernel.ask(Opcode.SETLKW, _lock(write, 20))[0] == 0
    assert kernel.ask(Opcode.FLUSH, protocol.FLUSH_IN.pack(FIRST_HANDLE, 20))[0] == 0
    assert kernel.ask(Opcode.SETLK, _lock(write, 40))[0] == 0


def test_a_slow_fsync_does_not_keep_others_from_being_answered(
    kernel: Kernel, vfs: MemoryVfs, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on = threading.Event()
    monkeypatch.setattr(vfs, "fsync", lambda handle, data_only=False: may_go_on.wait())
    slow = kernel.send(Opcode.FSYNC, protocol.FSYNC_IN.pack(1, 0))
    assert kernel.ask(Opcode.GETATTR, bytes(16))[0] == 0
    may_go_on.set()
    assert kernel.reply() == (slow, 0, b"")


@pytest.mark.parametrize("cached", [True, False])
def test_only_a_read_that_would_wait_goes_to_a_worker(vfs: MemoryVfs, monkeypatch: pytest.MonkeyPatch, cached: bool) -> None:
    attr, handle = vfs.create(SUPERUSER, 1, b"file", 0o644, os.O_RDWR)
    vfs.write(handle, 0, b"content")
    threads: list[threading.Thread] = []
    read = vfs.read

    def watched_read(handle: int, offset: int, length: int) -> bytes:
        threads.append(threading.current_thread())
        return read(handle, offset, length)

    monkeypatch.setattr(vfs, "read", watched_read)
    if not cached:
        monkeypatch.setattr(vfs, "read_cached", lambda handle, offset, length: None)
    kernel = Kernel(vfs, SessionOptions())
    kernel.start()
    try:
        assert kernel.ask(Opcode.READ, protocol.READ_IN.pack(handle, 0, 100, 0, 0, 0), attr.ino) == (0, b"content")
        assert [thread is kernel.thread for thread in threads] == [cached]
    finally:
        kernel.end()


LOST: list[tuple[str, int, bytes]] = [
    ("lookup", Opcode.LOOKUP, b"file\0"),
    ("mkdir", Opcode.MKDIR, protocol.MKDIR_IN.pack(0o755, 0) + b"new\0"),
    ("create", Opcode.CREATE, protocol.CREATE_IN.pack(os.O_RDWR, 0o644, 0, 0) + b"new\0"),
    ("opendir", Opcode.OPENDIR, protocol.OPEN_IN.pack(0, 0)),
]


@pytest.mark.parametrize(("opcode", "body"), [case[1:] for case in LOST], ids=[case[0] for case in LOST])
def test_what_a_killed_process_asked_for_is_taken_back(
    vfs: MemoryVfs, monkeypatch: pytest.MonkeyPatch, opcode: int, body: bytes
) -> None:
    """The kernel answers ENOENT to a reply nobody waits for any more; handles and lookups in it would be lost for ever."""
    attr = vfs.mknod(SUPERUSER, 1, b"file", 0o644)
    vfs.forget(attr.ino, 1)
    kernel = Kernel(vfs, SessionOptions())
    kernel.start()
    real = os.write
    lost = threading.Event()

    def write(fd: int, data: bytes) -> int:
        if lost.is_set():
            return real(fd, data)
        lost.set()
        raise FileNotFoundError(errno.ENOENT, "the request was given up")

    try:
        monkeypatch.setattr(os, "write", write)
        kernel.send(opcode, body)
        assert kernel.ask(Opcode.GETATTR, bytes(16))[0] == 0
    finally:
        kernel.end()
    assert lost.is_set()
    with pytest.raises(PosixError, match="EBADF"):
        vfs.fsync(1)  # the first handle there would be
    for name in (b"file", b"new"):
        try:
            vfs.unlink(SUPERUSER, 1, name)
        except PosixError as error:
            if error.errno == errno.EISDIR:
                vfs.rmdir(SUPERUSER, 1, name)
    vfs.assert_state()
    assert [ino for ino in range(2, 10) if _exists(vfs, ino)] == [], "an inode without a name is still referred to"


def _exists(vfs: MemoryVfs, ino: int) -> bool:
    try:
        vfs.getattr(ino)
    except PosixError:
        return False
    return True


def test_a_first_request_other_than_init_is_refused(vfs: MemoryVfs) -> None:
    kernel = Kernel(vfs, SessionOptions())
    kernel.send(Opcode.GETATTR, bytes(16))
    with pytest.raises(InvalidRequest, match="not INIT"):
        kernel.session.handshake()
    kernel.session.close()
    kernel.socket.close()


@pytest.mark.parametrize("cookies", [SharedCookies(), PackedCookies()])
def test_cookies_lead_back_to_their_names(cookies: SharedCookies | PackedCookies, vfs: MemoryVfs) -> None:
    attr = vfs.getattr(1)
    names = [b"name-%d" % index for index in range(3000)]
    given: dict[int, bytes] = {}
    for start in range(0, 3000, 170):
        entries = [DirEntry(name, attr) for name in names[start : start + 170]]
        given.update(zip(cookies.assign(entries, max(given, default=0)), names[start : start + 170]))
    assert len(given) == 3000
    assert min(given) == FIRST_COOKIE
    assert all(cookies.name(cookie) == name for cookie, name in given.items())


def test_shared_cookies_of_a_name_never_change(vfs: MemoryVfs) -> None:
    cookies = SharedCookies()
    attr = vfs.getattr(1)
    first = cookies.assign([DirEntry(b"b", attr), DirEntry(b"c", attr)], 0)
    assert cookies.assign([DirEntry(b"a", attr), DirEntry(b"b", attr), DirEntry(b"c", attr)], 0)[1:] == first
