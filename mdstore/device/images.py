"""Images that share their pages: a copy costs a pointer per page, a changed state costs the pages it changes."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from mdstore.device.protocol import Buffer
from mdstore.device.ranges import size_of

IMAGE_PAGE: Final = 4096  # bytes; the unit of sharing and of hashing, nothing on a medium
ZERO_PAGE: Final = bytes(IMAGE_PAGE)


class PagedImage:
    """A growable run of bytes, kept as immutable pages. Not locked: one owner writes to it.

    Invariants: (1) every page is `IMAGE_PAGE` bytes long, the last one padded with zeros beyond `size_bytes`; (2) the sum
    is the exclusive-or of the hashes of exactly those pages that have one.
    """

    def __init__(self, size_bytes: int = 0) -> None:
        self.size_bytes = size_bytes
        self._pages = [ZERO_PAGE] * -(-size_bytes // IMAGE_PAGE)
        self._hashes: list[int | None] = [None] * len(self._pages)
        self._unhashed = set(range(len(self._pages)))
        self._sum = 0

    @classmethod
    def from_bytes(cls, content: Buffer) -> PagedImage:
        image = cls(size_of(content))
        image.write(0, content)
        return image

    def copy(self) -> PagedImage:
        """An independent image with the same content; costs about 8 bytes per page."""
        twin = PagedImage()
        twin.size_bytes = self.size_bytes
        twin._pages = self._pages.copy()
        twin._hashes = self._hashes.copy()
        twin._unhashed = self._unhashed.copy()
        twin._sum = self._sum
        return twin

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of a range that the caller has checked."""
        first, last = offset // IMAGE_PAGE, (offset + length - 1) // IMAGE_PAGE
        start = offset - first * IMAGE_PAGE
        if first >= last:
            return self._pages[first][start : start + length] if length else b""
        return b"".join(self._pages[first : last + 1])[start : start + length]

    def write(self, offset: int, data: Buffer) -> None:
        """Replace bytes of a range that the caller has checked."""
        view = memoryview(data).cast("B")
        at, done = offset, 0
        while done < len(view):
            index, start = divmod(at, IMAGE_PAGE)
            piece = view[done : done + IMAGE_PAGE - start]
            page = self._pages[index]
            self._replace(index, b"".join((page[:start], piece, page[start + len(piece) :])))
            at += len(piece)
            done += len(piece)

    def resize(self, size_bytes: int) -> None:
        """Grow; the new bytes are zeros."""
        assert size_bytes >= self.size_bytes
        old_pages, self.size_bytes = len(self._pages), size_bytes
        more = -(-size_bytes // IMAGE_PAGE) - old_pages
        self._pages += [ZERO_PAGE] * more
        self._hashes += [None] * more
        self._unhashed.update(range(old_pages, old_pages + more))

    def flip_bit(self, offset: int, bit: int) -> None:
        """Rot: one bit of one byte changes."""
        self.write(offset, bytes([self.read(offset, 1)[0] ^ (1 << bit)]))

    def to_bytes(self) -> bytes:
        return b"".join(self._pages)[: self.size_bytes]

    def changed_pages(self) -> list[tuple[int, bytes]]:
        """(index, content) of the pages that are not all zeros."""
        return [(index, page) for index, page in enumerate(self._pages) if page != ZERO_PAGE]

    def digest(self) -> int:
        """A 128-bit fingerprint of content and size. Hashes only pages written since the last call, here or in the image
        this one was copied from."""
        for index in self._unhashed:
            value = _hash_page(index, self._pages[index])
            self._hashes[index] = value
            self._sum ^= value
        self._unhashed.clear()
        return self._sum ^ _hash_page(-1, self.size_bytes.to_bytes(8, "little"))

    def _replace(self, index: int, page: bytes) -> None:
        assert len(page) == IMAGE_PAGE
        self._pages[index] = page
        known = self._hashes[index]
        if known is not None:
            self._sum ^= known
            self._hashes[index] = None
            self._unhashed.add(index)


def _hash_page(index: int, page: bytes) -> int:
    salt = index.to_bytes(8, "little", signed=True)
    return int.from_bytes(blake2b(page, digest_size=16, salt=salt).digest(), "little")
