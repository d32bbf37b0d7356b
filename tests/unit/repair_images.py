"""What the tests of repair share: an image repaired, and a file system as its users see it."""

from __future__ import annotations

import os
from typing import NamedTuple

from mdstore.device.memory import MemoryDevice
from mdstore.errors import PosixError
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import SUPERUSER, SetAttr
from mdstore.store import Store
from mdstore.tools.reader.check import DEEP, Options, check_opened
from mdstore.tools.reader.problems import Problem
from mdstore.tools.repair.bench import DeviceImage, RepairOptions
from mdstore.tools.repair.planning import Plan, plan
from tests.unit.reader_images import BLOCK


class Thing(NamedTuple):
    """What a program sees under a path. `content`: a file's bytes, a symbolic link's target."""

    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    times: tuple[int, int]
    content: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]


Tree = dict[str, Thing]


def tree_of(image: bytes) -> Tree:
    """Every path of a file system."""
    store = Store.open(MemoryDevice.from_bytes(image), read_only=True, background=False)
    server = MetadataServer.mount(store, read_only=True, clock=lambda: 10**18)
    found: Tree = {}
    _walk(server, 1, "", found)
    return found


def _walk(server: MetadataServer, ino: int, path: str, found: Tree) -> None:
    attr = server.getattr(ino)
    kind = attr.mode >> 12
    content = b""
    if kind == 8:
        handle = server.open(SUPERUSER, ino, os.O_RDONLY)
        content = server.read(handle, 0, min(attr.size, 1 << 20))  # a size may be damaged: holes are legal
        server.release(handle)
    elif kind == 10:
        content = server.readlink(ino)
    names = sorted(server.listxattr(ino))
    xattrs = tuple((name, _xattr(server, ino, name)) for name in names)
    times = (attr.mtime_ns, attr.ctime_ns)
    found[path or "/"] = Thing(attr.mode, attr.uid, attr.gid, attr.nlink, attr.size, times, content, xattrs)
    if kind == 4:
        handle = server.opendir(SUPERUSER, ino)
        for name, child in server.readdir(handle, None, 10_000):
            if name not in (b".", b".."):
                _walk(server, child.ino, f"{path}/{os.fsdecode(name)}", found)
        server.releasedir(handle)


def _xattr(server: MetadataServer, ino: int, name: bytes) -> bytes:
    """Random damage gives attributes names that nobody may read."""
    try:
        return server.getxattr(SUPERUSER, ino, name)
    except PosixError as error:
        return str(error).encode()


def rich_file_system() -> bytes:
    """Owners, modes, times and attributes of every kind, on files, links and directories, empty ones among them."""
    device = MemoryDevice(4 << 20)
    store = Store.create(device, block_size=BLOCK, log_bytes=128 << 10, background=False)
    MetadataServer.format(store, now_ns=10**18, object_size=8192, log_unit=4096, log_object_size=65536)
    clock = iter(range(10**18, 10**19, 1000))
    server = MetadataServer.mount(store, clock=lambda: next(clock))
    made = {"": 1}
    for number, path in enumerate(("/a", "/a/b", "/a/b/c", "/a/empty", "/d", "/d/empty too")):
        parent, _, name = path.rpartition("/")
        made[path] = server.mkdir(SUPERUSER, made[parent], name.encode(), 0o700 | number).ino
        server.setattr(SUPERUSER, made[path], SetAttr(uid=100 + number, gid=200 + number))
        server.setxattr(SUPERUSER, made[path], b"user.directory", path.encode())
    for number in range(12):
        parent = list(made)[number % 7]
        attr, handle = server.create(SUPERUSER, made[parent], b"file%d" % number, 0o600 | number, os.O_RDWR)
        server.write(handle, 0, bytes([65 + number]) * (100 + 3000 * number))
        server.release(handle)
        server.setattr(SUPERUSER, attr.ino, SetAttr(uid=number, gid=1000 + number, mtime_ns=10**17 + number))
        server.setxattr(SUPERUSER, attr.ino, b"user.file", b"%d" % number)
        if number == 5:
            server.link(SUPERUSER, attr.ino, made["/d"], b"second name")
    server.syncfs()
    server.close()
    return device.image()


def repaired(image: bytes, *, drops_damaged: bool = False) -> tuple[Plan, bytes]:
    """The plan, and the image it leads to: both checkers clean, the file system mounts, and a second plan has nothing to do."""
    device = MemoryDevice.from_bytes(image)
    options = RepairOptions(is_deep=True, drops_damaged=drops_damaged)
    made = plan(device, options)
    assert device.image() == image, "planning writes nothing"
    assert made.left == 0, (made.failed, made.engine, [problem.as_line() for problem in made.after.problems])
    after = made.bench.shadow.read(0, len(image))
    found: list[Problem] = []
    check_opened(DeviceImage(MemoryDevice.from_bytes(after)), Options(DEEP), found.append)
    assert not [problem for problem in found if problem.severity != "note"]
    again = plan(MemoryDevice.from_bytes(after), options)
    assert again.steps == []
    assert again.left == 0
    return made, after


def lost(made: Plan) -> list[str]:
    """Everything that the plan names as lost."""
    return [line for step in made.steps for line in step.lost]
