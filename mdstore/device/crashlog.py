"""What reached a device, in order: the record from which crash states are built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mdstore.device.images import PagedImage
from mdstore.device.memory import SECTOR_SIZE_DEFAULT


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes that the device accepted. Durable at the next `Flush`; until then any part of it may be."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Flush:
    """Every `Write` before it is durable."""


@dataclass(frozen=True, slots=True)
class Resize:
    """The device grew. Durable at once, as `FileDevice.resize` is; makes nothing else durable."""

    size_bytes: int


@dataclass(frozen=True, slots=True)
class Rot:
    """Bytes changed on the medium that nobody wrote. Durable at once; makes nothing else durable."""

    offset: int
    data: bytes


Operation = Write | Flush | Resize | Rot


@dataclass
class CrashLog:
    """The image a workload started from and everything its device accepted since.

    `point` p in this module and its users means: the first p operations have returned, no other has.
    """

    base: PagedImage
    sector_size: int = SECTOR_SIZE_DEFAULT
    operations: list[Operation] = field(default_factory=list)

    def moments(self) -> Iterator[Moment]:
        """Every point from 0 to the end, in order. Keeps one image and updates it: cost is that of the writes."""
        self.base.digest()  # images hash what changed since the image they were copied from was hashed
        durable, prior, pending = self.base.copy(), self.base.copy(), list[Write]()
        yield Moment(0, durable, prior, pending)
        for point, operation in enumerate(self.operations, 1):
            if isinstance(operation, Write):
                if pending:
                    prior.write(pending[-1].offset, pending[-1].data)
                    prior.digest()
                pending.append(operation)
            elif isinstance(operation, Flush):
                for write in pending:
                    durable.write(write.offset, write.data)
                durable.digest()
                prior, pending = durable.copy(), []
            else:
                _change_at_once(operation, durable)
                _change_at_once(operation, prior)
            yield Moment(point, durable, prior, pending)


def _change_at_once(operation: Resize | Rot, image: PagedImage) -> None:
    if isinstance(operation, Resize):
        image.resize(operation.size_bytes)
    else:
        image.write(operation.offset, operation.data)


@dataclass(frozen=True, slots=True)
class Moment:
    """A point of the log: what is surely on the medium, and what may be. Valid until the next moment is asked for."""

    point: int
    durable: PagedImage  # every write up to the last flush
    prior: PagedImage  # that, and every pending write but the newest
    pending: list[Write]  # writes since the last flush, oldest first
