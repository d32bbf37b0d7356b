"""Scrub: it reads all of the medium, finds every kind of rot, goes on where it stopped, and disturbs nobody."""

from __future__ import annotations

import threading
from itertools import count

import pytest

from mdstore.device.faulty import Effect, Fault, FaultyDevice
from mdstore.device.memory import MemoryDevice
from mdstore.errors import CorruptionError, DeviceFailed
from mdstore.store import scrub as scrub_module
from mdstore.store.check import check
from mdstore.store.scrub import COLLECTION, Scrub, ScrubReport, findings, scrub
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction

GEOMETRY = {"block_size": 512, "log_bytes": 64 * 1024, "background": False}


def filled(size: int = 4 << 20, *, objects: int = 60) -> tuple[Store, FaultyDevice]:
    device = FaultyDevice(size, 7)
    store = Store.create(device, **GEOMETRY)  # type: ignore[arg-type]
    store.apply(Transaction().create_collection("c"))
    for i in range(objects):
        store.apply(Transaction().write("c", f"o{i:03}", 0, bytes([i]) * 3000).map_set("c", f"o{i:03}", {b"k": bytes(2000)}))
    store.apply(Transaction().map_set("c", "big", ((b"%04d" % i, bytes(40)) for i in range(600))))
    store.apply(Transaction().write("c", "long", 0, bytes(range(256)) * 1200).clone("c", "long", "twin"))
    store.checkpoint()
    return store, device


def device_block(store: Store, name: str, logical: int) -> int:
    onode = store.tables.objects.get(store.tables.collections.get(b"c").number, name.encode())  # type: ignore[union-attr]
    assert onode is not None
    assert onode.data is not None
    for key, value in onode.data.items():
        extent = scrub_module.decode_extent(key, value)
        if extent.logical <= logical < extent.end:
            return extent.start + logical - extent.logical
    raise AssertionError("mapped")


def test_a_sound_image_is_read_whole_and_found_sound() -> None:
    store, device = filled()
    reads = device.calls("read")
    report = scrub(store)
    assert report.complete
    assert report.clean
    assert not report.findings
    assert report.objects >= 63
    used = store.superblock.blocks - store.superblock.free_blocks - store.superblock.first_block
    shared = device_block(store, "long", 0) == device_block(store, "twin", 0)
    assert shared
    assert report.bytes_read >= used * 512 * 0.95, "every page and block in use, from the medium"
    assert report.bytes_read <= used * 512 * 1.4, "and shared blocks once"
    assert device.calls("read") > reads
    assert not check(store, deep=True)


@pytest.mark.parametrize("bit", [0, 5])
def test_rot_in_a_data_block_names_the_object_and_its_bytes(bit: int) -> None:
    store, device = filled()
    for logical in (1, 3):
        device.flip_bit(device_block(store, "o007", logical) * 512 + 100, bit)
    report = scrub(store)
    assert report.complete
    assert not report.clean
    assert [(found.name, found.what) for found in report.findings] == [(b"o007", "data block")] * 2
    assert "bytes 512+512" in report.findings[0].where
    assert "bytes 1536+512" in report.findings[1].where
    with pytest.raises(CorruptionError):
        store.read("c", "o007")


def test_rot_under_a_page_that_memory_still_holds_is_found() -> None:
    store, device = filled()
    tree = store.tables.objects.get(store.tables.collections.get(b"c").number, b"big").map  # type: ignore[union-attr]
    assert tree is not None
    leaves = [page for page, _, level in tree.pages() if level == 0]
    assert len(leaves) > 4
    device.flip_bit(leaves[2] * 512 + 200, 3)
    assert len(list(store.map_items("c", "big"))) == 600, "the cache hides it"
    report = scrub(store)
    assert [(found.name, found.what) for found in report.findings] == [(b"big", "page")]
    assert report.bytes_read > 0
    assert report.complete, "what lies behind the bad page was read as well"


def test_rot_in_two_pages_says_what_was_not_read() -> None:
    store, device = filled()
    tree = store.tables.objects.get(store.tables.collections.get(b"c").number, b"big").map  # type: ignore[union-attr]
    assert tree is not None
    leaves = [page for page, _, level in tree.pages() if level == 0]
    for leaf in (leaves[1], leaves[-2]):
        device.flip_bit(leaf * 512 + 200, 3)
    found = scrub(store).findings
    assert len(found) == 2
    assert "nothing between" in found[1].where


def test_a_spilled_value_is_read_too() -> None:
    store, device = filled()
    tree = store.tables.objects.get(store.tables.collections.get(b"c").number, b"o005").map  # type: ignore[union-attr]
    assert tree is not None
    spilled = [page for page, _, level in tree.pages()][-1]
    device.flip_bit(spilled * 512 + 17, 1)
    assert [found.name for found in scrub(store).findings] == [b"o005"]


