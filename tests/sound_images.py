"""The whole-store checker after every test: whatever a test left on its devices in memory must be a sound image.

`watch` notes every device a writable store was opened on; `judge` opens what each holds now, as a kill would leave it,
and has mdstore/store/check.py look at all of it. A test that damages an image on purpose says so: `pytest.mark.leaves_damage`.
Costs some 10 milliseconds for an image of 16 MiB, most of them for copying it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.store.check import check
from mdstore.store.store import Store


@contextmanager
def watch() -> Iterator[list[MemoryDevice]]:
    """The devices in memory that stores write to while the `with` lasts, each once."""
    devices: list[MemoryDevice] = []
    original = Store.__init__

    def noted(self: Store, device: Any, *args: Any, **options: Any) -> None:
        original(self, device, *args, **options)
        if isinstance(device, MemoryDevice) and not self.read_only and not any(device is known for known in devices):
            devices.append(device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "__init__", noted)
        yield devices


def judge(devices: list[MemoryDevice]) -> None:
    """AssertionError with every problem of every image."""
    for device in devices:
        store = Store.open(MemoryDevice.from_bytes(device.image()), background=False)
        assert check(store, deep=True) == []


@contextmanager
def sound_images(item: pytest.Item) -> Iterator[None]:
    """Around one test."""
    if any(item.iter_markers("leaves_damage")):
        yield
        return
    with watch() as devices:
        yield
    judge(devices)
