"""One suite over every device: the protocol's promises, in the order of its methods."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from threading import Thread

import pytest

from mdstore.device.faulty import FaultyDevice
from mdstore.device.file import IOV_MAX, FileDevice
from mdstore.device.memory import MemoryDevice
from mdstore.device.protocol import Device
from mdstore.errors import InvalidRequest, StoreClosed

SIZE = 64 * 1024
Factory = Callable[[int], Device]


@pytest.fixture(params=["file", "sparse file", "memory", "faulty"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Factory:
    factories: dict[str, Factory] = {
        "file": lambda size: FileDevice.create(tmp_path / "image", size),
        "sparse file": lambda size: FileDevice.create(tmp_path / "image", size, sparse=True),
        "memory": MemoryDevice,
        "faulty": FaultyDevice,
    }
    return factories[request.param]


def test_new_device_is_writable_zeros_of_the_size_asked_for(make: Factory) -> None:
    device = make(SIZE)
    assert (device.size_bytes, device.read_only, device.sector_size) == (SIZE, False, 512)
    assert device.name
    assert device.read(0, SIZE) == bytes(SIZE)


def test_device_of_no_bytes_reads_nothing_and_grows(make: Factory) -> None:
    device = make(0)
    assert device.read(0, 0) == b""
    device.resize(10)
    assert device.read(0, 10) == bytes(10)


def test_write_changes_its_range_and_nothing_else(make: Factory) -> None:
    device = make(SIZE)
    device.write(4090, [b"across", b"", b" a ", b"page"])
    content = bytearray(SIZE)
    content[4090:4103] = b"across a page"
    assert device.read(0, SIZE) == content
    assert device.read(4096, 7) == b" a page"


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer_is_taken(make: Factory, wrap: Callable[[bytes], bytes]) -> None:
    device = make(SIZE)
    device.write(1, [wrap(b"abc"), wrap(b"de")])
    assert device.read(0, 7) == b"\0abcde\0"


def test_a_view_of_wide_items_counts_as_its_bytes(make: Factory) -> None:
    device = make(SIZE)
    device.write(SIZE - 8, [memoryview(b"12345678").cast("I")])
    assert device.read(SIZE - 8, 8) == b"12345678"
    with pytest.raises(InvalidRequest):
        device.write(SIZE - 7, [memoryview(b"12345678").cast("I")])


def test_more_buffers_than_one_system_call_takes(make: Factory) -> None:
    device = make(SIZE)
    buffers = [bytes([i % 251] * 3) for i in range(IOV_MAX * 2 + 7)]
    device.write(5, buffers)
    assert device.read(5, 3 * len(buffers)) == b"".join(buffers)


def test_write_of_nothing_changes_nothing(make: Factory) -> None:
    device = make(SIZE)
    device.write(SIZE, [])
    device.write(0, [b"", b""])
    assert device.read(0, SIZE) == bytes(SIZE)


@pytest.mark.parametrize(
    ("offset", "length"), [(-1, 1), (0, -1), (SIZE, 1), (SIZE - 1, 2), (1 << 70, 1), (0, SIZE + 1)]
)
def test_ranges_outside_are_refused_and_nothing_changes(make: Factory, offset: int, length: int) -> None:
    device = make(SIZE)
    with pytest.raises(InvalidRequest):
        device.read(offset, length)
    with pytest.raises(InvalidRequest):
        device.discard(offset, length)
    if length > 0:
        with pytest.raises(InvalidRequest):
            device.write(offset, [bytes([1]) * length])
    assert device.read(0, SIZE) == bytes(SIZE)


def test_the_last_byte_belongs_to_the_device(make: Factory) -> None:
    device = make(SIZE)
    device.write(SIZE - 1, [b"z"])
    assert device.read(SIZE - 1, 1) == b"z"
    assert device.read(SIZE, 0) == b""


@pytest.mark.parametrize(("offset", "length"), [(0, SIZE), (100, 9000), (4096, 8192), (511, 1), (7, 0)])
def test_discarded_range_reads_as_zeros_and_its_neighbours_stay(make: Factory, offset: int, length: int) -> None:
    device = make(SIZE)
    device.write(0, [b"\xff" * SIZE])
    device.discard(offset, length)
    assert device.read(0, SIZE) == b"\xff" * offset + bytes(length) + b"\xff" * (SIZE - offset - length)
    assert device.size_bytes == SIZE


def test_growth_keeps_content_and_adds_zeros(make: Factory) -> None:
    device = make(100)
    device.write(0, [b"x" * 100])
    device.resize(5000)
    device.resize(5000)
    assert device.size_bytes == 5000
    assert device.read(0, 5000) == b"x" * 100 + bytes(4900)
    device.write(4999, [b"y"])
    assert device.read(4999, 1) == b"y"


def test_shrinking_is_refused(make: Factory) -> None:
    device = make(SIZE)
    with pytest.raises(InvalidRequest, match="shrink"):
        device.resize(SIZE - 1)
    assert device.size_bytes == SIZE


def test_descriptor_where_there_is_one_reads_the_same_bytes(make: Factory) -> None:
    device = make(SIZE)
    device.write(10, [b"hello"])
    if device.fileno() >= 0:
        assert os.pread(device.fileno(), 5, 10) == device.read(10, 5)
    else:
        assert device.fileno() == -1


def test_a_lent_descriptor_is_asked_back_once_before_it_is_closed(make: Factory) -> None:
    class Borrowing:
        def close(self) -> None:
            backs.append(os.pread(number, 5, 10) if number >= 0 else b"")

    device, backs = make(SIZE), list[bytes]()
    device.write(10, [b"hello"])
    borrower, forgotten = Borrowing(), Borrowing()
    number = device.lend(borrower)
    assert number == device.lend(forgotten) == device.fileno()
    del forgotten
    device.close()
    assert backs == ([b"hello"] if number >= 0 else [])
    assert device.lend(borrower) == -1


def test_flush_leaves_content_alone(make: Factory) -> None:
    device = make(SIZE)
    device.write(3, [b"kept"])
    device.flush()
    device.flush()
    assert device.read(3, 4) == b"kept"


def test_closed_device_refuses_everything(make: Factory) -> None:
    device = make(SIZE)
    device.close()
    device.close()
    calls: list[Callable[[], object]] = [
        lambda: device.read(0, 1),
        lambda: device.write(0, [b"x"]),
        device.flush,
        lambda: device.discard(0, 1),
        lambda: device.resize(SIZE * 2),
    ]
    for call in calls:
        with pytest.raises(StoreClosed):
            call()


def test_random_operations_agree_with_a_bytearray(make: Factory) -> None:
    seed = 20240817
    print("seed", seed)
    random, device, model = Random(seed), make(SIZE), bytearray(SIZE)
    for _ in range(400):
        offset = random.randrange(len(model))
        length = random.randrange(min(9000, len(model) - offset) + 1)
        action = random.choice(["write", "write", "read", "discard", "grow", "flush"])
        if action == "write":
            data = random.randbytes(length)
            device.write(offset, [data[: length // 3], data[length // 3 :]])
            model[offset : offset + length] = data
        elif action == "read":
            assert device.read(offset, length) == model[offset : offset + length]
        elif action == "discard":
            device.discard(offset, length)
            model[offset : offset + length] = bytes(length)
        elif action == "grow" and len(model) < 4 * SIZE:
            device.resize(len(model) + 1000)
            model.extend(bytes(1000))
        else:
            device.flush()
    assert device.read(0, device.size_bytes) == model


def test_threads_write_side_by_side(make: Factory) -> None:
    device = make(SIZE)
    share = SIZE // 8

    def fill(index: int) -> None:
        for at in range(index * share, (index + 1) * share, 512):
            device.write(at, [bytes([index + 1]) * 512])
            assert device.read(at, 512) == bytes([index + 1]) * 512
        device.flush()

    threads = [Thread(target=fill, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert device.read(0, SIZE) == b"".join(bytes([index + 1]) * share for index in range(8))
