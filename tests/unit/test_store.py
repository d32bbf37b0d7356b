"""The store: what it promises beyond what every engine does (tests/conformance): commit groups, latching, space, fallback."""

from __future__ import annotations

import threading
from random import Random

import pytest

from mdstore.device.faulty import Effect, Fault, FaultyDevice
from mdstore.device.memory import MemoryDevice
from mdstore.errors import (
    CorruptionError,
    DeviceFailed,
    InvalidRequest,
    LimitExceeded,
    MdstoreError,
    NoSpace,
    NotAnImage,
    ReadOnly,
    StoreClosed,
    TransactionError,
)
from mdstore.limits import MIB
from mdstore.store import log, superblock
from mdstore.store.check import check
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from tests.crash.store_workload import COLLECTIONS, Mixed, content_of, outcome

SMALL = {"block_size": 512, "log_bytes": 64 * 1024, "background": False}


def make(size: int = 1 << 20, **options: object) -> tuple[Store, MemoryDevice]:
    device = MemoryDevice(size)
    store = Store.create(device, **{**SMALL, **options})  # type: ignore[arg-type]
    store.apply(Transaction().create_collection("c"))
    return store, device


def is_full(store: Store, transaction: Transaction) -> bool:
    """Apply it; True when it was refused for want of space, and for nothing else."""
    refusal = outcome(store, transaction)
    store.sync()
    assert refusal is None or refusal[1] is NoSpace, refusal
    return refusal is not None


def copy_of(device: MemoryDevice) -> MemoryDevice:
    return MemoryDevice.from_bytes(device.image())


def test_an_image_opens_where_it_was_closed() -> None:
    store, device = make()
    store.apply(Transaction().write("c", "o", 5, b"hello").setattr("c", "o", "k", b"v").map_set("c", "o", {b"a": b"b"}))
    before = content_of(store)
    store.close()
    again = Store.open(copy_of(device))
    assert again.recovery.clean
    assert again.recovery.entries == 0
    assert content_of(again) == before
    assert not check(again, deep=True)


def test_what_was_waited_for_is_there_without_a_close() -> None:
    store, device = make()
    store.apply(Transaction().write("c", "o", 0, b"acknowledged"))
    store.submit(Transaction().write("c", "o", 0, b"never waited"))
    again = Store.open(copy_of(device))
    assert again.read("c", "o") == b"acknowledged"
    assert again.recovery.entries == 2


def test_one_flush_serves_everyone_who_waits() -> None:
    store, _ = make()
    handles = [store.submit(Transaction().write("c", f"o{i}", 0, b"x")) for i in range(50)]
    flushes = store.journal.counters.flushes
    handles[-1].wait()
    assert all(handle.durable for handle in handles)
    assert store.journal.counters.flushes == flushes + 1
    store.apply(Transaction().touch("c", "one"))
    assert store.journal.counters.flushes == flushes + 2, "one durable transaction costs one flush"


def test_many_threads_share_flushes_and_lose_nothing() -> None:
    store, device = make(4 << 20)
    def put(number: int) -> None:
        for i in range(20):
            store.apply(Transaction().map_set("c", f"t{number}", {i.to_bytes(4, "big"): b"v" * 50}))
    threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = Store.open(copy_of(device))
    for number in range(8):
        assert len(list(again.map_items("c", f"t{number}"))) == 20


def test_done_callbacks_come_without_anyone_waiting() -> None:
    store, _ = make()
    done = threading.Event()
    outcomes: list[BaseException | None] = []
    def finish(error: BaseException | None) -> None:
        outcomes.append(error)
        done.set()
    store.submit(Transaction().touch("c", "o")).add_done_callback(finish)
    done.wait()
    assert outcomes == [None]


def test_large_writes_go_to_the_device_once() -> None:
    store, device = make(8 << 20, log_bytes=256 * 1024)
    content = Random(1).randbytes(1_000_003)
    logged = store.journal.counters.bytes
    store.apply(Transaction().write("c", "big", 77, content))
    assert store.journal.counters.bytes - logged < len(content) // 50, "the log holds names and checksums, not the data"
    assert store.read("c", "big", 77) == content
    again = Store.open(copy_of(device))
    assert again.read("c", "big", 77) == content
    assert again.read("c", "big", 0, 77) == bytes(77)
    assert not check(again, deep=True)


