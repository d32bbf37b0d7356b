"""What whole images made anew keep beside content: floors, allocation hints, the size of the log, reserved room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mdstore.device.file import FileDevice
from mdstore.errors import FencedError, TransactionError
from mdstore.store import Store, Transaction
from mdstore.store.log import log_size
from mdstore.store.onode import object_key
from mdstore.store.revisions import revision_key
from mdstore.store.transaction import HINT_UNCHECKED
from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.dump_lines import DumpHeader, encode_dump
from mdstore.tools.reader.floors import Floor
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.stream import CollectionRecord, DataRecord, ObjectRecord, Record
from mdstore.tools.reader.whole import stream_of
from tests.commandline import Ran, Run
from tests.unit.whole_images import SMALL, body, dump

MIB = 1 << 20


# -- floors, room, shape -----------------------------------------------------------------------------------------------
def fenced_image(path: Path, *, is_closed: bool) -> None:
    """Floors of every scope, some of them in the log alone, carried along by a split too."""
    store = Store.create(FileDevice.create(path, 4 * MIB), block_size=512, background=False, stripe_bytes=4096)
    store.apply(Transaction().create_collection("c").create_collection("d").write("c", "head", 0, b"owner 7").touch("c", "x"))
    store.apply(Transaction().set_floor(7, "c", name="head"))
    store.checkpoint()
    store.apply(Transaction().set_floor(2).set_floor(3, "d").set_floor(4, "c", prefix="lo\xff").set_floor(9, "c", name="x"))
    store.apply(Transaction().create_collection("e").split("c", 1, 1, "e"))
    if is_closed:
        store.close()
    else:
        store.device.close()


def dumped_and_loaded(run: Run, old: Path, new: Path) -> Ran:
    (new.parent / "dump").write_text(run("dump", "--all", old).out)
    return run("load", new, new.parent / "dump")


FLOORS_KEPT: dict[str, Callable[[Run, Path, Path], Ran]] = {
    "load": lambda run, old, new: dumped_and_loaded(run, old, new),
    "copy": lambda run, old, new: run("copy", old, new),
    "compact": lambda run, old, new: run("compact", old, new),
    "recover": lambda run, old, new: run("recover", old, new),
}


@pytest.mark.parametrize("is_closed", [True, False])
@pytest.mark.parametrize("how", FLOORS_KEPT)
def test_a_new_image_holds_off_whom_the_old_one_did(run: Run, tmp_path: Path, how: str, is_closed: bool) -> None:
    """A replaced writer got into a compacted image: floors were left behind."""
    fenced_image(tmp_path / "old", is_closed=is_closed)
    assert FLOORS_KEPT[how](run, tmp_path / "old", tmp_path / "new").code == 0
    assert dump(tmp_path / "new").splitlines()[1:-1] == dump(tmp_path / "old").splitlines()[1:-1]
    old = Store.open(FileDevice.open(tmp_path / "old"), background=False)
    new = Store.open(FileDevice.open(tmp_path / "new"), background=False)
    assert dict(new.tables.floors) == dict(old.tables.floors)
    assert len(dict(new.tables.floors)) >= 5
    for stale, name in ((5, "head"), (1, "anything"), (8, "x")):
        home = "c" if new.exists("c", name) or name == "anything" else "e"
        with pytest.raises(TransactionError) as refused:
            new.apply(Transaction(epoch=stale).write(home, name, 0, b"stale"))
        assert isinstance(refused.value.cause, FencedError)
    stripes = {(store.superblock.stripe_bytes, store.superblock.stripe_offset) for store in (old, new)}
    assert len(stripes) == (2 if how == "load" else 1)
    old.close()
    new.close()


@pytest.mark.parametrize("options", [(), ("--sparse",)])
def test_a_new_image_has_its_room_reserved_unless_told_otherwise(
    run: Run, image: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """`mkfs` reserves an image's space, so that no full disk is met later; what was made of an image did not."""
    taken = {}
    for how in ("copy", "compact", "recover"):
        assert run(how, image, tmp_path / how, "--size", "16M", *options).code == 0
        taken[how] = (tmp_path / how).stat().st_blocks * 512
    assert all((size >= 16 * MIB) == (not options) for size in taken.values()), taken


