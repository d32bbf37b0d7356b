"""Extended attributes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.posix.calls import OTHER, OWNER, in_child, make, outcome, outcome_as

pytestmark = pytest.mark.fuse


def test_attributes_are_kept_listed_replaced_and_removed(root: Path) -> None:
    make(root / "file")
    (root / "dir").mkdir()
    for path in (root / "file", root / "dir"):
        os.setxattr(path, "user.one", b"1")
        os.setxattr(path, "user.two", b"\0\xff binary")
        os.setxattr(path, "user.empty", b"")
        assert sorted(os.listxattr(path)) == ["user.empty", "user.one", "user.two"]
        assert os.getxattr(path, "user.two") == b"\0\xff binary"
        assert os.getxattr(path, "user.empty") == b""
        os.setxattr(path, "user.one", b"replaced")
        assert os.getxattr(path, "user.one") == b"replaced"
        os.removexattr(path, "user.two")
        assert sorted(os.listxattr(path)) == ["user.empty", "user.one"]


def test_errnos_of_attributes(root: Path) -> None:
    make(root / "file")
    path = root / "file"
    os.setxattr(path, "user.there", b"1")
    assert outcome(os.getxattr, path, "user.missing") == "ENODATA"
    assert outcome(os.removexattr, path, "user.missing") == "ENODATA"
    assert outcome(os.setxattr, path, "user.there", b"2", os.XATTR_CREATE) == "EEXIST"
    assert outcome(os.setxattr, path, "user.missing", b"2", os.XATTR_REPLACE) == "ENODATA"
    assert outcome(os.setxattr, path, "user." + "x" * 251, b"2") == "ERANGE"
    assert outcome(os.setxattr, path, "user." + "x" * 250, b"2") == "OK"
    assert outcome(os.setxattr, path, "user.", b"2") == "EINVAL"
    assert outcome(os.setxattr, path, "trusted.", b"2") == "EINVAL"
    assert outcome(os.setxattr, path, "user..", b"2") == "OK"
    assert outcome(os.setxattr, path, "user.large", bytes(65537)) == "E2BIG"
    assert outcome(os.getxattr, root / "missing", "user.x") == "ENOENT"
    assert os.getxattr(path, "user.there") == b"1"


def test_a_value_of_64_kib_is_kept(root: Path, kind: str) -> None:
    make(root / "file")
    value = os.urandom(65536)
    os.setxattr(root / "file", "user.large", value)
    assert os.getxattr(root / "file", "user.large") == value


def test_user_attributes_are_for_files_and_directories(root: Path) -> None:
    os.symlink("x", root / "link")
    os.mkfifo(root / "fifo")
    assert outcome(os.setxattr, root / "link", "user.x", b"1", follow_symlinks=False) == "EPERM"
    assert outcome(os.setxattr, root / "fifo", "user.x", b"1") == "EPERM"


def test_the_mode_decides_who_reads_and_writes_user_attributes(root: Path) -> None:
    make(root / "file", mode=0o640)
    os.chown(root / "file", OWNER, OWNER)
    os.setxattr(root / "file", "user.x", b"1")
    assert outcome_as(OWNER, root, os.setxattr, "file", "user.x", b"2") == "OK"
    assert outcome_as(OTHER, root, os.getxattr, "file", "user.x") == "EACCES"
    os.chmod(root / "file", 0o644)
    assert outcome_as(OTHER, root, os.getxattr, "file", "user.x") == "OK"
    assert outcome_as(OTHER, root, os.setxattr, "file", "user.x", b"3") == "EACCES"
    assert outcome_as(OTHER, root, os.removexattr, "file", "user.x") == "EACCES"


def test_trusted_attributes_are_for_the_superuser(root: Path) -> None:
    make(root / "file", mode=0o666)
    os.chown(root / "file", OWNER, OWNER)
    os.setxattr(root / "file", "trusted.x", b"1")
    assert os.getxattr(root / "file", "trusted.x") == b"1"
    assert outcome_as(OWNER, root, os.setxattr, "file", "trusted.x", b"2") == "EPERM"
    assert outcome_as(OWNER, root, os.getxattr, "file", "trusted.x") == "ENODATA"
    assert in_child(OWNER, OWNER, [], root, lambda: os.listxattr("file")) == []


@pytest.mark.parametrize("name", ["system.posix_acl_access", "system.posix_acl_default", "security.capability", "nonsense"])
def test_attributes_that_are_not_kept_are_refused_clearly(root: Path, kind: str, name: str) -> None:
    (root / "dir").mkdir()
    acl = bytes.fromhex("02000000 0100070000000000 0400050000000000 2000050000000000".replace(" ", ""))
    ended = outcome(os.setxattr, root / "dir", name, acl)
    if kind == "reference" or (kind == "served" and name.startswith("system.")):  # these keep access control lists
        assert ended in ("OK", "ENOTSUP", "EINVAL")
    else:
        assert ended == ("EINVAL" if name == "security.capability" else "ENOTSUP")  # the kernel looks at capabilities first
        assert os.listxattr(root / "dir") == []


def test_attributes_follow_the_file_through_rename_and_link(root: Path) -> None:
    make(root / "a")
    os.setxattr(root / "a", "user.x", b"kept")
    os.rename(root / "a", root / "b")
    os.link(root / "b", root / "c")
    assert os.getxattr(root / "c", "user.x") == b"kept"
    make(root / "a")
    assert os.listxattr(root / "a") == []
