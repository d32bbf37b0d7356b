"""Objects whose state an opening that only reads could not find out (mdstore/store/isolation.py): who asks gets an error."""

from __future__ import annotations

from collections.abc import Iterator

from mdstore.errors import CorruptionError


class Isolated:
    """The objects set apart, by their key in the object tree, each with why."""

    def __init__(self) -> None:
        self._causes: dict[bytes, str] = {}

    def __len__(self) -> int:
        return len(self._causes)

    def __iter__(self) -> Iterator[str]:
        """A sentence for each."""
        return (f"{show_key(key)}: {cause}" for key, cause in self._causes.items())

    def __contains__(self, key: bytes) -> bool:
        return key in self._causes

    def add(self, key: bytes, cause: str) -> None:
        """The first cause stays."""
        self._causes.setdefault(key, cause)

    def check(self, key: bytes) -> None:
        """CorruptionError when the object under that key is set apart."""
        if key in self._causes:
            raise CorruptionError("object", show_key(key), "a page that the log changes it through", self._causes[key])

    def check_range(self, first: bytes, last: bytes | None) -> None:
        """The same for all keys first <= key < last: whether there is such an object is not known."""
        for key in self._causes:
            if first <= key and (last is None or key < last):
                self.check(key)


def show_key(key: bytes) -> str:
    """The object, for people."""
    name = key[8:].decode("utf-8", "backslashreplace")
    return f"object {name!r} of collection {int.from_bytes(key[:8], 'big')}"
