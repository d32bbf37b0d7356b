"""Damage of a page touches what lies in it, and nothing beside it: listing the objects of one file, or of the log, ends where
their names end, and not with the error of the page behind.

Truncating, seeking in and removing a healthy file failed with the damage of the next one's page, and the damage table named the
wrong file; a page behind the log's objects kept the file system from being mounted.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.engines.mem import MemStore
from mdstore.errors import CorruptionError, DeviceFailed, MdstoreError
from mdstore.mds.layout import DATA, data_object
from mdstore.mds.listing import names_between
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER, SetAttr
from mdstore.store import Store, Transaction
from tests.unit.mds_calls import make_file
from tests.unit.reader_images import BLOCK
from tests.unit.test_mds_around import map_leaves

OWN, OWN_NUMBER = b"own", 4  # the collection, and its number in the keys of the object tree
PIECE = 8192


class Files(NamedTuple):
    """An image with files of one to three objects, and a collection of somebody else's behind those of the file system."""

    content: bytes
    sizes: dict[int, int]
    leaves: list[tuple[int, list[bytes]]]  # of the object tree: page, keys

    def damaged(self, leaf: int) -> bytes:
        content, page = bytearray(self.content), self.leaves[leaf][0]
        content[page * BLOCK + 100 : page * BLOCK + 108] = b"\xff" * 8
        return bytes(content)

    def names(self, leaf: int) -> set[bytes]:
        return {key[8:] for key in self.leaves[leaf][1]}


def made(path: Path, early: int = 0) -> Files:
    """`early` files are there before the other collection, which decides where the pages end."""
    device = MemoryDevice(8 << 20)
    store = Store.create(device, block_size=BLOCK, log_bytes=256 << 10, background=False)
    MetadataServer.format(store, now_ns=1, object_size=PIECE, log_unit=4096, log_object_size=16384)
    server = MetadataServer.mount(store, count_references=False)
    sizes = {}
    for number in range(20):
        if number == early:
            server.write_back()
            store.apply(Transaction().create_collection(OWN))
            for own in range(20):
                store.apply(Transaction().write(OWN, b"%d" % own, 0, b"somebody's"))
        size = 1 if number < early else [5, PIECE, 2 * PIECE + 7][number % 3]
        sizes[make_file(server, ROOT_INO, b"f%d" % number, bytes([number]) * size)] = size
    server.write_back()
    store.checkpoint()
    server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755)
    server.syncfs()
    store.checkpoint()
    return Files(device.image(), sizes, map_leaves(device.image(), path, None))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return made(tmp_path_factory.mktemp("files") / "image")


def healthy(files: Files, leaf: int) -> list[int]:
    lost = files.names(leaf)
    return [ino for ino in files.sizes if not any(name.startswith(b"%016x." % ino) for name in lost)]


def data_leaves(files: Files) -> list[int]:
    """Those that hold nothing but bytes of files."""
    return [leaf for leaf, (_, keys) in enumerate(files.leaves) if all(len(key) == 33 and key[24:25] == b"." for key in keys)]


def test_files_lie_in_many_pages(files: Files) -> None:
    assert len(data_leaves(files)) >= 8
    assert any(all(key[7] == OWN_NUMBER for key in keys) for _, keys in files.leaves), "of the other collection"


def test_a_file_beside_a_damaged_page_is_sought_in_and_cut_as_ever(files: Files) -> None:
    whole = worked_on(files.content, list(files.sizes))
    for leaf in data_leaves(files):
        inodes = healthy(files, leaf)
        assert worked_on(files.damaged(leaf), inodes) == {ino: whole[ino] for ino in inodes}, leaf


def worked_on(content: bytes, inodes: list[int]) -> dict[int, object]:
    """What each file answers while it is sought in, given holes, cut, and grown."""
    server = MetadataServer.mount(Store.open(MemoryDevice.from_bytes(content), background=False), count_references=False)
    seen: dict[int, object] = {}
    for ino in inodes:
        handle = server.open(SUPERUSER, ino, os.O_RDWR)
        answers: list[object] = [server.lseek(handle, 0, os.SEEK_HOLE)]
        server.fallocate(handle, 3, 3, PIECE)
        answers += [server.read(handle, 0, 10), server.getattr(ino).blocks]
        server.setattr(SUPERUSER, ino, SetAttr(size=4))
        server.setattr(SUPERUSER, ino, SetAttr(size=2 * PIECE))
        answers += [server.getattr(ino).size, server.read(handle, 0, 10)]
        server.release(handle)
        seen[ino] = answers
    assert server.damage() == []
    assert server.failure is None
    server.close()
    return seen


