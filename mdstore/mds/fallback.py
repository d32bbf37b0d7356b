"""After the medium failed: the same server, over what is durable, and read-only.

A store that failed a write answers nothing more; opened again, read-only, it has everything that was acknowledged as durable. The
server goes on over that one: numbers and open files stay what they are as far as what they mean is there still. What had not been
made durable is gone; who asks for it with fsync is told EIO, once more and ever again. Changes are EROFS.
"""

from __future__ import annotations

from typing import NamedTuple

from mdstore.engines.protocol import ObjectStore
from mdstore.errors import MdstoreError
from mdstore.mds.cache import Cache
from mdstore.mds.core import Core
from mdstore.mds.handles import DirectoryHandle, Handles
from mdstore.mds.inode import Directory


class Remembered(NamedTuple):
    """What the server knew before: where inodes are, which are open, and which names were changed lately."""

    places: dict[int, tuple[int, bytes]]
    open: list[tuple[int, int]]  # handle, inode
    changed: list[tuple[int, bytes]]


def remember(core: Core, handles: Handles) -> Remembered:
    """To be called before `restart`."""
    places = dict(core.where)
    for node in core.nodes.values():
        if node.parent and not isinstance(node, Directory):
            places[node.ino] = (node.parent, node.name)
    opened = [(number, handle.node.ino) for number, handle in handles.items()]
    changed = [(directory.ino, name) for directory in core.dirty.values() for name in directory.changed]
    return Remembered(places, opened, changed)


def restart(core: Core, cache: Cache, store: ObjectStore, cause: MdstoreError) -> None:
    """Forget all that memory knows; from here on `store` is the truth. The caller recovers next."""
    core.fell_back = cause
    core.failed = None
    core.unlogged = False
    core.journal = None
    core.news = None
    core.changes = core.buffered_bytes = 0
    core.store = store
    for known in (
        core.nodes, core.where, core.dirty, core.apart, core.buffered, core.stale_backtraces, core.held, core.held_by,
        core.unsettled,
    ):  # fmt: skip
        known.clear()
    for table in core.tables.values():
        table.store = store
        table.changed.clear()
        table.since = -1
        table.apart = None
    cache.look_in(store)


def restore(core: Core, cache: Cache, handles: Handles, known: Remembered) -> None:
    """After recovery: open files are open again; what is not there any more is EBADF."""
    core.where.update(known.places)
    for number, ino in known.open:
        handle = handles.get(number)
        assert handle is not None
        try:
            node = cache.node(ino)
        except MdstoreError:
            handles.drop(number)
            continue
        if isinstance(handle, DirectoryHandle):
            if not isinstance(node, Directory):
                handles.drop(number)
                continue
            handle.reached, handle.evictions = None, -1
        handle.node = node
        node.handles += 1
    for ino in [ino for ino in core.where if ino not in core.references]:
        del core.where[ino]


def recall_some(core: Core, names: list[tuple[int, bytes]]) -> bool:
    """Tell the front which names may mean something else now, as many as it takes; whether some are left."""
    if core.recall is None:
        names.clear()
    while names and core.recall is not None and core.recall(*names[-1]):
        names.pop()
    return bool(names)
