"""`mdstore inspect decode`: each structure of a real image alone, by its own format page; damage is said, never a surprise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest

from mdstore.device.file import FileDevice
from mdstore.errors import MdstoreError
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.store import Store
from mdstore.tools.reader.decode_one import STRUCTURES, TREES, Context, decode_one
from mdstore.tools.reader.entry import HEADER_SIZE
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.page import Reference
from mdstore.tools.reader.store import StoreReader
from mdstore.tools.reader.superblock import ROOT_OBJECTS
from mdstore.tools.reader.whole import newest_superblock
from tests.commandline import Run

MIB = 1 << 20


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with names, killed before its last checkpoint, so that the log holds something."""
    path = tmp_path_factory.mktemp("inspect") / "image"
    store = Store.create(FileDevice.create(str(path), 8 * MIB), background=False)
    MetadataServer.format(store, now_ns=1, identity=bytes(range(16)))
    server = MetadataServer.mount(store, clock=lambda: 10**18)
    for number in range(200):
        directory = server.mkdir(SUPERUSER, ROOT_INO, b"directory-%d" % number, 0o755)
        server.symlink(SUPERUSER, directory.ino, b"link", b"elsewhere")
    server.close()
    store.checkpoint()
    server = MetadataServer.mount(store, clock=lambda: 10**18)
    server.mkdir(SUPERUSER, ROOT_INO, b"late", 0o700)
    server.syncfs()
    path.with_name("killed").write_bytes(path.read_bytes())
    server.close()
    store.close()
    return path.with_name("killed")


class Pieces(NamedTuple):
    """Bytes of each structure, as they lie in the image."""

    data: dict[str, bytes]
    context: dict[str, Context]


@pytest.fixture(scope="module")
def pieces(image: Path) -> Pieces:
    raw = image.read_bytes()
    with Image(str(image)) as source:
        superblock = newest_superblock(source)
        reader = StoreReader(source, superblock)
        root = reader.root_tree(ROOT_OBJECTS).root.content
        assert isinstance(root, Reference)
        collections = dict(reader.root_records(2))
        objects = list(reader.root_records(ROOT_OBJECTS))
        meta = next(record.number for name, record in reader.collections() if name == b"meta")
        directory = next(onode for name, onode in reader.objects(meta) if name == b"%016x" % ROOT_INO)
        entries = dict(reader.map_items(directory))
        header = reader.map_header(directory)
    log = (superblock.log_start + 2) * superblock.block_size
    capacity = (superblock.log_blocks - 2) * superblock.block_size
    at = log + superblock.log_position % capacity
    entry = raw[at:]
    length = int.from_bytes(entry[8:12], "little")
    page = raw[root.addresses[0] * superblock.block_size :][: superblock.block_size]
    return Pieces(
        {
            "superblock": raw[superblock.epoch % 2 * 4096 :][:4096], "page": page, "root": superblock.roots[ROOT_OBJECTS],
            "journal-head": raw[superblock.log_start * superblock.block_size :][:512], "entry": entry[: HEADER_SIZE + length],
            "transaction": entry[HEADER_SIZE : HEADER_SIZE + length], "onode": objects[0][1],
            "collection": collections[b"meta"], "directory": header, "dentry": entries[b"directory-7"],
        },
        {"page": Context(tree="objects")},
    )  # fmt: skip


def decoded(pieces: Pieces, name: str) -> Any:
    return decode_one(name, pieces.data[name], pieces.context.get(name, Context()))


def test_each_structure_says_what_the_image_says(pieces: Pieces) -> None:
    assert decoded(pieces, "superblock")["block_size"] == 4096
    page = decoded(pieces, "page")
    assert (page["tree_id"], page["kind"]) == (1, "leaf" if page["level"] == 0 else "index")
    assert decoded(pieces, "root")["tree_id"] == 1
    assert decoded(pieces, "entry")["payload"] == "intact"
    assert decoded(pieces, "transaction")["operations"]
    assert decoded(pieces, "collection")["objects"] > 200
    assert decoded(pieces, "directory")["inode"]["ino"] == ROOT_INO
    assert decoded(pieces, "dentry")["ino"] > ROOT_INO
    assert decoded(pieces, "onode")["size"] >= 0
    assert decoded(pieces, "journal-head")["log"] > 0


