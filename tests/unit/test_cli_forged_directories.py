"""Images in which directories lie inside themselves, or in several places: every walk ends, says so, and removes nothing that
hangs elsewhere.

`tree` and `rm -r` walked in a circle for ever; the server looked for the root of such a directory under its lock, for ever.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from mdstore.device.file import FileDevice
from mdstore.errors import CorruptionError, PosixError
from mdstore.mds.events import Kind, entry_set
from mdstore.mds.fnode import decode_fnode, encode_fnode
from mdstore.mds.layout import META, NEXT_INO, NEXT_INO_KEY, TABLE_OBJECTS, Tab, directory_object
from mdstore.mds.records import TAG_DIRECTORY, TAG_PRIMARY, TAG_REMOTE, encode_link
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.store import Store, Transaction
from tests.commandline import Run

TYPE_DIRECTORY = 4
DEPTH = 24


class Forged:
    """An image with /a/b/c, a file in each and in /kept, and ways to forge entries and headers in it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        FileDevice.create(self.path, 16 << 20).close()
        with Store.create(FileDevice.open(self.path)) as store:
            MetadataServer.format(store, now_ns=1)
            server = MetadataServer.mount(store)
            self.inos = {"": ROOT_INO}
            for place in ("a", "a/b", "a/b/c", "kept"):
                self.inos[place] = self.make(server, place)
            above = self.inos["kept"]
            for number in range(DEPTH):
                above = self.inos[f"{number}"] = server.mkdir(SUPERUSER, above, b"n", 0o755).ino
            server.close()

    def make(self, server: MetadataServer, place: str) -> int:
        parent, _, name = place.rpartition("/")
        ino = server.mkdir(SUPERUSER, self.inos[parent], name.encode(), 0o755).ino
        server.release(server.create(SUPERUSER, ino, b"file", 0o644, os.O_RDWR)[1])
        return ino

    def enter(self, directory: str, name: bytes, target: str) -> None:
        link = encode_link(TAG_DIRECTORY, TYPE_DIRECTORY, self.inos[target])
        self.change(Transaction().map_set(META, directory_object(self.inos[directory]), {name: link}))

    def hang(self, directory: str, above: str) -> None:
        """Its header says that it hangs there."""
        name = directory_object(self.inos[directory])
        with Store.open(FileDevice.open(self.path)) as store:
            fnode = decode_fnode(store.map_header(META, name), "")
            store.apply(Transaction().map_set_header(META, name, encode_fnode(fnode._replace(parent=self.inos[above]))))

    def change(self, transaction: Transaction) -> None:
        with Store.open(FileDevice.open(self.path)) as store:
            store.apply(transaction)

    @contextmanager
    def served(self) -> Iterator[MetadataServer]:
        with Store.open(FileDevice.open(self.path)) as store:
            server = MetadataServer.mount(store)
            yield server
            server.close()


@pytest.fixture
def forged(tmp_path: Path) -> Forged:
    return Forged(tmp_path / "image")


@pytest.fixture(params=["an entry leads up", "the header agrees", "to the root"])
def circle(forged: Forged, request: pytest.FixtureRequest) -> Forged:
    forged.enter("a/b/c", b"circle", "" if request.param == "to the root" else "a")
    if request.param == "the header agrees":
        forged.hang("a", "a/b/c")
    return forged


@pytest.mark.parametrize("top", ["/", "/a", "/a/b"])
def test_a_tree_with_a_circle_ends_and_names_it(circle: Forged, run: Run, top: str) -> None:
    told = run("tree", circle.path, top)
    assert told.code == 1
    assert told.out.count("circle") <= 2
    assert "file" in told.out
    assert "hangs" in told.err
    listed = run("tree", circle.path, top, "--json")
    assert listed.code == 1
    assert any("hangs" in row.get("error", "") for row in json.loads(listed.out))


def test_export_of_a_circle_ends(circle: Forged, run: Run, tmp_path: Path) -> None:
    told = run("export", circle.path, "/", tmp_path / "out")
    assert told.code == 1
    assert (tmp_path / "out" / "a" / "b" / "c" / "file").exists()
    assert "hangs" in told.err


