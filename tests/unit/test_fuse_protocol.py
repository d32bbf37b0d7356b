"""The protocol's tables: the format page, the layouts and the encoders say the same; bad requests are refused."""

from __future__ import annotations

import re
import stat
import struct
from pathlib import Path

import pytest

from mdstore.client import fuse_protocol as protocol
from mdstore.client.fuse_init import SessionOptions, negotiate
from mdstore.client.fuse_reply import CacheTimes, ReplyEncoder
from mdstore.errors import InvalidRequest, UnsupportedFormat
from mdstore.mds.vfs import Attr

PAGE = (Path(__file__).parents[2] / "docs" / "format" / "fuse.md").read_text()
LAYOUTS = {value.name: value for value in vars(protocol).values() if isinstance(value, protocol.Layout)}
TYPES = {"I": "u32", "Q": "u64", "q": "i64", "i": "i32", "H": "u16"}


def _fields(layout: protocol.Layout) -> list[tuple[int, str, str]]:
    result, offset = [], 0
    for name, code in layout.fields:
        size = struct.calcsize("=" + code)
        result.append((offset, f"x{size}" if code.endswith("x") else TYPES[code], name))
        offset += size
    return result


def _page_fields(text: str) -> list[tuple[int, str, str]]:
    result = []
    for part in text.split(", "):
        words = part.split(" ")
        if words[1:] == ["attr"]:
            result += [(int(words[0]) + at, kind, name) for at, kind, name in _fields(protocol.ATTR)]
        else:
            result.append((int(words[0]), words[1], words[2]))
    return result


def test_the_page_lists_every_structure_with_its_fields() -> None:
    rows = {name: (int(size), fields) for name, size, fields in re.findall(r"^\| (\w+) \| (\d+) \| (\d+ .+) \|$", PAGE, re.M)}
    assert set(rows) == set(LAYOUTS)
    for name, (size, fields) in rows.items():
        assert size == LAYOUTS[name].size
        assert _page_fields(fields) == _fields(LAYOUTS[name])


def test_the_page_lists_every_operation() -> None:
    rows = {int(code): name for code, name in re.findall(r"^\| (\d+) \| ([A-Z_0-9]+) \|", PAGE, re.M)}
    assert rows == {opcode.value: opcode.name for opcode in protocol.Opcode}


def test_the_pages_example_is_what_the_code_makes_of_it() -> None:
    request, reply = (bytes.fromhex(re.sub(r"\.\.\..*|\s", "", line)) for line in PAGE.split("\n") if line.startswith("    "))
    _, opcode, unique, node, uid, gid, pid, _ = protocol.IN_HEADER.unpack_from(request)
    assert (len(request), opcode, unique, node, uid, gid, pid) == (42, protocol.Opcode.LOOKUP, 6, 1, 1000, 1000, 4242)
    assert protocol.name_at(memoryview(request), protocol.IN_HEADER.size) == b"a"
    payload = ReplyEncoder(CacheTimes()).negative
    whole = protocol.OUT_HEADER.pack(protocol.OUT_HEADER.size + len(payload), 0, unique) + payload
    assert len(whole) == 144
    assert whole.startswith(reply)
    assert not any(whole[len(reply) :])


def test_entries_carry_every_attribute_and_times_before_1970() -> None:
    attr = Attr(77, stat.S_IFREG | 0o644, 3, 10, 20, 0x10203, 1 << 40, 16, -1, 1_500_000_000_000_000_001, 5, 9)
    fields = protocol.ENTRY_OUT.unpack_from(ReplyEncoder(CacheTimes(1.5, 2.25, 3)).entry(attr))
    assert fields[:6] == (77, 9, 1, 2, 500_000_000, 250_000_000)
    assert fields[6:9] == (77, 1 << 40, 16)
    assert fields[9:15] == (-1, 1_500_000_000, 0, 999_999_999, 1, 5)
    assert fields[15:20] == (stat.S_IFREG | 0o644, 3, 10, 20, 0x10203)


