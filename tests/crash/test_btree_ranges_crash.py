"""Values written by range under crashes: every write of the device a crash point, and the newest durable root holds whole values.

The owner is the smallest there can be: a root record with its checksum in one of two slots, each a sector, written in turn
behind a flush; freed pages are taken again once a root that does not reach them is durable.
"""

from __future__ import annotations

import struct
from random import Random
from typing import Final

import pytest

from mdstore.btree import Descriptor, Pager, Tree, crc32c
from mdstore.device.explore import History, Workload, explore
from mdstore.device.faulty import Effect, Fault
from mdstore.device.protocol import Device
from mdstore.errors import CorruptionError

PAGE: Final = 512
SIZE: Final = 512 * 1024
SLOT: Final = struct.Struct("<IIQ")  # crc of the rest, bytes of the record, epoch
FIRST: Final = 2


class Owner:
    """One tree on a device."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.pager = Pager(device, page_size=PAGE)
        found = max(self._slots(), default=(0, b""))
        self.epoch, root = found
        self.pager.generation = self.epoch + 1
        self.tree = Tree.open(self.pager, root) if root else Tree(self.pager, Descriptor(copies=1), 1)
        used = {page for start, count, _ in self.tree.pages() for page in range(start, start + count)}
        self.free = [page for page in range(FIRST, SIZE // PAGE) if page not in used]
        self.limbo: list[int] = []

    def _slots(self) -> list[tuple[int, bytes]]:
        found = []
        for slot in range(2):
            data = bytes(self.device.read(slot * PAGE, PAGE))
            crc, size, epoch = SLOT.unpack_from(data)
            if epoch and size <= PAGE - SLOT.size and crc == crc32c(data[4 : SLOT.size + size]):
                found.append((epoch, data[SLOT.size : SLOT.size + size]))
        return found

    def allocate(self, pages: int) -> list[tuple[int, int]]:
        taken, self.free = self.free[:pages], self.free[pages:]
        return [(page, 1) for page in taken]

    def checkpoint(self) -> None:
        """Durable when it returns: the pages, then, behind a flush, the root."""
        root = self.tree.seal(self.allocate)
        self.pager.write_sealed()
        self.device.flush()
        body = struct.pack("<IQ", len(root), self.epoch + 1) + root
        slot = crc32c(body).to_bytes(4, "little") + body
        self.device.write((self.epoch + 1) % 2 * PAGE, [slot.ljust(PAGE, b"\0")])
        self.device.flush()
        self.epoch += 1
        self.pager.generation = self.epoch + 1
        for start, count, generation in self.pager.take_freed():
            assert 0 < generation <= self.epoch
            self.limbo.extend(range(start, start + count))
        self.free += self.limbo
        self.limbo = []


def workload_of_ranges(seed: int, checkpoints: int) -> Workload:
    def workload(device: Device, history: History) -> None:
        random = Random(seed)
        owner = Owner(device)
        model = {b"%d" % n: random.randbytes(size) for n, size in enumerate((40, 300, 3000, 30_000))}
        owner.tree.update(model)
        owner.checkpoint()
        history.start(dict(model))
        for _ in range(checkpoints):
            for _ in range(random.randrange(1, 4)):
                key = random.choice(sorted(model))
                old = model[key]
                at, data = random.randrange(len(old) + 200), random.randbytes(random.randrange(1, 1500))
                owner.tree.write(key, at, data)
                model[key] = old[:at].ljust(at, b"\0") + data + old[at + len(data) :]
            number = history.begin(dict(model))
            owner.checkpoint()
            history.acknowledge(number)

    return workload


def reopen(device: Device) -> dict[bytes, bytes]:
    owner = Owner(device)
    found = dict(owner.tree.items())
    problems = owner.tree.check()
    if problems:
        raise CorruptionError("tree", "after a crash", "a sound one", "; ".join(problems))
    owner.tree.write(b"3", 17, b"afterwards")
    owner.checkpoint()
    again = Owner(device).tree.get(b"3")
    assert again == found[b"3"][:17] + b"afterwards" + found[b"3"][27:], "what was recovered can be written"
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_every_write_of_a_range_is_a_crash_point(seed: int) -> None:
    report = explore(workload_of_ranges(seed, 25), reopen, seed=seed, size_bytes=SIZE, budget_states=1500)
    assert report.clean, report.findings
    assert report.points == report.points_in_all > 100, "no write was left out"
    assert report.distinct > 700


def test_a_flush_that_is_lost_is_found() -> None:
    """The canary: without the flush before the root, a root may name pages that are not there."""
    faults = [Fault("flush", nth, Effect.LOST) for nth in range(4, 24, 2)]
    report = explore(workload_of_ranges(3, 12), reopen, seed=3, size_bytes=SIZE, budget_states=1500, faults=faults)
    assert not report.clean
