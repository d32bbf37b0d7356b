"""The fuzz target: pages that no writer makes, under right checksums up to the root, in trees of every shape.

`MDSTORE_FUZZ_ROUNDS` asks for more of it, `MDSTORE_FUZZ_SEED` for others; `make asan` runs it under AddressSanitizer."""

from __future__ import annotations

import os
import random
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import crc32c as reference
import pytest

from mdstore.btree import REFS_DESCRIPTOR, Tree
from mdstore.btree._kernel import PAGE_HEADER_SIZE, bound_memory
from mdstore.errors import MdstoreError
from tests.model.btree_world import World, new_tree

PAGE = 256
RECORDS = 60


def pair(first: bytes, second: bytes) -> bytes:
    return struct.pack("<H", len(first)) + first + struct.pack("<H", len(second)) + second


def name(n: int) -> bytes:
    return b"%06d" % n


def some(rng: random.Random, n: int) -> bytes:
    """A value that is short, or long enough to spill."""
    return b"%d" % n * rng.choice((1, 5, 20)) if n % 13 else b"L" * (700 + 40 * n)


def filled(size: int) -> Callable[[random.Random, int], bytes]:
    return lambda rng, n: bytes([n]) * size


def up_to(size: int) -> Callable[[random.Random, int], bytes]:
    return lambda rng, n: bytes([n]) * rng.randrange(size)


@dataclass(frozen=True)
class Shape:
    """What a tree is, and records that fit it."""

    fields: dict[str, object]
    key: Callable[[int], bytes] = name
    value: Callable[[random.Random, int], bytes] = some


SHAPES = [
    Shape({}),
    Shape({"copies": 2}),
    Shape({"copies": 3, "key_size": -1}),
    Shape({"key_size": 6, "value_size": -1}, value=up_to(40)),
    Shape({"key_size": 6, "value_size": 300}, value=filled(300)),
    Shape({"key_size": -1, "value_size": 0}, value=filled(0)),
    Shape({"key_size": -1, "value_size": -1, "embed_limit": 100}, value=up_to(30)),
    Shape({"comparator": 2, "key_size": 8, "value_size": -2}, lambda n: (n * 7919).to_bytes(8, "little"), up_to(70)),
    Shape({"comparator": 3, "key_size": 8, "value_size": 4}, lambda n: (n * 977).to_bytes(8, "big"), filled(4)),
    Shape({"comparator": 4, "key_size": 8, "value_size": 16}, lambda n: struct.pack("<q", n - 30), filled(16)),
    Shape({"comparator": 5, "key_size": -1}, value=up_to(30)),
    Shape({"comparator": 6}, lambda n: pair(b"%02d" % (n % 7), b"%d" % n)),
    Shape({"comparator": 6, "duplicates": True}, lambda n: pair(b"%d" % (n % 5), b"q"), lambda rng, n: b"%d" % n),
    Shape({"duplicates": True, "key_size": -1, "value_size": -1}, lambda n: b"%02d" % (n % 9), lambda rng, n: b"%d" % n),
    Shape({"duplicates": True, "comparator": 2, "key_size": 8}, lambda n: struct.pack("<Q", n % 9), lambda rng, n: b"%d" % n),
]  # fmt: skip


@dataclass
class Step:
    """A page on the way from the root record: where the page above it keeps its reference, and what it is."""

    address: int
    at: int
    kind: str


