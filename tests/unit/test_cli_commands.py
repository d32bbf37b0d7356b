"""The command line as a person meets it: results, JSON, and how errors and figures read. Refusals: test_cli_refusals.py."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from base64 import b64decode
from pathlib import Path

import pytest

from mdstore.client.mount import MountOptions
from mdstore.errors import CorruptionError, NoSpace, NotFound, PosixError, TransactionError
from mdstore.tools import mounting
from mdstore.tools.output import counted_text, duration_text, explain, shown, size_text, time_text
from mdstore.tools.reader.superblock import decode as superblock_of
from tests.commandline import Run, refused

MIB = 1 << 20


def test_mkfs_records_the_stripe(run: Run, tmp_path: Path) -> None:
    made = tmp_path / "striped.img"
    assert run("mkfs", made, "--size", "8M", "--stripe", "64K@4K").code == 0
    found = superblock_of(made.read_bytes()[:4096])
    assert (found.stripe_bytes, found.stripe_offset) == (65536, 4096)
    refused(run("mkfs", tmp_path / "other.img", "--size", "8M", "--stripe", "5000"), "stripes of 5000 bytes")
    assert not (tmp_path / "other.img").exists()


def test_mkfs_says_what_it_made(run: Run, tmp_path: Path) -> None:
    made = run("mkfs", tmp_path / "a.img", "--size", "8M", "--json").json()
    assert made["size_bytes"] == 8 * MIB == os.path.getsize(tmp_path / "a.img")
    assert 0 < made["free_bytes"] < 8 * MIB
    assert abs(run("stat", tmp_path / "a.img", "--json").json()["free_bytes"] - made["free_bytes"]) < 64 << 10
    assert "b.img: 8.0 MiB" in run("mkfs", tmp_path / "b.img", "--size", "8M").out


def test_ls_lists_names_and_long_lines(run: Run, image: Path) -> None:
    assert run("ls", image).out.splitlines() == ["hello", "link", "sub"]
    long = run("ls", "-l", image, "/").out.splitlines()
    assert long[0].startswith("-rw")
    assert "13 2020-09-13 12:26:40 hello" in long[0]
    assert long[1].endswith("link -> hello")
    assert run("ls", image, "/sub/data").out == "/sub/data\n"


def test_ls_json_has_every_attribute(run: Run, image: Path) -> None:
    rows = run("ls", image, "--json").json()
    assert [row["name"] for row in rows] == ["hello", "link", "sub"]
    assert (rows[0]["size"], rows[0]["type"], rows[0]["mtime_ns"]) == (13, "file", 1_600_000_000_123_456_789)
    assert rows[1]["target"] == "hello"
    assert run("ls", image, "/sub", "--json").json()[0]["size"] == 25600


def test_tree_draws_and_limits_its_depth(run: Run, image: Path) -> None:
    assert run("tree", image).out.splitlines() == [
        "/", "├── hello", "├── link -> hello", "└── sub", "    └── data", "", "1 directory, 3 files",
    ]  # fmt: skip
    assert "data" not in run("tree", image, "-L", "1").out
    assert [row["path"] for row in run("tree", image, "--json").json()] == ["/hello", "/link", "/sub", "/sub/data"]


def test_stat_of_a_file_and_of_the_image(run: Run, image: Path) -> None:
    row = run("stat", image, "/link", "--json").json()
    assert (row["type"], row["target"]) == ("symlink", "hello")
    assert "2020-09-13 12:26:40.123456789 UTC" in run("stat", image, "hello").out
    figures = run("stat", image, "--json").json()
    assert figures["size_bytes"] > figures["free_bytes"] > 0
    assert 25600 < figures["used_bytes"] <= figures["size_bytes"] - figures["free_bytes"]


def test_cat_follows_symlinks_and_writes_bytes(run: Run, image: Path) -> None:
    assert run("cat", image, "/link", "/sub/../hello").out == "hello, world\n" * 2


def test_cat_is_exact_for_any_bytes(image: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mdstore.tools.cli", "cat", image, "/sub/data"], capture_output=True, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout == bytes(range(256)) * 100


def test_cat_json_carries_any_bytes(run: Run, image: Path) -> None:
    rows = run("cat", image, "/sub/data", "/link", "--json").json()
    assert [(row["path"], row["size"]) for row in rows] == [("/sub/data", 25600), ("/link", 13)]
    assert b64decode(rows[0]["base64"]) == bytes(range(256)) * 100


def test_import_again_passes_everything_by(run: Run, image: Path, tmp_path: Path) -> None:
    row = run("import", image, tmp_path / "source", "--json").json()
    assert (row["skipped"], row["files"], row["troubles"]) == (3, 0, 0)


def test_import_to_a_new_directory_of_the_image(run: Run, image: Path, tmp_path: Path) -> None:
    assert "2 files, 1 directory, 1 symlink" in run("import", image, tmp_path / "source", "--to", "/a/b").out
    assert run("ls", image, "/a/b").out.split() == ["hello", "link", "sub"]


def test_import_acknowledges_paths_in_a_file(run: Run, image: Path, tmp_path: Path) -> None:
    assert run("import", image, tmp_path / "source", "--to", "/x", "--ack", tmp_path / "ack").code == 0
    lines = (tmp_path / "ack").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ["hello", "link", "sub/data", "sub"]


def test_export_a_tree_and_a_file(run: Run, image: Path, tmp_path: Path) -> None:
    assert run("export", image, "/", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "sub" / "data").read_bytes() == bytes(range(256)) * 100
    assert os.stat(tmp_path / "out" / "hello").st_mtime_ns == 1_600_000_000_123_456_789
    (tmp_path / "here").mkdir()
    assert run("export", image, "/hello", tmp_path / "here", "--json").json()["files"] == 1
    assert (tmp_path / "here" / "hello").read_bytes() == b"hello, world\n"


def test_rm_removes_and_gives_the_space_back(run: Run, image: Path, tmp_path: Path) -> None:
    free = run("stat", image, "--json").json()["free_bytes"]
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "big").write_bytes(os.urandom(2 * MIB))
    assert run("import", image, tmp_path / "more", "--to", "/more").code == 0
    assert run("stat", image, "--json").json()["free_bytes"] < free - MIB
    assert run("rm", "-r", image, "/more", "/link", "--json").json()["removed"] == 3
    assert run("ls", image).out.split() == ["hello", "sub"]
    assert run("stat", image, "--json").json()["free_bytes"] > free - MIB // 4


def test_looking_changes_no_byte_of_the_image(run: Run, image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    for command, *words in (["ls"], ["tree"], ["stat"], ["cat", "/hello"], ["export", "/", tmp_path / "out"]):
        assert run(command, image, *words).code == 0
    assert image.read_bytes() == before


def test_strange_names_are_escaped_on_the_terminal_and_whole_in_json(run: Run, tmp_path: Path) -> None:
    name = b"\xff\x1b[31m \n\\"
    (tmp_path / "s").mkdir()
    with open(os.fsencode(tmp_path / "s") + b"/" + name, "wb"):
        pass
    run("mkfs", tmp_path / "i.img", "--size", "8M")
    assert run("import", tmp_path / "i.img", tmp_path / "s").code == 0
    assert run("ls", tmp_path / "i.img").out == "\\xff\\x1b[31m \\x0a\\\\\n"
    assert os.fsencode(run("ls", tmp_path / "i.img", "--json").json()[0]["name"]) == name


def test_help_of_every_command_has_an_example(run: Run) -> None:
    for name in ("mkfs", "import", "export", "ls", "tree", "stat", "cat", "rm"):
        ran = run(name, "--help")
        assert ran.code == 0
        assert f"mdstore {name}" in ran.out


def test_no_arguments_print_the_help(run: Run) -> None:
    ran = run()
    assert (ran.code, ran.out) == (2, "")
    assert "mkfs" in ran.err


def test_help_imports_no_command(run: Run) -> None:
    program = (
        "import sys; from mdstore.tools import cli; cli.run(['--help']); "
        "bad = [m for m in sys.modules if m.startswith(('mdstore.store', 'mdstore.mds', 'mdstore.btree', 'rich'))]; "
        "sys.exit(repr(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert "mkfs" in done.stdout


# -- words -------------------------------------------------------------------------------------------------------------


def test_errors_in_words() -> None:
    assert explain(NotFound("file", "x.img")) == "no file x.img; check the path, or make an image there with `mdstore mkfs`"
    assert explain(PosixError(errno.ENOENT, b"/a\n")) == "/a\\x0a: No such file or directory"
    assert "use a larger image" in explain(TransactionError(0, "write", NoSpace("9 blocks are needed")))
    assert explain(CorruptionError("page", "block 5", 1, 2)).endswith("run `mdstore fsck` on the image")
    assert explain(OSError(errno.EIO, "Input/output error", "/etc/x")) == "/etc/x: Input/output error"
    assert explain(OSError(errno.EACCES, "Permission denied", "/x")).startswith("/x: Permission denied; change its permissions")


def test_figures_in_words() -> None:
    assert [size_text(size) for size in (0, 1023, 1536, 5 << 30)] == ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]
    assert [duration_text(s) for s in (0.0000021, 0.0214, 1.5, 125)] == ["2 us", "21 ms", "1.50 s", "2 min 5 s"]
    assert [counted_text(1, many) for many in ("entries", "map records")] == ["1 entry", "1 map record"]
    assert [counted_text(count, "entries") for count in (0, 2, 1234)] == ["0 entries", "2 entries", "1,234 entries"]
    assert time_text(-1) == "1969-12-31 23:59:59.999999999"
    assert time_text(1 << 62).startswith("2116-02-20")
    assert shown(b"a\x00\xfe\\") == "a\\x00\\xfe\\\\"


@pytest.mark.parametrize(
    ("arguments", "allows"), [((), False), (("--allow-other",), True), (("-o", "allow_other"), True)]
)  # fmt: skip
def test_mount_lets_other_users_in_when_told(
    arguments: tuple[str, ...], allows: bool, image: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen: list[MountOptions] = []

    def serve(image: str, directory: str, options: MountOptions, ready: object) -> int:
        chosen.append(options)
        return 0

    monkeypatch.setattr(mounting, "serve", serve)
    monkeypatch.setattr(mounting.os, "geteuid", lambda: 1000)
    (tmp_path / "at").mkdir()
    assert run("mount", image, tmp_path / "at", *arguments).code == 0
    assert [options.allow_other for options in chosen] == [allows]
