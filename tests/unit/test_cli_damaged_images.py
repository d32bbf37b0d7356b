"""Commands that look into a damaged image name what cannot be read, give everything else, and end with 1.

They used to stop at the first damaged thing: of ten thousand files, `export` left out all behind it.
"""

from __future__ import annotations

import errno
import os
from base64 import b64decode
from pathlib import Path
from typing import Any

import pytest

from mdstore.mds.layout import DATA, INO_KEY, META, TABLE_OBJECTS, Tab, data_object, directory_object
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.store.transaction import Transaction
from mdstore.tools.images import opened_image, opened_store
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.onode import Onode, decode_extent
from mdstore.tools.reader.store import DATA_SHAPE, MAP_SHAPE, StoreReader
from mdstore.tools.reader.tree import Tree
from mdstore.tools.reader.whole import newest_superblock
from tests.commandline import Ran, Run
from tests.crash.test_read_only_damage import pages_of
from tests.unit.reader_images import BLOCK as PAGE
from tests.unit.reader_images import file_system

FILES = 200
NAMES = [f"f{number:04}" for number in range(FILES)]
POSITIONS = {"first": 0, "middle": FILES // 2, "last": FILES - 1}
BIG = 3 * 4096 + 100
BLOCK = 4096


class Made:
    """An image: files in `/d` and `/d/below/deep`, beside them `/a` and `/z`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.inos: dict[str, int] = {}
        with opened_image(str(path), read_only=False) as server:
            self.inos["/d"] = server.mkdir(SUPERUSER, ROOT_INO, b"d", 0o755).ino
            self.inos["/d/below"] = server.mkdir(SUPERUSER, self.inos["/d"], b"below", 0o755).ino
            self.inos["/d/below/deep"] = server.mkdir(SUPERUSER, self.inos["/d/below"], b"deep", 0o755).ino
            paths = [f"{directory}/{name}" for directory in ("/d", "/d/below/deep") for name in NAMES]
            for file in ["/a", *paths, "/z"]:
                above, _, name = file.rpartition("/")
                attr, handle = server.create(SUPERUSER, self.inos.get(above, ROOT_INO), name.encode(), 0o644, os.O_RDWR)
                server.write(handle, 0, content(file))
                server.release(handle)
                self.inos[file] = attr.ino
        self.files = ["/a", *paths, "/z"]

    # -- damage --------------------------------------------------------------------------------------------------------
    def rubbish(self, file: str) -> None:
        """The entry says nothing that makes sense."""
        above, _, name = file.rpartition("/")
        self.entry(above, name)

    def entry(self, directory: str, name: str) -> None:
        """An entry of that name, which says nothing that makes sense."""
        self._apply(Transaction().map_set(META, directory_object(self.inos[directory]), {name.encode(): b"rubbish"}))

    def no_inode(self, file: str) -> None:
        """The entry leads to an inode that is nowhere."""
        with opened_image(str(self.path), read_only=False) as server:
            server.link(SUPERUSER, self.inos[file], ROOT_INO, b"other")
        self._apply(Transaction().map_remove(META, TABLE_OBJECTS[Tab.INODES], [INO_KEY.pack(self.inos[file])]))
        self.files = [*self.files, "/other"]

    def no_directory(self, directory: str) -> None:
        """The directory's object is gone."""
        self._apply(Transaction().remove(META, directory_object(self.inos[directory])))

    def no_header(self, directory: str) -> None:
        """What the directory says of itself makes no sense."""
        self._apply(Transaction().map_set_header(META, directory_object(self.inos[directory]), b"rubbish"))

    def _apply(self, damage: Transaction) -> None:
        with opened_store(str(self.path), read_only=False) as store:
            store.apply(damage)

    def leaf(self, directory: str, *positions: str) -> list[str]:
        """Pages of the directory's map are overwritten; the names that were in them."""
        with Image(str(self.path)) as image:
            reader, onode = self._onode(image, META, directory_object(self.inos[directory]))
            assert onode.map_root is not None
            pages: list[tuple[int, list[str]]] = []
            for page, names in _leaves(reader.tree(onode.map_root, MAP_SHAPE)):
                pages.append((page, [f"{directory}/{name.decode()}" for name in names]))
        assert len(pages) > 4, "one page of many"
        hit = [pages[{"first": 0, "middle": len(pages) // 2, "last": -1}[position]] for position in positions]
        for page, _ in hit:
            self._overwrite(page * BLOCK)
        return [name for _, lost in hit for name in lost]

    def block(self, file: str, number: int) -> None:
        """A block of the file's bytes is overwritten."""
        with Image(str(self.path)) as image:
            reader, onode = self._onode(image, DATA, data_object(self.inos[file], 0))
            assert onode.data_root is not None
            for key, value in reader.tree(onode.data_root, DATA_SHAPE).items():
                extent = decode_extent(key, value)
                if extent.logical <= number < extent.logical + extent.blocks:
                    at = (extent.start + number - extent.logical) * BLOCK
        self._overwrite(at)

    def _onode(self, image: Image, collection: bytes | str, name: bytes) -> tuple[StoreReader, Onode]:
        reader = StoreReader(image, newest_superblock(image))
        wanted = collection if isinstance(collection, bytes) else collection.encode()
        number = next(record.number for found, record in reader.collections() if found == wanted)
        onode = reader.find(number, name)
        assert onode is not None
        return reader, onode

    def _overwrite(self, at: int) -> None:
        with open(self.path, "r+b") as stream:
            stream.seek(at + 40)
            stream.write(b"\xa5" * 64)


def _leaves(tree: Tree) -> list[tuple[int, list[bytes]]]:
    """Address and keys of each leaf."""
    found: list[tuple[int, list[bytes]]] = []
    visited: list[int] = []
    tree.on_pages = lambda page, count, is_overflow: visited.append(page) is None
    for key, _ in tree.items():
        if not found or found[-1][0] != visited[-1]:
            found.append((visited[-1], []))
        found[-1][1].append(key)
    return found


def content(file: str) -> bytes:
    """What is in a file."""
    return (file.encode() + b" is precious ") * (BIG // 20) if file.endswith("0") else b"precious " + file.encode()


@pytest.fixture
def made(tmp_path: Path, run: Run) -> Made:
    assert run("mkfs", tmp_path / "disk.img", "--size", "16M").code == 0
    return Made(tmp_path / "disk.img")


def damaged_in(made: Made, how: str, position: str) -> tuple[list[str], list[str]]:
    """(files that are lost, what is named) once `/d/below/deep` is damaged at a position."""
    file = f"/d/below/deep/{NAMES[POSITIONS[position]]}"
    if how == "rubbish":
        made.rubbish(file)
        return [file], [file]
    if how == "no inode":
        made.no_inode(file)
        return [file, "/other"], [file, "/other"]
    if how == "no directory":
        made.no_directory("/d/below/deep")
    if how == "no header":
        made.no_header("/d/below/deep")
    if how in ("no directory", "no header"):
        return [name for name in made.files if name.startswith("/d/below/deep/")], ["/d/below/deep"]
    if how == "leaf":
        return made.leaf("/d/below/deep", position), ["/d/below/deep"]
    raise AssertionError(how)


def complaints(ran: Ran, made: Made) -> list[str]:
    """The paths that the lines on standard error name, each of which says what to do."""
    lines = ran.err.splitlines()
    assert all(line.startswith("mdstore: ") and "mdstore fsck" in line and "mdstore repair" in line for line in lines), lines
    return sorted(line.removeprefix("mdstore: ").partition(":")[0] for line in lines)


def exported(target: Path) -> dict[str, bytes]:
    return {"/" + str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*")
            if path.is_file() and not path.is_symlink()}  # fmt: skip


HOWS = ["rubbish", "no inode", "no directory", "no header", "leaf"]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("position", POSITIONS)
def test_everything_healthy_is_listed_and_exported(made: Made, how: str, position: str, tmp_path: Path, run: Run) -> None:
    lost, named = damaged_in(made, how, position)
    healthy = sorted(set(made.files) - set(lost))

    ran = run("export", made.path, "/", tmp_path / "out")
    assert ran.code == 1
    assert complaints(ran, made) == sorted(named)
    assert exported(tmp_path / "out") == {file: content(file) for file in healthy}

    ran = run("export", made.path, "/", tmp_path / "again", "--json")
    document = ran.json()
    assert (ran.code, document["troubles"], document["files"]) == (1, len(named), len(healthy))
    assert sorted(row["path"] for row in document["left_out"]) == sorted(named)
    assert all("damaged" in row["error"] for row in document["left_out"])

    ran = run("tree", made.path, "/", "--json")
    rows: list[dict[str, Any]] = ran.json()
    assert ran.code == 1
    assert sorted(row["path"] for row in rows if row.get("type") == "file") == healthy
    assert sorted(row["path"] for row in rows if "error" in row) == sorted(named)
    assert complaints(ran, made) == sorted(named)

    ran = run("tree", made.path, "/")
    assert ran.code == 1
    assert complaints(ran, made) == sorted(named)
    assert f"{len(healthy)} files, {len(named)} cannot be read" in ran.out


@pytest.mark.parametrize("how", ["rubbish", "no inode", "leaf"])
@pytest.mark.parametrize("position", POSITIONS)
def test_a_listing_goes_on(made: Made, how: str, position: str, run: Run) -> None:
    lost, named = damaged_in(made, how, position)
    directory = "/d/below/deep"
    named = [path for path in named if path.startswith(directory)]
    healthy = [name for name in NAMES if f"{directory}/{name}" not in lost]
    shown = healthy if how == "leaf" else NAMES
    for words in ([], ["-l"]):
        ran = run("ls", made.path, directory, *words)
        assert ran.code == 1
        assert [line.rpartition(" ")[2] for line in ran.out.splitlines()] == shown
        assert complaints(ran, made) == named
        assert words == [] or sum(line.startswith("?" * 10) for line in ran.out.splitlines()) == (how != "leaf")
    ran = run("ls", made.path, directory, "--json")
    rows = ran.json()
    assert ran.code == 1
    assert [row["name"] for row in rows if "error" not in row] == healthy
    assert [row["name"] for row in rows if "error" in row] == [None if how == "leaf" else NAMES[POSITIONS[position]]]
    assert run("ls", made.path, "/d").code == 0, "what is beside it is not concerned"


def test_several_damaged_pages_of_one_directory_hide_only_what_is_in_them(made: Made, tmp_path: Path, run: Run) -> None:
    lost = made.leaf("/d", "first", "middle", "last")
    ran = run("export", made.path, "/d", tmp_path / "out")
    assert ran.code == 1
    assert complaints(ran, made) == ["/d"]
    healthy = {file.removeprefix("/d") for file in made.files if file.startswith("/d/") and file not in lost}
    if "/d/below" in lost:
        healthy = {file for file in healthy if not file.startswith("/below")}
    assert set(exported(tmp_path / "out")) == healthy


def test_a_snapshot_is_listed_around_its_damage(made: Made, tmp_path: Path, run: Run) -> None:
    assert run("snapshot", "create", made.path, "s", "/d").code == 0
    lost = made.leaf("/d/below/deep", "middle")
    healthy = {file.removeprefix("/d"): content(file) for file in made.files if file.startswith("/d/") and file not in lost}
    for source in ("/d", "/d/.snap/s"):
        out = tmp_path / source.replace("/", "_")
        ran = run("export", made.path, source, out)
        assert ran.code == 1
        assert complaints(ran, made) == [f"{source}/below/deep"]
        assert exported(out) == healthy


def test_names_that_only_the_log_has_are_listed_around_damage(made: Made, tmp_path: Path, run: Run) -> None:
    """An image that was killed: what its log adds to other pages than the damaged one is there."""
    with opened_image(str(made.path), read_only=False) as server:
        server.create(SUPERUSER, made.inos["/d/below/deep"], b"f0000-new", 0o644, os.O_RDWR)
        server.create(SUPERUSER, made.inos["/d/below/deep"], b"zz", 0o644, os.O_RDWR)
        server.syncfs()
        killed = made.path.read_bytes()
    made.path.write_bytes(killed)
    lost = made.leaf("/d/below/deep", "middle")
    ran = run("tree", made.path, "/d", "--json")
    assert ran.code == 1
    found = {row["path"] for row in ran.json() if row.get("type") == "file"}
    assert found == {file for file in made.files if file.startswith("/d/") and file not in lost} | {
        "/d/below/deep/f0000-new", "/d/below/deep/zz"
    }  # fmt: skip


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_damaged_file_is_left_out_whole_or_written_with_zeros_when_asked(
    made: Made, number: int, tmp_path: Path, run: Run
) -> None:
    file = "/d/f0060"
    size = len(content(file))
    assert size > 3 * BLOCK
    made.block(file, number)
    healthy = {name: content(name) for name in made.files if name != file}
    ran = run("export", made.path, "/", tmp_path / "out")
    assert ran.code == 1
    assert complaints(ran, made) == [file]
    assert exported(tmp_path / "out") == healthy

    ran = run("export", made.path, "/", tmp_path / "out", "--force", "--partial", "--json")
    end = min(size, (number + 1) * BLOCK)
    assert ran.code == 1
    assert f"zeros instead of bytes {number * BLOCK}..{end - 1}" in ran.err
    assert (ran.json()["partial"], [row["path"] for row in ran.json()["left_out"]]) == (1, [file])
    patched = bytearray(content(file))
    patched[number * BLOCK : end] = bytes(end - number * BLOCK)
    assert exported(tmp_path / "out") == healthy | {file: bytes(patched)}

    for words in ([], ["--json"]):
        ran = run("cat", made.path, "/a", file, "/z", *words)
        assert ran.code == 1
        assert complaints(ran, made) == [file]
        before = content(file)[: number * BLOCK]
        if not words:
            assert ran.out.encode() == content("/a") + before + content("/z")
            continue
        assert [b64decode(row["base64"]) for row in ran.json()] == [content("/a"), before, content("/z")]
        assert ["error" in row for row in ran.json()] == [False, True, False]


def test_a_file_that_is_to_be_replaced_by_a_damaged_one_stays(made: Made, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    assert run("export", made.path, "/d", out).code == 0
    (out / "f0060").write_bytes(b"the last good copy")
    made.block("/d/f0060", 0)
    assert run("export", made.path, "/d", out, "--force").code == 1
    assert (out / "f0060").read_bytes() == b"the last good copy"
    assert (out / "f0061").read_bytes() == content("/d/f0061")
    assert sorted(os.listdir(out)) == ["below", *NAMES], "nothing half-written is left"


def test_one_damaged_file_exported_by_itself_is_refused(made: Made, tmp_path: Path, run: Run) -> None:
    made.block("/d/f0060", 0)
    ran = run("export", made.path, "/d/f0060", tmp_path, "--json")
    assert (ran.code, ran.json()["files"], ran.json()["left_out"][0]["path"]) == (1, 0, "/d/f0060")
    assert not (tmp_path / "f0060").exists()


@pytest.mark.parametrize("command", ["stat", "ls", "cat", "export", "rm"])
@pytest.mark.parametrize("how", ["rubbish", "no inode"])
def test_what_cannot_be_read_at_all_is_one_line(made: Made, command: str, how: str, tmp_path: Path, run: Run) -> None:
    damaged_in(made, how, "middle")
    file = f"/d/below/deep/{NAMES[POSITIONS['middle']]}"
    ran = run(command, made.path, file, *([tmp_path] if command == "export" else []), "--json")
    assert ran.code == 1
    assert ran.json()
    assert len(ran.err.splitlines()) == 1
    assert "damaged" in ran.err
    assert "mdstore fsck" in ran.err


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("position", POSITIONS)
def test_rm_removes_all_but_what_is_damaged(made: Made, how: str, position: str, run: Run) -> None:
    _, named = damaged_in(made, how, position)
    ran = run("rm", "-r", made.path, "/d", "/z", "--json")
    assert ran.code == 1
    assert sorted(row["path"] for row in ran.json()["left_out"]) == [path for path in sorted(named) if path != "/other"]
    left = run("tree", made.path, "/", "--json").json()
    assert [row["path"] for row in left if row.get("type") == "file"] == ["/a"]


def test_whichever_page_is_damaged_export_gives_what_reads_and_names_the_rest(tmp_path: Path, run: Run) -> None:
    """Every page of a small image, one at a time: a file comes whole, or a line names it or a directory above it."""
    path = tmp_path / "disk.img"
    whole = file_system()
    path.write_bytes(whole)
    assert run("export", path, "/", tmp_path / "whole").code == 0
    expected = exported(tmp_path / "whole")
    pages = pages_of(whole, path)
    refused = 0
    for number, page in enumerate(sorted(pages)):
        image = bytearray(whole)
        image[page * PAGE + 40] ^= 1
        path.write_bytes(image)
        ran = run("export", path, "/", tmp_path / str(number), "--json")
        assert ran.code in (0, 1), ran
        assert "bug" not in ran.err
        if "left_out" not in ran.json():
            refused += 1
            continue
        found, named = exported(tmp_path / str(number)), [row["path"].rstrip("/") for row in ran.json()["left_out"]]
        assert (ran.code == 1) == bool(named)
        assert found == {file: expected[file] for file in found}, page
        for file in expected.keys() - found.keys():
            assert any((file + "/").startswith(name + "/") for name in named), (page, file, named)
    assert len(pages) >= 40
    assert refused < len(pages) // 4


def test_a_snapshot_of_a_directory_that_cannot_be_read_hides_no_other(made: Made, run: Run) -> None:
    for name, path in (("a", "/"), ("b", "/d/below/deep"), ("c", "/d/below")):
        assert run("snapshot", "create", made.path, name, path).code == 0
    made.no_header("/d/below/deep")
    ran = run("snapshot", "list", made.path, "--json")
    assert ran.code == 1
    assert [(row["name"], row["path"], "error" in row) for row in ran.json()] == [
        ("a", "/", False), ("c", "/d/below", False), ("b", None, True)
    ]  # fmt: skip
    assert complaints(ran, made) == ["b"]
    ran = run("snapshot", "list", made.path)
    assert ran.code == 1
    assert [line.split("  ")[-1] for line in ran.out.splitlines()] == ["/", "/d/below", "(directory cannot be read)"]


def test_sectors_that_do_not_read_are_like_damage(made: Made, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """One under a page of a directory, one under a file."""
    lost = made.leaf("/d/below/deep", "middle")
    made.block("/d/f0060", 1)
    read = os.pread
    whole = made.path.read_bytes()
    bad = [at for at in range(0, len(whole), BLOCK) if whole[at + 40 : at + 104] == b"\xa5" * 64]
    assert len(bad) == 2

    def failing(fd: int, length: int, offset: int) -> bytes:
        if os.path.samefile(f"/proc/self/fd/{fd}", made.path) and any(offset < at + BLOCK and at < offset + length for at in bad):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(fd, length, offset)

    def failing_vector(fd: int, buffers: list[bytearray], offset: int) -> int:
        data = failing(fd, sum(map(len, buffers)), offset)
        for buffer in buffers:
            buffer[:], data = data[: len(buffer)], data[len(buffer) :]
        return sum(map(len, buffers))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", failing)
        patched.setattr(os, "preadv", failing_vector)
        ran = run("export", made.path, "/", tmp_path / "out")
    assert ran.code == 1
    assert sorted(line.split(":")[1].strip() for line in ran.err.splitlines()) == ["/d/below/deep", "/d/f0060"]
    assert exported(tmp_path / "out") == {file: content(file) for file in made.files if file not in [*lost, "/d/f0060"]}


def test_export_over_an_export_replaces_each_file_and_leaves_nothing_beside(made: Made, tmp_path: Path, run: Run) -> None:
    with opened_image(str(made.path), read_only=False) as server:
        server.link(SUPERUSER, made.inos["/a"], made.inos["/d"], b"linked")
        server.symlink(SUPERUSER, ROOT_INO, b"points", b"a")
    out = tmp_path / "out"
    for words in ([], ["--force"], ["--force"]):
        assert run("export", made.path, "/", out, *words).code == 0
        assert exported(out) == {file: content(file) for file in made.files} | {"/d/linked": content("/a")}
        assert sorted(os.listdir(out)) == ["a", "d", "points", "z"]
        assert (out / "a").stat().st_ino == (out / "d" / "linked").stat().st_ino
        assert (out / "a").stat().st_nlink == 2
        assert os.readlink(out / "points") == "a"
    os.unlink(out / "a")
    (out / "a").mkdir()
    ran = run("export", made.path, "/", out, "--force")
    assert (ran.code, ran.err) == (1, f"mdstore: {out}/a: Is a directory\n")
    assert not [name for name in os.listdir(out) if name.startswith(".")]


@pytest.mark.parametrize("name", ["../../escaped", "a/b", "..", "x" * 300])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_names_that_no_directory_can_have_are_left_out_and_harm_nothing(
    made: Made, name: str, is_damaged: bool, tmp_path: Path, run: Run
) -> None:
    made.entry("/d/below/deep", name)
    lost = made.leaf("/d/below/deep", "middle") if is_damaged else []
    (tmp_path / "at").mkdir()
    ran = run("export", made.path, "/d", tmp_path / "at" / "out")
    assert ran.code == 1
    assert len(ran.err.splitlines()) == 1 + is_damaged
    assert os.listdir(tmp_path / "at") == ["out"]
    wanted = {file.removeprefix("/d") for file in made.files if file.startswith("/d/") and file not in lost}
    assert set(exported(tmp_path / "at" / "out")) == wanted
    assert run("rm", "-r", made.path, "/d").code == 1
    assert run("tree", made.path, "/").code == 1
