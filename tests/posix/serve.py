"""Serve a name space at a mountpoint: `python -m tests.posix.serve KIND MOUNTPOINT [OPTIONS]`. Prints `ready` when it works."""

from __future__ import annotations

import logging
import sys

from mdstore.client.mount import mount
from mdstore.client.mount_options import MountOptions, parse_options
from tests.posix.subjects import SUBJECTS, from_image


def main(kind: str, mountpoint: str, options: str = "") -> None:
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    vfs = from_image(kind.removeprefix("image:")) if kind.startswith("image:") else SUBJECTS[kind]()
    session = mount(vfs, mountpoint, parse_options(options, MountOptions(allow_other=True, source=kind)))
    print("ready", flush=True)
    session.run()
    assert session.fuse.unexpected_errors == 0, "see the log above"


if __name__ == "__main__":
    main(*sys.argv[1:])
