"""Import and export against an in-memory name space: what goes in comes out, stopped runs are completed, bad names refused."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mdstore.errors import PosixError
from mdstore.limits import FILE_SIZE_MAX
from mdstore.mds.vfs import ROOT_INO, SUPERUSER, DirEntry, SetAttr
from mdstore.tools import source_tree
from mdstore.tools.compare_tree import Compared, differences, first_difference
from mdstore.tools.export_tree import Exporter
from mdstore.tools.import_entry import Imported
from mdstore.tools.import_tree import BATCH, Acknowledger, Importer
from mdstore.tools.locate import resolve
from mdstore.tools.output import Silent
from mdstore.tools.unreadable import listing
from tests.model.memory_vfs import MemoryVfs

IS_ROOT = os.geteuid() == 0


def _fail(line: str) -> None:
    raise AssertionError(f"unexpected complaint: {line}")


def _import(vfs: MemoryVfs, source: Path, complain: Callable[[str], None] = _fail, **options: Any) -> Imported:
    return Importer(vfs, os.fsencode(source), complain=complain, **options).run(vfs.getattr(ROOT_INO))


def _export(vfs: MemoryVfs, target: Path, *, replace: bool = False, complain: Callable[[str], None] = _fail) -> Any:
    exporter = Exporter(vfs, replace=replace, superuser=IS_ROOT, progress=Silent(), complain=complain)
    return exporter.run(vfs.getattr(ROOT_INO), os.fsencode(target))


def _differences(left: Path, right: Path) -> list[str]:
    return list(differences(os.fsencode(left), os.fsencode(right), owners=IS_ROOT))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """One of everything that a user may have, with odd names, modes and times."""
    top = tmp_path / "source"
    (top / "sub" / "deep").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "plain").write_bytes(b"hello\n")
    (top / "nothing").write_bytes(b"")
    (top / "sub" / "big").write_bytes(random.Random(7).randbytes(3 * source_tree.CHUNK + 17))
    (top / "sub" / "deep" / "exact").write_bytes(bytes(range(256)) * (source_tree.CHUNK // 256))
    os.link(top / "plain", top / "sub" / "plain again")
    os.symlink("plain", top / "link")
    os.symlink("/nowhere/at all", top / "sub" / "dangling")
    os.mkfifo(top / "pipe")
    odd = os.fsencode(top) + b"/\xff\x01 odd\n"
    with open(odd, "wb") as stream:
        stream.write(b"odd")
    with open(top / "sparse", "wb") as stream:
        stream.truncate(64 << 20)
        stream.seek(32 << 20)
        stream.write(b"an island")
    os.chmod(top / "plain", 0o640)
    os.chmod(top / "sub", 0o711)
    for number, path in enumerate(sorted(top.rglob("*"), key=os.fsencode, reverse=True)):
        os.utime(path, ns=(number * 1_000_000_007, 1_600_000_000_123_456_789 + number), follow_symlinks=False)
    os.utime(top, ns=(5, -1_000_000_001))
    return top


def test_everything_comes_out_as_it_went_in(source: Path, tmp_path: Path) -> None:
    vfs = MemoryVfs()
    done = _import(vfs, source)
    vfs.assert_state()
    assert (done.files, done.directories, done.symlinks, done.links, done.specials) == (6, 3, 2, 1, 1)
    exported = _export(vfs, tmp_path / "out")
    assert (exported.files, exported.symlinks, exported.links, exported.specials) == (6, 2, 1, 1)
    assert _differences(source, tmp_path / "out") == []


def test_holes_stay_holes_on_both_ways(source: Path, tmp_path: Path) -> None:
    if os.stat(source / "sparse").st_blocks * 512 >= 64 << 20:
        pytest.skip("the file system of the temporary directory makes no holes")
    vfs = MemoryVfs()
    done = _import(vfs, source)
    assert done.bytes < 16 << 20
    _export(vfs, tmp_path / "out")
    assert os.stat(tmp_path / "out" / "sparse").st_blocks * 512 < 16 << 20


def test_a_second_run_passes_by_what_is_complete(source: Path, tmp_path: Path) -> None:
    vfs = MemoryVfs()
    first = _import(vfs, source)
    second = _import(vfs, source)
    assert second.skipped == first.files + first.symlinks + first.links + first.specials
    assert (second.files, second.bytes, second.links) == (0, 0, 0)
    _export(vfs, tmp_path / "out")
    assert _differences(source, tmp_path / "out") == []


class _Stopped(BaseException):
    """The kill."""


class _StoppingVfs(MemoryVfs):
    """Dies at the n-th changing call, as a killed process does: nothing after it happens."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.left = calls

    def _tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise _Stopped

    def create(self, *args: Any) -> Any:
        self._tick()
        return super().create(*args)

    def write(self, *args: Any) -> int:
        self._tick()
        return super().write(*args)

    def setattr(self, *args: Any) -> Any:
        self._tick()
        return super().setattr(*args)

    def link(self, *args: Any) -> Any:
        self._tick()
        return super().link(*args)


