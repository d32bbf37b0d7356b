"""Numbers for places in directories: bounded however long a directory stays open, and always the same place or none."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from mdstore.client import fuse_directories
from mdstore.client.fuse_directories import FIRST_COOKIE, Cookies, DirectoryOperations, PackedCookies, SharedCookies
from mdstore.client.fuse_init import SessionOptions
from mdstore.client.fuse_protocol import DIRENT, OPEN_OUT, READ_IN, RELEASE_IN
from mdstore.client.fuse_reply import ReplyEncoder
from mdstore.errors import PosixError
from mdstore.mds.vfs import SUPERUSER, DirEntry
from tests.model.memory_vfs import MemoryVfs

BUFFER = 4096


class Front:
    """Open directories as the kernel sees them, over a name space in memory with a directory of some entries."""

    def __init__(self, entries: int, *, cache: bool) -> None:
        self.vfs = MemoryVfs()
        self.operations = DirectoryOperations(self.vfs, ReplyEncoder(SessionOptions().times), cache=cache)
        self.directory = self.vfs.mkdir(SUPERUSER, 1, b"d", 0o755).ino
        for number in range(entries):
            self.make(b"%04d" % number)

    def make(self, name: bytes) -> None:
        self.vfs.mknod(SUPERUSER, self.directory, name, 0o100644)

    def open(self, directory: int = 0) -> int:
        reply = self.operations.opendir(0, directory or self.directory, SUPERUSER, memoryview(b""))
        assert isinstance(reply, bytes)
        handle: int = OPEN_OUT.unpack_from(reply)[0]
        return handle

    def close(self, handle: int) -> None:
        self.operations.releasedir(0, self.directory, SUPERUSER, memoryview(RELEASE_IN.pack(handle, 0, 0, 0)))

    def read(self, handle: int, cookie: int) -> list[tuple[int, bytes]]:
        """One buffer of (cookie, name) behind a cookie."""
        reply = self.operations.readdir(0, self.directory, SUPERUSER, memoryview(READ_IN.pack(handle, cookie, BUFFER, 0, 0, 0)))
        assert isinstance(reply, bytes)
        found, offset = [], 0
        while offset < len(reply):
            _, place, length, _ = DIRENT.unpack_from(reply, offset)
            offset += DIRENT.size
            found.append((place, reply[offset : offset + length]))
            offset += length + 7 & ~7
        return found

    def read_all(self, handle: int) -> dict[int, bytes]:
        """From the first entry on: the name before each cookie."""
        found: dict[int, bytes] = {}
        while page := self.read(handle, max(found, default=0)):
            found.update(page)
        return found

    def kept(self, handle: int) -> Cookies:
        return self.operations._listing(handle).cookies


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse_directories, "OUTGROWN", 100)
    monkeypatch.setattr(fuse_directories, "RETAINED_NAMES", 100)


def test_reading_again_and_again_keeps_one_number_for_each_name() -> None:
    # A large directory that stayed open took 0.8 MB more with each rewinddir.
    front = Front(entries=3000, cache=False)
    handle = front.open()
    first = front.read_all(handle)
    assert len(first) == 3002
    for _ in range(3):
        assert front.read_all(handle) == first
    for cookie in (1, 2, *list(first)[50:3000:200]):  # seekdir to a place and read on
        page, behind = front.read(handle, cookie), [item for item in sorted(first.items()) if item[0] > cookie]
        assert page
        assert page == behind[: len(page)]
    assert len(front.kept(handle)) == 3000


@pytest.mark.parametrize("cache", [False, True], ids=["packed", "shared"])
def test_names_that_come_and_go_are_forgotten_while_the_directory_stays_open(cache: bool) -> None:
    # The same for short-lived names: a spool directory read by a daemon.
    front = Front(entries=30, cache=cache)
    handle, most = front.open(), 0
    for number in range(300):
        name = b"spool-%d" % number
        front.make(name)
        found = front.read_all(handle)
        assert len(found) == 33
        front.vfs.unlink(SUPERUSER, front.directory, name)
        most = max(most, len(front.kept(handle)))
    assert most <= 100 + 31 + 1
    with pytest.raises(PosixError, match="no place"):
        front.read(handle, FIRST_COOKIE)  # given once, and to nobody again


def test_a_table_that_another_reads_by_is_kept_whole() -> None:
    front = Front(entries=30, cache=True)
    daemon, slow = front.open(), front.open()
    places = front.read_all(slow)
    for number in range(150):
        name = b"spool-%d" % number
        front.make(name)
        front.read_all(daemon)
        front.vfs.unlink(SUPERUSER, front.directory, name)
    for cookie in sorted(places)[2:-1]:
        behind = [name for place, name in front.read(slow, cookie)]
        assert behind[0] > places[cookie]
    front.close(slow)
    front.read_all(daemon)
    assert len(front.kept(daemon)) <= 31


def test_tables_kept_for_directories_nobody_reads_are_bounded_by_their_names() -> None:
    # By their number alone: 256 of them might have held 33 million names.
    front = Front(entries=40, cache=True)
    others = [front.vfs.mkdir(SUPERUSER, 1, b"o%d" % number, 0o755).ino for number in range(5)]
    for ino in others:
        for number in range(40):
            front.vfs.mknod(SUPERUSER, ino, b"%d" % number, 0o100644)
    for ino in (*others, *others):
        handle = front.open(ino)
        front.read_all(handle)
        front.close(handle)
        tables = front.operations._shared
        assert front.operations._retained == sum(map(len, tables.values())) <= 100
        assert ino in tables, "the oldest go first"


@pytest.mark.parametrize("make", [SharedCookies, PackedCookies])
def test_numbers_are_never_given_to_two_names(make: Callable[[], Cookies]) -> None:
    cookies, attr = make(), MemoryVfs().getattr(1)
    old = cookies.assign([DirEntry(b"a", attr), DirEntry(b"b", attr)], 2)
    cookies.begin_anew()
    assert len(cookies) == 0
    new = cookies.assign([DirEntry(b"c", attr), DirEntry(b"a", attr)], 0)
    assert not set(old) & set(new)
    for cookie in (*old, new[-1] + 1, new[-1] + 5 * PackedCookies.BATCH, 1 << 62):
        with pytest.raises(IndexError):
            cookies.name(cookie)
    assert [cookies.name(cookie) for cookie in new] == [b"c", b"a"]


@pytest.mark.parametrize("cache", [False, True])
def test_a_place_far_beyond_the_end_is_refused(cache: bool) -> None:
    # Packed numbers were taken modulo the batch: the listing went on behind some name near the end.
    front = Front(entries=10, cache=cache)
    handle = front.open()
    last = max(front.read_all(handle))
    for cookie in (last + 1, last + 5 * PackedCookies.BATCH - 3, 1 << 62):
        with pytest.raises(PosixError) as caught:
            front.read(handle, cookie)
        assert caught.value.errno == errno.EINVAL


def test_packed_names_that_changed_in_between_get_numbers_of_their_own() -> None:
    cookies, attr = PackedCookies(), MemoryVfs().getattr(1)
    entries = [DirEntry(b"%05d" % number, attr) for number in range(0, 6000, 2)]
    first = cookies.assign(entries, 0)
    again = cookies.assign([*entries[1000:1010], DirEntry(b"02019+", attr), *entries[1010:1020]], first[999])
    assert again[:10] == first[1000:1010]
    assert again[10:] == list(range(first[-1] + 1, first[-1] + 12))
    assert cookies.name(again[10]) == b"02019+"
    assert [cookies.name(place) for place in first] == [entry.name for entry in entries]
