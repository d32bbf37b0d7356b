"""The limits that a transaction holds while it is built: at the limit accepted, one over it refused and nothing added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mdstore import limits
from mdstore.errors import InvalidRequest, LimitExceeded, TransactionError
from mdstore.limits import ATTRIBUTES_MAX
from tests.conformance.subjects import Rig, T

LARGE = bytes(limits.MAP_VALUE_MAX + 1)  # pages that nobody writes cost no memory

LIMITED: dict[str, tuple[int, Callable[[T, int], Any]]] = {
    "COLLECTION_NAME_MAX": (limits.COLLECTION_NAME_MAX, lambda t, n: t.create_collection(b"n" * n)),
    "OBJECT_NAME_MAX": (limits.OBJECT_NAME_MAX, lambda t, n: t.create("c", b"n" * n)),
    "ATTR_NAME_MAX": (limits.ATTR_NAME_MAX, lambda t, n: t.setattr("c", "o", b"n" * n, b"")),
    "ATTR_VALUE_MAX": (limits.ATTR_VALUE_MAX, lambda t, n: t.setattr("c", "o", "a", b"v" * n)),
    "MAP_KEY_MAX": (limits.MAP_KEY_MAX, lambda t, n: t.map_set("c", "o", {b"k" * n: b""})),
    "MAP_VALUE_MAX": (
        limits.MAP_VALUE_MAX,
        lambda t, n: t.map_set("c", "o", {b"k": LARGE if n == len(LARGE) else LARGE[:n]}),
    ),
    "USER_BLOB_MAX": (limits.USER_BLOB_MAX, lambda t, n: t.map_set_header("c", "o", b"h" * n)),
    "OBJECT_SIZE_MAX": (limits.OBJECT_SIZE_MAX, lambda t, n: t.truncate("c", "o", n)),
}
PLACES: dict[str, tuple[str, Callable[[T], Any]]] = {
    "rmattr": ("ATTR_NAME_MAX", lambda t: t.rmattr("c", "o", b"n" * 256)),
    "clone target": ("OBJECT_NAME_MAX", lambda t: t.clone("c", "o", b"n" * 513)),
    "clone_range target": ("OBJECT_NAME_MAX", lambda t: t.clone_range("c", "o", b"n" * 513, 0, 1, 0)),
    "clone_range source range": ("OBJECT_SIZE_MAX", lambda t: t.clone_range("c", "o", "p", 1 << 60, 1, 0)),
    "clone_range target range": ("OBJECT_SIZE_MAX", lambda t: t.clone_range("c", "o", "p", 0, 1, 1 << 60)),
    "rename collection": ("COLLECTION_NAME_MAX", lambda t: t.rename("c", "o", b"n" * 256, "p")),
    "rename target": ("OBJECT_NAME_MAX", lambda t: t.rename("c", "o", "c", b"n" * 513)),
    "write end": ("OBJECT_SIZE_MAX", lambda t: t.write("c", "o", (1 << 60) - 1, b"ab")),
    "zero end": ("OBJECT_SIZE_MAX", lambda t: t.zero("c", "o", 1, 1 << 60)),
}


@pytest.mark.parametrize("limit", LIMITED)
def test_at_the_limit_accepted_and_one_over_it_refused(limit: str) -> None:
    maximum, add = LIMITED[limit]
    transaction = T()
    add(transaction, maximum - 1)
    add(transaction, maximum)
    size = transaction.payload_bytes
    with pytest.raises(LimitExceeded) as caught:
        add(transaction, maximum + 1)
    assert (caught.value.limit, caught.value.value, caught.value.maximum) == (limit, maximum + 1, maximum)
    assert (len(transaction), transaction.payload_bytes) == (2, size)


@pytest.mark.parametrize("place", PLACES)
def test_every_place_a_limit_applies_to(place: str) -> None:
    limit, add = PLACES[place]
    transaction = T()
    with pytest.raises(LimitExceeded) as caught:
        add(transaction)
    assert caught.value.limit == limit
    assert len(transaction) == 0


def test_operations_of_one_transaction_up_to_the_limit() -> None:
    transaction = T()
    for _ in range(limits.TRANSACTION_OPS_MAX):
        transaction.noop()
    with pytest.raises(LimitExceeded) as caught:
        transaction.noop()
    assert caught.value.limit == "TRANSACTION_OPS_MAX"
    assert len(transaction) == limits.TRANSACTION_OPS_MAX


def test_payload_of_one_transaction_up_to_the_limit() -> None:
    piece = bytes(limits.TRANSACTION_BYTES_MAX // 16)
    transaction = T()
    for number in range(16):
        transaction.write("c", "o", number * len(piece), piece)
    with pytest.raises(LimitExceeded) as caught:
        transaction.write("c", "o", 0, b"x")
    assert caught.value.limit == "TRANSACTION_BYTES_MAX"
    transaction.touch("c", "costs no payload")
    assert (len(transaction), transaction.payload_bytes) == (17, limits.TRANSACTION_BYTES_MAX)


@pytest.mark.parametrize(
    "add",
    [
        lambda t: t.touch("", "o"),
        lambda t: t.touch("c", b""),
        lambda t: t.setattr("c", "o", "", b"v"),
        lambda t: t.map_set("c", "o", {b"": b"v"}),
        lambda t: t.write("c", "o", -1, b"x"),
        lambda t: t.zero("c", "o", 0, -1),
        lambda t: t.truncate("c", "o", -1),
        lambda t: t.clone_range("c", "o", "p", -1, 1, 0),
        lambda t: t.clone_range("c", "o", "p", 0, 1, -1),
    ],
)
def test_empty_names_and_negative_ranges_are_invalid_and_add_nothing(add: Callable[[T], Any]) -> None:
    transaction = T()
    with pytest.raises(InvalidRequest):
        add(transaction)
    assert len(transaction) == 0


def test_as_many_attributes_as_the_limit_and_no_more(rig: Rig) -> None:
    """A count over 16 bits stopped the store when it was written back; 2008's store had the same count."""
    names = [b"%05d" % number for number in range(ATTRIBUTES_MAX)]
    for start in range(0, ATTRIBUTES_MAX, 30_000):
        transaction = T()
        for name in names[start : start + 30_000]:
            transaction.setattr("c", "o", name, b"")
        rig.store.apply(transaction)
    one_too_many = T().rmattr("c", "o", names[0]).setattr("c", "o", "a", b"").setattr("c", "o", "b", b"")
    for build in (T().setattr("c", "o", "more", b""), one_too_many):
        with pytest.raises(TransactionError) as caught:
            rig.store.apply(build)
        assert isinstance(caught.value.cause, LimitExceeded)
        assert caught.value.cause.limit == "ATTRIBUTES_MAX"
    rig.store.apply(T().setattr("c", "o", names[5], b"changed").rmattr("c", "o", names[0]).setattr("c", "o", "a", b""))
    rig.reopen()
    found = rig.store.getattrs("c", "o")
    assert len(found) == ATTRIBUTES_MAX
    assert (found[names[5]], found[b"a"]) == (b"changed", b"")
