"""What can be wrong with an image: one `Problem` for each finding, one table that says what each kind means.

Every kind has a stable code, a severity, a consequence and a remedy; `docs/damage.md` lists the same codes (a test
compares). Severities: an **error** makes `fsck` end with 4; a **warning** is redundancy lost, or a trace that a crash may
leave and the next opening removes; a **note** is a fact worth knowing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from mdstore.errors import CorruptionError
from mdstore.tools.reader.kinds import KINDS

ERROR: Final = "error"


class Place(NamedTuple):
    """Where something is: whatever of it is known."""

    owner: str | None = None
    tree: str | None = None
    page: int | None = None
    byte: int | None = None

    def __str__(self) -> str:
        parts = [
            self.owner or "",
            f"tree {self.tree}" if self.tree else "",
            f"page {self.page}" if self.page is not None else "",
            f"byte {self.byte}" if self.byte is not None else "",
        ]
        return ", ".join(part for part in parts if part) or "the image"


class Damage(CorruptionError):
    """Bytes that cannot be what a format page says. `code` is one of `KINDS`; `place` may be filled in on the way up."""

    def __init__(
        self,
        code: str,
        what: str,
        expected: object = "",
        found: object = "",
        *,
        owner: str | None = None,
        tree: str | None = None,
        page: int | None = None,
        byte: int | None = None,
    ) -> None:
        self.code = code
        self.place = Place(owner, tree, page, byte)
        super().__init__(what, str(self.place), expected, found)

    @property
    def sentence(self) -> str:
        """What is wrong, with the evidence, without the place."""
        if self.expected == "" and self.found == "":
            return self.what
        return f"{self.what}: expected {_short(self.expected)}, found {_short(self.found)}"

    def located(
        self,
        *,
        owner: str | None = None,
        tree: str | None = None,
        page: int | None = None,
        byte: int | None = None,
    ) -> Damage:
        """The same damage with the parts of its place that were not known further down."""
        mine = self.place
        return Damage(
            self.code,
            self.what,
            self.expected,
            self.found,
            owner=mine.owner or owner,
            tree=mine.tree or tree,
            page=mine.page if mine.page is not None else page,
            byte=mine.byte if mine.byte is not None else byte,
        )


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding: what, where, what follows from it, what to do."""

    code: str
    severity: str
    what: str
    place: Place
    consequence: str
    remedy: str

    def as_json(self) -> dict[str, object]:
        """The finding with stable keys."""
        return {
            "code": self.code,
            "severity": self.severity,
            "what": self.what,
            "where": {
                "object": self.place.owner,
                "tree": self.place.tree,
                "page": self.place.page,
                "byte": self.place.byte,
            },
            "consequence": self.consequence,
            "remedy": self.remedy,
        }

    def as_line(self) -> str:
        """The finding in one line for people."""
        return f"{self.severity}: {self.what} [{self.code}] at {self.place}. {self.consequence}. Remedy: {self.remedy}."


NOTHING_LOST: Final = frozenset({"page-copy", "overflow-tail"})  # codes of damage that hides nothing


class Findings:
    """Takes problems as they are found and hands each to `sink` at once, so that memory does not grow with damage."""

    def __init__(self, sink: Callable[[Problem], None]) -> None:
        self._sink = sink
        self.by_severity: Counter[str] = Counter()
        self.by_code: Counter[str] = Counter()

    def add(self, code: str, what: str, place: Place | None = None, remedy: str | None = None) -> None:
        """Report a finding of kind `code`; with another remedy than the kind's where that one does not help."""
        kind = KINDS[code]
        self.by_severity[kind.severity] += 1
        self.by_code[code] += 1
        self._sink(Problem(code, kind.severity, what, place or Place(), kind.consequence, remedy or kind.remedy))

    def add_damage(self, damage: Damage) -> None:
        """Report what a decoder raised."""
        self.add(damage.code, damage.sentence, damage.place)

    @property
    def errors(self) -> int:
        """Findings that make the image not clean."""
        return self.by_severity[ERROR]


def readable(name: bytes) -> str:
    """A name as text where it is printable UTF-8, escaped where it is not."""
    text = name.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def readable_name(name: bytes) -> str:
    """A name as the commands take it: text, or `0x` and hex digits."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        text = ""
    return text if text and text.isprintable() and not text.startswith("0x") else f"0x{name.hex()}"


def _short(value: object) -> str:
    text = value.hex() if isinstance(value, bytes) else str(value)
    return text if len(text) <= 120 else text[:117] + "..."
