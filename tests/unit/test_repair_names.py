"""Repair of the name space: each injected fault is found exactly, set right, and nothing else changes; a wiped one comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from mdstore.store import Store, Transaction
from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.entry import MAGIC
from mdstore.tools.reader.entry import decode_header as decode_entry_header
from tests.unit.reader_images import DATA, LOG, META, changed, check, codes, directory, entry, file_system
from tests.unit.repair_images import Tree, lost, repaired, rich_file_system, tree_of


@pytest.fixture(scope="module")
def image() -> bytes:
    return file_system()


@pytest.fixture(scope="module")
def tree(image: bytes) -> Tree:
    return tree_of(image)


def numbers(store: Store) -> tuple[int, int, int]:
    """The directories `top`, `top/deep` and `top/deep/moved`."""
    top = entry(store, 1, b"top").ino
    deep = entry(store, top, b"deep").ino
    return top, deep, entry(store, deep, b"moved").ino


# -- faults ------------------------------------------------------------------------------------------------------------
def dangling_name(store: Store) -> None:
    store.apply(Transaction().remove(META, directory(numbers(store)[2])))


def orphan_directory(store: Store) -> None:
    store.apply(Transaction().map_remove(META, directory(numbers(store)[1]), [b"moved"]))


def lost_file(store: Store) -> None:
    store.apply(Transaction().map_remove(META, directory(numbers(store)[0]), [b"f20"]))


def lost_file_without_backtrace(store: Store) -> None:
    top = numbers(store)[0]
    name = f"{entry(store, top, b'f20').ino:016x}.00000000"
    store.apply(Transaction().map_remove(META, directory(top), [b"f20"]).rmattr(DATA, name, "backtrace"))


def same_inode_twice(store: Store) -> None:
    top, deep, _ = numbers(store)
    value = store.map_get(META, directory(top), b"f20")
    assert value is not None
    store.apply(Transaction().map_set(META, directory(deep), {b"twin": value}))


def wrong_link_count(store: Store) -> None:
    key, value = next(iter(store.map_items(META, "table.inodes")))
    store.apply(Transaction().map_set(META, "table.inodes", {key: value[:28] + b"\x05" + value[29:]}))


def orphan_inode(store: Store) -> None:
    top, deep, _ = numbers(store)
    change = Transaction().map_remove(META, directory(top), [b"f07"])
    store.apply(change.map_remove(META, directory(deep), [b"second name"]))


def link_table_short(store: Store) -> None:
    key, _ = next(iter(store.map_items(META, "table.links")))
    store.apply(Transaction().map_remove(META, "table.links", [key]))


def inode_row_lost(store: Store) -> None:
    key, _ = next(iter(store.map_items(META, "table.inodes")))
    store.apply(Transaction().map_remove(META, "table.inodes", [key]))


def wrong_statistics(store: Store) -> None:
    top = numbers(store)[0]
    header = store.map_header(META, directory(top))
    store.apply(Transaction().map_set_header(META, directory(top), header[:24] + b"\x01" + header[25:]))


def wrong_parent(store: Store) -> None:
    top, _, moved = numbers(store)
    header = store.map_header(META, directory(moved))
    changed_header = header[:16] + top.to_bytes(8, "little") + header[24:]
    store.apply(Transaction().map_set_header(META, directory(moved), changed_header))


def loop(store: Store) -> None:
    top, deep, _ = numbers(store)
    value = store.map_get(META, directory(1), b"top")
    assert value is not None
    header = store.map_header(META, directory(top))
    tied = header[:16] + deep.to_bytes(8, "little") + header[24:]
    change = Transaction().map_remove(META, directory(1), [b"top"]).map_set(META, directory(deep), {b"top": value})
    store.apply(change.map_set_header(META, directory(top), tied))


def two_places(store: Store) -> None:
    top, deep, _ = numbers(store)
    value = store.map_get(META, directory(deep), b"moved")
    assert value is not None
    store.apply(Transaction().map_set(META, directory(top), {b"again": value}))


def damaged_backtrace(store: Store) -> None:
    name = f"{entry(store, numbers(store)[0], b'f20').ino:016x}.00000000"
    trace = store.getattr(DATA, name, "backtrace")
    store.apply(Transaction().setattr(DATA, name, "backtrace", b"\x09" + trace[1:]))


def entry_of_junk(store: Store) -> None:
    store.apply(Transaction().map_set(META, directory(numbers(store)[0]), {b"f01": b"\x07junk"}))


def wrong_type(store: Store) -> None:
    top = numbers(store)[0]
    value = store.map_get(META, directory(top), b"f07")
    assert value is not None
    store.apply(Transaction().map_set(META, directory(top), {b"f07": value[:1] + b"\x0a" + value[2:]}))


def low_next_number(store: Store) -> None:
    store.apply(Transaction().map_set(META, "table.server", {b"next_ino": (20).to_bytes(8, "little")}))


def header_of_junk(store: Store) -> None:
    store.apply(Transaction().map_set_header(META, directory(numbers(store)[1]), b"\x02" + bytes(20)))


def no_server_record(store: Store) -> None:
    store.apply(Transaction().remove(META, "table.server"))


def bad_name(store: Store) -> None:
    top = numbers(store)[0]
    value = store.map_get(META, directory(top), b"f20")
    assert value is not None
    store.apply(Transaction().map_remove(META, directory(top), [b"f20"]).map_set(META, directory(top), {b"f/20": value}))


def data_flag_cleared(store: Store) -> None:
    top = numbers(store)[0]
    value = store.map_get(META, directory(top), b"f20")
    assert value is not None
    store.apply(Transaction().map_set(META, directory(top), {b"f20": value[:2] + b"\0" + value[3:]}))


def no_heads(store: Store) -> None:
    store.apply(Transaction().remove(LOG, "events.head0").remove(LOG, "events.head1"))


def table_named_like_a_directory(store: Store) -> None:
    """An object of `meta` under the number of a file, f20: nothing says that it is a directory."""
    ino = entry(store, numbers(store)[0], b"f20").ino
    store.apply(Transaction().map_set(META, directory(ino), {b"x": b"junk"}))


def wrong_geometry(store: Store) -> None:
    header = store.map_header(META, "table.server")
    store.apply(Transaction().map_set_header(META, "table.server", header[:48] + (131072).to_bytes(8, "little") + header[56:]))


# -- what they come to -------------------------------------------------------------------------------------------------
def same(before: Tree, after: Tree) -> None:
    assert after == before


def without_moved(before: Tree, after: Tree) -> None:
    """The directory that was lost was empty: its name goes, its parent has one entry less."""
    assert after.keys() == before.keys() - {"/top/deep/moved"}
    same_but_counts({path: thing for path, thing in before.items() if path in after}, after)


def same_but_counts(before: Tree, after: Tree) -> None:
    """Link counts and sizes of directories apart."""
    for path, thing in before.items():
        found = after[path]
        assert found == thing or (thing.mode >> 12 == 4 and found._replace(nlink=thing.nlink, size=thing.size) == thing), path


def in_lost_found(before: Tree, after: Tree) -> None:
    """The file has lost its name, mode and owner, and kept its bytes."""
    content = before["/top/f20"].content
    (found,) = [path for path in after if path.startswith("/lost+found/")]
    assert after[found].content == content
    same_but_counts({path: thing for path, thing in before.items() if path != "/top/f20"}, after)


def looped(before: Tree, after: Tree) -> None:
    """Where the circle hung is nowhere any more: all of it is in lost+found."""
    (top,) = [path for path in after if path.startswith("/lost+found/") and path.count("/") == 2]
    moved = {top + path[4:]: thing for path, thing in before.items() if path.startswith("/top")}
    same_but_counts(moved, after)


def linked(before: Tree, after: Tree) -> None:
    """Both places stay, as names of one inode."""
    assert after["/top/f20"] == before["/top/f20"]._replace(nlink=2) == after["/top/deep/twin"]
    same_but_counts({path: thing for path, thing in before.items() if path != "/top/f20"}, after)


def attributes_gone(before: Tree, after: Tree) -> None:
    """A directory keeps its entries and has the attributes of a new one."""
    assert after.keys() == before.keys()
    assert after["/top/deep"].mode == 0o040755
    same_but_counts({path: thing for path, thing in before.items() if path != "/top/deep"}, after)


def renamed(before: Tree, after: Tree) -> None:
    assert after["/top/f_20"] == before["/top/f20"]
    same_but_counts({path: thing for path, thing in before.items() if path != "/top/f20"}, after)


class Fault(NamedTuple):
    inject: Callable[[Store], None]
    codes: set[str]
    outcome: Callable[[Tree, Tree], None]
    lost: tuple[str, ...] = ()


FAULTS = [
    Fault(dangling_name, {"entry-dangling"}, without_moved, ("/top/deep/moved",)),
    Fault(orphan_directory, {"directory-orphan", "directory-size", "link-count", "statistics"}, same),
    Fault(lost_file, {"data-orphan", "directory-size", "statistics"}, same),
    Fault(
        lost_file_without_backtrace, {"data-orphan", "directory-size", "statistics"}, in_lost_found,
        ("name, mode, owner",),
    ),
    Fault(same_inode_twice, {"inode-duplicate", "directory-size", "statistics"}, linked),
    Fault(wrong_link_count, {"link-count"}, same),
    Fault(orphan_inode, {"inode-orphan", "link-home", "link-table", "directory-size", "statistics"}, same),
    Fault(link_table_short, {"link-table"}, same),
    Fault(inode_row_lost, {"entry-dangling", "data-orphan", "statistics"}, same),
    Fault(wrong_statistics, {"statistics"}, same),
    Fault(wrong_parent, {"directory-parent"}, same),
    Fault(loop, {"directory-loop", "directory-size", "link-count", "statistics"}, looped),
    Fault(two_places, {"directory-links", "directory-size", "link-count", "statistics"}, same),
    Fault(damaged_backtrace, {"backtrace"}, same),
    Fault(entry_of_junk, {"entry", "data-orphan", "directory-size", "statistics"}, same, ("entry f01 of directory",)),
    Fault(wrong_type, {"entry-type"}, same),
    Fault(low_next_number, {"inode-number"}, same),
    Fault(header_of_junk, {"directory", "statistics"}, attributes_gone, ("mode, owner, times", "header of directory")),
    Fault(no_server_record, {"server-record"}, same),
    Fault(bad_name, {"entry-name"}, renamed),
    Fault(
        table_named_like_a_directory, {"directory", "entry", "inode-duplicate", "data-orphan"}, same,
        ("header of directory", "entry x of directory"),
    ),
    Fault(wrong_geometry, {"server-record"}, same),
    Fault(data_flag_cleared, {"data-flag"}, same),
    Fault(no_heads, {"event-head", "event-no-head"}, same),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.inject.__name__)
def test_a_fault_is_found_exactly_and_set_right(fault: Fault, image: bytes, tree: Tree, tmp_path: Path) -> None:
    damaged = changed(image, fault.inject)
    assert codes(check(damaged, tmp_path, "deep")) == fault.codes
    made, after = repaired(damaged)
    fault.outcome(tree, tree_of(after))
    said = lost(made)
    assert len(said) == len(fault.lost), said
    assert all(any(word in line for line in said) for word in fault.lost), said


def test_faults_together_are_set_right(image: bytes, tree: Tree, tmp_path: Path) -> None:
    def inject(store: Store) -> None:
        for fault in (lost_file, wrong_link_count, wrong_statistics, link_table_short, low_next_number, orphan_directory):
            fault(store)

    _, after = repaired(changed(image, inject))
    same(tree, tree_of(after))


def test_events_that_were_not_written_back_are_kept(tmp_path: Path) -> None:
    """An image that was killed: what its log says is part of the name space that is mended."""
    image = file_system(is_closed=False)
    _, after = repaired(changed(image, low_next_number))
    assert tree_of(after).keys() == tree_of(image).keys()


# -- the events of a file system that was killed ------------------------------------------------------------------------
def event_objects(store: Store) -> Iterator[tuple[bytes, bytes]]:
    """Objects of the metadata log with their bytes."""
    for name in store.list_objects(LOG):
        if b"head" not in name:
            yield name, store.read(LOG, name)


def events_in(data: bytes) -> list[int]:
    """Where entries begin."""
    return [at for at in range(len(data)) if data[at : at + 4] == MAGIC and decode_entry_header(data, at) is not None]


def rotten_event(store: Store) -> None:
    """An event in the middle whose bytes changed: its checksum says so."""
    name, data = next(event_objects(store))
    at = events_in(data)[6]
    store.apply(Transaction().write(LOG, name, at + 60, b"\xff\xff"))


def nonsense_event(store: Store) -> None:
    """An event in the middle that is whole, and says nothing that an event can say."""
    name, data = next(event_objects(store))
    at = events_in(data)[6]
    header = decode_entry_header(data, at)
    assert header is not None
    payload = b"\x63" + data[at + 53 : at + 52 + header.length]
    head = data[at : at + 44] + crc32c(payload).to_bytes(4, "little")
    store.apply(Transaction().write(LOG, name, at, head + crc32c(head).to_bytes(4, "little") + payload))


def heads_gone(store: Store) -> None:
    store.apply(Transaction().remove(LOG, "events.head0").remove(LOG, "events.head1"))


@pytest.mark.parametrize(
    ("inject", "code", "word"),
    [
        (rotten_event, "event-rot", "events between"),
        (nonsense_event, "event", "the event at position"),
        (heads_gone, "event-no-head", ""),
    ],
    ids=["rotten_event", "nonsense_event", "heads_gone"],
)
def test_damaged_events_cost_what_they_said_and_nothing_else(
    inject: Callable[[Store], None], code: str, word: str, tmp_path: Path
) -> None:
    """The image was killed: its events are the only copy of much of it."""
    image = file_system(is_closed=False)
    before = tree_of(image)
    damaged = changed(image, inject)
    assert code in codes(check(damaged, tmp_path))
    made, after = repaired(damaged)
    found = tree_of(after)
    if not word:
        assert found == before
        return
    assert any(word in line for line in lost(made))
    contents = {thing.content for thing in found.values()}
    missing = [path for path, thing in before.items() if thing.mode >> 12 == 8 and thing.size and thing.content not in contents]
    assert missing == [], "bytes were written before the events that name them"


# -- a wiped name space ------------------------------------------------------------------------------------------------
def wipe_entries(store: Store) -> None:
    """Every entry of every directory goes, and the root with them; what the directories say of themselves stays."""
    for name in store.list_objects(META):
        if len(name) == 16:
            store.apply(Transaction().map_remove_range(META, name, None, None))
    store.apply(Transaction().remove(META, directory(1)))


def wipe_everything(store: Store) -> None:
    """No object of the name space is left, no table, no server record: only the bytes of files, with their backtraces."""
    for name in store.list_objects(META):
        store.apply(Transaction().remove(META, name))


def test_a_wiped_name_space_comes_back_with_all_that_is_known_of_it(tmp_path: Path) -> None:
    image = rich_file_system()
    before = tree_of(image)
    made, after = repaired(changed(image, wipe_entries))
    found = tree_of(after)
    assert found.pop("/").mode == 0o040755
    del before["/"]
    assert found == before
    assert {"/a/empty", "/d/empty too", "/d/second name"} <= found.keys()
    assert lost(made) == ["/: mode, owner, times and attributes"]


def test_files_come_back_from_their_backtraces_alone(tmp_path: Path) -> None:
    image = rich_file_system()
    before = tree_of(image)
    _, after = repaired(changed(image, wipe_everything))
    found = tree_of(after)
    assert sorted(t.content for t in found.values() if t.mode >> 12 == 8) == sorted(
        {t.content for t in before.values() if t.mode >> 12 == 8}
    )
    for path, thing in before.items():
        if thing.mode >> 12 == 8 and thing.nlink == 1:
            name = path.rpartition("/")[2]
            (place,) = [other for other in found if other.endswith("/" + name)]
            assert found[place] == thing, path
    assert found["/file0"] == before["/file0"]


def test_a_number_that_only_snapshots_have_is_damage_and_the_file_comes_back(image: bytes, tree: Tree, tmp_path: Path) -> None:
    """It was called one that will be given out again, and repair let the next file have the number after it: programs took those
    files for parts of a snapshot, and an export ended at the first one."""

    def inject(store: Store) -> None:
        top = numbers(store)[0]
        value = store.map_get(META, directory(top), b"f20")
        assert value is not None
        store.apply(Transaction().map_set(META, directory(top), {b"f20": value[:16] + b"\x80" + value[17:]}))

    damaged = changed(image, inject)
    assert "inode" in codes(check(damaged, tmp_path))
    made, after = repaired(damaged)
    assert any("f20" in line for line in lost(made))
    found = tree_of(after)
    assert found.keys() == tree.keys()
    assert found["/top/f20"].content == tree["/top/f20"].content
