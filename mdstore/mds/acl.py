"""POSIX access control lists: the draft 1003.1e rules, in the representation of Linux's `system.posix_acl_*` attributes.

A list is kept as such an attribute of the inode, and only when it says more than the mode does. The mode and the list agree: the
mode's group bits are the list's mask (its owning group's entry where there is no mask), the other bits those of its entries.
"""

from __future__ import annotations

import errno
import stat
import struct
from enum import IntEnum
from typing import Final, NamedTuple

from mdstore.errors import PosixError
from mdstore.mds.inode import Inode
from mdstore.mds.vfs import Credentials

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"
NAMES: Final = (ACCESS, DEFAULT)
VERSION: Final = 2
HEADER: Final = struct.Struct("<I")
ENTRY: Final = struct.Struct("<HHI")
NOBODY: Final = 0xFFFFFFFF  # the id of an entry that is for nobody in particular
ENTRIES_MAX: Final = 512
assert (HEADER.size, ENTRY.size) == (4, 8)


class Tag(IntEnum):
    """Whom an entry is for, in the order in which entries stand."""

    USER_OBJ = 1
    USER = 2
    GROUP_OBJ = 4
    GROUP = 8
    MASK = 16
    OTHER = 32


class Entry(NamedTuple):
    tag: int
    perm: int
    id: int


Acl = tuple[Entry, ...]
_NAMED: Final = (Tag.USER, Tag.GROUP)
_ONCE: Final = (Tag.USER_OBJ, Tag.GROUP_OBJ, Tag.OTHER)


def decode(raw: bytes) -> Acl:
    """The entries in order; none: an empty list, which means that there is to be none. EINVAL for anything that is no list."""
    if not raw:
        return ()
    if len(raw) < HEADER.size or HEADER.unpack_from(raw)[0] != VERSION or (len(raw) - HEADER.size) % ENTRY.size:
        raise PosixError(errno.EINVAL, "", "not an access control list")
    acl = tuple(sorted((Entry(*fields) for fields in ENTRY.iter_unpack(raw[HEADER.size :])), key=_order))
    acl = tuple(entry if entry.tag in _NAMED else entry._replace(id=NOBODY) for entry in acl)
    if acl:
        _check(acl)
    return acl


def _check(acl: Acl) -> None:
    tags = [entry.tag for entry in acl]
    named = any(tag in _NAMED for tag in tags)
    known = all(tag in tuple(Tag) and entry.perm <= 7 for tag, entry in zip(tags, acl, strict=True))
    once = all(tags.count(tag) == 1 for tag in _ONCE) and tags.count(Tag.MASK) <= 1 and (Tag.MASK in tags or not named)
    nobody = any(entry.id == NOBODY for entry in acl if entry.tag in _NAMED)
    if not (known and once and len(acl) <= ENTRIES_MAX) or nobody:
        raise PosixError(errno.EINVAL, "", "entries that are unknown, missing, or too many")


def _order(entry: Entry) -> tuple[int, int]:
    """Of two entries for one user or group the first counts, as in Linux."""
    return entry.tag, entry.id


def encode(acl: Acl) -> bytes:
    return HEADER.pack(VERSION) + b"".join(ENTRY.pack(*entry) for entry in acl)


def is_minimal(acl: Acl) -> bool:
    """Whether the mode says as much."""
    return len(acl) == len(_ONCE)


def mode_of(acl: Acl) -> int:
    """The nine permission bits."""
    perms = {entry.tag: entry.perm for entry in acl}
    return perms[Tag.USER_OBJ] << 6 | perms.get(Tag.MASK, perms[Tag.GROUP_OBJ]) << 3 | perms[Tag.OTHER]


def with_mode(acl: Acl, mode: int, *, narrowed: bool = False) -> Acl:
    """The list after chmod; `narrowed`: what a new file makes of it, which takes no more than `mode` has."""
    group = Tag.MASK if any(entry.tag == Tag.MASK for entry in acl) else Tag.GROUP_OBJ
    shifts = {Tag.USER_OBJ: 6, group: 3, Tag.OTHER: 0}
    changed = []
    for entry in acl:
        shift = shifts.get(Tag(entry.tag))
        if shift is not None:
            wanted = mode >> shift & 7
            entry = entry._replace(perm=entry.perm & wanted if narrowed else wanted)
        changed.append(entry)
    return tuple(changed)


def granted(raw: bytes, node: Inode, cred: Credentials, mask: int) -> bool:
    """Whether the list grants every bit of `mask`, to anybody but the superuser."""
    acl = decode(raw)
    limit = next((entry.perm for entry in acl if entry.tag == Tag.MASK), 7)
    if cred.uid == node.uid:
        return _perm(acl, Tag.USER_OBJ) & mask == mask
    for entry in acl:
        if entry.tag == Tag.USER and entry.id == cred.uid:
            return entry.perm & limit & mask == mask
    groups = {cred.gid, *cred.groups}
    perms = [_perm(acl, Tag.GROUP_OBJ)] if node.gid in groups else []
    perms += [entry.perm for entry in acl if entry.tag == Tag.GROUP and entry.id in groups]
    if perms:
        return any(perm & limit & mask == mask for perm in perms)
    return _perm(acl, Tag.OTHER) & mask == mask


def _perm(acl: Acl, tag: Tag) -> int:
    return next(entry.perm for entry in acl if entry.tag == tag)


# -- what becomes of inodes --------------------------------------------------------------------------------------------


def inherited(directory: Inode, mode: int, umask: int) -> tuple[int, dict[bytes, bytes] | None]:
    """Mode and attributes of something made in a directory: by its default list, else by `umask`."""
    raw = directory.xattrs.get(DEFAULT) if directory.xattrs else None
    if raw is None or stat.S_ISLNK(mode):
        return mode & ~umask, None
    acl = with_mode(decode(raw), mode, narrowed=True)
    xattrs = {} if is_minimal(acl) else {ACCESS: encode(acl)}
    if stat.S_ISDIR(mode):
        xattrs[DEFAULT] = raw
    return mode & ~0o777 | mode_of(acl), xattrs or None


def check_kept(node: Inode) -> None:
    """Before the mode changes: raises what `follow_mode` would."""
    raw = node.xattrs.get(ACCESS) if node.xattrs else None
    if raw is not None:
        decode(raw)


def follow_mode(node: Inode) -> None:
    """The mode was changed: its list follows."""
    raw = node.xattrs.get(ACCESS) if node.xattrs else None
    if raw is not None:
        node.xattrs = {**(node.xattrs or {}), ACCESS: encode(with_mode(decode(raw), node.mode))}


def changed(node: Inode, name: bytes, value: bytes | None) -> tuple[int, dict[bytes, bytes] | None]:
    """Mode and attributes of `node` once the list `name` is set, or, with None, removed. EINVAL, EACCES (a default list of
    what is no directory), EOPNOTSUPP (a symbolic link)."""
    if stat.S_ISLNK(node.mode):
        raise PosixError(errno.EOPNOTSUPP, node.ino, "a symbolic link has no access control list")
    acl = () if value is None else decode(value)
    xattrs = {key: held for key, held in (node.xattrs or {}).items() if key != name}
    if name == DEFAULT:
        if acl and not node.is_directory:
            raise PosixError(errno.EACCES, node.ino, "only a directory has a default list")
        if acl:
            xattrs[DEFAULT] = encode(acl)
        return node.mode, xattrs or None
    if acl and not is_minimal(acl):
        xattrs[ACCESS] = encode(acl)
    return node.mode & ~0o777 | mode_of(acl) if acl else node.mode, xattrs or None