def test_a_refused_transaction_gives_the_blocks_of_its_large_writes_back() -> None:
    store, _ = make(4 << 20)
    with pytest.raises(TransactionError) as caught:
        store.apply(Transaction().write("c", "big", 0, bytes(500_000)).remove("c", "missing"))
    assert caught.value.index == 1
    assert not store.exists("c", "big")
    assert not check(store)


@pytest.mark.leaves_damage
def test_a_flipped_data_bit_is_an_error_that_names_the_block_and_nothing_else_suffers() -> None:
    store, device = make()
    store.apply(Transaction().write("c", "o", 0, b"A" * 1500).write("c", "other", 0, b"B" * 1500))
    store.close()
    raw = bytearray(device.image())
    raw[raw.rindex(b"A" * 1500) + 600] ^= 1
    again = Store.open(MemoryDevice.from_bytes(bytes(raw)))
    assert again.read("c", "o", 0, 512) == b"A" * 512
    with pytest.raises(CorruptionError, match="logical block 1"):
        again.read("c", "o")
    assert again.read("c", "other") == b"B" * 1500


def test_a_write_into_a_damaged_block_is_refused_whole() -> None:
    store, device = make()
    store.apply(Transaction().write("c", "o", 0, b"A" * 512))
    store.close()
    raw = bytearray(device.image())
    raw[raw.rindex(b"A" * 512)] ^= 1
    again = Store.open(MemoryDevice.from_bytes(bytes(raw)))
    with pytest.raises(TransactionError) as caught:
        again.apply(Transaction().touch("c", "new").write("c", "o", 10, b"part"))
    assert isinstance(caught.value.cause, CorruptionError)
    assert not again.exists("c", "new")
    again.apply(Transaction().write("c", "o", 0, b"C" * 512))
    assert again.read("c", "o") == b"C" * 512, "writing the whole block needs nothing of the old one"


@pytest.mark.parametrize("operation", ["write", "flush"])
def test_the_first_failure_latches_the_store(operation: str) -> None:
    device = FaultyDevice(1 << 20)
    store = Store.create(device, **SMALL)  # type: ignore[arg-type]
    store.apply(Transaction().create_collection("c").write("c", "o", 0, b"safe"))
    device.inject(Fault(operation, device.calls(operation), Effect.EIO))  # type: ignore[arg-type]
    with pytest.raises(DeviceFailed) as first:
        store.apply(Transaction().write("c", "o", 0, b"lost"))
    for call in (lambda: store.apply(Transaction().touch("c", "x")), store.sync, store.checkpoint):
        with pytest.raises(DeviceFailed) as again:
            call()
        assert str(again.value) == str(first.value)
    assert Store.open(MemoryDevice.from_bytes(device.image())).read("c", "o") in (b"safe", b"lost")


def test_eio_at_every_device_call_never_loses_what_was_acknowledged() -> None:
    # The 2008 store asserted on most failed writes.
    for nth in range(60):
        device = FaultyDevice(1 << 20)
        store = Store.create(device, **SMALL)  # type: ignore[arg-type]
        base = device.calls("write")
        device.inject(Fault("write", base + nth, Effect.EIO, sticky=True))
        acknowledged = 0
        try:
            store.apply(Transaction().create_collection("c"))
            for number in range(30):
                store.apply(Transaction().write("c", "o", 0, b"%06d" % number).write("c", "big", 0, bytes(9000)))
                acknowledged = number
                if number % 7 == 0:
                    store.checkpoint()
        except DeviceFailed:
            pass
        again = Store.open(MemoryDevice.from_bytes(device.image()), background=False)
        if acknowledged:
            assert int(again.read("c", "o")) in (acknowledged, acknowledged + 1)
        assert not check(again, deep=True)


