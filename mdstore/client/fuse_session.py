"""A FUSE session: one descriptor of /dev/fuse, a loop that answers its requests from a `Vfs`.

One thread reads requests into one reused buffer and answers them; what waits for the medium goes to a few workers, so the
loop never does. A reply is one write. With `poll_us` the loop looks for the next request for that long before it sleeps,
which spares a wake-up per request while a program works through the mount; where looking does not pay it stops by itself.

Invariants:
1. the first request is INIT and is answered before anything else is read;
2. each request but FORGET, BATCH_FORGET and INTERRUPT is answered exactly once, by the thread that served it;
3. the request buffer belongs to the loop: what a worker gets is a copy;
4. a handle or lookup whose reply the kernel did not take (its process was killed) is taken back.

| state   | goes to | when                                                              |
|---------|---------|-------------------------------------------------------------------|
| mounted | serving | INIT was answered (`handshake`)                                   |
| serving | ended   | the kernel unmounted (ENODEV), or `stop` was called                 |
| ended   |         | workers are drained, the name space is the caller's to close       |
"""

from __future__ import annotations

import errno
import logging
import os
from typing import Final, cast

from mdstore.client.fuse_credentials import CredentialCache, Masks
from mdstore.client.fuse_directories import DirectoryOperations
from mdstore.client.fuse_files import FileOperations
from mdstore.client.fuse_init import SessionOptions, negotiate
from mdstore.client.fuse_locks import LockOperations
from mdstore.client.fuse_names import NameOperations
from mdstore.client.fuse_notify import Notifier
from mdstore.client.fuse_operation import SLOW, UNSUPPORTED, Operation, OperationTable, Reply, refused_operations
from mdstore.client.fuse_protocol import (
    IN_HEADER,
    INIT_IN,
    OPCODE_TABLE_SIZE,
    OUT_HEADER,
    READ_BUFFER_MIN,
    REQUEST_OVERHEAD,
    Opcode,
    request_body_minimum,
)
from mdstore.client.fuse_receiver import GONE, RequestReceiver
from mdstore.client.fuse_reply import ReplyEncoder
from mdstore.client.fuse_workers import Workers
from mdstore.client.fuse_xattrs import XattrOperations
from mdstore.errors import InvalidRequest, MdstoreError, errno_of
from mdstore.mds.vfs import Credentials, Locking, Recalling, Vfs

log = logging.getLogger(__name__)

RECALLS_QUEUED_MAX: Final = 8192
SMALL_REPLY: Final = 4096  # up to here one joined buffer is cheaper than two pieces
_REFUSED_PERMISSION: Final = (errno.EACCES, errno.EPERM)