def test_a_size_that_no_file_has_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "dump").write_bytes(b"".join(encode_dump(DumpHeader((1 << 64) - 1, 512, 65536), [])))
    refused = run("load", tmp_path / "new", tmp_path / "dump")
    assert refused.code == 1
    assert "size of an image" in refused.err
    assert "bug" not in refused.err


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_dump_is_loaded(run: Run, tmp_path: Path, version: int) -> None:
    """They say nothing of the log, nor, before version 2, of floors."""
    floors = [Floor("store", b"", b"", 3)] if version == 2 else []
    records: list[Record] = [CollectionRecord(b"c"), ObjectRecord(b"o", 1, (), b""), DataRecord(0, b"x"), *floors]
    first = b'{"format":"mdstore dump","version":%d,"size_bytes":%d,"block_size":512}\n' % (version, MIB)
    lines = [first, *encode_dump(DumpHeader(MIB, 512), records)][:-1]
    del lines[1]
    checksum = crc32c(b"".join(lines))
    (tmp_path / "dump").write_bytes(b"".join(lines) + b'{"end":%d,"crc":%d}\n' % (len(lines), checksum))
    assert run("load", tmp_path / "new", tmp_path / "dump").code == 0
    assert dump(tmp_path / "new").splitlines()[1:-1] == b"".join(lines).splitlines()[1:]
    with Image(str(tmp_path / "new")) as image:
        assert stream_of(image).log_bytes == log_size(MIB, 512)


# -- allocation hints and the log's size -------------------------------------------------------------------------------
def hinted_image(path: Path, *, is_closed: bool) -> None:
    """Hints of every kind, on objects, revisions and clones, some in the log alone; the log's size was chosen."""
    store = Store.create(FileDevice.create(path, 4 * MIB), **SMALL | {"log_bytes": 96 * 1024, "dirty_bytes": MIB})
    store.apply(Transaction().create_collection("c").alloc_hint("c", "sized", 1 << 30, 4096).write("c", "sized", 0, b"s" * 2000))
    store.apply(Transaction().alloc_hint("c", "plain", 0, 0, HINT_UNCHECKED).write("c", "plain", 0, b"p" * 2000))
    store.apply(Transaction(rev=5).write("c", "plain", 9, b"five").at_revision(0).alloc_hint("c", "plain", 7, 0))
    store.apply(Transaction(rev=4).clone("c", "plain", "twin").clone("c", "sized", "other"))
    store.apply(Transaction().alloc_hint("c", "other", 0, 0).alloc_hint("c", "empty", 1, 2))
    store.checkpoint()
    store.apply(Transaction().alloc_hint("c", "late", 3, 4, HINT_UNCHECKED).write("c", "late", 0, b"l" * 2000))
    store.apply(Transaction().alloc_hint("c", "twin", 5, 6).create_collection("e").split("c", 1, 1, "e"))
    if is_closed:
        store.close()
    else:
        store.device.close()


def hints_of(path: Path) -> dict[tuple[bytes, bytes, int], tuple[tuple[int, int, int], bool, int]]:
    """Hint, checksums of data to come, and created_rev of every object and revision, as the engine has them."""
    store = Store.open(FileDevice.open(path), background=False)
    found = {}
    for home in store.list_collections():
        names = {name: [0] for name in store.list_objects(home)}
        for name in store.list_revised(home):
            names.setdefault(name, []).extend(kept.rev for kept in store.revisions(home, name))
        for name, kept_at in names.items():
            collection = store.tables.collections.get(home)
            assert collection is not None
            for rev in kept_at:
                key = revision_key(collection.number, name, rev) if rev else object_key(collection.number, name)
                onode = store.tables.objects.at(key)
                assert onode is not None
                found[home, name, rev] = (onode.hint or (0, 0, 0), onode.is_checked, onode.created_rev)
    store.close()
    return found


@pytest.mark.parametrize("is_closed", [True, False])
@pytest.mark.parametrize("how", FLOORS_KEPT)
def test_a_new_image_has_the_hints_of_the_old_one(run: Run, tmp_path: Path, how: str, is_closed: bool) -> None:
    """Unchecked data was checked in the new image, and sizes were forgotten; a clone forgot at which revision it was made."""
    hinted_image(tmp_path / "old", is_closed=is_closed)
    made = FLOORS_KEPT[how](run, tmp_path / "old", tmp_path / "new")
    assert made.code == 0, made
    assert body(dump(tmp_path / "new")) == body(dump(tmp_path / "old"))
    found = hints_of(tmp_path / "new")
    assert found == hints_of(tmp_path / "old")
    assert len({hint for hint, _, _ in found.values()}) >= 6
    assert run("fsck", "--deep", tmp_path / "new").code == 0