def test_a_run_stopped_at_any_call_is_completed_by_the_next(source: Path, tmp_path: Path) -> None:
    stops = 0
    for calls in range(1, 200):
        vfs = _StoppingVfs(calls)
        try:
            _import(vfs, source)
        except _Stopped:
            stops += 1
        else:
            break
        vfs.left = 0
        _import(vfs, source)
        vfs.assert_state()
        target = tmp_path / f"out{calls}"
        _export(vfs, target)
        assert _differences(source, target) == [], f"stopped at call {calls}"
    assert stops > 20


def test_half_a_file_left_by_a_run_is_copied_again(source: Path, tmp_path: Path) -> None:
    """The size alone says nothing: a file of the right size whose time of change was not set yet is not complete."""
    vfs = MemoryVfs()
    _, handle = vfs.create(SUPERUSER, ROOT_INO, b"plain", 0o600, os.O_WRONLY)
    vfs.write(handle, 0, b"HELLO\n")
    vfs.release(handle)
    _import(vfs, source)
    _export(vfs, tmp_path / "out")
    assert _differences(source, tmp_path / "out") == []


def test_changed_files_are_copied_again_and_others_kept(source: Path, tmp_path: Path) -> None:
    vfs = MemoryVfs()
    _import(vfs, source)
    (source / "nothing").write_bytes(b"something")
    os.chmod(source / "sub" / "big", 0o400)
    os.unlink(source / "link")
    os.symlink("sub", source / "link")
    done = _import(vfs, source)
    assert (done.files, done.symlinks) == (1, 1)
    _export(vfs, tmp_path / "out")
    assert _differences(source, tmp_path / "out") == []


@pytest.mark.parametrize(("inside", "outside", "number"), [("dir", "file", errno.EISDIR), ("file", "dir", errno.ENOTDIR)])
def test_a_file_and_a_directory_of_one_name_do_not_mix(tmp_path: Path, inside: str, outside: str, number: int) -> None:
    top = tmp_path / "top"
    top.mkdir()
    (top / "name").mkdir() if outside == "dir" else (top / "name").write_bytes(b"")
    vfs = MemoryVfs()
    if inside == "dir":
        vfs.mkdir(SUPERUSER, ROOT_INO, b"name", 0o755)
    else:
        vfs.mknod(SUPERUSER, ROOT_INO, b"name", stat.S_IFREG | 0o644)
    with pytest.raises(PosixError, match="remove it first") as caught:
        _import(vfs, top)
    assert (caught.value.errno, caught.value.subject) == (number, b"name")