def test_a_full_image_says_so_before_it_changes_anything_and_still_deletes() -> None:
    store, device = make(512 * 1024)
    written = 0
    while not is_full(store, Transaction().write("c", f"o{written:05}", 0, bytes([written % 255 + 1]) * 3000)):
        written += 1
    assert written > 60, "most of the image was usable"
    assert len(store.list_objects("c")) == written
    assert not check(store, deep=True)
    for number in range(written):
        store.apply(Transaction().remove("c", f"o{number:05}"))
    store.apply(Transaction().write("c", "again", 0, bytes(100_000)))
    store.close()
    again = Store.open(copy_of(device))
    assert again.list_objects("c") == [b"again"]
    assert not check(again, deep=True)


def test_a_full_image_mounts_after_a_crash_at_any_moment_of_the_fill() -> None:
    device = FaultyDevice(256 * 1024)
    store = Store.create(device, block_size=512, log_bytes=32 * 1024, background=False)
    store.apply(Transaction().create_collection("c"))
    random, count = Random(3), 0
    while not is_full(store, Transaction().map_set("c", f"m{count % 3}", {random.randbytes(8): random.randbytes(100)})):
        count += 1
        if count % 25 == 0:
            again = Store.open(MemoryDevice.from_bytes(device.image()), background=False)
            assert sum(len(list(again.map_items("c", name))) for name in again.list_objects("c")) == count
            assert not check(again)
    assert count > 300


def test_a_transaction_larger_than_the_log_is_refused() -> None:
    store, _ = make()
    with pytest.raises(LimitExceeded, match="log"):
        store.apply(Transaction().map_set("c", "o", {b"k": bytes(100_000)}))
    assert not store.exists("c", "o")


def test_a_full_log_makes_room_by_a_checkpoint() -> None:
    store, device = make()
    for number in range(400):
        store.submit(Transaction().map_set("c", "o", {number.to_bytes(2, "big"): bytes(500)}))
    store.sync()
    assert store.statistics()["checkpoints"] >= 3
    assert len(list(Store.open(copy_of(device)).map_items("c", "o"))) == 400


def test_recovery_falls_back_to_the_older_superblock_when_the_newest_one_is_torn() -> None:
    # The 2008 store mounted the higher epoch even when that superblock's checksum was wrong.
    store, device = make()
    store.apply(Transaction().write("c", "o", 0, b"one"))
    store.checkpoint()
    image = bytearray(device.image())
    for offset in superblock.slot_offsets(len(image), store.superblock.epoch % 2):
        image[offset + 200] ^= 0xFF
    again = Store.open(MemoryDevice.from_bytes(bytes(image)))
    assert again.recovery.epoch == store.superblock.epoch - 1
    assert len(again.recovery.warnings) == 2
    assert again.read("c", "o") == b"one", "the log still reaches from the older superblock"


def test_one_damaged_copy_of_the_superblock_changes_nothing() -> None:
    store, device = make()
    store.apply(Transaction().write("c", "o", 0, b"one"))
    store.close()
    for offset in range(0, superblock.SLOT_SIZE * 2, superblock.SLOT_SIZE):
        image = bytearray(device.image())
        image[offset : offset + 4096] = bytes(4096)
        assert Store.open(MemoryDevice.from_bytes(bytes(image))).read("c", "o") == b"one"
    image = bytearray(device.image())
    image[:8192] = bytes(8192)
    assert Store.open(MemoryDevice.from_bytes(bytes(image))).read("c", "o") == b"one", "the spares are at the other end"


def test_not_an_image_and_a_truncated_one_are_told_apart() -> None:
    store, device = make()
    store.close()
    with pytest.raises(NotAnImage):
        Store.open(MemoryDevice(1 << 20))
    with pytest.raises(CorruptionError, match="truncated"):
        Store.open(MemoryDevice.from_bytes(device.image()[: 512 * 1024]))


