"""Permissions as several users meet them: owner, group, others, sticky directories, set-uid and set-gid."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.posix.calls import (
    GROUP,
    MEMBER,
    OTHER,
    OTHER_GROUP,
    OWNER,
    in_child,
    make,
    outcome,
    outcome_as,
    outcomes_as,
    rename2,
)

pytestmark = pytest.mark.fuse


def _mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def _owned(path: Path, uid: int = OWNER, gid: int = GROUP) -> Path:
    os.chown(path, uid, gid, follow_symlinks=False)
    return path


OPENS = {"read": os.O_RDONLY, "write": os.O_WRONLY, "both": os.O_RDWR, "truncate": os.O_WRONLY | os.O_TRUNC}
NEEDS = {"read": 4, "write": 2, "both": 6, "truncate": 2}


@pytest.mark.parametrize("who", [OWNER, MEMBER, OTHER, 0])
@pytest.mark.parametrize("how", OPENS)
def test_one_class_of_the_mode_decides_who_opens(root: Path, who: int, how: str) -> None:
    shift = {OWNER: 6, MEMBER: 3, OTHER: 0, 0: 0}[who]
    expected = []
    for bits in range(8):
        make(root / f"file{bits}", b"x")
        _owned(root / f"file{bits}")
        os.chmod(root / f"file{bits}", 0o777 & ~(7 << shift) | bits << shift)
        expected.append("OK" if who == 0 or NEEDS[how] & ~bits == 0 else "EACCES")
    assert outcomes_as(who, root, [(os.open, (f"file{bits}", OPENS[how])) for bits in range(8)]) == expected


IN_DIRECTORY: list[tuple[str, Callable[..., Any], tuple[Any, ...], int]] = [
    ("list", os.listdir, ("dir",), 4),
    ("search", os.stat, ("dir/file",), 1),
    ("open", os.open, ("dir/file", os.O_RDONLY), 1),
    ("make", os.open, ("dir/new", os.O_CREAT | os.O_WRONLY), 3),
    ("mkdir", os.mkdir, ("dir/new",), 3),
    ("mkfifo", os.mkfifo, ("dir/new",), 3),
    ("symlink", os.symlink, ("t", "dir/new"), 3),
    ("link", os.link, ("mine", "dir/new"), 3),
    ("unlink", os.unlink, ("dir/file",), 3),
    ("rmdir", os.rmdir, ("dir/sub",), 3),
    ("rename in", os.rename, ("mine", "dir/new"), 3),
    ("rename out", os.rename, ("dir/file", "out"), 3),
    ("walk through", os.stat, ("dir/.",), 1),
]


@pytest.mark.parametrize("who", [OWNER, MEMBER, OTHER])
@pytest.mark.parametrize(("call", "args", "needs"), [case[1:] for case in IN_DIRECTORY], ids=[c[0] for c in IN_DIRECTORY])
def test_directories_ask_for_read_write_and_search(
    root: Path, who: int, call: Callable[..., Any], args: tuple[Any, ...], needs: int
) -> None:
    shift = {OWNER: 6, MEMBER: 3, OTHER: 0}[who]
    calls, expected = [], []
    for bits in range(8):
        directory = root / f"dir{bits}"
        directory.mkdir()
        make(directory / "file", mode=0o666)
        (directory / "sub").mkdir()
        make(root / f"mine{bits}", mode=0o666)
        _owned(root / f"mine{bits}", who, who)
        _owned(directory)
        os.chmod(directory, 0o777 & ~(7 << shift) | bits << shift)
        renamed = [a.replace("dir", f"dir{bits}").replace("mine", f"mine{bits}") if isinstance(a, str) else a for a in args]
        calls.append((call, tuple(f"out{bits}" if a == "out" else a for a in renamed)))
        expected.append("OK" if needs & ~bits == 0 else "EACCES")
    assert outcomes_as(who, root, calls) == expected


def test_search_is_asked_of_every_directory_on_the_way(root: Path) -> None:
    (root / "a" / "b").mkdir(parents=True)
    make(root / "a" / "b" / "file")
    _owned(root / "a")
    os.chmod(root / "a", 0o700)
    assert outcome_as(OWNER, root, os.stat, "a/b/file") == "OK"
    assert outcome_as(OTHER, root, os.stat, "a/b/file") == "EACCES"
    os.chmod(root / "a", 0o711)
    assert outcome_as(OTHER, root, os.stat, "a/b/file") == "OK"
    os.chmod(root / "a", 0o700)
    assert outcome_as(OTHER, root, os.stat, "a/b/file") == "EACCES"


STICKY: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = [
    ("unlink", os.unlink, ("dir/file",)),
    ("rmdir", os.rmdir, ("dir/sub",)),
    ("rename away", os.rename, ("dir/file", "away")),
    ("rename within", os.rename, ("dir/file", "dir/other")),
    ("replace", os.rename, ("other", "dir/file")),
    ("exchange", rename2, ("other", "dir/file", 2)),
]


@pytest.mark.parametrize(("call", "args"), [case[1:] for case in STICKY], ids=[case[0] for case in STICKY])
@pytest.mark.parametrize(("who", "expected"), [(OWNER, "OK"), (OTHER, "EPERM"), (MEMBER, "OK"), (0, "OK")])
def test_a_sticky_directory_protects_the_entries_of_others(
    root: Path, who: int, expected: str, call: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    """The file is OWNER's and the directory MEMBER's: both may, and so may root; OTHER may write the directory only."""
    (root / "dir").mkdir()
    _owned(root / "dir", MEMBER)
    make(root / "dir" / "file")
    (root / "dir" / "sub").mkdir()
    make(root / "other")
    _owned(root / "other", who)
    _owned(root / "dir" / "file", OWNER)
    _owned(root / "dir" / "sub", OWNER)
    os.chmod(root / "dir", 0o1777)
    assert outcome_as(who, root, call, *args) == expected


@pytest.mark.parametrize(("who", "expected"), [(OWNER, "OK"), (MEMBER, "EPERM"), (OTHER, "EPERM"), (0, "OK")])
def test_only_the_owner_changes_modes(root: Path, who: int, expected: str) -> None:
    make(root / "file", mode=0o666)
    _owned(root / "file")
    assert outcome_as(who, root, os.chmod, "file", 0o611) == expected
    assert _mode(root / "file") == (0o611 if expected == "OK" else 0o666)


@pytest.mark.parametrize(
    ("who", "uid", "gid", "expected"),
    [
        (0, OTHER, OTHER_GROUP, "OK"), (OWNER, OTHER, -1, "EPERM"), (OWNER, OWNER, -1, "OK"), (OWNER, -1, OWNER, "OK"),
        (OWNER, -1, OTHER_GROUP, "EPERM"), (OWNER, -1, GROUP, "OK"), (OTHER, -1, OTHER, "EPERM"), (OTHER, OTHER, -1, "EPERM"),
        (MEMBER, -1, GROUP, "EPERM"),
    ],
)  # fmt: skip
def test_owners_change_only_to_groups_of_their_own(root: Path, who: int, uid: int, gid: int, expected: str) -> None:
    make(root / "file")
    _owned(root / "file")
    assert outcome_as(who, root, os.chown, "file", uid, gid) == expected


def test_an_owner_gives_a_file_to_a_supplementary_group(root: Path) -> None:
    make(root / "file")
    _owned(root / "file", MEMBER, MEMBER)
    assert outcome_as(MEMBER, root, os.chown, "file", -1, GROUP) == "OK"
    assert os.stat(root / "file").st_gid == GROUP


@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o6755, 0o2644])
@pytest.mark.parametrize("change", ["write", "truncate", "ftruncate", "open O_TRUNC", "chown"])
def test_a_change_by_an_ordinary_user_takes_the_privilege_bits(root: Path, mode: int, change: str) -> None:
    make(root / "file", b"program")
    _owned(root / "file", OWNER, OWNER)
    os.chmod(root / "file", mode)
    assert _mode(root / "file") == mode

    def work() -> None:
        if change == "truncate":
            os.truncate("file", 2)
        elif change == "chown":
            os.chown("file", -1, os.getgid())
        else:
            fd = os.open("file", os.O_WRONLY | (os.O_TRUNC if change == "open O_TRUNC" else 0))
            if change == "write":
                os.write(fd, b"x")
            elif change == "ftruncate":
                os.ftruncate(fd, 3)
            os.close(fd)

    in_child(OWNER, OWNER, [], root, work)
    expected = mode & ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        expected &= ~stat.S_ISGID
    assert _mode(root / "file") == expected


def test_root_writes_without_taking_the_privilege_bits(root: Path) -> None:
    make(root / "file", b"program", 0o6755)
    with open(root / "file", "r+b") as file:
        file.write(b"x")
    assert _mode(root / "file") == 0o6755


@pytest.mark.parametrize(("who", "kept"), [(OWNER, False), (MEMBER, True), (0, True)])
def test_set_gid_stays_only_with_members_of_the_group(root: Path, who: int, kept: bool) -> None:
    make(root / "file")
    _owned(root / "file", who, GROUP)
    assert outcome_as(who, root, os.chmod, "file", 0o2775) == "OK"
    assert _mode(root / "file") == (0o2775 if kept else 0o775)


def test_a_set_gid_directory_hands_its_group_on(root: Path) -> None:
    (root / "dir").mkdir()
    _owned(root / "dir", OWNER, GROUP)
    os.chmod(root / "dir", 0o2777)

    def work() -> None:
        os.umask(0)
        make("dir/file")
        os.mkdir("dir/sub", 0o755)
        os.symlink("x", "dir/link")

    in_child(OTHER, OTHER, [], root, work)
    found = {name: os.lstat(root / "dir" / name) for name in ("file", "sub", "link")}
    assert {name: st.st_gid for name, st in found.items()} == dict.fromkeys(found, GROUP)
    assert {st.st_uid for st in found.values()} == {OTHER}
    assert _mode(root / "dir" / "sub") == 0o2755
    assert _mode(root / "dir" / "file") == 0o644


def test_new_things_belong_to_who_made_them(root: Path) -> None:
    def work() -> None:
        make("file")
        os.mkdir("dir")
        os.symlink("x", "link")

    in_child(OTHER, OTHER_GROUP, [], root, work)
    for name in ("file", "dir", "link"):
        st = os.lstat(root / name)
        assert (st.st_uid, st.st_gid) == (OTHER, OTHER_GROUP)


def test_a_descriptor_keeps_its_right_when_the_mode_changes(root: Path) -> None:
    fd = os.open(root / "file", os.O_CREAT | os.O_RDWR, 0)
    os.chown(root / "file", OWNER, GROUP)

    def work() -> str:
        return outcome(os.write, fd, b"still") + outcome(os.ftruncate, fd, 3) + outcome(os.open, "file", os.O_RDONLY)

    assert in_child(OWNER, GROUP, [], root, work) == "OKOKEACCES"
    assert os.fstat(fd).st_size == 3
    os.close(fd)


def test_access_asks_for_the_real_user(root: Path) -> None:
    make(root / "file", mode=0o640)
    _owned(root / "file")
    make(root / "tool", mode=0o700)
    assert in_child(OWNER, OWNER, [], root, lambda: os.access("file", os.R_OK | os.W_OK)) is True
    assert in_child(MEMBER, MEMBER, [GROUP], root, lambda: os.access("file", os.R_OK)) is True
    assert in_child(MEMBER, MEMBER, [GROUP], root, lambda: os.access("file", os.W_OK)) is False
    assert in_child(OTHER, OTHER, [], root, lambda: os.access("file", os.R_OK)) is False
    assert os.access(root / "file", os.X_OK) is False
    assert os.access(root / "tool", os.X_OK) is True


@pytest.mark.parametrize(("who", "now", "then"), [(OWNER, "OK", "OK"), (MEMBER, "OK", "EPERM"), (OTHER, "EACCES", "EPERM")])
def test_who_may_set_times(root: Path, who: int, now: str, then: str) -> None:
    """To the present: owner or writer. To anything else: the owner. GROUP may write, others may not."""
    make(root / "file", mode=0o664)
    _owned(root / "file")
    assert outcome_as(who, root, os.utime, "file") == now
    assert outcome_as(who, root, os.utime, "file", (1, 1)) == then


def test_moving_a_directory_asks_for_write_permission_on_it(root: Path) -> None:
    """Its '..' changes."""
    (root / "a" / "moved").mkdir(parents=True)
    (root / "b").mkdir()
    for path in (root / "a", root / "b"):
        _owned(path, OTHER)
    _owned(root / "a" / "moved", OWNER)
    assert outcome_as(OTHER, root, os.rename, "a/moved", "b/moved") == "EACCES"
    assert outcome_as(OTHER, root, os.rename, "a/moved", "a/renamed") == "OK"


def test_a_program_runs_only_where_it_may(root: Path) -> None:
    make(root / "script", b"#!/bin/sh\nexit 7\n", 0o710)
    _owned(root / "script")
    run = (os.P_WAIT, "./script", ["script"])
    assert in_child(OWNER, OWNER, [], root, lambda: os.spawnv(*run)) == 7
    assert in_child(OTHER, OTHER, [], root, lambda: os.spawnv(*run)) == 127
    assert os.spawnv(os.P_WAIT, root / "script", ["script"]) == 7