def test_no_page_behind_the_logs_objects_keeps_it_from_being_mounted_and_trimmed(tmp_path: Path) -> None:
    met = 0
    for early in (4, 7, 11):
        files = made(tmp_path / "image", early)
        behind = [leaf for leaf, (_, keys) in enumerate(files.leaves) if all(key[7] == OWN_NUMBER for key in keys)]
        for leaf in behind[:-1]:  # the last page of all is looked into by whatever makes an object
            server = MetadataServer.mount(Store.open(MemoryDevice.from_bytes(files.damaged(leaf)), background=False))
            for number in range(300):
                server.mkdir(SUPERUSER, ROOT_INO, b"new%d" % number, 0o755)
            server.write_back()
            assert server._core.journal is not None
            assert server._core.journal.trimmed > 0
            assert server.failure is None
            server.close()
            met += files.leaves[leaf - 1][1][-1].endswith(b"events.head1")
    assert met, "pages right behind the log's"


# -- removed files -----------------------------------------------------------------------------------------------------


class Bordered:
    """A store in which whoever lists the names before the object `bad` to their end meets damage."""

    def __init__(self, store: MemStore, bad: bytes) -> None:
        self._store = store
        self._bad = bad

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def list_objects(
        self, collection: bytes, start: bytes, stop: bytes, limit: int | None = None, *, reverse: bool = False
    ) -> list[bytes]:
        found: list[bytes] = []
        names = self._store.list_objects(collection, reverse=reverse)
        for name in [name for name in names if (name < stop if reverse else name >= start)]:
            if len(found) == limit:
                break
            if name == self._bad:
                raise CorruptionError("page", "of one name")
            if name < start if reverse else name >= stop:
                break
            found.append(name)
        return found


def test_a_removed_file_beside_a_damaged_one_gives_its_space_back_and_only_the_damaged_one_is_named() -> None:
    store = MemStore()
    MetadataServer.format(store, now_ns=1, object_size=PIECE)
    server = MetadataServer.mount(store, count_references=False)
    inodes = [make_file(server, ROOT_INO, b"f%d" % number, bytes(3 * PIECE)) for number in range(6)]
    server.close()
    server = MetadataServer.mount(Bordered(store, data_object(inodes[3], 0)), count_references=False)  # type: ignore[arg-type]
    for number in range(6):
        server.unlink(SUPERUSER, ROOT_INO, b"f%d" % number)
    server.purge_all()
    assert [row.directory for row in server.damage()] == [inodes[3]]
    assert {name[:16] for name in store.list_objects(DATA)} == {b"%016x" % inodes[3]}


# -- the listing itself ------------------------------------------------------------------------------------------------


class Paged:
    """A store whose names lie in pages, as in a tree: some cannot be read, always or now and then; what was read stays known.
    `alike`: no error says where it is from."""

    def __init__(self, random: Random, share: float, *, alike: bool) -> None:
        self.random = random
        names = sorted({b"%04x.%02d" % (random.randrange(12), random.randrange(30)) for _ in range(random.randrange(4, 60))})
        self.pages, self.first = list[list[bytes]](), [b""]
        while names:
            size = random.randint(1, 5)
            self.pages.append(names[:size])
            names = names[size:]
            if names:
                self.first.append(names[0] if random.random() < 0.5 else self.pages[-1][-1] + b"\0")
        for page in self.pages:
            for name in list(page):
                if random.random() < 0.3 and len(page) > 1:  # a tree keeps no empty page
                    page.remove(name)  # since removed: the bounds of the pages stay
        self.bad = [random.random() < 0.3 for _ in self.pages]
        self.share = share
        self.where = "the device" if alike else "page %d"

    def at(self, name: bytes) -> int:
        return max(number for number, first in enumerate(self.first) if first <= name)

    def _read(self, number: int) -> list[bytes]:
        if self.bad[number]:
            if self.random.random() < self.share:
                raise DeviceFailed("read", self.where.replace("%d", str(number)), "Input/output error")
            self.bad[number] = False
        return self.pages[number]

    def list_objects(
        self, collection: bytes, start: bytes, stop: bytes, limit: int | None = None, *, reverse: bool = False
    ) -> list[bytes]:
        found: list[bytes] = []
        first, last = self.at(start), self.at(stop[:-1] + b".\xff")
        for number in range(last, -1, -1) if reverse else range(first, len(self.pages)):
            page = self._read(number)
            for name in reversed(page) if reverse else page:
                if name < start if reverse else name >= stop:
                    return found
                if start <= name < stop:
                    found.append(name)
                if len(found) == limit:
                    return found
        return found


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("share", [1.0, 0.7])
@pytest.mark.parametrize("first_seed", range(0, 1000, 200))
def test_a_range_is_listed_whole_or_not_at_all(first_seed: int, share: float, alike: bool) -> None:
    listed = refused = beside = 0
    for seed in range(first_seed, first_seed + 200):
        random = Random(seed)
        store = Paged(random, share, alike=alike)
        for prefix in range(12):
            start, stop = b"%04x." % prefix, b"%04x/" % prefix
            own = set(range(store.at(start), store.at(stop[:-1] + b".\xff") + 1))
            limit = random.choice([None, 1, 2, 100])
            expected = [name for page in store.pages for name in page if start <= name < stop][:limit]
            damaged = {number for number, bad in enumerate(store.bad) if bad}
            try:
                found = names_between(store, DATA, start, stop, limit)  # type: ignore[arg-type]
            except DeviceFailed:
                assert own & damaged or share < 1, (seed, prefix)
                refused += 1
            else:
                assert found == expected, (seed, prefix)
                assert limit is not None or share < 1 or not own & damaged
                listed += 1
                beside += max(own) + 1 in damaged
    assert listed > 200
    assert refused > 200
    assert beside > 50


