"""A change that fails, at whatever allocation or read, has changed nothing or is done whole, and no page is lost or freed twice.

Each case runs one operation on a fresh world, again and again, with a failure one step later each time, until it gets by without.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from mdstore.btree import REFS_DESCRIPTOR, Descriptor, PackedPairs, Tree
from mdstore.btree._kernel import fail_memory
from mdstore.errors import CorruptionError, DeviceFailed, InvalidRequest, StoreClosed
from tests.model.btree_world import MemoryPages, World, new_tree

Contents = dict[bytes, bytes]


class FailingPages(MemoryPages):
    """Refuses, or damages, one read, the one after `reads_left` others; `lasting`: and any other of that place."""

    def __init__(self) -> None:
        super().__init__()
        self.reads_left = -1
        self.bad = -1
        self.lasting = False
        self.damage = False
        self.failed = False

    def read(self, offset: int, length: int) -> bytes:
        data = super().read(offset, length)
        if offset != self.bad:
            if self.reads_left < 0:
                return data
            self.reads_left -= 1
            if self.reads_left >= 0:
                return data
        self.failed = True
        self.bad = offset if self.lasting else -1
        if self.damage:
            return data[:40] + bytes([data[40] ^ 1]) + data[41:]
        raise DeviceFailed("read", str(offset), "told to fail")


class Scene:
    """A tree on the device with spilled values, nothing of it in memory; perhaps shared with a clone and held by a snapshot."""

    def __init__(self, *, shared: bool, dirty: bool) -> None:
        self.world = World(5)
        self.device = FailingPages()
        self.world.device = self.device
        pager = self.world.pager = type(self.world.pager)(self.device, page_size=256)
        pager.generation = 1
        self.refs = pager.refs = Tree(pager, REFS_DESCRIPTOR, 1)
        self.tree = Tree(pager, Descriptor(copies=1), 2)
        self.model: Contents = {b"%04d" % n: b"v%d" % n * (1 + n % 7) for n in range(0, 240, 2)}
        for n in range(0, 240, 30):
            self.model[b"%04d" % n] = b"%d." % n * 2000
        self.tree.update(self.model)
        self.clones: list[Tree] = []
        self.clone_models: list[Contents] = []
        self.seal_all()
        if shared:
            self.clones.append(self.tree.clone())
            self.clones[0].put(b"0007", b"the clone's own")
            self.clone_models.append(self.model | {b"0007": b"the clone's own"})
        self.seal_all(reopen=True)
        self.sealed_model = dict(self.model)
        if dirty:
            for n in range(60, 100):
                self.model[b"%04d" % n] = b"dirty" * (n % 9)
                self.tree.put(b"%04d" % n, self.model[b"%04d" % n])
            self.model[b"0120"] = b"dirty and long" * 300
            self.tree.put(b"0120", self.model[b"0120"])
            self.model[b"0210"] = self.model[b"0210"][:1000] + b"patched" + self.model[b"0210"][1007:]
            self.tree.write(b"0210", 1000, b"patched")

    def seal_all(self, reopen: bool = False) -> None:
        roots = [self.world.seal(tree) for tree in (self.tree, *self.clones)]
        refs = self.refs.seal(self.world.allocate)
        self.world.write()
        self.world.drain_freed()
        if reopen:
            pager = self.world.pager
            self.refs = pager.refs = Tree.open(pager, refs)
            self.tree, *self.clones = (Tree.open(pager, root) for root in roots)

    def sound(self, expected: Contents) -> None:
        """The tree holds what it should, and everything is as whole as if nothing had failed."""
        assert dict(self.tree.items()) == expected
        assert len(self.tree) == len(expected)
        self.clones_sound()
        try:
            self.tree.put(b"afterwards", b"is taken")
        except StoreClosed:
            self.stopped(expected)
            return
        self.seal_all()
        trees = (self.refs, self.tree, *self.clones)
        assert [problem for tree in trees for problem in tree.check()] == []
        assert self.world.reached(*trees) == self.world.held
        self.tree.clear()
        self.seal_all()
        assert self.world.reached(self.refs, *self.clones) | {*self.world.reached(self.tree)} == self.world.held
        self.clones_sound()

    def stopped(self, expected: Contents) -> None:
        """A count of shared pages could be neither made nor taken back: the tree can be read, and opened as it was sealed."""
        for refused in (lambda: self.tree.delete_range(), lambda: self.tree.seal(self.world.allocate), self.tree.clone,
                        lambda: self.tree.update({b"k": b"v"}), lambda: self.tree.write(b"0180", 0, b"x")):  # fmt: skip
            with pytest.raises(StoreClosed):
                refused()
        assert dict(self.tree.items()) == expected
        self.world.pager.refs = Tree.open(self.world.pager, self.refs.root())
        again = Tree.open(self.world.pager, self.tree.root())
        assert dict(again.items()) == self.sealed_model
        again.put(b"k", b"v")
        assert again.check() == []

    def clones_sound(self) -> None:
        for clone, model in zip(self.clones, self.clone_models, strict=True):
            assert dict(clone.items()) == model


def put_short(scene: Scene) -> Contents:
    scene.tree.put(b"0031", b"new")
    return scene.model | {b"0031": b"new"}


def put_over_spilled(scene: Scene) -> Contents:
    scene.tree.put(b"0090", b"short now")
    return scene.model | {b"0090": b"short now"}


def put_spilled(scene: Scene) -> Contents:
    value = b"long" * 999
    scene.tree.put(b"0061", value)
    return scene.model | {b"0061": value}


def put_wider(scene: Scene) -> Contents:
    """In the place of a short value, where the leaf has no room for it."""
    scene.tree.put(b"0064", b"w" * 54)
    return scene.model | {b"0064": b"w" * 54}


def delete_one(scene: Scene) -> Contents:
    scene.tree.delete(b"0090")
    return {key: value for key, value in scene.model.items() if key != b"0090"}


def delete_middle(scene: Scene) -> Contents:
    scene.tree.delete_range(b"0033", b"0201")
    return {key: value for key, value in scene.model.items() if not b"0033" <= key < b"0201"}


def delete_head(scene: Scene) -> Contents:
    scene.tree.delete_range(None, b"0151")
    return {key: value for key, value in scene.model.items() if key >= b"0151"}


def clear(scene: Scene) -> Contents:
    scene.tree.clear()
    return {}


def write_inside(scene: Scene) -> Contents:
    old = scene.model[b"0180"]
    scene.tree.write(b"0180", 300, b"#" * 700)
    return scene.model | {b"0180": old[:300] + b"#" * 700 + old[1000:]}


def write_behind(scene: Scene) -> Contents:
    """Past the end, so that the value gets another level of index pages, and its cell another size."""
    old = scene.model[b"0180"]
    scene.tree.write(b"0180", len(old) + 500, b"#" * 26000)
    return scene.model | {b"0180": old + bytes(500) + b"#" * 26000}


def write_again(scene: Scene) -> Contents:
    """Into a value of which a part is in memory, and a view's too."""
    old = scene.model[b"0210"]
    with scene.tree.snapshot():
        scene.tree.write(b"0210", 900, b"@" * 2500)
    return scene.model | {b"0210": old[:900] + b"@" * 2500 + old[3400:]}


