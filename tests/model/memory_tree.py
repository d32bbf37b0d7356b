"""`MemoryTree`: inodes and their names, in dictionaries. What `MemoryVfs` does its work on."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

from mdstore import limits
from mdstore.errors import PosixError
from mdstore.mds.vfs import ROOT_INO, Attr, Credentials
from tests.model.memory_nodes import EXECUTE, WRITE, Node, in_group, require, require_directory


class MemoryTree:
    """A root and what hangs from it. The caller locks. `clock` gives nanoseconds since 1970.

    Invariants, checked by `assert_state`:
    1. an inode is kept while a name, a lookup or a handle refers to it, and no longer;
    2. `nlink` counts names; for a directory 2 + its subdirectories, or 0 once removed;
    3. every directory but the root is an entry of its `parent`, and the root is reached from every one.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._nodes: dict[int, Node] = {}
        self._next_ino = ROOT_INO
        root = self._new_node(stat.S_IFDIR | 0o755, 0, 0)
        root.nlink = 2
        root.parent = ROOT_INO

    def assert_state(self) -> None:
        """Check the invariants named at the head of the class."""
        names: dict[int, int] = {}
        for node in self._nodes.values():
            for ino in node.entries.values() if node.is_directory else ():
                names[ino] = names.get(ino, 0) + 1
        for node in self._nodes.values():
            count = names.get(node.ino, 0)
            assert node.ino == ROOT_INO or count or node.lookups or node.opens, (
                f"1: inode {node.ino} is kept for nothing"
            )
            if node.is_directory:
                children = sum(self._nodes[ino].is_directory for ino in node.entries.values())
                expected = 2 + children if count or node.ino == ROOT_INO else 0
                assert node.nlink == expected, f"2: directory {node.ino} has nlink {node.nlink}, {expected} expected"
                parent = self._nodes.get(node.parent)
                linked = node.ino == ROOT_INO or count == 0 or (parent and node.ino in parent.entries.values())
                assert linked, f"3: directory {node.ino} is not in its parent {node.parent}"
            else:
                assert node.nlink == count, f"2: inode {node.ino} has nlink {node.nlink}, {count} names"

    def _new_node(self, mode: int, uid: int, gid: int) -> Node:
        node = Node(self._next_ino, mode, uid, gid, self._clock())
        self._nodes[node.ino] = node
        self._next_ino += 1
        return node

    def _node(self, ino: int) -> Node:
        node = self._nodes.get(ino)
        if node is None:
            raise PosixError(errno.ESTALE, ino, "no such inode")
        return node

    def _searchable(self, cred: Credentials, ino: int) -> Node:
        directory = self._node(ino)
        require_directory(directory)
        require(directory, cred, EXECUTE)
        return directory

    def _child(self, directory: Node, name: bytes) -> Node:
        check_name(name, existing=True)
        ino = directory.entries.get(name)
        if ino is None:
            raise PosixError(errno.ENOENT, name)
        return self._nodes[ino]

    def _room(self, cred: Credentials, parent: int, name: bytes) -> Node:
        """The directory, when `name` may be made in it."""
        directory = self._searchable(cred, parent)
        check_name(name)
        if name in directory.entries:
            raise PosixError(errno.EEXIST, name)
        if directory.nlink == 0:
            raise PosixError(errno.ENOENT, parent, "the directory was removed")
        require(directory, cred, WRITE | EXECUTE)
        return directory

    def _add(self, cred: Credentials, directory: Node, name: bytes, mode: int) -> Node:
        self._room(cred, directory.ino, name)
        inherits = directory.mode & stat.S_ISGID
        gid = directory.gid if inherits else cred.gid
        if inherits and not stat.S_ISDIR(mode) and mode & stat.S_IXGRP and cred.uid != 0 and not in_group(cred, gid):
            mode &= ~stat.S_ISGID
        node = self._new_node(mode, cred.uid, gid)
        self._attach(directory, name, node)
        return node

    def _attach(self, directory: Node, name: bytes, node: Node) -> None:
        directory.entries[name] = node.ino
        if node.is_directory:
            node.parent = directory.ino
            node.nlink = 2 + sum(1 for ino in node.entries.values() if self._nodes[ino].is_directory)
            directory.nlink += 1
        else:
            node.nlink += 1
        directory.mtime_ns = directory.ctime_ns = self._clock()

    def _detach(self, directory: Node, name: bytes, node: Node) -> None:
        del directory.entries[name]
        if node.is_directory:
            node.nlink = 0
            directory.nlink -= 1
        else:
            node.nlink -= 1
        directory.mtime_ns = directory.ctime_ns = node.ctime_ns = self._clock()
        self._drop_if_unused(node)

    def _move(self, old: Node, name: bytes, source: Node, new: Node, new_name: bytes, target: Node | None) -> None:
        if target is not None:
            self._detach(new, new_name, target)
        source.lookups += 1  # keeps it while it has no name
        self._detach(old, name, source)
        self._attach(new, new_name, source)
        source.lookups -= 1
        source.ctime_ns = self._clock()

    def _exchange(self, old: Node, name: bytes, source: Node, new: Node, new_name: bytes, target: Node) -> None:
        old.entries[name], new.entries[new_name] = target.ino, source.ino
        for node, directory, other in ((source, new, old), (target, old, new)):
            if node.is_directory:
                node.parent = directory.ino
                directory.nlink += 1
                other.nlink -= 1
            node.ctime_ns = self._clock()
        for directory in (old, new):
            directory.mtime_ns = directory.ctime_ns = self._clock()

    def _is_within(self, node: Node, ancestor: Node) -> bool:
        while node is not ancestor:
            if node.ino == ROOT_INO:
                return False
            node = self._nodes[node.parent]
        return True

    def _referenced(self, node: Node) -> Attr:
        node.lookups += 1
        return node.attr()

    def _drop_if_unused(self, node: Node) -> None:
        if node.nlink == 0 and node.lookups == 0 and node.opens == 0:
            del self._nodes[node.ino]


def check_name(name: bytes, *, existing: bool = False) -> None:
    if not name:
        raise PosixError(errno.ENOENT, name, "an empty name")
    if len(name) > limits.NAME_MAX:
        raise PosixError(errno.ENAMETOOLONG, name)
    if b"/" in name or b"\0" in name:
        raise PosixError(errno.EINVAL, name, "a slash or a zero in a name")
    if name in (b".", b".."):
        raise PosixError(errno.EINVAL if existing else errno.EEXIST, name)
