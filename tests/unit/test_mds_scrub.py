"""Scrub finds each sort of disagreement, repairs it through the log, and finds nothing afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from mdstore.engines.mem import MemStore
from mdstore.mds.core import Limits
from mdstore.mds.fnode import decode_fnode, encode_fnode
from mdstore.mds.layout import (
    BACKTRACE_ATTRIBUTE,
    DATA,
    INO_KEY,
    META,
    TABLE_OBJECTS,
    Tab,
    data_object,
    directory_object,
    encode_backtrace,
)
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.store.transaction import Transaction
from tests.model.mds_check import problems


class World:
    """A written-back name space: /a/b, a file with bytes and two names, a file with one, a symlink."""

    def __init__(self) -> None:
        self.store = MemStore(delayed=True)
        MetadataServer.format(self.store, now_ns=1)
        server = MetadataServer.mount(self.store)
        self.a = server.mkdir(SUPERUSER, ROOT_INO, b"a", 0o755).ino
        self.b = server.mkdir(SUPERUSER, self.a, b"b", 0o755).ino
        self.twice = self.file(server, self.a, b"twice")
        self.once = self.file(server, self.b, b"once")
        server.link(SUPERUSER, self.twice, self.b, b"other")
        server.symlink(SUPERUSER, self.b, b"s", b"to")
        server.close()

    def file(self, server: MetadataServer, parent: int, name: bytes) -> int:
        attr, handle = server.create(SUPERUSER, parent, name, 0o644, os.O_RDWR)
        server.write(handle, 0, name * 100)
        server.release(handle)
        return attr.ino

    def header(self, ino: int, **fields: Any) -> None:
        fnode = decode_fnode(self.store.map_header(META, directory_object(ino)), "test")
        inode = fnode.inode._replace(**{k: v for k, v in fields.items() if k in fnode.inode._fields})
        changed = fnode._replace(inode=inode, **{k: v for k, v in fields.items() if k in fnode._fields and k != "inode"})
        self.store.apply(Transaction().map_set_header(META, directory_object(ino), encode_fnode(changed)))

    def drop_link_row(self) -> None:
        key = INO_KEY.pack(self.twice) + INO_KEY.pack(self.b) + b"other"
        self.store.apply(Transaction().map_remove(META, TABLE_OBJECTS[Tab.LINKS], [key]))

    def wrong_nlink(self) -> None:
        key = INO_KEY.pack(self.twice)
        raw = bytearray(self.store.map_get(META, TABLE_OBJECTS[Tab.INODES], key) or b"")
        raw[8 + 20] = 9
        self.store.apply(Transaction().map_set(META, TABLE_OBJECTS[Tab.INODES], {key: bytes(raw)}))

    def wrong_backtrace(self) -> None:
        trace = encode_backtrace(77, b"elsewhere", b"")
        self.store.apply(Transaction().setattr(DATA, data_object(self.once, 0), BACKTRACE_ATTRIBUTE, trace))


DAMAGES: list[tuple[str, Callable[[World], None]]] = [
    ("S2", lambda world: world.header(world.b, size=17)),
    ("S2", lambda world: world.header(world.a, nlink=7)),
    ("S3", lambda world: world.header(world.b, rbytes=1, accounted_bytes=1)),
    ("S3", lambda world: world.header(world.a, rfiles=99, accounted_files=99)),
    ("S4", lambda world: world.header(world.b, parent=ROOT_INO)),
    ("S5", World.drop_link_row),
    ("S6", World.wrong_nlink),
    ("S7", World.wrong_backtrace),
]


@pytest.mark.parametrize(("check", "damage"), DAMAGES)
def test_each_damage_is_found_repaired_and_gone_also_after_a_crash(check: str, damage: Callable[[World], None]) -> None:
    world = World()
    damage(world)
    server = MetadataServer.mount(world.store)
    assert check in {problem.check for problem in server.scrub().run()}
    assert check in {problem.check for problem in server.scrub().run()}, "looking changes nothing"
    found = list(server.scrub(repair=True).run())
    assert check in {problem.check for problem in found}
    assert all(problem.repaired for problem in found)
    server.syncfs()
    server.write_back()
    server = MetadataServer.mount(world.store.crash())
    assert list(server.scrub(repair=True).run()) == []
    server.write_back()
    assert list(problems(server._core.store)) == []


def test_a_sound_name_space_has_no_problems_whatever_is_buffered_or_evicted() -> None:
    world = World()
    server = MetadataServer.mount(world.store, limits=Limits(cache_bytes=64 * 700), count_references=False)
    for number in range(300):
        world.file(server, world.b, b"f%d" % number)
    server.rename(SUPERUSER, world.b, b"once", ROOT_INO, b"moved")
    _, handle = server.create(SUPERUSER, ROOT_INO, b"open", 0o644, os.O_RDWR)
    server.write(handle, 5000, b"buffered")
    scrub = server.scrub()
    assert list(scrub.run()) == []
    assert scrub.progress.directories == 3
    assert scrub.progress.entries == 307
    server.unlink(SUPERUSER, ROOT_INO, b"open")
    server.release(handle)
    assert list(server.scrub().run()) == []


def test_a_directory_that_cannot_be_read_is_named_and_the_rest_is_looked_at() -> None:
    world = World()
    world.store.apply(Transaction().map_set(META, directory_object(world.b), {b"bad": b"\1rubbish"}))
    world.header(world.a, nlink=9)
    server = MetadataServer.mount(world.store)
    found = list(server.scrub().run())
    assert {(problem.check, problem.ino) for problem in found} >= {("S1", world.b), ("S2", world.a)}
