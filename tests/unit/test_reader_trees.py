"""The second reader's trees against the kernel's: every shape of descriptor, read from the page alone."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from mdstore.btree import _kernel as kernel
from mdstore.device.memory import MemoryDevice
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.page import overflow_level
from mdstore.tools.reader.problems import Damage
from mdstore.tools.reader.tree import Tree

SHAPES = [  # page size, key size, value size, comparator, copies, embed limit
    (256, 8, 8, 3, 1, 0), (256, -2, -4, 1, 1, 0), (256, -1, 60, 1, 1, 0), (256, -1, 54, 1, 1, 0), (256, -1, 100, 1, 1, 0),
    (512, 8, 0, 3, 1, 0), (256, 8, 8, 2, 1, 0), (256, 8, 8, 4, 1, 0), (256, -2, -2, 5, 1, 0), (256, -2, 8, 6, 1, 0),
    (1024, -2, -4, 1, 2, 0), (1024, -2, -4, 1, 3, 0), (512, -4, -1, 1, 1, 0), (4096, -2, -4, 1, 1, 0), (512, -2, -4, 1, 1, 9999),
    (512, 112, 118, 1, 1, 0), (512, 8, 107, 3, 1, 0), (512, 8, 108, 3, 1, 0), (1024, 8, 200, 3, 2, 0), (1024, 8, 201, 3, 2, 0),
]  # fmt: skip


def a_key(random: Random, size: int, comparator: int) -> bytes:
    if comparator != kernel.COMPARE_PAIR:
        return random.randbytes(size if size > 0 else random.randrange(1, 20))
    parts = [random.randbytes(random.randrange(4)) for _ in range(2)]
    return b"".join(len(part).to_bytes(2, "little") + part for part in parts)


def a_value(random: Random, size: int) -> bytes:
    return random.randbytes(size if size >= 0 else random.choice([0, 5, 40, 200] + [3000, 20000] * (size < -1)))


def built(shape: tuple[int, ...], records: int, path: Path) -> tuple[bytes, dict[bytes, bytes], list[bytes]]:
    """(root record, what was put, keys in the kernel's order); the pages are in the file at `path`."""
    page, key_size, value_size, comparator, copies, embed_limit = shape
    random = Random(str(shape))
    device = MemoryDevice(page << 14)
    pager = kernel.Pager(device, page_size=page)
    pager.generation = 5
    descriptor = kernel.Descriptor(key_size, value_size, comparator=comparator, copies=copies, embed_limit=embed_limit)
    tree = kernel.Tree(pager, descriptor, 7)
    tree.user_blob = b"a header"
    model = {}
    for _ in range(records):
        key, value = a_key(random, key_size, comparator), a_value(random, value_size)
        tree.put(key, value)
        model[key] = value
    following = 8

    def allocate(pages: int) -> list[tuple[int, int]]:
        nonlocal following
        following += pages
        return [(following - pages, pages)]

    root = tree.seal(allocate)
    pager.write_sealed()
    path.write_bytes(device.image())
    return root, model, list(tree.keys())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("records", [0, 3, 150])
def test_every_shape_reads_back_in_order(shape: tuple[int, ...], records: int, tmp_path: Path) -> None:
    root, model, order = built(shape, records if not shape[5] else records // 10, tmp_path / "pages")
    with Image(str(tmp_path / "pages")) as image:
        tree = Tree(image, shape[0], root)
        found = list(tree.items())
        assert tree.root.user_blob == b"a header"
        assert [key for key, _ in found] == order
        assert dict(found) == model
        if shape[3] in (kernel.COMPARE_BYTES, kernel.COMPARE_U64_BE):
            for key in order[::7]:
                assert tree.get(key) == model[key]
                assert next(iter(tree.items(key))) == (key, model[key])
            assert tree.get(b"\xff" * 8) == model.get(b"\xff" * 8)


def test_a_bad_copy_is_read_past_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "pages"
    root, model, _ = built((1024, -2, -4, 1, 2, 0), 100, path)
    data = bytearray(path.read_bytes())
    with Image(str(path)) as image:
        tree = Tree(image, 1024, root)
        bad = tree.root.content.addresses[0]  # type: ignore[union-attr]
    data[bad * 1024 + 77] ^= 8
    path.write_bytes(data)
    reported: list[Damage] = []
    with Image(str(path)) as image:
        assert dict(Tree(image, 1024, root, on_damage=reported.append).items()) == model
    assert [(damage.code, damage.place.page) for damage in reported] == [("page-copy", bad)]


def test_levels_of_a_spilled_value() -> None:
    """Page size 256, one copy. Dated: a cell holds 1 entry, an overflow page 10. Undated: 3 and 18."""
    sizes = (1, 3, 4, 54, 55, 54 * 18, 54 * 18 + 1)
    assert [overflow_level(256 * pages, 256, 1, False) for pages in sizes] == [0, 0, 1, 1, 2, 2, 3]
    assert [overflow_level(256 * pages, 256, 1, True) for pages in (1, 2, 10, 11, 100, 101)] == [0, 1, 1, 2, 2, 3]
