"""What a directory must hold after a crash, from the log of what one program did in it.

An operation is a list: a verb and its arguments, paths relative to the program's directory. Names, kinds, modes, links,
attributes and targets change in order, so after a crash they are those after some operation between the last fsync and the last
one begun. Bytes of a file are those of its last fsync, or, at each place, anything written there since. Its size is one that
it had, or one in the middle of a write: a write whose first page the kernel has not cached reaches the server in two requests.
"""

from __future__ import annotations

import mmap
import os
import random
import stat
from collections.abc import Set
from typing import Any, Final, NamedTuple

Op = list[Any]
TREE_MAX: Final = 60  # names a program keeps at a time


class Node:
    """An inode: its kind (`f`, `d`, `l`), and for a file its contents since the last fsync, the newest last."""

    def __init__(self, kind: str, mode: int, target: str = "", content: bytes = b"") -> None:
        self.kind = kind
        self.mode = mode
        self.target = target
        self.xattrs: dict[str, str] = {}
        self.versions = [content]
        self.cuts: set[int] = set()  # sizes between two requests of one write, since the last fsync


class Look(NamedTuple):
    """What can be seen of a name. `same`: the first of all names of its inode."""

    kind: str
    mode: int
    links: int
    same: str
    target: str
    xattrs: tuple[tuple[str, str], ...]


Tree = dict[str, Look]


def content_of(seed: int, length: int) -> bytes:
    """The bytes that a write with that seed writes; no zeros, so that a hole shows."""
    return random.Random(seed).randbytes(length).replace(b"\0", b"\1")


class Model:
    """A directory as a program left it."""

    def __init__(self) -> None:
        self.names: dict[str, Node] = {}

    def apply(self, op: Op) -> None:
        """Do what the operation did."""
        getattr(self, f"_{op[0]}")(*op[1:])

    def _create(self, path: str, mode: int) -> None:
        self.names[path] = Node("f", mode)

    def _mkdir(self, path: str, mode: int) -> None:
        self.names[path] = Node("d", mode)

    def _symlink(self, path: str, target: str) -> None:
        self.names[path] = Node("l", 0o777, target)

    def _write(self, path: str, offset: int, length: int, seed: int) -> None:
        node = self.names[path]
        old = node.versions[-1]
        grown = old.ljust(offset, b"\0")
        node.versions.append(grown[:offset] + content_of(seed, length) + old[offset + length :])
        first_page_end = offset - offset % mmap.PAGESIZE + mmap.PAGESIZE
        if offset % mmap.PAGESIZE and len(old) < first_page_end < offset + length:
            node.cuts.add(first_page_end)

    def _truncate(self, path: str, size: int) -> None:
        node = self.names[path]
        node.versions.append(node.versions[-1][:size].ljust(size, b"\0"))

    def _rename(self, old: str, new: str) -> None:
        if self.names.get(new) is self.names[old]:
            return  # two names of one inode: rename(2) leaves both
        moved = {path: node for path, node in self.names.items() if path == old or path.startswith(old + "/")}
        for path in moved:
            del self.names[path]
        for path, node in moved.items():
            self.names[new + path[len(old) :]] = node

    def _link(self, old: str, new: str) -> None:
        self.names[new] = self.names[old]

    def _unlink(self, path: str) -> None:
        del self.names[path]

    _rmdir = _unlink

    def _chmod(self, path: str, mode: int) -> None:
        self.names[path].mode = mode

    def _setxattr(self, path: str, name: str, value: str) -> None:
        self.names[path].xattrs[name] = value

    def _removexattr(self, path: str, name: str) -> None:
        del self.names[path].xattrs[name]

    def _fsync(self, path: str) -> None:
        if path and self.names[path].kind == "f":
            del self.names[path].versions[:-1]
            self.names[path].cuts.clear()

    # -- what can be seen ----------------------------------------------------------------------------------------------

    def tree(self) -> Tree:
        """Every name."""
        first: dict[int, str] = {}
        links: dict[int, int] = {}
        for path, node in sorted(self.names.items()):
            first.setdefault(id(node), path)
            links[id(node)] = links.get(id(node), 0) + 1
        found = {}
        for path, node in self.names.items():
            count = links[id(node)]
            if node.kind == "d":
                count = 2 + sum(1 for other, held in self.names.items() if held.kind == "d" and os.path.dirname(other) == path)
            xattrs = tuple(sorted(node.xattrs.items()))
            found[path] = Look(node.kind, node.mode, count, first[id(node)], node.target, xattrs)
        return found


