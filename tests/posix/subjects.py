"""The name spaces the POSIX suite mounts, by kind: the model, and the metadata server over an object store."""

from __future__ import annotations

import time
from collections.abc import Callable

from mdstore.device.file import FileDevice
from mdstore.engines.mem import MemStore
from mdstore.mds.server import MetadataServer
from mdstore.mds.snapdir import SnapshotVfs
from mdstore.mds.vfs import Vfs
from mdstore.store.store import Store
from tests.model.memory_vfs import MemoryVfs


def served() -> Vfs:
    """A fresh metadata server over an engine in memory."""
    store = MemStore()
    MetadataServer.format(store, now_ns=time.time_ns())
    return SnapshotVfs(MetadataServer.mount(store, client=b"posix suite"))


SUBJECTS: dict[str, Callable[[], Vfs]] = {"memory": MemoryVfs, "served": served}


def from_image(path: str) -> Vfs:
    """The metadata server over an image file, recovered."""
    store = Store.open(FileDevice.open(path))
    return SnapshotVfs(MetadataServer.mount(store, client=b"posix suite"))
