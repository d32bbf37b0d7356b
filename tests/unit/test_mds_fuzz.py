"""Random and extreme arguments at every verb of the server, and raw requests with extreme numbers at its FUSE front.

Whatever comes in: errors are typed, the server goes on, the name space is sound, and what others wrote is durable. One seed
drives a run; it is printed first.
"""

from __future__ import annotations

import inspect
import os
import random
import socket
from typing import Any, Final

import pytest

from mdstore.client.fuse_init import SessionOptions
from mdstore.client.fuse_operation import SLOW
from mdstore.client.fuse_protocol import _BODIES, Layout, Opcode, request_body_minimum
from mdstore.client.fuse_session import FuseSession
from mdstore.engines.mem import MemStore
from mdstore.errors import MdstoreError
from mdstore.mds.boundary import changing, checked
from mdstore.mds.locks import Lock
from mdstore.mds.server import MetadataServer
from mdstore.mds.snapdir import SnapshotVfs
from mdstore.mds.vfs import NOW, ROOT_INO, SUPERUSER, Credentials, SetAttr, Vfs
from tests.model.mds_check import problems

STEPS: Final = 1500
EDGES: Final = [0, 1, 2, 7, 8, 15, 16, 31, 32, 44, 53, 62, 63, 64, 70, 200]
NAMES: Final = [b"a", b"b", b"c", b"", b".", b"..", b"x" * 255, b"x" * 256, b"a/b", b"a\0b", b".snap", b"\xff", b"user.a",
                b"user.", b"trusted.t", b"system.posix_acl_access",
                b"mdstore.quota.max_bytes", b"mdstore.quota.max_files",
                b"mdstore.damage.forget", b"mdstore.scrub", b"mdstore.rbytes"]  # fmt: skip
VALUES: Final = [b"", b"x", b"9" * 18, b"9" * 19, b"0", b"-1", b"99999999999999999999/x", b"1/x", b"start", b"stop", b"\2\0\0\0",
                 b"\2\0\0\0" + b"\xff" * 40, b"v" * 5000, b"v" * 70000]  # fmt: skip
CHANGING: Final = ("create", "mkdir", "mknod", "symlink", "link", "unlink", "rmdir", "rename", "setattr", "setxattr",
                   "removexattr", "write", "fallocate", "copy_file_range", "open")  # fmt: skip
READING: Final = ("lookup", "getattr", "access", "readlink", "getxattr", "listxattr", "forget", "read", "read_cached", "fsync",
                  "release", "lseek", "opendir", "readdir", "releasedir", "parent_of", "statfs", "syncfs", "test_lock",
                  "take_lock", "drop_lock")  # fmt: skip
ENOUGH_ROOM: Final = 1 << 30


class Arguments:
    """Makes arguments for verbs by the names and types of their parameters."""

    def __init__(self, rng: random.Random, vfs: Any) -> None:
        self.rng = rng
        self.vfs = vfs
        self.inos = [ROOT_INO]
        self.handles = [1]

    def number(self) -> int:
        rng = self.rng
        return rng.choice([1, -1]) * (1 << rng.choice(EDGES)) + rng.choice([-1, 0, 0, 1])

    def of(self, name: str, kind: str) -> Any:
        rng = self.rng
        plain = rng.random() < 0.7
        if name in ("ino", "parent", "new_parent"):
            return rng.choice(self.inos) if plain else self.number()
        if name == "handle" or (name in ("source", "target") and kind == "int"):
            return rng.choice(self.handles) if plain else self.number()
        if name == "cred":
            umask = rng.choice([0, self.number()])
            return SUPERUSER if plain else Credentials(self.number(), self.number(), (self.number(),), 0, umask)
        if name == "change":
            change = {field: rng.choice([None, None, self.number(), 0o644, NOW]) for field in SetAttr._fields}
            return SetAttr(**{**change, "handle": rng.choice([None, None, *self.handles])})
        if name == "mode":
            return rng.choice([0o644, 0o755, 0o20644, 0o60644, 0o10644, 1, 2, 3, 16, self.number()])
        if name == "limit":
            return rng.choice([0, 1, 3, 100, -1, 1 << 40])
        if kind in ("bytes", "bytes | memoryview") and name in ("value", "data", "target"):
            data = rng.choice(VALUES)
            return memoryview(data) if "memoryview" in kind and rng.random() < 0.3 else data
        if kind == "bytes":
            return rng.choice(NAMES)
        if kind == "bytes | None":
            return rng.choice([None, *NAMES])
        if kind == "Lock":
            return Lock(self.number(), self.number(), self.number(), exclusive=rng.random() < 0.5)
        if kind == "bool":
            return rng.random() < 0.5
        assert kind == "int", (name, kind)
        return rng.choice([0, 1, 2, 64, os.O_RDWR, os.O_RDWR | os.O_TRUNC]) if rng.random() < 0.5 else self.number()

    def for_verb(self, verb: str) -> tuple[list[Any], dict[str, Any]]:
        given, named = [], {}
        for parameter in inspect.signature(getattr(self.vfs, verb)).parameters.values():
            value = self.of(parameter.name, parameter.annotation)
            if parameter.kind is parameter.KEYWORD_ONLY:
                named[parameter.name] = value
            elif parameter.default is parameter.empty or self.rng.random() < 0.7:
                given.append(value)
            else:
                break
        return given, named

    def learn(self, verb: str, reply: Any) -> None:
        """Numbers that were handed out are used later."""
        if verb in ("lookup", "mkdir", "mknod", "symlink", "link"):
            self.inos.append(reply.ino)
        elif verb == "create":
            self.inos.append(reply[0].ino)
            self.handles.append(reply[1])
        elif verb in ("open", "opendir"):
            self.handles.append(reply)


