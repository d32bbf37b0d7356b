"""Files and block devices: opening, locks, errors of the operating system."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mdstore.device import file as file_module
from mdstore.device.file import FileDevice
from mdstore.device.lock import locks_held
from mdstore.errors import (
    AlreadyExists,
    DeviceFailed,
    ImageBusy,
    InvalidRequest,
    NoSpace,
    NotFound,
    ReadOnly,
    StoreClosed,
    errno_of,
)

SIZE = 1 << 16
HANG_S = 60
HOLD = """
import sys
from mdstore.device.file import FileDevice
device = FileDevice.open(sys.argv[1], read_only=sys.argv[2] == "r")
if len(sys.argv) > 3:  # leave the lock to a child, which has a descriptor of the open file that the device knows nothing of
    import os
    os.dup(device.fileno())
    if os.fork():
        os._exit(0)
print("held", os.getpid() if len(sys.argv) > 3 else "", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    FileDevice.create(path, SIZE).close()
    return path


def holder(image: Path, mode: str, *extra: str) -> subprocess.Popen[str]:
    """A process that holds the image open until its standard input closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(image), mode, *extra],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("held"), line
    return process


def release(process: subprocess.Popen[str]) -> None:
    process.communicate()


# -- create and open ---------------------------------------------------------------------------------------------------


def test_created_file_has_its_size_its_blocks_and_a_lock(tmp_path: Path) -> None:
    device = FileDevice.create(tmp_path / "image", SIZE)
    assert (tmp_path / "image").stat().st_size == SIZE
    assert (tmp_path / "image").stat().st_blocks * 512 >= SIZE
    with pytest.raises(ImageBusy):
        FileDevice.open(tmp_path / "image")
    device.close()
    FileDevice.open(tmp_path / "image").close()


def test_sparse_file_takes_no_blocks(tmp_path: Path) -> None:
    FileDevice.create(tmp_path / "image", 1 << 40, sparse=True).close()
    assert (tmp_path / "image").stat().st_blocks * 512 < 1 << 20


def test_without_fallocate_the_file_is_sparse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "preallocate", lambda *_: False)
    with_grown_size = FileDevice.create(tmp_path / "image", SIZE)
    with_grown_size.resize(2 * SIZE)
    assert with_grown_size.read(0, 2 * SIZE) == bytes(2 * SIZE)


def test_create_refuses_what_is_there_and_leaves_it_alone(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"precious")
    with pytest.raises(AlreadyExists, match="image"):
        FileDevice.create(tmp_path / "image", SIZE)
    assert (tmp_path / "image").read_bytes() == b"precious"


def test_create_over_a_file_drops_its_content(tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"old" * SIZE)
    device = FileDevice.create(tmp_path / "image", SIZE, exclusive=False)
    assert device.read(0, SIZE) == bytes(SIZE)
    assert device.size_bytes == (tmp_path / "image").stat().st_size == SIZE


def test_create_over_an_image_in_use_leaves_it_alone(image: Path) -> None:
    device = FileDevice.open(image)
    device.write(0, [b"precious"])
    with pytest.raises(ImageBusy):
        FileDevice.create(image, 10, exclusive=False)
    assert device.read(0, 8) == b"precious"
    assert image.stat().st_size == SIZE


def test_failed_create_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(file_module, "preallocate", full)
    with pytest.raises(NoSpace, match="image"):
        FileDevice.create(tmp_path / "image", SIZE)
    assert not (tmp_path / "image").exists()


def test_negative_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        FileDevice.create(tmp_path / "image", -1)
    assert not (tmp_path / "image").exists()


@pytest.mark.parametrize("read_only", [False, True])
def test_missing_directory_and_fifo_get_their_own_answers(tmp_path: Path, read_only: bool) -> None:
    with pytest.raises(NotFound, match="missing"):
        FileDevice.open(tmp_path / "missing", read_only=read_only)
    with pytest.raises(InvalidRequest, match=r"(?i)is a directory") as refusal:
        FileDevice.open(tmp_path, read_only=read_only)
    assert errno_of(refusal.value) == errno.EISDIR
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InvalidRequest, match="neither a regular file"):
        FileDevice.open(tmp_path / "fifo", read_only=read_only)
    with pytest.raises(InvalidRequest, match="neither a regular file"):
        FileDevice.open("/dev/null", read_only=read_only)
    with pytest.raises(NotFound, match="missing"):
        FileDevice.create(tmp_path / "missing" / "image", SIZE)


def test_no_permission_is_one_clear_line(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of the error path itself: the superuser, who may run this, is never refused by the kernel."""

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(image))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InvalidRequest) as refusal:
        FileDevice.open(image)
    assert str(refusal.value) == f"cannot open {image} for writing: Permission denied"
    assert errno_of(refusal.value) == errno.EACCES


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EROFS, ReadOnly), (errno.EBUSY, ImageBusy), (errno.EIO, DeviceFailed)]
)
def test_other_refusals_of_open_are_typed(
    image: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number), str(image))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(kind, match="image"):
        FileDevice.open(image)


