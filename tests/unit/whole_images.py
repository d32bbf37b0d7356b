"""What the tests of whole images share: a dump, its content, and stores small enough to be made often."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from mdstore.device.file import FileDevice
from mdstore.store import Store
from mdstore.tools.crash.transactions import Mixed, first_collections, outcome
from mdstore.tools.reader.dump_lines import DumpHeader, encode_dump
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.whole import stream_of

MIB = 1 << 20
CONTENT = bytes(range(1, 256)) * 5000  # of the larger file
SMALL: dict[str, Any] = {"block_size": 512, "log_bytes": 64 * 1024, "background": False, "dirty_bytes": 60_000}


def dump(path: Path, snapshot: str | None = None) -> bytes:
    with Image(str(path)) as image:
        stream = stream_of(image, snapshot)
        header = DumpHeader(image.size, stream.block_size, stream.log_bytes)
        return b"".join(encode_dump(header, stream.records()))


def body(dumped: bytes) -> list[bytes]:
    """The lines of the content: without the first, which tells the image's size, and the last."""
    return dumped.splitlines()[1:-1]


def mixed_store(path: Path, seed: int, transactions: int = 150) -> Store:
    store, mixed = Store.create(FileDevice.create(str(path), MIB), **SMALL), Mixed(seed)
    store.apply(first_collections())
    for _ in range(transactions):
        outcome(store, mixed.transaction())
    store.sync()
    return store


def digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