def formatted() -> MemStore:
    store = MemStore(delayed=True)
    MetadataServer.format(store, now_ns=1, log_unit=4096, log_object_size=8192)
    return store


def witness(server: MetadataServer, number: int) -> tuple[bytes, bytes]:
    """Something that somebody else makes meanwhile, in a directory that the fuzz does not know."""
    name, content = b"w%d" % number, b"content %d" % number
    home = server.lookup(SUPERUSER, ROOT_INO, b"witnesses").ino
    _, handle = server.create(SUPERUSER, home, name, 0o644, os.O_RDWR)
    server.write(handle, 0, content)
    server.release(handle)
    return name, content


def assert_sound(store: MemStore, server: MetadataServer, made: dict[bytes, bytes]) -> None:
    """The server is well; after a crash right behind a sync the witnesses are there and nothing is wrong."""
    assert server.failure is None
    server.assert_state()
    server.syncfs()
    crashed = store.crash()
    again = MetadataServer.mount(crashed)
    home = again.lookup(SUPERUSER, ROOT_INO, b"witnesses").ino
    for name, content in made.items():
        handle = again.open(SUPERUSER, again.lookup(SUPERUSER, home, name).ino, os.O_RDONLY)
        assert again.read(handle, 0, 100) == content
        again.release(handle)
    again.purge_all()
    again.close()
    assert again.failure is None
    assert list(problems(crashed)) == []


@pytest.mark.parametrize("front", ["server", "snapshots"])
@pytest.mark.parametrize("seed", range(4))
def test_any_argument_at_any_verb(seed: int, front: str) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    store = formatted()
    server = MetadataServer.mount(store)
    server.mkdir(SUPERUSER, ROOT_INO, b"witnesses", 0o700)
    vfs: Any = server if front == "server" else SnapshotVfs(server)
    arguments, made = Arguments(rng, vfs), dict[bytes, bytes]()
    done = set()
    for step in range(STEPS):
        verb = rng.choice(CHANGING if rng.random() < 0.6 else READING)
        if front == "snapshots" and verb in ("read_cached",):
            continue
        given, named = arguments.for_verb(verb)
        if any(isinstance(it, int) and ENOUGH_ROOM < it < 1 << 54 for it in given) and verb in ("read", "copy_file_range"):
            continue  # a hole of that size would be read whole
        try:
            arguments.learn(verb, getattr(vfs, verb)(*given, **named))
            done.add(verb)
        except MdstoreError:
            assert server.failure is None, (seed, step, verb, given, named)
        except Exception as error:
            raise AssertionError(f"seed {seed}, step {step}: {verb} {given} {named}") from error
        if step % 50 == 0:
            name, content = witness(server, step)
            made[name] = content
            server.tick(arguments.number())
            server.background_work()
    assert len(done) > 20, "most verbs were not only refused"
    assert_sound(store, server, made)


@pytest.mark.parametrize("seed", range(3))
def test_any_type_at_a_changing_verb_is_refused_before_anything_changes(seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)
    store = formatted()
    server = MetadataServer.mount(store)
    server.mkdir(SUPERUSER, ROOT_INO, b"witnesses", 0o700)
    arguments = Arguments(rng, server)
    wrong = [None, "text", 1.5, [], {}, (0, 0), object(), bytearray(b"a"), memoryview(b"abcd").cast("I"), SUPERUSER, SetAttr(),
             SetAttr(mode="text"), Credentials(None, 0)]  # type: ignore[arg-type] # fmt: skip
    for step in range(STEPS):
        verb = rng.choice(CHANGING)
        given, named = arguments.for_verb(verb)
        given[rng.randrange(len(given))] = rng.choice(wrong)
        try:
            arguments.learn(verb, getattr(server, verb)(*given, **named))
        except (MdstoreError, TypeError):
            assert server.failure is None, (seed, step, verb, given, named)
        except Exception as error:
            raise AssertionError(f"seed {seed}, step {step}: {verb} {given} {named}") from error
    assert_sound(store, server, dict([witness(server, 1)]))