_KINDS: Final = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l"}


def read_tree(directory: str) -> tuple[Tree, dict[str, bytes]]:
    """What is there: every name, and the content of every file."""
    found: Tree = {}
    contents: dict[str, bytes] = {}
    first: dict[int, str] = {}
    paths = []
    for above, directories, files in os.walk(directory):
        inside = os.path.relpath(above, directory)
        paths += [os.path.normpath(os.path.join(inside, name)) for name in directories + files]
    for path in sorted(paths):
        whole = os.path.join(directory, path)
        status = os.lstat(whole)
        kind = _KINDS[stat.S_IFMT(status.st_mode)]
        same = path if kind == "d" else first.setdefault(status.st_ino, path)
        target = os.readlink(whole) if kind == "l" else ""
        names = os.listxattr(whole) if kind != "l" else []
        xattrs = tuple(sorted((name, os.getxattr(whole, name).decode()) for name in names))
        found[path] = Look(kind, stat.S_IMODE(status.st_mode), status.st_nlink, same, target, xattrs)
        if kind == "f":
            with open(whole, "rb") as file:
                contents[path] = file.read()
    return found, contents


def model_of(tree: Tree, contents: dict[str, bytes]) -> Model:
    """The model of what is there."""
    model = Model()
    for path, look in sorted(tree.items()):
        if look.same != path:
            model.names[path] = model.names[look.same]
            continue
        node = model.names[path] = Node(look.kind, look.mode, look.target, contents.get(path, b""))
        node.xattrs = dict(look.xattrs)
    return model


def check(model: Model, done: list[Op], begun: Op | None, tree: Tree, contents: dict[str, bytes]) -> str:
    """What is wrong with what is there after `done`, of which `begun` may or may not have followed; empty when nothing is.
    `model` is the directory before."""
    synced = max((number + 1 for number, op in enumerate(done) if op[0] == "fsync"), default=0)
    operations = [*done, begun] if begun is not None and begun[0] != "fsync" else done
    matches = []
    for number in range(len(operations) + 1):
        if number:
            model.apply(operations[number - 1])
        if number >= synced and model.tree() == tree:
            matches.append(dict(model.names))
    if not matches:
        return f"the names are of no moment between operations {synced} and {len(operations)}: {_difference(model, tree)}"
    for names in matches:  # contents decide between moments whose names are the same
        wrong = [path for path, content in contents.items() if not is_possible(names[path].versions, content, names[path].cuts)]
        if not wrong:
            return ""
    return f"bytes of {wrong[0]!r} were never there since its last fsync"


def is_possible(versions: list[bytes], content: bytes, cuts: Set[int] = frozenset()) -> bool:
    """Whether a file that had these contents, the first at its last fsync, and in between these sizes, may have this one after a
    crash."""
    if content in versions:
        return True
    size = len(content)
    if size not in {len(version) for version in versions} | cuts:
        return False
    columns = zip(*[version[:size].ljust(size, b"\0") for version in versions], strict=True)
    return all(byte in options for byte, options in zip(content, columns, strict=True))


def _difference(model: Model, tree: Tree) -> str:
    """The first few differences to the last moment, for a person."""
    last = model.tree()
    paths = [path for path in sorted({*last, *tree}) if last.get(path) != tree.get(path)]
    rows = [f"{path}: {last.get(path)} became {tree.get(path)}" for path in paths]
    return "; ".join(rows[:4])
