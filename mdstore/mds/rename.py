"""rename(2) and renameat2(2): one event, whatever is moved, replaced or exchanged."""

from __future__ import annotations

import errno
from typing import NamedTuple

from mdstore.errors import PosixError
from mdstore.mds.cache import Cache
from mdstore.mds.changes import Changes
from mdstore.mds.core import Core
from mdstore.mds.events import Kind, dir_set
from mdstore.mds.filedata import FileData
from mdstore.mds.inode import MULTIPLE, Directory, Inode
from mdstore.mds.layout import INO_KEY
from mdstore.mds.names import Names
from mdstore.mds.permissions import WX, W, X, check_name, require, require_removable
from mdstore.mds.purge import Purge
from mdstore.mds.quota import Quota
from mdstore.mds.vfs import RENAME_EXCHANGE, RENAME_NOREPLACE, Credentials


class Place(NamedTuple):
    """A name, the directory it stands in, and what it means there (None: nothing)."""

    directory: Directory
    name: bytes
    node: Inode | None


class Rename:
    """The operation. The caller holds the core's lock."""

    def __init__(
        self, core: Core, cache: Cache, names: Names, data: FileData, changes: Changes, purge: Purge, quota: Quota
    ) -> None:
        self._core = core
        self._cache = cache
        self._names = names
        self._data = data
        self._changes = changes
        self._purge = purge
        self._quota = quota

    def rename(
        self, cred: Credentials, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> None:
        """Move an entry. EINVAL (below itself, unknown flags), EBUSY ('.' and '..'), EEXIST, ENOENT, ENOTDIR, EISDIR,
        ENOTEMPTY, EACCES, EPERM (sticky), EDQUOT. Renaming one of two names of an inode to the other does nothing."""
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise PosixError(errno.EINVAL, name, f"flags {flags:#x}")
        old, new = self._searchable(cred, parent), self._searchable(cred, new_parent)
        source = self._place(old, name)
        node = source.node
        if node is None:
            raise PosixError(errno.ENOENT, name)
        target = self._place(new, new_name)
        self._check_target(source, target, flags)
        self._check_cycles(source, target, exchange=flags == RENAME_EXCHANGE)
        if target.node is node:
            return
        self._check_rights(cred, source, target, exchange=flags == RENAME_EXCHANGE)
        if flags == RENAME_EXCHANGE:
            self._exchange(source, target)
        else:
            self._move(source, target)

    def _searchable(self, cred: Credentials, ino: int) -> Directory:
        directory = self._cache.directory(ino)
        require(directory, cred, X)
        return directory

    def _place(self, directory: Directory, name: bytes) -> Place:
        check_name(name)
        if name in (b".", b".."):
            raise PosixError(errno.EBUSY, name)
        entry = self._cache.find(directory, name)
        return Place(directory, name, None if entry is None else self._cache.resolve(directory, name, entry))

    @staticmethod
    def _check_target(source: Place, target: Place, flags: int) -> None:
        if target.directory.nlink == 0:
            raise PosixError(errno.ENOENT, target.directory.ino, "the directory was removed")
        if target.node is None and flags == RENAME_EXCHANGE:
            raise PosixError(errno.ENOENT, target.name)
        if target.node is not None and flags == RENAME_NOREPLACE:
            raise PosixError(errno.EEXIST, target.name)

    def _check_rights(self, cred: Credentials, source: Place, target: Place, *, exchange: bool) -> None:
        """Who asks may take the one name and give the other; a directory that changes its parent is written: its '..'."""
        node, victim = source.node, target.node
        assert node is not None
        require_removable(source.directory, node, cred)
        if victim is None:
            require(target.directory, cred, WX)
        else:
            require_removable(target.directory, victim, cred)
            if not exchange and node.is_directory != victim.is_directory:
                raise PosixError(errno.ENOTDIR if node.is_directory else errno.EISDIR, target.name)
        if source.directory is not target.directory:
            for moved in (node, victim if exchange else None):
                if isinstance(moved, Directory):
                    require(moved, cred, W)
        if not exchange and isinstance(victim, Directory):
            self._names.require_empty(victim, target.name)

    def _check_cycles(self, source: Place, target: Place, *, exchange: bool) -> None:
        """EINVAL when a directory would come to lie below itself; ENOTEMPTY when it would replace what holds it."""
        if isinstance(source.node, Directory) and self._names.is_below(source.node, target.directory.ino):
            raise PosixError(errno.EINVAL, source.name, "a directory cannot be moved below itself")
        if isinstance(target.node, Directory) and self._names.is_below(target.node, source.directory.ino):
            raise PosixError(errno.EINVAL if exchange else errno.ENOTEMPTY, target.name)

    # -- move ----------------------------------------------------------------------------------------------------------

    def _move(self, source: Place, target: Place) -> None:
        node, victim = source.node, target.node
        assert node is not None
        self._check_quota(source, target)
        self._data.publish_with_others(node)
        heir = None
        if victim is not None:
            heir = self._names.heir(target.directory, target.name, victim)
            self._names.settle_data(victim)
        now = self._core.clock()
        records = self._touch_for_move(source, target, now)
        records.append(self._names.take(source.directory, source.name, node))
        if victim is not None:
            records.append(self._drop_victim(target, victim, now, heir))
        records += self._put_moved(source, target.directory, target.name, now)
        self._core.append(Kind.RENAME, b"".join(records))
        if victim is not None:
            self._purge.released(victim)

    def _check_quota(self, source: Place, target: Place) -> None:
        if self._quota.any and source.directory is not target.directory and source.node is not None:
            if source.node.is_directory:
                self._quota.hand_up()
            self._data.publish([source.node])
            files, dirs, space = self._names.weight(source.directory, source.node)
            self._quota.check(target.directory, files=files + dirs, space=space, moved_from=source.directory)

    def _touch_for_move(self, source: Place, target: Place, now: int) -> list[bytes]:
        """Counts and times of both directories, once where they are one; the victim's share goes as well."""
        core, names = self._core, self._names
        node, victim = source.node, target.node
        assert node is not None
        files, dirs, space = names.weight(source.directory, node)
        gone = names.weight(target.directory, victim) if victim is not None else (0, 0, 0)
        is_dir = int(isinstance(node, Directory))
        one_less = int(victim is not None)
        if source.directory is target.directory:
            return [core.touch(source.directory, now, -one_less, -is_dir * one_less, -gone[0], -gone[1], -gone[2])]
        return [
            core.touch(source.directory, now, -1, -is_dir, -files, -dirs, -space),
            core.touch(
                target.directory, now, 1 - one_less, is_dir - is_dir * one_less, files - gone[0], dirs - gone[1],
                space - gone[2],
            ),
        ]  # fmt: skip

    def _drop_victim(self, target: Place, victim: Inode, now: int, heir: Directory | None) -> bytes:
        if isinstance(victim, Directory):
            return self._names.drop_directory(victim, now)
        return self._names.lose_name(target.directory, target.name, victim, now, heir)

    def _put_moved(self, source: Place, directory: Directory, name: bytes, now: int) -> list[bytes]:
        """The moved inode under its new name; the records of the entry and of the inode itself."""
        node = source.node
        assert node is not None
        node.ctime = now
        node.change += 1
        extra = []
        if node.parent == MULTIPLE:
            key = INO_KEY.pack(node.ino) + INO_KEY.pack(source.directory.ino) + source.name
            extra.append(self._core.drop_row(self._core.links, key))
            if node.home == source.directory.ino:
                node.home = directory.ino
            extra.append(self._core.put_unnamed(node))
        entry = self._names.put(directory, name, node, now)
        if isinstance(node, Directory):
            node.version += 1
            node.rctime = max(node.rctime, now)
            self._core.mark(node)
            extra.append(dir_set(node.ino, node.encode_header()))
        self._changes.backtrace_later(node)
        return [*extra, entry]

    # -- exchange ------------------------------------------------------------------------------------------------------

    def _exchange(self, source: Place, target: Place) -> None:
        first, second = source.node, target.node
        assert first is not None
        assert second is not None
        self._data.publish([first, second])
        now = self._core.clock()
        records = self._touch_for_exchange(source, target, now)
        records.append(self._names.take(source.directory, source.name, first))
        records.append(self._names.take(target.directory, target.name, second))
        records += self._put_moved(source, target.directory, target.name, now)
        records += self._put_moved(target, source.directory, source.name, now)
        self._core.append(Kind.RENAME, b"".join(records))

    def _touch_for_exchange(self, source: Place, target: Place, now: int) -> list[bytes]:
        core, names = self._core, self._names
        first, second = source.node, target.node
        assert first is not None
        assert second is not None
        if source.directory is target.directory:
            return [core.touch(source.directory, now, 0, 0, 0, 0, 0)]
        out = names.weight(source.directory, first)
        back = names.weight(target.directory, second)
        links = int(isinstance(second, Directory)) - int(isinstance(first, Directory))
        files, dirs, space = back[0] - out[0], back[1] - out[1], back[2] - out[2]
        return [
            core.touch(source.directory, now, 0, links, files, dirs, space),
            core.touch(target.directory, now, 0, -links, -files, -dirs, -space),
        ]
