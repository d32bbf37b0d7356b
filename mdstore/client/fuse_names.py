"""FUSE operations on names and inodes, as a table over a `Vfs`."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

from mdstore.client.fuse_credentials import Masks
from mdstore.client.fuse_operation import Operation, OperationTable, Reply
from mdstore.client.fuse_protocol import (
    ACCESS_IN,
    BATCH_FORGET_IN,
    ENTRY_OUT,
    FORGET_IN,
    FORGET_ONE,
    LINK_IN,
    MKDIR_IN,
    MKNOD_IN,
    RENAME2_IN,
    RENAME_IN,
    SETATTR_IN,
    STATFS_OUT,
    Opcode,
    SetAttrValid,
    name_at,
    names_at,
)
from mdstore.client.fuse_reply import ReplyEncoder, time_ns
from mdstore.errors import InvalidRequest, MdstoreError, PosixError
from mdstore.mds.boundary import clamped_time
from mdstore.mds.vfs import NOW, SUPERUSER, Credentials, SetAttr, StandingIn, Vfs


class NameOperations:
    """Lookup and everything that changes names or attributes.

    `complete` adds a caller's supplementary groups; it is asked only where they decide the outcome. `masks`: given where the name
    space applies the umask.
    """

    def __init__(
        self, vfs: Vfs, replies: ReplyEncoder, complete: Callable[[Credentials], Credentials], masks: Masks | None = None
    ) -> None:
        self._vfs = vfs
        self._replies = replies
        self._complete = complete
        self._masks = masks

    def table(self) -> OperationTable:
        entry = self._forget_entry
        return {
            Opcode.LOOKUP: Operation(self.lookup, undo=entry),
            Opcode.FORGET: Operation(self.forget),
            Opcode.BATCH_FORGET: Operation(self.batch_forget),
            Opcode.GETATTR: Operation(self.getattr),
            Opcode.SETATTR: Operation(self.setattr),
            Opcode.ACCESS: Operation(self.access),
            Opcode.READLINK: Operation(self.readlink),
            Opcode.SYMLINK: Operation(self.symlink, undo=entry),
            Opcode.MKNOD: Operation(self.mknod, undo=entry),
            Opcode.MKDIR: Operation(self.mkdir, undo=entry),
            Opcode.LINK: Operation(self.link, undo=entry),
            Opcode.UNLINK: Operation(self.unlink),
            Opcode.RMDIR: Operation(self.rmdir),
            Opcode.RENAME: Operation(self.rename),
            Opcode.RENAME2: Operation(self.rename2),
            Opcode.STATFS: Operation(self.statfs),
        }

    def lookup(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        name = body[:-1].tobytes()
        try:
            return self._replies.entry(self._vfs.lookup(cred, nodeid, name))
        except PosixError as error:
            if error.errno == errno.ENOENT:
                return self._replies.negative  # so that the kernel remembers that there is nothing
            raise
        except MdstoreError:
            attr = self._vfs.stand_in(cred, nodeid, name) if isinstance(self._vfs, StandingIn) else None
            if attr is None:
                raise
            return self._replies.entry(attr)

    def forget(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        self._vfs.forget(nodeid, FORGET_IN.unpack_from(body)[0])
        return None

    def batch_forget(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        (count,) = BATCH_FORGET_IN.unpack_from(body)
        if len(body) < BATCH_FORGET_IN.size + count * FORGET_ONE.size:
            raise InvalidRequest(f"BATCH_FORGET names {count} inodes in {len(body)} bytes")
        for index in range(count):
            ino, lookups = FORGET_ONE.unpack_from(body, BATCH_FORGET_IN.size + index * FORGET_ONE.size)
            self._vfs.forget(ino, lookups)
        return None

    def getattr(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        return self._replies.attributes(self._vfs.getattr(nodeid))

    def setattr(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        valid, change = _decode_setattr(body)
        if valid & SetAttrValid.CTIME:
            # The kernel writes back times it kept itself (write-back cache), in the name of whoever closed the file.
            cred = SUPERUSER
        elif cred.uid and change.mode is not None and change.mode & stat.S_ISGID:
            cred = self._complete(cred)  # set-gid stays only where the owner is in the file's group
        return self._replies.attributes(self._vfs.setattr(cred, nodeid, change))

    def access(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        self._vfs.access(cred, nodeid, ACCESS_IN.unpack_from(body)[0])
        return b""

    def readlink(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        return self._vfs.readlink(nodeid)

    def symlink(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        name, target = names_at(body, 0, 2)
        return self._replies.entry(self._vfs.symlink(cred, nodeid, name, target))

    def mknod(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        mode, rdev, umask = MKNOD_IN.unpack_from(body)
        if self._masks:
            cred = self._masks.of(cred, umask)
        return self._replies.entry(self._vfs.mknod(cred, nodeid, name_at(body, MKNOD_IN.size), mode, rdev))

    def mkdir(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        mode, umask = MKDIR_IN.unpack_from(body)
        if self._masks:
            cred = self._masks.of(cred, umask)
        return self._replies.entry(self._vfs.mkdir(cred, nodeid, name_at(body, MKDIR_IN.size), mode))

    def link(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        (ino,) = LINK_IN.unpack_from(body)
        return self._replies.entry(self._vfs.link(cred, ino, nodeid, name_at(body, LINK_IN.size)))

    def unlink(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        self._vfs.unlink(cred, nodeid, name_at(body, 0))
        return b""

    def rmdir(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        self._vfs.rmdir(cred, nodeid, name_at(body, 0))
        return b""

    def rename(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        (new_parent,) = RENAME_IN.unpack_from(body)
        name, new_name = names_at(body, RENAME_IN.size, 2)
        self._vfs.rename(cred, nodeid, name, new_parent, new_name)
        return b""

    def rename2(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        new_parent, flags = RENAME2_IN.unpack_from(body)
        name, new_name = names_at(body, RENAME2_IN.size, 2)
        self._vfs.rename(cred, nodeid, name, new_parent, new_name, flags)
        return b""

    def statfs(self, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        size, blocks, free, available, files, files_free, name_max = self._vfs.statfs()
        return STATFS_OUT.pack(blocks, free, available, files, files_free, size, name_max, size)

    def _forget_entry(self, nodeid: int, reply: bytes) -> None:
        ino = ENTRY_OUT.unpack_from(reply)[0]
        if ino:
            self._vfs.forget(ino, 1)


def _decode_setattr(body: memoryview) -> tuple[int, SetAttr]:
    """`valid` and the change it asks for."""
    (
        valid, handle, size, _owner, atime_s, mtime_s, _ctime_s, atime_ns, mtime_ns, _ctime_ns, mode, uid, gid,
    ) = SETATTR_IN.unpack_from(body)  # fmt: skip
    has = SetAttrValid
    atime = NOW if valid & has.ATIME_NOW else clamped_time(time_ns(atime_s, atime_ns))
    mtime = NOW if valid & has.MTIME_NOW else clamped_time(time_ns(mtime_s, mtime_ns))
    return valid, SetAttr(
        mode=mode if valid & has.MODE else None,
        uid=uid if valid & has.UID else None,
        gid=gid if valid & has.GID else None,
        size=size if valid & has.SIZE else None,
        atime_ns=atime if valid & (has.ATIME | has.ATIME_NOW) else None,
        mtime_ns=mtime if valid & (has.MTIME | has.MTIME_NOW) else None,
        handle=handle if valid & has.FH else None,
    )
