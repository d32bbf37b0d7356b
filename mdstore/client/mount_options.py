"""Mount options as fstab(5) writes them: `ro,allow_other,attr_timeout=10`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from mdstore.client import mount_syscalls as system
from mdstore.client.fuse_init import SessionOptions
from mdstore.client.fuse_reply import CacheTimes
from mdstore.errors import InvalidRequest
from mdstore.limits import OWNER_MAX

BUSY_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class MountOptions:
    """All that a mount can be told."""

    read_only: bool = False
    allow_other: bool = False  # users other than the one who mounts; root mounting usually wants it
    source: str = "mdstore"  # the first column of mount(8) and df(1): the image's path, or what `fsname=` says instead
    image: str | None = None  # the image's path, whatever `source` says: see `image_at`
    flags: int = system.MS_NOSUID | system.MS_NODEV
    session: SessionOptions = field(default_factory=SessionOptions)
    busy_timeout_s: float = BUSY_TIMEOUT_S  # how long a stop waits for programs that still use a busy mount
    acls: bool = True  # access control lists, on a mount where others come in; a name space that keeps none has none
    uid: int | None = None  # who owns the root directory: set once, when the name space is mounted
    gid: int | None = None


def parse_options(text: str, base: MountOptions | None = None) -> MountOptions:
    """`base` changed as the comma-separated options say, later ones over earlier ones.

    `InvalidRequest` names an unknown option, or one whose value is missing or wrong. Options that concern only mount(8) and
    systemd (`noauto`, `nofail`, `_netdev`, `user`, `x-...`, `comment=...`) are passed over.
    """
    options = base or MountOptions()
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = word.partition("=")
        if name in _FOR_OTHERS or name.startswith(("x-", "X-")):
            continue
        if name in _FLAGS and not equals:
            bit, on = _FLAGS[name]
            options = dataclasses.replace(options, flags=options.flags | bit if on else options.flags & ~bit)
        elif name in _WORDS and not equals:
            options = _changed(options, _WORDS[name])
        elif name in _VALUES and value:
            options = _with_value(options, name, value)
        else:
            raise InvalidRequest(f"mount option {word!r}: {_complaint(name, equals)}")
    return options


_Change = dict[str, Any]

_FOR_OTHERS: Final = frozenset((
    "defaults", "auto", "noauto", "user", "nouser", "users", "nousers", "owner", "group", "nofail", "_netdev", "comment",
    "relatime", "strictatime", "norelatime", "nostrictatime", "lazytime", "nolazytime", "default_permissions",
))  # fmt: skip
_FLAGS: Final = {
    "suid": (system.MS_NOSUID, False), "nosuid": (system.MS_NOSUID, True),
    "dev": (system.MS_NODEV, False), "nodev": (system.MS_NODEV, True),
    "exec": (system.MS_NOEXEC, False), "noexec": (system.MS_NOEXEC, True),
    "async": (system.MS_SYNCHRONOUS, False), "sync": (system.MS_SYNCHRONOUS, True),
    "atime": (system.MS_NOATIME, False), "noatime": (system.MS_NOATIME, True),
    "dirsync": (system.MS_DIRSYNC, True),
}  # fmt: skip
_WORDS: Final[dict[str, _Change]] = {
    "ro": {"read_only": True},
    "rw": {"read_only": False},
    "allow_other": {"allow_other": True},
    "noallow_other": {"allow_other": False},
    "writeback": {"session.writeback": True},
    "nowriteback": {"session.writeback": False},
    "readdirplus": {"session.readdirplus": True},
    "noreaddirplus": {"session.readdirplus": False},
    "acl": {"acls": True},
    "noacl": {"acls": False},
    "nolistcache": {"session.cache_listings": False},
}


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1 << 31:
        raise ValueError(text)
    return value


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _owner(text: str) -> int:
    value = int(text)
    if not 0 <= value <= OWNER_MAX:
        raise ValueError(text)
    return value


def _locks(text: str) -> bool:
    return {"kernel": False, "server": True}[text]


_VALUES: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "fsname": ("source", str),
    "uid": ("uid", _owner),
    "gid": ("gid", _owner),
    "busy_timeout": ("busy_timeout_s", _seconds),
    "entry_timeout": ("times.entry_s", _seconds),
    "attr_timeout": ("times.attr_s", _seconds),
    "negative_timeout": ("times.negative_s", _seconds),
    "max_write": ("session.max_write", _natural),
    "poll_us": ("session.poll_us", _natural),
    "locks": ("session.server_locks", _locks),
}


def _with_value(options: MountOptions, name: str, text: str) -> MountOptions:
    place, convert = _VALUES[name]
    try:
        value = convert(text)
    except (ValueError, KeyError):
        raise InvalidRequest(f"mount option {name}={text}: not a value it can have") from None
    return _changed(options, {place: value})


def _changed(options: MountOptions, change: _Change) -> MountOptions:
    for place, value in change.items():
        owner, _, name = place.rpartition(".")
        if owner == "times":
            times: CacheTimes = options.session.times._replace(**{name: value})
            options = dataclasses.replace(options, session=dataclasses.replace(options.session, times=times))
        elif owner == "session":
            options = dataclasses.replace(options, session=dataclasses.replace(options.session, **{name: value}))
        else:
            options = dataclasses.replace(options, **{name: value})
    return options


def _complaint(name: str, equals: str) -> str:
    if name in _VALUES:
        return f"it needs a value, {name}=..."
    if equals and (name in _FLAGS or name in _WORDS):
        return "it takes no value"
    return f"unknown; known are {', '.join(sorted([*_WORDS, *_FLAGS, *_VALUES]))}"
