"""The snapshots of a store in memory: states that are kept."""

from __future__ import annotations

import time
from dataclasses import dataclass

from mdstore.engines.mem_state import State
from mdstore.errors import AlreadyExists, NotFound, SnapshotBusy
from mdstore.store.answers import SnapshotInfo


@dataclass(slots=True)
class Kept:
    """A state of the store, and how many views of it are open."""

    number: int
    created_ns: int
    state: State
    readers: int = 0


class KeptStates:
    """Snapshots by name. Guarded by the store's lock."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Kept] = {}
        self._number = 0

    def survive(self) -> KeptStates:
        """What is there after a crash: all of them, with no reader."""
        twin = KeptStates()
        twin._number = self._number
        twin._kept = {name: Kept(kept.number, kept.created_ns, kept.state) for name, kept in self._kept.items()}
        return twin

    def take(self, name: bytes, state: State) -> None:
        """Keep a state, which nobody changes any more. AlreadyExists."""
        if name in self._kept:
            raise AlreadyExists("snapshot", name)
        self._number += 1
        self._kept[name] = Kept(self._number, time.time_ns(), state)

    def get(self, name: bytes) -> Kept:
        """NotFound when there is none of that name."""
        kept = self._kept.get(name)
        if kept is None:
            raise NotFound("snapshot", name)
        return kept

    def delete(self, name: bytes) -> None:
        """NotFound, SnapshotBusy."""
        readers = self.get(name).readers
        if readers:
            raise SnapshotBusy(name, readers)
        del self._kept[name]

    def rows(self) -> list[SnapshotInfo]:
        """All of them, oldest first. Nothing is counted of what a state shares with others: `held_bytes` is 0."""
        return [
            SnapshotInfo(name, kept.number, kept.created_ns, _objects(kept.state), held_bytes=0, is_deleting=False)
            for name, kept in self._kept.items()
        ]


def _objects(state: State) -> int:
    return sum(len(entry.objects) + len(entry.revisions) for entry in state.collections.values())
