"""Names come and go: lookup, create, mkdir, mknod, symlink, link, unlink, rmdir. Renaming is in rename.py.

Every change has the same shape: check everything, change memory, append one event made of the records of what changed.
"""

from __future__ import annotations

import errno
import stat
from contextlib import suppress
from typing import Final

from mdstore.errors import PosixError
from mdstore.limits import LINK_MAX, SYMLINK_MAX
from mdstore.mds import acl
from mdstore.mds.cache import Cache, Entry
from mdstore.mds.core import UNREADABLE, Core
from mdstore.mds.events import Kind, dir_remove, dir_set, entry_remove, entry_set
from mdstore.mds.filedata import FileData
from mdstore.mds.holds import Holds
from mdstore.mds.inode import MULTIPLE, Directory, Inode
from mdstore.mds.layout import INO_KEY, LINK_VALUE
from mdstore.mds.permissions import WX, X, check_name, owner_of_new, require, require_removable
from mdstore.mds.purge import Purge
from mdstore.mds.quota import Quota
from mdstore.mds.records import FLAG_DATA, TAG_DIRECTORY, TAG_REMOTE, TYPE_DIRECTORY, encode_link
from mdstore.mds.vfs import Credentials

MAKEABLE: Final = frozenset({stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK})


class Names:
    """The operations on names. The caller holds the core's lock."""

    def __init__(
        self, core: Core, cache: Cache, data: FileData, purge: Purge, quota: Quota, holds: Holds
    ) -> None:
        self._core = core
        self._cache = cache
        self._data = data
        self._purge = purge
        self._quota = quota
        self._holds = holds

    def lookup(self, cred: Credentials, parent: int, name: bytes) -> Inode:
        """The inode `name` means in `parent`. EACCES, ENOENT, ENOTDIR, ENAMETOOLONG."""
        directory = self._searchable(cred, parent)
        entry = directory.entries.get(name)
        if entry is None:
            check_name(name)
            if name in (b".", b".."):
                return directory if name == b"." else self._cache.parent(directory)
            return self._cache.child(directory, name)
        return self._cache.resolve(directory, name, entry) if isinstance(entry, int) else entry

    # -- making --------------------------------------------------------------------------------------------------------

    def make_in(
        self, directory: Directory, cred: Credentials, name: bytes, mode: int, kind: Kind, *, rdev: int = 0,
        target: bytes = b"",
    ) -> Inode:  # fmt: skip
        """A new inode that is no directory, where everything is checked already and `name` is known to be free."""
        core = self._core
        if self._quota.any:
            self._quota.check(directory, files=1)
        now = core.clock()
        gid = cred.gid
        if directory.mode & stat.S_ISGID:
            mode, gid = owner_of_new(directory, cred, mode)
        xattrs = None
        if directory.xattrs is not None:
            mode, xattrs = acl.inherited(directory, mode, cred.umask)
        elif cred.umask and not target:
            mode &= ~cred.umask
        ino = core.allocate()
        node = Inode(ino, mode, cred.uid, gid, now, directory.ino, name)
        if rdev or target:
            node.rdev = rdev
            node.target = target
            node.size = len(target)
        node.xattrs = xattrs
        touched = core.touch(directory, now, 1, 0, 1, 0, node.size)
        value = node.entry_value()
        core.append(kind, touched + entry_set(directory.ino, directory.version, name, value))
        directory.changed[name] = value
        directory.entries[name] = node
        core.nodes[ino] = node
        if directory.names is not None:
            note_name(directory, name)
        return node

    def mknod(self, cred: Credentials, parent: int, name: bytes, mode: int, rdev: int) -> Inode:
        """A regular file, FIFO, socket or device; devices are the superuser's (EPERM)."""
        kind = mode & 0o170000 or stat.S_IFREG
        if kind not in MAKEABLE:
            raise PosixError(errno.EINVAL, name, "not a type that mknod makes")
        directory = self._place(cred, parent, name)
        device = kind in (stat.S_IFCHR, stat.S_IFBLK)
        if device and cred.uid:
            raise PosixError(errno.EPERM, name, "only the superuser makes devices")
        return self.make_in(directory, cred, name, kind | mode & 0o7777, Kind.MKNOD, rdev=rdev if device else 0)

    def symlink(self, cred: Credentials, parent: int, name: bytes, target: bytes) -> Inode:
        """A symbolic link. ENOENT for an empty target, ENAMETOOLONG for one over 4095 bytes."""
        if not target:
            raise PosixError(errno.ENOENT, name, "a symbolic link needs a target")
        if len(target) > SYMLINK_MAX:
            raise PosixError(errno.ENAMETOOLONG, name, "target of a symbolic link")
        return self.make_in(self._place(cred, parent, name), cred, name, stat.S_IFLNK | 0o777, Kind.SYMLINK, target=target)

    def mkdir(self, cred: Credentials, parent: int, name: bytes, mode: int) -> Directory:
        """A new directory."""
        core = self._core
        above = self._place(cred, parent, name)
        if above.nlink >= LINK_MAX:
            raise PosixError(errno.EMLINK, name)
        if self._quota.any:
            self._quota.check(above, files=1)
        now = core.clock()
        mode, gid = owner_of_new(above, cred, stat.S_IFDIR | mode & 0o1777)
        mode, xattrs = acl.inherited(above, mode, cred.umask)
        made = Directory(core.allocate(), mode, cred.uid, gid, now, above.ino, name)
        made.xattrs = xattrs
        made.complete = True
        touched = core.touch(above, now, 1, 1, 0, 1, 0)
        core.mark(made)
        records = touched + self.put(above, name, made, now) + dir_set(made.ino, made.encode_header())
        core.append(Kind.MKDIR, records)
        core.nodes[made.ino] = made
        return made

    def link(self, cred: Credentials, ino: int, parent: int, name: bytes) -> Inode:
        """One more name for an inode. EPERM for a directory, EMLINK, ENOENT for an inode without a name."""
        core = self._core
        node = self._cache.node(ino)
        directory = self._place(cred, parent, name)
        if isinstance(node, Directory):
            raise PosixError(errno.EPERM, name, "a directory has one name")
        if node.nlink == 0:
            raise PosixError(errno.ENOENT, name, "the inode has no name any more")
        if node.nlink >= LINK_MAX:
            raise PosixError(errno.EMLINK, name)
        if self._quota.any:
            self._quota.check(directory, files=1)
        self._data.publish_with_others(node)
        now = core.clock()
        core.unlogged = True
        node.nlink += 1
        node.ctime = now
        node.change += 1
        records = [] if node.parent == MULTIPLE else self._move_out(node, now)
        if node.flags & FLAG_DATA:
            core.stale_backtraces[node.ino] = None
        records.append(core.touch(directory, now, 1, 0, 1, 0, 0))
        records.append(self.put(directory, name, node, now))
        records.append(core.put_unnamed(node))
        core.append(Kind.LINK, b"".join(records))
        return node

    def _move_out(self, node: Inode, now: int) -> list[bytes]:
        """An inode gets its second name: from its entry to the inode table; the entry becomes a link."""
        home = self._cache.parent(node)
        old_name = node.name
        node.home, node.parent, node.name = home.ino, MULTIPLE, b""
        return [self._core.bump(home, now), self.put(home, old_name, node, now)]

    def _place(self, cred: Credentials, parent: int, name: bytes) -> Directory:
        """The directory where something is to be made: it is there, the name is free, and who asks may write in it."""
        directory = self._searchable(cred, parent)
        check_name(name)
        if name in (b".", b"..") or self._cache.find(directory, name) is not None:
            raise PosixError(errno.EEXIST, name)
        if directory.nlink == 0:
            raise PosixError(errno.ENOENT, parent, "the directory was removed")
        if cred.uid:
            require(directory, cred, WX)
        return directory

    def _searchable(self, cred: Credentials, ino: int) -> Directory:
        directory = self._cache.directory(ino)
        if cred.uid:
            require(directory, cred, X)
        return directory

    def place_or_file(self, cred: Credentials, parent: int, name: bytes) -> tuple[Directory, Entry | None]:
        """For open(2) with O_CREAT: the directory, and what is there already; where nothing is, it may be made."""
        directory = self._searchable(cred, parent)
        check_name(name)
        if name in (b".", b".."):
            raise PosixError(errno.EISDIR, name)
        entry = self._cache.find(directory, name)
        if entry is None:
            if directory.nlink == 0:
                raise PosixError(errno.ENOENT, parent, "the directory was removed")
            if cred.uid:
                require(directory, cred, WX)
        return directory, entry

    # -- removing ------------------------------------------------------------------------------------------------------

    def unlink(self, cred: Credentials, parent: int, name: bytes) -> None:
        """Take a name away; EISDIR for a directory. What nobody uses any more is purged later."""
        directory, entry = self._existing(cred, parent, name)
        node = self._cache.resolve(directory, name, entry)
        require_removable(directory, node, cred)
        if isinstance(node, Directory):
            raise PosixError(errno.EISDIR, name)
        heir = self.heir(directory, name, node)
        self.settle_data(node)
        core = self._core
        now = core.clock()
        space = self.space_here(directory, node)
        touched = core.touch(directory, now, -1, 0, -1, 0, -space)
        records = touched + self.take(directory, name, node) + self.lose_name(directory, name, node, now, heir)
        core.append(Kind.UNLINK, records)
        self._purge.released(node)

    def rmdir(self, cred: Credentials, parent: int, name: bytes) -> None:
        """Remove an empty directory. ENOTDIR, ENOTEMPTY, EINVAL for '.', EBUSY for the root."""
        if name == b".":
            raise PosixError(errno.EINVAL, name)
        if name == b"..":
            raise PosixError(errno.ENOTEMPTY, name)
        directory, entry = self._existing(cred, parent, name)
        node = self._cache.resolve(directory, name, entry)
        require_removable(directory, node, cred)
        if not isinstance(node, Directory):
            raise PosixError(errno.ENOTDIR, name)
        self.require_empty(node, name)
        now = self._core.clock()
        records = self.remove_directory(directory, name, node, now)
        self._core.append(Kind.RMDIR, records)
        self._purge.released(node)

    def require_empty(self, node: Directory, name: bytes) -> None:
        """ENOTEMPTY; a count that says 0 is not believed where there are entries."""
        if node.size or self._cache.holds_anything(node):
            raise PosixError(errno.ENOTEMPTY, name)

    def settle_data(self, node: Inode) -> None:
        """Before an event about `node`, which is to lose a name: what is buffered is published, or, where nobody can read it
        any more, forgotten: the last step before memory changes."""
        if node.file is None:
            return
        if node.nlink == 1 and not node.handles:
            self._core.unlogged = True
            self._data.discard(node)
        else:
            self._data.publish([node])

    def _existing(self, cred: Credentials, parent: int, name: bytes) -> tuple[Directory, Entry]:
        directory = self._searchable(cred, parent)
        check_name(name)
        if name in (b".", b".."):
            raise PosixError(errno.EINVAL, name)
        entry = self._cache.find(directory, name)
        if entry is None:
            raise PosixError(errno.ENOENT, name)
        return directory, entry

    def remove_directory(self, above: Directory, name: bytes, node: Directory, now: int) -> bytes:
        """The empty directory `node` goes, with its entry; the records that say so."""
        weight = self.weight(above, node)
        touched = self._core.touch(above, now, -1, -1, -weight[0], -weight[1], -weight[2])
        return touched + self.take(above, name, node) + self.drop_directory(node, now)

    def drop_directory(self, node: Directory, now: int) -> bytes:
        """The empty directory `node` has no name any more; its object goes with the next write-back."""
        self._core.mark(node)
        node.nlink = 0
        node.ctime = now
        node.changed.clear()
        return dir_remove(node.ino)

    def lose_name(self, directory: Directory, name: bytes, node: Inode, now: int, heir: Directory | None) -> bytes:
        """`node` has one name less, the entry `name` of `directory`; the records of what becomes of it. `heir` was asked for
        before anything changed."""
        core = self._core
        node.nlink -= 1
        node.ctime = now
        node.change += 1
        if node.parent != MULTIPLE:
            node.parent, node.name, node.home = MULTIPLE, b"", 0
            return self._unnamed(node)
        key = INO_KEY.pack(node.ino)
        records = core.drop_row(core.links, key + INO_KEY.pack(directory.ino) + name)
        if node.nlink:
            if node.home == directory.ino:
                records += self._rehome(node, heir, now)
            return records + core.put_unnamed(node)
        node.home = 0
        return records + core.drop_row(core.inodes, key) + self._unnamed(node)

    def _unnamed(self, node: Inode) -> bytes:
        """The last name went: the records that keep the inode until nobody uses it and its bytes are gone."""
        held = self._holds.keep(node) if node.handles else b""
        return held + self._core.put_unnamed(node) if held or self._purge.needs_row(node) else b""

    def heir(self, directory: Directory, name: bytes, node: Inode) -> Directory | None:
        """The directory that counts the bytes of `node` once `name` in `directory`, which counts them now, is gone: that of
        another name, the first that can be read. Reads the link table: CorruptionError, DeviceFailed."""
        if node.parent != MULTIPLE or node.nlink < 2 or node.home != directory.ino:
            return None
        key = INO_KEY.pack(node.ino)
        gone = key + INO_KEY.pack(directory.ino) + name
        for row, _ in self._core.links.rows(key, INO_KEY.pack(node.ino + 1)):
            with suppress(PosixError, *UNREADABLE):
                if row != gone:
                    return self._cache.directory(INO_KEY.unpack_from(row, 8)[0])
        return None

    def _rehome(self, node: Inode, heir: Directory | None, now: int) -> bytes:
        """The name whose directory counted the bytes is gone: `heir` counts them from now on."""
        node.home = 0 if heir is None else heir.ino
        if heir is None:
            return b""
        heir.rbytes += node.size if node.file is None else node.file.published
        return self._core.bump(heir, now)

    # -- entries -------------------------------------------------------------------------------------------------------

    def put(self, directory: Directory, name: bytes, node: Inode, now: int) -> bytes:
        """Entry `name` means `node` from now on: embedded, or a link. Returns the records. `touch` comes before."""
        core = self._core
        extra = b""
        if isinstance(node, Directory):
            entry: Entry = node.ino << 4 | TYPE_DIRECTORY
            value = encode_link(TAG_DIRECTORY, TYPE_DIRECTORY, node.ino)
            node.parent, node.name = directory.ino, name
        elif node.nlink > 1 or node.parent == MULTIPLE:
            entry = node.ino << 4 | node.mode >> 12
            value = encode_link(TAG_REMOTE, node.mode >> 12, node.ino)
            key = INO_KEY.pack(node.ino) + INO_KEY.pack(directory.ino) + name
            extra = core.put_row(core.links, key, LINK_VALUE)
        else:
            node.parent = node.home = directory.ino
            node.name = name
            entry, value = node, node.entry_value()
        directory.entries[name] = entry
        directory.changed[name] = value
        if directory.names is not None:
            note_name(directory, name)
        return entry_set(directory.ino, directory.version, name, value) + extra

    def take(self, directory: Directory, name: bytes, node: Inode) -> bytes:
        """Entry `name` is gone. Returns the record. `touch` comes before, `lose_name` or `put` after."""
        directory.entries.pop(name, None)
        directory.changed[name] = None
        if directory.names is not None:
            lose_name_of(directory, name)
        return entry_remove(directory.ino, directory.version, name)

    def space_here(self, directory: Directory, node: Inode) -> int:
        """The bytes of `node` that the statistics of `directory` count."""
        if node.home != directory.ino:
            return 0
        return node.size if node.file is None else node.file.published

    def weight(self, directory: Directory, node: Inode) -> tuple[int, int, int]:
        """What an entry adds to the statistics of `directory`: files, directories, bytes."""
        if isinstance(node, Directory):
            return node.accounted_files, node.accounted_dirs + 1, node.accounted_bytes
        return 1, 0, self.space_here(directory, node)

    def is_below(self, node: Directory, ino: int) -> bool:
        """Whether the directory `ino` is `node`, or lies anywhere below it."""
        return any(directory is node for directory in self._cache.upward(self._cache.directory(ino)))


def note_name(directory: Directory, name: bytes) -> None:
    """Keep the sorted list of names right after one more."""
    names = directory.names
    if names is not None and name not in names:
        names.add(name)


def lose_name_of(directory: Directory, name: bytes) -> None:
    """Keep the sorted list of names right after one less."""
    if directory.names is not None:
        directory.names.discard(name)


