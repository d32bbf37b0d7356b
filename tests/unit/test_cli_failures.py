"""Failures of commands as programs meet them: with --json always one document; bad input is one line, never a bug."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mdstore.device.file import FileDevice
from mdstore.store import superblock
from mdstore.tools.cli import cli
from mdstore.tools.present import print_drawn
from mdstore.tools.reader.views import Facts, Section
from tests.commandline import Run

ROOT = Path(__file__).resolve().parents[2]
HUGE = "99999999999999999999999"


@pytest.fixture
def image(tmp_path: Path, run: Run) -> Path:
    path = tmp_path / "disk.img"
    assert run("mkfs", path, "--size", "16M").code == 0
    return path


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("ls {missing}", 1), ("stat {missing}", 1), ("cat {image} /nothing", 1), ("ls {image} /nothing", 1),
        ("mkfs {image}", 1), ("snapshot list {missing}", 1), ("scrub {missing}", 1), ("damage list {missing}", 1),
        ("load {new} {image}", 1), ("copy {missing} {new}", 1), ("journal inspect {missing}", 1),
        ("inspect decode page {image}", 4), ("dump {missing}", 8), ("dump {image} bogus", 2), ("dump {image} page 99999999", 2),
        ("dump {image} object zz zzz", 8), ("dump {image} tree /nothing", 8), ("fsck {missing}", 8), ("repair {missing}", 8),
        ("ls {image} --bogus", 2), ("mkfs {new} --size 9999999T", 2), ("journal events {image} binary", 2),
    ],
)  # fmt: skip
def test_a_failure_is_one_json_document_for_who_asked_for_one(
    words: str, code: int, image: Path, tmp_path: Path, run: Run
) -> None:
    places = {"image": str(image), "missing": str(tmp_path / "missing"), "new": str(tmp_path / "new.img")}
    ran = run(*(word.format(**places) for word in words.split()), "--json")
    assert ran.code == code
    assert ran.json()["error"]
    assert len(ran.err.strip().splitlines()) <= 1
    assert not (tmp_path / "new.img").exists()


def test_damage_in_the_middle_of_a_listing_ends_the_document_with_an_error(image: Path, tmp_path: Path, run: Run) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(600):
        (source / f"a-rather-long-name-{number:06d}").touch()
    assert run("import", image, source).code == 0
    device = FileDevice.open(image, read_only=True, lock=False)
    block = superblock.read_all(device)[0][0][0].block_size
    device.close()
    content = bytearray(image.read_bytes())
    found = content.rfind(b"a-rather-long-name-000500")
    content[found] ^= 1
    while (found := content.find(b"a-rather-long-name-000500")) >= 0:  # in every copy of that page there is
        content[found] ^= 1
    image.write_bytes(content)
    ran = run("dump", image, "tree", "/", "--json")
    assert ran.code == 4, ran
    ran.json()
    assert block == 4096


@pytest.mark.parametrize(
    "words",
    [
        "mkfs {new} --size 9999999T", "copy {image} {new} --size 9999999T", f"dump {{image}} inode {HUGE}",
        f"inspect decode superblock {{image}} --offset 0x{HUGE}", f"journal header set {{image}} safe={HUGE} --apply",
        f"journal header set {{image}} safe={HUGE}", "bench mds --count 0", "bench mds --count -5", "bench mount --processes x",
        "bench mount --processes 0", "bench mount --size x", "load {new} /dev/zero", "load {new} {junk}",
        "crash replay /dev/zero",
        "crash replay {junk}", "crash explore --resume {junk}", "fsck {image} --sample 5", "fsck {image} --deep --sample nan",
        "journal header recover {image}", "journal export {image} {junk}",
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_no_bug(words: str, image: Path, tmp_path: Path, run: Run) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"\xff\xfe" * 5000)
    before = {path.name for path in tmp_path.iterdir()}
    places = {"image": str(image), "new": str(tmp_path / "new.img"), "junk": str(junk)}
    ran = run(*(word.format(**places) for word in words.split()))
    assert ran.code in (1, 2), ran
    assert len(ran.err.strip().splitlines()) == 1, ran.err
    for word in ("bug", "Traceback", "UnicodeDecodeError"):
        assert word not in ran.err
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_campaign_goes_on_as_it_was_begun(tmp_path: Path, run: Run) -> None:
    state = tmp_path / "night.json"
    begun = run("crash", "explore", "--resume", state, "--states", 20, "--seed", 3, "--steps", 10, "--out", tmp_path)
    assert begun.code == 0, begun
    for words in (["--seed", 9], ["--fsck"], ["--whole-sectors"], ["--no-nested"], ["--steps", 11], ["--workload", "pairs"]):
        refused = run("crash", "explore", "--resume", state, "--states", 40, *words)
        assert refused.code == 1
        assert f"leave {words[0]} out" in refused.err
    assert run("crash", "explore", "--resume", state, "--states", 40, "--seed", 3, "--out", tmp_path).code == 0


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_failure(closed: str, image: Path) -> None:
    command = f"{sys.executable} -m mdstore.tools.cli ls {image} {closed}"
    ran = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_an_image_that_fell_back_says_so(image: Path, run: Run) -> None:
    device = FileDevice.open(image)
    newest = superblock.read_all(device)[0][0][0]
    for offset in superblock.slot_offsets(device.size_bytes, newest.epoch % 2):
        device.write(offset + 100, [b"\xff"])
    device.close()
    listed = run("ls", image)
    assert listed.code == 0
    assert "damaged superblock" in listed.err


# -- help --------------------------------------------------------------------------------------------------------------


def commands(command: click.Command, path: str, parent: click.Context | None) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(command, info_name=path.rpartition(" ")[2], parent=parent)
    if not isinstance(command, click.Group):
        yield path, command
        return
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from commands(found, f"{path} {name}", context)


COMMANDS = dict(commands(cli, "mdstore", None))


@pytest.mark.parametrize(("path", "command"), COMMANDS.items(), ids=COMMANDS)
def test_every_command_explains_itself(path: str, command: click.Command) -> None:
    assert f"{path} " in f"{command.help} ".replace("\n", " "), "an example"
    options = [option for option in command.params if isinstance(option, click.Option)]
    assert all(option.help for option in options), "every option has its help"
    assert any("--json" in option.opts for option in options)


def test_the_documents_of_failures_are_described() -> None:
    page = (ROOT / "docs/howto/exit-codes.md").read_text()
    (document,) = [block for block in page.split("```") if block.strip().startswith("{")]
    assert set(json.loads(document)) == {"status", "error", "exit_code"}


@pytest.fixture
def odd(image: Path, tmp_path: Path, run: Run) -> Path:
    """An image with a name beyond ASCII and Latin-1."""
    (tmp_path / "source" / "größe").mkdir(parents=True)
    (tmp_path / "source" / "größe" / "日本").write_text("a file")
    assert run("import", image, tmp_path / "source").code == 0
    return image


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_names_that_the_encoding_does_not_have_are_escaped(encoding: str, odd: Path) -> None:
    """They ended the command with `unexpected UnicodeEncodeError`."""
    command = [sys.executable, "-m", "mdstore.tools.cli"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    for words in (["tree", odd], ["ls", odd, "/größe"], ["stat", odd, "/größe/日本"]):
        ran = subprocess.run([*command, *map(str, words)], cwd=ROOT, env=environment, capture_output=True)
        assert (ran.returncode, ran.stderr) == (0, b"")
        assert rb"\u65e5\u672c" in ran.stdout
        assert "größe".encode(encoding, "backslashreplace") in ran.stdout or words[0] == "ls"
        assert b"`-- " in ran.stdout or words[0] != "tree"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mkfs", "{new}", "--size", ""], "is not a size; write one like 4096, 64K, 512M or 1.5G"),
        (["mkfs", "{new}/x.img"], "no parent directory {new}; make it first"),
        (["mkfs", ""], "an empty name names no file"),
        (["copy", "{image}", "{new}/x.img"], "no parent directory {new}; make it first"),
        (["mkfs", "{new}", "--size", "64K"], "make it larger"),
        (["ls", "{image}", "--debug"], "--debug stands before the command"),
        (["journal", "events", "{image}", "list", "--range", "9..1"], "LOW is above HIGH"),
        (["inspect", "decode", "page", "{image}", "--offset", "99999999"], "ends before byte 99999999"),
        (["load", "{new}", __file__], "found no JSON"),
        (["mkfs", "{new}", "--stripe", "x"], "Invalid value for '--stripe'"),
        (["mkfs", "{new}", "--stripe", "256K@"], "Invalid value for '--stripe'"),
        (["import", "{image}", "x", "--exclude"], "requires an argument; `mdstore import --help` explains"),
        (["snapshot", "create", "{image}", ""], "'': No such file or directory"),
    ],
)  # fmt: skip
def test_the_line_says_what_to_do(words: list[str], said: str, image: Path, tmp_path: Path, run: Run) -> None:
    places = {"image": str(image), "new": str(tmp_path / "new")}
    ran = run(*(word.format(**places) for word in words))
    assert ran.code in (1, 2)
    assert said.format(**places) in ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_a_directory_that_was_removed_is_said_to_be(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    ran = run("compact", "disk.img")
    monkeypatch.chdir(tmp_path)
    assert (ran.code, ran.err) == (1, "mdstore: the current directory was removed; change to another\n")


def test_a_plan_of_repair_that_nobody_reads_is_no_failure_of_it(image: Path) -> None:
    """It ended with 8 and `Broken pipe`."""
    read, write = os.pipe()
    os.close(read)
    ran = subprocess.run(
        [sys.executable, "-m", "mdstore.tools.cli", "repair", str(image)], cwd=ROOT, stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert (ran.returncode, ran.stderr) == (141, b"")


def test_a_terminal_too_narrow_for_a_table_gets_plain_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seventeen columns in twenty characters were a stack of single letters."""
    rows: list[Facts] = [{f"column {number}": "a long value" for number in range(17)}]
    for columns in ("20", "400"):
        monkeypatch.setenv("COLUMNS", columns)
        print_drawn(iter([Section("wide", rows=iter(rows))]))
        assert capsys.readouterr().out.count("a long value") == 17
