"""What the command line refuses, and how it ends: one clear line and an exit code, nothing half done."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from crc32c import crc32c

from mdstore.store.superblock import SLOT_SIZE, SLOTS, slot_offsets
from mdstore.tools import output
from tests.commandline import Ran, Run, refused

MIB = 1 << 20


def test_the_second_reader_agrees_and_has_codes_of_its_own(run: Run, image: Path, tmp_path: Path) -> None:
    assert run("fsck", image).code == 0
    assert run("fsck", "--deep", image, "--json").json()["status"] == "clean"
    assert run("dump", image).code == 0
    (tmp_path / "text").write_bytes(b"no image\n" * 1000)
    for command in ("fsck", "dump"):
        for path in (tmp_path / "text", tmp_path / "none"):
            ran = run(command, path)
            assert (ran.code, ran.out, ran.err.count("\n")) == (8, "", 1)
    for offset in _superblock_offsets(image)[:1]:
        _overwrite(image, offset + 100, b"damage")
    assert run("fsck", image).code in (0, 4)
    os.truncate(image, 6 * MIB)
    assert run("fsck", image).code == 4


def test_one_of_a_kind_is_said_in_the_singular(run: Run, image: Path) -> None:
    assert run("snapshot", "create", image, "first").code == 0
    assert " 1 snapshot," in run("fsck", image).out
    _overwrite(image, _superblock_offsets(image)[0] + 100, b"damage")
    said = run("fsck", image).out
    assert "1 error;" in said or ", 1 warning;" in said
    assert ": 1 problem, 0 would be left" in run("repair", image).out


def test_checks_that_exclude_each_other_are_refused(run: Run, image: Path) -> None:
    """The last one was taken, without a word."""
    for words in (["--quick", "--deep"], ["--deep", "--quick"]):
        refused(run("fsck", image, *words), "--quick and --deep", code=2)
    for level in ("quick", "deep"):
        assert run("fsck", image, f"--{level}", "--json").json()["level"] == level
    assert run("fsck", image, "--json").json()["level"] == "normal"


READERS: list[list[str]] = [["ls"], ["tree"], ["stat"], ["cat", "/hello"], ["export", "/", "out"]]


def _on(image: Path, command: list[str], tmp_path: Path) -> list[str | Path]:
    rest = [tmp_path / word if word == "out" else word for word in command[1:]]
    return [command[0], image, *rest]


@pytest.mark.parametrize("command", [*READERS, ["rm", "/hello"], ["import", "out"]], ids=lambda words: words[0])
def test_no_such_image(run: Run, tmp_path: Path, command: list[str]) -> None:
    if command[0] == "import":
        (tmp_path / "out").mkdir()
    refused(run(*_on(tmp_path / "none.img", command, tmp_path)), "none.img", "mdstore mkfs")
    assert not (tmp_path / "none.img").exists()


@pytest.mark.parametrize("command", READERS, ids=lambda words: words[0])
def test_not_an_image(run: Run, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "text").write_bytes(b"some text\n" * 100_000)
    refused(run(*_on(tmp_path / "text", command, tmp_path)), "text is not an mdstore image", "mdstore mkfs")


def test_an_empty_file_is_not_an_image(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    refused(run("ls", tmp_path / "empty"), "empty", "too small for an mdstore image", "mdstore mkfs")


def test_a_directory_is_not_an_image(run: Run, tmp_path: Path) -> None:
    refused(run("ls", tmp_path), str(tmp_path), "directory")
    refused(run("mkfs", tmp_path), str(tmp_path), "is a directory", "name a file")


def _overwrite(image: Path, offset: int, data: bytes) -> None:
    with open(image, "r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def _superblock_offsets(image: Path) -> tuple[int, ...]:
    size = os.path.getsize(image)
    return tuple(offset for slot in range(SLOTS) for offset in slot_offsets(size, slot))


def test_another_version_is_named(run: Run, image: Path) -> None:
    for offset in _superblock_offsets(image):
        checked = b"\x63" + image.read_bytes()[offset + 13 : offset + SLOT_SIZE]  # from the version on
        _overwrite(image, offset + 8, crc32c(checked).to_bytes(4, "little") + checked)
    refused(run("ls", image), "disk.img", "format version 99", "use the version of mdstore that wrote it")


def test_a_truncated_image_is_named_with_both_sizes(run: Run, image: Path) -> None:
    os.truncate(image, 6 * MIB)
    refused(run("ls", image), "disk.img", "truncated", str(6 * MIB), "mdstore fsck")


def test_one_damaged_superblock_is_read_past(run: Run, image: Path) -> None:
    _overwrite(image, _superblock_offsets(image)[0] + 100, b"damage")
    assert run("cat", image, "/hello").out == "hello, world\n"


def test_a_superblock_that_is_gone_is_named_once_with_the_way_out(run: Run, image: Path) -> None:
    """The image was named twice, and nothing said what to do."""
    size = os.stat(image).st_size
    _overwrite(image, size - 2 * SLOT_SIZE, bytes(SLOT_SIZE))
    ran = run("ls", image)
    assert (ran.code, ran.out) == (0, run("ls", image).out)
    assert ran.err.count("spare superblock 0") == ran.err.count(str(image)) == ran.err.count("mdstore fsck") == 1, ran.err


def test_all_superblocks_damaged(run: Run, image: Path) -> None:
    for offset in _superblock_offsets(image):
        _overwrite(image, offset + 100, b"damage")
    refused(run("ls", image), "damaged superblock", "disk.img", "expected crc", "found", "mdstore fsck")


def test_a_damaged_page_is_named_and_never_crashes(image: Path, tmp_path: Path) -> None:
    """Every page of the trees in turn: whatever a command meets, it ends with a line and a code; in a process of its own,
    so that a crash would be seen."""
    from mdstore.device.file import FileDevice
    from mdstore.store.superblock import read_all

    device = FileDevice.open(image, read_only=True)
    first = read_all(device)[0][0][0].first_block
    device.close()
    whole, refusals = image.read_bytes(), 0
    blocks = range(first, len(whole) // 4096 - 4)
    pages = [block for block in blocks if any(whole[block * 4096 : block * 4096 + 4096])]
    program = (
        "import sys; from mdstore.tools import cli; image, out, *pages = sys.argv[1:]\n"
        "whole = open(image, 'rb').read()\n"
        "for page in map(int, pages):\n"
        "    damaged = bytearray(whole); damaged[page * 4096 + 64 : page * 4096 + 128] = b'\\xa5' * 64\n"
        "    open(image, 'r+b').write(damaged)\n"
        "    print('code', cli.run(['export', '--force', image, '/', out]), flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, image, tmp_path / "out", *map(str, pages)], capture_output=True, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    codes = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("code ")]
    assert len(codes) == len(pages)
    assert set(codes) <= {0, 1}
    refusals = codes.count(1)
    assert refusals >= 5, done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("mdstore: ")]
    assert len(lines) >= refusals
    assert "Traceback" not in done.stderr
    assert "this is a bug" not in done.stderr, done.stderr
    assert all("damaged" in line and "mdstore fsck" in line for line in lines), lines


def test_an_image_open_elsewhere_names_the_holder(image: Path, run: Run) -> None:
    program = (
        "import sys; from mdstore.device.file import FileDevice\n"
        "device = FileDevice.open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        for command in (["ls", image], ["rm", image, "/hello"], ["mkfs", "--force", image]):
            refused(run(*command), f"process {holder.pid}", "stop it")
        holder.communicate()
    assert run("ls", image).code == 0, "and nothing was changed"


def test_a_reader_does_not_disturb_a_reader(run: Run, image: Path) -> None:
    with open(image, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert run("ls", image).code == 0


def test_no_space_names_the_file_keeps_the_rest_and_removing_works(run: Run, image: Path, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    for number in range(12):
        (tmp_path / "big" / f"{number:02}").write_bytes(os.urandom(MIB))
    ran = run("import", image, tmp_path / "big", "--to", "/big")
    refused(ran, "No space left", "the image is full", "mdstore rm")
    assert run("cat", image, "/hello").out == "hello, world\n"
    kept = run("ls", image, "/big").out.split()
    assert 0 < len(kept) < 12
    assert run("rm", "-r", image, "/big").code == 0
    assert run("import", image, tmp_path / "source", "--to", "/again").code == 0


def test_mkfs_without_room_says_so_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    refused(run("mkfs", tmp_path / "a.img", "--size", "1000P"), "a.img", "bytes")
    assert not (tmp_path / "a.img").exists()


_AS_NOBODY = (
    "import os, sys; from mdstore.tools import cli, look, mkfs, transfer\n"
    "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
    "sys.exit(cli.run(sys.argv[1:]))"
)


def run_as_nobody(*arguments: str | Path) -> Ran:
    """A command as a user who may do little (as oneself, where one is not root): root may do everything."""
    command = [sys.executable, "-c", _AS_NOBODY, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    return Ran(done.returncode, done.stdout, done.stderr)


def test_no_permission(reachable: Path, image: Path) -> None:
    image = Path(shutil.copy(image, reachable))
    (reachable / "source").mkdir(mode=0)
    os.chmod(image, 0)
    refused(run_as_nobody("ls", image), "disk.img", "ermission denied", "change its permissions")
    os.chmod(image, 0o444)
    assert run_as_nobody("ls", image).code == 0
    refused(run_as_nobody("rm", image, "/hello"), "disk.img", "ermission denied", "change its permissions")
    refused(run_as_nobody("import", image, reachable / "source"), "source", "ermission denied", "change its permissions")


def test_a_read_only_directory(reachable: Path, image: Path) -> None:
    image = Path(shutil.copy(image, reachable))
    locked = reachable / "locked"
    locked.mkdir(mode=0o555)
    os.chmod(image, 0o444)
    refused(run_as_nobody("mkfs", locked / "new.img"), "new.img", "ermission denied", "change its permissions")
    refused(run_as_nobody("export", image, "/", locked / "out"), "locked/out", "ermission denied", "change its")
    assert os.listdir(locked) == []


def test_a_small_image_with_its_small_log_takes_many_files(run: Run, tmp_path: Path) -> None:
    """A log of a sixteenth of 16 MiB holds a transaction of less than 1 MiB: the files of one batch had more bytes than that,
    and the import was refused with a limit nobody can do anything about."""
    (tmp_path / "many").mkdir()
    for number in range(250):
        (tmp_path / "many" / f"{number}").write_bytes(bytes([number]) * 12_000)
    run("mkfs", tmp_path / "small.img", "--size", "16M")
    assert run("import", tmp_path / "small.img", tmp_path / "many").code == 0
    assert run("fsck", "--deep", tmp_path / "small.img").code == 0


PATHS_MISSING: list[list[str]] = [
    ["ls", "/no/such"], ["tree", "/no"], ["stat", "/no"], ["cat", "/no"], ["rm", "/no"], ["export", "/no", "out"],
]  # fmt: skip


@pytest.mark.parametrize("command", PATHS_MISSING, ids=lambda words: words[0])
def test_path_missing(run: Run, image: Path, tmp_path: Path, command: list[str]) -> None:
    refused(run(*_on(image, command, tmp_path)), "/no", "No such file or directory")


def test_a_file_is_no_directory(run: Run, image: Path) -> None:
    refused(run("ls", image, "/hello/below"), "/hello/below", "Not a directory")
    refused(run("cat", image, "/sub"), "/sub", "Is a directory")
    refused(run("import", image, "/", "--to", "/hello"), "/hello", "Not a directory")


@pytest.mark.parametrize("command", ["stat", "ls", "cat", "rm"])
def test_a_name_over_255_bytes(run: Run, image: Path, command: str) -> None:
    refused(run(command, image, "/" + "n" * 256), "nnnn", "File name too long", "at most 255 bytes")


def test_names_of_255_bytes_work(run: Run, image: Path, tmp_path: Path) -> None:
    (tmp_path / "s2").mkdir()
    (tmp_path / "s2" / ("n" * 255)).touch()
    assert run("import", image, tmp_path / "s2", "--to", "/" + "d" * 255).code == 0
    assert run("ls", image, "/" + "d" * 255).out == "n" * 255 + "\n"
    refused(run("import", image, tmp_path / "s2", "--to", "/" + "d" * 256), "at most 255 bytes")


def test_a_path_over_4096_bytes(run: Run, image: Path) -> None:
    refused(run("ls", image, "/d" * 3000), "File name too long", "a path 4096")


def test_a_file_over_the_limit(run: Run, image: Path, tmp_path: Path) -> None:
    """A sparse file of 9 PiB: not every file system can hold one."""
    for place in (tmp_path, Path("/dev/shm")):
        source = place / f"mdstore-huge-{os.getpid()}"
        source.mkdir()
        try:
            with open(source / "huge", "wb") as stream:
                stream.truncate(9 << 50)
        except OSError:
            continue
        else:
            refused(run("import", image, source), "huge", "File too large", "at most 8 PiB")
            return
        finally:
            (source / "huge").unlink()
            source.rmdir()
    pytest.skip("no file system here holds a file of 9 PiB")


def test_import_from_what_is_no_directory(run: Run, image: Path, tmp_path: Path) -> None:
    refused(run("import", image, tmp_path / "none"), "none does not exist", "name the directory")
    refused(run("import", image, image), "disk.img is not a directory", "name the directory")


def test_rm_of_a_directory_needs_r_and_removes_nothing_before(run: Run, image: Path) -> None:
    refused(run("rm", image, "/hello", "/sub"), "/sub", "Is a directory", "-r")
    refused(run("rm", image, "/hello", "/none"), "/none", "No such file")
    refused(run("rm", "-r", image, "/"), "/", "busy")
    assert run("ls", image).out.split() == ["hello", "link", "sub"]


def test_export_overwrites_only_with_force(run: Run, image: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "hello").write_bytes(b"mine")
    refused(run("export", image, "/", tmp_path / "out"), "out is not empty", "--force")
    refused(run("export", image, "/hello", tmp_path / "out"), "hello exists already", "--force")
    refused(run("export", image, "/", image), "is not a directory")
    refused(run("export", image, "/hello", tmp_path / "none"), "none is not a directory", "make it")
    assert (tmp_path / "out" / "hello").read_bytes() == b"mine"
    assert run("export", image, "/", tmp_path / "out", "--force").code == 0
    assert (tmp_path / "out" / "hello").read_bytes() == b"hello, world\n"


def test_mkfs_overwrites_only_with_force(run: Run, image: Path) -> None:
    before = image.read_bytes()
    refused(run("mkfs", image), "disk.img exists already", "--force")
    assert image.read_bytes() == before
    assert run("mkfs", image, "--force", "--size", "8M").code == 0
    assert run("ls", image).out == ""


def test_mkfs_too_small_changes_nothing(run: Run, image: Path) -> None:
    before = image.read_bytes()
    refused(run("mkfs", "--force", image, "--size", "4K"), "too small", "at least 64.0 KiB")
    assert image.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mkfs"], "Missing argument 'IMAGE'"), (["mkfs", "x.img", "--size", "big"], "'big' is not a size"),
        (["mkfs", "x.img", "--size", "-1"], "makes no sense"), (["frobnicate"], "No such command 'frobnicate'"),
        (["ls", "--colour", "x.img"], "No such option"), (["tree", "x.img", "-L", "0"], "Invalid value"),
    ],
    ids=["argument", "size", "negative", "command", "option", "value"],
)  # fmt: skip
def test_wrong_usage_is_one_line_and_code_2(run: Run, arguments: list[str], words: str) -> None:
    refused(run(*arguments), words, "--help` explains", code=2)


def test_a_reader_that_goes_away_is_no_error(image: Path) -> None:
    """`mdstore cat image big | head -c1`: the pipe closes early, nothing is said about it."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [sys.executable, "-m", "mdstore.tools.cli", "cat", image, *["/sub/data"] * 50], stdout=write_end,
        stderr=subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    os.close(write_end)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_bug_is_one_line_and_a_traceback_only_on_demand(run: Run, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the impossible\nhappened")

    monkeypatch.setattr("mdstore.tools.look.resolve", broken)
    refused(run("ls", image), "unexpected RuntimeError: the impossible happened", "please report")
    ran = run("--debug", "ls", image)
    assert ran.code == 1
    assert "Traceback" in ran.err


def test_an_interrupt_is_one_line_and_code_130(run: Run, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mdstore.tools.look.resolve", interrupted)
    refused(run("ls", image), "interrupted", code=130)


def test_a_part_that_is_missing_breaks_no_other(run: Run, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mdstore.tools.fsck", None)
    refused(run("fsck", image), "`mdstore fsck` is not part of this installation")
    assert run("ls", image).code == 0


def test_benchmarks_are_listed_without_being_imported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("btree", "journal", "mds", "mount"):
        monkeypatch.setitem(sys.modules, f"mdstore.tools.bench.{name}", None)
        refused(run("bench", name), f"`mdstore bench {name}` is not part of this installation")
    listed = run("bench", "--help").out
    assert all(name in listed for name in ("btree", "journal", "mds", "mount", "all"))


def test_documented_exit_codes_are_those_of_the_program() -> None:
    page = (Path(__file__).parents[2] / "docs" / "howto" / "exit-codes.md").read_text()
    documented = {int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    own = {output.EXIT_OK, output.EXIT_FAILED, output.EXIT_USAGE, output.EXIT_INTERRUPTED, output.EXIT_PIPE_CLOSED}
    assert documented == own | {4, 8}
