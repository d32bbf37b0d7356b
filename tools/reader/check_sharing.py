"""What clones share: pages that several trees reach, and groups of objects with equal data. docs/format/shares.md."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import zip_longest

from mdstore.tools.reader.problems import Damage, Findings, Place


class SharedPages:
    """The pages that the references tree names. What lies below a shared page counts once, so it is visited once.

    Memory: 9 bytes for each shared page.
    """

    def __init__(self) -> None:
        self._pages = array("Q")
        self._visited = bytearray()

    def add(self, page: int) -> None:
        """A page that is shared; pages come in rising order."""
        self._pages.append(page)
        self._visited.append(0)

    def is_first_visit(self, page: int) -> bool:
        """False when the page is a shared one that was visited before."""
        at = bisect_left(self._pages, page)
        if at == len(self._pages) or self._pages[at] != page:
            return True
        was_visited, self._visited[at] = self._visited[at], 1
        return not was_visited


class Groups:
    """Groups of clones: how many members each claims, how many were seen, and that their data trees are equal.

    `records`: the records of the data tree with that root. Trees with one root are equal; others (a clone of what was not
    written yet has pages of its own) are read side by side at the end. Memory: some 300 bytes for each group.
    """

    def __init__(self, records: Callable[[bytes], Iterator[tuple[bytes, bytes]]]) -> None:
        self._records = records
        self._claimed: dict[int, int] = {}
        self._seen: dict[int, int] = {}
        self._roots: dict[int, bytes] = {}
        self._other_roots: dict[int, set[bytes]] = {}

    def claim(self, group: int, members: int) -> None:
        """A record of the groups tree."""
        self._claimed[group] = members

    def is_first_member(self, group: int, data_root: bytes | None) -> bool:
        """Note a member; True when it is the first one, whose extents count for the group."""
        root = data_root or b""
        self._seen[group] = self._seen.get(group, 0) + 1
        if self._roots.setdefault(group, root) != root:
            self._other_roots.setdefault(group, set()).add(root)
        return self._seen[group] == 1

    def seen(self) -> Counter[int]:
        """Members met, by group."""
        return Counter(self._seen)

    def _differs(self, one: bytes, other: bytes) -> bool:
        """Whether two data trees hold other records. One that cannot be read was reported where it was met."""
        if not one or not other:
            return True
        try:
            return any(left != right for left, right in zip_longest(self._records(one), self._records(other)))
        except Damage:
            return False

    def judge(self, findings: Findings, *, is_partial: bool = False) -> None:
        """Compare claims with members. is_partial: objects could not be read, so only too many members are wrong."""
        for group in sorted(self._claimed.keys() | self._seen.keys()):
            claimed, seen = self._claimed.get(group, 0), self._seen.get(group, 0)
            if claimed < seen or (claimed > seen and not is_partial):
                findings.add(
                    "group", f"group {group} counts {claimed} members, has {seen}", Place(f"group {group}", "groups")
                )
            if any(self._differs(self._roots[group], other) for other in self._other_roots.get(group, ())):
                findings.add("group", f"the data trees of group {group} differ", Place(f"group {group}", "groups"))
