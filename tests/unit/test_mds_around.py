"""Listing a directory with damaged pages: every healthy name is there, whatever lies beside it, and the listing says at its end
that it is not whole.

The first damaged page used to end the listing with EIO, and hid all healthy names behind it from `ls`, `find` and `rsync`.
"""

from __future__ import annotations

import errno
import logging
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

from mdstore.client import fuse_protocol as protocol
from mdstore.client.fuse_init import SessionOptions
from mdstore.client.fuse_protocol import Opcode
from mdstore.device.memory import MemoryDevice
from mdstore.engines.mem import MemStore
from mdstore.errors import CorruptionError, DeviceFailed, MdstoreError, PosixError, errno_of
from mdstore.mds.around import read_around
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.store import Store, Transaction
from mdstore.tools.reader import superblock
from mdstore.tools.reader.image import Image as ImageFile
from mdstore.tools.reader.onode import decode_onode
from mdstore.tools.reader.store import StoreReader
from tests.unit.reader_images import BLOCK, newest
from tests.unit.test_fuse_session import Kernel

SEED = int(os.environ.get("DAMAGE_SEED", "7"))
ALPHABETS = (b"ab", b"\x00\x01\xfe\xff", b"0123456789", bytes(range(1, 256)))

# -- a map whose pages are damaged, as a tree gives it -----------------------------------------------------------------


