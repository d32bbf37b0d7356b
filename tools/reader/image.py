"""The bytes of an image: a file or block device, opened for reading only, no lock taken."""

from __future__ import annotations

import errno
import os
import stat
from types import TracebackType

from mdstore.errors import DeviceFailed, NotAnImage, NotFound
from mdstore.tools.reader.problems import Damage


class Image:
    """A file or block device of `size` bytes. Reads any range; never writes. Close it, or use it as a context."""

    def __init__(self, path: str) -> None:
        """Open `path`. NotFound, NotAnImage (a directory, a pipe ...) or DeviceFailed (no permission, no medium)."""
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as error:
            raise NotFound("image", path) from error
        except OSError as error:
            raise DeviceFailed("open", path, error.strerror or error) from error
        try:
            self.size = self._measure()
        except BaseException:
            os.close(self._descriptor)
            raise

    def _measure(self) -> int:
        status = os.fstat(self._descriptor)
        if stat.S_ISREG(status.st_mode):
            return status.st_size
        if stat.S_ISBLK(status.st_mode):
            return os.lseek(self._descriptor, 0, os.SEEK_END)
        raise NotAnImage(f"{self.path} is neither a file nor a block device")

    def read(self, offset: int, length: int) -> bytes:
        """Exactly `length` bytes from `offset`. Damage (`beyond-image`, `unreadable`) where the medium does not give them."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise Damage(
                "beyond-image", "bytes", f"at or below byte {self.size}", f"{offset} .. {offset + length}", byte=offset
            )
        try:
            data = os.pread(self._descriptor, length, offset)
            while len(data) < length:
                more = os.pread(self._descriptor, length - len(data), offset + len(data))
                if not more:
                    raise OSError(errno.EIO, "the file became shorter")
                data += more
        except OSError as error:
            raise Damage("unreadable", "bytes", f"{length} bytes", error.strerror or str(error), byte=offset) from error
        return data

    def close(self) -> None:
        """Give the file back."""
        os.close(self._descriptor)

    def __enter__(self) -> Image:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
