"""Metadata operations per second in process, on an image of its own (or in memory), every answer journaled.

    python -m mdstore.tools.bench.mds [--json] [--count N] [--memory] [--at DIRECTORY]

Each operation runs over all entries of one directory; the time includes write-back and trimming as they fall due, and for the
first phases a `syncfs` at the end. Ratios are to what libcephfs + ceph-mds 16 did on a machine of the same kind, one process.
"""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import click

from mdstore.device.file import FileDevice
from mdstore.engines.mem import MemStore
from mdstore.engines.protocol import ObjectStore
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER, SetAttr
from mdstore.store.store import Store
from mdstore.tools.output import print_json, print_line

LIBCEPHFS: Final = {"create": 3546, "mkdir": 4260, "rename": 3477, "unlink": 4352, "create + fsync": 915}
LISTED: Final = 10_000
BLOCK: Final = b"\x5a" * 4096


class Row(NamedTuple):
    """One measurement. `ratio`: to libcephfs where a figure is known, else 0."""

    operation: str
    operations: int
    seconds: float
    per_second: float
    ratio: float


@contextmanager
def store_for(place: Path | None) -> Iterator[ObjectStore]:
    """An empty store in a file in `place`; None: in memory."""
    if place is None:
        yield MemStore()
        return
    path = str(place / "bench.img")
    device = FileDevice.create(path, 8 << 30)
    store = Store.create(device)
    try:
        yield store
    finally:
        store.close()


def run(count: int, place: Path | None) -> list[Row]:
    """All rows, `count` operations each, fewer where one operation waits for the medium."""
    with store_for(place) as store:
        MetadataServer.format(store, now_ns=time.time_ns())
        server = MetadataServer.mount(store, count_references=False)
        bench = Bench(server, count)
        rows = bench.names() + bench.data() + bench.listings()
        server.close()
        return rows


class Bench:
    """The phases, on one server."""

    def __init__(self, server: MetadataServer, count: int) -> None:
        self.server = server
        self.count = count
        self.names_made = [b"file%08d" % number for number in range(count)]

    def timed(self, operation: str, count: int, work: Callable[[], None]) -> Row:
        """Run `work`, which makes `count` operations."""
        began = time.perf_counter()
        work()
        seconds = time.perf_counter() - began
        rate = count / seconds
        known = LIBCEPHFS.get(operation)
        return Row(operation, count, seconds, rate, rate / known if known else 0.0)

    def names(self) -> list[Row]:
        """Making, looking at and removing names."""
        server, names = self.server, self.names_made
        directory = server.mkdir(SUPERUSER, ROOT_INO, b"files", 0o755).ino
        other = server.mkdir(SUPERUSER, ROOT_INO, b"others", 0o755).ino
        inos: list[int] = []

        def create() -> None:
            for name in names:
                attr, handle = server.create(SUPERUSER, directory, name, 0o644, os.O_RDWR | os.O_EXCL)
                server.release(handle)
                inos.append(attr.ino)
            server.syncfs()

        def each(call: Callable[[bytes], object]) -> Callable[[], None]:
            def work() -> None:
                for name in names:
                    call(name)

            return work

        def chmod() -> None:
            for ino in inos:
                server.setattr(SUPERUSER, ino, SetAttr(mode=0o600))

        def stat() -> None:
            for ino in inos:
                server.getattr(ino)

        def link() -> None:
            for ino, name in zip(inos, names):
                server.link(SUPERUSER, ino, other, name)

        timed, count = self.timed, self.count
        return [
            timed("create", count, create),
            timed("stat", count, stat),
            timed("lookup", count, each(lambda name: server.lookup(SUPERUSER, directory, name))),
            timed("chmod", count, chmod),
            timed("rename", count, each(lambda name: server.rename(SUPERUSER, directory, name, directory, b"n" + name))),
            timed("link", count, link),
            timed("unlink", count, each(lambda name: server.unlink(SUPERUSER, directory, b"n" + name))),
            timed("unlink last", count, each(lambda name: server.unlink(SUPERUSER, other, name))),
            timed("mkdir", count, each(lambda name: server.mkdir(SUPERUSER, directory, name, 0o755))),
            timed("rmdir", count, each(lambda name: server.rmdir(SUPERUSER, directory, name))),
            timed("symlink", count, each(lambda name: server.symlink(SUPERUSER, directory, name, b"to/" + name))),
        ]

    def data(self) -> list[Row]:
        """Small files."""
        server = self.server
        directory = server.mkdir(SUPERUSER, ROOT_INO, b"data", 0o755).ino
        few = min(self.count, 1000)

        def write() -> None:
            for name in self.names_made:
                _, handle = server.create(SUPERUSER, directory, name, 0o644, os.O_RDWR)
                server.write(handle, 0, BLOCK)
                server.release(handle)
            server.syncfs()

        def durable(prefix: bytes) -> Callable[[], None]:
            def work() -> None:
                for number in range(few):
                    _, handle = server.create(SUPERUSER, directory, b"%s%d" % (prefix, number), 0o644, os.O_RDWR)
                    server.fsync(handle)
                    server.release(handle)

            return work

        rows = [
            self.timed("create + 4 KiB write + close", self.count, write),
            self.timed("create + fsync, while that is written back", few, durable(b"busy")),
        ]
        server.write_back()
        if isinstance(server.store, Store):
            server.store.checkpoint()
        return [*rows, self.timed("create + fsync", few, durable(b"sync"))]

    def listings(self) -> list[Row]:
        """A directory of 10,000 entries with all attributes: from memory, and after everything was dropped from it."""
        server = self.server
        directory = server.mkdir(SUPERUSER, ROOT_INO, b"listed", 0o755).ino
        for number in range(LISTED):
            server.mknod(SUPERUSER, directory, b"entry%06d" % number, 0o100644)
        server.write_back()

        def listing() -> None:
            handle = server.opendir(SUPERUSER, directory)
            after, seen = None, 0
            while page := server.readdir(handle, after, 1000):
                after = page[-1].name
                seen += len(page)
            server.releasedir(handle)
            assert seen == LISTED

        cached = self.timed("readdir + stat, cached", LISTED, listing)
        server.drop_caches()
        return [cached, self.timed("readdir + stat, cold", LISTED, listing)]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
@click.option("--count", type=click.IntRange(1), default=20_000, show_default=True, help="Operations of each kind.")
@click.option("--memory", is_flag=True, help="On a store in memory: the metadata server's own share.")
@click.option("--at", "place", type=click.Path(exists=True, file_okay=False, path_type=Path), default=tempfile.gettempdir,
              help="Where the image goes.")  # fmt: skip
def main(as_json: bool, count: int, memory: bool, place: Path) -> None:
    """Measure metadata operations in process.

    \b
    mdstore bench mds --count 5000 --json
    """
    with tempfile.TemporaryDirectory(dir=place) as name:
        rows = run(count, None if memory else Path(name))
    if as_json:
        print_json([row._asdict() for row in rows])
        return
    for row in rows:
        ratio = f"{row.ratio:6.1f} x libcephfs" if row.ratio else ""
        print_line(f"{row.operation:<30} {row.per_second:>10,.0f}/s {row.seconds * 1e6 / row.operations:>9.1f} us {ratio}")
    print_line(f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
