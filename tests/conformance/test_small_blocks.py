"""Images with small blocks take shorter names: said before anything is changed, and the store goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mdstore.btree import key_size_max
from mdstore.device.memory import MemoryDevice
from mdstore.errors import LimitExceeded, TransactionError
from mdstore.limits import MIB
from mdstore.store.store import Store
from tests.conformance.subjects import T, everything

LONG: dict[str, Callable[[T], Any]] = {
    "object": lambda t: t.touch("c", b"n" * 512),
    "rename": lambda t: t.touch("c", "o").rename("c", "o", "c", b"n" * 512),
    "clone": lambda t: t.touch("c", "o").clone("c", "o", b"n" * 512),
    "map key": lambda t: t.map_set("c", "o", {b"short": b"", b"k" * 1000: b""}),
    "collection": lambda t: t.create_collection(b"n" * 255),
    "floor": lambda t: t.set_floor(1, b"n" * 255, name=b"n" * 512),
    "attribute": lambda t: t.setattr("c", "o", b"n" * 255, b"v" * 65536),
    "header": lambda t: t.map_set_header("c", "o", b"h" * 65536),
}
FITS = {
    256: {"attribute", "header"},
    512: {"attribute", "header"},
    1024: {"attribute", "header", "collection"},
    2048: {"attribute", "header", "collection", "object", "rename", "clone"},
    4096: set(LONG),
}


@pytest.mark.parametrize("block_size", FITS)
@pytest.mark.parametrize("case", LONG)
def test_what_does_not_fit_a_page_is_refused_before_anything_changes(case: str, block_size: int) -> None:
    """The tree refused it while the transaction was being applied, which latched the store."""
    store = Store.create(MemoryDevice(8 * MIB), block_size=block_size, background=False)
    store.apply(T().create_collection("c"))
    before = everything(store)
    transaction = T().noop()
    LONG[case](transaction)
    if case in FITS[block_size]:
        store.apply(transaction)
    else:
        with pytest.raises(TransactionError) as caught:
            store.apply(transaction)
        assert type(caught.value.cause) is LimitExceeded
        assert caught.value.index == len(transaction) - 1
        assert everything(store) == before
    store.checkpoint()
    store.close()


@pytest.mark.parametrize("block_size", [256, 512, 1024])
@pytest.mark.parametrize("change", ["write", "remove", "rename"])
def test_a_name_too_long_for_a_revision_is_refused_before_anything_changes(block_size: int, change: str) -> None:
    """A revision's key is longer than its object's: with small blocks the longest names can have none."""
    store = Store.create(MemoryDevice(8 * MIB), block_size=block_size, background=False)
    name = b"n" * (key_size_max(block_size) - 8)
    store.apply(T().create_collection("c").touch("c", name))
    transaction = T(rev=1)
    {
        "write": lambda: transaction.write("c", name, 0, b"x"),
        "remove": lambda: transaction.remove("c", name),
        "rename": lambda: transaction.rename("c", name, "c", "short"),
    }[change]()
    with pytest.raises(TransactionError) as caught:
        store.apply(transaction)
    assert type(caught.value.cause) is LimitExceeded
    assert store.list_objects("c") == [name]
    assert store.revisions("c", name) == []
    store.apply(T().write("c", name, 0, b"x"))
    store.close()
