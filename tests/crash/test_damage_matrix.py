"""The damage matrix: each structure of an image zeroed, filled with junk, one bit flipped, or as it was in an older version.

`fsck` never crashes and finds it, with a code that docs/damage.md names for that structure; opening by the engine gives the
right answer, or a typed error, and never wrong data. The table in docs/damage.md is the expectation.

One seed drives the junk and the bits: DAMAGE_SEED=n replays it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.errors import CorruptionError, MdstoreError, NotFound
from mdstore.store import Store
from mdstore.tools.reader import superblock
from mdstore.tools.reader.check import DEEP
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.kinds import KINDS
from mdstore.tools.reader.onode import decode_extent, decode_onode
from mdstore.tools.reader.page import Reference
from mdstore.tools.reader.problems import Findings
from mdstore.tools.reader.ring import Ring
from mdstore.tools.reader.scan import Scan
from mdstore.tools.reader.store import StoreReader
from mdstore.tools.reader.tree import Tree
from tests.unit.reader_images import BLOCK, check, newest, reachable, store_images

SEED = int(os.environ.get("DAMAGE_SEED", "20"))
PAGE = (Path(__file__).resolve().parents[2] / "docs" / "damage.md").read_text()
Content = dict[tuple[bytes, bytes], tuple[object, ...]]
Range = tuple[int, int]


def table(heading: str, below: str = "") -> list[list[str]]:
    """The rows of the table under a heading of docs/damage.md, or under one below it."""
    parts = PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0].split("\n### ")
    (text,) = [part for number, part in enumerate(parts) if part.startswith(f"{below}\n") or (not below and not number)]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def codes_in(cell: str) -> set[str]:
    return set(re.findall(r"`([A-Za-z-]+)`", cell))


EXPECTED = {
    row[0]: (codes_in(row[1]), codes_in(row[2]), codes_in(row[3])) for row in table("Matrix")
}  # structure: fsck's codes, outcomes of opening, and of opening read-only


# -- the image, and where its structures lie ---------------------------------------------------------------------------
class Subject:
    """An image that was killed, the same image at its checkpoint before, and what its store holds."""

    def __init__(self, folder: Path) -> None:
        self.older, self.image = store_images(3, is_closed=False)
        self.content = content_of(self.image, None)
        self.folder = folder
        self.block = newest(self.image)
        path = folder / "subject"
        path.write_bytes(self.image)
        self.reader = StoreReader(Image(str(path)), self.block)
        self.places = self._places()

    def damaged(self, structure: str, damage: Callable[[Subject, bytes, int, Random], bytes]) -> bytes:
        """The image with one structure damaged."""
        random = Random(f"{SEED} {structure} {damage.__name__}")
        image = bytearray(self.image)
        for at, length in self.places[structure]:
            image[at : at + length] = damage(self, self.image[at : at + length], at, random)
        return bytes(image)

    def _places(self) -> dict[str, list[Range]]:
        """Structure to the byte ranges to damage together."""
        end = len(self.image) // 4096 * 4096
        slot = self.block.epoch % 2
        new, old = slot * 4096, (1 - slot) * 4096
        places = {
            "superblock, newest, primary": [(new, 4096)],
            "superblock, newest, spare": [(end - 8192 + new, 4096)],
            "superblock, newest, both copies": [(new, 4096), (end - 8192 + new, 4096)],
            "superblock, older, primary": [(old, 4096)],
            "superblock, primary copies": [(0, 8192)],
            "superblock, all four copies": [(0, 8192), (end - 8192, 8192)],
        }
        return places | self._log_places() | self._tree_places()

    def _log_places(self) -> dict[str, list[Range]]:
        ring = Ring(self.reader.image, self.block)
        heads = [(ring.start + slot * ring.block_size, 132) for slot in (0, 1)]
        scan = Scan(ring, ring.read_head(lambda damage: pytest.fail(str(damage))), self.block.log_position)
        entries = [(ring.byte_of(entry.header.position), 52 + entry.header.length) for entry in scan.entries()]
        assert len(entries) > 4
        return {
            "log head, one": heads[:1],
            "log heads, both": heads,
            "log entry, first": entries[:1],
            "log entry, middle": [entries[len(entries) // 2]],
            "log entry, last": entries[-1:],
        }

    def _tree_places(self) -> dict[str, list[Range]]:
        places = {}
        for kind, name in ((superblock.ROOT_OBJECTS, "object tree"), (superblock.ROOT_FREE, "free tree")):
            tree = self.reader.root_tree(kind)
            pages = pages_of(tree)
            places[f"{name}, root page"] = [page_range(pages[0])]
            places[f"{name}, leaf"] = [page_range(pages[-1])]
        for name, wanted in (("map", b"m2"), ("data", b"o0007")):
            onode = self.reader.find(2 if name == "map" else 1, wanted)
            assert onode is not None
            root = onode.map_root if name == "map" else onode.data_root
            assert root is not None
            tree = self.reader.tree(root, None)
            if pages := pages_of(tree):
                places[f"{name} tree, page"] = [page_range(pages[-1])]
            if name == "data":
                extent = decode_extent(*next(tree.items()))
                places["data block"] = [(extent.start * BLOCK, BLOCK)]
        return places | {"spilled value": [page_range(self._spilled())]}

    def _spilled(self) -> int:
        """A page of a value that lies outside its leaf."""
        found: list[int] = []
        for _, value in self.reader.root_tree(superblock.ROOT_OBJECTS).items():
            onode = decode_onode(value)
            if onode.map_root is not None:
                tree = self.reader.tree(onode.map_root, None)
                tree.on_pages = lambda page, _, is_overflow: (found.append(page) if is_overflow else None) is None
                list(tree.items())
        return found[len(found) // 2]


def page_range(page: int) -> Range:
    return page * BLOCK, BLOCK


def pages_of(tree: Tree) -> list[int]:
    """Pages in the order of a walk, spilled values left out."""
    if not isinstance(tree.root.content, Reference):
        return []
    found: list[int] = []
    tree.on_pages = lambda page, _, is_overflow: (None if is_overflow else found.append(page)) is None
    list(tree.items())
    return found


# -- what the engine says ----------------------------------------------------------------------------------------------
def content_of(image: bytes, names: list[tuple[bytes, bytes]] | None, *, read_only: bool = False) -> Content:
    """What a store says of its objects (those of `names`, or all) and of their lists; a typed error is its class."""
    store = Store.open(MemoryDevice.from_bytes(image), background=False, read_only=read_only)
    lists: Content = {(c, b""): (answer(lambda c=c: store.list_objects(c)),) for c in store.list_collections()}
    if names is None:
        names = [(c, name) for (c, _), (listed,) in lists.items() for name in listed]  # type: ignore[attr-defined]
    return lists | {(c, name): answers(store, c, name) for c, name in names if name}


def answers(store: Store, collection: bytes, name: bytes) -> tuple[object, ...]:
    return (
        answer(lambda: store.read(collection, name)),
        answer(lambda: store.getattrs(collection, name)),
        answer(lambda: list(store.map_items(collection, name))),
    )


def answer(query: Callable[[], object]) -> object:
    try:
        return query()
    except CorruptionError as error:
        return type(error)
    except NotFound:
        return "not there"


def outcome(image: bytes, expected: Content, *, read_only: bool = False) -> str:
    """`same`, `error-there` (some answers are errors, all others right), `refuses`, `last-lost` or what was wrong."""
    try:
        found = content_of(image, list(expected), read_only=read_only)
    except MdstoreError:
        return "refuses"
    wrong = {key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)}
    if not wrong:
        return "same"
    if all(is_error(found.get(key), expected.get(key)) for key in wrong):
        return "error-there"
    return "last-lost" if wrong <= {(b"c", b"last"), (b"c", b"")} else f"wrong data: {sorted(wrong)[:3]}"


def is_error(found: tuple[object, ...] | None, expected: tuple[object, ...] | None) -> bool:
    """Each answer is the right one or an error."""
    if found is None or expected is None:
        return False
    return all(isinstance(got, type) or got == due for got, due in zip(found, expected, strict=True))


# -- damage ------------------------------------------------------------------------------------------------------------
def zeroed(subject: Subject, data: bytes, at: int, random: Random) -> bytes:
    return bytes(len(data))


def junk(subject: Subject, data: bytes, at: int, random: Random) -> bytes:
    return random.randbytes(len(data))


def one_bit(subject: Subject, data: bytes, at: int, random: Random) -> bytes:
    place = random.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]


def older(subject: Subject, data: bytes, at: int, random: Random) -> bytes:
    return subject.older[at : at + len(data)]


def another_page(subject: Subject, data: bytes, at: int, random: Random) -> bytes:
    """Intact bytes of another place: a write that went astray."""
    pages = [page for page in reachable(subject.image, subject.folder) if page * BLOCK != at]
    start = random.choice(pages) * BLOCK
    return subject.image[start : start + len(data)].ljust(len(data), b"\0")


DAMAGES = [zeroed, junk, one_bit, older, another_page]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    print(f"DAMAGE_SEED={SEED}")
    return Subject(tmp_path_factory.mktemp("damage"))


def test_the_matrix_names_every_structure(subject: Subject) -> None:
    assert EXPECTED.keys() == subject.places.keys()
    assert not check(subject.image, subject.folder, DEEP)


@pytest.mark.parametrize("structure", EXPECTED)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_found_and_never_gives_wrong_data(
    structure: str, damage: Callable[[Subject, bytes, int, Random], bytes], subject: Subject
) -> None:
    image = subject.damaged(structure, damage)
    if image == subject.image:
        return  # it is the same in the older version
    codes, outcomes, read_only_outcomes = EXPECTED[structure]
    try:
        found = {problem.code for problem in check(image, subject.folder, DEEP)}
    except MdstoreError as error:
        found = {type(error).__name__}
    found = found or {"nothing"}
    assert found & codes, f"fsck found {found}, expected one of {codes}"
    got = outcome(image, subject.content)
    assert got in outcomes, got
    got = outcome(image, subject.content, read_only=True)
    assert got in read_only_outcomes, f"opened read-only: {got}"


def test_the_page_lists_every_code_with_its_severity() -> None:
    listed = {row[0].strip("`"): row[1] for row in table("Codes")}
    assert listed == {code: kind.severity for code, kind in KINDS.items()}


def test_findings_of_unknown_codes_cannot_be_made() -> None:
    with pytest.raises(KeyError):
        Findings(lambda problem: None).add("no-such-code", "x")
