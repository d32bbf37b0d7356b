"""A client that asks again after every crash: whatever the crash left, each request is done once, and files without a name stay.

The requests are such that doing one twice, or not at all, shows: exclusive makes, renames, unlinks of what is there."""

from __future__ import annotations

import errno
import os
import random
from typing import Any, NamedTuple

from mdstore.device.explore import History, explore
from mdstore.device.faulty import FaultyDevice
from mdstore.device.protocol import Device
from mdstore.engines.protocol import ObjectStore
from mdstore.errors import NotFound, PosixError
from mdstore.mds.core import Limits
from mdstore.mds.layout import META, TABLE_OBJECTS, Tab
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.store.check import check as check_store
from mdstore.store.store import Store
from tests.model.mds_check import problems

SEED = int(os.environ.get("MDS_CRASH_SEED", "0"))
IMAGE = 4 << 20
GEOMETRY: dict[str, Any] = {"block_size": 512, "log_bytes": 64 * 1024}
SMALL: dict[str, Any] = {"cache_bytes": 256 * 1024, "dirty_bytes": 128 * 1024, "background": False}
TINY = Limits(dirty_entries=16, dirty_entries_low=6, log_bytes=12 << 10, file_buffer=700, data_buffer=1500)
LONG_NS = 10**15
UNSURE = 20  # requests at most that the client was not told are durable


class Request(NamedTuple):
    """One request: its number and what it asks, in the root."""

    number: int
    verb: str
    args: tuple[object, ...]


class Client:
    """Makes requests that succeed when all before them were done once; `names` and `unnamed` are what there is then."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.names: set[bytes] = set()
        self.made = 0
        self.number = 0

    def next(self) -> Request:
        self.number += 1
        verb = self.random.choice(["mkdir", "create", "symlink", "rename", "remove", "remove"]) if self.names else "mkdir"
        if verb in ("mkdir", "create", "symlink"):
            self.made += 1
            name = verb[:1].encode() + b"%d" % self.made
            self.names.add(name)
            last: tuple[object, ...] = {"mkdir": (0o755,), "create": (0o644, os.O_RDWR | os.O_EXCL), "symlink": (b"to",)}[verb]
            return Request(self.number, verb, (SUPERUSER, ROOT_INO, name, *last))
        name = self.random.choice(sorted(self.names))
        self.names.remove(name)
        if verb == "rename":
            self.made += 1
            new = name[:1] + b"%d" % self.made
            self.names.add(new)
            return Request(self.number, verb, (SUPERUSER, ROOT_INO, name, ROOT_INO, new))
        return Request(self.number, "rmdir" if name.startswith(b"m") else "unlink", (SUPERUSER, ROOT_INO, name))


def names_of(server: MetadataServer) -> frozenset[bytes]:
    handle = server.opendir(SUPERUSER, ROOT_INO)
    found = frozenset(entry.name for entry in server.readdir(handle, None, 10_000))
    server.releasedir(handle)
    return found


def perform(server: MetadataServer, session: int, oldest: int, request: Request) -> int:
    """The handle of a file that was made, else 0."""
    reply = server.clients.perform(session, request.number, oldest, request.verb, *request.args)
    return reply[1] if request.verb == "create" else 0


def asked(server: MetadataServer, session: int, oldest: int, request: Request) -> int:
    """0, or the errno."""
    try:
        perform(server, session, oldest, request)
    except PosixError as error:
        return error.errno
    return 0


def mounted(store: ObjectStore) -> MetadataServer:
    return MetadataServer.mount(store, clock=lambda: 1, limits=TINY, count_references=False)


class Story:
    """What the last run of the workload asked, and when the client was told: for whoever comes after the crash."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.session = 0

    def workload(self, seed: int, steps: int):  # type: ignore[no-untyped-def]
        def run(device: FaultyDevice, history: History) -> None:
            store = Store.create(device, **GEOMETRY, **SMALL)
            MetadataServer.format(store, now_ns=1, object_size=4096, log_unit=1024, log_object_size=2048, identity=bytes(16))
            server = mounted(store)
            client = Client(seed)
            self.requests.clear()
            self.session = server.clients.open(b"client", timeout_ns=LONG_NS)
            history.start(frozenset())
            for step in range(steps):
                request = client.next()
                self.requests.append(request)
                handle = perform(server, self.session, max(1, client.number - UNSURE), request)
                begun = history.begin(frozenset(client.names))
                if handle:
                    server.clients.call(self.session, "write", handle, 0, b"bytes of " + request.args[2])  # type: ignore[operator]
                if handle and self.requests[-1].number % 3:
                    server.clients.call(self.session, "release", handle)  # the others stay open, without a name one day
                if step % 7 == 0:
                    server.syncfs()
                    history.acknowledge(begun)
                elif step % 11 == 0:
                    server.tick(step)
            server.syncfs()
            history.acknowledge(begun)
            store.close()

        return run

    def reopen(self, device: Device) -> frozenset[bytes]:
        """Recover, ask again for everything the crash may have lost, check; hand out what there was before asking."""
        store = Store.open(device, **SMALL)
        server = mounted(store)
        found = names_of(server)
        try:
            kept = server.clients.resume(self.session, b"client").kept
        except NotFound:
            assert not found, "the session was durable before its first request"
        else:
            self._check_kept(server, kept)
            self._ask_again(server)
            server.clients.end(self.session)
        server.purge_all()
        server.close()
        assert list(problems(store)) == []
        assert not check_store(store, deep=True)
        left = {tab: sum(1 for _ in store.map_items(META, TABLE_OBJECTS[tab])) for tab in (Tab.STRAYS, Tab.OPEN, Tab.REQUESTS)}
        assert left == {Tab.STRAYS: 0, Tab.OPEN: 0, Tab.REQUESTS: 0}
        store.close()
        return found

    def _check_kept(self, server: MetadataServer, kept: list[int]) -> None:
        for ino in kept:
            handle = server.clients.call(self.session, "open", SUPERUSER, ino, os.O_RDONLY)
            data = server.clients.call(self.session, "read", handle, 0, 100)
            assert not data or data.startswith(b"bytes of c")
            server.clients.call(self.session, "release", handle)

    def _ask_again(self, server: MetadataServer) -> None:
        """What the client was not told is durable: some of it was done, the rest not."""
        done = max(server._sessions.find(self.session).completed, default=0)
        for request in self.requests[max(0, done - UNSURE) :]:
            # What was done and made something that has been removed since says so; what was not done must succeed.
            gone = (errno.ESTALE, errno.ENOENT) if request.number <= done else ()
            assert asked(server, self.session, max(1, done - UNSURE + 1), request) in (0, *gone), request
        assert names_of(server) == Replayed(self.requests).names


class Replayed:
    """The names there are once every request was done once."""

    def __init__(self, requests: list[Request]) -> None:
        self.names: set[bytes] = set()
        for _, verb, args in requests:
            name: Any = args[2]
            if verb in ("mkdir", "create", "symlink"):
                self.names.add(name)
            else:
                self.names.remove(name)
            if verb == "rename":
                new: Any = args[4]
                self.names.add(new)


def test_requests_asked_again_after_any_crash_are_done_once() -> None:
    story = Story()
    report = explore(
        story.workload(SEED + 3, 60), story.reopen, seed=SEED + 3, size_bytes=IMAGE, budget_states=500
    )
    print(report)
    assert report.clean, report.findings
    assert report.distinct > 250
