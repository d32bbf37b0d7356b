"""fstab-style options."""

from __future__ import annotations

import pytest

from mdstore.client import mount_syscalls as system
from mdstore.client.mount_options import MountOptions, parse_options
from mdstore.errors import InvalidRequest


def test_no_options_are_the_defaults() -> None:
    assert parse_options("") == parse_options("defaults") == parse_options("rw,auto,_netdev,x-systemd.after=a") == MountOptions()


def test_options_arrive_where_they_count() -> None:
    options = parse_options(
        "ro,allow_other,noexec,suid,fsname=work.img,uid=7,gid=8,attr_timeout=0.5,entry_timeout=0,writeback,locks=server,"
        "max_write=65536,poll_us=0,busy_timeout=5,noreaddirplus,nolistcache"
    )
    assert options.read_only
    assert options.allow_other
    assert options.flags == system.MS_NOEXEC | system.MS_NODEV
    assert (options.source, options.uid, options.gid, options.busy_timeout_s) == ("work.img", 7, 8, 5.0)
    session = options.session
    assert (session.times.attr_s, session.times.entry_s, session.times.negative_s) == (0.5, 0.0, 3600.0)
    assert (session.writeback, session.server_locks, session.max_write, session.poll_us) == (True, True, 65536, 0)
    assert (session.readdirplus, session.cache_listings) == (False, False)


def test_the_last_word_counts() -> None:
    assert not parse_options("ro,rw").read_only
    assert parse_options("rw,ro").read_only
    assert parse_options("rw", MountOptions(read_only=True)) == MountOptions()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense", "unknown"),
        ("uid", "needs a value"),
        ("uid=x", "not a value"),
        ("uid=-1", "not a value"),
        ("ro=1", "takes no value"),
        ("locks=maybe", "not a value"),
        ("attr_timeout=-1", "not a value"),
        ("attr_timeout=nan", "not a value"),
        ("max_write=5000", "max_write is 5000"),
    ],
)
def test_wrong_options_are_named(text: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        parse_options("allow_other," + text)
