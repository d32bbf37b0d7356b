"""mdstore: a journaling metadata server over a checksummed B-tree object store.

To embed it, these names are enough:

* `Store`, `Transaction`: objects of bytes, attributes and maps in one image; `Store.map` is an ordered key-value map.
* `FileDevice`, `MemoryDevice`: what an image lies on.
* `open_store`: a store by URL, `btree:PATH`, `lmdb:DIR` or `mem:`.
* `MetadataServer`, `Credentials`: a POSIX name space over any of these stores.
* `MdstoreError`: what every error is; the others stand in `mdstore.errors`, every limit in `mdstore.limits`.

The log alone is the package `journal`, which needs nothing of this one. Importing `mdstore` loads none of it: a name is
loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mdstore.device import FileDevice, MemoryDevice
    from mdstore.engines.registry import open_store
    from mdstore.errors import MdstoreError
    from mdstore.mds.server import MetadataServer
    from mdstore.mds.vfs import Credentials
    from mdstore.store import Store, Transaction

__all__ = [
    "Credentials", "FileDevice", "MdstoreError", "MemoryDevice", "MetadataServer", "Store", "Transaction", "open_store",
]  # fmt: skip

_MODULE = {
    "Credentials": "mdstore.mds.vfs",
    "FileDevice": "mdstore.device",
    "MdstoreError": "mdstore.errors",
    "MemoryDevice": "mdstore.device",
    "MetadataServer": "mdstore.mds.server",
    "Store": "mdstore.store",
    "Transaction": "mdstore.store",
    "open_store": "mdstore.engines.registry",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
