"""A small world for trees: a memory device, a page allocator that forgets nothing, and the sealing of many trees at once."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mdstore.btree import REFS_DESCRIPTOR, Descriptor, Pager, Tree
from mdstore.btree._kernel import call_where_threads_meet
from mdstore.device.file import FileDevice
from mdstore.device.protocol import Buffer
from mdstore.errors import DeviceFailed, InvalidRequest


class MemoryPages:
    """Enough of the device protocol for a pager; grows as it is written; reads of never-written bytes fail."""

    name = "memory"
    sector_size = 512
    read_only = False
    size_most = 1 << 30  # it grows as it is written, up to here

    def __init__(self) -> None:
        self.image = bytearray()
        self.reads = 0
        self.fail_writes = False

    @property
    def size_bytes(self) -> int:
        return len(self.image)

    def fileno(self) -> int:
        return -1

    def lend(self, borrower: object) -> int:
        return -1

    def read(self, offset: int, length: int) -> bytes:
        self.reads += 1
        data = bytes(self.image[offset : offset + length])
        if len(data) != length:
            raise InvalidRequest(f"bytes {offset} and on lie past the end")
        return data

    def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        if self.fail_writes:
            raise DeviceFailed("write", str(offset), "told to fail")
        for buffer in buffers:
            end = offset + len(buffer)
            if end > self.size_most:
                raise InvalidRequest(f"{end} is past any image of these tests")
            if end > len(self.image):
                self.image.extend(bytes(end - len(self.image)))
            self.image[offset:end] = buffer
            offset = end

    def flush(self) -> None:
        pass

    def discard(self, offset: int, length: int) -> None:
        raise AssertionError("the kernel never discards")

    def resize(self, size_bytes: int) -> None:
        raise AssertionError("the kernel never resizes")

    def close(self) -> None:
        pass


class World:
    """One pager and its free space. `held` is the set of pages given out and not freed: it must equal what trees reach."""

    def __init__(self, seed: int, *, page_size: int = 256, cache_bytes: int = 1 << 20, holes: bool = True) -> None:
        self.random = random.Random(seed)
        self.device = MemoryPages()
        self.pager = Pager(self.device, page_size=page_size, cache_bytes=cache_bytes)
        self.pager.generation = 1
        self.next_page = 1
        self.holes = holes
        self.held: set[int] = set()
        self.asked = 0

    def allocate(self, pages: int) -> list[tuple[int, int]]:
        """Exactly `pages` pages in runs of random length with holes between them."""
        self.asked += pages
        runs = []
        while pages:
            run = min(pages, self.random.choice((1, 2, 5, 100))) if self.holes else pages
            self.next_page += self.random.choice((0, 0, 1)) if self.holes else 0
            runs.append((self.next_page, run))
            self.held.update(range(self.next_page, self.next_page + run))
            self.next_page += run
            pages -= run
        return runs

    def drain_freed(self) -> None:
        for address, pages, generation in self.pager.take_freed():
            assert generation <= self.pager.generation
            for page in range(address, address + pages):
                self.held.remove(page)

    def seal(self, tree: Tree) -> bytes:
        self.asked = 0
        wanted = tree.dirty_pages
        root = tree.seal(self.allocate)
        assert self.asked == wanted, "dirty_pages is what seal asks for"
        assert tree.dirty_pages == 0
        assert not tree.is_dirty
        assert tree.root() == root
        return root

    def write(self) -> None:
        self.pager.write_sealed()
        assert self.pager.sealed_pages == 0
        self.pager.generation += 1

    def reached(self, *trees: Tree) -> set[int]:
        """Every page the trees reach; each tree reaches a page once."""
        pages: set[int] = set()
        for tree in trees:
            own: set[int] = set()
            for address, count, _level in tree.pages():
                run = set(range(address, address + count))
                assert not run & own, "a page is reached twice"
                own |= run
            pages |= own
        return pages


class SharedWorld:
    """One pager with a tree of shared pages, and free space that many threads take from."""

    page_size = 256
    cache_bytes = 20_000
    pages = 1 << 18  # more than any test comes to write

    def __init__(self, device: FileDevice | MemoryPages) -> None:
        self.device = device
        self.pager = Pager(device, page_size=self.page_size, cache_bytes=self.cache_bytes)
        self.pager.generation = 1
        self.pager.refs = self.refs = Tree(self.pager, REFS_DESCRIPTOR, 1)
        self.lock = threading.Lock()
        self.next_page = 1
        self.held: set[int] = set()

    @classmethod
    def device_at(cls, path: Path) -> FileDevice:
        """An image with room for all of it; what the page cache of the system holds is read without the interpreter lock."""
        path.touch()
        os.truncate(path, cls.pages * cls.page_size)
        return FileDevice.open(str(path))

    def allocate(self, pages: int) -> list[tuple[int, int]]:
        with self.lock:
            first = self.next_page
            self.next_page += pages
            assert self.next_page < self.pages
            self.held.update(range(first, first + pages))
        return [(first, pages)]

    def drain(self) -> None:
        with self.lock:
            for address, pages, _ in self.pager.take_freed():
                for page in range(address, address + pages):
                    self.held.remove(page)  # a page is freed once

    def settle(self, *trees: Tree) -> None:
        """With all at rest: sealed and written, nothing lost and nothing kept."""
        for tree in (*trees, self.refs, self.refs):  # which sealing the others changes
            tree.seal(self.allocate)
        self.pager.write_sealed()
        self.drain()
        reached = set()
        for tree in (*trees, self.refs):
            assert tree.check() == []
            for address, pages, _ in tree.pages():
                reached.update(range(address, address + pages))
        assert reached == self.held
        assert self.pager.dirty_bytes == 0
        assert self.pager.held_bytes == 0, "no view is left"
        assert self.pager.oldest_pinned_generation is None
        self.pager.cache_bytes = 0
        assert self.pager.counters()["cached_bytes"] == 0


def new_tree(world: World, tree_id: int = 7, **fields: object) -> Tree:
    return Tree(world.pager, Descriptor(**fields), tree_id)  # type: ignore[arg-type]


def filled(world: World, count: int, size: int = 20, tree_id: int = 7, **fields: object) -> tuple[Tree, bytes]:
    tree = new_tree(world, tree_id, **fields)
    for n in range(count):
        tree.put(b"%06d" % n, b"%d" % n + b"." * size)
    root = world.seal(tree)
    world.write()
    return tree, root


@contextmanager
def meeting(hook: Callable[[str], object]) -> Iterator[None]:
    """Have `hook` called where threads meet, while it lasts."""
    call_where_threads_meet(hook)
    try:
        yield
    finally:
        call_where_threads_meet(None)
