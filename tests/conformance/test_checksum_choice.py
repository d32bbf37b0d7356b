"""Per-object choice of checksums for data: recorded, shown, kept by copies, and invisible to readers."""

from __future__ import annotations

import pytest

from mdstore.errors import InvalidRequest, LimitExceeded
from mdstore.limits import OBJECT_SIZE_MAX
from mdstore.store.transaction import HINT_UNCHECKED
from tests.conformance.subjects import Subject, T, everything
from tests.conformance.test_data import pattern

LARGE = pattern(300_000)


def test_the_choice_is_shown_and_holds_until_the_next_hint(store: Subject) -> None:
    store.apply(T().write("c", "o", 0, b"x"))
    assert store.stat("c", "o").checksum == "crc32c"
    store.apply(T().alloc_hint("c", "o", 0, 0, HINT_UNCHECKED).alloc_hint("c", "new", 0, 0, HINT_UNCHECKED))
    assert [store.stat("c", name).checksum for name in ("o", "new")] == ["none", "none"]
    store.apply(T().write("c", "o", 0, b"y").setattr("c", "o", "a", b""))
    assert store.stat("c", "o").checksum == "none"
    store.apply(T().alloc_hint("c", "o", 1 << 20, 4096))
    assert [store.stat("c", name).checksum for name in ("o", "new")] == ["crc32c", "none"]


def test_the_choice_changes_nothing_that_is_read(store: Subject) -> None:
    """The same changes with the choice made, not made, and changed in the middle."""
    for name, hints in (("plain", (0, 0)), ("none", (1, 1)), ("first", (1, 0)), ("then", (0, 1))):
        store.apply(T().alloc_hint("c", name, 0, 0, hints[0]).write("c", name, 100, LARGE).write("c", name, 1 << 20, b"small"))
        store.sync()
        store.apply(T().alloc_hint("c", name, 0, 0, hints[1]).write("c", name, 5000, LARGE[:90_000]).zero("c", name, 9000, 9000))
        store.apply(T().truncate("c", name, 200_000).write("c", name, 199_999, b"end"))
        store.apply(T().clone_range("c", name, "part-" + name, 1, 9999, 0))
    found = everything(store)[b"c"]
    for name in (b"none", b"first", b"then"):
        assert found[name] == found[b"plain"]
        assert found[b"part-" + name] == found[b"part-plain"]


def test_clones_revisions_and_moves_keep_the_choice(store: Subject) -> None:
    store.apply(T().create_collection("d").alloc_hint("c", "o", 0, 0, HINT_UNCHECKED).write("c", "o", 0, LARGE))
    store.apply(T().clone("c", "o", "copy").clone_range("c", "o", "part", 0, 90_000, 0))
    store.apply(T(rev=4).alloc_hint("c", "o", 0, 0).write("c", "o", 0, b"x"))
    assert store.stat("c", "copy").checksum == "none"
    assert store.stat("c", "part").checksum == "crc32c"
    assert store.stat("c", "o").checksum == "crc32c"
    store.apply(T().rename("c", "copy", "c", "moved").split("c", 0, 0, "d").write("d", "moved", 5, b"changed"))
    assert store.stat("d", "moved").checksum == "none"
    assert store.read("d", "moved") == LARGE[:5] + b"changed" + LARGE[12:]
    assert store.read("d", "part") == LARGE[:90_000]
    assert store.read("d", "o", rev=3) == LARGE


def test_a_hint_is_checked_when_it_is_given() -> None:
    for flags in (2, -1, HINT_UNCHECKED | 1 << 40):
        with pytest.raises(InvalidRequest):
            T().alloc_hint("c", "o", 0, 0, flags)
    for sizes in ((OBJECT_SIZE_MAX + 1, 0), (0, OBJECT_SIZE_MAX + 1)):
        with pytest.raises(LimitExceeded):
            T().alloc_hint("c", "o", *sizes)
    with pytest.raises(InvalidRequest):
        T().alloc_hint("c", "o", -1, 0)