@pytest.mark.parametrize("name", STRUCTURES)
def test_bytes_that_are_no_such_structure_are_refused_with_a_typed_error(pieces: Pieces, name: str) -> None:
    random = Random(f"1/{name}")
    samples = [b"", b"\0", bytes(4096), random.randbytes(17), random.randbytes(4096)]
    whole = pieces.data.get(name, random.randbytes(200))
    samples += [whole[:cut] for cut in range(0, len(whole), max(1, len(whole) // 40))]
    for _ in range(60):
        at = random.randrange(len(whole))
        samples.append(whole[:at] + bytes([random.randrange(256)]) + whole[at + 1 :])
    for sample in samples:
        for context in (Context(key=sample[:8], kind=3), Context(tree="data", key=b"name", kind=16), pieces.context.get(name)):
            try:
                decode_one(name, sample, context or Context())
            except MdstoreError:
                continue


def test_the_command_reads_a_piece_of_an_image(run: Run, image: Path, pieces: Pieces, tmp_path: Path) -> None:
    found = run("inspect", "decode", "superblock", image, "--json")
    assert (found.code, json.loads(found.out)["version"]) == (0, 1)
    at = image.read_bytes().index(pieces.data["page"])
    page = run("inspect", "decode", "page", image, "--offset", hex(at), "--length", 4096, "--tree", "objects", "--json")
    assert page.code == 0
    assert json.loads(page.out)["tree_id"] == 1
    assert "tree_id: 1" in run("inspect", "decode", "page", image, "--offset", at, "--length", 4096, "--tree", "objects").out
    (tmp_path / "piece").write_bytes(pieces.data["transaction"])
    assert "operations:" in run("inspect", "decode", "transaction", tmp_path / "piece").out


def test_damage_is_exit_code_4_and_wrong_usage_2(run: Run, image: Path) -> None:
    wrong = run("inspect", "decode", "page", image, "--length", 4096)
    assert (wrong.code, wrong.err.count("\n")) == (4, 1)
    assert "checksum of a page" in wrong.err
    assert run("inspect", "decode", "page", image, "--length", 1000).code == 4
    assert run("inspect", "decode", "nosuch", image).code == 2
    assert run("inspect", "decode", "page", image, "--offset", "x").code == 2
    assert run("inspect", "decode", "page", "/no/such/file").code == 2
    assert run("inspect", "decode", "page", image, "--tree", "nosuch").code == 2


@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_what_is_no_file_is_refused_and_not_waited_for(run: Run, tmp_path: Path, kind: str) -> None:
    """A FIFO nobody writes to held the command for ever."""
    path = Path("/dev/null") if kind == "device" else tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    told = run("inspect", "decode", "superblock", path)
    assert (told.code, told.out, told.err.count("\n")) == (2 if kind == "directory" else 1, "", 1)
    assert str(path) in told.err


def test_standard_input_may_be_a_pipe(image: Path) -> None:
    read, write = os.pipe()
    os.write(write, image.read_bytes()[:4096])
    os.close(write)
    words = [sys.executable, "-m", "mdstore.tools.cli", "inspect", "decode", "superblock", "-"]
    told = subprocess.run(words, stdin=read, capture_output=True, text=True, check=False)
    os.close(read)
    assert (told.returncode, "block_size: 4096" in told.stdout) == (0, True), told


def test_types_are_listed(run: Run) -> None:
    assert {row["type"] for row in json.loads(run("inspect", "types", "--json").out)} == set(STRUCTURES)
    assert all(name in run("inspect", "types").out for name in STRUCTURES)
    assert set(TREES) >= {"map", "data", "objects", "free"}
