"""Devices of one's own: what a store asks of their descriptor, and what it refuses before it has written anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from mdstore.btree import Pager, read_blocks
from mdstore.device.file import FileDevice
from mdstore.device.protocol import Buffer
from mdstore.errors import StoreClosed
from mdstore.limits import MIB
from mdstore.store import Store, Transaction

DATA = b"x" * 300_000


class Masking:
    """Changes every byte on its way to another device and back. From before devices lent what they read by."""

    name, sector_size, read_only = "mine", 512, False

    def __init__(self, inner: FileDevice) -> None:
        self.inner = inner
        self.writes = 0

    @property
    def size_bytes(self) -> int:
        return self.inner.size_bytes

    def fileno(self) -> int:
        return -1

    def read(self, offset: int, length: int) -> bytes:
        return masked(self.inner.read(offset, length))

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        self.writes += 1
        self.inner.write(offset, [masked(b"".join(buffers))])

    def flush(self) -> None:
        self.inner.flush()

    def discard(self, offset: int, length: int) -> None:
        self.write(offset, [bytes(length)])

    def resize(self, size_bytes: int) -> None:
        self.inner.resize(size_bytes)

    def close(self) -> None:
        self.inner.close()


MASK = bytes(byte ^ 0x55 for byte in range(256))


def masked(content: bytes) -> bytes:
    return content.translate(MASK)


class Forwarding(Masking):
    """What it does not have, the inner device does."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Numbered(Masking):
    def fileno(self) -> int:
        return self.inner.fileno()


class ForwardingNumbered(Numbered, Forwarding):
    pass


@pytest.fixture
def inner(tmp_path_factory: pytest.TempPathFactory) -> FileDevice:
    return FileDevice.create(tmp_path_factory.mktemp("images") / "image", 2 * MIB)


@pytest.mark.parametrize("kind", [Masking, Forwarding])
def test_a_device_without_a_descriptor_is_read_by_its_own_read(kind: type[Masking], inner: FileDevice) -> None:
    """One that forwards what it does not have lent the inner descriptor: pages were read past it, and looked damaged."""
    device: Any = kind(inner)
    store = Store.create(device, background=False)
    store.apply(Transaction().create_collection("c").write("c", "o", 0, DATA))
    store.map("c", "m").update((b"%04d" % n, b"value") for n in range(1000))
    store.close()
    again = kind(FileDevice.open(inner.name))
    store = Store.open(again, cache_bytes=0, background=False)  # type: ignore[arg-type]
    assert store.read("c", "o") == DATA
    assert len(list(store.map("c", "m").items())) == 1000
    assert read_blocks(store.tables.pager, 0, 4096, 4096) is None
    store.close()
    with pytest.raises(StoreClosed):
        store.read("c", "o")


@pytest.mark.parametrize("kind", [Numbered, ForwardingNumbered])
def test_a_device_that_does_not_lend_its_descriptor_is_refused_before_it_is_written(
    kind: type[Masking], inner: FileDevice
) -> None:
    device: Any = kind(inner)
    inner.write(0, [b"what was there"])
    for call in (Store.create, Pager):
        with pytest.raises(TypeError, match=f"{kind.__name__} has no method `lend` of its own"):
            call(device)
    assert device.writes == 0
    assert inner.read(0, 14) == b"what was there"
    inner.close()
