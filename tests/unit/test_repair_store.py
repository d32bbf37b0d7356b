"""Repair of the store: each injected fault is found exactly and set right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.test_damage_matrix import Content, codes_in, content_of, table
from tests.unit.reader_images import (
    check,
    codes,
    patched,
    superblock_start,
)
from tests.unit.repair_faults import (
    FAULTS,
    Inject,
    cloned_image,
    leaked_extent,
    wrong_interval,
    wrong_objects,
    wrong_stored_bytes,
)
from tests.unit.repair_images import lost, repaired


@pytest.fixture(scope="module")
def image() -> bytes:
    return cloned_image()


@pytest.fixture(scope="module")
def content(image: bytes) -> Content:
    return content_of(image, None)


@pytest.mark.parametrize(("inject", "expected"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_fault_is_found_exactly_and_set_right(
    inject: Inject, expected: set[str], image: bytes, content: Content, tmp_path: Path
) -> None:
    damaged = inject(image, tmp_path)
    assert codes(check(damaged, tmp_path, "deep")) == expected
    made, after = repaired(damaged)
    assert content_of(after, None) == content
    assert lost(made) == []


def test_the_page_lists_every_fault() -> None:
    listed = {row[0]: (codes_in(row[1]), row[2]) for row in table("Matrix", "Under right checksums")}
    assert listed == {inject.__name__.replace("_", " "): (expected, "`same`") for inject, expected in FAULTS}


def test_faults_together_are_set_right(image: bytes, content: Content, tmp_path: Path) -> None:
    damaged = image
    for inject in (leaked_extent, wrong_interval, wrong_stored_bytes, wrong_objects):
        damaged = inject(damaged, tmp_path)
    _, after = repaired(damaged)
    assert content_of(after, None) == content


def test_objects_of_a_collection_that_is_gone_are_found_in_another(image: bytes, content: Content, tmp_path: Path) -> None:
    """A stray map: its collection's record names another number."""
    start = superblock_start(image)
    record = image.find(b"\x04maps\x01\0\0\0", start, start + 4096) + 5
    number = int.from_bytes(image[record + 4 : record + 12], "little")
    damaged = patched(image, record + 4, (number + 1).to_bytes(8, "little"))
    assert "object-stray" in codes(check(damaged, tmp_path))
    _, after = repaired(damaged)
    found = content_of(after, None)
    for (collection, name), answers in content.items():
        if collection == b"maps" and name:
            assert found[b"recovered.%d" % number, name] == answers
