"""dump: every view of a sound image, as text and as JSON with stable keys; user errors and damage by exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mdstore.store import Store, Transaction
from mdstore.tools import present
from mdstore.tools.dump import _sections, dump_command
from mdstore.tools.present import print_drawn
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.views import Facts, Section, Source
from tests.unit.reader_images import BLOCK, changed, file_system, newest, store_image

VIEWS = {
    (): {"superblock", "copies", "trees", "collections"},
    ("superblock",): {"superblock", "copies"},
    ("trees",): {"trees"},
    ("collections",): {"collections"},
    ("log",): {"head", "entries", "tail"},
    ("objects",): {"objects"},
    ("raw", "2"): {"block", "bytes"},
    ("floors",): {"floors"},
    ("object", "meta", "0000000000000001"): {"object", "attributes", "map_tree", "map_header", "map"},
    ("journal",): {"head", "events", "tail"},
    ("inode", "1"): {"inode", "xattrs", "directory"},
    ("tree", "/"): {"tree"},
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dump") / "image"
    path.write_bytes(file_system(is_closed=False))
    return path


def dump(path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(dump_command, [str(path), *arguments])


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view[0] if view else "default")
def test_every_view_as_text_and_json(view: tuple[str, ...], path: Path) -> None:
    text = dump(path, *view)
    assert text.exit_code == 0, text.output
    assert len(text.output.splitlines()) >= 2
    answer = json.loads(dump(path, *view, "--json").output)
    assert answer.keys() == VIEWS[view]


def test_the_tree_view_shows_what_only_the_log_knows(path: Path) -> None:
    rows = json.loads(dump(path, "tree", "/top", "--json").output)["tree"]
    found = {row["path"]: row["type"] for row in rows}
    assert found["/top/deep/moved"] == "directory"
    assert found["/top/symlink"] == "symlink"
    assert found["/top/deep/second name"] == "file"
    assert "/top/f04" not in found
    number = next(row["ino"] for row in rows if row["path"] == "/top/f20")
    assert json.loads(dump(path, "inode", str(number), "--json").output)["inode"]["size"] == 8000


def test_the_log_view_names_operations(path: Path) -> None:
    answer = json.loads(dump(path, "log", "--json").output)
    assert answer["tail"]["entries"] == len(answer["entries"]) > 0
    assert any("write" in operation for row in answer["entries"] for operation in row["operations"])


def test_a_page_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "image"
    image = store_image()
    path.write_bytes(image)
    page = int.from_bytes(newest(image).roots[1][32:40], "little")
    answer = json.loads(dump(path, "page", str(page), "--json").output)
    assert answer["page"]["kind"] == "index"
    assert answer["page"]["crc"] == answer["page"]["crc_computed"]
    leaf = answer["children"][0]["page"]
    assert json.loads(dump(path, "page", str(leaf), "--json").output)["page"]["level"] == answer["page"]["level"] - 1
    damaged = bytearray(image)
    damaged[page * BLOCK + 30] ^= 1
    path.write_bytes(damaged)
    assert dump(path, "page", str(page)).exit_code == 4
    assert dump(path, "objects").exit_code == 4


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("nothing",), 2), (("page",), 2), (("page", "x"), 2), (("inode", "99999"), 8), (("tree", "/no/such"), 8),
     (("object", "c", "o"), 8), (("page", "99999999"), 2)],
)  # fmt: skip
def test_user_errors_are_one_line_and_a_code(arguments: tuple[str, ...], code: int, path: Path) -> None:
    result = dump(path, *arguments)
    assert result.exit_code == code
    assert len(result.output.strip().splitlines()) == 1


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"x" * 100_000)
    assert dump(path).exit_code == 8
    assert dump(tmp_path / "missing").exit_code == 8


def test_raw_bytes_are_those_of_the_image(path: Path) -> None:
    answer = json.loads(dump(path, "raw", "3", "--json").output)
    block = path.read_bytes()[3 * BLOCK : 4 * BLOCK]
    assert b"".join(bytes.fromhex(row["hex"]) for row in answer["bytes"]) == block
    assert [row["byte"] for row in answer["bytes"]] == list(range(3 * BLOCK, 4 * BLOCK, 16))
    assert dump(path, "raw", "99999999").exit_code == 2


def test_floors_are_shown_with_their_scope(tmp_path: Path) -> None:
    def guard(store: Store) -> None:
        store.submit(Transaction().set_floor(7, "c", prefix="log."))
        store.submit(Transaction().set_floor(9, "c", name="one"))

    path = tmp_path / "image"
    path.write_bytes(changed(store_image(), guard))
    rows = json.loads(dump(path, "floors", "--json").output)["floors"]
    assert rows == [
        {"scope": "prefix", "collection": "c", "name": "log.", "floor": 7},
        {"scope": "object", "collection": "c", "name": "one", "floor": 9},
    ]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view[0] if view else "default")
def test_a_terminal_gets_every_view_drawn(
    view: tuple[str, ...], path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    with Image(str(path)) as image:
        print_drawn(_sections(Source(image), view))
    drawn = capsys.readouterr().out
    answer = json.loads(dump(path, *view, "--json").output)
    for name, found in answer.items():
        assert name.replace("_", " ") in drawn
        assert found or "(none)" in drawn
    if view == ("tree", "/"):
        assert "\u2514\u2500\u2500" in drawn, "a tree has branches"
        assert all(row["path"].rpartition("/")[2] in drawn for row in answer["tree"])


def test_a_drawing_goes_on_plainly_when_it_would_not_fit_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(present, "_DRAWN_MAX", 3)
    rows: list[Facts] = [{"path": f"/d{n}", "ino": n} for n in range(8)]
    print_drawn(iter([Section("rows", rows=rows), Section("tree", rows=rows, is_tree=True)]))
    drawn = capsys.readouterr().out
    assert drawn.count("and further") == 2
    assert all(drawn.count(f"d{n}") == 2 for n in range(8))
