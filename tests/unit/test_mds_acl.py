"""Access control lists inside the metadata server, which enforces them for every front."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable

import pytest

from mdstore.engines.mem import MemStore
from mdstore.errors import MdstoreError, PosixError, errno_of
from mdstore.mds import acl
from mdstore.mds.acl import ACCESS, DEFAULT, NOBODY, Entry, Tag, decode, encode
from mdstore.mds.inode import Inode
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER, Credentials, SetAttr

OWNER, NAMED, MEMBER, STRANGER = Credentials(10, 10), Credentials(11, 11), Credentials(12, 12, (20,)), Credentials(13, 13)


def listed(user: int = 6, named: int = 0, group: int = 0, member: int = 0, mask: int = 7, other: int = 0) -> bytes:
    """A list for user 11 and group 20, of a file of user 10 and group 10."""
    entries = (
        Entry(Tag.USER_OBJ, user, NOBODY), Entry(Tag.USER, named, 11), Entry(Tag.GROUP_OBJ, group, NOBODY),
        Entry(Tag.GROUP, member, 20), Entry(Tag.MASK, mask, NOBODY), Entry(Tag.OTHER, other, NOBODY),
    )  # fmt: skip
    return encode(entries)


def refused(number: int, call: Callable[[], object]) -> None:
    with pytest.raises(MdstoreError) as caught:
        call()
    assert errno_of(caught.value) == number


@pytest.fixture
def server() -> MetadataServer:
    store = MemStore(delayed=True)
    MetadataServer.format(store, now_ns=1, root_mode=0o777)
    return MetadataServer.mount(store)


def test_whom_the_list_lets_in() -> None:
    node = Inode(7, stat.S_IFREG, 10, 10, 0, 1, b"f")
    cases = itertools.product((0, 4, 6), (0, 4), (0, 2, 4), (2, 4, 7), (0, 4), (2, 4, 6))
    for named, group, member, mask, other, wanted in cases:
        raw = listed(6, named, group, member, mask, other)
        case = (named, group, member, mask, other, wanted)
        assert acl.granted(raw, node, OWNER, wanted), case
        assert acl.granted(raw, node, NAMED, wanted) == (named & mask & wanted == wanted), case
        assert acl.granted(raw, node, MEMBER, wanted) == (member & mask & wanted == wanted), case
        assert acl.granted(raw, node, STRANGER, wanted) == (other & wanted == wanted), case
        both = Credentials(12, 10, (20,))  # of the file's group and of the named one: one of them must grant all
        assert acl.granted(raw, node, both, wanted) == any(perm & mask & wanted == wanted for perm in (group, member)), case


def test_a_list_is_in_order_whatever_came_in() -> None:
    raw = listed(named=4)
    shuffled = raw[:4] + b"".join(reversed([raw[at : at + 8] for at in range(4, len(raw), 8)]))
    assert encode(decode(shuffled)) == raw
    assert decode(b"") == () == decode(raw[:4])


@pytest.mark.parametrize("at", range(52))
def test_a_changed_byte_is_refused_or_another_list(at: int) -> None:
    raw = bytearray(listed(named=4))
    for change in (1, 0x80, 0xFF):
        damaged = bytes(raw[:at]) + bytes([raw[at] ^ change]) + bytes(raw[at + 1 :])
        try:
            again = decode(damaged)
        except PosixError as error:
            assert error.errno == errno.EINVAL  # noqa: PT017
            continue
        assert decode(encode(again)) == again


def test_lists_are_enforced_without_a_kernel_and_survive_a_crash(server: MetadataServer) -> None:
    directory = server.mkdir(OWNER, ROOT_INO, b"d", 0o700).ino
    refused(errno.EACCES, lambda: server.create(NAMED, directory, b"f", 0o666, os.O_RDWR))
    refused(errno.EPERM, lambda: server.setxattr(NAMED, directory, ACCESS, listed(user=7, named=7)))
    server.setxattr(OWNER, directory, ACCESS, listed(user=7, named=7, mask=7))
    server.setxattr(OWNER, directory, DEFAULT, listed(named=6, member=4))
    attr, handle = server.create(NAMED._replace(umask=0o077), directory, b"f", 0o666, os.O_RDWR)
    server.fsync(handle)
    assert attr.mode & 0o777 == 0o660, "the mask, and no umask"
    assert server.getattr(directory).mode & 0o777 == 0o770
    store = server.store
    assert isinstance(store, MemStore)
    server = MetadataServer.mount(store.crash())
    found = server.lookup(SUPERUSER, directory, b"f")
    assert decode(server.getxattr(NAMED, found.ino, ACCESS)) == decode(listed(6, named=6, member=4, mask=6))
    server.access(NAMED, found.ino, os.R_OK | os.W_OK)
    refused(errno.EACCES, lambda: server.access(STRANGER, found.ino, os.R_OK))
    refused(errno.EACCES, lambda: server.lookup(STRANGER, directory, b"f"))


def test_chmod_moves_the_mask_and_removing_the_list_leaves_the_mode(server: MetadataServer) -> None:
    attr, _ = server.create(OWNER, ROOT_INO, b"f", 0o600, os.O_RDWR)
    server.setxattr(OWNER, attr.ino, ACCESS, listed(named=6, mask=6))
    server.setattr(OWNER, attr.ino, SetAttr(mode=0o640))
    assert decode(server.getxattr(OWNER, attr.ino, ACCESS)) == decode(listed(named=6, mask=4))
    refused(errno.EACCES, lambda: server.access(NAMED, attr.ino, os.W_OK))
    server.removexattr(OWNER, attr.ino, ACCESS)
    assert server.getattr(attr.ino).mode & 0o777 == 0o640
    refused(errno.ENODATA, lambda: server.getxattr(OWNER, attr.ino, ACCESS))
    refused(errno.ENODATA, lambda: server.removexattr(OWNER, attr.ino, ACCESS))


def test_a_umask_counts_for_everything_but_links(server: MetadataServer) -> None:
    cred = OWNER._replace(umask=0o027)
    assert server.create(cred, ROOT_INO, b"f", 0o666, os.O_RDWR)[0].mode & 0o777 == 0o640
    assert server.mkdir(cred, ROOT_INO, b"d", 0o777).mode & 0o777 == 0o750
    assert server.mknod(cred, ROOT_INO, b"p", stat.S_IFIFO | 0o666).mode & 0o777 == 0o640
    assert server.symlink(cred, ROOT_INO, b"l", b"f").mode & 0o777 == 0o777
