"""The LMDB engine's own promises: its format, growth of the map, the lock, long names."""

from __future__ import annotations

import builtins
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import lmdb
import pytest

from mdstore.engines import lmdb_tables
from mdstore.engines.lmdb import LmdbStore
from mdstore.engines.lmdb_tables import HEAD, U64, Onode, Table, decode_bucket, encode_bucket
from mdstore.errors import (
    CorruptionError,
    DeviceFailed,
    ImageBusy,
    InvalidRequest,
    NoSpace,
    NotAnImage,
    StoreClosed,
    TransactionError,
    UnsupportedFormat,
)
from mdstore.limits import MIB
from mdstore.store.transaction import Transaction

T = Transaction

PAGE = Path(__file__).resolve().parents[2] / "docs" / "format" / "lmdb-store.md"


def example(label: str) -> bytes:
    """The bytes of a worked example on the page."""
    block = re.search(rf"^{label} +([0-9a-f \n]+?)(?=\n[a-z`])", PAGE.read_text(), re.M)
    assert block is not None, label
    return bytes.fromhex(block[1])


# -- format ----------------------------------------------------------------------------------------------------------------


def test_the_page_and_the_code_agree_on_the_object_record() -> None:
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (?:u\d+|bytes) \| (\w+) \|", PAGE.read_text(), re.M)
    record = [(int(offset), int(size), field) for offset, size, field in rows][:9]
    assert [field for _, _, field in record[3:]] == list(Onode._fields[:-1])
    assert record[1][2] == Onode._fields[-1]
    ends = [offset + size for offset, size, _ in record]
    assert [offset for offset, _, _ in record] == [0, *ends[:-1]]
    assert ends[-1] == lmdb_tables._ONODE.size


def test_the_worked_examples_are_what_the_code_writes() -> None:
    onode = Onode(9, 70_000, 70_000, 1, 2)
    assert U64.pack(7) + b"dir" == example("objects key")
    assert onode.encode() == example("objects value")
    assert Onode.decode(example("objects value"), b"dir") == onode
    assert encode_bucket([(b"", b"A"), (b"xy", b"BC")]) == example("bucket")


def test_damaged_records_are_named_and_never_crash() -> None:
    raw = Onode(9, 1, 1, 1, 1).encode()
    for wrong in (b"", raw[:-1], raw + b"\0", b"\2" + raw[1:]):
        with pytest.raises(CorruptionError):
            Onode.decode(wrong, b"dir")
    bucket = encode_bucket([(b"", b"A"), (b"xy", b"BC")])
    cuts = [length for length in range(len(bucket)) if length not in (0, 7)]
    for length in cuts:
        with pytest.raises(CorruptionError):
            decode_bucket(bucket[:length], b"head")


def test_long_names_keep_their_order_among_short_ones(tmp_path: Path) -> None:
    seed = 511
    print(f"seed {seed}")
    rng = Random(seed)
    stems = [
        b"",
        b"n" * (HEAD - 1),
        b"n" * HEAD,
        b"n" * (HEAD - 1) + b"m",
        b"n" * (HEAD - 2) + b"\xff" * 2,
        b"\xff" * HEAD,
    ]
    environment = lmdb.open(str(tmp_path), max_dbs=1)
    table = Table(environment.open_db(b"t"))
    model: dict[bytes, bytes] = {}
    with environment.begin(write=True) as txn:
        for neighbour in (4, 6):
            table.put(txn, neighbour, b"n" * 600, b"of a neighbour")
        for _ in range(3000):
            name = rng.choice(stems) + bytes(rng.choices(b"\0a\xff", k=rng.randrange(4)))
            if rng.randrange(3):
                value = b"%d" % rng.randrange(1000)
                assert table.put(txn, 5, name, value) == (name not in model)
                model[name] = value
            else:
                assert table.delete(txn, 5, name) == (model.pop(name, None) is not None)
            assert table.get(txn, 5, name) == model.get(name)
        ordered = sorted(model.items())
        for bound in [None, *rng.sample(sorted(model), 30), b"n" * HEAD, b"n" * (HEAD + 1)]:
            wanted = [record for record in ordered if bound is None or record[0] >= bound]
            assert list(table.items(txn, 5, bound, None)) == wanted
            assert list(table.items(txn, 5, bound, None, reverse=True)) == wanted[::-1]
            below = [record for record in ordered if bound is None or record[0] < bound]
            assert list(table.items(txn, 5, None, bound)) == below
            assert list(table.items(txn, 5, None, bound, reverse=True)) == below[::-1]
        assert table.delete_range(txn, 5, b"n", None) == sum(name >= b"n" for name in model)
        assert [name for name, _ in table.items(txn, 5, None, None)] == sorted(name for name in model if name < b"n")
        assert not table.is_empty(txn, 6)
    environment.close()


# -- growth ----------------------------------------------------------------------------------------------------------------


