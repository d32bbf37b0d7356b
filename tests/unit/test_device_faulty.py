"""The faulty device: what it remembers, and how it fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mdstore.device.crashlog import CrashLog, Flush, Resize, Rot, Write
from mdstore.device.crashstates import rebuild_state
from mdstore.device.faulty import Crashed, Effect, Fault, FaultyDevice, OperationName
from mdstore.device.images import PagedImage
from mdstore.device.memory import MemoryDevice
from mdstore.errors import DeviceFailed, InvalidRequest, ReadOnly

SIZE = 8192


def content_of(log: CrashLog) -> bytes:
    """What the log says the device holds: invariant 2."""
    *_, last = log.moments()
    image = last.durable.copy()
    for write in last.pending:
        image.write(write.offset, write.data)
    return image.to_bytes()


def test_log_holds_what_was_accepted_in_order() -> None:
    device = FaultyDevice(SIZE)
    device.write(4000, [b"ab", b"cd" * 100])
    device.flush()
    device.discard(4001, 2)
    device.resize(SIZE * 2)
    device.flip_bit(0, 7)
    assert device.log.operations == [
        Write(4000, b"ab" + b"cd" * 100),
        Flush(),
        Write(4001, bytes(2)),
        Resize(SIZE * 2),
        Rot(0, b"\x80"),
    ]
    assert device.point == 5
    assert device.image() == content_of(device.log)


def test_base_is_neither_changed_nor_copied_page_by_page() -> None:
    base = PagedImage.from_bytes(b"old" * 2000)
    device = FaultyDevice(base)
    device.write(0, [b"new"])
    assert base.read(0, 3) == device.log.base.read(0, 3) == b"old"
    assert FaultyDevice(b"bytes").read(0, 5) == b"bytes"
    with pytest.raises(InvalidRequest):
        FaultyDevice(-1)


@pytest.mark.parametrize("operation", ["read", "write", "flush", "discard", "resize"])
def test_the_nth_call_fails_and_only_that(operation: OperationName) -> None:
    device = FaultyDevice(SIZE, faults=[Fault(operation, 1, Effect.EIO)])
    calls: dict[str, Callable[[], object]] = {
        "read": lambda: device.read(0, 1),
        "write": lambda: device.write(0, [b"x"]),
        "flush": device.flush,
        "discard": lambda: device.discard(0, 1),
        "resize": lambda: device.resize(SIZE),
    }
    calls[operation]()
    before = list(device.log.operations)
    with pytest.raises(DeviceFailed, match=f"{operation} failed at .*Input/output error"):
        calls[operation]()
    assert device.log.operations == before
    assert device.calls(operation) == 2
    if operation != "flush":
        calls[operation]()


def test_failed_flush_latches_as_a_file_does() -> None:
    device = FaultyDevice(SIZE, faults=[Fault("flush", 0, Effect.EIO)])
    with pytest.raises(DeviceFailed):
        device.flush()
    with pytest.raises(DeviceFailed, match="failed before"):
        device.write(0, [b"x"])
    with pytest.raises(DeviceFailed, match="failed before"):
        device.flush()
    assert device.read(0, 1) == b"\0"


def test_sticky_fault_breaks_the_device_for_writing() -> None:
    device = FaultyDevice(SIZE)
    device.inject(Fault("write", 1, Effect.ENOSPC, sticky=True))
    device.write(0, [b"a"])
    with pytest.raises(DeviceFailed, match="No space left"):
        device.write(0, [b"b"])
    with pytest.raises(DeviceFailed, match="failed before"):
        device.flush()
    assert device.read(0, 1) == b"a"


def test_short_write_leaves_its_head_and_fails() -> None:
    device = FaultyDevice(SIZE, seed=3, faults=[Fault("write", 0, Effect.SHORT)])
    with pytest.raises(DeviceFailed, match="short write"):
        device.write(10, [b"0123456789"])
    (written,) = device.log.operations
    assert isinstance(written, Write)
    assert b"0123456789".startswith(written.data)
    assert len(written.data) < 10
    assert device.image() == content_of(device.log)


@pytest.mark.parametrize("effect", [Effect.EIO, Effect.TOLD_ONCE])
def test_a_flush_that_overlaps_a_failed_one_fails_too_or_lies_as_one_open_file_does(effect: Effect) -> None:
    device = FaultyDevice(SIZE, faults=[Fault("flush", 1, effect)])
    device.write(0, [b"lost"])

    def overlap() -> None:
        with pytest.raises(DeviceFailed, match="Input/output error"):
            device.flush()

    device.during_flush = overlap
    if effect is Effect.EIO:
        with pytest.raises(DeviceFailed, match="meanwhile"):
            device.flush()
    else:
        device.flush()
    assert device.log.operations == [Write(0, b"lost")], "nothing was flushed"
    for call in (device.flush, lambda: device.write(0, [b"x"])):
        with pytest.raises(DeviceFailed, match="failed before"):
            call()


def test_lost_write_and_lost_flush_say_they_are_done() -> None:
    device = FaultyDevice(SIZE, faults=[Fault("write", 1, Effect.LOST), Fault("flush", 0, Effect.LOST)])
    device.write(0, [b"a"])
    device.write(1, [b"b"])
    device.flush()
    assert device.log.operations == [Write(0, b"a")]
    assert device.read(0, 2) == b"a\0"
    device.flush()
    assert device.log.operations == [Write(0, b"a"), Flush()]


def test_flipped_read_is_wrong_in_one_bit_once() -> None:
    device = FaultyDevice(SIZE, seed=5, faults=[Fault("read", 0, Effect.FLIP)])
    wrong = int.from_bytes(device.read(0, 100), "little")
    assert wrong.bit_count() == 1
    assert device.read(0, 100) == bytes(100)
    assert int.from_bytes(FaultyDevice(SIZE, 5, faults=[Fault("read", 0, Effect.FLIP)]).read(0, 100), "little") == wrong


def test_flipped_write_stays_wrong() -> None:
    device = FaultyDevice(SIZE, faults=[Fault("write", 0, Effect.FLIP)])
    device.write(0, [bytes(64)])
    assert int.from_bytes(device.read(0, 64), "little").bit_count() == 1
    assert device.image() == content_of(device.log)


def test_nothing_works_after_the_crash_point() -> None:
    device = FaultyDevice(SIZE)
    device.crash_after(2)
    device.write(0, [b"a"])
    device.flush()
    calls: list[Callable[[], object]] = [
        lambda: device.write(0, [b"b"]),
        lambda: device.read(0, 1),
        device.flush,
        device.close,
    ]
    for call in calls:
        with pytest.raises(Crashed):
            call()
    assert device.crashed
    assert device.point == 2
    assert device.image()[:1] == b"a"


def test_crash_is_no_exception_that_code_would_swallow() -> None:
    device = FaultyDevice(SIZE, faults=[Fault("write", 0, Effect.CRASH)])
    with pytest.raises(Crashed):  # noqa: PT012  the handler below is the point
        try:
            device.write(0, [b"x"])
        except Exception:
            pytest.fail("a crash was swallowed")
    assert device.log.operations == []


def test_faults_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="read cannot suffer short"):
        Fault("read", 0, Effect.SHORT)


def test_rot_is_durable_at_once_and_flushes_nothing() -> None:
    device = FaultyDevice(SIZE)
    device.write(100, [b"pending"])
    device.flip_bit(0, 0)
    state = rebuild_state(device.log, f"op={device.point} kind=none seed=0 k=0")
    assert state.image.read(0, 1) == b"\x01"
    assert state.image.read(100, 7) == bytes(7)


def test_memory_device_from_bytes_is_a_copy_and_may_be_read_only() -> None:
    source = bytearray(b"content")
    device = MemoryDevice.from_bytes(source, 4096, "copy", read_only=True)
    source[0] = 0
    assert (device.image(), device.sector_size, device.name) == (b"content", 4096, "copy")
    with pytest.raises(ReadOnly):
        device.write(0, [b"x"])
    with pytest.raises(ReadOnly):
        device.discard(0, 1)
    with pytest.raises(ReadOnly):
        device.resize(100)
    with pytest.raises(InvalidRequest):
        MemoryDevice(-1)
