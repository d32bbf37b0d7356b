"""Opened read-only, an image whose log cannot be replayed in full shows all that does not depend on the damage."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.engines.mem import MemStore
from mdstore.errors import CorruptionError, MdstoreError, NotFound, ReadOnly
from mdstore.store import recovery
from mdstore.store.store import Store
from mdstore.store.transaction import Op, Transaction
from tests.crash.store_workload import COLLECTIONS, Mixed, outcome

BLOCK = 512
OPTIONS: dict[str, Any] = {"block_size": BLOCK, "log_bytes": 64 * 1024, "background": False, "dirty_bytes": 1 << 30}
Answers = dict[tuple[bytes, bytes], list[object]]


def made() -> tuple[Store, MemoryDevice]:
    device = MemoryDevice(1 << 20)
    store = Store.create(device, **OPTIONS)
    store.apply(Transaction().create_collection("c").create_collection("d"))
    return store, device


def read_only(image: bytes) -> Store:
    return Store.open(MemoryDevice.from_bytes(image), read_only=True, background=False)


def with_a_log_over_damage(*logged: Transaction) -> Store:
    """Opened read-only: `c/broken` has a damaged map page, which the log's first entry changes; then `logged`."""
    store, device = made()
    rows = {number.to_bytes(2, "big"): b"row %04d" % number * 5 for number in range(200)}
    store.apply(Transaction().map_set("c", "broken", rows).write("c", "broken", 0, b"data").write("c", "whole", 0, b"fine"))
    store.apply(Transaction().map_set("c", "whole", rows))
    store.checkpoint()
    image = device.image()
    store.apply(Transaction().map_set("c", "broken", {b"\0\1": b"changed"}).write("c", "whole", 0, b"more"))
    for transaction in logged:
        store.apply(transaction)
    after = bytearray(device.image())
    page = store_page_of(image, "broken", b"row 0001")
    after[page * BLOCK + 100] ^= 4
    return read_only(bytes(after))


def store_page_of(image: bytes, name: str, content: bytes) -> int:
    """The page of an object's map that holds `content`."""
    with read_only(image) as store:
        onode = store.tables.objects.get(store.tables.collections.get(b"c").number, name.encode())  # type: ignore[union-attr]
        assert onode is not None
        assert onode.map is not None
        pages = [page for page, _, level in onode.map.pages() if level == 0]
    return next(page for page in pages if content in image[page * BLOCK : (page + 1) * BLOCK])


def test_what_the_log_changes_through_a_damaged_page_is_set_apart_and_the_rest_is_right() -> None:
    """One damaged page that replay met kept the whole image from opening."""
    store = with_a_log_over_damage(Transaction().write("d", "other", 5, b"later entries count"))
    assert [sentence.partition(":")[0] for sentence in store.recovery.isolated] == ["object 'broken' of collection 1"]
    assert "page" in store.recovery.isolated[0]
    assert any("set apart" in warning for warning in store.recovery.warnings)
    assert store.read("c", "whole") == b"more"
    assert store.read("d", "other") == b"\0" * 5 + b"later entries count"
    assert len(list(store.map_items("c", "whole"))) == 200
    asked = (
        lambda: store.exists("c", "broken"), lambda: store.stat("c", "broken"), lambda: store.read("c", "broken"),
        lambda: store.map_get("c", "broken", b"\0\xc7"), lambda: store.getattrs("c", "broken"), lambda: store.list_objects("c"),
        lambda: store.revisions("c", "broken"), lambda: store.exists("c", "broken", rev=3), lambda: store.list_revised("c"),
        lambda: list(store.map("c", "broken", sync=False).items()),
    )  # fmt: skip
    for number, question in enumerate(asked):
        with pytest.raises(CorruptionError, match="broken"):
            pytest.fail(f"question {number} was answered: {question()!r}")
    assert store.list_objects("c", start=b"broken\0") == [b"whole"], "no name in that range is in doubt"
    assert store.list_objects("d") == [b"other"]


def test_what_the_log_makes_of_it_is_set_apart_too() -> None:
    store = with_a_log_over_damage(
        Transaction().clone("c", "broken", "copy").rename("c", "broken", "d", "moved"),
        Transaction().clone_range("c", "whole", "copy", 0, 4, 0).clone("c", "whole", "fresh"),
        Transaction().remove("d", "moved").touch("d", "sound"),
    )
    for collection, name in (("c", "broken"), ("c", "copy"), ("d", "moved")):
        with pytest.raises(CorruptionError):
            store.exists(collection, name)
    assert store.read("c", "fresh") == b"more"
    assert store.exists("d", "sound")
    assert len(store.recovery.isolated) == 3
    assert "it depends on object 'broken'" in "".join(store.recovery.isolated), "a chain of causes leads to the damage"


def test_writing_is_refused_with_the_remedy() -> None:
    store = with_a_log_over_damage()
    with pytest.raises(ReadOnly, match="mdstore repair"):
        store.apply(Transaction().touch("c", "x"))
    with pytest.raises(CorruptionError, match="mdstore repair"):
        Store.open(MemoryDevice.from_bytes(store.device.image()), background=False)  # type: ignore[attr-defined]
    sound, _ = made()
    sound.close()
    with pytest.raises(ReadOnly) as caught:
        read_only(sound.device.image()).apply(Transaction().touch("c", "x"))  # type: ignore[attr-defined]
    assert "repair" not in str(caught.value)