def test_what_hangs_elsewhere_is_not_removed(forged: Forged, run: Run) -> None:
    forged.enter("a/b/c", b"kept too", "kept")
    told = run("rm", "-r", forged.path, "/a")
    assert told.code == 1
    assert "hangs" in told.err
    assert run("ls", forged.path, "/kept").out.split() == ["file", "n"]
    assert "file" not in run("tree", forged.path, "/a").out.partition("kept too")[0]


def test_rm_of_a_circle_ends(circle: Forged, run: Run) -> None:
    told = run("rm", "-r", circle.path, "/a")
    assert told.code == 1
    assert "hangs" in told.err
    assert run("ls", circle.path, "/kept").out.split() == ["file", "n"]


def test_a_directory_under_two_names_again_and_again_is_walked_once(forged: Forged, run: Run) -> None:
    """Two names on each level are two to the number of levels ways."""
    for number in range(DEPTH - 1):
        forged.enter(f"{number}", b"other", f"{number + 1}")
    told = run("tree", forged.path, "/kept")
    assert told.code == 1
    assert len(told.out.splitlines()) < 4 * DEPTH


def test_a_directory_that_says_it_hangs_elsewhere_is_still_read(forged: Forged, run: Run) -> None:
    """As one whose header is older than its place."""
    forged.hang("a/b", "kept")
    told = run("tree", forged.path, "/a")
    assert told.code == 0
    assert told.out.count("file") == 3 + 1


@pytest.mark.parametrize(
    "ask",
    [
        lambda server, inos: server.path_of(inos["a/b"]),
        lambda server, inos: server.rename(SUPERUSER, ROOT_INO, b"kept", inos["a/b"], b"x"),
        lambda server, inos: server.mkdir(SUPERUSER, inos["a/b"], b"new", 0o755),
        lambda server, inos: [server.mkdir(SUPERUSER, inos["a/b"], b"new", 0o755), server.write_back()],
        lambda server, inos: [
            server.setxattr(SUPERUSER, inos["kept"], b"mdstore.quota.max_files", b"9"),
            server.mkdir(SUPERUSER, inos["a/b"], b"new", 0o755),
        ],
        lambda server, inos: server.getxattr(SUPERUSER, inos["a/b"], b"mdstore.rbytes"),
    ],
)
def test_the_server_looks_for_the_root_of_a_circle_once(
    forged: Forged, ask: Callable[[MetadataServer, dict[str, int]], object]
) -> None:
    forged.enter("a/b/c", b"circle", "a")
    forged.hang("a", "a/b/c")

    with forged.served() as server:
        with suppress(CorruptionError):
            ask(server, forged.inos)
        assert server.failure is None


# -- numbers that belong to snapshots ----------------------------------------------------------------------------------

FOREIGN = [1 << 44, (1 << 44) + ROOT_INO, 1 << 63, (1 << 64) - 1]


@pytest.mark.parametrize("ino", FOREIGN)
@pytest.mark.parametrize("tag", [TAG_PRIMARY, TAG_REMOTE, TAG_DIRECTORY])
def test_an_entry_with_a_number_of_a_snapshot_is_named_and_passed(
    forged: Forged, run: Run, tmp_path: Path, tag: int, ino: int
) -> None:
    """The first such entry ended a whole export with EROFS."""
    with forged.served() as server:
        whole = server.lookup(SUPERUSER, forged.inos["a"], b"file").ino
    with Store.open(FileDevice.open(forged.path)) as store:
        entry = dict(store.map_items(META, directory_object(forged.inos["a"])))[b"file"]
    assert int.from_bytes(entry[9:17], "little") == whole
    file_type = TYPE_DIRECTORY if tag == TAG_DIRECTORY else 8
    value = entry[:9] + ino.to_bytes(8, "little") + entry[17:] if tag == TAG_PRIMARY else encode_link(tag, file_type, ino)
    forged.change(Transaction().map_set(META, directory_object(forged.inos["a"]), {b"astray": value}))

    told = run("export", forged.path, "/", tmp_path / "out")

    assert (told.code, told.err.count("/a/astray"), told.err.count("\n")) == (1, 1, 1)
    assert "number below 2^44" in told.err
    assert sorted(os.listdir(tmp_path / "out" / "a")) == ["b", "file"]
    assert (tmp_path / "out" / "kept" / "file").exists()
    assert "astray" in run("tree", forged.path).out
    assert run("fsck", forged.path).code == 4