class Requests:
    """Raw bodies of FUSE requests: every field of the fixed structure at random, extremes first, then names."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.layouts: dict[int, Layout] = {opcode: layout for opcode, layout, _ in _BODIES}
        self.minimum = request_body_minimum()
        self.inos, self.handles = [ROOT_INO], [1]

    def field(self, name: str, code: str) -> Any:
        rng = self.rng
        if name.startswith("fh") and rng.random() < 0.8:
            return rng.choice(self.handles)
        if name in ("oldnodeid", "newdir", "nodeid_out") and rng.random() < 0.8:
            return rng.choice(self.inos)
        if name == "valid":
            return rng.getrandbits(12)
        if name == "size" and code == "I":
            return rng.choice([0, 1, 4, 4096])
        bits = {"I": 32, "i": 32, "Q": 64, "q": 64}[code]
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if code in "qi" else (0, (1 << bits) - 1)
        return min(max(rng.choice([low, high, high - 1, 0, 1, 2, 0o644, 0o20644, rng.getrandbits(bits)]), low), high)

    def body(self, opcode: int) -> bytes:
        layout = self.layouts.get(opcode)
        front = b""
        if layout is not None:
            codes = [(name, code) for name, code in layout.fields if not code.endswith("x")]
            front = layout.pack(*[self.field(name, code) for name, code in codes])
        return front + b"".join(self.rng.choice(NAMES[:9]) + b"\0" for _ in range(2)) + self.rng.choice([b"", b"data" * 1100])


@pytest.mark.parametrize("seed", range(4))
def test_any_number_in_any_request(seed: int) -> None:
    print("seed", seed)
    rng = random.Random(100 + seed)
    store = formatted()
    server = MetadataServer.mount(store)
    server.mkdir(SUPERUSER, ROOT_INO, b"witnesses", 0o700)
    vfs: Vfs = SnapshotVfs(server)
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    session = FuseSession(device.detach(), vfs, SessionOptions(acls=True, writeback=bool(seed % 2)))
    table = session._operations()
    requests, made, done = Requests(rng), dict[bytes, bytes](), set[Opcode]()
    opcodes = [opcode for opcode in table if opcode not in (Opcode.BATCH_FORGET, Opcode.INIT)]
    for step in range(2 * STEPS):
        opcode = rng.choice(opcodes)
        node, body = rng.choice([*requests.inos, 0, (1 << 64) - 1]), memoryview(requests.body(opcode))
        uid, gid = rng.choices([0, 0, 0, 1000, (1 << 32) - 2, (1 << 32) - 1], k=2)
        cred = Credentials(uid, gid)
        if len(body) < requests.minimum[opcode]:
            continue  # a session refuses it unread
        if opcode is Opcode.COPY_FILE_RANGE:
            body = memoryview(body[:40].tobytes() + (4096).to_bytes(8, "little") + body[48:].tobytes())
        try:
            reply = table[opcode].function(1, node, cred, body)
            if reply is SLOW:
                worker = table[opcode].worker
                assert worker is not None
                reply = worker(1, node, cred, body)
            assert reply is None or isinstance(reply, bytes | int)
            if isinstance(reply, bytes):
                done.add(opcode)
                _learn(requests, opcode, reply)
        except MdstoreError:
            assert server.failure is None, (seed, step, opcode, bytes(body))
        except Exception as error:
            raise AssertionError(f"seed {seed}, step {step}: {opcode.name} of {node} by {cred}: {bytes(body[:90])!r}") from error
        if step % 100 == 0:
            name, content = witness(server, step)
            made[name] = content
            server.tick(1 << 62)
    session.close()
    kernel.close()
    assert len(done) > 14, "most requests were not only refused"
    assert_sound(store, server, made)


def _learn(requests: Requests, opcode: Opcode, reply: bytes) -> None:
    number = int.from_bytes(reply[:8], "little")
    if opcode in (Opcode.MKDIR, Opcode.MKNOD, Opcode.SYMLINK, Opcode.CREATE, Opcode.LOOKUP, Opcode.LINK) and number:
        requests.inos.append(number)
    if opcode in (Opcode.OPEN, Opcode.OPENDIR):
        requests.handles.append(number)
    if opcode is Opcode.CREATE:
        requests.handles.append(int.from_bytes(reply[128:136], "little"))


def test_every_changing_verb_is_behind_the_border() -> None:
    behind = {changing.__code__, checked.__code__}
    for verb in CHANGING:
        wrapped = getattr(MetadataServer, verb)
        assert wrapped.__wrapped__ is not None, verb
        assert wrapped.__code__ in {const for code in behind for const in code.co_consts if inspect.iscode(const)}, verb