def test_what_reads_a_moment_later_is_no_end(files: Files) -> None:
    """The page failed once, and then not: what lies in it is not passed over."""
    store = MemStore()
    store.apply(Transaction().create_collection(DATA))
    for number in range(5):
        store.apply(Transaction().touch(DATA, data_object(9, number)))
    list_objects, errors = store.list_objects, [CorruptionError("page", "address 1"), CorruptionError("page", "address 1")]

    def once(*args: Any, **kwargs: Any) -> list[bytes]:
        if errors:
            raise errors.pop()
        return list_objects(*args, **kwargs)

    store.list_objects = once  # type: ignore[method-assign]
    with pytest.raises(MdstoreError):
        names_between(store, DATA, b"%016x." % 9, b"%016x/" % 9)
    assert len(names_between(store, DATA, b"%016x." % 9, b"%016x/" % 9)) == 5


class Unnamed(MemoryDevice):
    """Some sectors cannot be read, and the error of none says which."""

    bad: tuple[int, ...] = ()  # pages

    def read(self, offset: int, length: int) -> bytes:
        if any(offset < (page + 1) * BLOCK and page * BLOCK < offset + length for page in self.bad):
            raise DeviceFailed("read", self.name, "a bad sector")
        return super().read(offset, length)


def test_two_bad_sectors_that_say_the_same_hide_no_name(tmp_path: Path) -> None:
    """One among the names and one right behind them were taken for the same: the names between the two were passed over."""
    device = MemoryDevice(8 << 20)
    store = Store.create(device, block_size=BLOCK, log_bytes=256 << 10, background=False)
    change = Transaction().create_collection(DATA)
    for ino in (1, 2, 3):
        for number in range(60):
            change.touch(DATA, data_object(ino, number))
    store.apply(change)
    store.close()
    leaves = map_leaves(device.image(), tmp_path / "image", None)
    with_own = [at for at, (_, keys) in enumerate(leaves) if any(key[8:].startswith(b"%016x." % 2) for key in keys)]
    inside, behind = with_own[2:-1], with_own[-1] + 1
    assert inside
    expected = [data_object(2, number) for number in range(60)]
    for bad in ((behind,), *((at,) for at in inside), *((at, behind) for at in inside)):
        damaged = Unnamed.from_bytes(device.image())
        with Store.open(damaged, background=False) as opened:
            damaged.bad = tuple(leaves[at][0] for at in bad)
            if bad == (behind,):
                assert names_between(opened, DATA, b"%016x." % 2, b"%016x/" % 2) == expected
            else:
                with pytest.raises(DeviceFailed):
                    names_between(opened, DATA, b"%016x." % 2, b"%016x/" % 2)
            damaged.bad = ()


def test_a_file_is_not_truncated_over_names_that_cannot_be_read(tmp_path: Path) -> None:
    """The objects behind a bad sector stayed, and their bytes were read again once the file had grown."""
    device = MemoryDevice(8 << 20)
    store = Store.create(device, block_size=BLOCK, log_bytes=256 << 10, background=False)
    MetadataServer.format(store, now_ns=1, object_size=PIECE, log_unit=4096, log_object_size=16384)
    server = MetadataServer.mount(store, count_references=False)
    ino = make_file(server, ROOT_INO, b"a", b"old!" * (30 * PIECE // 4))
    other = make_file(server, ROOT_INO, b"b", b"b" * (20 * PIECE))
    server.close()
    store.close()
    leaves = map_leaves(device.image(), tmp_path / "image", None)

    def only_of(number: int) -> list[int]:
        return [at for at, (_, keys) in enumerate(leaves) if all(key[8:].startswith(b"%016x." % number) for key in keys)]

    inside, behind = only_of(ino), only_of(other)[0]
    assert inside[-1] + 1 == behind
    damaged = Unnamed.from_bytes(device.image())
    server = MetadataServer.mount(Store.open(damaged, background=False), count_references=False)
    handle = server.open(SUPERUSER, ino, os.O_RDWR)
    damaged.bad = (leaves[inside[len(inside) // 2]][0], leaves[behind][0])
    with pytest.raises(MdstoreError):
        server.setattr(SUPERUSER, ino, SetAttr(size=4))
    damaged.bad = ()
    server.setattr(SUPERUSER, ino, SetAttr(size=4))
    server.setattr(SUPERUSER, ino, SetAttr(size=30 * PIECE))
    assert server.read(handle, 0, 30 * PIECE) == b"old!" + bytes(30 * PIECE - 4)
    server.close()
