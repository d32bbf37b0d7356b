"""Every page of a small file-system image damaged, one at a time, with a wrong checksum and with right ones above it: opened
read-only, what does not depend on the page is read, and only what nothing can be read without keeps the image from opening.

One seed picks the bits: DAMAGE_SEED=n replays it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.errors import CorruptionError, MdstoreError
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import SUPERUSER
from mdstore.store import Store, Transaction
from mdstore.tools.reader import superblock
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.onode import decode_onode
from mdstore.tools.reader.store import StoreReader
from mdstore.tools.reader.tree import Tree
from tests.unit.reader_images import BLOCK, newest, patched

SEED = int(os.environ.get("DAMAGE_SEED", "20"))
ROOTS = {
    superblock.ROOT_OBJECTS: "objects", superblock.ROOT_COLLECTIONS: "collections", superblock.ROOT_FREE: "free",
    superblock.ROOT_REFERENCES: "references", superblock.ROOT_SHARED: "shared", superblock.ROOT_GROUPS: "groups",
    superblock.ROOT_FLOORS: "floors", superblock.ROOT_SNAPSHOTS: "snapshots", superblock.ROOT_DEAD: "dead",
}  # fmt: skip
# What cannot be mounted without: how all lies, what happened last, where every path begins; and the name behind the last of
# these, which a listing of the log looks at.
NEEDED = (b"table.server", b"events.", b"0000000000000001", b"origin")
Seen = dict[str, object]


class Page(NamedTuple):
    """What a page belongs to: a tree of the superblock, or `data` or `map` of the objects that share it."""

    tree: str
    level: int
    is_root: bool
    objects: frozenset[bytes]  # whose records, or bytes, lie in it or below it


# -- the image ---------------------------------------------------------------------------------------------------------
def made() -> bytes:
    """Checkpointed with files, clones, floors, a snapshot; then more in the log, over the same objects; killed."""
    device = MemoryDevice(6 << 20)
    store = Store.create(device, block_size=BLOCK, log_bytes=128 << 10, background=False)
    MetadataServer.format(store, now_ns=10**18, object_size=8192, log_unit=4096, log_object_size=65536)
    server = MetadataServer.mount(store, clock=lambda: 10**18)
    deep = server.mkdir(SUPERUSER, 1, b"deep", 0o750).ino

    def files(first: int, stop: int) -> None:
        for number in range(first, stop):
            attr, handle = server.create(SUPERUSER, deep if number % 3 else 1, b"f%02d" % number, 0o644, os.O_RDWR)
            server.write(handle, 0, bytes([number + 1]) * (number * 300))
            server.release(handle)
            if number % 7 == 0:
                server.link(SUPERUSER, attr.ino, deep, b"also %d" % number)
        server.syncfs()
        server.write_back()

    files(0, 20)
    store.apply(Transaction().create_collection("x").write("x", "origin", 0, b"o" * 9000))
    store.apply(Transaction().clone("x", "origin", "twin").write("x", "twin", 700, b"different"))
    for number in range(60):
        store.apply(Transaction().set_floor(number + 1, "x", prefix=f"writer-{number:02}."))
    store.snapshot("kept")
    files(20, 24)
    store.apply(Transaction().write("x", "origin", 0, b"n" * 2000))
    store.checkpoint()
    store.checkpoint()  # both superblocks reach the same pages: there is none to fall back to
    files(24, 27)
    server.syncfs()
    return device.image()


def pages_of(image: bytes, path: Path) -> dict[int, Page]:
    """Every page that the newest superblock reaches, runs of spilled values included, data blocks left out."""
    path.write_bytes(image)
    found: dict[int, Page] = {}
    with Image(str(path)) as opened:
        reader = StoreReader(opened, newest(image))
        for kind in reader.superblock.roots:
            tree = reader.root_tree(kind)
            for name, value in _walk(tree, ROOTS[kind], found, kind == superblock.ROOT_OBJECTS):
                onode = decode_onode(value) if kind == superblock.ROOT_OBJECTS else None
                for stream in ("data", "map") if onode is not None else ():
                    root = getattr(onode, f"{stream}_root")
                    if root is not None:
                        list(_walk(reader.tree(root, None), stream, found, False, name[8:]))
    return found


def _walk(
    tree: Tree, name: str, found: dict[int, Page], is_objects: bool, owner: bytes | None = None
) -> list[tuple[bytes, bytes]]:
    order: list[int] = []
    tree.on_pages = lambda page, count, is_overflow: order.append(page) is None
    rows = []
    for key, value in tree.items():
        for page in order:
            one = found.get(page, Page(name, 0, page == order[0], frozenset()))
            mine = {key[8:]} if is_objects else {owner} if owner is not None else set()
            found[page] = one._replace(objects=one.objects | mine)
        rows.append((key, value))
    return rows


# -- looking -----------------------------------------------------------------------------------------------------------
def look(image: bytes) -> Seen | str:
    """Everything below the root by path, an error's class where one is met; or who refused, and why."""
    try:
        store = Store.open(MemoryDevice.from_bytes(image), read_only=True, background=False)
    except CorruptionError as error:
        return f"store: {error}"
    seen: Seen = {f"x/{name}": _answer(lambda name=name: store.read("x", name)) for name in ("origin", "twin")}  # type: ignore[misc]
    try:
        server = MetadataServer.mount(store, read_only=True, clock=lambda: 10**18)
    except CorruptionError as error:
        return f"mount: {error}"
    _look_below(server, 1, "", seen)
    return seen