class FuseSession:
    """Serves one mount. `fd` is an open /dev/fuse that is mounted; the session closes it when `run` returns."""

    def __init__(self, fd: int, vfs: Vfs, options: SessionOptions | None = None) -> None:
        self.options = options or SessionOptions()
        self.counts = [0] * OPCODE_TABLE_SIZE  # requests by operation code; [0]: unknown ones
        self.unexpected_errors = 0  # exceptions that no operation should raise; each is logged
        self.protocol_minor = 0
        self.notifier = Notifier(fd)
        if isinstance(vfs, Recalling):
            vfs.recall_through(self._recall)
        self._fd = fd
        self._vfs = vfs
        self._buffer = bytearray(max(READ_BUFFER_MIN, self.options.max_write + REQUEST_OVERHEAD))
        self._view = memoryview(self._buffer)
        self._credentials = CredentialCache()
        self._minimum = request_body_minimum()
        self._stopping = False
        by_code: dict[int, Operation] = dict(self._operations().items())
        self._operations_by_code = [by_code.get(code, UNSUPPORTED) for code in range(OPCODE_TABLE_SIZE)]
        self._functions = [operation.function for operation in self._operations_by_code]
        self._receiver = RequestReceiver(fd, self._view, self.options.poll_us)
        self._workers = Workers(self.options.workers, self._serve_slowly)

    def _recall(self, directory: int, name: bytes) -> bool:
        """Ask the kernel to forget a name; not while it has many such requests before it, for there is no hurry."""
        if self.notifier.backlog >= RECALLS_QUEUED_MAX:
            return False
        self.notifier.inval_entry(directory, name)
        return True

    def handshake(self) -> None:
        """Answer INIT: agree on version, sizes and features. The mount works once this has returned.
        `UnsupportedFormat` for a kernel whose protocol is too old, `InvalidRequest` for anything but INIT."""
        length = self._receiver.receive()
        if length == 0:
            raise InvalidRequest("the mount ended before it began")
        _, opcode, unique, *_ = IN_HEADER.unpack_from(self._view)
        if opcode != Opcode.INIT or length < IN_HEADER.size + INIT_IN.size:
            raise InvalidRequest(f"the kernel's first request is {opcode}, not INIT")
        self.protocol_minor, reply = negotiate(self._view[IN_HEADER.size : length], self.options)
        self._answer(unique, reply, Opcode.INIT, 0)

    def run(self) -> None:
        """Serve until the kernel unmounts or `stop` is called; then drain the workers and close the descriptor.
        Every request that was read has been answered when it returns. The `Vfs` is left open."""
        receive, view, unpack = self._receiver.receive, self._view, IN_HEADER.unpack_from
        try:
            while not self._stopping:
                length = receive()
                if length == 0:
                    break
                size, opcode, unique, nodeid, uid, gid, pid, _ext = unpack(view)
                if size != length or length < IN_HEADER.size:
                    raise InvalidRequest(f"a FUSE request of {length} bytes calls itself {size} long")
                self._serve(opcode, unique, nodeid, self._credentials.of(uid, gid, pid), view[IN_HEADER.size : length])
        finally:
            self.close()

    def close(self) -> None:
        """Drain the workers and close the descriptor; `run` does it. For a session whose handshake failed."""
        self._workers.drain()
        self.notifier.close()
        self._receiver.close()
        os.close(self._fd)

    def stop(self) -> None:
        """End `run` after the request it is serving; programs then get ENOTCONN from the mount. From any thread."""
        self._stopping = True
        self._receiver.wake()

    def _serve(self, opcode: int, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> None:
        if opcode >= OPCODE_TABLE_SIZE:
            opcode = 0
        self.counts[opcode] += 1
        if len(body) < self._minimum[opcode]:
            self._answer(unique, errno.EINVAL, opcode, nodeid)
            return
        reply = self._reply_to(opcode, unique, nodeid, cred, body)
        if reply is SLOW:
            self._workers.submit((opcode, unique, nodeid, cred, memoryview(bytes(body))))
        elif reply is not None:
            self._answer(unique, reply, opcode, nodeid)

    def _reply_to(self, opcode: int, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> Reply:
        """Serve one request in this thread. One that was refused for a missing permission is served again, once, with the
        caller's supplementary groups: the refusal has changed nothing."""
        try:
            return self._functions[opcode](unique, nodeid, cred, body)
        except MdstoreError as error:
            number = errno_of(error)
            if number in _REFUSED_PERMISSION and not cred.groups:
                complete = self._credentials.complete(cred)
                if complete is not cred:
                    return self._reply_to(opcode, unique, nodeid, complete, body)
            return number
        except Exception as error:
            return self._after_surprise(error, opcode)

    def _after_surprise(self, error: Exception, opcode: int) -> Reply:
        """An exception no operation should raise: the program gets EIO, the log the whole story, the mount goes on."""
        self.unexpected_errors += 1
        log.error("FUSE request %s failed unexpectedly", _name_of(opcode), exc_info=error)
        return errno_of(error)

    def _serve_slowly(self, opcode: int, unique: int, nodeid: int, cred: Credentials, body: memoryview) -> None:
        worker = self._operations_by_code[opcode].worker
        assert worker is not None, f"{_name_of(opcode)} is slow and has no worker"
        try:
            reply = worker(unique, nodeid, cred, body)
        except MdstoreError as error:
            reply = errno_of(error)
        except Exception as error:
            reply = self._after_surprise(error, opcode)
        assert reply is not None, f"{_name_of(opcode)} was not answered"
        self._answer(unique, reply, opcode, nodeid)

    def _answer(self, unique: int, reply: Reply, opcode: int, nodeid: int) -> None:
        """Send one reply: a payload, or an errno. One that the kernel no longer wants is undone."""
        try:
            if not isinstance(reply, bytes):
                assert isinstance(reply, int), f"{_name_of(opcode)} was answered with {reply!r}"
                os.write(self._fd, OUT_HEADER.pack(OUT_HEADER.size, -reply, unique))
            elif len(reply) <= SMALL_REPLY:
                os.write(self._fd, OUT_HEADER.pack(OUT_HEADER.size + len(reply), 0, unique) + reply)
            else:
                os.writev(self._fd, (OUT_HEADER.pack(OUT_HEADER.size + len(reply), 0, unique), reply))
        except OSError as error:
            self._after_lost_reply(error, reply, opcode, nodeid)

    def _after_lost_reply(self, error: OSError, reply: Reply, opcode: int, nodeid: int) -> None:
        """ENOENT: the process that asked was killed; what it was given goes back. Gone: the loop will see it too."""
        if error.errno not in (errno.ENOENT, *GONE):
            self.unexpected_errors += 1
            log.error("the kernel refused the reply to %s: %s", _name_of(opcode), error)
        undo = self._operations_by_code[opcode].undo
        if undo is not None and isinstance(reply, bytes):
            undo(nodeid, reply)

    def _operations(self) -> OperationTable:
        replies = ReplyEncoder(self.options.times)
        masks = Masks() if self.options.acls else None
        names = NameOperations(self._vfs, replies, self._credentials.complete, masks).table()
        files = FileOperations(self._vfs, replies, masks, writeback=self.options.writeback).table()
        directories = DirectoryOperations(self._vfs, replies, cache=self.options.cache_listings).table()
        told = XattrOperations(self._vfs, self._credentials.complete, acls=self.options.acls, image=self.options.image)
        table = {**refused_operations(), **names, **files, **directories, **told.table()}
        if self.options.server_locks:
            table.update(LockOperations(cast(Locking, self._vfs), self._answer_waiting).table())
        return table

    def _answer_waiting(self, unique: int, reply: bytes | int) -> None:
        self._answer(unique, reply, Opcode.SETLKW, 0)


def _name_of(opcode: int) -> str:
    return Opcode(opcode).name if opcode in Opcode._value2member_map_ else f"operation {opcode}"
