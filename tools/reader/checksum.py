"""CRC-32C by `crcmod`: an implementation that shares no line with the one that wrote the image."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

import crcmod.predefined

crc32c: Final[Callable[..., int]] = crcmod.predefined.mkCrcFun("crc-32c")  # of bytes; and of what comes after a checksum

assert crc32c(b"123456789") == 0xE3069283


def is_compiled() -> bool:
    """Whether crcmod runs its C extension (hundreds of MB/s) and not its Python loop (one MB/s)."""
    return bool(getattr(sys.modules["crcmod.crcmod"], "_usingExtension", False))
