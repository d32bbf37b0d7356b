"""The metadata server's log: a journal striped over objects. docs/format/journal.md, mds-tables.md."""

from __future__ import annotations

from collections.abc import Callable

from mdstore.tools.reader.entry import HEAD_SIZE, Head, decode_head
from mdstore.tools.reader.mds_tables import LOG, LOG_NAME
from mdstore.tools.reader.overlay import ObjectState, Overlay
from mdstore.tools.reader.problems import Damage


class Stripes:
    """The medium of a striped log inside a collection of the store."""

    def __init__(self, store: Overlay, head: Head, name: bytes = LOG_NAME) -> None:
        self.unit = head.unit
        self._count = head.stripe_count
        self._object_size = head.object_size
        if not self.unit or not self._count or not self._object_size or self._object_size % self.unit:
            raise Damage("event-log", "layout of the metadata log", "sizes that divide", (self.unit, self._object_size))
        self._store = store
        self._name = name
        self._cache: tuple[int, ObjectState | None] = (-1, None)
        self._end = self._find_end()

    def horizon(self, position: int) -> int:
        """The end of the last object there is."""
        return max(position, self._end)

    def read(self, position: int, length: int) -> bytes:
        """Bytes of the stream; zeros where there is no object or behind its end."""
        pieces = []
        while length > 0:
            index, offset = self.place_of(position)
            step = min(length, self.unit - position % self.unit)
            state = self._object(index)
            data = state.data.read(self._store.base, offset, step) if state is not None else b""
            pieces.append(data + bytes(step - len(data)))
            position += step
            length -= step
        return b"".join(pieces)

    def holds(self, position: int) -> bool:
        """Whether the object is there in which `position` lies."""
        return self._object(self.place_of(position)[0]) is not None

    def place_of(self, position: int) -> tuple[int, int]:
        """(object, offset in it) of a position."""
        block = position // self.unit
        stripe, column = divmod(block, self._count)
        group, row = divmod(stripe, self._object_size // self.unit)
        return group * self._count + column, row * self.unit + position % self.unit

    def object_name(self, index: int) -> bytes:
        """The object's name in the collection."""
        return self._name + b".%08x" % index

    def _object(self, index: int) -> ObjectState | None:
        if self._cache[0] != index:
            self._cache = (index, self._store.find(LOG, self.object_name(index)))
        return self._cache[1]

    def _find_end(self) -> int:
        last = -1
        for name, _ in self._store.objects(LOG, self._name + b"."):
            if not name.startswith(self._name + b"."):
                break
            suffix = name[len(self._name) + 1 :]
            if len(suffix) >= 8 and all(letter in b"0123456789abcdef" for letter in suffix):
                last = max(last, int(suffix, 16))
        return (last // self._count + 1) * self._count * self._object_size


def read_head(store: Overlay, on_damage: Callable[[Damage], None], name: bytes = LOG_NAME) -> Head:
    """The head that counts. Damage (`event-no-head`) when neither copy is intact."""
    heads = []
    for slot in (0, 1):
        object_name = name + b".head%d" % slot
        try:
            state = store.find(LOG, object_name)
            head = decode_head(state.data.read(store.base, 0, HEAD_SIZE)) if state is not None else None
            if head is None:
                raise Damage("journal-head", "journal head missing", "a head", "nothing")
            if head.number % 2 != slot:
                raise Damage("journal-head", "journal head in the wrong slot", head.number % 2, slot)
            heads.append(head)
        except Damage as damage:
            code = damage.code if damage.code != "journal-head" else "event-head"
            on_damage(Damage(code, damage.what, damage.expected, damage.found, owner=f"log/{object_name.decode()}"))
    if not heads:
        raise Damage("event-no-head", "metadata log without an intact head", "one of two", "none", owner="log")
    return max(heads, key=lambda head: head.number)
