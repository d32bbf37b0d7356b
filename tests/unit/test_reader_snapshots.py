"""The second reader on images with snapshots: sound ones are clean, every wrong dead run is found, one can be checked alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.errors import NotFound
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from mdstore.tools import cli
from mdstore.tools.reader.check import DEEP, NORMAL, QUICK, Options, Result, check_image
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.page import Reference
from mdstore.tools.reader.problems import Problem
from mdstore.tools.reader.snapshots import find_snapshot
from mdstore.tools.reader.store import StoreReader
from mdstore.tools.reader.superblock import ROOT_OBJECTS, read_copies, usable
from mdstore.tools.reader.views import Source, snapshots_view
from tests.crash.store_workload import COLLECTIONS, Mixed, outcome

SIZE = 2 << 20


def store_with_snapshots(seed: int = 1) -> tuple[Store, MemoryDevice]:
    """Four snapshots, one deleted between them; clones, maps, large and spilled values."""
    device = MemoryDevice(SIZE)
    store = Store.create(device, block_size=512, log_bytes=64 * 1024, background=False)
    first = Transaction()
    for collection in COLLECTIONS:
        first.create_collection(collection)
    store.apply(first)
    mixed = Mixed(seed)
    for name in ("a", "gone", "b", "c"):
        for _ in range(30):
            outcome(store, mixed.transaction())
        store.snapshot(name)
    for _ in range(30):
        outcome(store, mixed.transaction())
    store.delete_snapshot("gone")
    store.checkpoint()
    return store, device


def fsck(path: Path, device: MemoryDevice, options: Options) -> tuple[Result, list[Problem]]:
    path.write_bytes(device.image())
    problems: list[Problem] = []
    return check_image(str(path), options, problems.append), problems


@pytest.mark.parametrize("seed", range(4))
def test_an_image_with_snapshots_is_clean(seed: int, tmp_path: Path) -> None:
    store, device = store_with_snapshots(seed)
    result, problems = fsck(tmp_path / "image", device, Options(DEEP))
    assert not [problem for problem in problems if problem.severity == "error"], problems
    assert result.counts["snapshots"] == 3
    for name in ("b", "a", "c"):
        store.delete_snapshot(name)
        result, problems = fsck(tmp_path / "image", device, Options(DEEP))
        assert not [problem for problem in problems if problem.severity == "error"], problems
    assert "snapshots" not in result.counts


@pytest.mark.parametrize("cut", [9_000, 300_000, 1_500_000])
def test_the_missing_end_of_an_image_is_said_once(cut: int, tmp_path: Path) -> None:
    """Its space was called leaked and its count wrong, in every snapshot too, and the remedy was to delete them."""
    store, device = store_with_snapshots()
    store.close()
    path = tmp_path / "image"
    path.write_bytes(device.image()[:-cut])
    problems: list[Problem] = []
    check_image(str(path), Options(DEEP), problems.append)
    found = {problem.code for problem in problems}
    assert found == {"image-truncated", "superblock-copy"}
    for name in (b"a", b"b", b"c"):
        alone: list[Problem] = []
        check_image(str(path), Options(DEEP, snapshot=name), alone.append)
        assert not alone


def test_a_snapshot_half_deleted_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mdstore.store.snapshots._STEP_RUNS", 2)
    store, device = store_with_snapshots()
    seen = []

    def progress(done: int) -> None:
        result, problems = fsck(tmp_path / "image", device, Options(DEEP))
        seen.append(result.counts["snapshots"])
        assert not [problem for problem in problems if problem.severity == "error"], problems

    store.delete_snapshot("b", progress=progress)
    assert len(seen) > 2
    assert (seen[0], seen[-1]) == (3, 2)


def test_one_snapshot_is_checked_alone_whatever_became_of_the_rest(tmp_path: Path) -> None:
    store, device = store_with_snapshots()
    for level in (QUICK, NORMAL, DEEP):
        result, problems = fsck(tmp_path / "image", device, Options(level, snapshot=b"b"))
        assert not problems
        assert result.epoch == next(info.epoch for info in store.snapshots() if info.name == b"b")
    with pytest.raises(NotFound, match="snapshot"):
        fsck(tmp_path / "image", device, Options(snapshot=b"gone"))


def test_rot_in_what_only_a_snapshot_reaches_names_the_snapshot(tmp_path: Path) -> None:
    store, device = store_with_snapshots()
    store.apply(Transaction().write("alpha", "victim", 0, Random(7).randbytes(5000)))
    store.snapshot("d")
    at = device.image().rindex(Random(7).randbytes(400))
    store.apply(Transaction().remove("alpha", "victim"))
    store.checkpoint()
    device.write(at, [b"rot"])
    _, problems = fsck(tmp_path / "image", device, Options(DEEP))
    (problem,) = [problem for problem in problems if problem.severity == "error"]
    assert problem.code == "data-checksum"
    assert str(problem.place).startswith("snapshot d, alpha/victim")
    assert "`mdstore snapshot delete`" in problem.remedy
    store.close()
    (tmp_path / "image").write_bytes(device.image())
    delete = ["snapshot", "delete", str(tmp_path / "image")]
    assert cli.run([*delete, "d"]) != 0, "no directory has it"
    assert cli.run([*delete, "e", "--store"]) != 0
    assert cli.run([*delete, "d", "--store"]) == 0
    found: list[Problem] = []
    assert check_image(str(tmp_path / "image"), Options(DEEP), found.append).errors == 0, found
    _, problems = fsck(tmp_path / "image", device, Options(DEEP, snapshot=b"d"))
    assert [problem.code for problem in problems] == ["data-checksum"]


def test_dump_shows_snapshots_and_dead(tmp_path: Path) -> None:
    store, device = store_with_snapshots()
    (tmp_path / "image").write_bytes(device.image())
    with Image(str(tmp_path / "image")) as image:
        sections = {section.name: list(section.rows) for section in snapshots_view(Source(image))}
    assert [row["name"] for row in sections["snapshots"]] == ["a", "b", "c"]
    runs = sum(int(str(row["blocks"])) for row in sections["dead"])
    assert runs == sum(run.blocks for run in store.tables.space.snapshots.all_dead())


Entry = tuple[int, int, int, int]  # epoch, start, blocks, birth


def _later_birth(entry: Entry) -> Entry:
    return (*entry[:3], entry[0])


def _under_another(entry: Entry) -> Entry:
    return (entry[0] - 1, entry[1], entry[2], min(entry[3], entry[0] - 1))


def _shifted(entry: Entry) -> Entry:
    return (entry[0], entry[1] + 1, entry[2], entry[3])


def _impossible(entry: Entry) -> Entry:
    return (entry[0], entry[1], entry[2], entry[0] + 1)


def _outside(entry: Entry) -> Entry:
    return (entry[0], 1 << 40, entry[2], entry[3])


def _gone(entry: Entry) -> None:
    return None


@pytest.mark.parametrize("change", [_later_birth, _under_another, _shifted, _impossible, _outside, _gone])
def test_every_wrong_dead_run_is_found(change: Callable[[Entry], Entry | None], tmp_path: Path) -> None:
    device = MemoryDevice(SIZE)
    store = Store.create(device, block_size=512, log_bytes=64 * 1024, background=False)
    store.apply(Transaction().create_collection("c").write("c", "o", 0, bytes(5000)))
    store.snapshot("a")
    store.snapshot("b")
    store.apply(Transaction().remove("c", "o"))
    store.checkpoint()
    table = store.tables.space.snapshots
    victim = next(run for run in table.all_dead() if run.blocks >= 10)
    table.dead.delete(victim.epoch.to_bytes(8, "big") + victim.start.to_bytes(8, "big"))
    wrong = change(victim)
    if wrong is not None:
        epoch, start, blocks, birth = wrong
        value = blocks.to_bytes(8, "little") + birth.to_bytes(8, "little")
        table.dead.put(epoch.to_bytes(8, "big") + start.to_bytes(8, "big"), value)
    store.checkpoint()
    result, problems = fsck(tmp_path / "image", device, Options())
    assert result.codes.get("dead-run") or result.codes.get("space-leaked"), problems


def test_a_wrong_record_is_found(tmp_path: Path) -> None:
    device = MemoryDevice(SIZE)
    store = Store.create(device, block_size=512, log_bytes=64 * 1024, background=False)
    store.snapshot("a")
    records = store.tables.space.snapshots.records
    raw = bytearray(records.get(b"a") or b"")
    for at in range(0, len(raw), 5):
        if 8 <= at < 16:
            continue  # any time may be right
        raw[at] ^= 4
        records.put(b"a", bytes(raw))
        store.checkpoint()
        result, problems = fsck(tmp_path / "image", device, Options())
        assert result.codes.get("snapshot"), (at, problems)
        raw[at] ^= 4


def test_a_quick_check_of_a_snapshot_enters_its_trees(tmp_path: Path) -> None:
    """It said clean, and had looked at nothing."""
    _, device = store_with_snapshots()
    options = Options(QUICK, snapshot=b"a")
    assert not fsck(tmp_path / "image", device, options)[1]
    with Image(str(tmp_path / "image")) as image:
        found = find_snapshot(StoreReader(image, usable(read_copies(image))[0]), b"a").superblock
        content = StoreReader(image, found).root_tree(ROOT_OBJECTS).root.content
    assert isinstance(content, Reference)
    device.write(content.addresses[0] * 512, [bytes(512)])
    result, problems = fsck(tmp_path / "image", device, options)
    assert result.errors == len(problems) > 0
    assert {problem.code for problem in problems} == {"page-checksum"}
