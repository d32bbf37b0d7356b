"""Stores by URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from mdstore.device.file import FileDevice
from mdstore.engines.registry import open_store
from mdstore.errors import DeviceFailed, ImageBusy, InvalidRequest, MdstoreError, NotAnImage
from mdstore.limits import MIB
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction

T = Transaction


def test_mem_is_a_new_empty_store_each_time() -> None:
    first, second = open_store("mem:"), open_store("mem:")
    first.apply(T().create_collection("c"))
    assert (first.list_collections(), second.list_collections()) == ([b"c"], [])


@pytest.mark.parametrize("scheme", ["btree", "lmdb"])
def test_what_one_opening_wrote_the_next_one_reads(scheme: str, tmp_path: Path) -> None:
    url = f"{scheme}:{tmp_path / 'with:colon'}"
    if scheme == "btree":
        Store.create(FileDevice.create(tmp_path / "with:colon", 8 * MIB)).close()
    store = open_store(url)
    store.apply(T().create_collection("c").write("c", "o", 0, b"data"))
    with pytest.raises(ImageBusy):
        open_store(url)
    store.close()
    reader = open_store(url, read_only=True)
    assert reader.read_only
    assert reader.read("c", "o") == b"data"
    reader.close()


@pytest.mark.parametrize("url", ["", "mem", "mem:x", "btree:", "lmdb:", "btree", "/a/path", "rados:pool", "MEM:"])
def test_a_url_that_names_no_store_is_refused_with_the_ones_that_do(url: str) -> None:
    with pytest.raises(InvalidRequest, match="btree:PATH"):
        open_store(url)
    with pytest.raises(InvalidRequest):
        open_store("mem:", read_only=True)


def test_a_file_that_is_no_image_is_refused_and_let_go(tmp_path: Path) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(b"garbage" * 20_000)
    for _ in range(2):
        with pytest.raises(NotAnImage):
            open_store(f"btree:{path}")
    with pytest.raises(MdstoreError) as caught:
        open_store(f"btree:{tmp_path / 'nothing'}")
    assert isinstance(caught.value, DeviceFailed | NotAnImage | MdstoreError)