@pytest.mark.parametrize("log_kib", [3 << 10, 256])
@pytest.mark.parametrize("how", FLOORS_KEPT)
def test_a_log_whose_size_was_chosen_keeps_it(run: Run, tmp_path: Path, how: str, log_kib: int) -> None:
    """An image whose log was made large for its transactions got a log that did not take them; one made small got a large one."""
    assert run("mkfs", tmp_path / "old", "--size", "16M", "--log-size", f"{log_kib}K").code == 0
    assert FLOORS_KEPT[how](run, tmp_path / "old", tmp_path / "new").code == 0
    assert log_of(tmp_path / "new") == log_kib << 10
    if how != "compact":
        assert dump(tmp_path / "new") == dump(tmp_path / "old")


@pytest.mark.parametrize("how", ["copy", "compact", "recover"])
def test_a_log_whose_size_was_not_chosen_follows_the_image(run: Run, tmp_path: Path, how: str) -> None:
    assert run("mkfs", tmp_path / "old", "--size", "32M").code == 0
    assert run(how, tmp_path / "old", tmp_path / "new", "--size", "16M").code == 0
    assert log_of(tmp_path / "new") == log_size(16 * MIB, 4096)
    assert run(how, tmp_path / "old", tmp_path / "other", "--size", "16M", "--log-size", "2M").code == 0
    assert log_of(tmp_path / "other") == 2 * MIB


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("how", FLOORS_KEPT)
def test_an_image_made_of_one_that_has_grown_gets_the_log_it_has(run: Run, tmp_path: Path, how: str, full: bool) -> None:
    """A log that was chosen small cannot be told from that of an image that was small; `--log-size` gives it another."""
    grown(tmp_path / "old", full=full)
    assert FLOORS_KEPT[how](run, tmp_path / "old", tmp_path / "new").code == 0
    assert log_of(tmp_path / "new") == log_of(tmp_path / "old") == MIB // 2
    assert body(dump(tmp_path / "new")) == body(dump(tmp_path / "old"))
    asked = run("copy", tmp_path / "old", tmp_path / "other", "--log-size", "2M")
    assert asked.code == full, "asked for, it is not made smaller"
    assert full or log_of(tmp_path / "other") == 2 * MIB


def grown(path: Path, *, full: bool) -> None:
    """An image of 8 MiB, now of 32."""
    with Store.create(FileDevice.create(path, 8 * MIB)) as store:
        store.apply(Transaction().create_collection("c").write("c", "o", 0, b"content" * 1000))
        store.resize(32 * MIB)
        for number in range(60 if full else 0):
            store.apply(Transaction().write("c", f"fill {number}", 0, bytes([number + 1]) * (MIB // 2)))


@pytest.mark.parametrize("log_bytes", ["16M", "1K"])
def test_a_log_that_does_not_fit_is_refused_and_leaves_nothing(run: Run, tmp_path: Path, log_bytes: str) -> None:
    assert run("mkfs", tmp_path / "old", "--size", "16M").code == 0
    refused = run("copy", tmp_path / "old", tmp_path / "new", "--log-size", log_bytes)
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "--log-size" in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def log_of(path: Path) -> int:
    with Image(str(path)) as image:
        return stream_of(image).log_bytes


def test_a_hint_that_nobody_could_have_given_is_left_out(run: Run, tmp_path: Path) -> None:
    """It is advice: the object is as good without."""
    store = Store.create(FileDevice.create(tmp_path / "old", MIB), **SMALL)
    store.apply(Transaction().create_collection("c").alloc_hint("c", "o", 1, 2).write("c", "o", 0, b"data"))
    onode = store.tables.objects.at(object_key(1, b"o"))
    assert onode is not None
    onode.hint = (1 << 63, 1 << 63, 255)
    store.tables.objects.mark_dirty(onode)
    store.close()
    for how in ("recover", "copy"):
        assert run(how, tmp_path / "old", tmp_path / how).code == 0
        assert b'"hint"' not in dump(tmp_path / how)