def test_a_merge_beside_it_stops_the_opening() -> None:
    with pytest.raises(CorruptionError, match="merge"):
        with_a_log_over_damage(Transaction().merge("c", "d"))


def answers(store: Any, names: set[tuple[bytes, bytes]]) -> Answers:
    """What it says of each object, the class of an error instead of an answer."""
    found: Answers = {}
    for collection, name in sorted(names):
        queries = (lambda: store.exists(collection, name), lambda: store.read(collection, name),  # noqa: B023
                   lambda: store.getattrs(collection, name), lambda: list(store.map_items(collection, name)))  # noqa: B023
        found[collection, name] = [answer(query) for query in queries]
    return found


def answer(query: Any) -> object:
    try:
        return query()
    except (CorruptionError, NotFound) as error:
        return type(error)


def in_error(found: Answers) -> set[tuple[bytes, bytes]]:
    return {where for where, said in found.items() if CorruptionError in said}


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_page_anywhere_gives_errors_for_what_needs_it_and_for_nothing_else(seed: int) -> None:
    print(f"seed {seed}")
    random, mixed = Random(seed), Mixed(seed)
    device, model = MemoryDevice(1 << 20), MemStore()
    store = Store.create(device, **OPTIONS)
    for target in (store, model):
        for collection in COLLECTIONS:
            target.apply(Transaction().create_collection(collection))
    work = [transaction for transaction in (mixed.transaction() for _ in range(120)) if not moves(transaction)]
    for transaction in work[:70]:
        assert outcome(store, transaction) == outcome(model, transaction)
    store.checkpoint()
    settled = device.image()
    pages = sorted(pages_reached(store))
    for transaction in work[70:]:
        assert outcome(store, transaction) == outcome(model, transaction)
    store.sync()
    image = device.image()
    names = {(home, b"object-%d" % number) for home in COLLECTIONS for number in range(6)}
    due = answers(model, names)
    isolating = 0
    for page in random.sample(pages, min(len(pages), 120)):
        raw, before = bytearray(image), bytearray(settled)
        at, bit = page * BLOCK + random.randrange(BLOCK), 1 << random.randrange(8)
        raw[at] ^= bit
        before[at] ^= bit
        try:
            opened = read_only(bytes(raw))
        except MdstoreError:
            with pytest.raises(MdstoreError):  # a page that every opening needs
                read_only(bytes(before))
            continue
        found = answers(opened, names)
        wrong = {where for where in names if any(said not in (right, CorruptionError)
                                                 for said, right in zip(found[where], due[where], strict=True))}
        assert not wrong, f"page {page}: {wrong}"
        apart = {where for where in names if f"{where[1].decode()!r} of collection" in "".join(opened.recovery.isolated)}
        needing = in_error(answers(read_only(bytes(before)), names))
        assert in_error(found) <= made_of(apart | needing, work[70:]), f"page {page}"
        isolating += bool(opened.recovery.isolated)
    assert isolating > 10


def moves(transaction: Transaction) -> bool:
    return any(operation[0] in (Op.SPLIT, Op.MERGE) for operation in transaction.operations)


def made_of(objects: set[tuple[bytes, bytes]], work: list[Transaction]) -> set[tuple[bytes, bytes]]:
    """These, and what the transactions clone from them or rename them to."""
    found = set(objects)
    for operation in (operation for transaction in work for operation in transaction.operations):
        code, *operands = operation
        if code in (Op.CLONE, Op.CLONE_RANGE, Op.RENAME) and (operands[0], operands[1]) in found:
            found.add((operands[2], operands[3]) if code == Op.RENAME else (operands[0], operands[2]))
    return found


def pages_reached(store: Store) -> set[int]:
    """Every page and every block of data that the newest superblock reaches, and the spare ones."""
    free = {block for start, count in store.tables.allocator.extents() for block in range(start, start + count)}
    return set(range(store.superblock.first_block, store.superblock.blocks - 8192 // BLOCK)) - free


def test_what_was_tolerated_in_a_superblock_passed_over_is_not_said_of_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    store, device = made()
    store.checkpoint()
    newest = store.superblock.epoch
    load = recovery.load

    def damaged(*arguments: Any, tolerated: list[str] | None, **options: Any) -> Any:
        epoch = arguments[1].epoch
        if tolerated is not None:
            tolerated.append(f"the free space of epoch {epoch}")
        if tolerated is None or epoch == newest:
            raise CorruptionError("tree", f"epoch {epoch}", "roots", "damage")
        return load(*arguments, tolerated=tolerated, **options)

    monkeypatch.setattr(recovery, "load", damaged)
    warnings = read_only(device.image()).recovery.warnings
    assert [warning for warning in warnings if "the free space" in warning] == [f"the free space of epoch {newest - 1}"]
    assert any("passed over" in warning for warning in warnings)
