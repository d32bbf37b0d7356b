"""One program of the soak: does random things in a directory of its own and in one that all share, and logs them.

Each operation is a line `begin [...]` before and `done` after it, in a file that no crash of the server touches. What can be
checked at once is: a read gives what was written, a file without a name keeps its bytes, a lock keeps others out.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import random
import time
from typing import Final

from tests.posix.soak_calls import perform
from tests.posix.soak_model import TREE_MAX, Model, Op, content_of

GONE: Final = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENODEV)  # what programs see when the server is killed
RACES: Final = (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ESTALE, errno.EISDIR, errno.ENOTDIR, errno.EMLINK)
VERSIONS_MAX: Final = 12  # contents of a file to remember before it is fsynced
SIZE_MAX: Final = 200_000
SHARED_NAMES: Final = 12


class Wrong(Exception):
    """Something that must not be."""


class Worker:
    """Runs until the server is gone or `stop` exists. Writes a byte to the pipe `told` for each logged operation."""

    def __init__(self, mountpoint: str, number: int, log: str, seed: int, model: Model, stop: str, told: int) -> None:
        self.random = random.Random(seed)
        self.directory = os.path.join(mountpoint, f"worker{number}")
        self.shared = os.path.join(mountpoint, "shared")
        self.number = number
        self.model = model
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
        self._stop = stop
        self._told = told
        self._unnamed: list[tuple[int, bytes]] = []
        os.umask(0)
        self._made = 0

    def run(self) -> None:
        """Work. Wrong, or an OSError that no killed server explains, comes through."""
        verbs = [
            *[self.create] * 4, *[self.write] * 7, *[self.truncate] * 2, *[self.rename] * 3, *[self.link] * 2, *[self.unlink] * 3,
            self.mkdir, self.rmdir, self.symlink, self.chmod, *[self.xattr] * 2, *[self.fsync] * 2, *[self.read] * 3,
            self.unnamed, *[self.race] * 3, self.lock,
        ]  # fmt: skip
        while not os.path.exists(self._stop):
            self.random.choice(verbs)()

    def do(self, op: Op) -> None:
        """Log, do, apply to the model, log."""
        os.write(self._log, b"begin " + json.dumps(op).encode() + b"\n")
        perform(self.directory, op)
        self.model.apply(op)
        os.write(self._log, b"done\n")
        os.write(self._told, b".")

    def path(self, path: str) -> str:
        return os.path.join(self.directory, path) if path else self.directory

    # -- choosing ------------------------------------------------------------------------------------------------------

    def some(self, *kinds: str) -> str | None:
        paths = sorted(path for path, node in self.model.names.items() if node.kind in kinds)
        return self.random.choice(paths) if paths else None

    def new(self) -> str:
        """A free name in some directory."""
        self._made += 1
        above = self.random.choice(["", *sorted(path for path, node in self.model.names.items() if node.kind == "d")])
        name = f"n{self.number}.{self._made}.{self.random.randrange(1 << 30):x}" + "é" * self.random.randrange(3)
        return f"{above}/{name}" if above else name

    def create(self) -> None:
        if len(self.model.names) < TREE_MAX:
            self.do(["create", self.new(), self.random.choice([0o644, 0o600, 0o755])])
        elif (path := self.some("f", "l")) is not None:
            self.do(["unlink", path])

    def write(self) -> None:
        path = self.some("f")
        if path is None:
            return
        size = len(self.model.names[path].versions[-1])
        offset = self.random.choice([0, size, self.random.randrange(size + 1), min(size + 5000, SIZE_MAX)])
        length = self.random.choice([1, 100, 4096, self.random.randrange(1, 50_000)])
        if offset + length <= SIZE_MAX + 50_000:
            self.do(["write", path, offset, length, self.random.randrange(1 << 30)])
        if len(self.model.names[path].versions) > VERSIONS_MAX:
            self.do(["fsync", path])

    def truncate(self) -> None:
        path = self.some("f")
        if path is not None:
            size = len(self.model.names[path].versions[-1])
            self.do(["truncate", path, self.random.choice([0, size // 2, size + 3000])])

    def rename(self) -> None:
        old = self.some("f", "l", "d")
        if old is None:
            return
        new = self.new()
        victim = self.some("f")
        if self.model.names[old].kind == "f" and victim is not None and self.random.random() < 0.4:
            if self.model.names[victim] is self.model.names[old]:
                return  # two names of one inode: nothing would happen
            new = victim
        if new != old and not new.startswith(old + "/"):
            self.do(["rename", old, new])

    def link(self) -> None:
        path = self.some("f")
        if path is not None and len(self.model.names) < TREE_MAX:
            self.do(["link", path, self.new()])

    def unlink(self) -> None:
        path = self.some("f", "l")
        if path is not None:
            self.do(["unlink", path])

    def mkdir(self) -> None:
        if len(self.model.names) < TREE_MAX:
            self.do(["mkdir", self.new(), 0o755])

    def rmdir(self) -> None:
        path = self.some("d")
        if path is not None and not any(other.startswith(path + "/") for other in self.model.names):
            self.do(["rmdir", path])

    def symlink(self) -> None:
        if len(self.model.names) < TREE_MAX:
            self.do(["symlink", self.new(), "to/" + "x" * self.random.randrange(1, 300)])

    def chmod(self) -> None:
        path = self.some("f", "d")
        if path is not None:
            self.do(["chmod", path, self.random.choice([0o700, 0o644, 0o755, 0o640])])

    def xattr(self) -> None:
        path = self.some("f", "d")
        if path is None:
            return
        name = f"user.x{self.random.randrange(3)}"
        if name in self.model.names[path].xattrs and self.random.random() < 0.4:
            self.do(["removexattr", path, name])
        else:
            self.do(["setxattr", path, name, "v" * self.random.randrange(500)])

    def fsync(self) -> None:
        path = self.some("f", "d")
        self.do(["fsync", path or ""])

    # -- checked at once -----------------------------------------------------------------------------------------------

    def read(self) -> None:
        path = self.some("f")
        if path is not None:
            with open(self.path(path), "rb") as file:
                if file.read() != self.model.names[path].versions[-1]:
                    raise Wrong(f"{path} does not read as it was written")

    def unnamed(self) -> None:
        """A file without a name: it lives as long as it is open."""
        if len(self._unnamed) < 3:
            path, length, seed = self.new(), self.random.randrange(1, 30_000), self.random.randrange(1 << 30)
            content = content_of(seed, length)
            self.do(["create", path, 0o600])
            self.do(["write", path, 0, length, seed])
            fd = os.open(self.path(path), os.O_RDWR)
            self.do(["unlink", path])
            self._unnamed.append((fd, content))
            return
        fd, content = self._unnamed.pop(0)
        found = b""
        while piece := os.pread(fd, len(content) + 1, len(found)):  # short where the server is killed in the middle
            found += piece
        if found != content:
            raise Wrong(f"a file without a name has {len(found)} bytes, not the {len(content)} that were written")
        os.close(fd)

    def race(self) -> None:
        """Anything, in a directory where all do: only the server's own state is checked, by fsck."""
        one, two = (os.path.join(self.shared, f"s{self.random.randrange(SHARED_NAMES)}") for _ in range(2))
        try:
            choice = self.random.randrange(7)
            if choice == 0:
                os.close(os.open(one, os.O_CREAT | os.O_WRONLY, 0o644))
            elif choice == 1:
                os.rename(one, two)
            elif choice == 2:
                os.link(one, two)
            elif choice == 3:
                os.unlink(one)
            elif choice == 4:
                os.truncate(one, self.random.randrange(9000))
            elif choice == 5:
                os.rename(one, os.path.join(self.shared, "below", os.path.basename(two)))
            else:
                os.unlink(os.path.join(self.shared, "below", os.path.basename(two)))
        except OSError as error:
            if error.errno not in RACES:
                raise

    def lock(self) -> None:
        """Nobody else writes while one holds the lock."""
        fd = os.open(os.path.join(self.shared, "lock"), os.O_RDWR)
        try:
            call = self.random.choice([fcntl.flock, fcntl.lockf])
            mine = b"%03d %-8s %10d" % (self.number, call.__name__.encode(), self.random.randrange(1 << 30))
            place = 0 if call is fcntl.flock else 100  # the two kinds do not know of each other
            call(fd, fcntl.LOCK_EX)
            os.pwrite(fd, mine, place)
            time.sleep(self.random.random() / 1000)
            if os.pread(fd, len(mine), place) != mine:
                os.fstatvfs(fd)  # an error where the server was killed and the kernel gave what it had
                raise Wrong(f"somebody else wrote under a lock of {call.__name__}")
            call(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)