class Pages:
    """A map in pages, parted by the shortest keys that part them; reading a damaged one is its error."""

    def __init__(self, pages: list[list[bytes]], errors: list[MdstoreError | None]) -> None:
        self.pages = pages
        self.errors = errors
        self.looks = 0
        self.first_keys = [b"", *(self._shortest(a[-1], b[0]) for a, b in pairwise(pages))]

    @staticmethod
    def _shortest(last: bytes, first: bytes) -> bytes:
        return next(first[:size] for size in range(1, len(first) + 1) if first[:size] > last)

    @property
    def healthy(self) -> list[bytes]:
        return [key for page, error in zip(self.pages, self.errors) if error is None for key in page]

    def read(self, start: bytes | None, stop: bytes | None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        self.looks += 1
        if reverse:
            at = len(self.pages) - 1 if stop is None else bisect_left(self.first_keys, stop, 1) - 1
        else:
            at = bisect_right(self.first_keys, start or b"") - 1
        while 0 <= at < len(self.pages):
            error = self.errors[at]
            if error is not None:
                raise error
            keys = [key for key in self.pages[at] if (start or b"") <= key and (stop is None or key < stop)]
            yield from ((key, b"value of " + key) for key in (reversed(keys) if reverse else keys))
            at += -1 if reverse else 1


def some_pages(random: Random) -> Pages:
    alphabet, prefix = random.choice(ALPHABETS), random.randbytes(random.choice([0, 3, 200]))
    keys = {prefix + bytes(random.choices(alphabet, k=random.randint(1, 12))) for _ in range(random.randint(4, 120))}
    ordered, size = sorted(keys), random.randint(1, 9)
    pages = [ordered[at : at + size] for at in range(0, len(ordered), size)]
    errors: list[MdstoreError | None] = []
    share = random.choice([0.1, 0.5, 0.95])
    for number in range(len(pages)):
        if random.random() >= share:
            errors.append(None)
        elif errors and errors[-1] is not None and random.random() < 0.3:
            errors.append(errors[-1])  # below one damaged page of an index
        else:
            where = f"address {number}"
            errors.append(random.choice([CorruptionError("page", where, 1, 2), DeviceFailed("read", where, OSError(5, "gone"))]))
    return Pages(pages, errors)


@pytest.mark.parametrize("seed", range(120))
def test_every_healthy_record_is_read_around_any_damage(seed: int) -> None:
    random = Random(SEED * 1000 + seed)
    pages = some_pages(random)
    limit = random.choice([1, 2, 7, 1000])
    found: list[bytes] = []
    unread: list[MdstoreError] = []
    while True:
        start = found[-1] + b"\0" if found else None
        records, error = read_around(pages.read, start, limit)
        assert len(records) <= limit
        unread += [error] if error is not None else []
        found += [key for key, _ in records]
        if len(records) < limit:
            break
    assert found == pages.healthy
    assert bool(unread) == (len(pages.healthy) < sum(map(len, pages.pages)))


def test_a_row_of_damaged_pages_costs_some_looks_each() -> None:
    names = [b"holiday picture %06d.jpg" % number for number in range(3000)]
    pages = [names[at : at + 30] for at in range(0, len(names), 30)]
    errors = [CorruptionError("page", f"address {at}") if 10 <= at < 60 else None for at in range(len(pages))]
    damaged = Pages(pages, list(errors))
    records, error = read_around(damaged.read, None, 10_000)
    assert [key for key, _ in records] == damaged.healthy
    assert error is errors[10]
    assert damaged.looks < 50 * 60


def test_damage_that_is_gone_a_moment_later_hides_nothing_behind_it() -> None:
    pages = Pages([[b"a", b"b"], [b"c"], [b"d" * 1000]], [None, CorruptionError("page", "address 1"), None])

    def once(start: bytes | None, stop: bytes | None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        try:
            yield from pages.read(start, stop, reverse=reverse)
        finally:
            pages.errors[1] = None

    records, error = read_around(once, None, 100)
    assert [key for key, _ in records] == [b"a", b"b", b"c", b"d" * 1000]
    assert error is not None
    assert pages.looks < 30


@pytest.mark.parametrize("seed", range(150))
def test_reads_that_fail_now_and_then_end_in_order_with_an_error_for_what_is_missing(seed: int) -> None:
    """A key that failed and then did not was looked for before itself: IndexError, which stopped the server."""
    random = Random(SEED * 1000 + seed)
    keys = [b"n%03d" % number for number in range(120)] if seed % 2 else sorted({random.randbytes(2) for _ in range(120)})
    share, looks = random.choice([0.02, 0.1, 0.5]), 0

    def read(start: bytes | None, stop: bytes | None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        nonlocal looks
        looks += 1
        for key in reversed(keys) if reverse else keys:
            if (start or b"") <= key and (stop is None or key < stop):
                if random.random() < share:
                    raise DeviceFailed("read", f"page {random.randrange(3)}", "Input/output error")
                yield key, b""

    records, error = read_around(read, None, 1000)
    found = [key for key, _ in records]
    assert found == sorted(set(found) & set(keys))
    assert error is not None or found == keys
    assert looks < 60 * len(keys)


@pytest.mark.parametrize("seed", range(150))
def test_a_page_that_fails_now_and_then_hides_nothing_of_another(seed: int) -> None:
    random = Random(SEED * 1000 + seed)
    pages = some_pages(random)
    errors, healthy = list(pages.errors), pages.healthy

    def read(start: bytes | None, stop: bytes | None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        pages.errors = [error if random.random() < 0.7 else None for error in errors]
        return pages.read(start, stop, reverse=reverse)

    records, _ = read_around(read, None, 1000)
    found = [key for key, _ in records]
    assert found == sorted(set(found))
    if len({str(error) for error in errors if error}) == sum(error is not None for error in errors):
        assert set(healthy) <= set(found)


@pytest.mark.parametrize("share", [1.0, 0.7, 0.1])
@pytest.mark.parametrize("seed", range(60))
def test_damaged_places_that_say_the_same_are_never_passed_over_in_silence(seed: int, share: float) -> None:
    """Who tells one damaged page from another by what it says cannot tell these apart."""
    random = Random(SEED * 1000 + seed)
    pages = some_pages(random)
    errors = [error and DeviceFailed("read", "the device", "Input/output error") for error in pages.errors]

    def read(start: bytes | None, stop: bytes | None, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        pages.errors = [error if random.random() < share else None for error in errors]
        return pages.read(start, stop, reverse=reverse)

    every = [key for page in pages.pages for key in page]
    records, error = read_around(read, None, 1000)
    found = [key for key, _ in records]
    assert found == sorted(set(found) & set(every))
    assert error is not None or found == every
    assert pages.looks < 300 * len(pages.pages)


class Flaky:
    """A store whose maps fail now and then while they are read, once armed."""

    def __init__(self, store: MemStore) -> None:
        self._store = store
        self.random: Random | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def map_items(self, *args: Any, **named: Any) -> Iterator[tuple[bytes, bytes]]:
        for pair in self._store.map_items(*args, **named):
            if self.random is not None and self.random.random() < 0.02:
                raise DeviceFailed("read", f"page {self.random.randrange(3)}", "Input/output error")
            yield pair


def test_a_listing_and_a_scrub_over_reads_that_fail_now_and_then_stop_nothing() -> None:
    store = MemStore()
    MetadataServer.format(store, now_ns=1)
    server = MetadataServer.mount(store)
    directory = server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755).ino
    names = [b"n%04d" % number for number in range(200)]
    for name in names:
        server.mknod(SUPERUSER, directory, name, 0o100644)
    server.close()
    flaky = Flaky(store)
    server = MetadataServer.mount(flaky, count_references=False)  # type: ignore[arg-type]
    flaky.random = Random(SEED)
    errors = 0
    for _ in range(60):
        server._cache.directory(directory).complete = False
        handle = server.opendir(SUPERUSER, directory)
        found, error = listed(server, handle, 50)
        server.releasedir(handle)
        assert found == (names if error is None else sorted(set(found) & set(names)))
        assert error is None or errno_of(error) == errno.EIO
        errors += error is not None
        server.scrubbing.start(repair=False)
        while server.scrubbing.step():
            pass
    assert errors > 20
    assert server.failure is None
    flaky.random = None
    server.mkdir(SUPERUSER, ROOT_INO, b"new", 0o755)


# -- a directory of an image -------------------------------------------------------------------------------------------

NAMES = sorted(b"holiday-%04d.jpg" % (number * 7 % 400) for number in range(400))


class Image(NamedTuple):
    """An image with one large directory: its bytes, the directory, and which names lie in which page."""

    content: bytes
    directory: int
    leaves: list[tuple[int, list[bytes]]]  # the page, and the names in it, in order


def mounted_with_names() -> tuple[MemoryDevice, Store, MetadataServer, int]:
    """A new image in memory, its store and server, and its one directory, which holds NAMES and is checkpointed."""
    device = MemoryDevice(8 << 20)
    store = Store.create(device, block_size=BLOCK, log_bytes=256 << 10, background=False)
    MetadataServer.format(store, now_ns=1, object_size=8192, log_unit=4096, log_object_size=65536)
    server = MetadataServer.mount(store)
    directory = server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755).ino
    for name in NAMES:
        server.release(server.create(SUPERUSER, directory, name, 0o644, os.O_RDWR)[1])
    server.write_back()
    store.checkpoint()
    return device, store, server, directory


def made(path: Path) -> Image:
    device, _, server, directory = mounted_with_names()
    server.close()
    content = device.image()
    return Image(content, directory, map_leaves(content, path, b"%016x" % directory))


def map_leaves(content: bytes, path: Path, name: bytes | None) -> list[tuple[int, list[bytes]]]:
    """The leaves of that object's map in order, or of the object tree (None): page, and its keys. Values may spill to others."""
    path.write_bytes(content)
    leaves: list[tuple[int, list[bytes]]] = []
    with ImageFile(str(path)) as opened:
        reader = StoreReader(opened, newest(content))
        tree = reader.root_tree(superblock.ROOT_OBJECTS)
        if name is not None:
            [root] = [decode_onode(raw).map_root for key, raw in tree.items() if key[8:] == name]
            assert root is not None
            tree = reader.tree(root, None)
        read: list[int] = []
        tree.on_pages = lambda page, count, is_overflow: is_overflow or read.append(page) is None
        for key, _ in tree.items():
            if not leaves or leaves[-1][0] != read[-1]:
                leaves.append((read[-1], []))
            leaves[-1][1].append(key)
    return leaves


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return made(tmp_path_factory.mktemp("image") / "file")


def damaged(image: Image, leaves: list[int], *, read_only: bool = False) -> tuple[MetadataServer, list[bytes]]:
    """A server over the image with these leaves of the directory overwritten; the names left healthy."""
    content = bytearray(image.content)
    for leaf in leaves:
        page = image.leaves[leaf][0]
        content[page * BLOCK + 100 : page * BLOCK + 108] = b"\xff" * 8
    store = Store.open(MemoryDevice.from_bytes(bytes(content)), read_only=read_only, background=False)
    healthy = [name for at, (_, names) in enumerate(image.leaves) if at not in leaves for name in names]
    return MetadataServer.mount(store, read_only=read_only), healthy


def listed(server: MetadataServer, handle: int, page: int, limit: int = 10_000) -> tuple[list[bytes], MdstoreError | None]:
    """Names in order, and the error at the end."""
    found: list[bytes] = []
    while len(found) < limit:
        try:
            entries = server.readdir(handle, found[-1] if found else None, page)
        except MdstoreError as error:
            return found, error
        if not entries:
            break
        found += [entry.name for entry in entries]
    return found, None


def some_leaves(image: Image) -> list[list[int]]:
    count = len(image.leaves)
    random = Random(SEED)
    rows = [[0], [count - 1], [1, 2, 3], [0, count // 2, count - 1], list(range(count))]
    return rows + [sorted(random.sample(range(count), random.randint(1, count - 1))) for _ in range(8)]


def test_the_directory_lies_in_many_pages(image: Image) -> None:
    assert len(image.leaves) > 50
    assert [name for _, names in image.leaves for name in names] == NAMES


@pytest.mark.parametrize("page", [1, 40, 1000])
def test_a_listing_has_every_healthy_name_and_says_at_its_end_that_it_is_not_whole(image: Image, page: int) -> None:
    for leaves in some_leaves(image):
        server, healthy = damaged(image, leaves)
        handle = server.opendir(SUPERUSER, image.directory)
        for _ in range(2):
            names, error = listed(server, handle, page)
            assert names == healthy, leaves
            assert error is not None, leaves
            assert errno_of(error) == errno.EIO
        with pytest.raises(CorruptionError):
            server.readdir(handle, healthy[-1] if healthy else None, page)
        server.releasedir(handle)
        assert server.failure is None


@pytest.mark.parametrize("read_only", [False, True])
def test_the_damage_is_told_once(image: Image, caplog: pytest.LogCaptureFixture, *, read_only: bool) -> None:
    server, _ = damaged(image, [3, 9], read_only=read_only)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            handle = server.opendir(SUPERUSER, image.directory)
            listed(server, handle, 50)
            server.releasedir(handle)
    assert [record.getMessage().startswith(f"inode {image.directory}: damaged page") for record in caplog.records] == [True]
    assert [(row.directory, row.name) for row in server.damage()] == ([] if read_only else [(image.directory, b"")])
    if read_only:
        return
    assert server.forget_damage(image.directory, b"")
    caplog.clear()
    handle = server.opendir(SUPERUSER, image.directory)
    listed(server, handle, 50)
    assert len(caplog.records) == len(server.damage()) == 1, "damage that somebody took for mended is told again"


def test_new_names_are_listed_among_the_healthy_ones(image: Image) -> None:
    server, healthy = damaged(image, [5])
    for name in (b"aaa", b"zzz"):
        server.release(server.create(SUPERUSER, image.directory, name, 0o644, os.O_RDWR)[1])
    server.unlink(SUPERUSER, image.directory, healthy[-1])
    handle = server.opendir(SUPERUSER, image.directory)
    names, error = listed(server, handle, 30)
    assert names == [b"aaa", *healthy[:-1], b"zzz"]
    assert error is not None


def test_names_that_were_not_read_are_not_taken_for_missing(image: Image) -> None:
    """A listing from the first to the last name makes memory believe that it knows the whole directory."""
    server, _ = damaged(image, [5])
    handle = server.opendir(SUPERUSER, image.directory)
    listed(server, handle, 1000)
    for name in image.leaves[5][1]:
        with pytest.raises(CorruptionError):
            server.lookup(SUPERUSER, image.directory, name)
        with pytest.raises(CorruptionError):
            server.create(SUPERUSER, image.directory, name, 0o644, os.O_RDWR)
    with pytest.raises(PosixError, match="not empty"):
        server.rmdir(SUPERUSER, ROOT_INO, b"d")


def test_a_scrub_tells_the_damage_and_repairs_no_count_that_it_cannot_know(image: Image) -> None:
    server, healthy = damaged(image, [5])
    problems = list(server.scrub(repair=True).run())
    assert [(problem.check, problem.ino, problem.repaired) for problem in problems] == [("S1", image.directory, False)]
    assert server.getattr(image.directory).size == len(NAMES) > len(healthy)


@pytest.mark.parametrize("plus", [False, True])
def test_the_kernel_gets_every_healthy_name_before_the_error(image: Image, *, plus: bool) -> None:
    server, healthy = damaged(image, [0, 5, len(image.leaves) - 1])
    kernel = Kernel(server, SessionOptions())  # type: ignore[arg-type]
    kernel.start()
    try:
        handle = protocol.OPEN_OUT.unpack_from(kernel.ask(Opcode.OPENDIR, protocol.OPEN_IN.pack(0, 0), image.directory)[1])[0]
        for size in (900, 32768):
            assert _asked(kernel, image.directory, handle, size, plus=plus) == [b".", b"..", *healthy]
    finally:
        kernel.end()


def _asked(kernel: Kernel, directory: int, handle: int, size: int, *, plus: bool) -> list[bytes]:
    """All names up to the EIO."""
    names: list[bytes] = []
    cookie = 0
    while True:
        request = protocol.READ_IN.pack(handle, cookie, size, 0, 0, 0)
        error, reply = kernel.ask(Opcode.READDIRPLUS if plus else Opcode.READDIR, request, directory)
        if error:
            assert error == errno.EIO
            return names
        assert reply, "the listing must not end as if it were whole"
        at = 0
        while at < len(reply):
            at += protocol.ENTRY_OUT.size if plus else 0
            _, cookie, length, _ = protocol.DIRENT.unpack_from(reply, at)
            at += protocol.DIRENT.size
            names.append(reply[at : at + length])
            at += length + 7 & ~7


def test_so_many_objects_are_listed_without_a_look_at_the_next_page(tmp_path: Path) -> None:
    """One name more was read than asked for: a damaged page behind the last of them kept them from being listed."""
    device = MemoryDevice(4 << 20)
    store = Store.create(device, block_size=BLOCK, log_bytes=128 << 10, background=False)
    store.apply(Transaction().create_collection("c"))
    for number in range(200):
        store.apply(Transaction().touch("c", b"%03d" % number))
    store.close()
    leaves = map_leaves(device.image(), tmp_path / "image", None)
    content = bytearray(device.image())
    content[leaves[3][0] * BLOCK + 100] ^= 1
    names = [key[8:] for _, keys in leaves[:3] for key in keys]
    with Store.open(MemoryDevice.from_bytes(bytes(content)), background=False) as damaged_store:
        assert damaged_store.list_objects("c", None, None, len(names)) == names
        with pytest.raises(CorruptionError):
            damaged_store.list_objects("c", None, None, len(names) + 1)
