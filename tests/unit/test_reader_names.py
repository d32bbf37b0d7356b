"""fsck of the name space: a clean one is clean, killed or closed, and each injected fault is found exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mdstore.store import Store, Transaction
from mdstore.tools.reader.mds_directory import decode_header
from tests.unit.reader_images import DATA, LOG, META, changed, check, codes, directory, entry, file_system


@pytest.fixture(scope="module")
def image() -> bytes:
    return file_system()


def numbers(store: Store) -> tuple[int, int]:
    """The directories `top` and `top/deep`."""
    top = entry(store, 1, b"top").ino
    return top, entry(store, top, b"deep").ino


def found_after(image: bytes, tmp_path: Path, change: Callable[[Store], None]) -> set[str]:
    return codes(check(changed(image, change), tmp_path))


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_sound_name_space_is_clean(is_closed: bool, tmp_path: Path) -> None:
    assert check(file_system(is_closed=is_closed), tmp_path, "deep") == []


def test_a_dangling_name_is_found(image: bytes, tmp_path: Path) -> None:
    def remove_directory_object(store: Store) -> None:
        _, deep = numbers(store)
        moved = entry(store, deep, b"moved").ino
        store.apply(Transaction().remove(META, directory(moved)))

    found = check(changed(image, remove_directory_object), tmp_path)
    assert codes(found) == {"entry-dangling"}
    assert found[0].place.owner == "/top/deep/moved"


def test_an_orphan_directory_is_found(image: bytes, tmp_path: Path) -> None:
    def remove_name(store: Store) -> None:
        _, deep = numbers(store)
        store.apply(Transaction().map_remove(META, directory(deep), [b"moved"]))

    assert found_after(image, tmp_path, remove_name) == {
        "directory-orphan",
        "directory-size",
        "link-count",
        "statistics",
    }


def test_a_lost_file_leaves_its_bytes_behind(image: bytes, tmp_path: Path) -> None:
    def remove_name(store: Store) -> None:
        top, _ = numbers(store)
        store.apply(Transaction().map_remove(META, directory(top), [b"f20"]))

    assert found_after(image, tmp_path, remove_name) == {"data-orphan", "directory-size", "statistics"}


def test_one_inode_in_two_places_is_found(image: bytes, tmp_path: Path) -> None:
    def copy_entry(store: Store) -> None:
        top, deep = numbers(store)
        value = store.map_get(META, directory(top), b"f20")
        assert value is not None
        store.apply(Transaction().map_set(META, directory(deep), {b"twin": value}))

    found = check(changed(image, copy_entry), tmp_path)
    assert codes(found) == {"inode-duplicate", "directory-size", "statistics"}
    assert "/top/f20" in next(problem.what for problem in found if problem.code == "inode-duplicate")


def test_a_wrong_link_count_is_found(image: bytes, tmp_path: Path) -> None:
    def change_row(store: Store) -> None:
        key, value = next(iter(store.map_items(META, "table.inodes")))
        at = 8 + 20  # home, then the inode's nlink
        store.apply(Transaction().map_set(META, "table.inodes", {key: value[:at] + b"\x05" + value[at + 1 :]}))

    assert found_after(image, tmp_path, change_row) == {"link-count"}


def test_an_orphan_inode_is_found(image: bytes, tmp_path: Path) -> None:
    def remove_names(store: Store) -> None:
        top, deep = numbers(store)
        store.apply(
            Transaction().map_remove(META, directory(top), [b"f07"]).map_remove(META, directory(deep), [b"second name"])
        )

    assert {"inode-orphan", "link-table"} <= found_after(image, tmp_path, remove_names)


def test_a_link_table_that_does_not_match_is_found(image: bytes, tmp_path: Path) -> None:
    def remove_row(store: Store) -> None:
        key, _ = next(iter(store.map_items(META, "table.links")))
        store.apply(Transaction().map_remove(META, "table.links", [key]))

    assert found_after(image, tmp_path, remove_row) == {"link-table"}


def test_wrong_statistics_are_found(image: bytes, tmp_path: Path) -> None:
    def change_rbytes(store: Store) -> None:
        top, _ = numbers(store)
        header = store.map_header(META, directory(top))
        store.apply(Transaction().map_set_header(META, directory(top), header[:24] + b"\x01" + header[25:]))

    found = check(changed(image, change_rbytes), tmp_path)
    assert codes(found) == {"statistics"}
    assert {problem.place.owner for problem in found} == {next(iter(found)).place.owner}
    assert "rbytes" in found[0].what


def test_a_wrong_parent_is_found(image: bytes, tmp_path: Path) -> None:
    """The header of a directory is its backtrace: it names where the directory hangs."""

    def change_parent(store: Store) -> None:
        top, deep = numbers(store)
        moved = entry(store, deep, b"moved").ino
        header = store.map_header(META, directory(moved))
        assert decode_header(header).parent == deep
        changed_header = header[:16] + top.to_bytes(8, "little") + header[24:]
        store.apply(Transaction().map_set_header(META, directory(moved), changed_header))

    assert "directory-parent" in found_after(image, tmp_path, change_parent)


def test_a_loop_is_found(image: bytes, tmp_path: Path) -> None:
    """Two directories that hold each other: every name leads somewhere, and none to them."""

    def tie(store: Store) -> None:
        top, deep = numbers(store)
        value = store.map_get(META, directory(1), b"top")
        assert value is not None
        header = store.map_header(META, directory(top))
        tied = header[:16] + deep.to_bytes(8, "little") + header[24:]
        change = Transaction().map_remove(META, directory(1), [b"top"]).map_set(META, directory(deep), {b"top": value})
        store.apply(change.map_set_header(META, directory(top), tied))

    assert "directory-loop" in found_after(image, tmp_path, tie)


def test_a_damaged_backtrace_is_found(image: bytes, tmp_path: Path) -> None:
    def damage(store: Store) -> None:
        top, _ = numbers(store)
        name = f"{entry(store, top, b'f20').ino:016x}.00000000"
        store.apply(
            Transaction().setattr(DATA, name, "backtrace", b"\x09" + store.getattr(DATA, name, "backtrace")[1:])
        )

    assert found_after(image, tmp_path, damage) == {"backtrace"}


def test_an_entry_that_does_not_decode_is_found(image: bytes, tmp_path: Path) -> None:
    def damage(store: Store) -> None:
        top, _ = numbers(store)
        store.apply(Transaction().map_set(META, directory(top), {b"f01": b"\x07junk"}))

    found = check(changed(image, damage), tmp_path)
    assert "entry" in codes(found)
    assert "/top/f01" in {problem.place.owner for problem in found}


def test_a_number_that_will_be_given_again_is_found(image: bytes, tmp_path: Path) -> None:
    def lower(store: Store) -> None:
        store.apply(Transaction().map_set(META, "table.server", {b"next_ino": (20).to_bytes(8, "little")}))

    assert found_after(image, tmp_path, lower) == {"inode-number"}


def test_a_directory_header_that_does_not_decode_is_found(image: bytes, tmp_path: Path) -> None:
    def damage(store: Store) -> None:
        _, deep = numbers(store)
        store.apply(Transaction().map_set_header(META, directory(deep), b"\x02" + bytes(20)))

    assert "directory" in found_after(image, tmp_path, damage)


def test_a_lost_server_record_is_found(image: bytes, tmp_path: Path) -> None:
    assert found_after(image, tmp_path, lambda store: store.apply(Transaction().remove(META, "table.server"))) == {
        "server-record"
    }


@pytest.mark.parametrize("slot", [0, 1])
def test_a_lost_head_of_the_metadata_log_is_a_warning(slot: int, image: bytes, tmp_path: Path) -> None:
    found = check(changed(image, lambda store: store.apply(Transaction().remove(LOG, f"events.head{slot}"))), tmp_path)
    assert [(problem.code, problem.severity) for problem in found] == [("event-head", "warning")]


def test_an_event_damaged_in_the_middle_of_the_log_is_found(tmp_path: Path) -> None:
    """The image was killed: its events are the only copy of what they say."""
    image = file_system(is_closed=False)

    def damage(store: Store) -> None:
        first = next(name for name in store.list_objects(LOG) if b"head" not in name)
        data = store.read(LOG, first)
        at = data.index(b"\xf3jrn", 200)
        store.apply(Transaction().write(LOG, first, at + 60, b"\xff\xff"))

    assert "event-rot" in found_after(image, tmp_path, damage)
