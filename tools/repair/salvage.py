"""What is left of a tree: leaves that its index still reaches, and leaves that only a search of the device finds.

A search takes pages of the tree's id whose checksum is right, which no other page names, which hold no data of an object, which
lie in the key range that was lost and are no younger than what named them. Where the free tree can be read, pages in free space
are left out: they are of the past. Where it cannot, the newest generation wins, and older pages only fill what newer ones leave.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.page import LEAF, MAGIC, Page, Reference, Root, decode_page, verify
from mdstore.tools.reader.problems import Damage
from mdstore.tools.reader.scan import readable_pieces
from mdstore.tools.repair.build import Run

_CHUNK: Final = 1 << 20
_MAGIC: Final = MAGIC.to_bytes(4, "little")


class FoundLeaf(NamedTuple):
    """A leaf that reads: what names it, and its page."""

    reference: Reference
    page: Page


@dataclass(slots=True)
class Losses:
    """What a tree lost: sentences with the pages, and how many records no page has any more."""

    pages: list[str] = field(default_factory=list)
    records: int = 0


class Searcher:
    """Finds pages by what they say of themselves. The device is read once, when something is first asked for.

    Memory: 24 bytes and more for each leaf that nothing names.
    """

    def __init__(self, image: Image, page_size: int, space: Run, named: set[int], others: list[Run]) -> None:
        """`named`: pages that something names. `others`: runs, in order, that hold no page of the present."""
        self._image = image
        self._page_size = page_size
        self._space = space
        self._named = named
        self._others = others
        self._found: dict[int, list[tuple[int, int]]] | None = None

    def leaves(self, root: Root, newest: int, low: bytes, high: bytes | None) -> list[FoundLeaf]:
        """Leaves of that tree, none younger than `newest`, with keys in low <= key < high, in order; an older one that overlaps a
        newer one is left out."""
        if self._found is None:
            self._found = self._search()
        chosen: list[tuple[bytes, bytes, FoundLeaf]] = []
        for generation, address in sorted(self._found.get(root.tree_id, ()), reverse=True):
            leaf = self._leaf(root, address) if generation <= newest else None
            if leaf is None:
                continue
            first, last = leaf.page.records[0][0], leaf.page.records[-1][0]
            is_inside = low <= first and (high is None or last < high)
            if is_inside and all(last < other[0] or first > other[1] for other in chosen):
                chosen.append((first, last, leaf))
        return [leaf for _, _, leaf in sorted(chosen, key=lambda row: row[0])]

    def _leaf(self, root: Root, address: int) -> FoundLeaf | None:
        data = self._image.read(address * self._page_size, self._page_size)
        crc = crc32c(data[4:])
        try:
            page = decode_page(data, root)
        except Damage:
            return None
        if crc != int.from_bytes(data[:4], "little") or not page.records:
            return None
        below = len(page.records) | (1 << 63 if page.has_spilled else 0)
        return FoundLeaf(Reference((address,), crc, page.generation, below), page)

    def _search(self) -> dict[int, list[tuple[int, int]]]:
        """Tree id to (generation, address) of what looks like a leaf."""
        found: dict[int, list[tuple[int, int]]] = {}
        for address, data in looks_like_pages(self._image, self._page_size, self._space):
            if data[25] == LEAF and address not in self._named and not self._is_other(address):
                tree_id, generation = int.from_bytes(data[8:16], "little"), int.from_bytes(data[16:24], "little")
                found.setdefault(tree_id, []).append((generation, address))
        return found

    def _is_other(self, block: int) -> bool:
        index = bisect_right(self._others, (block, 1 << 62)) - 1
        return index >= 0 and block < sum(self._others[index])


def newest_generation(image: Image, page_size: int, space: Run) -> int:
    """The newest generation of any page whose checksum is right; 0 when there is none. Cost: reads the whole space."""
    newest = 0
    for _, data in looks_like_pages(image, page_size, space):
        generation = int.from_bytes(data[16:24], "little")
        if generation > newest and crc32c(data[4:]) == int.from_bytes(data[:4], "little"):
            newest = generation
    return newest


def looks_like_pages(image: Image, page_size: int, space: Run) -> Iterator[tuple[int, bytes]]:
    """(address, bytes) of every block that has a page's magic where a page has it."""
    first, last = space
    step = max(1, _CHUNK // page_size)
    for block in range(first, last, step):
        count = min(step, last - block)
        for start, _, data in readable_pieces(image, block * page_size, (block + count) * page_size, []):
            at = data.find(_MAGIC)
            while at >= 0:
                number, offset = divmod(start + at, page_size)
                if offset == 4 and at >= 4:
                    yield number, data[at - 4 : at - 4 + page_size]
                at = data.find(_MAGIC, at + 1)


def leaves(image: Image, page_size: int, root: Root, searcher: Searcher, losses: Losses) -> Iterator[FoundLeaf]:
    """Every leaf of a tree of pages that can be had, in order."""
    assert isinstance(root.content, Reference)
    yield from _below(image, page_size, root, searcher, losses, root.content, root.level, b"", None)


def _below(
    image: Image, page_size: int, root: Root, searcher: Searcher, losses: Losses, reference: Reference, level: int,
    low: bytes, high: bytes | None,
) -> Iterator[FoundLeaf]:  # fmt: skip
    try:
        page = load(image, page_size, root, reference, level)
    except Damage as damage:
        yield from _instead(root, searcher, losses, reference, damage, low, high)
        return
    if not level:
        yield FoundLeaf(reference, page)
        return
    for number, (separator, child) in enumerate(page.children):
        following = page.children[number + 1][0] if number + 1 < len(page.children) else high
        yield from _below(image, page_size, root, searcher, losses, child, level - 1, separator or low, following)


def _instead(
    root: Root, searcher: Searcher, losses: Losses, reference: Reference, damage: Damage, low: bytes, high: bytes | None
) -> Iterator[FoundLeaf]:
    found = searcher.leaves(root, reference.generation, low, high)
    records = sum(len(leaf.page.records) for leaf in found)
    missing = max(0, reference.records - records)
    said = f"page {reference.addresses[0]}: {damage.sentence}; {records} of the {reference.records} records below it were found"
    losses.pages.append(said)
    losses.records += missing
    yield from found


def load(image: Image, page_size: int, root: Root, reference: Reference, level: int) -> Page:
    """The page that a reference names, any copy of it. Damage."""
    last: Damage | None = None
    for address in reference.addresses:
        try:
            return verify(image.read(address * page_size, page_size), reference, root, level)
        except Damage as damage:
            last = damage
    assert last is not None
    raise last