def delete_patched(scene: Scene) -> Contents:
    scene.tree.delete(b"0210")
    return {key: value for key, value in scene.model.items() if key != b"0210"}


def seal(scene: Scene) -> Contents:
    scene.world.seal(scene.tree)
    return scene.model


def seal_some(scene: Scene) -> Contents:
    scene.tree.seal_leaves(scene.world.allocate, 0, 7)
    return scene.model


def clone(scene: Scene) -> Contents:
    scene.clones.append(scene.tree.clone())
    scene.clone_models.append(dict(scene.model))
    return scene.model


OPERATIONS = (put_short, put_over_spilled, put_spilled, put_wider, delete_one, delete_middle, delete_head, clear, write_inside,
              write_behind, write_again, delete_patched, seal, seal_some, clone)  # fmt: skip
IN_MEMORY = {seal, seal_some, clone}
DIRTY = {delete_middle, write_again, delete_patched}


def attempts(operation: Callable[[Scene], Contents], arm: Callable[[Scene, int], None], disarm: Callable[[Scene], bool],
             shared: bool, dirty: bool) -> Iterator[tuple[Scene, Contents, BaseException | None]]:  # fmt: skip
    """Run it with the failure at step 0, 1, 2, ... until none happens."""
    for step in range(2000):
        scene = Scene(shared=shared, dirty=dirty)
        before = after = dict(scene.model)
        error: BaseException | None = None
        arm(scene, step)
        try:
            after = operation(scene)
        except (MemoryError, DeviceFailed, CorruptionError) as raised:
            error = raised
        happened = disarm(scene)
        if error is None:
            scene.model = after
            scene.sound(after)
        else:
            scene.sound(before)
        yield scene, after, error
        if not happened:
            assert error is None
            return
    raise AssertionError("it never got by without a failure")


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
@pytest.mark.parametrize("failures", [1, 10**9], ids=["once", "from then on"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_no_allocation_that_fails_leaves_anything_half_done(
    operation: Callable[[Scene], Contents], failures: int, shared: bool
) -> None:
    errors = 0
    for _scene, _after, error in attempts_with_memory(operation, failures, shared):
        errors += error is not None
    assert errors > 0


def attempts_with_memory(
    operation: Callable[[Scene], Contents], failures: int, shared: bool
) -> Iterator[tuple[Scene, Contents, BaseException | None]]:
    def arm(_scene: Scene, step: int) -> None:
        fail_memory(step, failures)

    return attempts(
        operation, arm, lambda _scene: fail_memory(-1) > 0, shared, dirty=operation in IN_MEMORY | DIRTY
    )


@pytest.mark.parametrize("shared", [False, True], ids=["alone", "shared"])
@pytest.mark.parametrize("lasting", [True, False], ids=["lasting", "once"])
@pytest.mark.parametrize("damage", [False, True], ids=["refused", "damaged"])
@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one not in IN_MEMORY | {delete_patched}])
def test_no_read_that_fails_leaves_anything_half_done(
    operation: Callable[[Scene], Contents], damage: bool, lasting: bool, shared: bool
) -> None:
    """What was to be read ahead of a lock and could not be is read again under it: one that fails once does no harm there."""

    def arm(scene: Scene, step: int) -> None:
        scene.device.damage = damage
        scene.device.lasting = lasting
        scene.device.reads_left = step
        scene.device.bad = -1

    def disarm(scene: Scene) -> bool:
        scene.device.reads_left = scene.device.bad = -1
        return scene.device.failed

    errors = 0
    for _scene, _after, error in attempts(operation, arm, disarm, shared, dirty=operation == write_again):
        errors += error is not None
    assert errors > 0 or not lasting


