"""Whole images compacted and copied, from snapshots too. Equal means that their dumps are, byte for byte."""

from __future__ import annotations

import json
import os
from pathlib import Path
from random import Random

import pytest

from mdstore.device.file import FileDevice
from mdstore.store import Store, Transaction
from mdstore.tools.crash.transactions import Mixed, content_of, outcome
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.problems import Place
from mdstore.tools.reader.snapshots import find_snapshot, place_in
from mdstore.tools.reader.store import StoreReader
from mdstore.tools.reader.superblock import ROOT_OBJECTS
from mdstore.tools.reader.whole import newest_superblock
from tests.commandline import Run
from tests.unit.whole_images import CONTENT, MIB, body, digest, dump, mixed_store, overwrite


def test_a_compacted_image_is_smaller_and_holds_the_same(run: Run, files: Path, tmp_path: Path) -> None:
    compacted = run("compact", files, tmp_path / "small", "--json")
    assert compacted.code == 0, compacted
    assert os.path.getsize(tmp_path / "small") == json.loads(compacted.out)["size_bytes"] < os.path.getsize(files)
    assert body(dump(tmp_path / "small")) == body(dump(files))
    assert run("fsck", "--deep", tmp_path / "small").code == 0


def test_compacting_in_place_replaces_the_file_and_keeps_its_mode(run: Run, files: Path) -> None:
    before, size = body(dump(files)), os.path.getsize(files)
    files.chmod(0o640)
    assert run("compact", files).code == 0
    assert (files.stat().st_mode & 0o7777, os.path.getsize(files) < size) == (0o640, True)
    assert body(dump(files)) == before
    assert [path.name for path in files.parent.iterdir() if "compact" in path.name] == []


