"""A name that is not there is answered with those that are, or with the command that lists them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commandline import Run, refused


def test_a_directory_says_which_snapshots_it_has(run: Run, image: Path, tmp_path: Path) -> None:
    """Only those of the store were named; of a directory there was `No such file or directory`."""
    for words in (["delete", image, "nope"], ["mount", image, "nope", tmp_path]):
        refused(run("snapshot", *words), "/ has no snapshot 'nope'; it has none; `mdstore snapshot list`")
    for name in ("two", "one"):
        assert run("snapshot", "create", image, name).code == 0
    assert run("snapshot", "create", image, "deep", "/sub").code == 0
    for words in (["delete", image, "nope"], ["mount", image, "nope", tmp_path]):
        refused(run("snapshot", *words), "/ has no snapshot 'nope'; there are: one, two\n")
    refused(run("snapshot", "delete", image, "one", "/sub"), "/sub has no snapshot 'one'; there are: deep\n")
    refused(run("snapshot", "delete", image, "nope", "--store"), "no snapshot 'nope'; the image has none")
    assert run("snapshot", "delete", image, "deep", "/sub").code == 0


@pytest.mark.parametrize(
    ("view", "said"),
    [
        (("object", "nope", "o"), "no collection nope; there are: data, log, meta"),
        (("object", "meta", "o"), "no object meta/o; `mdstore dump {image} objects` lists"),
        (("inode", "99999"), "no inode 99999; `mdstore dump {image} tree /` shows"),
        (("tree", "/no"), "no directory /no; `mdstore dump {image} tree /` shows"),
    ],
)
def test_dump_says_what_there_is(run: Run, image: Path, view: tuple[str, ...], said: str) -> None:
    ran = run("dump", image, *view)
    assert (ran.code, ran.err.count("\n")) == (8, 1)
    assert said.format(image=image) in ran.err
    ran = run("dump", image, *view, "--json")
    assert (ran.code, said.format(image=image) in ran.json()["error"]) == (8, True)


def test_damage_that_is_not_in_the_list_is_said_to_be_none(run: Run, image: Path) -> None:
    """`9/: No such file or directory`, of a row."""
    for name in ((), ("name",)):
        refused(run("damage", "forget", image, "9", *name), "9/", "there is no such damage; `mdstore damage list` shows")


def test_a_log_that_is_not_there_is_not_called_damaged(run: Run, tmp_path: Path) -> None:
    """A name typed wrong was surveyed as a log that lost everything, and a lock file was left in the directory."""
    objects = tmp_path / "objects"
    objects.mkdir()
    for command in (["inspect"], ["header", "get"], ["events"], ["repair"], ["header", "recover"]):
        words = [*command, f"dir:{objects}/nope", *(["list"] if command == ["events"] else [])]
        refused(run("journal", *words), f"no log 'nope'; {objects} has none")
    assert list(objects.iterdir()) == []
    (objects / "first.00000001").write_bytes(b"what is left of a log without heads")
    refused(run("journal", "inspect", f"dir:{objects}/nope"), "no log 'nope'; there are: first\n")
    assert "no head" in run("journal", "inspect", f"dir:{objects}/first").out


@pytest.mark.parametrize("view", [("object", "NAME", "x"), ("object", "meta", "NAME"), ("tree", "NAME")], ids="-".join)
def test_dump_escapes_the_name_that_it_was_given(run: Run, image: Path, view: tuple[str, ...]) -> None:
    """A name of two lines looked like two messages, and could steer the terminal."""
    ran = run("dump", image, *(part.replace("NAME", "a\x1b[31mb\nfsck: clean") for part in view))
    assert ran.code == 8
    assert "a\\x1b[31mb\\nfsck: clean" in ran.err
    assert "\x1b" not in ran.err
    assert len(ran.err.splitlines()) == 1
