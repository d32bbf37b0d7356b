"""Reading trees: records in order with bounded memory, every page verified on the way. docs/format/page.md.

Invariants, checked while a whole tree streams by
1. a child's keys lie at or above its separator and below the next one, so the stream rises;
2. a reference's number of records is that of the records below it, and the root's is that of all;
3. a reference tells of spilled values when, and only when, there are any below.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import Final

from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.named import NamedPage
from mdstore.tools.reader.page import (
    COMPARE_BYTES,
    COMPARE_U64_BE,
    DATED_OVERFLOW_INDEX,
    OVERFLOW_INDEX,
    Child,
    Page,
    PageEntry,
    Reference,
    Root,
    Shape,
    Spill,
    decode_page,
    decode_root,
    overflow_level,
    verify,
)
from mdstore.tools.reader.problems import Damage

OnPages = Callable[[int, int, bool], bool]
OnDamage = Callable[[Damage], None]
OnNamed = Callable[[tuple[int, ...], NamedPage], None]


_PageKey = tuple[int, int, int, int]
_Pending = tuple[Reference, int, bytes, bytes | None, bool]  # a page to visit: level, bounds, whether it was counted before
_FIRST: Final = itemgetter(0)


class PageCache:
    """The pages that look-ups met last, decoded and verified: at most `size` of them."""

    def __init__(self, size: int = 256) -> None:
        self._pages: OrderedDict[_PageKey, Page] = OrderedDict()
        self._size = size

    def get(self, key: _PageKey) -> Page | None:
        page = self._pages.get(key)
        if page is not None:
            self._pages.move_to_end(key)
        return page

    def put(self, key: _PageKey, page: Page) -> None:
        self._pages[key] = page
        if len(self._pages) > self._size:
            self._pages.popitem(last=False)


@dataclass(slots=True)
class _Frame:
    """An index page half walked."""

    reference: Reference
    level: int
    children: list[Child]
    low: bytes
    high: bytes | None
    is_counted: bool
    next: int = 0
    seen: int = 0


class Tree:
    """One tree. `on_damage` None: damage is raised. Otherwise it is handed there, the subtree is left out, and
    `is_partial` is set. `on_pages(first, pages, is_overflow)` hears of every reference to pages; where it answers False,
    what the page names was counted before: it is left out, or, with `follows_counted`, its records come and its pages do not.
    `on_named(addresses, page)` hears of the same references, whole or not, with what they say of the page."""

    def __init__(
        self, image: Image, page_size: int, root: bytes, shape: Shape | None = None, on_damage: OnDamage | None = None
    ) -> None:
        self.root: Root = decode_root(root, shape)
        self.on_damage = on_damage
        self.on_pages: OnPages | None = None
        self.on_named: OnNamed | None = None
        self.cache: PageCache | None = None
        self.follows_counted = False
        self.is_partial = False
        self._image = image
        self._page_size = page_size
        self._has_plain_order = self.root.comparator in (COMPARE_BYTES, COMPARE_U64_BE)

    # -- streams -------------------------------------------------------------------------------------------------------
    def items(self, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Records in order, from key `start` on (bytes and u64 big-endian trees only). Checks the invariants when it
        begins at the beginning."""
        content = self.root.content
        if not isinstance(content, Reference):
            self._check_embedded(content)
            for record in content:
                if record[0] >= start or not self._has_plain_order:
                    yield record
            return
        yield from self._walk(content, start)

    def get(self, key: bytes) -> bytes | None:
        """One value, or None. Bytes and u64 big-endian trees only. Cost: one page for each level."""
        content = self.root.content
        if not isinstance(content, Reference):
            return dict(content).get(key)
        level = self.root.level
        page = self._cached(content, level)
        while page.children:
            index = _child_for(page.children, key)
            level -= 1
            page = self._cached(page.children[index][1], level)
        at = bisect_left(page.records, key, key=_FIRST)
        if at == len(page.records) or page.records[at][0] != key:
            return None
        value = page.records[at][1]
        return self._read_spill(value) if isinstance(value, Spill) else value

    def _cached(self, reference: Reference, level: int) -> Page:
        """A page for a look-up: the same ones come again and again."""
        if self.cache is None:
            return self._load(reference, level)
        key = (reference.addresses[0], reference.crc, self.root.tree_id, level)
        page = self.cache.get(key)
        if page is None:
            page = self._load(reference, level)
            self.cache.put(key, page)
        return page

    def _walk(self, reference: Reference, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Depth first, one frame for each level."""
        is_whole = not start
        frames: list[_Frame] = []
        pending: _Pending | None = (reference, self.root.level, b"", None, False)
        total = 0
        while pending is not None or frames:
            if pending is None:
                pending = self._step(frames, is_whole)
                continue
            current, level, low, high, is_counted = pending
            pending = None
            page, is_counted = self._visit(current, level, low, high, is_counted)
            if page is None:
                self._count(frames, current.records)
                total += current.records
            elif page.children:
                frame = _Frame(current, level, page.children, low, high, is_counted)
                frame.next = _child_for(page.children, start) if start and not is_whole else 0
                frames.append(frame)
            else:
                yield from self._records(page, start)
                self._count(frames, len(page.records))
                total += len(page.records)
                if is_whole:
                    self._compare(current, level, len(page.records), page.has_spilled)
        if is_whole and total != self.root.count:
            self._report(Damage("tree-count", "records of the tree", total, self.root.count))

    def _step(self, frames: list[_Frame], is_whole: bool) -> _Pending | None:
        """The next child of the innermost page; None when it has no more."""
        frame = frames[-1]
        if frame.next == len(frame.children):
            frames.pop()
            if is_whole:
                has_spilled = any(reference.has_spilled for _, reference in frame.children)
                self._compare(frame.reference, frame.level, frame.seen, has_spilled)
            return None
        index = frame.next
        frame.next += 1
        separator, reference = frame.children[index]
        following = frame.children[index + 1][0] if frame.next < len(frame.children) else frame.high
        return reference, frame.level - 1, separator or frame.low, following, frame.is_counted

    def _records(self, page: Page, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        if not page.has_spilled and (not start or (page.records and page.records[0][0] >= start)):
            yield from page.records  # type: ignore[misc]
            return
        for key, value in page.records:
            if key < start and self._has_plain_order:
                continue
            if not isinstance(value, Spill):
                yield key, value
                continue
            try:
                yield key, self._read_spill(value)
            except Damage as damage:
                self._report(damage)

    # -- invariants ----------------------------------------------------------------------------------------------------
    def _visit(
        self, reference: Reference, level: int, low: bytes, high: bytes | None, is_counted: bool
    ) -> tuple[Page | None, bool]:
        """(page, whether it was counted before): a page by its reference, inside its bounds; None when it is left out because
        it was counted before, or is damaged (reported)."""
        if self.on_named is not None:
            self.on_named(reference.addresses, NamedPage(self.root, level, reference.crc, reference.generation))
        try:
            if self.on_pages is not None and not is_counted:
                answers = [self.on_pages(address, 1, False) for address in reference.addresses]
                is_counted = not all(answers)
                if is_counted and not self.follows_counted:
                    self.is_partial = True
                    return None, True
            page = self._load(reference, level)
            if self._has_plain_order and not self.root.has_duplicates:
                _check_bounds(page, low, high, reference)
            return page, is_counted
        except Damage as damage:
            self._report(damage)
            return None, is_counted

    @staticmethod
    def _count(frames: list[_Frame], records: int) -> None:
        for frame in frames:
            frame.seen += records

    def _compare(self, reference: Reference, level: int, seen: int, has_spilled: bool) -> None:
        if (reference.records, reference.has_spilled) != (seen, has_spilled):
            what = f"records below a page of level {level}"
            mark = {True: ", some spilled", False: ", none spilled"} if reference.has_spilled != has_spilled else {}
            expected, found = f"{seen}{mark.get(has_spilled, '')}", f"{reference.records}{mark.get(reference.has_spilled, '')}"
            self._report(Damage("tree-count", what, expected, found, page=reference.addresses[0]))

    def _check_embedded(self, records: tuple[tuple[bytes, bytes], ...]) -> None:
        if self._has_plain_order and not self.root.has_duplicates:
            for before, after in pairwise(records):
                if before[0] >= after[0]:
                    self._report(
                        Damage("page-order", "records embedded in the root", f"above {before[0].hex()}", after[0])
                    )

    def _report(self, damage: Damage) -> None:
        if self.on_damage is None:
            raise damage
        self.is_partial = True
        self.on_damage(damage)

    # -- pages ---------------------------------------------------------------------------------------------------------
    def _load(self, reference: Reference, level: int) -> Page:
        """The first copy that is right. Damage of the last one when none is; bad copies are reported as such."""
        bad: list[Damage] = []
        for address in reference.addresses:
            try:
                page = verify(self._read(address), reference, self.root, level)
            except Damage as damage:
                bad.append(damage.located(tree=str(self.root.tree_id), page=address, byte=address * self._page_size))
                continue
            self._report_copies(bad)
            return page
        raise bad[-1]

    def _report_copies(self, bad: list[Damage]) -> None:
        for damage in bad:
            if self.on_damage is not None:
                self.on_damage(Damage("page-copy", damage.what, damage.expected, damage.found, page=damage.place.page))

    def _read(self, address: int) -> bytes:
        return self._image.read(address * self._page_size, self._page_size)

    # -- spilled values ------------------------------------------------------------------------------------------------
    def value_of(self, value: bytes | Spill) -> bytes:
        """The bytes of a record's value. Damage (`overflow`)."""
        return self._read_spill(value) if isinstance(value, Spill) else value

    def _read_spill(self, spill: Spill) -> bytes:
        """A value from its pages. Damage (`overflow`). Trees that share pages of a dated value are counted page by page; of an
        undated one as a whole, by its first page."""
        first = spill.entries[0].addresses[0] if spill.entries else 0
        is_new = self.on_pages is None or spill.is_dated or self.on_pages(first, 1, True)
        level = overflow_level(spill.length, self._page_size, self.root.copies, spill.is_dated)
        if spill.length > self._image.size:
            raise Damage(
                "overflow", "length of a spilled value", f"at most {self._image.size}", spill.length, page=first
            )
        counted = -1 if spill.is_dated else first
        bad: list[Damage] = []
        pieces = [piece for entry in spill.entries for piece in self._spilled(entry, level, is_new, counted, bad)]
        if bad:
            raise bad[0]
        data = b"".join(pieces)
        if len(data) < spill.length:
            raise Damage("overflow", "spilled value", f"{spill.length} bytes", len(data), page=first)
        if self.on_damage is not None and any(data[spill.length :]):  # the value itself reads
            what = f"bytes behind the {spill.length} of a spilled value"
            self.on_damage(Damage("overflow-tail", what, "zeros", "others", page=first))
        return data[: spill.length]

    def _spilled(self, entry: PageEntry, level: int, is_new: bool, counted: int, bad: list[Damage]) -> Iterator[bytes]:
        """Data pages below an entry, in order. `counted`: the first page of an undated value, told of before; -1: it is dated.

        A damaged page goes to `bad`. Where pages are counted the walk goes on behind it: the others stay in use, for whoever else
        names them (a snapshot that shares the value).
        """
        if self.on_named is not None:
            named = NamedPage(self.root, level, entry.crc, entry.generation, overflow=True, is_dated=counted < 0)
            self.on_named(entry.addresses, named)
        if self.on_pages is not None and is_new:
            answers = [self.on_pages(address, 1, True) for address in entry.addresses if address != counted]
            is_new = counted >= 0 or all(answers)
        if bad and self.on_pages is None:
            return
        try:
            data = self._spilled_page(entry, level)
            below = self._entries(data, entry, level, is_dated=counted < 0) if level else []
        except Damage as damage:
            bad.append(damage)
            return
        if not level:
            yield data
        for one in below:
            yield from self._spilled(one, level - 1, is_new, counted, bad)

    def _entries(self, data: bytes, entry: PageEntry, level: int, *, is_dated: bool) -> list[PageEntry]:
        """What an index page of a spilled value names."""
        page = decode_page(data, self.root)
        found = (page.kind, page.tree_id, page.level, page.generation)
        kind = DATED_OVERFLOW_INDEX if is_dated else OVERFLOW_INDEX
        expected = (kind, self.root.tree_id, level, entry.generation)
        if found != expected:
            what = "kind, tree, level and generation of an overflow page"
            raise Damage("overflow", what, expected, found, page=entry.addresses[0])
        return page.entries

    def _spilled_page(self, entry: PageEntry, level: int) -> bytes:
        """The first copy whose checksum is right: of the whole page, or, of an index page, that of its header."""
        bad: Damage | None = None
        for address in entry.addresses:
            try:
                data = self._read(address)
            except Damage as damage:
                bad = damage
                continue
            crc = crc32c(data[4:] if level else data)
            is_own = not level or int.from_bytes(data[:4], "little") == crc  # an index page carries its checksum itself
            if crc == entry.crc and is_own:
                return data
            bad = Damage(
                "overflow", "checksum of a spilled value's page", f"{entry.crc:08x}", f"{crc:08x}", page=address
            )
        assert bad is not None
        raise bad


def _child_for(children: list[Child], key: bytes) -> int:
    """The last child whose separator is at or below `key`."""
    low, high = 0, len(children)
    while low + 1 < high:
        middle = (low + high) // 2
        if children[middle][0] <= key:
            low = middle
        else:
            high = middle
    return low


def _check_bounds(page: Page, low: bytes, high: bytes | None, reference: Reference) -> None:
    keys = (
        [page.records[0][0], page.records[-1][0]]
        if page.records
        else [key for key, _ in page.children[1:2] + page.children[-1:] if key]
    )
    for key in keys:
        if key < low or (high is not None and key >= high):
            expected = f"{low.hex()} .. {high.hex() if high is not None else ''}"
            raise Damage("page-separator", "key outside its page's bounds", expected, key, page=reference.addresses[0])
