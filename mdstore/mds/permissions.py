"""Who may do what, as POSIX has it."""

from __future__ import annotations

import errno
import stat
from typing import Final

from mdstore.errors import PosixError
from mdstore.limits import NAME_MAX
from mdstore.mds import acl
from mdstore.mds.inode import Directory, Inode
from mdstore.mds.vfs import Credentials

R: Final = 4
W: Final = 2
X: Final = 1
WX: Final = 3


def allowed(node: Inode, cred: Credentials, mask: int) -> bool:
    """Whether every bit of `mask` (R, W, X) is granted. The superuser lacks only X on a file nobody may execute."""
    mode = node.mode
    if cred.uid == 0:
        return not mask & X or mode & 0o111 != 0 or mode >> 12 == 4
    if node.xattrs is not None and acl.ACCESS in node.xattrs:
        return acl.granted(node.xattrs[acl.ACCESS], node, cred, mask)
    if cred.uid == node.uid:
        granted = mode >> 6
    elif in_group(cred, node.gid):
        granted = mode >> 3
    else:
        granted = mode
    return granted & mask == mask


def require(node: Inode, cred: Credentials, mask: int) -> None:
    """EACCES unless `allowed`."""
    if cred.uid == 0 and node.mode >> 12 == 4:
        return
    if not allowed(node, cred, mask):
        raise PosixError(errno.EACCES, node.ino)


def require_owner(node: Inode, cred: Credentials) -> None:
    """EPERM unless the owner or the superuser asks."""
    if cred.uid not in (0, node.uid):
        raise PosixError(errno.EPERM, node.ino)


def require_removable(directory: Directory, node: Inode, cred: Credentials) -> None:
    """EACCES unless the directory may be written; EPERM in a sticky one unless the owner of one of the two, or the superuser,
    asks."""
    require(directory, cred, WX)
    if directory.mode & stat.S_ISVTX and cred.uid not in (0, node.uid, directory.uid):
        raise PosixError(errno.EPERM, node.ino, "the directory is sticky")


def in_group(cred: Credentials, gid: int) -> bool:
    """Whether `gid` is among the groups of who asks."""
    return cred.gid == gid or gid in cred.groups


def check_name(name: bytes) -> None:
    """ENAMETOOLONG, EINVAL for a slash or NUL, ENOENT for the empty name."""
    if len(name) > NAME_MAX:
        raise PosixError(errno.ENAMETOOLONG, name)
    if not name:
        raise PosixError(errno.ENOENT, name)
    if b"/" in name or b"\0" in name:
        raise PosixError(errno.EINVAL, name, "a name holds no '/' and no NUL")


def owner_of_new(directory: Directory, cred: Credentials, mode: int) -> tuple[int, int]:
    """Mode and group of something made in `directory`: a set-group-id directory hands down its group, and to directories
    the bit; the bit is taken from a program for whose group the maker does not stand."""
    if not directory.mode & stat.S_ISGID:
        return mode, cred.gid
    if stat.S_ISDIR(mode):
        return mode | stat.S_ISGID, directory.gid
    if mode & (stat.S_ISGID | stat.S_IXGRP) == stat.S_ISGID | stat.S_IXGRP and cred.uid and not in_group(cred, directory.gid):
        mode &= ~stat.S_ISGID
    return mode, directory.gid
