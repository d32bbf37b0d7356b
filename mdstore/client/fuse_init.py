"""INIT: what a session offers and asks for, and what it agrees on with the kernel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from mdstore.client.fuse_protocol import (
    INIT_IN,
    INIT_IN_EXT,
    INIT_OUT,
    PAGE_SIZE,
    VERSION_MAJOR,
    VERSION_MINOR,
    Init,
    check_version,
)
from mdstore.client.fuse_reply import CacheTimes
from mdstore.errors import InvalidRequest

WORKERS: Final = 4
MAX_BACKGROUND: Final = 64  # reads ahead and writes behind that the kernel keeps on the way

_ALWAYS: Final = (
    Init.ASYNC_READ | Init.ATOMIC_O_TRUNC | Init.BIG_WRITES | Init.ASYNC_DIO | Init.PARALLEL_DIROPS | Init.MAX_PAGES
    | Init.CACHE_SYMLINKS | Init.EXPLICIT_INVAL_DATA | Init.HANDLE_KILLPRIV_V2 | Init.INIT_EXT
)  # fmt: skip


@dataclass(frozen=True)
class SessionOptions:
    """How a session behaves towards the kernel."""

    times: CacheTimes = field(default_factory=CacheTimes)
    max_write: int = 1 << 20  # bytes of one WRITE or READ
    writeback: bool = False  # the kernel gathers writes; fewer requests for small ones, data reaches the server later
    readdirplus: bool = True  # listings bring attributes along where the kernel finds it useful
    cache_listings: bool = True
    acls: bool = False  # access control lists, enforced by the kernel and by the name space, which applies the umask
    server_locks: bool = False  # locks in our table instead of the kernel's own
    poll_us: int = 100  # look for the next request for so long before sleeping; 0: never
    workers: int = WORKERS
    image: str | None = None  # the path of what is served, told as `mdstore.image` of the root

    def __post_init__(self) -> None:
        if not PAGE_SIZE <= self.max_write <= 1 << 20 or self.max_write % PAGE_SIZE:
            raise InvalidRequest(f"max_write is {self.max_write}: 4096 to 1048576 bytes, a multiple of 4096")


def negotiate(body: memoryview, options: SessionOptions) -> tuple[int, bytes]:
    """The protocol's minor version both sides speak, and INIT's reply. `UnsupportedFormat` for too old a kernel."""
    major, minor, max_readahead, flags = INIT_IN.unpack_from(body)
    check_version(major, minor)
    offered: int = flags
    if flags & Init.INIT_EXT and len(body) >= INIT_IN.size + INIT_IN_EXT.size:
        offered |= INIT_IN_EXT.unpack_from(body, INIT_IN.size)[0] << 32
    agreed = offered & _wanted(options)
    minor = min(minor, VERSION_MINOR)
    return minor, INIT_OUT.pack(
        VERSION_MAJOR, minor, max_readahead, agreed & 0xFFFFFFFF, MAX_BACKGROUND, MAX_BACKGROUND * 3 // 4,
        options.max_write, 1, options.max_write // PAGE_SIZE, 0, agreed >> 32,
    )  # fmt: skip


def _wanted(options: SessionOptions) -> int:
    wanted: int = _ALWAYS
    if options.readdirplus:
        wanted |= Init.DO_READDIRPLUS | Init.READDIRPLUS_AUTO
    if options.writeback:
        wanted |= Init.WRITEBACK_CACHE
    if options.acls:
        wanted |= Init.POSIX_ACL | Init.DONT_MASK
    if options.server_locks:
        wanted |= Init.POSIX_LOCKS | Init.FLOCK_LOCKS
    return wanted
