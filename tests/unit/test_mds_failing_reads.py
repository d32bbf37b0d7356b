"""Every look into the store may fail, at every verb, and every change of a file's bytes may find no room: the verb is refused
with nothing changed, or it is done, and the server goes on.

A verb that changed memory before its last look left its change without an event: an fsync after it said yes and the bytes were
lost, a refused chmod became durable with the next event, or the server stopped for everybody.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from mdstore.engines.mem import MemStore
from mdstore.errors import CorruptionError, DeviceFailed, MdstoreError, NoSpace, TransactionError
from mdstore.mds.core import Limits
from mdstore.mds.events import Kind
from mdstore.mds.layout import DATA, META
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import RENAME_EXCHANGE, ROOT_INO, SUPERUSER, Credentials, SetAttr
from mdstore.store.transaction import Transaction
from tests.model.mds_check import problems

USER = Credentials(5, 5)
LONG = bytes(range(1, 251)) * 2
READS = ("exists", "stat", "read", "extents", "getattr", "map_get", "map_header", "map_items", "list_objects")
LIMITS = Limits(file_buffer=2000, data_buffer=6000)
SECOND = 1_000_000_000


class FailingReads:
    """A store of which, once armed, look number `at` fails, and with `for_good` every later one; or, where the error is
    a TransactionError, as many changes of files' bytes."""

    def __init__(self, store: MemStore) -> None:
        self._store = store
        self.looks = 0
        self.at = 0
        self.error: MdstoreError | None = None
        self.for_good = False

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if self.error is None or name not in (("submit",) if isinstance(self.error, TransactionError) else READS):
            return found
        return self._failing(name, found)

    def arm(self, at: int, error: MdstoreError, *, for_good: bool) -> None:
        self.looks, self.at, self.error, self.for_good = 0, at, error, for_good

    def disarm(self) -> None:
        self.error = None

    def _failing(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def look(*args: Any, **named: Any) -> Any:
            if not self._counts(args[0]):
                return call(*args, **named)
            self.looks += 1
            fails = self.looks == self.at or (self.for_good and self.looks > self.at)
            if fails and self.error is not None:
                if name != "map_items":
                    raise self.error
                return self._broken(self.error)
            return call(*args, **named)

        return look

    @staticmethod
    def _counts(subject: Any) -> bool:
        """What the log does for itself is the log's; a write-back, refused, stops the server."""
        if isinstance(subject, Transaction):
            return {operation[1] for operation in subject.operations} == {DATA}
        return subject in (META, DATA)

    @staticmethod
    def _broken(error: MdstoreError) -> Iterator[tuple[bytes, bytes]]:
        raise error
        yield b"", b""


class World(NamedTuple):
    """A mounted copy of the small name space below."""

    store: FailingReads
    server: MetadataServer
    now: list[int]

    def at(self, path: bytes) -> int:
        ino = ROOT_INO
        for name in path.split(b"/"):
            ino = self.server.lookup(SUPERUSER, ino, name).ino
        return ino

    def open(self, path: bytes, flags: int = os.O_RDWR, cred: Credentials = SUPERUSER) -> int:
        return self.server.open(cred, self.at(path), flags)

    def crashed(self) -> World:
        return mounted(next(self.store.durable_prefixes()))


def mounted(store: MemStore) -> World:
    now = [SECOND]
    failing = FailingReads(store)
    server = MetadataServer.mount(failing, clock=lambda: now[0], limits=LIMITS, count_references=False)  # type: ignore[arg-type]
    return World(failing, server, now)


def made() -> MemStore:
    store = MemStore(delayed=True)
    MetadataServer.format(store, now_ns=1, root_mode=0o777, object_size=128, log_unit=4096, log_object_size=8192)
    world = mounted(store)
    server = world.server
    d, e = (server.mkdir(SUPERUSER, ROOT_INO, name, 0o777).ino for name in (b"d", b"e"))
    server.mkdir(SUPERUSER, d, b"void", 0o777)
    deep = server.mkdir(SUPERUSER, server.mkdir(SUPERUSER, d, b"sub", 0o777).ino, b"deep", 0o777).ino
    for parent, name, content in (
        (ROOT_INO, b"a", LONG), (ROOT_INO, b"b", b"bytes"), (ROOT_INO, b"old", b""), (d, b"f", LONG), (d, b"h", b"linked"),
        (d, b"two", LONG), (deep, b"x", b"deep"), (e, b"y", b"why"),
    ):  # fmt: skip
        attr, handle = server.create(SUPERUSER, parent, name, 0o666, os.O_RDWR)
        server.write(handle, 0, content)
        server.release(handle)
        server.setattr(SUPERUSER, attr.ino, SetAttr(mode=0o6766))
    server.link(SUPERUSER, world.at(b"d/h"), ROOT_INO, b"g")
    for name in (b"two again", b"two more"):
        server.link(SUPERUSER, world.at(b"d/two"), e, name)
    handle = world.open(b"b")
    server.write(handle, 1000, b"behind a hole")
    server.symlink(SUPERUSER, ROOT_INO, b"s", b"target")
    server.setxattr(SUPERUSER, world.at(b"g"), b"user.kept", b"value")
    server.close()
    return store


def seen(world: World) -> dict[bytes, Any]:
    """Everything that programs can see, but the access times and the number of blocks."""
    found: dict[bytes, Any] = {}
    waiting = [(b"", ROOT_INO)]
    while waiting:
        path, ino = waiting.pop()
        attr = world.server.getattr(ino)
        names: object = sorted((name, world.server.getxattr(SUPERUSER, ino, name)) for name in world.server.listxattr(ino))
        content: object = None
        if attr.mode >> 12 == 8:
            handle = world.server.open(SUPERUSER, ino, os.O_RDONLY)
            content = world.server.read(handle, 0, 1 << 20)
            world.server.release(handle)
        elif attr.mode >> 12 == 4:
            handle = world.server.opendir(SUPERUSER, ino)
            waiting += [(path + b"/" + entry.name, entry.attr.ino) for entry in world.server.readdir(handle, None, 100)]
            world.server.releasedir(handle)
        found[path] = attr._replace(atime_ns=0, blocks=0), names, content
    return found


# -- verbs -------------------------------------------------------------------------------------------------------------

Call = Callable[[], object]
VERBS: dict[str, Callable[[World], Call]] = {}


def verb(make: Callable[[World], Call]) -> Callable[[World], Call]:
    VERBS[make.__name__] = make
    return make


def simple(name: str, call: Callable[[World], object]) -> None:
    VERBS[name] = lambda world: lambda: call(world)


def on_handle(name: str, path: bytes, call: Callable[[MetadataServer, int], object], cred: Credentials = SUPERUSER) -> None:
    def make(world: World) -> Call:
        handle = world.open(path, cred=cred)
        return lambda: call(world.server, handle)

    VERBS[name] = make


def on_ino(name: str, path: bytes, call: Callable[[MetadataServer, int], object]) -> None:
    def make(world: World) -> Call:
        ino = world.at(path)
        return lambda: call(world.server, ino)

    VERBS[name] = make


on_ino("create", b"d", lambda s, d: s.create(SUPERUSER, d, b"new", 0o644, os.O_RDWR))
simple("create_emptying", lambda w: w.server.create(USER, ROOT_INO, b"a", 0o644, os.O_RDWR | os.O_TRUNC))
on_ino("mkdir", b"e", lambda s, d: s.mkdir(SUPERUSER, d, b"new", 0o755))
on_ino("mknod", b"d/sub", lambda s, d: s.mknod(SUPERUSER, d, b"fifo", 0o10644))
on_ino("symlink", b"d", lambda s, d: s.symlink(SUPERUSER, d, b"sym", b"there"))
on_ino("link", b"a", lambda s, a: s.link(SUPERUSER, a, ROOT_INO, b"second"))
on_ino("link_once_more", b"g", lambda s, g: s.link(SUPERUSER, g, ROOT_INO, b"third"))
simple("unlink", lambda w: w.server.unlink(SUPERUSER, ROOT_INO, b"a"))
simple("unlink_empty", lambda w: w.server.unlink(SUPERUSER, ROOT_INO, b"old"))
on_ino("unlink_home", b"d", lambda s, d: s.unlink(SUPERUSER, d, b"h"))
on_ino("unlink_home_of_three", b"d", lambda s, d: s.unlink(SUPERUSER, d, b"two"))
simple("unlink_other", lambda w: w.server.unlink(SUPERUSER, ROOT_INO, b"g"))
on_ino("rmdir", b"d", lambda s, d: s.rmdir(SUPERUSER, d, b"void"))
simple("rename", lambda w: w.server.rename(SUPERUSER, ROOT_INO, b"a", ROOT_INO, b"z"))
simple("rename_over_empty", lambda w: w.server.rename(SUPERUSER, ROOT_INO, b"a", ROOT_INO, b"old"))
on_ino("rename_over_home", b"d", lambda s, d: s.rename(SUPERUSER, ROOT_INO, b"a", d, b"two"))
on_ino("rename_of_link", b"e", lambda s, e: s.rename(SUPERUSER, ROOT_INO, b"g", e, b"g"))
simple("rename_directory", lambda w: w.server.rename(SUPERUSER, ROOT_INO, b"e", w.at(b"d"), b"void"))
on_ino("exchange", b"d", lambda s, d: s.rename(SUPERUSER, ROOT_INO, b"g", d, b"f", RENAME_EXCHANGE))
on_ino("chmod_of_link", b"g", lambda s, g: s.setattr(SUPERUSER, g, SetAttr(mode=0o4700)))
on_ino("shrink", b"a", lambda s, a: s.setattr(USER, a, SetAttr(size=130)))
on_ino("shrink_link", b"g", lambda s, g: s.setattr(USER, g, SetAttr(size=2)))
on_ino("grow", b"a", lambda s, a: s.setattr(USER, a, SetAttr(size=900)))
on_ino("empty_and_chown", b"d/f", lambda s, f: s.setattr(SUPERUSER, f, SetAttr(size=0, uid=7, mode=0o700)))
on_ino("grow_and_chown", b"d/f", lambda s, f: s.setattr(SUPERUSER, f, SetAttr(size=999, uid=7, mtime_ns=5)))
on_ino("setxattr", b"g", lambda s, g: s.setxattr(SUPERUSER, g, b"user.x", b"1"))
on_ino("removexattr", b"g", lambda s, g: s.removexattr(SUPERUSER, g, b"user.kept"))
on_ino("open_emptying", b"d/f", lambda s, f: s.open(USER, f, os.O_WRONLY | os.O_TRUNC))
on_handle("write", b"d/h", lambda s, h: s.write(h, 3, b"new bytes"), USER)
on_handle("write_much", b"b", lambda s, h: s.write(h, 1500, LONG * 5), USER)
on_handle("punch", b"a", lambda s, h: s.fallocate(h, 3, 100, 200), USER)
on_handle("zero_and_grow", b"a", lambda s, h: s.fallocate(h, 16, 300, 400), USER)
on_handle("allocate", b"b", lambda s, h: s.fallocate(h, 0, 0, 2000), USER)
on_handle("seek", b"b", lambda s, h: s.lseek(h, 10, os.SEEK_DATA))
simple("purge", lambda w: w.server.purge_all())
simple("write_back", lambda w: w.server.write_back())
simple("scrub", lambda w: list(w.server.scrub(repair=True).run()))
simple("statistics", lambda w: w.server.getxattr(SUPERUSER, ROOT_INO, b"mdstore.rbytes"))


def buffered(world: World) -> list[int]:
    """Handles of files with bytes in their buffers: over old ones, behind the end, behind a hole, of several names."""
    handles = [world.open(path) for path in (b"a", b"g", b"b", b"e/two again", b"old")]
    for handle, offset in zip(handles, (10, 3, 1200, 700, 50), strict=True):
        world.server.write(handle, offset, b"much newer bytes")
    return handles


for number, kind in enumerate(("inside", "link", "hole", "link behind a hole", "first bytes")):
    VERBS[f"fsync_{kind}"] = lambda world, number=number: (lambda handle: lambda: world.server.fsync(handle))(  # type: ignore[misc]
        buffered(world)[number]
    )


def after_buffered(name: str, call: Callable[[World], object]) -> None:
    def make(world: World) -> Call:
        buffered(world)
        return lambda: call(world)

    VERBS[name + "_while_buffered"] = make


after_buffered("syncfs", lambda w: w.server.syncfs())
after_buffered("tick", lambda w: w.server.tick(1 << 60))
after_buffered("work", lambda w: w.server.background_work())
after_buffered("write_back", lambda w: w.server.write_back())
after_buffered("drop_caches", lambda w: w.server.drop_caches())
after_buffered("rename", lambda w: w.server.rename(SUPERUSER, ROOT_INO, b"a", ROOT_INO, b"b"))
after_buffered("unlink", lambda w: w.server.unlink(SUPERUSER, ROOT_INO, b"g"))
after_buffered("chmod", lambda w: w.server.setattr(SUPERUSER, w.at(b"g"), SetAttr(mode=0o4700)))
after_buffered("emptying", lambda w: w.server.setattr(SUPERUSER, w.at(b"b"), SetAttr(size=0, uid=3)))


@verb
def quota(world: World) -> Call:
    deep = world.at(b"d/sub/deep")
    world.server.mkdir(SUPERUSER, deep, b"news", 0o755)
    return lambda: world.server.setxattr(SUPERUSER, world.at(b"d"), b"mdstore.quota.max_files", b"9")


@verb
def rename_under_quota(world: World) -> Call:
    world.server.setxattr(SUPERUSER, world.at(b"d"), b"mdstore.quota.max_files", b"100")
    world.server.mkdir(SUPERUSER, world.at(b"e"), b"news", 0o755)
    buffered(world)
    world.server._cache.drop_all()
    return lambda: world.server.rename(SUPERUSER, ROOT_INO, b"e", world.at(b"d"), b"moved")


@verb
def of_a_session(world: World) -> Call:
    number = world.server.clients.open(b"client", timeout_ns=SECOND)
    link = world.at(b"g")
    return lambda: world.server.clients.perform(number, 1, 0, "setattr", SUPERUSER, link, SetAttr(size=1, mode=0o700))


@verb
def end_of_a_session(world: World) -> Call:
    number = world.server.clients.open(b"client", timeout_ns=SECOND)
    handle = world.server.clients.call(number, "open", SUPERUSER, world.at(b"old"), os.O_RDWR)
    assert handle
    world.server.unlink(SUPERUSER, ROOT_INO, b"old")
    return lambda: world.server.clients.end(number)


@verb
def purge_of_removed(world: World) -> Call:
    world.server.unlink(SUPERUSER, ROOT_INO, b"a")
    return lambda: world.server.purge_all()


@verb
def release_of_the_last(world: World) -> Call:
    handle = world.open(b"old")
    world.server.unlink(SUPERUSER, ROOT_INO, b"old")
    return lambda: world.server.release(handle)


@verb
def release_after_reading(world: World) -> Call:
    handle = world.open(b"g")
    world.server.read(handle, 0, 1)
    return lambda: world.server.release(handle)


# -- every look of each ------------------------------------------------------------------------------------------------


def prepared(base: MemStore, name: str) -> tuple[World, Call]:
    world = mounted(next(base.durable_prefixes()))
    call = VERBS[name](world)
    world.now[0] = 2 * SECOND
    return world, call


@pytest.fixture(scope="module")
def base() -> MemStore:
    return made()


CORRUPT = CorruptionError("a page", "somewhere", "a checksum", "another")
UNREADABLE = DeviceFailed("read", "somewhere", "Input/output error")
FULL = TransactionError(0, "write", NoSpace("no room"))


@pytest.mark.parametrize("name", VERBS)
def test_a_look_that_fails_is_a_refusal_or_nothing_and_the_server_goes_on(base: MemStore, name: str) -> None:
    untouched, _ = prepared(base, name)
    before = seen(untouched)
    sound, call = prepared(base, name)
    call()
    after = seen(sound)
    for error, for_good in ((CORRUPT, False), (UNREADABLE, True), (FULL, False)):
        looks = at = 0
        while looks >= at:
            at += 1
            world, call = prepared(base, name)
            world.store.arm(at, error, for_good=for_good)
            refused = False
            try:
                call()
            except (CorruptionError, DeviceFailed, TransactionError):
                refused = True
            world.store.disarm()
            looks = world.store.looks
            hint = f"{name}: look {at} of {looks}, {type(error).__name__}"
            assert world.server.failure is None, hint
            world.server.syncfs()  # before anybody looks: reading moves access times, and their event could hide a missing one
            assert seen(world.crashed()) == (before if refused else after), hint
            assert seen(world) == (before if refused else after), hint
            world.server.mkdir(SUPERUSER, ROOT_INO, b"goes on", 0o755)
            world.server.assert_state()
            list(world.server.scrub(repair=True).run())  # an unreadable directory counted nothing
            world.server.close()
            again = mounted(world.store._store)
            again.server.purge_all()
            again.server.close()
            assert list(problems(again.store._store)) == [], hint


@pytest.mark.parametrize(("error", "looks", "verbs"), [(CORRUPT, 200, 50), (FULL, 20, 15)])
def test_the_verbs_look_into_the_store(base: MemStore, error: MdstoreError, looks: int, verbs: int) -> None:
    """Else the test above tests nothing."""
    counts = []
    for name in VERBS:
        world, call = prepared(base, name)
        world.store.arm(1 << 30, error, for_good=False)
        call()
        counts.append(world.store.looks)
    assert sum(counts) > looks
    assert sum(count > 0 for count in counts) > verbs


# -- statistics --------------------------------------------------------------------------------------------------------


def test_what_a_directory_got_after_it_was_handed_up_is_handed_up_too() -> None:
    """A look at how deep a directory lies failed once, so its parent was handed up before it; what the parent got then stayed
    there where quotas kept the list of whom to ask: their usage was too low for good."""
    world = mounted(made())
    server = world.server
    sub, deep = world.at(b"d/sub"), world.at(b"d/sub/deep")
    server.setxattr(SUPERUSER, ROOT_INO, b"mdstore.quota.max_files", b"1000")
    server.drop_caches()
    for ino in (deep, sub):
        server._cache.directory(ino)
    before = server._cache.directory(ROOT_INO).rbytes
    assert server._core.news == {}
    for ino in (deep, sub):
        directory = server._cache.directory(ino)
        server._core.append(Kind.REPAIR, server._core.touch(directory, 5, 0, 0, 0, 0, 100))
    server._core.nodes.pop(world.at(b"d"))
    world.store.arm(1, DeviceFailed("read", "somewhere", "Input/output error"), for_good=False)
    server._statistics.settle()
    assert world.store.looks == 1
    assert list(server._core.unsettled) == [sub]
    world.store.disarm()
    server._statistics.settle()
    assert not server._core.unsettled
    assert not any(directory.unsettled for directory in server._core.dirty.values() if directory.ino != ROOT_INO)
    assert server._cache.directory(ROOT_INO).rbytes == before + 200
