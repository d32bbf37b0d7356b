"""The name spaces the POSIX suite mounts, by kind."""

from __future__ import annotations

from collections.abc import Callable

from mdstore.mds.vfs import Vfs
from tests.model.memory_vfs import MemoryVfs

SUBJECTS: dict[str, Callable[[], Vfs]] = {"memory": MemoryVfs}
