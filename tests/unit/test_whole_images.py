"""Whole images made anew: dumped and loaded, salvaged, compacted, copied. Equal means that their dumps are, byte for byte."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from random import Random

import pytest

from mdstore.device.file import FileDevice
from mdstore.errors import CorruptionError, UnsupportedFormat
from mdstore.store import Store, Transaction
from mdstore.store.check import check
from mdstore.store.log import log_size
from mdstore.store.revisions import revision_key
from mdstore.tools.crash.transactions import content_of
from mdstore.tools.image_loader import Shape, make_image_of
from mdstore.tools.reader.dump_lines import DumpHeader, DumpLines, encode_dump
from mdstore.tools.reader.floors import Floor
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.page import Reference
from mdstore.tools.reader.store import StoreReader
from mdstore.tools.reader.stream import CollectionRecord, DataRecord, ObjectRecord, PairsRecord, Record
from mdstore.tools.reader.superblock import ROOT_OBJECTS
from mdstore.tools.reader.superblock import SIZE as SUPERBLOCK_SIZE
from mdstore.tools.reader.whole import newest_superblock, stream_of
from tests.commandline import Run
from tests.unit.whole_images import CONTENT, MIB, SMALL, body, digest, dump, mixed_store, overwrite

PAGE = Path(__file__).parents[2] / "docs" / "format" / "dump.md"


# -- dump and load -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_dump_makes_an_image_whose_dump_is_the_same(tmp_path: Path, seed: int) -> None:
    store = mixed_store(tmp_path / "old", seed)
    content = content_of(store)
    dumped = dump(tmp_path / "old")
    store.close()
    assert dump(tmp_path / "old") == dumped, "a checkpoint changes no content"
    assert b'"revision"' in dumped
    lines = DumpLines(dumped.splitlines(keepends=True), "dump")
    size_bytes, block_size, log_bytes = lines.header
    make_image_of(str(tmp_path / "new"), Shape(size_bytes, block_size, log_bytes=log_bytes), lines.records())
    assert dump(tmp_path / "new") == dumped
    with Store.open(FileDevice.open(str(tmp_path / "new"))) as again:
        assert content_of(again) == content
        assert not check(again, deep=True)


def test_revisions_come_back_to_the_revisions_they_answer_for(tmp_path: Path) -> None:
    with Store.create(FileDevice.create(str(tmp_path / "old"), MIB), **SMALL) as store:
        store.apply(Transaction().create_collection("c").at_revision(2).write("c", "o", 0, b"two").map_set("c", "o", {b"2": b""}))
        store.apply(Transaction().at_revision(5).write("c", "o", 0, b"FIVE").at_revision(9).remove("c", "o"))
        store.apply(Transaction().at_revision(11).setattr("c", "o", "a", b"eleven"))
    dumped = dump(tmp_path / "old")
    lines = DumpLines(dumped.splitlines(keepends=True), "dump")
    shape = Shape(MIB, lines.header.block_size, log_bytes=lines.header.log_bytes)
    loaded = make_image_of(str(tmp_path / "new"), shape, lines.records())
    assert (loaded.objects, loaded.revisions) == (1, 2)
    assert dump(tmp_path / "new") == dumped
    with Store.open(FileDevice.open(str(tmp_path / "new"))) as store:
        assert [store.read("c", "o", rev=rev) for rev in (2, 5)] == [b"two", b"FIVE"]
        assert store.getattrs("c", "o") == {b"a": b"eleven"}
        assert [revision.rev for revision in store.revisions("c", "o")] == [5, 9]


def test_the_commands_agree_and_the_new_image_checks(run: Run, files: Path, tmp_path: Path) -> None:
    dumped = run("dump", "--all", files)
    assert dumped.code == 0
    (tmp_path / "dump").write_text(dumped.out)
    loaded = run("load", tmp_path / "new.img", tmp_path / "dump", "--json")
    assert loaded.code == 0
    assert json.loads(loaded.out)["data_bytes"] > 100_000
    assert run("dump", "--all", tmp_path / "new.img").out == dumped.out
    assert run("fsck", "--deep", tmp_path / "new.img").code == 0
    assert run("cat", tmp_path / "new.img", "/sub/data").out == run("cat", files, "/sub/data").out


def test_the_format_page_s_example_is_read_and_written_so() -> None:
    example = PAGE.read_text().split("```")[1].lstrip("\n").encode()
    lines = DumpLines(example.splitlines(keepends=True), "page")
    records = list(lines.records())
    assert lines.header == DumpHeader(MIB, 4096, log_size(MIB, 4096))
    assert records == [CollectionRecord(b"c"), ObjectRecord(b"o", 1, (), b""), DataRecord(0, b"x")]
    assert b"".join(encode_dump(lines.header, records)) == example


def sample() -> bytes:
    records: list[Record] = [
        CollectionRecord(b"c\0"),
        ObjectRecord(b"o", 9, ((b"a", b"\xff"),), b"header", 3, 4, hint=(1 << 59, 7, 1)),
        DataRecord(0, b"x" * 9),
        ObjectRecord(b"o", 0, (), b"", 4),
        PairsRecord(((b"k", b"v"), (b"l", b""))),
    ]
    return b"".join(encode_dump(DumpHeader(MIB, 512, 64 << 10), records))


def test_every_damaged_byte_of_a_dump_is_noticed() -> None:
    whole = sample()
    expected = list(DumpLines(whole.splitlines(keepends=True), "dump").records())
    for at in range(len(whole)):
        for damaged in (whole[at] ^ 1, whole[at] ^ 0x80, 0x20):
            changed = whole[:at] + bytes([damaged]) + whole[at + 1 :]
            try:
                assert list(DumpLines(changed.splitlines(keepends=True), "dump").records()) == expected
            except (CorruptionError, UnsupportedFormat):
                continue


@pytest.mark.parametrize("kept", [0, 1, 40, -1, -2, -30, -100])
def test_a_dump_cut_short_makes_no_image(run: Run, tmp_path: Path, kept: int) -> None:
    (tmp_path / "dump").write_bytes(sample()[:kept])
    refused = run("load", tmp_path / "new.img", tmp_path / "dump")
    assert refused.code == 1
    assert "damaged dump" in refused.err
    assert not (tmp_path / "new.img").exists()


def test_contents_that_cannot_be_are_refused(run: Run, tmp_path: Path) -> None:
    impossible: list[list[Record]] = [
        [ObjectRecord(b"o", 1, (), b"")],
        [CollectionRecord(b"c"), DataRecord(0, b"x")],
        [CollectionRecord(b"c"), ObjectRecord(b"o", 1, (), b""), DataRecord(0, b"xy")],
        [CollectionRecord(b"c"), CollectionRecord(b"c")],
        [CollectionRecord(b"c" * 300)],
        [CollectionRecord(b"d"), CollectionRecord(b"c")],
        [CollectionRecord(b"c"), ObjectRecord(b"p", 0, (), b""), ObjectRecord(b"o", 0, (), b"")],
        [CollectionRecord(b"c"), ObjectRecord(b"o", 0, (), b""), ObjectRecord(b"o", 0, (), b"", 2, 3)],
        [CollectionRecord(b"c"), ObjectRecord(b"o", 0, (), b"", 7, 5)],
        [CollectionRecord(b"c"), ObjectRecord(b"o", 0, ((b"a", b"1"), (b"a", b"2")), b"")],
        [CollectionRecord(b"c"), ObjectRecord(b"o", 9, (), b""), DataRecord(4, b"x"), DataRecord(0, b"x")],
        [CollectionRecord(b"c"), ObjectRecord(b"o", 9, (), b""), DataRecord(0, b"xy"), DataRecord(1, b"x")],
        [CollectionRecord(b"c"), ObjectRecord(b"o", 0, (), b""), PairsRecord(((b"k", b""), (b"j", b"")))],
        [CollectionRecord(b"c"), ObjectRecord(b"o", 1, (), b""), PairsRecord(((b"k", b""),)), DataRecord(0, b"x")],
        [Floor("store", b"", b"", 3), CollectionRecord(b"c")],
        [Floor("object", b"c", b"o", 3), Floor("store", b"", b"", 3)],
        [Floor("store", b"c", b"", 3)],
        [Floor("cellar", b"", b"", 3)],
    ]
    for number, records in enumerate(impossible):
        (tmp_path / "dump").write_bytes(b"".join(encode_dump(DumpHeader(MIB, 512), records)))
        refused = run("load", tmp_path / "new.img", tmp_path / "dump")
        assert (refused.code, refused.err.count("\n")) == (1, 1), (number, refused)
        assert "unexpected" not in refused.err
        assert not (tmp_path / "new.img").exists()


def test_loading_says_what_stands_in_the_way(run: Run, files: Path, tmp_path: Path) -> None:
    (tmp_path / "dump").write_text(run("dump", "--all", files).out)
    (tmp_path / "there").write_bytes(b"precious")
    refused = run("load", tmp_path / "there", tmp_path / "dump")
    assert (refused.code, "--force" in refused.err) == (1, True)
    assert (tmp_path / "there").read_bytes() == b"precious"
    small = run("load", tmp_path / "small", tmp_path / "dump", "--size", "1M")
    assert (small.code, "make it larger (--size)" in small.err) == (1, True), small
    assert not (tmp_path / "small").exists()
    for options in (["--size", "1K"], ["--log-size", "20M"]):
        tiny = run("load", tmp_path / "tiny", tmp_path / "dump", *options)
        assert (tiny.code, f"{tmp_path / 'tiny'} has " in tiny.err, ".part" in tiny.err) == (1, True, False), tiny
    for version in ("3.0", "true", "4"):
        (tmp_path / "odd").write_text((tmp_path / "dump").read_text().replace('"version":3', f'"version":{version}', 1))
        odd = run("load", tmp_path / "tiny", tmp_path / "odd")
        assert (odd.code, "dump of version" in odd.err) == (1, True), odd
    assert run("load", tmp_path / "there", tmp_path / "dump", "--force").code == 0
    assert run("dump", files, "--snapshot", "x").code == 2
    assert run("dump", files, "trees", "--all").code == 2


def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with Store.create(FileDevice.create(str(path), 48 * MIB)) as store:
        store.apply(Transaction().create_collection("c"))
        for number in range(32):
            store.apply(Transaction().write("c", "large", number * MIB, os.urandom(MIB)))
            store.apply(Transaction().map_set("c", "map", {b"%d-%d" % (number, i): b"v" * 1000 for i in range(100)}))
    tracemalloc.start()
    with Image(str(path)) as image:
        stream = stream_of(image)
        length = sum(map(len, encode_dump(DumpHeader(image.size, stream.block_size), stream.records())))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert length > 40 * MIB
    assert peak < 12 * MIB


# -- recover -----------------------------------------------------------------------------------------------------------


def test_a_sound_image_is_recovered_whole(run: Run, files: Path, tmp_path: Path) -> None:
    recovered = run("recover", files, tmp_path / "saved")
    assert recovered.code == 0, recovered
    assert dump(tmp_path / "saved") == dump(files)


def test_a_bad_block_costs_its_bytes_and_is_listed_by_the_file_s_name(run: Run, files: Path, tmp_path: Path) -> None:
    content = CONTENT[:4096]
    at = files.read_bytes().index(content)
    overwrite(files, at + 100, b"rot")
    before = digest(files)
    refused = run("dump", "--all", files)
    assert refused.code == 4
    assert "mdstore recover" in refused.err
    recovered = run("recover", files, tmp_path / "saved", "--json")
    assert recovered.code == 4
    (lost,) = json.loads(recovered.out)["lost"]
    assert lost["path"] == "/sub/data"
    assert lost["whose"].endswith("bytes 0 .. 4096")
    assert digest(files) == before, "the source is never written"
    assert run("fsck", tmp_path / "saved").code == 0
    saved = tmp_path / "out"
    assert run("export", tmp_path / "saved", "/", saved).code == 0
    assert (saved / "hello").read_bytes() == b"hello, world\n" * 1000
    assert (saved / "sub" / "data").read_bytes() == bytes(4096) + CONTENT[4096:]


def test_any_block_of_an_image_may_be_bad(run: Run, tmp_path: Path) -> None:
    """Whatever block is lost, the rest is saved, what was lost is said, and nothing is made up."""
    path = tmp_path / "old"
    mixed_store(path, 4).close()
    image, content = path.read_bytes(), dict(body_items(dump(path)))
    space = range(2 * SUPERBLOCK_SIZE + 64 * 1024, len(image) - 2 * SUPERBLOCK_SIZE, 512)
    used = [offset for offset in space if any(image[offset : offset + 512])]
    lossy = 0
    for offset in Random(1).sample(used, 50):
        path.write_bytes(image)
        overwrite(path, offset, bytes(512))
        recovered = run("recover", path, tmp_path / "new", "--force")
        assert recovered.code in (0, 4), recovered
        lossy += recovered.code == 4
        saved = dict(body_items(dump(tmp_path / "new")))
        assert set(saved) <= set(content), "an object was made up"
        if recovered.code == 0:
            assert saved == content, f"byte {offset}: something was lost and not said"
    assert lossy > 10


def body_items(dumped: bytes) -> list[tuple[str, tuple[bytes, ...]]]:
    """(collection and object, its lines) of a dump."""
    home, name, lines, items = "", "", list[bytes](), list[tuple[str, tuple[bytes, ...]]]()
    for raw in [*body(dumped), b'{"collection":""}']:
        line = json.loads(raw)
        if "collection" in line or "object" in line:
            if name:
                items.append((name, tuple(lines)))
            home = str(line.get("collection", home))
            name, lines = ("", []) if "collection" in line else (f"{home}/{line['object']}/{line.get('revision')}", [])
        lines.append(raw)
    return items


def test_revisions_that_cannot_be_are_recovered_where_they_fit_and_said(run: Run, tmp_path: Path) -> None:
    """One that ends before it begins went without a word, and a dump that held one could not be loaded."""
    path = tmp_path / "old"
    store = Store.create(FileDevice.create(str(path), MIB), **SMALL)
    store.apply(Transaction().create_collection("c"))
    for rev in (0, 3, 7):
        store.apply(Transaction(rev=rev).write("c", "o", 0, b"%d" % rev * 9))
    expected = [store.read("c", "o", rev=rev) for rev in range(1, 9)]
    for rev, begins in ((3, 50), (7, 1)):
        onode = store.tables.objects.at(revision_key(1, b"o", rev))
        assert onode is not None
        onode.created_rev = begins
        store.tables.objects.mark_dirty(onode)
    store.close()
    dumped = run("dump", "--all", path)
    assert (dumped.code, "begins at 50" in dumped.err) == (4, True), dumped
    recovered = run("recover", path, tmp_path / "new")
    assert recovered.code == 4
    assert recovered.out.count("must begin from") == 2, recovered.out
    assert run("fsck", "--deep", tmp_path / "new").code == 0
    with Store.open(FileDevice.open(str(tmp_path / "new"))) as store:
        assert [store.read("c", "o", rev=rev) for rev in range(1, 9)] == expected


def test_an_older_superblock_serves_where_the_newest_leads_nowhere(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "old"
    with Store.create(FileDevice.create(str(path), MIB), **SMALL) as store:
        store.apply(Transaction().create_collection("c"))
        for number in range(400):
            store.apply(Transaction().touch("c", f"object-{number}"))
    with Image(str(path)) as image:
        newest = newest_superblock(image)
        root = StoreReader(image, newest).root_tree(ROOT_OBJECTS).root.content
    assert isinstance(root, Reference)
    overwrite(path, root.addresses[0] * 512, bytes(512))
    recovered = run("recover", path, tmp_path / "new")
    assert recovered.code == 4
    assert f"the superblock of epoch {newest.epoch} leads nowhere; epoch {newest.epoch - 1} is taken" in recovered.out
    with Store.open(FileDevice.open(str(tmp_path / "new"))) as store:
        assert len(store.list_objects("c")) == 400


@pytest.mark.parametrize("arguments", [("recover", "nowhere", "new"), ("compact", "nowhere"), ("copy", "nowhere", "new")])
def test_a_source_that_is_not_there_is_refused(run: Run, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    refused = run(arguments[0], *(tmp_path / name for name in arguments[1:]))
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert not list(tmp_path.iterdir())


def test_source_and_target_must_differ(run: Run, files: Path) -> None:
    before = digest(files)
    for verb in ("recover", "copy", "compact"):
        assert run(verb, files, files, "--force").code == 1
    assert digest(files) == before