def test_clones_keep_sharing_in_a_compacted_image(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "clones"
    with Store.create(FileDevice.create(str(path), 24 * MIB)) as store:
        store.apply(Transaction().create_collection("c").write("c", "first", 0, os.urandom(MIB)).setattr("c", "first", "a", b"1"))
        for number in range(9):
            name = f"clone-{number}"
            store.apply(Transaction().clone("c", "first", name).rmattr("c", name, "a").map_set("c", name, {b"k": b"%d" % number}))
    assert run("compact", path, tmp_path / "small").code == 0
    assert os.path.getsize(tmp_path / "small") < 8 * MIB
    assert body(dump(tmp_path / "small")) == body(dump(path))
    assert run("fsck", "--deep", tmp_path / "small").code == 0


def test_an_image_with_snapshots_is_not_replaced(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "image"
    store = mixed_store(path, 6, 40)
    store.snapshot("before")
    store.close()
    before = digest(path)
    refused = run("compact", path)
    assert (refused.code, "has snapshots" in refused.err) == (1, True)
    assert digest(path) == before
    assert run("compact", path, tmp_path / "small").code == 0


def test_a_snapshot_is_copied_while_the_image_is_in_use(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "image"
    store, mixed = mixed_store(path, 7, 60), Mixed(8)
    store.snapshot("before")
    content = content_of(store)
    for _ in range(60):
        outcome(store, mixed.transaction())
    store.checkpoint()
    busy = run("copy", path, tmp_path / "no")
    assert (busy.code, "is open in" in busy.err) == (1, True), busy
    assert run("copy", path, tmp_path / "copy", "--snapshot", "before").code == 0
    assert run("copy", path, tmp_path / "no", "--snapshot", "never").code == 1
    assert content_of(store) != content
    dumped = run("dump", "--all", path, "--snapshot", "before").out
    store.close()
    assert not (tmp_path / "no").exists()
    assert dump(tmp_path / "copy").decode() == dumped
    with Store.open(FileDevice.open(str(tmp_path / "copy"))) as copied:
        assert content_of(copied) == content


def test_snapshots_of_one_name_are_told_apart_by_the_form_that_is_offered(run: Run, files: Path, tmp_path: Path) -> None:
    """`recover`, `copy` and `dump --all` did not take the form that their own refusal offered; `fsck` showed another."""
    for directory in ("/", "/sub"):
        assert run("snapshot", "create", files, "same", directory).code == 0
        assert run("rm", files, "/hello" if directory == "/" else "/sub/data").code == 0
    listed = [row["name"] for row in run("dump", files, "snapshots", "--json").json()["snapshots"]]
    for command in (["copy", files, tmp_path / "new"], ["recover", files, tmp_path / "new"], ["dump", "--all", files]):
        offered = run(*command, "--snapshot", "same")
        assert offered.code in (1, 8), offered
        names = [word.strip(",;\n") for word in offered.err.split() if word.startswith("0x")]
        assert names == listed, offered
        for name in names:
            assert run(*command, *(["--force"] if command[0] != "dump" else []), "--snapshot", name).code == 0, name
    assert body(dump(tmp_path / "new")) == body(dump(files, listed[1]))
    assert body(dump(files, listed[0])) != body(dump(files, listed[1]))
    assert run("fsck", files, "--snapshot", listed[0]).code == 0
    assert str(place_in(bytes.fromhex(listed[0][2:]), Place())) == f"snapshot {listed[0]} (same of inode 1)"


@pytest.mark.parametrize("has_some", [False, True])
def test_a_snapshot_that_is_not_there_is_answered_with_those_that_are(run: Run, files: Path, has_some: bool) -> None:
    if has_some:
        assert run("snapshot", "create", files, "before", "/sub").code == 0
        assert run("snapshot", "create", files, "0x41").code == 0
    expected = "there are: 0x30783431, before" if has_some else "the image has none"
    new = files.parent / "new"
    for command in (["copy", files, new], ["recover", files, new], ["dump", "--all", files], ["fsck", files]):
        refused = run(*command, "--snapshot", "nope")
        assert (refused.code, expected in refused.err) == (8 if command[0] in ("dump", "fsck") else 1, True), refused
    refused = run("snapshot", "delete", files, "nope", "--store")
    assert (refused.code, "the image has none" in refused.err) == (1, True), refused
    if has_some:
        assert run("copy", files, new, "--snapshot", "0x30783431").code == 0


@pytest.mark.parametrize("what", ["data block", "leaf of objects"])
def test_what_still_reads_of_a_damaged_snapshot_is_saved_and_the_rest_is_named(run: Run, tmp_path: Path, what: str) -> None:
    """Damage that only a snapshot reached was a reason to delete it with all it had: a copy ended at the damage."""
    path = tmp_path / "image"
    store = Store.create(FileDevice.create(path, 4 * MIB), block_size=512, log_bytes=256 << 10, background=False)
    store.apply(Transaction().create_collection("c"))
    contents = {b"o%03d" % number: Random(number).randbytes(900) for number in range(120)}
    for name, data in contents.items():
        store.apply(Transaction().write("c", name, 0, data).setattr("c", name, "a", b"x" * 60))
    store.snapshot("kept")
    with store.open_snapshot("kept") as view:
        assert view.read("c", b"o007") == contents[b"o007"]
    for name in contents:
        store.apply(Transaction().write("c", name, 0, b"new" * 300))
    store.close()
    with Image(str(path)) as image:
        reader = StoreReader(image, find_snapshot(StoreReader(image, newest_superblock(image)), b"kept").superblock)
        pages: list[int] = []
        tree = reader.root_tree(ROOT_OBJECTS)
        tree.on_pages = lambda page, _, is_overflow: (None if is_overflow else pages.append(page)) is None
        list(tree.items())
    at = pages[-1] * 512 if what == "leaf of objects" else path.read_bytes().rindex(contents[b"o007"][:400])
    overwrite(path, at, b"rot")
    checked = run("fsck", "--deep", path)
    assert (checked.code, "mdstore recover --snapshot" in checked.out) == (4, True), checked
    assert run("copy", path, tmp_path / "copy", "--snapshot", "kept").code == 1
    assert run("recover", path, tmp_path / "saved", "--snapshot", "never").code == 1
    saved = run("recover", path, tmp_path / "saved", "--snapshot", "kept")
    assert (saved.code, "lost: c/o007 bytes" in saved.out) == (4, what == "data block"), saved
    assert ("lost: the objects of c" in saved.out) == (what != "data block"), saved
    assert run("fsck", "--deep", tmp_path / "saved").code == 0
    with Store.open(FileDevice.open(tmp_path / "saved")) as again:
        found = {name: again.read("c", name) for name in again.list_objects("c")}
    differ = {name for name, data in contents.items() if found.get(name) != data}
    assert differ == {b"o007"} if what == "data block" else 0 < len(differ) < 20 and not differ & found.keys()
    assert run("snapshot", "delete", path, "kept", "--store").code == 0
    assert run("fsck", "--deep", path).code == 0


def test_a_target_stays_what_it_was_until_the_new_image_is_whole(tmp_path: Path, run: Run) -> None:
    """A damaged source, a dump cut short: what was there with --force is untouched, and nothing half made is left."""
    source, kept = tmp_path / "source", tmp_path / "kept"
    for path in (source, kept):
        with Store.create(FileDevice.create(path, 16 * MIB)) as store:
            store.apply(Transaction().create_collection("c").write("c", "o", 0, CONTENT))
    before = kept.read_bytes()
    assert run("dump", "--all", source).code == 0
    damaged = bytearray(source.read_bytes())
    at = damaged.index(CONTENT[:4096])
    damaged[at + 5] ^= 1
    source.write_bytes(damaged)
    assert run("copy", source, kept, "--force").code == 1
    assert kept.read_bytes() == before
    cut = tmp_path / "cut"
    cut.write_bytes(b'{"format": "nonsense"}\n')
    assert run("load", kept, cut, "--force").code == 1
    assert run("load", cut, cut, "--force").code == 1
    assert kept.read_bytes() == before
    assert cut.read_bytes().startswith(b'{"format"')
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "kept", "source"]


def test_an_image_in_use_is_not_replaced(tmp_path: Path, run: Run) -> None:
    source, used = tmp_path / "source", tmp_path / "used"
    with Store.create(FileDevice.create(source, 16 * MIB)) as store:
        store.apply(Transaction().create_collection("c"))
    with Store.create(FileDevice.create(used, 16 * MIB)) as store:
        store.apply(Transaction().create_collection("mine"))
        found = run("copy", source, used, "--force")
        assert found.code == 1
        assert "in use" in found.err or "open" in found.err, found.err
        assert store.list_collections() == [b"mine"]


def test_compacting_overwrites_nothing_unasked_and_follows_a_link_to_the_image(tmp_path: Path, run: Run) -> None:
    image, link, precious = tmp_path / "image", tmp_path / "link", tmp_path / "image.compact"
    with Store.create(FileDevice.create(image, 64 * MIB)) as store:
        store.apply(Transaction().create_collection("c").write("c", "o", 0, CONTENT))
    precious.write_text("precious")
    other = tmp_path / "other"
    other.write_text("other")
    assert run("compact", image).code == 1
    assert run("compact", image, other).code == 1
    assert precious.read_text() == "precious"
    assert other.read_text() == "other"
    precious.unlink()
    link.symlink_to(image)
    assert run("compact", link).code == 0
    assert link.is_symlink()
    assert image.stat().st_size < 64 * MIB