@pytest.mark.parametrize("cut", [1, 4096, 8191, 8192])
def test_an_image_cut_short_by_its_spare_superblocks_is_read_and_not_written(cut: int) -> None:
    """It was opened for writing, and the next checkpoints put spare superblocks over the last blocks, whatever lay there."""
    store, device = make()
    store.apply(Transaction().write("c", "o", 0, b"one"))
    store.close()
    image = device.image()[:-cut]
    with pytest.raises(CorruptionError, match="truncated"):
        Store.open(MemoryDevice.from_bytes(image))
    with Store.open(MemoryDevice.from_bytes(image), read_only=True) as reader:
        assert reader.read("c", "o") == b"one"
    with Store.open(MemoryDevice.from_bytes(image + bytes(cut))) as whole:
        assert whole.read("c", "o") == b"one"


def test_read_only_replays_in_memory_and_writes_nothing() -> None:
    store, device = make()
    store.apply(Transaction().write("c", "o", 0, b"one"))
    frozen = FaultyDevice(device.image())
    reader = Store.open(frozen, read_only=True)
    assert reader.read("c", "o") == b"one"
    for call in (lambda: reader.apply(Transaction().touch("c", "x")), reader.checkpoint):
        with pytest.raises(ReadOnly):
            call()
    reader.close()
    assert frozen.point == 0


def test_a_closed_store_says_so() -> None:
    store, _ = make()
    store.close()
    store.close()
    for call in (lambda: store.read("c", "o"), lambda: store.apply(Transaction()), store.list_collections):
        with pytest.raises(StoreClosed):
            call()


@pytest.mark.parametrize(
    ("size", "options"), [(32 * 1024, {}), (1 << 20, {"block_size": 3000}), (1 << 20, {"block_size": 128}),
                          (128 * 1024, {"log_bytes": 120 * 1024}), (1 << 20, {"log_bytes": 1024})],
)  # fmt: skip
def test_an_impossible_geometry_is_refused(size: int, options: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest):
        Store.create(MemoryDevice(size), **options)  # type: ignore[arg-type]


def test_a_snapshot_of_a_map_outlives_checkpoints_and_writes() -> None:
    store, _ = make(2 << 20)
    for number in range(300):
        store.submit(Transaction().map_set("c", "o", {number.to_bytes(2, "big"): b"old" * 20}))
    rows = store.map_items("c", "o")
    first = [next(rows) for _ in range(10)]
    for _ in range(3):
        store.apply(Transaction().map_clear("c", "o"))
        store.apply(Transaction().map_set("c", "o", {number.to_bytes(2, "big"): b"new" * 20 for number in range(200)}))
        store.checkpoint()
    found = first + list(rows)
    assert [key for key, _ in found] == [number.to_bytes(2, "big") for number in range(300)]
    assert all(value == b"old" * 20 for _, value in found)


@pytest.mark.parametrize("seed", range(4))
def test_replaying_the_same_tail_twice_gives_the_same_state(seed: int) -> None:
    store, device = make()
    mixed = Mixed(seed)
    for collection in COLLECTIONS:
        store.apply(Transaction().create_collection(collection))
    for _ in range(60):
        outcome(store, mixed.transaction())
    store.sync()
    image = device.image()
    contents = [content_of(Store.open(MemoryDevice.from_bytes(image), background=False)) for _ in range(2)]
    assert contents[0] == contents[1] == content_of(store)


class NotedReads(MemoryDevice):
    """Notes every byte that is looked at."""

    seen: set[int]

    @classmethod
    def of(cls, image: bytes) -> NotedReads:
        device = cls.from_bytes(image)
        assert isinstance(device, cls)
        device.seen = set()
        return device

    def read(self, offset: int, length: int) -> bytes:
        self.seen.update(range(offset, offset + length))
        return super().read(offset, length)


