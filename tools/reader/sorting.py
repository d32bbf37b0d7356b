"""Sorting more records than memory should hold: runs sorted in memory, spilled to a temporary file, merged."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from heapq import merge
from itertools import chain
from typing import IO, Final

RUN_RECORDS: Final = 300_000  # records kept in memory before a run is written: some 30 MB
_READ_RECORDS: Final = 4096


class Sorter:
    """Takes byte records of one size in any order, gives them back in the order of their bytes, duplicates included.

    Memory: at most `run_records` records, and a small buffer for each run spilled. Disk: a nameless temporary file.
    """

    def __init__(self, record_size: int, run_records: int = RUN_RECORDS) -> None:
        self.record_size = record_size
        self._run_records = run_records
        self._pending: list[bytes] = []
        self._file: IO[bytes] | None = None
        self._runs: list[tuple[int, int]] = []  # (byte offset, bytes) of each run in the file
        self.add = self._pending.append  # the unguarded way in, for callers that call `settle` now and then

    def settle(self) -> None:
        """Spill when enough is pending. To be called after every few `add`s."""
        if len(self._pending) >= self._run_records:
            self._spill()

    def __iter__(self) -> Iterator[bytes]:
        """All records in order. Nothing may be added afterwards."""
        self._pending.sort()
        if self._file is None:
            return iter(self._pending)
        return merge(*(self._read_run(*run) for run in self._runs), self._pending)

    def close(self) -> None:
        """Free memory and file."""
        self._pending.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _spill(self) -> None:
        self._pending.sort()
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="mdstore-fsck-")  # noqa: SIM115 (closed by `close`)
        offset = self._runs[-1][0] + self._runs[-1][1] if self._runs else 0
        data = b"".join(self._pending)
        self._file.seek(offset)
        self._file.write(data)
        self._runs.append((offset, len(data)))
        self._pending.clear()

    def _read_run(self, offset: int, length: int) -> Iterator[bytes]:
        return chain.from_iterable(self._blocks(offset, length))

    def _blocks(self, offset: int, length: int) -> Iterator[list[bytes]]:
        assert self._file is not None
        size = self.record_size
        step = _READ_RECORDS * size
        for at in range(offset, offset + length, step):
            self._file.seek(at)
            data = self._file.read(min(step, offset + length - at))
            yield [data[i : i + size] for i in range(0, len(data), size)]
