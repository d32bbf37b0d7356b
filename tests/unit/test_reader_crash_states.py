"""Images as crashes leave them: fsck finds no error in any, and what it replays in memory is what recovery brings back."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mdstore.device.explore import History, explore
from mdstore.device.faulty import FaultyDevice
from mdstore.device.protocol import Device
from mdstore.mds.core import Limits
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import SUPERUSER
from mdstore.store import Store
from mdstore.tools.crash.transactions import SIZE, SMALL, content_of, workload_of_transactions
from mdstore.tools.reader.check import Options, check_image
from mdstore.tools.reader.check_log import LogCheck
from mdstore.tools.reader.check_superblock import check_superblocks
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.overlay import ObjectState, Overlay
from mdstore.tools.reader.problems import Findings, Problem
from mdstore.tools.reader.store import StoreReader

BUDGET = int(os.environ.get("READER_CRASH_STATES", "150"))


def errors_of(path: Path) -> list[Problem]:
    found: list[Problem] = []
    check_image(str(path), Options(), found.append)
    return [problem for problem in found if problem.severity == "error"]


def replayed(path: Path) -> dict[str, object]:
    """The content of an image by the second reader, in the shape of `content_of`."""
    found: list[Problem] = []
    with Image(str(path)) as image:
        reader = StoreReader(image, check_superblocks(image, Findings(found.append))[0])
        overlay = Overlay(reader)
        LogCheck(image, reader.superblock, Findings(found.append), reader).run(overlay)
        return dict(_content(overlay, reader))


def _content(overlay: Overlay, reader: StoreReader) -> Iterator[tuple[str, object]]:
    for collection in overlay.collections():
        yield f"{collection!r}", True
        for name, found in overlay.objects(collection):
            state = found if isinstance(found, ObjectState) else ObjectState(found)
            where = f"{collection!r}/{name!r}"
            yield f"{where} data", (state.data.size, state.data.read(reader, 0, state.data.size))
            yield f"{where} attributes", overlay.attributes_of(found)
            yield f"{where} map", (overlay.header_of(found), list(overlay.items_of(found)))
        for name in overlay.revised(collection):
            for rev, kept in overlay.revisions(collection, name).items():
                data = kept.data.read(reader, 0, kept.data.size) if rev > 1 else b""
                yield f"{collection!r}/{name!r} revision {rev}", (kept.created_rev, data)


@pytest.mark.parametrize("seed", [5, 6])
def test_every_crash_state_of_the_store_is_clean_and_replays_to_what_recovery_finds(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "state"

    def reopen(device: Device) -> object:
        path.write_bytes(device.read(0, device.size_bytes))
        assert errors_of(path) == []
        content = content_of(Store.open(device, **SMALL))
        assert replayed(path) == content
        return content

    workload = workload_of_transactions(seed, 60)
    report = explore(workload, reopen, seed=seed, size_bytes=SIZE, budget_states=BUDGET, nested_states=0)
    assert report.clean, report.findings
    assert report.distinct > BUDGET // 2


def names_workload(device: FaultyDevice, history: History) -> None:
    """Names made, moved, linked and removed over a store that checkpoints now and then; one acknowledgement at the end."""
    store = Store.create(device, block_size=512, log_bytes=64 * 1024, **{**SMALL, "dirty_bytes": 24 * 1024})
    MetadataServer.format(store, now_ns=1, object_size=4096, log_unit=1024, log_object_size=8192)
    limits = Limits(cache_bytes=64 * 700, dirty_entries=12, dirty_entries_low=4, log_bytes=16 << 10)
    store.sync()
    history.start(True)
    server = MetadataServer.mount(store, clock=lambda: 10**9, limits=limits)
    directories = [1]
    for number in range(40):
        where = directories[number % len(directories)]
        if number % 7 == 0:
            directories.append(server.mkdir(SUPERUSER, where, b"d%d" % number, 0o755).ino)
        attr, handle = server.create(SUPERUSER, where, b"f%d" % number, 0o644, os.O_RDWR)
        server.write(handle, 0, b"x" * (number * 50))
        server.release(handle)
        if number % 5 == 2:
            server.link(SUPERUSER, attr.ino, directories[-1], b"l%d" % number)
        if number % 5 == 3:
            server.unlink(SUPERUSER, where, b"f%d" % number)
        elif number % 6 == 4:
            server.rename(SUPERUSER, where, b"f%d" % number, directories[-1], b"r%d" % number)
        if number % 8 == 7:
            server.syncfs()
    server.close()
    store.close()
    history.acknowledge(history.begin(True))


def test_every_crash_state_of_a_name_space_is_clean(tmp_path: Path) -> None:
    path = tmp_path / "state"

    def reopen(device: Device) -> object:
        path.write_bytes(device.read(0, device.size_bytes))
        assert errors_of(path) == []
        return True

    report = explore(names_workload, reopen, seed=3, size_bytes=1 << 20, budget_states=BUDGET, nested_states=0)
    assert report.clean, report.findings
    assert report.distinct > BUDGET // 2
