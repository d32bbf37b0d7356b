"""Small images for the tests of the second reader, and ways to damage them so that only the reader's rules can notice."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

from mdstore.device.memory import MemoryDevice
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import SUPERUSER
from mdstore.store import Store, Transaction
from mdstore.tools.reader import superblock
from mdstore.tools.reader.check import NORMAL, Options, check_image
from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.mds_inode import Entry, decode_entry
from mdstore.tools.reader.onode import decode_onode
from mdstore.tools.reader.problems import Problem
from mdstore.tools.reader.store import StoreReader

META, DATA, LOG = "meta", "data", "log"  # collections
BLOCK = 512
_MAGIC = b"mbt1"


def store_image(seed: int = 1, *, is_closed: bool = True, objects: int = 60, block_size: int = BLOCK) -> bytes:
    """Objects with data, attributes and maps, clones and revisions among them, values that spill; killed instead of closed on
    demand."""
    return store_images(seed, is_closed=is_closed, objects=objects, block_size=block_size)[-1]


def store_images(seed: int, *, is_closed: bool, objects: int = 60, block_size: int = BLOCK) -> tuple[bytes, bytes]:
    """The same image early and at its end."""
    random = Random(seed)
    device = MemoryDevice(3 << 20)
    store = Store.create(device, block_size=block_size, log_bytes=128 << 10, background=False)
    store.apply(Transaction().create_collection("c").create_collection("maps"))
    for number in range(objects):
        name = f"o{number:04}"
        change = Transaction().write("c", name, 0, random.randbytes(random.choice([10, 900, 5000])))
        change.setattr("c", name, "a", b"x" * random.randrange(40))
        change.map_set("maps", f"m{number % 4}", {b"k%05d" % number: random.randbytes(random.choice([3, 90, 2500]))})
        store.apply(change)
        if number == objects // 4:
            early = device.image()
        if number == objects // 2:
            store.checkpoint()
            store.apply(Transaction().clone("c", "o0001", "clone").clone("maps", "m1", "m1-clone"))
        if number % 9 == 5:
            store.apply(Transaction().remove("c", f"o{number - 2:04}").truncate("c", name, 7))
    store.apply(Transaction(rev=7).write("c", "o0001", 5, b"later").remove("c", "o0000"))
    store.apply(Transaction(rev=9).setattr("c", "o0001", "a", b"").at_revision(8).touch("c", "o0000"))
    store.apply(Transaction().write("c", "last", 100_000, b"behind a hole"))
    return early, _end(store, device, is_closed)


def file_system(*, is_closed: bool = True) -> bytes:
    """Directories, files of several sizes, a symbolic link, names that share an inode, attributes, something moved."""
    device = MemoryDevice(4 << 20)
    store = Store.create(device, block_size=BLOCK, log_bytes=128 << 10, background=False)
    MetadataServer.format(store, now_ns=10**18, object_size=8192, log_unit=4096, log_object_size=65536)
    server = MetadataServer.mount(store, clock=lambda: 10**18)
    top = server.mkdir(SUPERUSER, 1, b"top", 0o755).ino
    deep = server.mkdir(SUPERUSER, top, b"deep", 0o750).ino
    server.mkdir(SUPERUSER, top, b"empty", 0o700)
    for number in range(30):
        attr, handle = server.create(SUPERUSER, top if number % 3 else deep, b"f%02d" % number, 0o644, os.O_RDWR)
        server.write(handle, 0, bytes([number + 1]) * (number * 400))
        server.release(handle)
        if number == 7:
            server.link(SUPERUSER, attr.ino, deep, b"second name")
            server.setxattr(SUPERUSER, attr.ino, b"user.k", b"v")
    server.syncfs()  # what follows in the log knows the events before it durable
    server.symlink(SUPERUSER, top, b"symlink", b"f01")
    server.rename(SUPERUSER, top, b"empty", deep, b"moved")
    server.unlink(SUPERUSER, top, b"f04")
    server.syncfs()
    if is_closed:
        server.close()
        return device.image()
    return device.image()


def _end(store: Store, device: MemoryDevice, is_closed: bool) -> bytes:
    if is_closed:
        store.close()
    return device.image()


def changed(image: bytes, change: Callable[[Store], None]) -> bytes:
    """The image after something was done to it through the store, behind the metadata server's back."""
    device = MemoryDevice.from_bytes(image)
    store = Store.open(device, background=False)
    change(store)
    store.close()
    return device.image()