@pytest.mark.slow
@pytest.mark.leaves_damage
def test_every_flipped_bit_of_a_small_image_gives_an_error_or_the_right_answer() -> None:
    """A bit in every byte that opening and reading everything looks at (of the zeros every eighth); others can change nothing."""
    device = MemoryDevice(64 * 1024)
    store = Store.create(device, block_size=256, log_bytes=6144, background=False)
    store.apply(Transaction().create_collection("c").write("c", "o", 0, b"data" * 100).setattr("c", "o", "k", b"v"))
    store.apply(Transaction().map_set("c", "o", {i.to_bytes(2, "big"): b"value" * 5 for i in range(60)}))
    store.checkpoint()
    before = content_of(store)
    entry = store.journal.write
    store.apply(Transaction().write("c", "o", 100, b"in the log"))
    expected, image = content_of(store), bytearray(device.image())
    last_entry = image.rindex(b"in the log")
    outcomes = {"right": 0, "error": 0, "torn": 0}
    noted = NotedReads.of(bytes(image))
    assert content_of(Store.open(noted, background=False)) == expected
    for offset in sorted(offset for offset in noted.seen if image[offset] or offset % 8 == 5):
        image[offset] ^= 1 << (offset + offset // 8) % 8
        try:
            found = content_of(Store.open(MemoryDevice.from_bytes(bytes(image)), background=False))
            # The very last entry of a log cannot be told from one that was being written when the machine stopped.
            torn = found == before and abs(offset - last_entry) < store.journal.write - entry
            outcomes["torn" if torn else "right"] += 1
            assert torn or found == expected, offset
        except MdstoreError:
            outcomes["error"] += 1
        image[offset] ^= 1 << (offset + offset // 8) % 8
    assert outcomes["error"] > 100
    assert 0 < outcomes["torn"] <= store.journal.write - entry


def test_replay_takes_no_block_that_a_later_entry_names() -> None:
    # Replay with room for few onodes once wrote dirty ones out to make room, onto blocks that a later large write had taken.
    device = MemoryDevice(8 << 20)
    store = Store.create(device, block_size=512, log_bytes=512 * 1024, background=False)
    store.apply(Transaction().create_collection("c"))
    for number in range(300):
        store.submit(Transaction().write("c", f"small{number}", 0, bytes([number % 255 + 1]) * 700))
        if number % 10 == 0:
            store.submit(Transaction().write("c", f"large{number}", 0, bytes([number % 255 + 1]) * 80_000))
    store.sync()
    again = Store.open(copy_of(device), onodes=64, background=False)
    assert content_of(again) == content_of(store)
    assert not check(again, deep=True)


def test_the_log_head_of_another_image_is_not_believed() -> None:
    # A head with a right checksum, copied from elsewhere, once made the log look empty: acknowledged transactions were gone.
    (store, device), (other, foreign) = make(), make()
    store.apply(Transaction().write("c", "o", 0, b"acknowledged"))
    for _ in range(5):
        other.journal.write_head()
    start = store.superblock.log_start * 512
    image, source = bytearray(device.image()), foreign.image()
    for slot in range(2):
        image[start + slot * 512 : start + (slot + 1) * 512] = source[start + slot * 512 : start + (slot + 1) * 512]
        again = Store.open(MemoryDevice.from_bytes(bytes(image)), background=False)
        assert again.read("c", "o") == b"acknowledged"
        assert again.journal.head_was_lost == (slot == 1), "without a head of its own the log is found by a search"


@pytest.mark.parametrize("block_size", [256, 512, 1024, 4096, 65536])
def test_a_log_in_which_no_transaction_finds_room_is_refused(block_size: int) -> None:
    """A log of four blocks was made, and every transaction then refused as "over the limit of 0"."""
    device = MemoryDevice(max(MIB, 100 * block_size))
    with pytest.raises(InvalidRequest, match=r"at least \d+$") as refusal:
        Store.create(device, block_size=block_size, log_bytes=4 * block_size)
    assert not device.read(0, device.size_bytes).strip(b"\0"), "it was refused, and written to"
    least = int(str(refusal.value).split()[-1])
    with pytest.raises(InvalidRequest, match=f"at least {least}"):
        Store.create(device, block_size=block_size, log_bytes=least - block_size)
    with Store.create(device, block_size=block_size, log_bytes=least, background=False) as store:
        store.apply(Transaction().create_collection("c"))
        data = bytes(log.LEAST_ENTRY - log.ENTRY_OVERHEAD - 32)
        for number in range(20):
            store.apply(Transaction().write("c", "o", number, data))
        assert store.stat("c", "o").size == len(data) + 19