@dataclass
class Scene:
    """A sealed tree, and the way to each of its pages."""

    shape: Shape
    world: World
    root: bytes
    copies: int
    image: bytes = b""
    paths: list[list[Step]] = field(default_factory=list)

    def page(self, address: int) -> bytes:
        return self.image[address * PAGE : address * PAGE + PAGE]

    def walk(self, path: list[Step]) -> None:
        """Note every page at and below the end of a path."""
        self.paths.append(path)
        page, kind = self.page(path[-1].address), path[-1].kind
        if kind == "overflow page":
            return
        for n in range(int.from_bytes(page[26:28], "little")):
            at, size = struct.unpack_from("<HH", page, PAGE_HEADER_SIZE + 8 * n + 4)
            if kind == "overflow index":
                step = Step(0, PAGE_HEADER_SIZE + n * (8 * self.copies + 12), "overflow page")
            elif kind == "index":
                step = Step(0, at + size, "index" if page[24] > 1 else "leaf")
            elif self.spills and page[at + size : at + size + 2] == b"\xfe\xff":
                tops = 1  # of a page of 256 bytes a cell has room for no more
                pages = -(-int.from_bytes(page[at + size + 2 : at + size + 10], "little") // PAGE)
                step = Step(0, at + size + 18, "overflow index" if pages > tops else "overflow page")
            else:
                continue
            step.address = int.from_bytes(page[step.at : step.at + 8], "little")
            if kind == "overflow index" and page[24] > 1:
                step.kind = "overflow index"
            self.walk([*path, step])

    @property
    def spills(self) -> bool:
        value_size = self.shape.fields.get("value_size", -4)
        return not self.shape.fields.get("duplicates") and (value_size in (-4, -2, -1) or value_size == 300)


def sealed_scene(shape: Shape, seed: int) -> Scene:
    world = World(seed)
    world.device.size_most = 1 << 24  # a copy that is repaired is written wherever its reference says
    tree = new_tree(world, **shape.fields)
    rng = random.Random(seed)
    for n in range(RECORDS):
        tree.put(shape.key(n), shape.value(rng, n))
    root = world.seal(tree)
    world.write()
    scene = Scene(shape, world, root, tree.descriptor.copies, bytes(world.device.image))
    at = len(root) - 8 * scene.copies - 20
    scene.walk([Step(int.from_bytes(root[at : at + 8], "little"), at, "index")])
    reached = {address + n for address, count, _ in tree.pages() for n in range(count)}
    assert {path[-1].address for path in scene.paths} <= reached
    assert len(scene.paths) * scene.copies == len(reached), "every page can be forged"
    return scene


def spoil(page: bytearray, rng: random.Random) -> None:
    """Change what the checksum covers."""
    for _ in range(rng.choice((1, 1, 1, 2, 4, 30))):
        first, end = rng.choice(((24, PAGE_HEADER_SIZE), (24, 100), (4, PAGE), (200, PAGE)))
        at = rng.randrange(first, end)
        if rng.random() < 0.1:
            source = rng.randrange(24, PAGE - 16)
            page[at : at + 8] = page[source : source + len(page[at : at + 8])]
        else:
            page[at] = rng.choice((0, 1, 2, 0x7F, 0xFE, 0xFF, rng.randrange(256)))


def records_below(scene: Scene, page: bytes) -> int:
    """What the reference to a page counts: the records below, and in its highest bit whether one has spilled. Of what is no page,
    anything."""
    count, total, marks = int.from_bytes(page[26:28], "little"), 0, 0
    for n in range(min(count, (PAGE - PAGE_HEADER_SIZE) // 8)):
        behind = sum(struct.unpack_from("<HH", page, PAGE_HEADER_SIZE + 8 * n + 4))
        if page[24] == 0:
            total += 1
            marks |= scene.spills and page[behind : behind + 2] in (b"\xfe\xff", b"\xff\xff")
        else:
            below = int.from_bytes(page[behind + 8 * scene.copies + 12 : behind + 8 * scene.copies + 20], "little")
            total += below & (1 << 63) - 1
            marks |= below >> 63
    return (total | marks << 63) & (1 << 64) - 1


def forge(scene: Scene, path: list[Step], rng: random.Random) -> bytes:
    """A hostile page, and seldom another above it, with the checksums (and, mostly, the counts) of all above made right; the root
    record."""
    image = scene.world.device.image
    image[:] = scene.image
    root = bytearray(scene.root)
    crc = records = b""
    for number in range(len(path) - 1, -1, -1):
        step = path[number]
        page = bytearray(scene.page(step.address))
        if crc:
            at = path[number + 1].at + 8 * scene.copies
            page[at : at + 4] = crc
            if records and "overflow" not in path[number + 1].kind:
                page[at + 12 : at + 20] = records
        if not crc or rng.random() < 0.05:
            spoil(page, rng)
        if rng.random() < 0.9:
            records = records_below(scene, page).to_bytes(8, "little")
        raw = step.kind == "overflow page"
        crc = reference.crc32c(bytes(page) if raw else bytes(page[4:])).to_bytes(4, "little")
        if not raw:
            page[0:4] = crc
        image[step.address * PAGE : step.address * PAGE + PAGE] = page
    at = path[0].at + 8 * scene.copies
    root[at : at + 4] = crc
    if records:
        root[at + 12 : at + 20] = records
        root[24:32] = (int.from_bytes(records, "little") & (1 << 63) - 1).to_bytes(8, "little")
    return bytes(root)


def root_of_its_own(scene: Scene, path: list[Step], rng: random.Random) -> bytes:
    """A hostile page whose own words about level and generation the root record repeats."""
    root = bytearray(forge(scene, [replace(path[-1], at=path[0].at)], rng))
    page = scene.world.device.image[path[-1].address * PAGE : (path[-1].address + 1) * PAGE]
    at = path[0].at
    root[3] = page[24]
    root[at : at + 8 * scene.copies] = path[-1].address.to_bytes(8, "little") * scene.copies
    root[at + 8 * scene.copies : at + 8 * scene.copies + 12] = page[0:4] + page[16:24]
    return bytes(root)


def moved(tree: Tree, key: bytes) -> None:
    with tree.cursor() as cursor:
        cursor.seek(key)
        for step in (cursor.next, cursor.prev, cursor.next):
            for _ in range(40):
                step()


def operations(scene: Scene, tree: Tree, rng: random.Random) -> list[Callable[[], object]]:
    """Everything that touches a page's insides, once each."""
    shape, allocate = scene.shape, scene.world.allocate

    def key() -> bytes:
        return shape.key(rng.randrange(RECORDS + 5))

    def records(count: int) -> list[tuple[bytes, bytes]]:
        return [(key(), shape.value(rng, rng.randrange(RECORDS))) for _ in range(count)]

    keys = [shape.key(n) for n in range(RECORDS + 5)]
    return [
        lambda: list(tree.items()),
        lambda: list(tree.items(reverse=True)),
        lambda: list(tree.keys(key(), key())),
        lambda: [tree.get(one) for one in keys],
        lambda: tree.get_many(keys),
        lambda: [one in tree for one in keys],
        lambda: len(tree),
        lambda: (tree.count(), tree.count(key(), key())),
        lambda: (tree.first(), tree.last(), tree.seek(key()), tree.seek(key(), reverse=True)),
        lambda: moved(tree, key()),
        lambda: list(tree.prefix(key()[:2])),
        lambda: tree.get_all(key()),
        lambda: tree.read(shape.key(13 * rng.randrange(4)), rng.randrange(3000), rng.randrange(2000)),
        lambda: list(tree.union(tree)),
        tree.check,
        lambda: list(tree.pages()),
        lambda: [tree.put(one, value) for one, value in records(30)],
        lambda: tree.update(records(60)),
        lambda: tree.write(shape.key(13 * rng.randrange(4)), rng.randrange(3000), b"w" * rng.randrange(600)),
        lambda: [tree.delete(key()) for _ in range(30)],
        lambda: tree.delete_many([key() for _ in range(9)]),
        lambda: tree.delete_range(key(), key()),
        lambda: tree.clone().clear(),
        lambda: tree.clone().put(key(), shape.value(rng, 13)),
        lambda: tree.seal_leaves(allocate, 0, 5),
        lambda: tree.seal(allocate),
        lambda: scene.world.pager.write_sealed(),
        tree.clear,
    ]


def exercise(scene: Scene, tree: Tree, rng: random.Random) -> int:
    """Operations in any order; how many were refused. A typed error is the only failure there is."""
    refused = 0
    acts = operations(scene, tree, rng)
    rng.shuffle(acts)
    for act in acts[:10]:
        try:
            act()
        except (MdstoreError, MemoryError):
            refused += 1
    return refused


def fuzz(seed: int, rounds: int) -> Counter[str]:
    """Use trees of which one page is hostile; how many refused something, by what that page was."""
    rng = random.Random(seed)
    scenes = [sealed_scene(shape, seed) for shape in SHAPES]
    refused: Counter[str] = Counter()
    for _ in range(rounds):
        scene = rng.choice(scenes)
        world = scene.world
        world.pager.refs = Tree(world.pager, REFS_DESCRIPTOR, 1)
        kind = rng.choice(("index", "leaf", "leaf", "overflow index", "overflow page"))
        paths = [path for path in scene.paths if path[-1].kind == kind] or scene.paths
        path = rng.choice(paths)
        root = (root_of_its_own if rng.random() < 0.3 else forge)(scene, path, rng)
        world.next_page = len(scene.image) // PAGE
        try:
            tree = Tree.open(world.pager, root)
        except MdstoreError:
            refused["root record"] += 1
            continue
        refused[path[-1].kind] += exercise(scene, tree, rng) > 0
        world.pager.take_freed()
        while world.pager.sealed_pages:
            world.pager.write_sealed()
    return refused


@pytest.mark.timeout(0 if "MDSTORE_FUZZ_ROUNDS" in os.environ else 300)  # who asks for more rounds waits for them
def test_hostile_pages_with_right_checksums_are_refused_and_never_crash() -> None:
    seed = int(os.environ.get("MDSTORE_FUZZ_SEED", "20081"))
    rounds = int(os.environ.get("MDSTORE_FUZZ_ROUNDS", "5000"))
    print("seed", seed)
    bound_memory(1 << 23)
    try:
        refused = fuzz(seed, rounds)
    finally:
        large = bound_memory(-1)
    assert large == 0, "no page, whatever it states, makes the kernel ask for more than there is"
    assert sum(refused.values()) > rounds // 3
    assert min(refused[kind] for kind in ("index", "leaf", "overflow index", "overflow page")) > rounds // 100
