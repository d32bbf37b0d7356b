"""Stores by URL: `mem:`, `btree:PATH`, `lmdb:DIR`."""

from __future__ import annotations

from mdstore.device.file import FileDevice
from mdstore.engines.lmdb import LmdbStore
from mdstore.engines.mem import MemStore
from mdstore.engines.protocol import ObjectStore
from mdstore.errors import InvalidRequest
from mdstore.store.store import Store


def open_store(url: str, *, read_only: bool = False) -> ObjectStore:
    """Open the store that `url` names; the caller closes it.

    `mem:` is a new, empty store in memory; `btree:PATH` an image that `mdstore mkfs` or `Store.create` made; `lmdb:DIR` an
    LMDB environment, made when it is not there. Errors: InvalidRequest for a URL that names none of them, and what opening
    raises (NotAnImage, ImageBusy, UnsupportedFormat, CorruptionError, DeviceFailed).
    """
    scheme, colon, place = url.partition(":")
    if scheme == "mem" and colon and not place and not read_only:
        return MemStore()
    if scheme == "btree" and place:
        return _open_image(place, read_only=read_only)
    if scheme == "lmdb" and place:
        return LmdbStore(place, read_only=read_only)
    raise InvalidRequest(f"{url!r} names no store: use btree:PATH, lmdb:DIR, or mem: (new, empty, writable)")


def _open_image(path: str, *, read_only: bool) -> ObjectStore:
    device = FileDevice.open(path, read_only=read_only)
    try:
        return Store.open(device, read_only=read_only)
    except BaseException:
        device.close()
        raise
