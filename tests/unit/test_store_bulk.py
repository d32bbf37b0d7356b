"""Many pairs in one transaction: what is logged is what any MessagePack reader expects, and what fails changes nothing."""

from __future__ import annotations

import os
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdstore.btree._kernel import fail_memory
from mdstore.device.memory import MemoryDevice
from mdstore.errors import DeviceFailed, LimitExceeded
from mdstore.store import Store, Transaction, log
from mdstore.store.check import check
from mdstore.store.transaction import Op

OLD = {b"%05d" % (7 * n): b"old" * (n % 30) for n in range(500)}
NEW = {b"%05d" % (5 * n): b"new" * (n % 40) for n in range(60)} | {b"00021": b"long" * 2000}
names = st.binary(min_size=1, max_size=3) | st.sampled_from((b"n" * 255, b"n" * 256))


@given(names, names, st.sampled_from((None, 0, 5, 1 << 40)), st.dictionaries(names, st.binary(max_size=9)), st.booleans())
def test_the_entry_of_a_map_is_plain_messagepack(
    collection: bytes, name: bytes, epoch: int | None, pairs: dict[bytes, bytes], several: bool
) -> None:
    transaction = Transaction(epoch=epoch).map_set(collection[:200], name, pairs)
    plain: list[Any] = [(int(Op.MAP_SET), collection[:200], name, list(pairs.items()))]
    if several:
        transaction.map_set(collection[:200], name, iter(pairs.items()))
        plain.append(plain[0])
    expected = msgspec.msgpack.encode((log.VERSION, epoch, plain))
    assert log.encode(transaction.operations, epoch) == expected
    assert log.encode(transaction.operations, epoch) == expected, "and so it is when it is encoded again"


def filled() -> tuple[MemoryDevice, Store]:
    """A store of one map, all of it on the medium and nothing in memory."""
    device = MemoryDevice(8 << 20)
    with Store.create(device, background=False) as store:
        store.apply(Transaction().create_collection("c").map_set("c", "o", OLD))
    return reopened(device)


def reopened(device: MemoryDevice) -> tuple[MemoryDevice, Store]:
    """As another process finds it that opens what a killed one left."""
    device = MemoryDevice.from_bytes(device.image())
    return device, Store.open(device, background=False)


@pytest.mark.parametrize("failures", [1, 10**9], ids=["once", "from then on"])
def test_no_allocation_that_fails_leaves_half_a_transaction(failures: int) -> None:
    """Before anything is applied it is refused and the store goes on; later it is latched, and opened again as it was."""
    refused = latched = 0
    for step in range(1000):
        device, store = filled()
        fail_memory(step, failures)
        try:
            store.apply(Transaction().map_set("c", "o", NEW))
        except (MemoryError, DeviceFailed):
            assert fail_memory(-1) > 0
            try:
                store.check_usable()
                refused += 1
            except DeviceFailed:
                latched += 1
                device, store = reopened(device)
            assert dict(store.map("c", "o").items()) == OLD
            assert not check(store, deep=True)
            store.close()
            continue
        failed = fail_memory(-1)
        assert dict(store.map("c", "o").items()) == OLD | NEW
        assert not check(store, deep=True)
        store.close()
        if not failed:
            assert refused > 5
            assert latched > 5
            return
    raise AssertionError("it never got by without a failure")


def test_a_pair_over_a_limit_is_named_and_nothing_changes() -> None:
    with Store.create(MemoryDevice(8 << 20)) as store:
        view = store.map("c", "o")
        with pytest.raises(LimitExceeded, match=r"pair 3: .*MAP_KEY_MAX"):
            view.update([(b"a", b"1"), (b"b", b"2"), (b"c", b"3"), (b"k" * 1001, b"4")])
        with pytest.raises(TypeError, match=r"pair 1: bytes, .* not str"):
            view.update({b"a": b"1", "b": b"2"})  # type: ignore[dict-item]
        assert len(view) == 0


def test_a_load_is_there_after_a_kill_and_in_every_order_of_keys() -> None:
    device = MemoryDevice(64 << 20)
    store = Store.create(device, background=False)
    view = store.map("c", "o")
    expected: dict[bytes, bytes] = {}
    for order in ("random", "ascending", "descending", "same", "prefix"):
        keys = [os.urandom(8) for _ in range(3000)]
        keys = sorted(keys, reverse=order == "descending") if order.endswith("ending") else keys
        keys = keys[:50] * 60 if order == "same" else [b"a long beginning:" + key for key in keys] if order == "prefix" else keys
        pairs = [(key, b"%d" % number) for number, key in enumerate(keys)]
        view.update(pairs)
        expected.update(pairs)
    with reopened(device)[1] as again:
        assert dict(again.map("c", "o").items()) == expected
        assert not check(again, deep=True)
