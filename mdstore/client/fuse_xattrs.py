"""FUSE operations on extended attributes, as a table over a `Vfs`."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from mdstore.client.fuse_operation import Operation, OperationTable, Reply
from mdstore.client.fuse_protocol import GETXATTR_IN, GETXATTR_OUT, SETXATTR_IN, Opcode, name_at
from mdstore.errors import InvalidRequest
from mdstore.mds.vfs import ROOT_INO, Credentials, Vfs

REFUSED_PREFIXES = (b"security.", b"system.")
"""Not kept: EOPNOTSUPP. `system.` is POSIX ACLs, where the mount does not enforce them; `security.` labels and file capabilities,
which a write would have to drop. Refusing is clear to `cp -a` and `tar`; storing them in vain would not be."""
IMAGE = b"mdstore.image"  # of the root: the path of the image, for commands that want to find it or wait for it
SERVER = b"mdstore.server"  # of the root: the server's process, and the name space of processes that its number is of
ACLS = (b"system.posix_acl_access", b"system.posix_acl_default")


class XattrOperations:
    """`user.` and `trusted.` attributes, and whatever virtual ones the name space has."""

    def __init__(self, vfs: Vfs, complete: Callable[[Credentials], Credentials], *, acls: bool, image: str | None) -> None:
        """`complete` adds a caller's supplementary groups; `acls`: whether access control lists are kept."""
        self._vfs = vfs
        self._complete = complete
        self._kept = frozenset(ACLS) if acls else frozenset()
        self._image = None if image is None else os.fsencode(image)
        self._told = (0, os.geteuid())

    def _refused(self, name: bytes) -> bool:
        return name.startswith(REFUSED_PREFIXES) and name not in self._kept

    def table(self) -> OperationTable:
        return {
            Opcode.SETXATTR: Operation(self.setxattr),
            Opcode.GETXATTR: Operation(self.getxattr),
            Opcode.LISTXATTR: Operation(self.listxattr),
            Opcode.REMOVEXATTR: Operation(self.removexattr),
        }

    def setxattr(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        size, flags = SETXATTR_IN.unpack_from(body)
        name = name_at(body, SETXATTR_IN.size)
        if self._refused(name):
            return errno.EOPNOTSUPP
        start = SETXATTR_IN.size + len(name) + 1
        value = body[start : start + size].tobytes()
        if len(value) != size:
            raise InvalidRequest(f"SETXATTR of {size} bytes carries {len(value)}")
        if name in self._kept:
            cred = self._complete(cred)  # set-gid stays only where the owner is in the file's group
        self._vfs.setxattr(cred, nodeid, name, value, flags)
        return b""

    def getxattr(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        (size,) = GETXATTR_IN.unpack_from(body)
        name = name_at(body, GETXATTR_IN.size)
        if self._refused(name):
            return errno.EOPNOTSUPP
        if name == IMAGE and nodeid == ROOT_INO and self._image is not None:
            return _sized(self._image, size) if cred.uid in self._told else errno.EPERM
        if name == SERVER and nodeid == ROOT_INO:
            return _sized(b"%d %d" % (os.getpid(), process_space()), size) if cred.uid in self._told else errno.EPERM
        return _sized(self._vfs.getxattr(cred, nodeid, name), size)

    def listxattr(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        (size,) = GETXATTR_IN.unpack_from(body)
        names = self._vfs.listxattr(nodeid)
        if cred.uid != 0:
            names = [name for name in names if not name.startswith(b"trusted.")]
        return _sized(b"".join(name + b"\0" for name in names), size)

    def removexattr(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        name = name_at(body, 0)
        if self._refused(name):
            return errno.EOPNOTSUPP
        self._vfs.removexattr(cred, nodeid, name)
        return b""


def process_space() -> int:
    """Which numbers of processes this one sees: the same in processes that see each other by the same numbers. 0: not known."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _sized(value: bytes, size: int) -> Reply:
    """The value, its length where the caller only asks for that (size 0), ERANGE where it has no room."""
    if size == 0:
        return GETXATTR_OUT.pack(len(value))
    return value if len(value) <= size else errno.ERANGE
