"""Listing directories, also large ones, also while entries come and go."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.posix.calls import make

pytestmark = pytest.mark.fuse

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = _libc.fdopendir.restype = _libc.readdir64.restype = ctypes.c_void_p
_libc.telldir.restype = ctypes.c_long
NAME_OFFSET = 19  # of d_name in struct dirent64


class Directory:
    """opendir(3) and friends, one entry at a time."""

    def __init__(self, path: Path) -> None:
        self._stream = ctypes.c_void_p(_libc.opendir(os.fsencode(path)))
        assert self._stream

    def next(self) -> str | None:
        entry = _libc.readdir64(self._stream)
        return None if not entry else os.fsdecode(ctypes.string_at(entry + NAME_OFFSET))

    def rest(self) -> Iterator[str]:
        while (name := self.next()) is not None:
            yield name

    def tell(self) -> int:
        place: int = _libc.telldir(self._stream)
        return place

    def seek(self, place: int) -> None:
        _libc.seekdir(self._stream, ctypes.c_long(place))

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)


def _fill(root: Path, count: int) -> list[str]:
    names = [f"entry-{index:06d}" for index in range(count)]
    for name in names:
        os.close(os.open(root / name, os.O_CREAT | os.O_WRONLY))
    return names


def test_dots_lead_to_the_directory_and_its_parent(root: Path) -> None:
    (root / "dir").mkdir()
    directory = Directory(root / "dir")
    assert sorted(directory.rest()) == [".", ".."]
    directory.close()
    assert os.path.samefile(root / "dir" / "..", root)


def test_entries_tell_type_and_inode(root: Path) -> None:
    make(root / "file")
    (root / "dir").mkdir()
    os.symlink("x", root / "link")
    os.mkfifo(root / "fifo")
    with os.scandir(root) as entries:
        found = {entry.name: (entry.inode(), entry.is_file(follow_symlinks=False), entry.is_dir(follow_symlinks=False),
                              entry.is_symlink()) for entry in entries}  # fmt: skip
    for name, (inode, is_file, is_dir, is_link) in found.items():
        mode = os.lstat(root / name).st_mode
        assert inode == os.lstat(root / name).st_ino
        assert (is_file, is_dir, is_link) == (stat.S_ISREG(mode), stat.S_ISDIR(mode), stat.S_ISLNK(mode))
    assert set(found) == {"file", "dir", "link", "fifo"}


@pytest.mark.parametrize("count", [0, 1, 2, 100, 2000])
def test_every_entry_is_listed_once(root: Path, count: int) -> None:
    names = _fill(root, count)
    for _ in range(3):  # from the server, then from what the kernel keeps
        assert sorted(os.listdir(root)) == names


def test_entries_that_stay_are_listed_once_while_others_come_and_go(root: Path) -> None:
    """10,000 entries; between any two reads some are removed and some are made, before and after the cursor."""
    names = _fill(root, 10_000)
    stays = set(names[::2])
    leaves = names[1::2]
    directory = Directory(root)
    seen: list[str] = []
    for step, name in enumerate(directory.rest()):
        seen.append(name)
        if step % 50 == 0 and leaves:
            os.unlink(root / leaves.pop(len(leaves) * (step % 7) // 7))
            make(root / f"a-new-{step}")
            make(root / f"z-new-{step}")
    directory.close()
    counts = {name: seen.count(name) for name in (seen if len(seen) != len(set(seen)) else ())}
    assert not counts, f"listed more than once: {[name for name, count in counts.items() if count > 1]}"
    assert stays <= set(seen)
    present = set(os.listdir(root))
    assert stays <= present
    assert not present & (set(names) - stays - set(leaves))


def test_long_names_fill_the_buffer_in_odd_places(root: Path) -> None:
    names = sorted(f"{index:03d}" + "n" * (index % 253) for index in range(600))
    for name in names:
        make(root / name)
    assert sorted(os.listdir(root)) == names


def test_a_place_that_was_told_can_be_sought(root: Path) -> None:
    names = _fill(root, 500)
    directory = Directory(root)
    places = {}
    order = []
    while True:
        place = directory.tell()
        name = directory.next()
        if name is None:
            break
        order.append(name)
        places[name] = place
    assert sorted(order) == [".", "..", *names]
    for name in (order[400], order[3], order[250], order[0]):
        directory.seek(places[name])
        assert directory.next() == name
    directory.rewind()
    make(root / "later")
    directory.rewind()
    assert "later" in set(directory.rest())
    directory.close()


def test_two_readers_do_not_disturb_each_other(root: Path) -> None:
    names = _fill(root, 1500)
    first, second = Directory(root), Directory(root)
    half = [first.next() for _ in range(700)]
    whole = list(second.rest())
    os.unlink(root / names[-1])
    make(root / "zzz-new")
    again = Directory(root)
    fresh = set(again.rest())
    rest = list(first.rest())
    seen = [name for name in half + rest if name is not None]
    assert sorted(name for name in whole if name[0] != ".") == names
    assert len(seen) == len(set(seen))
    assert set(names[:-1]) <= set(seen)
    assert fresh - {".", ".."} == {*names[:-1], "zzz-new"}
    for directory in (first, second, again):
        directory.close()


def test_changes_between_listings_are_seen(root: Path) -> None:
    for index in range(30):
        make(root / f"f{index}")
        assert len(os.listdir(root)) == index + 1
    for index in range(30):
        os.rename(root / f"f{index}", root / f"g{index}")
        assert f"g{index}" in os.listdir(root)
    for index in range(30):
        os.unlink(root / f"g{index}")
        assert len(os.listdir(root)) == 29 - index


def test_listing_then_stat_tells_the_truth_after_changes(root: Path) -> None:
    """Attributes that came along with a listing must not outlive a change."""
    _fill(root, 200)
    for size in (0, 3, 7):
        for index in range(0, 200, 40):
            (root / f"entry-{index:06d}").write_bytes(b"x" * size)
        with os.scandir(root) as entries:
            sizes = {entry.name: entry.stat().st_size for entry in entries}
        assert {sizes[f"entry-{index:06d}"] for index in range(0, 200, 40)} == {size}
        assert sum(sizes.values()) == 5 * size


def test_an_open_directory_follows_its_directory_when_it_moves(root: Path) -> None:
    (root / "a").mkdir()
    names = _fill(root / "a", 300)
    directory = Directory(root / "a")
    got = [directory.next() for _ in range(50)]
    os.rename(root / "a", root / "b")
    got += list(directory.rest())
    directory.close()
    assert sorted(name for name in got if name and name[0] != ".") == names