def test_attributes_of_set_id_files_are_never_cached() -> None:
    replies = ReplyEncoder(CacheTimes())
    attr = Attr(7, stat.S_IFREG | 0o4755, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1)
    assert protocol.ATTR_OUT.unpack_from(replies.attributes(attr))[:2] == (0, 0)
    assert protocol.ENTRY_OUT.unpack_from(replies.entry(attr))[3] == 0
    assert protocol.ATTR_OUT.unpack_from(replies.attributes(attr._replace(mode=stat.S_IFREG | 0o755)))[0] == 3600
    assert protocol.ATTR_OUT.unpack_from(replies.attributes(attr._replace(mode=stat.S_IFDIR | 0o2755)))[0] == 3600


@pytest.mark.parametrize("name", [b"a", b"1234567", b"12345678", b"123456789", b"x" * 255])
def test_directory_entries_end_on_multiples_of_eight(name: bytes) -> None:
    entry = protocol.dirent(5, 9, 8, name)
    assert len(entry) == protocol.dirent_size(name)
    assert len(entry) % 8 == 0
    assert protocol.DIRENT.unpack_from(entry) == (5, 9, len(name), 8)
    assert entry[24 : 24 + len(name)] == name
    assert not any(entry[24 + len(name) :])


def test_names_without_their_zero_are_refused() -> None:
    assert protocol.names_at(memoryview(b"....one\0two\0"), 4, 2) == [b"one", b"two"]
    assert protocol.names_at(memoryview(b"one\0two\0rest"), 0, 2) == [b"one", b"two"]
    for body in (b"", b"one", b"one\0two"):
        with pytest.raises(InvalidRequest):
            protocol.names_at(memoryview(body), 0, 2)


def test_every_operation_with_a_structure_has_its_shortest_body() -> None:
    minimum = protocol.request_body_minimum()
    assert len(minimum) == protocol.OPCODE_TABLE_SIZE
    assert minimum[protocol.Opcode.WRITE] == 40
    assert minimum[protocol.Opcode.LOOKUP] == 2
    assert minimum[protocol.Opcode.RENAME2] == 20
    assert minimum[protocol.Opcode.STATFS] == 0


def _init(minor: int, flags: int, flags2: int = 0) -> memoryview:
    return memoryview(protocol.INIT_IN.pack(7, minor, 131072, flags) + protocol.INIT_IN_EXT.pack(flags2))


def test_init_agrees_on_no_more_than_both_sides_have() -> None:
    flags = protocol.Init
    offered = flags.ASYNC_READ | flags.MAX_PAGES | flags.DO_READDIRPLUS | flags.POSIX_LOCKS
    minor, reply = negotiate(_init(31, offered), SessionOptions(max_write=65536))
    fields = protocol.INIT_OUT.unpack_from(reply)
    assert minor == 31
    assert fields[:2] == (7, 31)
    assert fields[3] == flags.ASYNC_READ | flags.MAX_PAGES | flags.DO_READDIRPLUS
    assert (fields[6], fields[8]) == (65536, 16)
    minor, reply = negotiate(_init(99, offered), SessionOptions(server_locks=True, readdirplus=False))
    assert minor == protocol.VERSION_MINOR
    assert protocol.INIT_OUT.unpack_from(reply)[3] == flags.ASYNC_READ | flags.MAX_PAGES | flags.POSIX_LOCKS


@pytest.mark.parametrize(("major", "minor"), [(6, 99), (7, 30), (8, 0)])
def test_kernels_that_are_too_old_are_named(major: int, minor: int) -> None:
    with pytest.raises(UnsupportedFormat, match=f"{major}.{minor}.*Linux 5.4"):
        protocol.check_version(major, minor)


@pytest.mark.parametrize("size", [0, 4095, 5000, (1 << 20) + 4096])
def test_sizes_that_cannot_be_negotiated_are_refused(size: int) -> None:
    with pytest.raises(InvalidRequest):
        SessionOptions(max_write=size)