def check(image: bytes, tmp_path: Path, level: str = NORMAL) -> list[Problem]:
    """Everything that fsck finds."""
    path = tmp_path / "image"
    path.write_bytes(image)
    found: list[Problem] = []
    check_image(str(path), Options(level), found.append)
    return [problem for problem in found if problem.code != "superblock-unclean"]  # of every image that was not closed


def codes(problems: list[Problem]) -> set[str]:
    """The codes of errors and warnings."""
    return {problem.code for problem in problems if problem.severity != "note"}


# -- changes under right checksums -------------------------------------------------------------------------------------
def newest(image: bytes) -> superblock.Superblock:
    """The superblock that counts."""
    found = [superblock.decode(image[at : at + 4096]) for at in (0, 4096) if image[at : at + 8] == superblock.MAGIC]
    return max(found, key=lambda block: block.epoch)


def patched(image: bytes, at: int, data: bytes) -> bytes:
    """`data` at byte `at`, and every checksum from that page or superblock up made right again."""
    buffer = bytearray(image)
    if at < 8192:
        buffer[at : at + len(data)] = data
        _seal_superblock(buffer, at // 4096)
    else:
        _patch(buffer, at, data, newest(image).block_size)
    return bytes(buffer)


def _patch(buffer: bytearray, at: int, data: bytes, block_size: int) -> None:
    """Change bytes of a page, make its checksum right, and then, in the same way, every reference to it."""
    page = at // block_size
    block = slice(page * block_size, (page + 1) * block_size)
    is_tree_page = buffer[block][4:8] == _MAGIC
    old = bytes(buffer[block][:4]) if is_tree_page else crc32c(bytes(buffer[block])).to_bytes(4, "little")
    buffer[at : at + len(data)] = data
    new = crc32c(bytes(buffer[block][4:] if is_tree_page else buffer[block])).to_bytes(4, "little")
    if is_tree_page:
        buffer[block.start : block.start + 4] = new
    wanted = page.to_bytes(8, "little") + old
    found = buffer.find(wanted)
    while found >= 0 and old != new:
        if found < 8192:
            buffer[found + 8 : found + 12] = new
            _seal_superblock(buffer, found // 4096)
        else:
            _patch(buffer, found + 8, new, block_size)
        found = buffer.find(wanted, found + 1)


def _seal_superblock(buffer: bytearray, slot: int) -> None:
    start = slot * 4096
    body = bytes(buffer[start + 12 : start + 4096])
    buffer[start + 8 : start + 12] = crc32c(body).to_bytes(4, "little")
    spare = len(buffer) // 4096 * 4096 - 8192 + slot * 4096
    buffer[spare : spare + 4096] = buffer[start : start + 4096]


def superblock_start(image: bytes) -> int:
    """Where the newest superblock's primary copy begins."""
    return newest(image).epoch % 2 * 4096


def reachable(image: bytes, tmp_path: Path) -> list[int]:
    """Every page that the newest superblock reaches, data blocks left out."""
    path = tmp_path / "walked"
    path.write_bytes(image)
    pages: set[int] = set()

    def note(page: int, count: int, is_overflow: bool) -> bool:
        pages.add(page)
        return True

    with Image(str(path)) as opened:
        reader = StoreReader(opened, newest(image))
        for kind in reader.superblock.roots:
            tree = reader.root_tree(kind)
            tree.on_pages = note
            for _, value in tree.items():
                onode = decode_onode(value) if kind == superblock.ROOT_OBJECTS else None
                for root in (onode.data_root, onode.map_root) if onode is not None else ():
                    if root is not None:
                        below = reader.tree(root, None)
                        below.on_pages = note
                        list(below.items())
    return sorted(pages)


def place_of(image: bytes, wanted: bytes, tmp_path: Path) -> int:
    """The byte at which `wanted` stands in a page that is reachable."""
    block_size = newest(image).block_size
    for page in reachable(image, tmp_path):
        at = image.find(wanted, page * block_size, (page + 1) * block_size)
        if at >= 0:
            return at
    raise AssertionError(f"{wanted.hex()} stands nowhere")


def directory(ino: int) -> str:
    """The name of its object."""
    return f"{ino:016x}"


def entry(store: Store, ino: int, name: bytes) -> Entry:
    """A name's record in a directory."""
    value = store.map_get(META, directory(ino), name)
    assert value is not None
    return decode_entry(value)
