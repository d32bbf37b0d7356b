"""What a server tells the kernel unasked: that something it keeps is no longer so."""

from __future__ import annotations

import errno
import os
import queue
import threading

from mdstore.client.fuse_protocol import INVAL_ENTRY_OUT, INVAL_INODE_OUT, OUT_HEADER, Notify


class Notifier:
    """Sends notifications from a thread of its own, started with the first one.

    The kernel takes an inode's or directory's lock to act on one, which a request in progress may hold: the thread that
    answers requests would wait for itself. Calls return at once; the order is kept.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._start = threading.Lock()
        self.failed = 0  # notifications the kernel refused, other than for things it does not know

    @property
    def backlog(self) -> int:
        """Notifications not sent yet, about."""
        return self._queue.qsize()

    def inval_inode(self, ino: int, offset: int = 0, length: int = 0) -> None:
        """Forget cached attributes, and cached bytes from `offset` (length 0: to the end; offset -1: no bytes)."""
        self._send(Notify.INVAL_INODE, INVAL_INODE_OUT.pack(ino, offset, length))

    def inval_entry(self, parent: int, name: bytes) -> None:
        """Forget what `name` in `parent` is, or that it is not; the directory's listing and attributes too."""
        self._send(Notify.INVAL_ENTRY, INVAL_ENTRY_OUT.pack(parent, len(name), 0) + name + b"\0")

    def close(self) -> None:
        """Send what is queued and end the thread. The descriptor is still the caller's to close."""
        with self._start:
            if self._thread is not None:
                self._queue.put(None)
                self._thread.join()
                self._thread = None

    def _send(self, code: Notify, body: bytes) -> None:
        self._queue.put(OUT_HEADER.pack(OUT_HEADER.size + len(body), code, 0) + body)
        if self._thread is None:
            with self._start:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="fuse-notify", daemon=True)
                    self._thread.start()

    def _run(self) -> None:
        while (message := self._queue.get()) is not None:
            try:
                os.write(self._fd, message)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR):  # the kernel does not keep it: all is well
                    self.failed += 1
                if error.errno in (errno.ENODEV, errno.ENOTCONN):  # unmounted: nothing is kept any more
                    return