def _answer(ask: Callable[[], object]) -> object:
    try:
        return ask()
    except MdstoreError as error:
        return type(error)


def _look_below(server: MetadataServer, ino: int, path: str, seen: Seen) -> None:
    def content() -> object:
        if server.getattr(ino).mode >> 12 == 8:
            handle = server.open(SUPERUSER, ino, os.O_RDONLY)
            return server.read(handle, 0, 1 << 20)
        handle, entries = server.opendir(SUPERUSER, ino), []
        while page := server.readdir(handle, entries[-1].name if entries else None, 100):
            entries += page
        for entry in entries:
            _look_below(server, entry.attr.ino, f"{path}/{entry.name.decode()}", seen)
        return len(entries)

    seen[path] = _answer(content)


# -- damage ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def image() -> bytes:
    return made()


@pytest.fixture(scope="module")
def whole(image: bytes) -> Seen:
    found = look(image)
    assert isinstance(found, dict)
    assert len(found) > 30
    return found


@pytest.fixture(scope="module")
def pages(image: bytes, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Page]:
    print(f"DAMAGE_SEED={SEED}")
    return pages_of(image, tmp_path_factory.mktemp("pages") / "image")


def may_refuse(page: Page) -> str:
    """Who may: `store` where nothing can be found without the page, `mount` where the server needs an object in it."""
    if page.tree == "collections" or (page.tree == "objects" and page.is_root):
        return "store"
    if any(name.startswith(NEEDED) for name in page.objects):
        return "mount"
    return ""


def flipped(image: bytes, page: int, random: Random) -> bytes:
    """One bit: the checksum in the reference is wrong."""
    at = page * BLOCK + random.randrange(BLOCK)
    return image[:at] + bytes([image[at] ^ 1 << random.randrange(8)]) + image[at + 1 :]


def resealed(image: bytes, page: int, random: Random) -> bytes:
    """One bit, and every checksum from there up made right again."""
    at = page * BLOCK + random.randrange(4, BLOCK)
    return patched(image, at, bytes([image[at] ^ 1 << random.randrange(8)]))


def test_the_image_has_pages_of_every_kind(pages: dict[int, Page]) -> None:
    assert {page.tree for page in pages.values()} >= {"objects", "free", "floors", "snapshots", "dead", "data", "map"}


def test_a_damaged_page_hides_what_lies_in_it_and_nothing_else(image: bytes, whole: Seen, pages: dict[int, Page]) -> None:
    """The first record of the object tree, free space, floors, snapshots, counts of references: damage to any kept the
    whole image from being read."""
    random, refused = Random(SEED), {"": 0, "store": 0, "mount": 0}
    for number, page in sorted(pages.items()):
        seen = look(flipped(image, number, random))
        if isinstance(seen, str):
            assert seen.startswith(may_refuse(page) or "nobody"), f"page {number}, {page}: {seen}"
            refused[seen.partition(":")[0]] += 1
            continue
        refused[""] += 1
        for path, answer in seen.items():
            assert isinstance(answer, type) or answer == whole.get(path, "new"), f"page {number}, {page}: {path}"
        hidden = {path for path in whole if seen.get(path) != whole[path]}
        if page.tree not in ("objects", "data", "map"):
            assert not hidden, f"page {number}, {page}"
        elif page.tree != "objects":
            assert len(hidden) <= 2 or page.tree == "map", f"page {number}, {page}"
    assert refused[""] > 4 * (refused["store"] + refused["mount"])


def test_a_wrong_page_under_right_checksums_is_an_answer_or_an_error(image: bytes, pages: dict[int, Page]) -> None:
    random = Random(SEED)
    for number, page in sorted(pages.items()):
        seen = look(resealed(image, number, random))
        if isinstance(seen, str):
            assert seen.startswith(may_refuse(page) or "nobody"), f"page {number}, {page}: {seen}"
