"""Files without a name that a session keeps: the open table.

While a file has a name, nothing is written about who has it open. With its last name goes a row for every session that has it
open and outlives the server, in the same event; so after a crash the file is still there for the session to open again.

Invariants

 H1  `core.held` is the open table: a row for each session in `core.held[ino]`; `core.held_by` is the same by session
 H2  `_opened` counts the handles of lasting sessions, by inode and session
"""

from __future__ import annotations

from mdstore.errors import CorruptionError
from mdstore.mds.core import Core
from mdstore.mds.inode import Inode
from mdstore.mds.layout import HELD_VALUE, REQUEST_KEY, Tab
from mdstore.mds.records import FLAG_DATA

TYPE_REGULAR = 8


class Holds:
    """Who keeps what. The caller holds the core's lock."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.table = core.tables[Tab.OPEN]
        self._opened: dict[int, dict[int, int]] = {}

    def take(self, key: bytes, raw: bytes) -> None:
        """A row of the table, after recovery. CorruptionError."""
        if len(key) != REQUEST_KEY.size or raw != HELD_VALUE:
            raise CorruptionError("open table", f"row {key.hex()}", "a session, an inode, one byte 1", raw)
        session, ino = REQUEST_KEY.unpack(key)
        self._note(session, ino)

    def opened(self, session: int, node: Inode) -> bytes:
        """The lasting session has one more handle; the records to append, for an inode that has no name already."""
        sessions = self._opened.setdefault(node.ino, {})
        sessions[session] = sessions.get(session, 0) + 1
        if node.nlink or node.mode >> 12 != TYPE_REGULAR or not self._core.is_writable():
            return b""
        return self._add(session, node) + self._core.put_unnamed(node)

    def closed(self, session: int, ino: int) -> bool:
        """One handle less; True when it was the session's last of that inode."""
        sessions = self._opened.get(ino, {})
        left = sessions.get(session, 1) - 1
        if left:
            sessions[session] = left
            return False
        sessions.pop(session, None)
        if not sessions:
            self._opened.pop(ino, None)
        return True

    def keep(self, node: Inode) -> bytes:
        """The inode loses its last name: the records of those who keep it. Where there are any its own must follow."""
        if node.mode >> 12 != TYPE_REGULAR:
            return b""
        return b"".join([self._add(session, node) for session in self._opened.get(node.ino, ())])

    def drop(self, session: int, ino: int) -> bytes:
        """The session keeps the inode no longer: the record to append, empty where it did not. Then `Purge.let_go`."""
        sessions = self._core.held.get(ino, set())
        if session not in sessions:
            return b""
        kept = self._core.held_by[session]
        sessions.remove(session)
        kept.remove(ino)
        if not sessions:
            del self._core.held[ino]
        if not kept:
            del self._core.held_by[session]
        return self._core.drop_row(self.table, REQUEST_KEY.pack(session, ino))

    def of(self, session: int) -> list[int]:
        """The inodes without a name that the session keeps, in order."""
        return sorted(self._core.held_by.get(session, ()))

    def _note(self, session: int, ino: int) -> None:
        self._core.held.setdefault(ino, set()).add(session)
        self._core.held_by.setdefault(session, set()).add(ino)

    def _add(self, session: int, node: Inode) -> bytes:
        self._note(session, node.ino)
        node.flags |= FLAG_DATA  # from here on it has a row among the strays, as if it had bytes
        return self._core.put_row(self.table, REQUEST_KEY.pack(session, node.ino), HELD_VALUE)
