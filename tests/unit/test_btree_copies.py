"""Damaged copies are written anew from a good one, and nothing else is: a forged reference, under a right checksum, says where
a copy should lie, and had whatever lay there overwritten."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mdstore.btree import Descriptor, Pager, Tree
from mdstore.errors import CorruptionError, DeviceFailed
from tests.model.btree_forger import DATA, INDEX, LEAF, OVERFLOW, PAGE, SPILLS, Forger
from tests.model.btree_world import MemoryPages, new_tree

FIRST = 20  # blocks in front of the pages: a superblock, and a log
KINDS = [INDEX, LEAF, SPILLS, OVERFLOW, DATA]
ABOVE = {LEAF: INDEX, SPILLS: INDEX, OVERFLOW: SPILLS, DATA: OVERFLOW}


class Scene(Forger):
    """Two copies of a tree with a long value; another tree, and earlier pages of this one, on the same device."""

    def __init__(self) -> None:
        super().__init__(copies=2)
        world = self.world
        world.next_page = FIRST
        world.device.image.extend(b"owner's " * (FIRST * PAGE // 8))
        self.fill(b"old")
        self.seal()
        self.earlier = {kind: self.path(kind)[-1][0] for kind in KINDS}
        self.other = new_tree(world, 9)
        self.other.update((b"%04d" % n, b"other" * 3) for n in range(40))
        self.other.put(b"0020", b"O" * PAGE * 45)
        world.seal(self.other)
        world.write()
        self.fill(b"new")
        self.seal()
        self.bytes_end = len(world.device.image)
        world.pager.page_bounds = FIRST, self.bytes_end // PAGE

    def fill(self, text: bytes) -> None:
        self.tree.update((b"%04d" % n, text * 5) for n in range(40))
        self.tree.put(b"0020", text[:1] * PAGE * 45)

    def others_page(self, level: int) -> int:
        return next(address for address, _, at in self.other.pages() if at == level)

    def lead(self, kind: str, address: int) -> int:
        """Have the reference to a page say that its first copy lies elsewhere; where it lies."""
        right, at = self.path(kind)[-1]
        to = address.to_bytes(8, "little")
        if kind == INDEX:
            self.root[at : at + 8] = to
        else:
            self.forge(ABOVE[kind], lambda page: page.__setitem__(slice(at, at + 8), to))
        return right

    def cold(self) -> Tree:
        """The tree in another pager, as its owner would open it."""
        self.pager = Pager(self.world.device, page_size=PAGE)
        self.pager.generation = self.world.pager.generation
        self.pager.page_bounds = self.world.pager.page_bounds
        return Tree.open(self.pager, bytes(self.root))

    def outcome(self) -> tuple[int, int]:
        """How many were written anew, and how many left."""
        counters = self.pager.counters()
        return counters["copies_repaired"], counters["copies_left"]


ELSEWHERE: dict[str, Callable[[Scene], int]] = {
    "a leaf of another tree": lambda s: s.others_page(0),
    "an index page of another tree": lambda s: s.others_page(1),
    "a leaf of this tree": lambda s: s.path(LEAF)[-1][0] + 1,
    "the root page": lambda s: s.path(INDEX)[-1][0],
    "an overflow index page": lambda s: s.path(OVERFLOW)[-1][0],
    "the superblock": lambda s: 0,
    "the log": lambda s: FIRST - 1,
    "the first block behind the pages": lambda s: s.bytes_end // PAGE,
    "far behind them": lambda s: (1 << 48) - 1,
    "no address": lambda s: (1 << 64) - 1,
}


@pytest.mark.parametrize("place", ELSEWHERE)
@pytest.mark.parametrize("kind", KINDS)
def test_a_forged_reference_has_nothing_overwritten(kind: str, place: str) -> None:
    scene = Scene()
    address = ELSEWHERE[place](scene)
    right = scene.lead(kind, address)
    if address == right:
        return
    scene.world.device.image.extend(b"behind  " * PAGE)
    before = bytes(scene.world.device.image)
    tree = scene.cold()
    assert list(tree.items()) == scene.expected
    assert bytes(scene.world.device.image) == before
    repaired, left = scene.outcome()
    assert (repaired, left > 0) == (0, True)
    assert tree.get(b"0020") == scene.expected[20][1], "nothing else comes of it"


def junk(scene: Scene, kind: str, address: int) -> None:
    scene.put(address, bytearray(b"junk" * (PAGE // 4)))


def one_bit(scene: Scene, kind: str, address: int) -> None:
    page = scene.page(address)
    page[100] ^= 1
    scene.put(address, page)


def lost_write(scene: Scene, kind: str, address: int) -> None:
    """The place still holds what it held before: an earlier page of the same tree and level."""
    scene.put(address, scene.page(scene.earlier[kind]))


def zeros(scene: Scene, kind: str, address: int) -> None:
    scene.put(address, bytearray(PAGE))


DAMAGE = {"zeros": zeros, "junk": junk, "one bit": one_bit, "a lost write": lost_write}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_copy_is_written_anew(kind: str, damage: str) -> None:
    scene = Scene()
    before = bytes(scene.world.device.image)
    DAMAGE[damage](scene, kind, scene.path(kind)[-1][0])
    assert bytes(scene.world.device.image) != before
    assert list(scene.cold().items()) == scene.expected
    assert bytes(scene.world.device.image) == before
    assert scene.outcome() == (1, 0)


class BadSector(MemoryPages):
    """One page does not read until it is written; with `dead` it cannot be written either."""

    bad = -1
    dead = False

    def read(self, offset: int, length: int) -> bytes:
        if offset <= self.bad < offset + length:
            raise DeviceFailed("read", str(offset), "told to fail")
        return super().read(offset, length)

    def write(self, offset: int, buffers: object) -> None:
        if self.dead:
            raise DeviceFailed("write", str(offset), "told to fail")
        self.bad = -1
        super().write(offset, buffers)  # type: ignore[arg-type]


@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_that_does_not_read_is_written_anew(kind: str, dead: bool) -> None:
    scene = Scene()
    device = BadSector()
    device.image = scene.world.device.image
    scene.world.device = device
    device.bad = scene.path(kind)[-1][0] * PAGE
    device.dead = dead
    tree = scene.cold()
    assert list(tree.items()) == scene.expected
    assert (device.bad == -1) is not dead
    repaired, left = scene.outcome()
    assert (repaired, left > 0) == (0 if dead else 1, dead)


def test_what_waits_to_be_written_is_not_written_over() -> None:
    """The place of a page that is sealed holds whatever it held; a copy repaired there could come behind the page itself."""
    scene = Scene()
    scene.cold()
    waiting = Tree(scene.pager, Descriptor(), 11)
    waiting.update((b"%04d" % n, b"waits") for n in range(40))
    scene.world.next_page = scene.bytes_end // PAGE
    scene.pager.page_bounds = FIRST, 1 << 20
    waiting.seal(scene.world.allocate)
    scene.world.device.image.extend(bytes(PAGE * 64))
    place = next(address for address, _, _ in waiting.pages())
    scene.lead(LEAF, place)
    tree = Tree.open(scene.pager, bytes(scene.root))
    assert list(tree.items()) == scene.expected
    assert not any(scene.page(place))
    assert scene.outcome() == (0, 1)


@pytest.mark.parametrize("address", [FIRST - 1, 0])
def test_what_lies_before_the_pages_is_not_given_up(address: int) -> None:
    """Leaves are given up unread: whatever the reference said was the owner's to give out again."""
    scene = Scene()
    scene.lead(LEAF, address)
    for drop in (Tree.clear, lambda tree: tree.delete_range(b"0001", b"0039"), lambda tree: list(tree.pages())):
        with pytest.raises(CorruptionError) as caught:
            drop(scene.cold())
        assert caught.value.where == f"address {address}, tree 7, level 0 (page address)"
        assert (caught.value.expected, caught.value.found) == (f"at least {FIRST:#x}", hex(address))
        assert all(first >= FIRST for first, _, _ in scene.pager.take_freed())


def test_what_lies_behind_the_pages_is_not_given_up() -> None:
    scene = Scene()
    end = scene.bytes_end // PAGE
    scene.world.device.image.extend(bytes(PAGE))
    scene.lead(LEAF, end)
    with pytest.raises(CorruptionError) as caught:
        scene.cold().clear()
    assert caught.value.where == f"address {end}, tree 7, level 0 (page address)"
    assert (caught.value.expected, caught.value.found) == (f"below {end:#x}", hex(end))
