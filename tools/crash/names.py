"""The operations of the workload `names`: create, link, rename, unlink across directories with fsyncs; and their model.

A model maps a path to (kind, number, size): hard links share the number, which the engine keeps as the owner of the file, so
that a name that leads to another file than it should is seen. A file holds the bytes `pattern(number, size)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Final

from mdstore.device.subject import Script

FILE: Final = "file"
DIRECTORY: Final = "directory"
SYMLINK: Final = "symlink"
EXCHANGE: Final = 2  # as RENAME_EXCHANGE of renameat2(2)

Entry = tuple[str, int, int]  # kind, number of the file or directory, size
Tree = Mapping[str, Entry]

_WORDS: Final = ("a", "b", "c", "d", "e")
_SIZES: Final = (0, 1, 100, 513, 690)
_DEPTH_MAX: Final = 4


@dataclass(frozen=True, slots=True)
class Step:
    """One call. `verb`: create, mkdir, symlink, link, unlink, rmdir, rename, exchange, write (a whole file, then fsync), sync."""

    verb: str
    path: str = ""
    to: str = ""
    number: int = 0
    size: int = 0


def pattern(number: int, size: int) -> bytes:
    """The bytes of file `number`: never zero, different everywhere nearby and from file to file."""
    return bytes(1 + (number * 31 + at * 7 + at // 256) % 255 for at in range(size))


def step_names(tree: Tree, step: Step) -> Tree:
    """The name space after the step; the one given is not changed."""
    return _EFFECTS[step.verb](tree, step)


def _make(tree: Tree, step: Step) -> Tree:
    kinds = {"create": FILE, "mkdir": DIRECTORY, "symlink": SYMLINK}
    return {**tree, step.path: (kinds[step.verb], step.number, 0)}


def _link(tree: Tree, step: Step) -> Tree:
    return {**tree, step.to: tree[step.path]}


def _remove(tree: Tree, step: Step) -> Tree:
    return {path: entry for path, entry in tree.items() if path != step.path}


def _rename(tree: Tree, step: Step) -> Tree:
    if step.to in tree and tree[step.path] == tree[step.to] and tree[step.path][0] == FILE:
        return tree  # two names of one file: rename does nothing
    return {_moved(path, step.path, step.to): entry for path, entry in tree.items() if not _is_at(path, step.to)}


def _exchange(tree: Tree, step: Step) -> Tree:
    swapped = {}
    for path, entry in tree.items():
        there = _moved(path, step.path, step.to)
        swapped[there if there != path else _moved(path, step.to, step.path)] = entry
    return swapped


def _write(tree: Tree, step: Step) -> Tree:
    kind, number, _ = tree[step.path]
    after = (kind, number, step.size)
    return {path: after if entry[:2] == (kind, number) else entry for path, entry in tree.items()}


def _nothing(tree: Tree, step: Step) -> Tree:
    return tree


_EFFECTS: Final = {
    "create": _make, "mkdir": _make, "symlink": _make, "link": _link, "unlink": _remove, "rmdir": _remove,
    "rename": _rename, "exchange": _exchange, "write": _write, "sync": _nothing,
}  # fmt: skip


def _is_at(path: str, place: str) -> bool:
    """Whether `path` is `place` or lies below it."""
    return path == place or path.startswith(place + "/")


def _moved(path: str, source: str, target: str) -> str:
    return target + path[len(source) :] if _is_at(path, source) else path


# -- choosing ----------------------------------------------------------------------------------------------------------


class _Chooser:
    """Draws steps that succeed, from a tree that it keeps up to date."""

    def __init__(self, seed: int, tree: Tree) -> None:
        self._random = Random(f"{seed}/names")
        self._tree = tree
        self._next = max((number for _, number, _ in tree.values()), default=1)

    def step(self) -> Step:
        step: Step | None = None
        while step is None:
            (draw,) = self._random.choices(_DRAWS, weights=_DRAW_WEIGHTS)
            step = draw(self)
        self._tree = step_names(self._tree, step)
        return step

    def make(self) -> Step | None:
        verb = self._random.choice(("create", "create", "create", "mkdir", "mkdir", "symlink"))
        path = self._new_path()
        if path in self._tree or path.count("/") > _DEPTH_MAX:
            return None
        self._next += 1
        return Step(verb, path, number=self._next)

    def link(self) -> Step | None:
        path, to = self._pick(FILE), self._new_path()
        return Step("link", path, to) if path and to not in self._tree else None

    def remove(self) -> Step | None:
        path = self._pick()
        if not path or self._has_children(path):
            return None
        return Step("rmdir" if self._tree[path][0] == DIRECTORY else "unlink", path)

    def rename(self) -> Step | None:
        """Into any directory, over what is there where POSIX lets it."""
        path, to = self._pick(), self._new_path()
        if not path or _is_at(to, path) or _is_at(path, to):
            return None
        there = self._tree.get(to)
        if there and ((there[0] == DIRECTORY) != (self._tree[path][0] == DIRECTORY) or self._has_children(to)):
            return None
        return Step("rename", path, to)

    def exchange(self) -> Step | None:
        path, to = self._pick(), self._pick()
        return None if not path or not to or _is_at(to, path) or _is_at(path, to) else Step("exchange", path, to)

    def write(self) -> Step | None:
        path = self._pick(FILE)
        larger = [size for size in _SIZES if path and size > self._tree[path][2]]
        return Step("write", path, number=self._tree[path][1], size=larger[0]) if larger else None

    def sync(self) -> Step | None:
        return Step("sync")

    def _pick(self, kind: str | None = None) -> str:
        paths = [path for path, entry in self._tree.items() if kind is None or entry[0] == kind]
        return self._random.choice(paths) if paths else ""

    def _new_path(self) -> str:
        above = ["", *(path for path, entry in self._tree.items() if entry[0] == DIRECTORY)]
        return f"{self._random.choice(above)}/{self._random.choice(_WORDS)}"

    def _has_children(self, path: str) -> bool:
        return any(other.startswith(path + "/") for other in self._tree)


_DRAWS: Final = (_Chooser.make, _Chooser.link, _Chooser.remove, _Chooser.rename, _Chooser.exchange, _Chooser.write, _Chooser.sync)
_DRAW_WEIGHTS: Final = (8, 3, 4, 6, 1, 3, 1)


def names_script(seed: int, count: int, start: Tree | None = None) -> Script:
    """`count` steps from `start`, an empty name space unless given."""
    chooser = _Chooser(seed, start or {})
    return Script([chooser.step() for _ in range(count)], step_names, {})