def test_the_map_grows_under_open_iterations(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "s")
    records = {b"%04d" % number: b"v" * 100 for number in range(1000)}
    store.apply(T().create_collection("c").map_set("c", "o", records))
    walk = store.map_items("c", "o")
    seen = [next(walk) for _ in range(10)]
    before = store.statistics()["map_bytes"]
    for number in range(12):
        store.apply(T().write("c", f"large {number}", 0, b"x" * 10 * MIB).map_set("c", "o", {b"0500": b"%d" % number}))
    assert store.statistics()["map_bytes"] > before
    assert seen + list(walk) == list(records.items())
    assert store.map_get("c", "o", b"0500") == b"11"
    store.close()
    reopened = LmdbStore(tmp_path / "s")
    assert reopened.read("c", "large 11", 10 * MIB - 3) == b"xxx"
    reopened.close()


def fill(store: LmdbStore) -> int:
    """Write objects until there is no room; how many there was room for."""
    for number in range(1000):
        try:
            store.apply(T().write("c", f"{number}", 0, b"x" * 100_000))
        except TransactionError as refusal:
            assert type(refusal.cause) is NoSpace  # noqa: PT017
            return number
    raise AssertionError("100 MB found room")


def test_a_full_map_refuses_the_transaction_and_still_removes(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "s", map_bytes_max=4 * MIB)
    store.apply(T().create_collection("c"))
    written = fill(store)
    assert written > 20
    assert len(store.list_objects("c")) == written
    store.apply(T().remove("c", "0").remove("c", "1").remove("c", "2"))
    store.apply(T().touch("c", "LMDB reuses a page two commits after the one that freed it"))
    store.apply(T().write("c", "again", 0, b"x" * 100_000))
    assert store.stat("c", "again").size == 100_000
    store.close()


@contextmanager
def files_limited_to(size_bytes: int) -> Iterator[None]:
    """Writes past that size of any file fail, as they do on a medium that gives up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_failed_write_latches_the_store_until_it_is_reopened(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    store.apply(T().create_collection("c").write("c", "o", 0, b"kept"))
    with files_limited_to(MIB), pytest.raises(DeviceFailed):
        store.apply(T().write("c", "large", 0, b"x" * 4 * MIB))
    for call in (store.sync, store.list_collections, lambda: store.submit(T())):
        with pytest.raises(DeviceFailed):
            call()
    store.close()
    reopened = LmdbStore(tmp_path)
    assert reopened.list_objects("c") == [b"o"]
    assert reopened.read("c", "o") == b"kept"
    reopened.close()


def test_a_full_file_system_refuses_the_transaction_and_the_store_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LmdbStore(tmp_path)
    store.apply(T().create_collection("c").write("c", "o", 0, b"kept"))
    monkeypatch.setattr(LmdbStore, "_free_bytes", lambda _: 4096)
    with files_limited_to(MIB), pytest.raises(TransactionError) as caught:
        store.apply(T().write("c", "large", 0, b"x" * 4 * MIB))
    assert type(caught.value.cause) is NoSpace
    store.apply(T().remove("c", "o"))
    assert store.list_objects("c") == []
    store.close()


# -- opening ---------------------------------------------------------------------------------------------------------------


def test_a_second_opener_is_told_who_holds_it(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "s")
    for read_only in (False, True):
        with pytest.raises(ImageBusy) as caught:
            LmdbStore(tmp_path / "s", read_only=read_only)
        assert caught.value.holder == "this process"
    store.close()
    LmdbStore(tmp_path / "s").close()


def test_what_is_no_environment_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAnImage):
        LmdbStore(tmp_path / "nothing", read_only=True)
    (tmp_path / "garbage").mkdir()
    (tmp_path / "garbage" / "data.mdb").write_bytes(b"not an LMDB file" * 1000)
    with pytest.raises(NotAnImage):
        LmdbStore(tmp_path / "garbage")
    lmdb.open(str(tmp_path / "foreign")).close()
    with pytest.raises(NotAnImage):
        LmdbStore(tmp_path / "foreign", read_only=True)


def test_another_format_version_is_refused(tmp_path: Path) -> None:
    LmdbStore(tmp_path).close()
    environment = lmdb.open(str(tmp_path), max_dbs=6)
    meta = environment.open_db(b"meta")
    with environment.begin(write=True) as txn:
        txn.put(b"format", U64.pack(99), db=meta)
    environment.close()
    with pytest.raises(UnsupportedFormat):
        LmdbStore(tmp_path)


def test_an_iteration_of_a_closed_store_says_so(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path)
    store.apply(T().create_collection("c").map_set("c", "o", {b"a": b"1", b"b": b"2"}))
    walk, done = store.map_items("c", "o"), store.map_items("c", "o")
    assert (next(walk), len(list(done))) == ((b"a", b"1"), 2)
    store.close()
    with pytest.raises(StoreClosed):
        next(walk)
    assert list(done) == []


def test_without_the_package_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **named: Any) -> Any:
        if name == "lmdb":
            raise ImportError("no lmdb here")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InvalidRequest, match=r"mdstore\[lmdb\]"):
        LmdbStore(tmp_path)