def test_a_seal_whose_allocator_fails_keeps_no_page() -> None:
    scene = Scene(shared=False, dirty=True)

    def refuse(pages: int) -> list[tuple[int, int]]:
        raise InvalidRequest("no")

    with pytest.raises(InvalidRequest):
        scene.tree.seal(refuse)
    scene.sound(scene.model)


# -- what a change gives up, where memory fails behind its last allocation that may ------------------------------------
class Counted:
    """Trees that share pages, `freed` of them given up: the next change counts shared pages, and frees some of the counts."""

    def __init__(self, freed: int) -> None:
        self.world = world = World(3)
        world.pager.refs = Tree(world.pager, REFS_DESCRIPTOR, 1)
        trees = [new_tree(world, 2), new_tree(world, 3)]
        for tree in trees:
            tree.update((b"%04d" % n, b"x" * 40) for n in range(400))
            world.seal(tree)
        trees.append(trees[0].clone())
        for n in range(0, 400, 9):
            trees[0].put(b"%04d" % n, b"z" * 40)
        roots = [world.seal(tree) for tree in (*trees, world.pager.refs)]
        world.write()
        world.drain_freed()
        self.trees = [Tree.open(world.pager, root) for root in roots]
        world.pager.refs = self.trees[3]
        for n in range(freed):
            self.trees[1].put(b"%04d" % (5 * n), b"q" * 40)

    def lost(self) -> set[int]:
        for tree in (*self.trees, self.trees[3]):
            tree.seal(self.world.allocate)
        self.world.write()
        self.world.drain_freed()
        return self.world.held - self.world.reached(*self.trees)


