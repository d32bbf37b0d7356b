"""Object revisions and moved objects as the second reader sees them: keys, replay of the log, damage only it would notice."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.engines.mem import MemStore
from mdstore.errors import TransactionError
from mdstore.store import Store, Transaction
from mdstore.store.onode import object_key, split_key
from mdstore.store.revisions import revision_key, split_revision_key
from mdstore.tools.reader import revisions as reader
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.overlay import Overlay
from mdstore.tools.reader.problems import Damage
from mdstore.tools.reader.ring import Ring
from mdstore.tools.reader.scan import Scan
from mdstore.tools.reader.store import StoreReader
from mdstore.tools.reader.storelog import decode_transaction
from tests.unit.reader_images import BLOCK, check, newest

NAMES = (b"a", b"a\0", b"b" * 8, b"b" * 9, b"\0" * 17)


@pytest.mark.parametrize("name", [*NAMES, bytes(range(256)), b"\xff" * 512])
def test_both_readers_agree_on_keys(name: bytes) -> None:
    key = revision_key(5, name, 300)
    assert reader.decode_revision_key(key) == split_revision_key(key) == (5, name, 300)
    assert reader.collection_of(key) == (5, True)
    assert reader.collection_of(object_key(5, name)) == (5, False)
    low, high = reader.revision_bounds(5, name)
    assert low <= revision_key(5, name, 0) < revision_key(5, name, (1 << 64) - 1) < high


def test_keys_keep_the_order_of_names_and_revisions() -> None:
    random = Random(1)
    names = {bytes(random.choices(b"\0\1a\xff", k=random.randrange(1, 20))) for _ in range(300)}
    pairs = sorted((name, rev) for name in names for rev in (0, 1, 256, (1 << 64) - 1))
    keys = [revision_key(9, *pair) for pair in pairs]
    assert keys == sorted(keys)
    assert not any(later.startswith(key[:-8]) for key, later in zip(keys[3::4], keys[4::4]))


@pytest.mark.parametrize("damaged", ["no name", "a gap in the filling", "a count too high", "cut short"])
def test_a_key_that_no_name_gives_is_damage(damaged: str) -> None:
    groups = {
        "no name": bytes(9), "a gap in the filling": b"a\0\0b\0\0\0\0\1", "a count too high": b"a" * 8 + b"\x09",
        "cut short": b"a" * 8 + b"\x08",
    }[damaged]  # fmt: skip
    with pytest.raises(Damage):
        reader.decode_revision_key((1 << 63 | 2).to_bytes(8, "big") + groups + bytes(8))


def step(transaction: Transaction, random: Random) -> Transaction:
    """One operation that keeps, trims or moves revisions."""
    name, other, where, rev = random.choice(NAMES), random.choice(NAMES), random.choice((b"c", b"d")), random.randrange(12)
    kind = random.randrange(9)
    if kind == 0:
        return transaction.write(where, name, random.randrange(900), random.randbytes(random.randrange(1500)))
    if kind == 1:
        return transaction.map_set(where, name, {random.randbytes(2): random.randbytes(40)})
    if kind == 2:
        return transaction.touch(where, name).remove(where, name)
    if kind == 3:
        return transaction.touch(where, name).clone(where, name, other + b"-clone")
    if kind == 4:
        return transaction.rename(where, name, b"d", other)
    if kind == 7:
        return transaction.split(where, 1, random.randrange(2), random.choice((b"c", b"d")))
    if kind == 8:
        return transaction.merge(b"d", b"c").create_collection(b"d")
    return transaction.trim_revisions(where, name, rev) if kind == 5 else transaction.at_revision(rev)


def mixed(store: Store, model: MemStore, random: Random, count: int) -> None:
    """Transactions with revisions; those that are refused are refused by both."""
    for _ in range(count):
        transaction = Transaction(rev=random.randrange(12))
        for _ in range(random.randrange(1, 4)):
            step(transaction, random)
        outcomes: list[object] = []
        for target in (store, model):
            try:
                target.apply(transaction)
                outcomes.append(None)
            except TransactionError as error:
                outcomes.append((error.index, type(error.cause)))
        assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("seed", range(6))
def test_the_log_replays_to_the_same_revisions(seed: int, tmp_path: Path) -> None:
    random = Random(seed)
    device, model = MemoryDevice(3 << 20), MemStore()
    store = Store.create(device, block_size=BLOCK, log_bytes=512 << 10, background=False)
    for target in (store, model):
        target.apply(Transaction().create_collection("c").create_collection("d"))
    mixed(store, model, random, 60)
    store.checkpoint()
    mixed(store, model, random, 60)
    image = device.image()
    assert check(image, tmp_path) == []
    overlay = overlay_of(image, tmp_path)
    compared = 0
    for collection in (b"c", b"d"):
        for name in {*model.list_revised(collection), *NAMES}:
            found = overlay.revisions(collection, name)
            wanted = model.revisions(collection, name)
            assert [(rev, state.created_rev) for rev, state in found.items()] == wanted
            for rev, state in found.items():
                if rev > 1:
                    size = model.stat(collection, name, rev=rev - 1).size
                    assert state.data.read(overlay.base, 0, size + 1) == model.read(collection, name, rev=rev - 1)
                    assert list(state.map.items(overlay.base)) == list(model.map_items(collection, name, rev=rev - 1))
                    compared += 1
    assert compared > 5


def overlay_of(image: bytes, tmp_path: Path) -> Overlay:
    path = tmp_path / "image"
    path.write_bytes(image)
    opened, superblock = Image(str(path)), newest(image)
    overlay = Overlay(StoreReader(opened, superblock))
    ring = Ring(opened, superblock)
    for entry in Scan(ring, ring.read_head(lambda _: None), superblock.log_position).entries():
        overlay.apply(decode_transaction(entry.payload))
    return overlay


@pytest.mark.parametrize("which", ["of the object", "of the revision"])
def test_revisions_that_do_not_fit_are_found(which: str, tmp_path: Path) -> None:
    device = MemoryDevice(2 << 20)
    store = Store.create(device, block_size=BLOCK, log_bytes=64 << 10, background=False)
    store.apply(Transaction().create_collection("c").write("c", "o", 0, b"x"))
    for rev in (3, 6):
        store.apply(Transaction(rev=rev).write("c", "o", 0, b"y"))
    objects = store.tables.objects
    number = split_key(next(iter(objects.cached)))[0] & ~(1 << 63)
    key = object_key(number, b"o") if which == "of the object" else revision_key(number, b"o", 6)
    onode = objects.at(key)
    assert onode is not None
    onode.created_rev = 2
    objects.mark_dirty(onode)
    store.close()
    assert [problem.code for problem in check(device.image(), tmp_path)] == ["revision"]
