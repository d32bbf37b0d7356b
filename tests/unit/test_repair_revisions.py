"""Repair of revisions: where they begin, long names, keys that make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.errors import NotFound
from mdstore.store import Store, Transaction
from mdstore.store.check import check as check_engine
from mdstore.store.onode import object_key
from mdstore.store.revisions import revision_key
from mdstore.tools.reader.page import Reference
from mdstore.tools.reader.superblock import ROOT_OBJECTS
from tests.unit.reader_images import (
    check,
    codes,
    patched,
    place_of,
)
from tests.unit.repair_faults import (
    Inject,
    cloned_image,
    object_before_its_revision,
    older_superblock_gone,
    revision_behind_its_end,
    revision_too_early,
)
from tests.unit.repair_images import lost, repaired
from tests.unit.test_reader_store import reader_of


@pytest.fixture(scope="module")
def image() -> bytes:
    return cloned_image()


def answers_at(image: bytes, name: str) -> list[bytes | None]:
    """What reads of an object at revisions 1 to 11 get."""
    store = Store.open(MemoryDevice.from_bytes(image), background=False)

    def read(rev: int) -> bytes | None:
        try:
            return store.read("c", name, rev=rev)
        except NotFound:
            return None

    return [read(rev) for rev in range(1, 12)]


@pytest.mark.parametrize("inject", [revision_too_early, revision_behind_its_end, object_before_its_revision])
def test_revisions_that_do_not_fit_are_repaired_to_what_they_were(inject: Inject, image: bytes, tmp_path: Path) -> None:
    """They were reported, and never mended."""
    damaged = inject(image, tmp_path)
    made, after = repaired(damaged)
    assert answers_at(after, "o0001") == answers_at(image, "o0001")
    said = [line for step in made.steps for line in step.details if "begins at revision" in line]
    assert len(said) == 1
    assert said[0].startswith("c/o0001")


def test_all_revisions_of_many_names_are_mended_at_once(tmp_path: Path) -> None:
    """Names up to the limit, so that keys are longer than any object's; a second revision that is right stays what it is."""
    device = MemoryDevice(16 << 20)
    store = Store.create(device, log_bytes=512 << 10, background=False)
    store.apply(Transaction().create_collection("c"))
    names = [f"{number:03}".encode() + b"n" * random for number, random in enumerate([0, 1, 300, 444, 445, 500, 509] * 5)]
    for rev in (0, 3, 7):
        for name in names:
            store.apply(Transaction(rev=rev).write("c", name, rev, b"%d" % rev * 300))
    store.apply(Transaction(rev=9).remove("c", names[0]))
    objects = store.tables.objects
    expected = {name: [store.read("c", name, rev=rev) for rev in range(1, 8)] for name in names}
    for number, name in enumerate(names):
        key = [object_key(1, name), revision_key(1, name, 3), revision_key(1, name, 7)][number % 3]
        onode = objects.at(key)
        if onode is not None:
            onode.created_rev = [2, 99, 1][number % 3]
            objects.mark_dirty(onode)
    store.close()
    assert codes(check(device.image(), tmp_path)) == {"revision"}
    made, after = repaired(device.image())
    assert lost(made) == []
    again = Store.open(MemoryDevice.from_bytes(after), background=False)
    assert {name: [again.read("c", name, rev=rev) for rev in range(1, 8)] for name in names} == expected
    assert check_engine(again) == []


def test_revisions_of_long_names_outlive_the_repair_of_their_tree(tmp_path: Path) -> None:
    """Their keys are longer than those of objects: each was taken for damage, and dropped."""
    device = MemoryDevice(16 << 20)
    store = Store.create(device, log_bytes=512 << 10, background=False)
    store.apply(Transaction().create_collection("c"))
    names = [b"%03d" % number + b"n" * 509 for number in range(40)]
    for rev in (0, 3):
        for name in names:
            store.apply(Transaction(rev=rev).write("c", name, rev, b"%d" % rev * 300))
    store.close()
    image = device.image()
    root = reader_of(image, tmp_path).root_tree(ROOT_OBJECTS).root.content
    assert isinstance(root, Reference)
    at = root.addresses[0] * 4096
    made, after = repaired(older_superblock_gone(image[:at] + bytes(4096) + image[at + 4096 :]))
    assert lost(made) == []
    again = Store.open(MemoryDevice.from_bytes(after), background=False)
    assert all(again.read("c", name, rev=1) == b"0" * 300 for name in names)


def test_a_revision_whose_key_makes_no_sense_goes_and_is_named(image: bytes, tmp_path: Path) -> None:
    key = revision_key(1, b"o0001", 9)
    at = place_of(image, key, tmp_path)
    damaged = patched(image, at + 8 + 8, b"\x09")
    assert "onode" in codes(check(damaged, tmp_path))
    made, after = repaired(damaged)
    assert any("a revision" in line for line in lost(made))
    before, now = answers_at(image, "o0001"), answers_at(after, "o0001")
    assert [got for got in zip(now, before) if got[0] != got[1]] == [(None, before[7])] * 2  # it held for 7 and 8


def test_a_revision_numbered_0_goes_and_is_named(image: bytes, tmp_path: Path) -> None:
    """No read is answered from it, and no beginning is before its end."""
    key = revision_key(1, b"o0001", 7)
    at = place_of(image, key, tmp_path)
    damaged = patched(image, at + len(key) - 8, bytes(8))
    assert codes(check(damaged, tmp_path)) == {"revision"}
    made, after = repaired(damaged)
    assert any("at revision 0" in line for line in lost(made))
    assert answers_at(after, "o0001")[6:] == answers_at(image, "o0001")[6:]
