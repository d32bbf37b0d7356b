"""How a mount's server ended, told to whoever unmounts it.

`mdstore umount` listens before it unmounts; at its end, while it still holds the image, the server says how that went. It is said
on a socket of the abstract name space, which leaves nothing behind; where nobody listens nothing is said, and where nothing is
heard (the server was killed, or lives in another network name space) nothing is known, and `umount` says so. The place is
anybody's: where another process has taken it, the server's word goes there, and whoever unmounts knows that it does not know.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from hashlib import sha256
from types import TracebackType
from typing import Final

_MESSAGE_MAX: Final = 4096
_CREDENTIALS: Final = struct.Struct("=iii")  # pid, uid, gid: struct ucred of unix(7)


def _address(mountpoint: str) -> bytes:
    return b"\0mdstore.umount." + sha256(os.fsencode(mountpoint)).hexdigest()[:32].encode()


def tell_ending(mountpoint: str, failure: str | None) -> None:
    """Say that the server of that mount ended, and what failed, if anything did. Never waits, never fails."""
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as speaker:
        speaker.sendto((failure or "").encode(errors="replace")[:_MESSAGE_MAX], _address(mountpoint))


class EndingListener:
    """Listens for the ending of one mount, from entering to leaving the `with` block. `listening`: whether the server's word
    comes here; it goes to somebody else where that one came first."""

    def __init__(self, mountpoint: str) -> None:
        self._mountpoint = mountpoint
        self.listening = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def __enter__(self) -> EndingListener:
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with suppress(OSError):
            self._socket.bind(_address(self._mountpoint))
            self.listening = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def heard(self) -> str | None:
        """What failed, empty where nothing did; None where the server has said nothing. Only the superuser and the user who
        listens are believed. To be asked once the server has let go of the image."""
        with suppress(BlockingIOError):
            while True:
                message, extra, _, _ = self._socket.recvmsg(_MESSAGE_MAX, socket.CMSG_SPACE(_CREDENTIALS.size))
                for level, sort, data in extra:
                    if (level, sort) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                        _, uid, _ = _CREDENTIALS.unpack_from(data)
                        if uid in (0, os.geteuid()):
                            return message.decode(errors="replace")
        return None
