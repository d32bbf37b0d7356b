"""`mdstore repair`: a dry run writes nothing, --apply does what was said, --undo restores every byte, a killed one is ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mdstore.device.file import FileDevice
from mdstore.store import Store
from mdstore.tools.repair import perform, record
from mdstore.tools.repair.bench import RepairOptions
from mdstore.tools.repair.command import repair_command
from mdstore.tools.repair.planning import plan
from mdstore.tools.repair.record import RepairFile
from tests.unit.reader_images import changed, file_system, store_image
from tests.unit.test_repair_names import lost_file, wrong_link_count


@pytest.fixture(scope="module")
def damaged() -> bytes:
    """A file system with two faults, and without its primary superblocks."""

    def inject(store: Store) -> None:
        lost_file(store)
        wrong_link_count(store)

    return bytes(8192) + changed(file_system(), inject)[8192:]


@pytest.fixture
def path(damaged: bytes, tmp_path: Path) -> Path:
    (tmp_path / "image").write_bytes(damaged)
    return tmp_path / "image"


def run(*words: object) -> Result:
    return CliRunner().invoke(repair_command, [str(word) for word in words])


def test_a_dry_run_prints_the_plan_in_order_and_writes_nothing(path: Path, damaged: bytes) -> None:
    result = run(path)
    assert result.exit_code == 4
    lines = [line for line in result.output.splitlines() if line[:1].isdigit()]
    assert [int(line.split(".")[0]) for line in lines] == list(range(1, len(lines) + 1))
    assert "superblock" in lines[0]
    assert any("names" in line or "link counts" in line for line in lines[1:])
    assert "0 would be left" in result.output
    assert path.read_bytes() == damaged
    assert [child.name for child in path.parent.iterdir()] == ["image"]


def test_applied_then_nothing_to_do_then_taken_back_byte_for_byte(path: Path, damaged: bytes) -> None:
    planned = run(path, "--json")
    result = run(path, "--apply")
    assert result.exit_code == 1
    assert "0 left" in result.output
    document = json.loads(planned.output)
    assert document["status"] == "planned"
    for number, step in enumerate(document["steps"], 1):
        assert f"{number}. {step['title']}\n" in result.output
    after = path.read_bytes()
    again = run(path)
    assert (again.exit_code, "nothing to repair" in again.output) == (0, True)
    assert path.read_bytes() == after
    undone = run(path, "--undo", f"{path}.repair")
    assert undone.exit_code == 0
    assert path.read_bytes() == damaged


def test_json_says_what_was_done_what_is_lost_and_what_is_left(path: Path) -> None:
    result = run(path, "--apply", "--json")
    document = json.loads(result.output)
    assert document["status"] == "applied"
    assert document["repair_file"] == f"{path}.repair"
    assert document["left"] == 0
    assert document["problems_before"]["codes"]["link-count"] == 1
    assert {"phase", "title", "details", "lost"} == set(document["steps"][0])
    document = json.loads(run(path, "--json").output)
    assert (document["status"], document["steps"]) == ("clean", [])


def test_a_second_repair_does_not_write_over_the_first_ones_file(path: Path, damaged: bytes) -> None:
    run(path, "--apply")
    first = Path(f"{path}.repair").read_bytes()
    path.write_bytes(damaged)
    assert run(path, "--apply").exit_code == 1
    assert Path(f"{path}.repair").read_bytes() == first
    assert Path(f"{path}.repair.2").exists()


def test_an_interrupted_repair_is_finished_by_the_next_run(path: Path, damaged: bytes) -> None:
    device = FileDevice.open(path)
    made = plan(device, RepairOptions())
    file = perform.write_file(f"{path}.repair", made.bench.shadow, [])
    expected = made.bench.shadow.read(0, len(damaged))
    writes = [found for found in file.records() if found.kind == 2]
    for write in writes[: len(writes) // 2]:
        device.write(write.offset, [write.payload])
    file.close()
    device.close()
    half = path.read_bytes()
    assert half not in (damaged, expected)
    dry = run(path)
    assert (dry.exit_code, "interrupted" in dry.output) == (4, True)
    assert path.read_bytes() == half
    assert run(path, "--apply").exit_code == 1
    assert path.read_bytes() == expected
    assert run(path).exit_code == 0


def test_a_file_that_never_became_complete_is_no_repair(path: Path, damaged: bytes) -> None:
    run(path, "--apply")
    whole = Path(f"{path}.repair").read_bytes()
    path.write_bytes(damaged)
    Path(f"{path}.repair").write_bytes(whole[: len(whole) // 2])
    assert run(path, "--undo", f"{path}.repair").exit_code == 8
    assert path.read_bytes() == damaged
    assert run(path, "--apply").exit_code == 1
    assert RepairFile.open(f"{path}.repair").state().name == "DONE"
    assert not Path(f"{path}.repair.2").exists()


def test_an_interrupted_repair_is_found_behind_older_ones(path: Path, damaged: bytes) -> None:
    run(path, "--apply")
    path.write_bytes(damaged)
    run(path, "--apply")
    after = path.read_bytes()
    second = Path(f"{path}.repair.2").read_bytes()
    Path(f"{path}.repair.2").write_bytes(second[: -record.RECORD_SIZE])
    path.write_bytes(damaged)
    Path(f"{path}.repair.3").write_bytes(b"")
    assert "interrupted" in run(path).output
    assert run(path, "--apply").exit_code == 1
    assert path.read_bytes() == after
    assert run(path).exit_code == 0


def test_a_damaged_block_is_left_unless_told_otherwise(tmp_path: Path) -> None:
    image = bytearray(store_image())
    made = plan_of(bytes(image))
    assert made == 0
    at = image.rindex(b"behind a hole")
    image[at] ^= 1
    path = tmp_path / "image"
    path.write_bytes(image)
    assert run(path).exit_code == 0
    deep = run(path, "--deep", "--apply")
    assert (deep.exit_code, path.read_bytes() == bytes(image)) == (4, True)
    assert " that repair cannot mend" in deep.output
    dropped = run(path, "--drop-damaged", "--apply")
    assert dropped.exit_code == 1
    assert "lost: data of c/last" in dropped.output or "c/last: bytes" in dropped.output
    assert run(path, "--deep").exit_code == 0


def plan_of(image: bytes) -> int:
    from mdstore.device.memory import MemoryDevice

    return len(plan(MemoryDevice.from_bytes(image), RepairOptions(is_deep=True)).steps)


def test_what_cannot_be_looked_at_ends_with_8(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"no image at all" * 4000)
    assert run(tmp_path / "missing").exit_code == 8
    assert run(tmp_path).exit_code == 8
    result = run(tmp_path / "text", "--json")
    assert result.exit_code == 8
    assert json.loads(result.output)["status"] == "failed"


def test_an_image_in_use_is_not_touched(path: Path) -> None:
    holder = FileDevice.open(path)
    try:
        result = run(path, "--apply")
        assert result.exit_code == 8
        assert "open" in result.output
    finally:
        holder.close()


def test_a_file_that_is_no_repair_file_is_never_replaced(path: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.write_text("my notes")
    found = run(path, "--apply", "--file", notes)
    assert found.exit_code == 8
    assert notes.read_text() == "my notes"


def test_a_repair_file_that_the_image_has_left_behind_says_so_in_a_dry_run(path: Path) -> None:
    assert run(path, "--apply").exit_code == 1
    file = path.with_name(path.name + ".repair")
    file.write_bytes(file.read_bytes()[:-24])  # as one that was interrupted
    with Store.open(FileDevice.open(path)) as store:
        store.checkpoint()
        store.checkpoint()
    found = run(path)
    assert found.exit_code == 8
    assert "move the file away" in found.output


@pytest.mark.parametrize("beside", [["--apply"], ["--deep"], ["--drop-damaged"], ["--file", "other"], ["--apply", "--deep"]])
def test_undo_beside_what_it_would_not_do_is_refused(path: Path, damaged: bytes, beside: list[str]) -> None:
    """`--apply --undo FILE` took the repair back, without a word of --apply."""
    assert run(path, "--apply").exit_code == 1
    repaired = path.read_bytes()
    refused = run(path, "--undo", f"{path}.repair", *beside)
    assert (refused.exit_code, beside[0] in refused.output) == (2, True)
    assert path.read_bytes() == repaired != damaged
    assert run(path, "--undo", f"{path}.repair").exit_code == 0


def test_a_taking_back_that_was_interrupted_is_ended_by_undo_alone(path: Path, damaged: bytes) -> None:
    assert run(path, "--apply").exit_code == 1
    file = RepairFile.open(f"{path}.repair")
    file.mark(record.RecordKind.UNDOING)
    olds = [found for found in file.records() if found.kind is record.RecordKind.OLD]
    device = FileDevice.open(path)
    for old in olds[: len(olds) // 2]:
        device.write(old.offset, [old.payload])
    device.close()
    file.close()
    half = path.read_bytes()
    dry = run(path)
    assert (dry.exit_code, "--undo takes it back" in dry.output, "--apply" in dry.output) == (4, True, False)
    refused = run(path, "--apply")
    assert (refused.exit_code, "half taken back" in refused.output) == (8, True)
    assert path.read_bytes() == half
    assert run(path, "--undo", f"{path}.repair").exit_code == 0
    assert path.read_bytes() == damaged
