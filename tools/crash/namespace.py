"""The metadata server over the store as a subject of the workload `names`: the whole house, on a device or in a file."""

from __future__ import annotations

import os
import stat
from typing import Any, Final

from mdstore.device.file import FileDevice
from mdstore.device.protocol import Device
from mdstore.mds.core import Limits
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER, Credentials
from mdstore.store.store import Store
from mdstore.tools.crash.names import DIRECTORY, EXCHANGE, FILE, SYMLINK, Entry, Step, Tree, pattern
from mdstore.tools.crash.verify import Unsound, require, require_sound

SIZE: Final = 4 << 20
GEOMETRY: Final[dict[str, Any]] = {"block_size": 512, "log_bytes": 64 * 1024}
SMALL: Final[dict[str, Any]] = {"cache_bytes": 256 * 1024, "dirty_bytes": 128 * 1024}
TINY: Final = Limits(
    cache_bytes=64 * 700, dirty_entries=16, dirty_entries_low=6, log_bytes=12 << 10, file_buffer=700, data_buffer=1500
)
PAGE: Final = 10_000  # entries of a directory asked for at a time: all
OLD_BACKTRACE: Final = "S7"  # a crash may leave what the data says of a file's name as it was before a rename: only a note
NOW_NS: Final = 10**15  # the clock stands still: one seed, one run


class NamesSession:
    """A mounted name space. Names are acknowledged by every `write` (which ends with fsync) and every `sync`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._server = _mounted(store)
        self._applied = 0
        self._durable = 0

    def apply(self, step: Step) -> None:
        self._verb(step)
        self._applied += 1
        if step.verb in ("write", "sync"):
            self._durable = self._applied
        if self._applied % 11 == 0:
            self._server.tick(NOW_NS + self._applied * 2 * 10**9)

    def acknowledged(self) -> int:
        return self._durable

    def dump(self) -> Tree:
        """Check both layers and read the names; then once more, with the logs empty."""
        tree = tree_of(self._server)
        self._server.purge_all()
        wrong = [found for found in self._server.scrub().run() if found.check != OLD_BACKTRACE]
        if wrong:
            raise Unsound("; ".join(f"{found.check} inode {found.ino}: {found.message}" for found in wrong))
        self._server.close()
        require_sound(self._store)
        self._server = _mounted(self._store)
        require(tree_of(self._server) == tree, "writing back changed the names")
        return tree

    def close(self) -> None:
        try:
            self._server.close()
        finally:
            self._store.close()

    def _verb(self, step: Step) -> None:
        server, owner = self._server, Credentials(step.number, step.number)
        above, name = self._place(step.path)
        if step.verb == "create":
            server.release(server.create(owner, above, name, 0o644, os.O_RDWR | os.O_EXCL)[1])
        elif step.verb == "mkdir":
            server.mkdir(owner, above, name, 0o777)
        elif step.verb == "symlink":
            server.symlink(owner, above, name, b"to/%d" % step.number)
        elif step.verb == "link":
            above, name = self._place(step.to)
            server.link(SUPERUSER, self._ino(step.path), above, name)  # the file last: nobody holds its number meanwhile
        elif step.verb == "unlink":
            server.unlink(SUPERUSER, above, name)
        elif step.verb == "rmdir":
            server.rmdir(SUPERUSER, above, name)
        elif step.verb in ("rename", "exchange"):
            flags = EXCHANGE if step.verb == "exchange" else 0
            server.rename(SUPERUSER, above, name, *self._place(step.to), flags)
        elif step.verb == "write":
            self._write(step)
        else:
            server.syncfs()

    def _write(self, step: Step) -> None:
        handle = self._server.open(SUPERUSER, self._ino(step.path), os.O_RDWR)
        self._server.write(handle, 0, pattern(step.number, step.size))
        self._server.fsync(handle)
        self._server.release(handle)

    def _place(self, path: str) -> tuple[int, bytes]:
        above, _, name = path.rpartition("/")
        return (self._ino(above), name.encode()) if path else (ROOT_INO, b"")

    def _ino(self, path: str) -> int:
        ino = ROOT_INO
        for name in path.encode().split(b"/")[1:]:
            ino = self._server.lookup(SUPERUSER, ino, name).ino
        return ino


def _mounted(store: Store) -> MetadataServer:
    return MetadataServer.mount(store, clock=lambda: NOW_NS, limits=TINY, count_references=False)


def _formatted(store: Store) -> NamesSession:
    MetadataServer.format(
        store, now_ns=1, root_mode=0o777, object_size=4096, log_unit=1024, log_object_size=2048, identity=bytes(16)
    )
    return NamesSession(store)


class NamesOnDevice:
    """The name space on a device, everything in the calling thread: one seed, one order of writes."""

    def format(self, device: Device) -> NamesSession:
        return _formatted(Store.create(device, **GEOMETRY, **SMALL, background=False))

    def open(self, device: Device) -> NamesSession:
        return NamesSession(Store.open(device, **SMALL, background=False))


class NamesInFile:
    """The name space in an image file, with the threads it has in use."""

    def format(self, path: str) -> NamesSession:
        return _formatted(Store.create(FileDevice.create(path, SIZE, exclusive=False), **GEOMETRY, **SMALL))

    def open(self, path: str) -> NamesSession:
        return NamesSession(Store.open(FileDevice.open(path), **SMALL))


# -- reading it back ---------------------------------------------------------------------------------------------------


def tree_of(server: MetadataServer) -> dict[str, Entry]:
    """Every path, as the model has it; each file's bytes and link count are checked on the way."""
    found: dict[str, Entry] = {}
    links: dict[int, list[int]] = {}
    waiting = [(ROOT_INO, "")]
    while waiting:
        ino, path = waiting.pop()
        handle = server.opendir(SUPERUSER, ino)
        for name, attr in server.readdir(handle, None, PAGE):
            here = f"{path}/{name.decode()}"
            if stat.S_ISDIR(attr.mode):
                found[here] = (DIRECTORY, attr.uid, 0)
                waiting.append((attr.ino, here))
            else:
                found[here] = _entry_of(server, here, attr.ino, attr.mode, attr.uid, attr.size)
                links.setdefault(attr.ino, []).append(attr.nlink)
        server.releasedir(handle)
    for ino, counts in links.items():
        require(set(counts) == {len(counts)}, f"inode {ino} has {len(counts)} names and says {counts}")
    return found


def _entry_of(server: MetadataServer, path: str, ino: int, mode: int, number: int, size: int) -> Entry:
    if stat.S_ISLNK(mode):
        require(server.readlink(ino) == b"to/%d" % number, f"{path} leads to {server.readlink(ino)!r}")
        return SYMLINK, number, 0
    handle = server.open(SUPERUSER, ino, os.O_RDONLY)
    content = server.read(handle, 0, size + 1)
    server.release(handle)
    require(content == pattern(number, size), f"{path} (file {number}, {size} bytes) holds other bytes than were written")
    return FILE, number, size