def test_extended_attributes_of_the_user_come_along(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    (top / "file").write_bytes(b"x")
    try:
        os.setxattr(top / "file", "user.colour", b"gr\0n")
    except OSError as error:
        pytest.skip(f"the file system of the temporary directory keeps no attributes: {error}")
    vfs = MemoryVfs()
    _import(vfs, top)
    _export(vfs, tmp_path / "out")
    assert os.getxattr(tmp_path / "out" / "file", "user.colour") == b"gr\0n"
    os.removexattr(top / "file", "user.colour")
    _import(vfs, top)
    assert vfs.listxattr(resolve(vfs, b"/file").ino) == []


def test_what_cannot_be_read_is_named_left_out_and_counted(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = source_tree.open_file

    def refuse(path: bytes) -> tuple[int, os.stat_result]:
        if path.endswith(b"/big"):
            raise PermissionError(errno.EACCES, "Permission denied", os.fsdecode(path))
        return opened(path)

    monkeypatch.setattr("mdstore.tools.import_entry.open_file", refuse)
    lines: list[str] = []
    vfs = MemoryVfs()
    done = _import(vfs, source, complain=lines.append)
    assert done.troubles == 1
    assert [line.partition(";")[0] for line in lines] == [f"{source}/sub/big: Permission denied"]
    assert lines[0].endswith("; left out")
    with pytest.raises(PosixError):
        resolve(vfs, b"/sub/big")
    _export(vfs, tmp_path / "out")
    assert _differences(source, tmp_path / "out") == ["/sub/big: missing"]


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = tmp_path / "top"
    top.mkdir()
    (top / "log").write_bytes(b"a" * 100)
    read, changes = source_tree.pieces, iter([b"longer" * 50, b"short"])

    def racing(fd: int, size_bytes: int, blocks: int) -> Any:
        yield from read(fd, size_bytes, blocks)
        change = next(changes, None)
        if change is not None:
            (top / "log").write_bytes(change)

    monkeypatch.setattr("mdstore.tools.import_entry.pieces", racing)
    vfs = MemoryVfs()
    assert _import(vfs, top).troubles == 0
    _export(vfs, tmp_path / "out")
    assert (tmp_path / "out" / "log").read_bytes() == b"short"


def test_a_file_that_never_stops_changing_is_told_and_copied_again_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = tmp_path / "top"
    top.mkdir()
    (top / "log").write_bytes(b"0000")
    read, moments = source_tree.pieces, iter(range(1, 100))

    def racing(fd: int, size_bytes: int, blocks: int) -> Any:
        yield from read(fd, size_bytes, blocks)
        moment = next(moments)
        (top / "log").write_bytes(b"%04d" % moment)
        os.utime(top / "log", ns=(moment, moment))

    vfs, lines = MemoryVfs(), list[str]()
    with monkeypatch.context() as patched:
        patched.setattr("mdstore.tools.import_entry.pieces", racing)
        assert _import(vfs, top, complain=lines.append).troubles == 1
    assert lines == [f"{top}/log: it kept changing while it was read; run the import again"]
    assert _import(vfs, top).files == 1
    _export(vfs, tmp_path / "out")
    assert _differences(top, tmp_path / "out") == []


def test_the_image_itself_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(b"image")
    (tmp_path / "other").write_bytes(b"other")
    status = os.stat(tmp_path / "disk.img")
    vfs = MemoryVfs()
    _import(vfs, tmp_path, avoid=(status.st_dev, status.st_ino))
    assert [entry.name for entry in listing(vfs, ROOT_INO)] == [b"other"]


def test_excluded_names_are_left_out_everywhere(source: Path) -> None:
    vfs = MemoryVfs()
    _import(vfs, source, exclude=(b"plain*", b"deep"))
    assert b"plain" not in [entry.name for entry in listing(vfs, ROOT_INO)]
    assert [entry.name for entry in listing(vfs, resolve(vfs, b"/sub").ino)] == [b"big", b"dangling"]


def test_no_lookup_reference_is_left_behind(source: Path) -> None:
    vfs = MemoryVfs()
    _import(vfs, source)
    for entry in list(listing(vfs, ROOT_INO)):
        if not stat.S_ISDIR(entry.attr.mode):
            vfs.unlink(SUPERUSER, ROOT_INO, entry.name)
            if entry.attr.nlink == 1:
                with pytest.raises(PosixError):
                    vfs.getattr(entry.attr.ino)


class _CountingClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_acknowledgements_follow_the_flush_in_batches() -> None:
    synced: list[int] = []
    out, clock = io.StringIO(), _CountingClock()
    acknowledger = Acknowledger(lambda: synced.append(out.tell()), out, clock)
    for number in range(BATCH + 1):
        acknowledger.complete(b"%d" % number)
    assert len(out.getvalue().splitlines()) == BATCH
    clock.now = 1.0
    acknowledger.complete(b"late \xff")
    assert synced[0] == 0, "the flush comes before the lines"
    assert len(synced) == 2
    assert os.fsencode(json.loads(out.getvalue().splitlines()[-1])) == b"late \xff"
    acknowledger.settle()
    assert len(synced) == 2, "nothing pending: nothing to flush"


def test_every_completed_path_is_acknowledged(source: Path) -> None:
    out = io.StringIO()
    vfs = MemoryVfs()
    _import(vfs, source, acknowledger=Acknowledger(vfs.syncfs, out, _CountingClock()))
    told = {os.fsencode(json.loads(line)) for line in out.getvalue().splitlines()}
    there = {os.fsencode(path.relative_to(source)) for path in source.rglob("*")}
    assert told == there


class _HostileVfs(MemoryVfs):
    """An image whose directory holds a name that no directory can."""

    def __init__(self, name: bytes) -> None:
        super().__init__()
        self.name = name

    def readdir(self, handle: int, after: bytes | None, limit: int, *, count_lookups: bool = False) -> list[DirEntry]:
        found = super().readdir(handle, after, limit, count_lookups=count_lookups)
        return [DirEntry(self.name, entry.attr) for entry in found] if after is None else []


@pytest.mark.parametrize("name", [b"..", b".", b"", b"../../escaped", b"a/b", b"nul\0"])
def test_names_that_would_leave_the_target_are_refused(tmp_path: Path, name: bytes) -> None:
    vfs = _HostileVfs(name)
    vfs.mknod(SUPERUSER, ROOT_INO, b"x", stat.S_IFREG | 0o644)
    lines: list[str] = []
    done = _export(vfs, tmp_path / "out", complain=lines.append)
    assert (done.troubles, done.files, len(done.left_out), len(lines)) == (1, 0, 1, 1)
    assert "a name without slashes" in lines[0]
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == []


def test_export_never_writes_through_a_symlink(tmp_path: Path) -> None:
    vfs = MemoryVfs()
    directory = vfs.mkdir(SUPERUSER, ROOT_INO, b"dir", 0o755)
    vfs.mknod(SUPERUSER, directory.ino, b"file", stat.S_IFREG | 0o644)
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    out.mkdir()
    os.symlink(elsewhere, out / "dir")
    with pytest.raises(FileExistsError):
        _export(vfs, out, replace=True)
    assert os.listdir(elsewhere) == []


def test_export_replaces_only_when_told(tmp_path: Path) -> None:
    vfs = MemoryVfs()
    vfs.mknod(SUPERUSER, ROOT_INO, b"file", stat.S_IFREG | 0o644)
    out = tmp_path / "out"
    out.mkdir()
    (out / "file").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        _export(vfs, out)
    assert (out / "file").read_bytes() == b"mine"
    _export(vfs, out, replace=True)
    assert (out / "file").read_bytes() == b""


def test_a_file_over_the_limit_is_refused_with_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = tmp_path / "top"
    top.mkdir()
    (top / "huge").write_bytes(b"x")
    monkeypatch.setattr("mdstore.tools.import_entry.pieces", lambda fd, size, blocks: iter(()))
    really = os.fstat

    def enormous(fd: int) -> os.stat_result:
        fields = list(really(fd))
        fields[stat.ST_SIZE] = FILE_SIZE_MAX + 1
        return os.stat_result(fields, {"st_blocks": 8, "st_mtime_ns": 1, "st_atime_ns": 1, "st_rdev": 0})

    monkeypatch.setattr("os.fstat", enormous)
    with pytest.raises(PosixError) as caught:
        _import(MemoryVfs(), top)
    assert (caught.value.errno, caught.value.subject) == (errno.EFBIG, b"huge")


# -- the comparison itself must see what it is for --------------------------------------------------------------------


def _chmod(path: Path) -> None:
    os.chmod(path / "plain", 0o600)


def _touch(path: Path) -> None:
    os.utime(path / "plain", ns=(0, 17))


def _flip(path: Path) -> None:
    status = os.stat(path / "sub" / "big")
    with open(path / "sub" / "big", "r+b") as stream:
        stream.seek(source_tree.CHUNK + 1)
        stream.write(b"!!")
    os.utime(path / "sub" / "big", ns=(status.st_atime_ns, status.st_mtime_ns))


def _unlink(path: Path) -> None:
    os.unlink(path / "nothing")


def _retarget(path: Path) -> None:
    os.unlink(path / "link")
    os.symlink("elsewhere", path / "link")


def _split_link(path: Path) -> None:
    data = (path / "plain").read_bytes()
    os.unlink(path / "plain")
    (path / "plain").write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "seen"),
    [
        (_chmod, "mode is 0600"), (_touch, "time of change"), (_flip, f"content differs from byte {source_tree.CHUNK + 1}"),
        (_unlink, "/nothing: missing"), (_retarget, "points to elsewhere"), (_split_link, "not a link to the same file"),
    ],
)  # fmt: skip
def test_the_comparison_sees(source: Path, tmp_path: Path, damage: Callable[[Path], None], seen: str) -> None:
    vfs = MemoryVfs()
    _import(vfs, source)
    _export(vfs, tmp_path / "out")
    damage(tmp_path / "out")
    assert any(seen in line for line in _differences(source, tmp_path / "out"))


def test_first_difference_and_counts(tmp_path: Path) -> None:
    for name, data in (("a", b"12345"), ("b", b"12x45"), ("c", b"123")):
        (tmp_path / name).write_bytes(data)
    a, b, c = (os.fsencode(tmp_path / name) for name in "abc")
    assert (first_difference(a, b), first_difference(a, c), first_difference(a, a)) == (2, 3, None)
    compared = Compared()
    assert list(differences(os.fsencode(tmp_path), os.fsencode(tmp_path), compared=compared)) == []
    assert (compared.entries, compared.files, compared.bytes) == (4, 3, 13)


def test_deep_trees_need_no_recursion(tmp_path: Path) -> None:
    vfs, at = MemoryVfs(), ROOT_INO
    for _ in range(1500):
        at = vfs.mkdir(SUPERUSER, at, b"d", 0o755).ino
    vfs.setattr(SUPERUSER, at, SetAttr(mode=0o700))
    try:
        assert _export(vfs, tmp_path / "out").directories == 1501
        assert _import(MemoryVfs(), tmp_path / "out").directories == 1500
    finally:  # the cleaning of temporary directories does recurse
        subprocess.run(["rm", "-rf", tmp_path / "out"], check=True)