def test_read_only_device_reads_flushes_and_refuses_writes(image: Path) -> None:
    device = FileDevice.open(image, read_only=True)
    assert device.read_only
    assert device.read(0, 10) == bytes(10)
    device.flush()
    with pytest.raises(ReadOnly):
        device.write(0, [b"x"])
    with pytest.raises(ReadOnly):
        device.discard(0, 1)
    with pytest.raises(ReadOnly):
        device.resize(SIZE * 2)


# -- locks -------------------------------------------------------------------------------------------------------------


def test_second_process_is_named(image: Path) -> None:
    process = holder(image, "w")
    with pytest.raises(ImageBusy) as busy:
        FileDevice.open(image)
    with pytest.raises(ImageBusy):
        FileDevice.open(image, read_only=True)
    release(process)
    assert busy.value.holder.startswith(f"process {process.pid} (python")
    FileDevice.open(image).close()


def test_holder_in_the_background_is_named_and_not_its_dead_parent(image: Path) -> None:
    process = holder(image, "w", "fork")
    assert process.stdout is not None
    process.wait()
    with pytest.raises(ImageBusy) as busy:
        FileDevice.open(image)
    release(process)
    assert busy.value.holder.startswith("process ")
    assert not busy.value.holder.startswith(f"process {process.pid} ")


def test_readers_share_and_keep_writers_out(image: Path) -> None:
    process = holder(image, "r")
    reader = FileDevice.open(image, read_only=True)
    with pytest.raises(ImageBusy):
        FileDevice.open(image)
    release(process)
    with pytest.raises(ImageBusy, match="this process"):
        FileDevice.open(image)
    reader.close()
    FileDevice.open(image).close()


def test_looking_without_the_lock_is_for_readers_only(image: Path) -> None:
    writer = FileDevice.open(image)
    writer.write(0, [b"seen"])
    assert FileDevice.open(image, read_only=True, lock=False).read(0, 4) == b"seen"
    with pytest.raises(InvalidRequest, match="read-only"):
        FileDevice.open(image, lock=False)


def test_the_locks_of_one_process_are_counted_whoever_shares_them(image: Path, tmp_path: Path) -> None:
    me, other = os.getpid(), tmp_path / "other"
    FileDevice.create(other, SIZE).close()
    assert locks_held(me, str(image)) == 0
    first = FileDevice.open(image, read_only=True)
    assert locks_held(me, str(image)) == 1
    with open(image, "rb"):  # open without a lock
        second = FileDevice.open(image, read_only=True)
        assert locks_held(me, str(image)) == 2
        assert locks_held(me, str(other)) == 0
        first.close()
        assert locks_held(me, str(image)) == 1
        second.close()
    assert locks_held(me, str(image)) == 0
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert locks_held(ended.pid, str(image)) == 0
    assert locks_held(me, str(tmp_path / "gone")) is None


def test_killed_holder_leaves_no_lock(image: Path) -> None:
    process = holder(image, "w")
    process.kill()
    process.wait()
    release(process)
    FileDevice.open(image).close()


def test_holder_is_found_in_the_lock_table_when_its_descriptors_cannot_be_listed(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = holder(image, "w")
    monkeypatch.setattr("mdstore.device.lock._process_ids", list)
    with pytest.raises(ImageBusy) as busy:
        FileDevice.open(image)
    release(process)
    assert f"process {process.pid}" in busy.value.holder


# -- the operating system's failures -----------------------------------------------------------------------------------


def test_short_writes_are_finished(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device, whole, single = FileDevice.open(image), os.pwritev, os.pwrite
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: whole(fd, [bytes(buffers[0])[:2]], offset))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: single(fd, bytes(data)[:3], offset))
    device.write(100, [b"abcdefgh", b"", b"ij", b"k" * 50])
    assert device.read(98, 64) == b"\0\0abcdefghij" + b"k" * 50 + b"\0\0"


def test_write_that_takes_no_byte_fails_instead_of_spinning(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = FileDevice.open(image)
    monkeypatch.setattr(os, "pwritev", lambda *_: 1)
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(DeviceFailed, match="bytes 0\\+2"):
        device.write(0, [b"ab"])


def test_reads_in_pieces_are_joined(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device, pread = FileDevice.open(image), os.pread
    device.write(0, [b"0123456789"])
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, 3), offset))
    assert device.read(0, 10) == b"0123456789"


def test_file_that_shrank_is_a_failed_device(image: Path) -> None:
    device = FileDevice.open(image)
    os.truncate(image, 1000)
    with pytest.raises(DeviceFailed, match="short read: the file ends at 1000"):
        device.read(0, SIZE)


