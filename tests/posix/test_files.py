"""Bytes of files: reading, writing, appending, holes, truncation, allocation, copying."""

from __future__ import annotations

import mmap
import os
import random
from pathlib import Path

import pytest

from tests.posix.calls import (
    FALLOC_COLLAPSE_RANGE,
    FALLOC_KEEP_SIZE,
    FALLOC_PUNCH_HOLE,
    FALLOC_ZERO_RANGE,
    fallocate,
    make,
    outcome,
    syncfs,
)

pytestmark = pytest.mark.fuse

PAGE = 4096
GIB = 1 << 30


def _opened(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    return os.open(path, flags, 0o644)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 131072, 1 << 20, (1 << 20) + 1, 5_000_000])
def test_bytes_come_back_as_written(root: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    make(root / "file", data)
    assert (root / "file").read_bytes() == data
    assert os.stat(root / "file").st_size == size


def test_reads_are_short_at_the_end_and_empty_past_it(root: Path) -> None:
    make(root / "file", b"0123456789")
    fd = _opened(root / "file", os.O_RDONLY)
    assert [os.pread(fd, 100, offset) for offset in (0, 5, 10, 11, 1 << 40)] == [b"0123456789", b"56789", b"", b"", b""]
    os.close(fd)


def test_descriptors_do_only_what_they_were_opened_for(root: Path) -> None:
    make(root / "file", b"x")
    for flags, reading, writing in ((os.O_RDONLY, "OK", "EBADF"), (os.O_WRONLY, "EBADF", "OK"), (os.O_RDWR, "OK", "OK")):
        fd = _opened(root / "file", flags)
        assert outcome(os.read, fd, 1) == reading
        assert outcome(os.write, fd, b"y") == writing
        assert outcome(os.ftruncate, fd, 1) == ("EINVAL" if flags == os.O_RDONLY else "OK")
        os.close(fd)


def test_appends_of_two_descriptors_never_overwrite(root: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    first, second = _opened(root / "file", flags), _opened(root / "file", flags)
    for index in range(100):
        os.write(first if index % 2 else second, b"%03d\n" % index)
    os.lseek(first, 0, os.SEEK_SET)
    os.write(first, b"end\n")
    assert (root / "file").read_bytes() == b"".join(b"%03d\n" % index for index in range(100)) + b"end\n"
    os.close(first)
    os.close(second)


def test_appends_of_many_processes_all_arrive(root: Path) -> None:
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            fd = _opened(root / "file", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for _ in range(200):
                os.write(fd, b"%d" % number * 15 + b"\n")
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    lines = (root / "file").read_bytes().splitlines()
    assert sorted(lines) == sorted(b"%d" % number * 15 for number in range(4) for _ in range(200))


def test_a_write_past_the_end_leaves_zeros(root: Path) -> None:
    fd = _opened(root / "file")
    os.write(fd, b"start")
    os.pwrite(fd, b"end", 3 * PAGE + 7)
    content = os.pread(fd, 5 * PAGE, 0)
    assert content == b"start" + bytes(3 * PAGE + 2) + b"end"
    os.close(fd)


def test_files_may_be_larger_than_four_gigabytes(root: Path) -> None:
    fd = _opened(root / "file")
    for offset in (0, 4 * GIB - 3, 5 * GIB, 1 << 40):
        os.pwrite(fd, b"mark%d" % offset, offset)
    assert os.fstat(fd).st_size == (1 << 40) + len(b"mark%d" % (1 << 40))
    assert os.pread(fd, 10, 4 * GIB - 3) == b"mark429496"
    assert os.pread(fd, 20, 5 * GIB) == b"mark5368709120" + bytes(6)
    assert os.pread(fd, 8, 3 * GIB) == bytes(8)
    os.close(fd)


def test_holes_take_no_blocks(root: Path) -> None:
    fd = _opened(root / "file")
    os.pwrite(fd, b"x" * PAGE, GIB)
    blocks = os.fstat(fd).st_blocks
    os.close(fd)
    assert PAGE // 512 <= blocks < GIB // 512


@pytest.mark.parametrize("first", [0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE])
def test_truncating_down_and_up_never_shows_old_bytes(root: Path, first: int) -> None:
    make(root / "file", b"\xff" * (4 * PAGE))
    os.truncate(root / "file", first)
    assert os.stat(root / "file").st_size == first
    os.truncate(root / "file", 4 * PAGE)
    assert (root / "file").read_bytes() == b"\xff" * first + bytes(4 * PAGE - first)


def test_open_with_o_trunc_empties(root: Path) -> None:
    make(root / "file", b"content")
    os.close(_opened(root / "file", os.O_WRONLY | os.O_TRUNC))
    assert os.stat(root / "file").st_size == 0
    fd = _opened(root / "file", os.O_RDWR)
    os.write(fd, b"again")
    other = _opened(root / "file", os.O_WRONLY | os.O_TRUNC)
    assert os.pread(fd, 10, 0) == b""
    assert os.fstat(other).st_size == 0
    os.close(fd)
    os.close(other)


def test_holes_and_data_are_told_apart(root: Path) -> None:
    fd = _opened(root / "file")
    os.ftruncate(fd, 64 * PAGE)
    os.pwrite(fd, b"data" * 1024, 16 * PAGE)
    assert os.lseek(fd, 0, os.SEEK_DATA) == 16 * PAGE
    assert os.lseek(fd, 16 * PAGE, os.SEEK_HOLE) == 17 * PAGE
    assert os.lseek(fd, 16 * PAGE + 5, os.SEEK_DATA) == 16 * PAGE + 5
    assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
    assert outcome(os.lseek, fd, 20 * PAGE, os.SEEK_DATA) == "ENXIO"
    assert outcome(os.lseek, fd, 64 * PAGE, os.SEEK_DATA) == "ENXIO"
    assert outcome(os.lseek, fd, 64 * PAGE, os.SEEK_HOLE) == "ENXIO"
    os.pwrite(fd, b"end", 64 * PAGE)
    assert os.lseek(fd, 64 * PAGE, os.SEEK_HOLE) == 64 * PAGE + 3
    os.close(fd)


def test_seeking(root: Path) -> None:
    make(root / "file", b"0123456789")
    fd = _opened(root / "file", os.O_RDONLY)
    assert os.lseek(fd, -3, os.SEEK_END) == 7
    assert os.read(fd, 9) == b"789"
    assert outcome(os.lseek, fd, -1, os.SEEK_SET) == "EINVAL"
    assert os.lseek(fd, 100, os.SEEK_SET) == 100
    os.close(fd)


def test_fallocate_extends_or_keeps_the_size(root: Path) -> None:
    fd = _opened(root / "file")
    fallocate(fd, FALLOC_KEEP_SIZE, 0, 10 * PAGE)
    assert (os.fstat(fd).st_size, os.pread(fd, 10, 0)) == (0, b"")
    fallocate(fd, 0, PAGE, PAGE)
    assert os.fstat(fd).st_size == 2 * PAGE
    assert os.pread(fd, 3 * PAGE, 0) == bytes(2 * PAGE)
    assert outcome(fallocate, fd, 0, 0, 0) == "EINVAL"
    assert outcome(fallocate, fd, 0, -1, 10) == "EINVAL"
    os.close(fd)
    readonly = _opened(root / "file", os.O_RDONLY)
    assert outcome(fallocate, readonly, 0, 0, PAGE) == "EBADF"
    os.close(readonly)


@pytest.mark.parametrize(
    ("offset", "length"), [(0, PAGE), (PAGE, 2 * PAGE), (100, 50), (PAGE - 10, PAGE + 20), (3 * PAGE, 99 * PAGE)]
)
def test_punched_holes_read_as_zeros(root: Path, offset: int, length: int) -> None:
    fd = _opened(root / "file")
    os.write(fd, b"\xee" * (4 * PAGE))
    fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, offset, length)
    expected = bytearray(b"\xee" * (4 * PAGE))
    end = min(offset + length, 4 * PAGE)
    expected[offset:end] = bytes(end - offset)
    assert os.pread(fd, 5 * PAGE, 0) == bytes(expected)
    os.close(fd)


def test_other_modes_of_fallocate_are_refused_clearly(root: Path, kind: str) -> None:
    fd = _opened(root / "file")
    os.write(fd, b"x" * (4 * PAGE))
    assert outcome(fallocate, fd, FALLOC_PUNCH_HOLE, 0, PAGE) == "ENOTSUP"
    assert outcome(fallocate, fd, FALLOC_COLLAPSE_RANGE, 0, PAGE) == "ENOTSUP"
    if kind != "reference":  # tmpfs has no zero range
        fallocate(fd, FALLOC_ZERO_RANGE, PAGE, PAGE)
        assert os.pread(fd, 3 * PAGE, 0) == b"x" * PAGE + bytes(PAGE) + b"x" * PAGE
    os.close(fd)


def test_copy_file_range_copies_within_and_between_files(root: Path) -> None:
    data = random.Random(7).randbytes(300_000)
    make(root / "source", data)
    source, target = _opened(root / "source", os.O_RDWR), _opened(root / "target")
    copied = 0
    while copied < 200_000:
        step = os.copy_file_range(source, target, 200_000 - copied, 1000 + copied, 50 + copied)
        assert step > 0
        copied += step
    assert os.pread(target, 300_000, 0) == bytes(50) + data[1000:201_000]
    assert os.copy_file_range(source, target, 100, 300_000, 0) == 0
    assert os.copy_file_range(source, source, 1000, 0, 400_000) == 1000
    assert os.pread(source, 1000, 400_000) == data[:1000]
    assert outcome(os.copy_file_range, source, source, 1000, 0, 500) == "EINVAL"
    os.close(source)
    os.close(target)


def test_sizes_over_the_limit_are_refused(root: Path) -> None:
    fd = _opened(root / "file")
    assert outcome(os.ftruncate, fd, (1 << 63) - 1) in ("EFBIG", "EINVAL", "OK")
    assert outcome(os.pwrite, fd, b"x", (1 << 63) - 1) in ("EFBIG", "EINVAL")
    os.close(fd)


def test_mapped_memory_and_descriptors_see_the_same_bytes(root: Path) -> None:
    fd = _opened(root / "file")
    os.ftruncate(fd, 3 * PAGE)
    with mmap.mmap(fd, 3 * PAGE) as memory:
        memory[PAGE : PAGE + 5] = b"mmap!"
        memory.flush()
        assert os.pread(fd, 5, PAGE) == b"mmap!"
        os.pwrite(fd, b"write", 2 * PAGE)
        assert memory[2 * PAGE : 2 * PAGE + 5] == b"write"
    os.close(fd)
    assert (root / "file").read_bytes()[PAGE : PAGE + 5] == b"mmap!"


def test_changes_through_one_descriptor_are_seen_through_another(root: Path) -> None:
    writer, reader = _opened(root / "file"), _opened(root / "file", os.O_RDONLY)
    for round_number in range(20):
        data = bytes([round_number]) * (1000 * round_number)
        os.pwrite(writer, data, 0)
        os.ftruncate(writer, len(data))
        assert os.pread(reader, 100_000, 0) == data
    os.close(writer)
    os.close(reader)


def test_fsync_of_files_and_directories_succeeds(root: Path) -> None:
    fd = _opened(root / "file")
    os.write(fd, b"kept")
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)
    directory = os.open(root, os.O_RDONLY)
    os.fsync(directory)
    syncfs(directory)  # of this file system: sync(2) waits for every disk of the machine
    os.close(directory)


def test_random_reads_and_writes_match_a_byte_string(root: Path) -> None:
    seed = 20080101
    print("seed", seed)
    rng = random.Random(seed)
    expected = bytearray()
    fd = _opened(root / "file")
    for _ in range(300):
        offset, length = rng.randrange(60_000), rng.randrange(1, 20_000)
        choice = rng.random()
        if choice < 0.5:
            data = rng.randbytes(length)
            os.pwrite(fd, data, offset)
            expected.extend(bytes(max(0, offset + length - len(expected))))
            expected[offset : offset + length] = data
        elif choice < 0.6:
            os.ftruncate(fd, offset)
            expected = expected[:offset] + bytearray(max(0, offset - len(expected)))
        elif choice < 0.7:
            fallocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, offset, length)
            end = min(len(expected), offset + length)
            if offset < end:
                expected[offset:end] = bytes(end - offset)
        else:
            assert os.pread(fd, length, offset) == expected[offset : offset + length]
    assert os.fstat(fd).st_size == len(expected)
    os.close(fd)
    assert (root / "file").read_bytes() == expected