@pytest.mark.parametrize("freed", [9, 13])
def test_no_freed_page_is_forgotten_where_memory_fails_while_shared_pages_are_counted(freed: int) -> None:
    """The counting frees pages too, and took the room that the change had for its own, which were never free again."""
    for step in range(300):
        scene = Counted(freed)
        fail_memory(step, 1)
        with contextlib.suppress(MemoryError):
            scene.trees[0].delete_range(b"0050", b"0350")
        failed = fail_memory(-1)
        assert scene.lost() == set(), f"allocation {step}"
        if not failed:
            return
    raise AssertionError("it never got by without a failure")


def test_a_tree_that_is_stopped_takes_no_change_in_its_place_either() -> None:
    """Where its pages could be changed as they lie no one asked whether it was; no seal would ever have written those changes."""
    for step in range(300):
        scene = Counted(9)
        tree = scene.trees[0]
        tree.put(b"0000", b"dirty")
        fail_memory(step, 10**9)
        with contextlib.suppress(MemoryError, StoreClosed):
            tree.delete_range(b"0050", b"0250")
        fail_memory(-1)
        try:
            tree.delete_range(b"0050", b"0051")
        except StoreClosed:
            break
    else:
        raise AssertionError("it was never stopped")
    before = dict(tree.items())
    for change in (lambda: tree.put(b"0000", b"other"), lambda: tree.update({b"0000": b"other"}), lambda: tree.delete(b"0000"),
                   lambda: tree.delete_many([b"0000"]), lambda: tree.update(PackedPairs([(b"0000", b"other")]))):  # fmt: skip
        with pytest.raises(StoreClosed):
            change()
    assert dict(tree.items()) == before


def test_room_for_freed_pages_is_kept_though_what_was_freed_is_taken_meanwhile() -> None:
    """An owner takes what was freed while a seal asks for addresses: what the seal does not need comes back without memory."""
    world = World(1)
    tree = new_tree(world)
    tree.update((b"%04d" % n, b"x" * 40) for n in range(40))
    given: list[int] = []

    def allocate(pages: int) -> list[tuple[int, int]]:
        runs = world.allocate(pages)
        given.append(pages)
        world.drain_freed()
        if len(given) == 1:
            tree.clear()  # so that they are too many
            fail_memory(0, 10**9)
        return runs

    with contextlib.suppress(MemoryError):
        tree.seal(allocate)
    fail_memory(-1)
    world.drain_freed()
    assert given == [given[0]]
    assert world.held == world.reached(tree)


def test_an_embedded_tree_whose_put_failed_is_sealed_as_what_it_is() -> None:
    """Its root counted as dirty for ever, since nothing said that the tree was."""
    world = World(1)
    tree = new_tree(world, embed_limit=150)
    tree.put(b"a", b"x" * 20)
    tree = Tree.open(world.pager, world.seal(tree))
    steps = 0
    while True:
        fail_memory(steps, 1)
        try:
            tree.put(b"b", b"y" * 70)
        except MemoryError:
            steps += 1
        if fail_memory(-1) == 0:
            break
        assert tree.is_dirty == (world.pager.dirty_bytes > 0)
        world.seal(tree)
        assert world.pager.dirty_bytes == 0
        assert list(tree.items()) == [(b"a", b"x" * 20)]
    assert steps > 0
