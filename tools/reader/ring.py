"""The store's log on the image: a ring of blocks with two heads before it. docs/format/journal.md, store-log.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from mdstore.tools.reader.checksum import crc32c
from mdstore.tools.reader.entry import HEAD_SIZE, HEADER_SIZE, MAGIC, Head, Header, decode_head, decode_header
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.problems import Damage
from mdstore.tools.reader.scan import Gap, readable_pieces
from mdstore.tools.reader.superblock import Superblock

ENDING: Final = bytes.fromhex("9301c0919101")  # the payload of the entry that a checkpoint ends the log with
ENDING_SIZE: Final = HEADER_SIZE + len(ENDING)


class Ring:
    """The medium of the store's log. Positions count from the body's size on; position p lies at body offset p % size."""

    unit = 0

    def __init__(self, image: Image, superblock: Superblock) -> None:
        block = max(superblock.block_size, 512)
        self._image = image
        self.start = superblock.log_start * superblock.block_size
        self.block_size = block
        length = superblock.log_blocks * superblock.block_size
        self.body_start = self.start + 2 * block
        self.body_size = (length - 2 * block) // block * block
        if self.body_size <= 0:
            raise Damage("log-ring", "store log too short for its heads", 3 * block, length, byte=self.start)
        self.oldest = superblock.log_position
        self._identity = int.from_bytes(superblock.uuid[:4], "little") | 1

    def read(self, position: int, length: int) -> bytes:
        """Bytes of the stream, around the ring's end where they wrap."""
        pieces = []
        while length > 0:
            offset = position % self.body_size
            step = min(length, self.body_size - offset)
            pieces.append(self._image.read(self.body_start + offset, step))
            position += step
            length -= step
        return b"".join(pieces)

    def horizon(self, position: int) -> int:
        """Nothing kept can lie more than one lap behind the oldest position kept."""
        return max(self.oldest, position - self.body_size) + self.body_size

    def byte_of(self, position: int) -> int:
        """The byte of the image at which `position` lies."""
        return self.body_start + position % self.body_size

    def read_head(self, on_damage: Callable[[Damage], None]) -> Head:
        """The head copy that counts. Damaged copies go to `on_damage`; when both are, so does that, and the head is what a
        search of the ring makes of it."""
        heads = []
        for slot in (0, 1):
            at = self.start + slot * self.block_size
            head = self._head_copy(slot, at, on_damage)
            if head is not None:
                heads.append(head)
        if not heads:
            on_damage(Damage("journal-no-head", "store log without an intact head", "one of two", "none", byte=self.start))
            return self._searched_head(on_damage)
        return max(heads, key=lambda head: head.number)

    def _searched_head(self, on_damage: Callable[[Damage], None]) -> Head:
        """As far as entries tell: no generation above theirs, durable as far as one of them knew; begun in no certain place.
        Where neither the first entry is there nor the last one before it, nobody can say that nothing followed."""
        generation, safe, is_vouched = 0, self.oldest, False
        for header in self._headers([]):
            generation, safe = max(generation, header.generation), max(safe, header.safe)
            is_vouched = is_vouched or header.position >= self.oldest or (header.end == self.oldest and self._is_whole(header))
        if not is_vouched:
            what, expected = "store log without heads", f"an entry behind position {self.oldest}, or one that ends there"
            on_damage(Damage("log-gone", what, expected, "none", byte=self.byte_of(self.oldest)))
        return Head(
            flags=0, log=self._identity, generation=generation, number=0, trimmed=0, expire=self.oldest, safe=safe,
            next_sequence=0, generation_start=self.oldest + 2 * self.body_size, epoch=0, capacity=self.body_size,
            object_size=0, unit=0, stripe_count=0,
        )  # fmt: skip

    def missing_ending(self) -> Damage | None:
        """What is wrong where the entry should be that ends at the superblock's position; None when it is there."""
        start = self.oldest - ENDING_SIZE
        try:
            data = self.read(start, ENDING_SIZE)
        except Damage as damage:
            return damage
        header = decode_header(data)
        is_whole = data[HEADER_SIZE:] == ENDING and header is not None and header.payload_crc == crc32c(ENDING)
        if is_whole and header is not None and header.position == start and header.log == self._identity:
            return None
        found = "zeros" if not any(data) else "other bytes"
        return Damage("log-gone", f"end of the store log at position {self.oldest}", "an entry that ends there", found)

    def _headers(self, gaps: list[Gap]) -> Iterator[Header]:
        """Intact headers of this log, of any lap, that lie where they say. What does not read goes to `gaps`."""
        for at, length, data in readable_pieces(self, 0, self.body_size, gaps, HEADER_SIZE - 1):
            data += self._around(at, length)
            found = data.find(MAGIC)
            while 0 <= found < length:
                header = decode_header(data, found)
                if header is not None and header.log == self._identity and header.position % self.body_size == at + found:
                    yield header
                found = data.find(MAGIC, found + 1)

    def _around(self, at: int, length: int) -> bytes:
        """What follows the ring's last bytes: its first ones, as far as a header reaches."""
        try:
            return self.read(0, HEADER_SIZE - 1) if at + length == self.body_size else b""
        except Damage:
            return b""

    def _is_whole(self, header: Header) -> bool:
        try:
            return crc32c(self.read(header.position + HEADER_SIZE, header.length)) == header.payload_crc
        except Damage:
            return False

    def _head_copy(self, slot: int, at: int, on_damage: Callable[[Damage], None]) -> Head | None:
        try:
            head = decode_head(self._image.read(at, HEAD_SIZE))
            if head is None:
                raise Damage("journal-head", "journal head missing", "a head", "zeros")
            if head.number % 2 != slot:
                raise Damage("journal-head", "journal head in the wrong slot", head.number % 2, slot)
            if head.log != self._identity:
                raise Damage("journal-head", "journal head of another log", f"{self._identity:08x}", f"{head.log:08x}")
            if head.capacity != self.body_size:
                raise Damage("journal-head", "journal head capacity", self.body_size, head.capacity)
            return head
        except Damage as damage:
            if damage.code in ("unreadable", "beyond-image"):
                damage = Damage("journal-head", "journal head does not read", damage.expected, damage.found, byte=at)
            on_damage(damage.located(owner=f"store log, head {slot}", byte=at))
            return None