@pytest.mark.parametrize("ino", [1 << 44, (1 << 64) - 1])
def test_no_number_of_a_snapshot_is_given_out(forged: Forged, ino: int) -> None:
    """What would get it could not be read again."""
    forged.change(Transaction().map_set(META, TABLE_OBJECTS[Tab.SERVER], {NEXT_INO_KEY: NEXT_INO.pack(ino)}))
    with forged.served() as server:
        for make in (lambda: server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755),
                     lambda: server.symlink(SUPERUSER, ROOT_INO, b"s", b"x"),
                     lambda: server.create(SUPERUSER, ROOT_INO, b"f", 0o644, os.O_RDWR)):  # fmt: skip
            with pytest.raises(CorruptionError, match="next inode number"):
                make()
        assert server.failure is None
        assert server.lookup(SUPERUSER, ROOT_INO, b"kept").ino == forged.inos["kept"]


def test_such_a_number_in_the_log_keeps_none_from_those_that_follow(forged: Forged, tmp_path: Path) -> None:
    link = encode_link(TAG_REMOTE, 8, 1 << 44)
    killed = str(tmp_path / "killed")
    with forged.served() as server:
        core, above = server._core, server._cache.directory(forged.inos["a"])
        core.append(Kind.LINK, core.touch(above, 2, 1, 0, 1, 0, 0) + entry_set(above.ino, above.version, b"astray", link))
        server.syncfs()
        shutil.copyfile(forged.path, killed)
    forged.path = killed
    with forged.served() as server:
        made = server.mkdir(SUPERUSER, ROOT_INO, b"new", 0o755).ino
        assert max(forged.inos.values()) < made < 1000
        with pytest.raises(CorruptionError, match="number below 2"):
            server.lookup(SUPERUSER, forged.inos["a"], b"astray")


# -- quotas ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [{b"short": b"x" * 16}, {bytes(8): b"short"}])
def test_a_damaged_quota_table_keeps_no_mount_from_reading(forged: Forged, row: dict[bytes, bytes]) -> None:
    forged.change(Transaction().map_set(META, TABLE_OBJECTS[Tab.QUOTAS], row))
    with Store.open(FileDevice.open(forged.path, read_only=True), read_only=True) as store:
        server = MetadataServer.mount(store, read_only=True)
        assert server.lookup(SUPERUSER, ROOT_INO, b"kept").ino == forged.inos["kept"]
        with pytest.raises(CorruptionError):
            server.getxattr(SUPERUSER, forged.inos["kept"], b"mdstore.quota.max_files")
        assert server.getxattr(SUPERUSER, forged.inos["kept"], b"mdstore.rfiles") == b"1"
    with Store.open(FileDevice.open(forged.path)) as store, pytest.raises(CorruptionError, match="quota"):
        MetadataServer.mount(store)


def test_a_quota_is_exact_after_the_server_was_started_anew(forged: Forged) -> None:
    """What directories below had not handed up yet was not known to it."""

    with forged.served() as server:
        server.setxattr(SUPERUSER, forged.inos["a"], b"mdstore.quota.max_files", b"12")
    with forged.served() as server:
        below = forged.inos["a/b/c"]
        for _ in range(12 - 2 - 3):
            below = server.mkdir(SUPERUSER, below, b"d", 0o755).ino
        with pytest.raises(PosixError, match="12 files"):
            server.mkdir(SUPERUSER, below, b"d", 0o755)
