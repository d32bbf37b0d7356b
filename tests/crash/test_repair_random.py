"""Repair under random damage: bytes of the medium, and objects of a file system under right checksums.

Whatever was damaged, planning ends, writes nothing, and comes to one of two things: nothing is left, both checkers are clean, the
file system mounts and a second plan is empty; or the plan says what it cannot do. REPAIR_SEED=n begins elsewhere, REPAIR_CASES=n
does more.
"""

from __future__ import annotations

import os
from contextlib import suppress
from random import Random

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.errors import MdstoreError
from mdstore.store import Store, Transaction
from mdstore.tools.repair.bench import RepairOptions
from mdstore.tools.repair.planning import plan
from tests.unit.reader_images import BLOCK, changed, file_system, reachable, store_image
from tests.unit.repair_images import repaired, rich_file_system, tree_of

FIRST = int(os.environ.get("REPAIR_SEED", "1000"))
CASES = int(os.environ.get("REPAIR_CASES", "40"))
OPTIONS = RepairOptions(is_deep=True, drops_damaged=True)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[bytes, list[int]]]:
    """Images with the pages they reach."""
    folder = tmp_path_factory.mktemp("random")
    found = [store_image(1, is_closed=False), store_image(2), file_system(is_closed=False), file_system()]
    return [(image, reachable(image, folder)) for image in found]


def damage_bytes(image: bytes, pages: list[int], random: Random) -> bytes:
    """Zeros, junk or one bit, in pages, superblocks, the log, or anywhere."""
    damaged = bytearray(image)
    for _ in range(random.choice([1, 1, 2, 5, 12])):
        end = len(image) // 4096 * 4096
        at, length = random.choice(
            [
                (random.choice(pages) * BLOCK, BLOCK),
                (random.choice(pages) * BLOCK, BLOCK),
                (random.choice([0, 4096, end - 8192, end - 4096]), 4096),
                (8192 + random.randrange(128 << 10), random.choice([1, 60, 2000])),
                (random.randrange(end - 20000), random.choice([1, 500, 20000])),
            ]
        )
        kind = random.choice(["zeros", "junk", "bit"])
        if kind == "bit":
            damaged[at + random.randrange(length)] ^= 1 << random.randrange(8)
        else:
            damaged[at : at + length] = bytes(length) if kind == "zeros" else random.randbytes(length)
    return bytes(damaged)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + CASES))
def test_random_bytes(seed: int, images: list[tuple[bytes, list[int]]]) -> None:
    print(f"seed {seed}")
    random = Random(seed)
    damaged = damage_bytes(*random.choice(images), random)
    device = MemoryDevice.from_bytes(damaged)
    made = plan(device, OPTIONS)
    assert device.image() == damaged
    if made.left:
        assert made.failed or made.after.codes["superblock-none"], [problem.as_line() for problem in made.after.problems]
    else:
        repaired(damaged, drops_damaged=True)


def change_something(store: Store, random: Random) -> None:
    """One object of a file system: removed, renamed, or some of what it holds removed, copied elsewhere or changed."""
    collection = random.choice(["meta", "meta", "meta", "log", "data"])
    names = store.list_objects(collection)
    if not names:
        return
    name = random.choice(names)
    change = Transaction()
    items = list(store.map_items(collection, name))
    kind = random.choice(["remove", "forget", "twist", "copy", "header", "write", "attribute", "rename"])
    if kind == "remove":
        change.remove(collection, name)
    elif kind == "rename":
        suffix = b".00000000" if collection == "data" else b""
        change.rename(collection, name, collection, b"%016x" % random.randrange(1, 60) + suffix)
    elif kind == "header" and (header := store.map_header(collection, name)):
        change.map_set_header(collection, name, twisted(header, random))
    elif kind == "write" and (size := store.stat(collection, name).size):
        change.write(collection, name, random.randrange(size), b"?")
    elif kind == "attribute" and (attributes := store.getattrs(collection, name)):
        key, value = random.choice(list(attributes.items()))
        change.setattr(collection, name, key, twisted(value, random))
    elif items:
        key, value = random.choice(items)
        if kind == "forget":
            change.map_remove(collection, name, [key])
        elif kind == "copy":
            change.map_set("meta", random.choice(store.list_objects("meta")), {random.choice([key, b"copy"]): value})
        else:
            change.map_set(collection, name, {key: twisted(value, random)})
    store.apply(change)


def twisted(data: bytes, random: Random) -> bytes:
    """One byte is another, or the end is cut off."""
    if not data:
        return b"?"
    at = random.randrange(len(data))
    if random.random() < 0.2:
        return data[:at]
    return data[:at] + bytes([random.choice([0, 255, data[at] ^ 1, random.randrange(256)])]) + data[at + 1 :]


@pytest.fixture(scope="module")
def file_systems() -> list[bytes]:
    return [file_system(is_closed=False), file_system(), rich_file_system()]


@pytest.mark.parametrize("seed", range(FIRST, FIRST + CASES))
def test_random_changes_of_a_name_space(seed: int, file_systems: list[bytes]) -> None:
    print(f"seed {seed}")
    random = Random(seed)

    def inject(store: Store) -> None:
        for _ in range(random.choice([1, 2, 4, 10])):
            with suppress(MdstoreError):  # a name that is taken, an object that is gone
                change_something(store, random)

    _, after = repaired(changed(random.choice(file_systems), inject), drops_damaged=True)
    tree_of(after)
