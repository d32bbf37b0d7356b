"""The device fails, fills up or takes half a write, at every call it gets: while the store works, and while it recovers."""

from __future__ import annotations

import pytest

from mdstore.device.faulty import Effect
from mdstore.device.memory import MemoryDevice
from mdstore.errors import CorruptionError
from mdstore.store import Store, Transaction
from mdstore.store.superblock import Root, decode
from mdstore.tools.crash.faults import FaultReport, fault_cases, run_case
from mdstore.tools.crash.workloads import crash_workload
from mdstore.tools.reader.page import Reference, decode_root

HONEST = (Effect.EIO, Effect.ENOSPC, Effect.SHORT)  # the device says that it failed


@pytest.mark.parametrize(("name", "steps"), [("transactions", 16), ("full", 14), ("snapshots", 9)])
def test_an_honest_fault_at_any_call_loses_nothing_acknowledged(name: str, steps: int) -> None:
    chosen = crash_workload(name)
    cases = [case for case in fault_cases(chosen, 1, steps) if case.fault.effect in HONEST]
    total = FaultReport(1)
    for case in cases:
        total.merge(run_case(chosen, 1, steps, case))
    assert not total.findings, total.findings[:5]
    assert sum(total.told.values()) > len(cases) // 2, "most faults reach the caller, as typed errors"
    struck = {(case.phase, case.fault.operation, case.fault.effect) for case in cases}
    for phase in ("work", "recovery"):
        assert {(phase, operation, Effect.EIO) for operation in ("read", "write", "flush")} <= struck
        assert (phase, "write", Effect.ENOSPC) in struck


def test_an_older_superblock_is_not_taken_where_it_would_lose_a_snapshot() -> None:
    """The log brings back what a damaged superblock had absorbed, but it knows nothing of snapshots."""
    device = MemoryDevice(4 << 20)
    with Store.create(device, background=False) as store:
        store.apply(Transaction().create_collection("c"))
        store.snapshot("kept")
        image = bytearray(device.image())
    newest = max((decode(bytes(image[at : at + 4096]), "slot") for at in (0, 4096)), key=lambda found: found.epoch)
    root = decode_root(newest.roots[Root.FREE]).content
    assert isinstance(root, Reference)
    image[root.addresses[0] * 4096 + 100] ^= 1
    with pytest.raises(CorruptionError, match="its snapshots are not those of"):
        Store.open(MemoryDevice.from_bytes(bytes(image)))