@pytest.mark.parametrize(("number", "words"), [(errno.EIO, "Input/output error"), (errno.ENOSPC, "file system that")])
def test_failed_calls_name_operation_range_and_cause(
    image: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    device = FileDevice.open(image)

    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    for name in ("pread", "pwritev"):
        monkeypatch.setattr(os, name, fail)
    with pytest.raises(DeviceFailed, match=f"write failed at {image} bytes 512\\+4: .*{words}"):
        device.write(512, [b"data"])
    with pytest.raises(DeviceFailed, match=f"read failed at {image} bytes 1\\+2: "):
        device.read(1, 2)


def test_failed_flush_latches_writes_and_flushes(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed fsync the kernel has marked the pages clean; the next fsync would say "fine" and be wrong."""
    device = FileDevice.open(image)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        with pytest.raises(DeviceFailed, match="flush failed"):
            device.flush()
    for call in (device.flush, lambda: device.write(0, [b"x"]), lambda: device.discard(0, 1)):
        with pytest.raises(DeviceFailed, match="an earlier flush failed"):
            call()
    assert device.read(0, 1) == b"\0"


def test_growth_without_room_keeps_the_old_size(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = FileDevice.open(image)

    def fail(fd: int, offset: int, length: int) -> bool:
        os.ftruncate(fd, offset + length // 2)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(file_module, "preallocate", fail)
    with pytest.raises(NoSpace):
        device.resize(SIZE * 4)
    assert device.size_bytes == image.stat().st_size == SIZE


def test_discard_gives_blocks_back(image: Path) -> None:
    device = FileDevice.open(image)
    device.write(0, [b"x" * SIZE])
    device.flush()
    before = image.stat().st_blocks
    device.discard(0, SIZE)
    assert image.stat().st_blocks < before


def test_discard_without_punching_writes_zeros(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_module, "punch", lambda *_: False)
    monkeypatch.setattr(file_module, "ZERO_CHUNK", bytes(1000))
    device = FileDevice.open(image)
    device.write(0, [b"x" * SIZE])
    device.discard(10, 5555)
    assert device.read(0, SIZE) == b"x" * 10 + bytes(5555) + b"x" * (SIZE - 5565)


# -- the real thing ----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_file_system(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB in memory."""
    place = tmp_path / "small"
    place.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(place)]).returncode:
        pytest.skip("mounting a small file system takes the superuser")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_full_file_system_is_named(small_file_system: Path) -> None:
    with pytest.raises(NoSpace, match="has no room"):
        FileDevice.create(small_file_system / "image", 1 << 20)
    assert not (small_file_system / "image").exists()
    device = FileDevice.create(small_file_system / "image", 1 << 20, sparse=True)
    with pytest.raises(DeviceFailed, match="has no room"):
        device.write(0, [bytes([1]) * (1 << 20)])
    device.close()


@pytest.fixture
def loop_device(tmp_path: Path) -> Iterator[str]:
    backing = tmp_path / "backing"
    backing.write_bytes(bytes(1 << 20))
    tool = shutil.which("losetup")
    if tool is None or os.geteuid() != 0:
        pytest.skip("a loop device takes losetup and the superuser")
    made = subprocess.run([tool, "--find", "--show", str(backing)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop device to be had: {made.stderr.strip()}")
    yield made.stdout.strip()
    subprocess.run([tool, "--detach", made.stdout.strip()], check=True)


def test_block_device_has_size_and_sectors_and_cannot_grow(loop_device: str) -> None:
    device = FileDevice.open(loop_device)
    assert device.is_block_device
    assert device.size_bytes == 1 << 20
    assert device.sector_size in (512, 4096)
    device.write(100, [b"\xff" * 10_000])
    device.flush()
    device.discard(300, 9_000)
    expected = b"\xff" * 200 + bytes(9_000) + b"\xff" * 800
    assert device.read(100, 10_000) == expected
    with pytest.raises(InvalidRequest, match="fixed"):
        device.resize(1 << 21)
    with pytest.raises(ImageBusy, match="this process"):
        FileDevice.open(loop_device)
    device.close()
    reader = FileDevice.open(loop_device, read_only=True)
    assert reader.read(100, 10_000) == expected
    reader.close()
    with pytest.raises(InvalidRequest, match="open it instead"):
        FileDevice.create(loop_device, 10, exclusive=False)
    with pytest.raises(AlreadyExists):
        FileDevice.create(loop_device, 10)


def test_hints_about_the_cache_change_no_byte(image: Path) -> None:
    device = FileDevice.open(image)
    content = os.urandom(SIZE)
    device.write(0, [content])
    device.uncache(0, SIZE)  # before it is on the medium
    assert device.read(0, SIZE) == content
    device.write_behind(0, SIZE)
    device.flush()
    device.uncache(0, SIZE)
    assert device.read(0, SIZE) == content
    device.close()
    for hint in (device.write_behind, device.uncache):
        with pytest.raises(StoreClosed):
            hint(0, SIZE)
