"""Serve a name space at a mountpoint: `python -m tests.posix.serve KIND MOUNTPOINT [OPTIONS]`. Prints `ready` when it works.

A metadata server is ticked, as a mount's is, by a `Driver`; but in steps: a tick comes before one of every few requests, as a
seed says, and with it its background work. So what runs depends on the requests alone, and is the same every time. `image:PATH`
serves an image; no time passes for one that is `still:PATH`, so nothing becomes durable there that nobody asked for.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from typing import Any

from mdstore.client.mount import mount
from mdstore.client.mount_options import MountOptions, parse_options
from mdstore.mds.driver import Driver
from tests.posix.subjects import SUBJECTS, from_image

SEED = 6
REQUESTS_MAX = 12  # between two ticks
AHEAD_NS = 3600 * 10**9  # the driver's clock: all that waits for its age is old enough


class Ticking:
    """A name space that lets the driver have a turn between its requests."""

    def __init__(self, vfs: Any, driver: Driver) -> None:
        self._vfs = vfs
        self._driver = driver
        self._rng = random.Random(SEED)
        self._left = 1

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._vfs, name)
        if not callable(found):
            return found

        def call(*args: Any, **named: Any) -> Any:
            self._left -= 1
            if self._left <= 0 and name != "close":
                self._left = self._rng.randint(1, REQUESTS_MAX)
                assert self._driver.turn(pause_s=0), self._driver.error
            return found(*args, **named)

        return call


def main(kind: str, mountpoint: str, options: str = "") -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    name, _, image = kind.partition(":")
    vfs = from_image(image) if image else SUBJECTS[name]()
    server = getattr(vfs, "server", None) if name != "still" else None
    served: Any = vfs if server is None else Ticking(vfs, Driver(server, clock=lambda: time.time_ns() + AHEAD_NS))
    session = mount(served, mountpoint, parse_options(options, MountOptions(allow_other=True, source=kind)))
    print("ready", flush=True)
    session.run()
    assert session.fuse.unexpected_errors == 0, "see the log above"
    assert getattr(vfs, "failure", None) is None, "see the log above"


if __name__ == "__main__":
    main(*sys.argv[1:])
