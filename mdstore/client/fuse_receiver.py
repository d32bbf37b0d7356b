"""Reading requests from /dev/fuse, with looking before sleeping."""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from typing import Final

GONE: Final = (errno.ENODEV, errno.ENOTCONN, errno.ECONNABORTED, errno.EBADF)
"""What a read or write of the descriptor says once the mount is no more."""

LOOK_AGAIN_AFTER: Final = 256  # requests without looking, once looking has not paid


class RequestReceiver:
    """Delivers one request after another into `buffer`.

    Waking a sleeping process costs more than serving most requests. A program that works through the mount sends its next
    request within some ten microseconds, so looking for it is cheaper, where the program runs on another processor. On the
    same one it cannot run while we look; `_credit` counts what looking brought, and it is left off for a while when that is
    nothing.
    """

    def __init__(self, fd: int, buffer: memoryview, poll_us: int) -> None:
        self._fd = fd
        self._buffers = [buffer]
        self._look_ns = poll_us * 1000
        self._credit = 8  # looks that may fail before looking pauses
        self._pause = 0  # requests until the next look
        self._woken = False
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # -1 once closed
        self._closing = threading.RLock()  # a signal may wake in the thread that closes
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._poll.register(self._wake_fd, select.POLLIN)
        os.set_blocking(fd, False)

    def receive(self) -> int:
        """The length of the next request, now in the buffer; 0 when the mount is gone or `wake` was called."""
        while not self._woken:
            try:
                return os.readv(self._fd, self._buffers)
            except BlockingIOError:
                length = self._look()
                if length:
                    return length
                self._poll.poll()
            except OSError as error:
                if error.errno in GONE:
                    return 0
                if error.errno not in (errno.ENOENT, errno.EINTR):  # ENOENT: that request was given up meanwhile
                    raise
        return 0

    def wake(self) -> None:
        """Make `receive` return 0, now and from now on; nothing once it is closed. From any thread, or a signal."""
        self._woken = True
        # The loop may see that and close before the next line: the number would then be nobody's, or another file's.
        with self._closing:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def close(self) -> None:
        with self._closing:
            fd, self._wake_fd = self._wake_fd, -1
            os.close(fd)

    def _look(self) -> int:
        """Ask again and again for a while; the request's length, or 0 where none came."""
        if not self._look_ns:
            return 0
        if self._pause:
            self._pause -= 1
            return 0
        deadline = time.perf_counter_ns() + self._look_ns
        while time.perf_counter_ns() < deadline:
            try:
                length = os.readv(self._fd, self._buffers)
            except BlockingIOError:
                continue
            except OSError:
                return 0  # the caller meets it again and says what it is
            self._credit = min(self._credit + 1, 8)
            return length
        self._credit -= 1
        if self._credit <= 0:
            self._credit, self._pause = 2, LOOK_AGAIN_AFTER
        return 0
