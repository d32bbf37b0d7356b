"""Random operations on the metadata server and on the in-memory name space, side by side: same results, same errno; with
write-back, eviction and crashes among the operations. Tiny geometry, so that every path is taken."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mdstore.engines.mem import MemStore
from mdstore.errors import PosixError
from mdstore.mds.core import Limits
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import NOW, ROOT_INO, SUPERUSER, Attr, Credentials, SetAttr, Vfs
from tests.model.mds_check import problems
from tests.model.memory_vfs import MemoryVfs

TINY = Limits(
    cache_bytes=64 * 700, dirty_entries=12, dirty_entries_low=4, log_bytes=16 << 10, file_buffer=300, data_buffer=500
)
OBJECT_SIZE = 4096
PEOPLE = [SUPERUSER, Credentials(1000, 100, (200,)), Credentials(1001, 101, (100,)), Credentials(1002, 200)]

names = st.sampled_from([b"a", b"b", b"c", b"d", b"\xff", b"x" * 255])
odd_names = st.sampled_from([b"a", b"b", b"", b"y" * 256, b"p/q", b"z\0"])
people = st.sampled_from(PEOPLE)
indexes = st.integers(0, 1 << 16)
modes = st.sampled_from([0o755, 0o700, 0o777, 0o1777, 0o2775, 0o644, 0o4755, 0o000, 0o060])
offsets = st.sampled_from([0, 1, 10, 299, 300, 4000, 4095, 4096, 5000, 9000])
contents = st.binary(min_size=1, max_size=40) | st.sampled_from([b"q" * 500, b"w" * 5000])
open_flags = st.sampled_from(
    [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_EXCL]
)


class NameSpaces(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000_000
        self.store = MemStore(delayed=True)
        MetadataServer.format(
            self.store, now_ns=self.now, root_mode=0o777, object_size=OBJECT_SIZE, log_unit=1024, log_object_size=4096
        )
        self.model = MemoryVfs(clock=lambda: self.now)
        self.model.setattr(SUPERUSER, ROOT_INO, SetAttr(mode=0o777))
        self.server = self.mount()
        self.pairs: list[tuple[int, int]] = [(ROOT_INO, ROOT_INO)]  # model's number, server's number
        self.lookups: dict[int, int] = {}  # by the model's number
        self.files: list[tuple[int, int]] = []
        self.directories: list[tuple[int, int]] = []

    def mount(self) -> MetadataServer:
        return MetadataServer.mount(self.store, clock=lambda: self.now, limits=TINY)

    # -- doing the same twice ------------------------------------------------------------------------------------------

    def both(self, call: Callable[[Vfs, int], Any]) -> tuple[Any, Any] | None:
        """The two results; None when both failed alike."""
        self.now += 1000
        results: list[Any] = []
        errors: list[int | None] = []
        for side, vfs in enumerate(self.sides()):
            try:
                results.append(call(vfs, side))
                errors.append(None)
            except PosixError as error:
                results.append(None)
                errors.append(error.errno)
        assert errors[0] == errors[1], f"model {_name(errors[0])}, server {_name(errors[1])}"
        return None if errors[0] is not None else (results[0], results[1])

    def same(self, attrs: tuple[Attr, Attr]) -> None:
        model, server = attrs
        assert model._replace(ino=0, blocks=0, generation=0) == server._replace(ino=0, blocks=0, generation=0)

    def met(self, attrs: tuple[Attr, Attr] | None) -> None:
        """Both handed out an inode: the same one, with one more reference."""
        if attrs is None:
            return
        self.same(attrs)
        pair = (attrs[0].ino, attrs[1].ino)
        for known in self.pairs:
            assert (known[0] == pair[0]) == (known[1] == pair[1]), f"{known} and {pair}"
        if pair not in self.pairs:
            self.pairs.append(pair)
        self.lookups[pair[0]] = self.lookups.get(pair[0], 0) + 1

    def ino(self, index: int) -> tuple[int, int]:
        return self.pairs[index % len(self.pairs)]

    # -- names ---------------------------------------------------------------------------------------------------------

    @rule(cred=people, where=indexes, name=names | odd_names)
    def lookup(self, cred: Credentials, where: int, name: bytes) -> None:
        parent = self.ino(where)
        self.met(self.both(lambda vfs, side: vfs.lookup(cred, parent[side], name)))

    @rule(cred=people, where=indexes, name=names | odd_names, mode=modes, flags=open_flags)
    def create(self, cred: Credentials, where: int, name: bytes, mode: int, flags: int) -> None:
        parent = self.ino(where)
        if any(e.name == name and stat.S_ISDIR(e.attr.mode) for e in self.listed(parent[0])):
            return  # open(2) with O_CREAT on a directory: the kernel's affair
        made = self.both(lambda vfs, side: vfs.create(cred, parent[side], name, mode, flags))
        if made:
            self.files.append((made[0][1], made[1][1]))
            self.met((made[0][0], made[1][0]))

    @rule(cred=people, where=indexes, name=names | odd_names, mode=modes)
    def mkdir(self, cred: Credentials, where: int, name: bytes, mode: int) -> None:
        parent = self.ino(where)
        self.met(self.both(lambda vfs, side: vfs.mkdir(cred, parent[side], name, mode)))

    @rule(cred=people, where=indexes, name=names, kind=st.sampled_from([0, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFBLK]))
    def mknod(self, cred: Credentials, where: int, name: bytes, kind: int) -> None:
        parent = self.ino(where)
        self.met(self.both(lambda vfs, side: vfs.mknod(cred, parent[side], name, kind | 0o640, 7)))

    @rule(cred=people, where=indexes, name=names, text=st.sampled_from([b"", b"a", b"t" * 4095, b"t" * 4096]))
    def symlink(self, cred: Credentials, where: int, name: bytes, text: bytes) -> None:
        parent = self.ino(where)
        self.met(self.both(lambda vfs, side: vfs.symlink(cred, parent[side], name, text)))

    @rule(cred=people, what=indexes, where=indexes, name=names)
    def link(self, cred: Credentials, what: int, where: int, name: bytes) -> None:
        ino, parent = self.ino(what), self.ino(where)
        self.met(self.both(lambda vfs, side: vfs.link(cred, ino[side], parent[side], name)))

    @rule(cred=people, where=indexes, name=names | odd_names)
    def unlink(self, cred: Credentials, where: int, name: bytes) -> None:
        parent = self.ino(where)
        self.both(lambda vfs, side: vfs.unlink(cred, parent[side], name))

    @rule(cred=people, where=indexes, name=names)
    def rmdir(self, cred: Credentials, where: int, name: bytes) -> None:
        parent = self.ino(where)
        self.both(lambda vfs, side: vfs.rmdir(cred, parent[side], name))

    @rule(
        cred=people,
        old=indexes,
        name=names,
        new=indexes,
        new_name=names | odd_names,
        flags=st.sampled_from([0, 0, 1, 2, 4]),
    )
    def rename(self, cred: Credentials, old: int, name: bytes, new: int, new_name: bytes, flags: int) -> None:
        source, target = self.ino(old), self.ino(new)
        self.both(lambda vfs, side: vfs.rename(cred, source[side], name, target[side], new_name, flags))

    # -- inodes --------------------------------------------------------------------------------------------------------

    @rule(what=indexes)
    def getattr(self, what: int) -> None:
        ino = self.ino(what)
        found = self.both(lambda vfs, side: vfs.getattr(ino[side]))
        if found:
            self.same(found)

    @rule(
        cred=people, what=indexes, mode=st.none() | modes, uid=st.none() | st.sampled_from([0, 1000, 1001]),
        gid=st.none() | st.sampled_from([0, 100, 200]), size=st.none() | offsets,
        atime=st.sampled_from([None, None, NOW, 77]), mtime=st.sampled_from([None, None, NOW, -5]),
    )  # fmt: skip
    def setattr(
        self, cred: Credentials, what: int, mode: int | None, uid: int | None, gid: int | None, size: int | None,
        atime: int | None, mtime: int | None,
    ) -> None:  # fmt: skip
        ino = self.ino(what)
        change = SetAttr(mode, uid, gid, size, atime, mtime)
        if change == SetAttr():
            return
        found = self.both(lambda vfs, side: vfs.setattr(cred, ino[side], change))
        if found:
            self.same(found)

    @rule(cred=people, what=indexes, mask=st.integers(0, 7))
    def access(self, cred: Credentials, what: int, mask: int) -> None:
        ino = self.ino(what)
        self.both(lambda vfs, side: vfs.access(cred, ino[side], mask))

    @rule(what=indexes)
    def readlink(self, what: int) -> None:
        ino = self.ino(what)
        found = self.both(lambda vfs, side: vfs.readlink(ino[side]))
        assert found is None or found[0] == found[1]

    @rule(
        cred=people, what=indexes,
        name=st.sampled_from([b"user.a", b"user.b", b"trusted.t", b"other.x", b"", b"user.", b"trusted."]),
        value=st.sampled_from([b"", b"v", b"V" * 300]), flags=st.sampled_from([0, 1, 2]), verb=st.integers(0, 2),
    )  # fmt: skip
    def xattr(self, cred: Credentials, what: int, name: bytes, value: bytes, flags: int, verb: int) -> None:
        ino = self.ino(what)
        if verb == 0:
            self.both(lambda vfs, side: vfs.setxattr(cred, ino[side], name, value, flags))
        elif verb == 1:
            self.both(lambda vfs, side: vfs.removexattr(cred, ino[side], name))
        else:
            found = self.both(lambda vfs, side: vfs.getxattr(cred, ino[side], name))
            assert found is None or found[0] == found[1]
        found = self.both(lambda vfs, side: vfs.listxattr(ino[side]))
        assert found is None or found[0] == found[1]

    @precondition(lambda self: len(self.pairs) > 1)
    @rule(what=indexes)
    def forget(self, what: int) -> None:
        pair = self.pairs[1 + what % (len(self.pairs) - 1)]
        count = self.lookups.pop(pair[0], 0)
        self.model.forget(pair[0], count)
        self.server.forget(pair[1], count)
        self.pairs.remove(pair)

    # -- files ---------------------------------------------------------------------------------------------------------

    @rule(cred=people, what=indexes, flags=open_flags)
    def open(self, cred: Credentials, what: int, flags: int) -> None:
        ino = self.ino(what)
        opened = self.both(lambda vfs, side: vfs.open(cred, ino[side], flags))
        if opened:
            self.files.append(opened)

    @precondition(lambda self: self.files)
    @rule(which=indexes, offset=offsets, data=contents)
    def write(self, which: int, offset: int, data: bytes) -> None:
        handle = self.files[which % len(self.files)]
        found = self.both(lambda vfs, side: vfs.write(handle[side], offset, data))
        assert found is None or found[0] == found[1]

    @precondition(lambda self: self.files)
    @rule(which=indexes, offset=offsets, length=st.sampled_from([0, 1, 100, 5000, 20000]))
    def read(self, which: int, offset: int, length: int) -> None:
        handle = self.files[which % len(self.files)]
        found = self.both(lambda vfs, side: vfs.read(handle[side], offset, length))
        assert found is None or found[0] == found[1]

    @precondition(lambda self: self.files)
    @rule(
        which=indexes, mode=st.sampled_from([0, 1, 3, 16, 17, 64]), offset=offsets,
        length=st.sampled_from([0, 1, 700, 4096, 9000]),
    )  # fmt: skip
    def fallocate(self, which: int, mode: int, offset: int, length: int) -> None:
        handle = self.files[which % len(self.files)]
        self.both(lambda vfs, side: vfs.fallocate(handle[side], mode, offset, length))

    @precondition(lambda self: self.files)
    @rule(origin=indexes, copy=indexes, start=offsets, to=offsets, length=st.sampled_from([1, 500, 5000]))
    def copy_file_range(self, origin: int, copy: int, start: int, to: int, length: int) -> None:
        first, second = self.files[origin % len(self.files)], self.files[copy % len(self.files)]
        found = self.both(lambda vfs, side: vfs.copy_file_range(first[side], start, second[side], to, length))
        assert found is None or found[0] == found[1]

    @precondition(lambda self: self.files)
    @rule(which=indexes)
    def fsync(self, which: int) -> None:
        handle = self.files[which % len(self.files)]
        self.both(lambda vfs, side: vfs.fsync(handle[side]))

    @precondition(lambda self: self.files)
    @rule(which=indexes)
    def release(self, which: int) -> None:
        handle = self.files.pop(which % len(self.files))
        self.both(lambda vfs, side: vfs.release(handle[side]))

    # -- directories ---------------------------------------------------------------------------------------------------

    @rule(cred=people, what=indexes)
    def opendir(self, cred: Credentials, what: int) -> None:
        ino = self.ino(what)
        opened = self.both(lambda vfs, side: vfs.opendir(cred, ino[side]))
        if opened:
            self.directories.append(opened)

    @precondition(lambda self: self.directories)
    @rule(which=indexes, after=st.none() | names, limit=st.integers(1, 4))
    def readdir(self, which: int, after: bytes | None, limit: int) -> None:
        handle = self.directories[which % len(self.directories)]
        found = self.both(lambda vfs, side: vfs.readdir(handle[side], after, limit))
        assert found is not None
        assert [e.name for e in found[0]] == [e.name for e in found[1]]
        for model, server in zip(*found):
            self.same((model.attr, server.attr))

    @precondition(lambda self: self.directories)
    @rule(which=indexes)
    def releasedir(self, which: int) -> None:
        handle = self.directories.pop(which % len(self.directories))
        self.both(lambda vfs, side: vfs.releasedir(handle[side]))

    # -- what happens beneath ------------------------------------------------------------------------------------------

    @rule()
    def write_back(self) -> None:
        self.server.write_back()
        assert list(problems(self.store)) == []

    @rule()
    def tick(self) -> None:
        self.now += 2_000_000_000
        self.server.tick(self.now)

    @rule()
    def purge(self) -> None:
        self.server.purge_all()

    @rule()
    def crash_after_sync(self) -> None:
        self.server.syncfs()
        self.lose_everyone()
        self.store = self.store.crash()
        self.server = self.mount()
        self.compare_trees()

    @rule()
    def restart(self) -> None:
        self.server.close()
        self.lose_everyone()
        self.server = self.mount()
        assert self.server.recovery.events == 0
        self.compare_trees()

    def lose_everyone(self) -> None:
        """The server's process is gone: nobody has anything open, nobody remembers a number."""
        for handle in self.files:
            self.model.release(handle[0])
        for handle in self.directories:
            self.model.releasedir(handle[0])
        for ino, count in self.lookups.items():
            self.model.forget(ino, count)
        self.files, self.directories, self.lookups = [], [], {}
        self.pairs = [(ROOT_INO, ROOT_INO)]

    def sides(self) -> tuple[Vfs, Vfs]:
        return self.model, self.server

    # -- comparing -----------------------------------------------------------------------------------------------------

    def listed(self, model_ino: int) -> list[Any]:
        try:
            handle = self.model.opendir(SUPERUSER, model_ino)
        except PosixError:
            return []
        try:
            return self.model.readdir(handle, None, 1000)
        finally:
            self.model.releasedir(handle)

    def compare_trees(self) -> None:
        work = [(ROOT_INO, ROOT_INO)]
        while work:
            pair = work.pop()
            lists = []
            for vfs, ino in zip(self.sides(), pair):
                handle = vfs.opendir(SUPERUSER, ino)
                lists.append(vfs.readdir(handle, None, 1000))
                vfs.releasedir(handle)
            assert [e.name for e in lists[0]] == [e.name for e in lists[1]]
            for model, server in zip(*lists):
                self.same((model.attr, server.attr))
                self.compare_content((model.attr.ino, server.attr.ino), model.attr.mode)
                if stat.S_ISDIR(model.attr.mode):
                    work.append((model.attr.ino, server.attr.ino))

    def compare_content(self, pair: tuple[int, int], mode: int) -> None:
        assert self.model.listxattr(pair[0]) == self.server.listxattr(pair[1])
        if stat.S_ISLNK(mode):
            assert self.model.readlink(pair[0]) == self.server.readlink(pair[1])
        if not stat.S_ISREG(mode):
            return
        handles = [vfs.open(SUPERUSER, ino, os.O_RDONLY) for vfs, ino in zip(self.sides(), pair)]
        contents = [vfs.read(h, 0, 1 << 20) for vfs, h in zip(self.sides(), handles)]
        for vfs, handle in zip(self.sides(), handles):
            vfs.release(handle)
        assert contents[0] == contents[1]

    @invariant()
    def state_holds(self) -> None:
        self.server.assert_state()
        self.model.assert_state()

    def teardown(self) -> None:
        self.compare_trees()
        self.lose_everyone()
        self.server.close()
        self.server = self.mount()
        self.server.purge_all()
        self.server.close()
        assert list(problems(self.store)) == []


def _name(number: int | None) -> str:
    return "succeeded" if number is None else f"errno {number} ({os.strerror(number)})"


TestNameSpaces = NameSpaces.TestCase
TestNameSpaces.settings = settings(
    max_examples=int(os.environ.get("MDS_MODEL_EXAMPLES", "60")), stateful_step_count=40,
    deadline=None, suppress_health_check=list(HealthCheck), print_blob=True,
)  # fmt: skip
