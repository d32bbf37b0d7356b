"""POSIX access control lists: kept, enforced, inherited, and in step with the mode."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

import pytest

from tests.posix.calls import GROUP, MEMBER, OTHER, OWNER, in_child, make, outcome, outcome_as
from tests.posix.conftest import REFERENCE

pytestmark = [  # the model in memory keeps no lists
    pytest.mark.fuse,
    pytest.mark.parametrize("mounted", [REFERENCE, "served"], indirect=True),
]

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP_TAG, MASK, OTHERS = 1, 2, 4, 8, 16, 32
NOBODY = 0xFFFFFFFF


def acl(*entries: tuple[int, int] | tuple[int, int, int]) -> bytes:
    """(tag, permissions, id) each; the id only where there is one."""
    whole = [(*entry, NOBODY)[:3] for entry in entries]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in whole)


NAMED_USER = acl((USER_OBJ, 6), (USER, 6, OTHER), (GROUP_OBJ, 4), (MASK, 6), (OTHERS, 0))
NAMED_GROUP = acl((USER_OBJ, 6), (GROUP_OBJ, 0), (GROUP_TAG, 4, GROUP), (MASK, 7), (OTHERS, 0))
PLAIN = acl((USER_OBJ, 6), (GROUP_OBJ, 4), (OTHERS, 4))


def mode_of(path: Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def test_a_list_comes_back_and_the_mode_shows_its_mask(root: Path) -> None:
    make(root / "f", mode=0o644)
    assert outcome(os.getxattr, root / "f", ACCESS) == "ENODATA"
    os.setxattr(root / "f", ACCESS, NAMED_USER)
    assert os.getxattr(root / "f", ACCESS) == NAMED_USER
    assert mode_of(root / "f") == 0o660
    assert ACCESS in os.listxattr(root / "f")
    os.removexattr(root / "f", ACCESS)
    assert outcome(os.getxattr, root / "f", ACCESS) == "ENODATA"


def test_a_list_that_says_no_more_than_the_mode_becomes_the_mode(root: Path) -> None:
    make(root / "f", mode=0o600)
    os.setxattr(root / "f", ACCESS, PLAIN)
    assert mode_of(root / "f") == 0o644
    assert outcome(os.getxattr, root / "f", ACCESS) == "ENODATA"


@pytest.mark.parametrize(
    "wrong",
    [
        b"\2\0\0", PLAIN + b"x", acl((USER_OBJ, 6), (GROUP_OBJ, 4)),
        acl((USER_OBJ, 6), (USER, 6, OTHER), (GROUP_OBJ, 4), (OTHERS, 0)), acl((USER_OBJ, 9), (GROUP_OBJ, 4), (OTHERS, 4)),
        acl((USER_OBJ, 6), (USER, 6, NOBODY), (GROUP_OBJ, 4), (MASK, 6), (OTHERS, 0)),
        acl((3, 6), (USER_OBJ, 6), (GROUP_OBJ, 4), (OTHERS, 4)),
    ],
)  # fmt: skip
def test_what_is_no_list_is_refused(root: Path, wrong: bytes) -> None:
    make(root / "f")
    assert outcome(os.setxattr, root / "f", ACCESS, wrong) == "EINVAL"
    assert outcome(os.getxattr, root / "f", ACCESS) == "ENODATA"


@pytest.mark.parametrize("nothing", [b"", struct.pack("<I", 2)])
def test_an_empty_list_removes_the_one_there_was(root: Path, nothing: bytes) -> None:
    make(root / "f", mode=0o600)
    os.setxattr(root / "f", ACCESS, NAMED_USER)
    os.setxattr(root / "f", ACCESS, nothing)
    assert outcome(os.getxattr, root / "f", ACCESS) == "ENODATA"


def test_only_the_owner_sets_a_list_and_only_a_directory_has_a_default_one(root: Path) -> None:
    make(root / "f", mode=0o666)
    os.chown(root / "f", OWNER, GROUP)
    assert outcome_as(OTHER, root, os.setxattr, "f", ACCESS, NAMED_USER) == "EPERM"
    assert outcome_as(OWNER, root, os.setxattr, "f", ACCESS, NAMED_USER) == "OK"
    assert outcome(os.setxattr, root / "f", DEFAULT, NAMED_USER) == "EACCES"
    os.symlink("f", root / "l")
    assert outcome(os.setxattr, root / "l", ACCESS, NAMED_USER, follow_symlinks=False) == "ENOTSUP"


def opened_as(uid: int, directory: Path, flags: int) -> str:
    return outcome_as(uid, directory, os.open, "f", flags)


def test_a_named_user_is_let_in_as_far_as_the_mask_goes(root: Path) -> None:
    make(root / "f", mode=0o600)
    assert opened_as(OTHER, root, os.O_RDONLY) == "EACCES"
    os.setxattr(root / "f", ACCESS, NAMED_USER)
    assert opened_as(OTHER, root, os.O_RDWR) == "OK"
    assert opened_as(OWNER, root, os.O_RDONLY) == "EACCES"
    os.chmod(root / "f", 0o640)  # the group bits are the mask
    assert opened_as(OTHER, root, os.O_RDONLY) == "OK"
    assert opened_as(OTHER, root, os.O_RDWR) == "EACCES"
    expected = acl((USER_OBJ, 6), (USER, 6, OTHER), (GROUP_OBJ, 4), (MASK, 4), (OTHERS, 0))
    assert os.getxattr(root / "f", ACCESS) == expected


def test_a_named_group_is_let_in_by_supplementary_groups(root: Path) -> None:
    make(root / "f", mode=0o600)
    os.setxattr(root / "f", ACCESS, NAMED_GROUP)
    assert opened_as(MEMBER, root, os.O_RDONLY) == "OK"
    assert opened_as(MEMBER, root, os.O_WRONLY) == "EACCES"
    assert opened_as(OTHER, root, os.O_RDONLY) == "EACCES"


def test_a_named_user_is_kept_out_where_others_are_let_in(root: Path) -> None:
    make(root / "f", mode=0o644)
    os.setxattr(root / "f", ACCESS, acl((USER_OBJ, 6), (USER, 0, OTHER), (GROUP_OBJ, 4), (MASK, 4), (OTHERS, 4)))
    assert opened_as(OTHER, root, os.O_RDONLY) == "EACCES"
    assert opened_as(OWNER, root, os.O_RDONLY) == "OK"


def test_a_list_decides_about_making_and_removing_in_a_directory(root: Path) -> None:
    (root / "d").mkdir(mode=0o755)
    assert outcome_as(OTHER, root, os.mkdir, "d/new") == "EACCES"
    os.setxattr(root / "d", ACCESS, acl((USER_OBJ, 7), (USER, 7, OTHER), (GROUP_OBJ, 5), (MASK, 7), (OTHERS, 5)))
    assert outcome_as(OTHER, root, os.mkdir, "d/new") == "OK"
    assert outcome_as(OWNER, root, os.rmdir, "d/new") == "EACCES"
    assert outcome_as(OTHER, root, os.rmdir, "d/new") == "OK"


def with_umask(umask: int, directory: Path) -> None:
    """Make a file, a directory, a FIFO and a link under that umask."""

    def work() -> None:
        os.umask(umask)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir("d", 0o777)
        os.mkfifo("p", 0o666)
        os.symlink("f", "l")

    in_child(0, 0, [], directory, work)


def test_what_is_made_in_a_directory_with_a_default_list_gets_it_and_no_umask(root: Path) -> None:
    default = acl((USER_OBJ, 7), (USER, 7, OTHER), (GROUP_OBJ, 5), (MASK, 7), (OTHERS, 1))
    os.setxattr(root, DEFAULT, default)
    with_umask(0o077, root)
    assert mode_of(root / "f") == 0o660
    assert os.getxattr(root / "f", ACCESS) == acl((USER_OBJ, 6), (USER, 7, OTHER), (GROUP_OBJ, 5), (MASK, 6), (OTHERS, 0))
    assert outcome(os.getxattr, root / "f", DEFAULT) in ("ENODATA", "EACCES")
    assert mode_of(root / "p") == 0o660
    assert mode_of(root / "d") == 0o771
    assert os.getxattr(root / "d", DEFAULT) == default
    assert os.getxattr(root / "d", ACCESS) == default
    assert os.lstat(root / "l").st_mode & 0o777 == 0o777
    with_umask(0o077, root / "d")
    assert mode_of(root / "d" / "f") == 0o660
    os.removexattr(root, DEFAULT)
    make(root / "g", mode=0o644)
    assert outcome(os.getxattr, root / "g", ACCESS) == "ENODATA"


def test_a_default_list_of_three_entries_gives_the_mode_alone(root: Path) -> None:
    os.setxattr(root, DEFAULT, acl((USER_OBJ, 7), (GROUP_OBJ, 5), (OTHERS, 0)))
    with_umask(0, root)
    assert mode_of(root / "f") == 0o640
    assert mode_of(root / "d") == 0o750
    assert outcome(os.getxattr, root / "f", ACCESS) == "ENODATA"


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o777])
def test_the_umask_counts_where_there_is_no_default_list(root: Path, umask: int) -> None:
    with_umask(umask, root)
    assert mode_of(root / "f") == 0o666 & ~umask
    assert mode_of(root / "d") == 0o777 & ~umask
    assert mode_of(root / "p") == 0o666 & ~umask
    assert os.lstat(root / "l").st_mode & 0o777 == 0o777


def test_setting_a_list_takes_set_gid_from_who_is_not_in_the_group(root: Path) -> None:
    for name, uid, kept in (("mine", MEMBER, True), ("theirs", OTHER, False)):
        make(root / name, mode=0o755)
        os.chown(root / name, uid, GROUP)
        os.chmod(root / name, 0o2755)
        assert outcome_as(uid, root, os.setxattr, name, ACCESS, NAMED_USER) == "OK"
        assert bool(os.stat(root / name).st_mode & stat.S_ISGID) == kept, name