def test_damaged_superblocks_and_log_are_made_good() -> None:
    store, device = filled()
    device.flip_bit(60, 1)
    device.flip_bit(device.size_bytes - 4096 + 60, 1)
    store.apply(Transaction().write("c", "logged", 0, b"acknowledged"))
    log_start = store.superblock.log_start * 512 + 1024
    position = store.journal.expire
    device.flip_bit(log_start + position % store.journal.medium.capacity + 70, 1)  # type: ignore[operator]
    report = scrub(store)
    assert sorted(found.what for found in report.findings) == ["log entry", "superblock", "superblock"]
    assert report.clean, "all of it repaired"
    again = scrub(store)
    assert not again.findings
    recovered = Store.open(MemoryDevice.from_bytes(device.image()))
    assert recovered.read("c", "logged") == b"acknowledged"
    assert not recovered.recovery.warnings


def test_a_read_that_fails_once_does_not_end_it() -> None:
    store, device = filled(objects=5)
    start = device.calls("read")
    scrub(store)
    for nth in range(0, device.calls("read") - start, 5):
        device.inject(Fault("read", device.calls("read") + nth, Effect.EIO))
        assert scrub(store, resume=False).complete


class Unreadable(MemoryDevice):
    """A medium with a bad sector."""

    bad = -1

    def read(self, offset: int, length: int) -> bytes:
        if offset <= self.bad < offset + length:
            raise DeviceFailed("read", f"byte {self.bad}", "Input/output error")
        return super().read(offset, length)


def test_bytes_the_medium_cannot_read_are_a_finding_and_the_rest_is_read() -> None:
    store, device = filled(objects=5)
    block = device_block(store, "long", 7)
    store.close()
    raw = Unreadable(device.size_bytes)
    raw.write(0, [device.image()])
    again = Store.open(raw, background=False)
    raw.bad = block * 512 + 3
    report = scrub(again)
    assert [(found.name, found.what) for found in report.findings] == [(b"long", "unreadable (read)")]
    assert "data block 7" in report.findings[0].where
    again.sync()
    raw.bad = 100  # in the first superblock: the spare copy serves
    again = Store.open(raw, background=False)
    assert scrub(again).complete
    assert again.recovery.warnings


@pytest.mark.leaves_damage
def test_it_goes_on_where_it_was_stopped_also_after_a_reopen(monkeypatch: pytest.MonkeyPatch) -> None:
    store, device = filled()
    device.flip_bit(device_block(store, "o003", 0) * 512, 0)
    device.flip_bit(device_block(store, "o050", 0) * 512, 0)
    whole = scrub(store, resume=False)
    monkeypatch.setattr(scrub_module, "PIN_BYTES", 10_000)
    runs = 0
    while True:
        report = Scrub(store).run(stop=lambda: True)
        runs += 1
        if report.complete:
            break
        assert report.resumed or runs == 1
        if runs % 7 == 0:
            store.sync()
            store = Store.open(MemoryDevice.from_bytes(device.image()), background=False)
            device = FaultyDevice(store.device.image(), 1)  # type: ignore[attr-defined]
            store = Store.open(device, background=False)
        assert runs < 3000
    assert runs > 20
    assert [found.name for found in report.findings] == [b"o003", b"o050"]
    assert [found.name for found in findings(store)] == [b"o003", b"o050"]
    assert report.objects >= whole.objects
    fresh = scrub(store)
    assert not fresh.resumed
    assert [found.name for found in fresh.findings] == [b"o003", b"o050"]


def test_the_ceiling_on_bytes_per_second_is_kept() -> None:
    store, _ = filled()
    now = 0.0
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    seen: list[ScrubReport] = []
    report = Scrub(store, bytes_per_second=20_000, clock=lambda: now, sleep=sleep).run(progress=seen.append)
    assert report.complete
    assert now == pytest.approx(report.bytes_read / 20_000, rel=0.05)
    assert len(seen) > 5, "steps end by time as well"
    assert max(slept) < 5, "it sleeps between small reads, not once for all"


def test_it_runs_beside_writers_and_space_comes_back() -> None:
    store, _ = filled(16 << 20)
    stop = threading.Event()
    reports: list[ScrubReport] = []

    def work() -> None:
        for _ in range(6):
            reports.append(scrub(store, resume=False))
        stop.set()

    thread = threading.Thread(target=work)
    thread.start()
    for i in count():
        if stop.is_set():
            break
        store.submit(Transaction().write("c", f"o{i % 60:03}", 0, bytes([i % 251]) * 3000).setattr("c", "big", "n", b"%d" % i))
        if i % 50 == 0:
            store.checkpoint()
    thread.join()
    assert all(report.complete and not report.findings for report in reports), [r.findings for r in reports]
    for _ in range(3):
        store.checkpoint()
    assert store.tables.allocator.limbo_blocks < 200, "nothing stays pinned"
    assert not check(store, deep=True)


def test_a_read_only_store_is_scrubbed_and_not_written() -> None:
    store, device = filled()
    block = device_block(store, "o001", 0)
    store.close()
    image = MemoryDevice.from_bytes(device.image())
    raw = bytearray(device.image())
    raw[block * 512] ^= 1
    image = MemoryDevice.from_bytes(bytes(raw))
    again = Store.open(image, read_only=True)
    report = scrub(again)
    assert [found.name for found in report.findings] == [b"o001"]
    assert image.image() == bytes(raw)
    assert COLLECTION not in again.list_collections()
