"""The border of the metadata server: what comes in is checked before anything changes.

A number that its field in an inode could not hold never gets past here: times are clamped to `TIME_MIN_NS`..`TIME_MAX_NS`, as
Linux clamps them to what a file system keeps; owners and device numbers outside their range are EINVAL. A value of another type
than the verb declares is a TypeError. What goes wrong all the same, inside a change, meets `Guard` (core.py).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import wraps
from inspect import signature
from itertools import product
from types import UnionType
from typing import Any, Final, Protocol, TypeVar, cast, get_args, get_type_hints

from mdstore.errors import PosixError
from mdstore.limits import DEVICE_NUMBER_MAX, OWNER_MAX, TIME_MAX_NS, TIME_MIN_NS
from mdstore.mds.core import Core
from mdstore.mds.vfs import NOW, Credentials, SetAttr


class Bounded(Protocol):
    """What has verbs behind the border: `MetadataServer`."""

    _core: Core
    _checked: Credentials | None  # who asked last, and has numbers that can be kept

    def _before_change(self) -> None: ...


Verb = TypeVar("Verb", bound=Callable[..., Any])
_Rule = Callable[[Any], Any]
_Settle = Callable[[tuple[Any, ...], dict[str, Any]], tuple[Any, ...]]


def changing(verb: Verb) -> Verb:
    """A verb that changes something: its arguments are checked, and it runs under `Core.guard` once changes are possible."""
    settle, shapes, ranges = _border(verb)

    @wraps(verb)
    def call(self: Bounded, *given: Any, **named: Any) -> Any:
        if named or tuple(map(type, given)) not in shapes:
            given = settle(given, named)
        cred = given[0]
        if cred is not self._checked and type(cred) is Credentials:
            _check_credentials(cred)
            self._checked = cred
        if ranges:
            given = tuple([rule(value) if (rule := ranges.get(at)) else value for at, value in enumerate(given)])
        with self._core.guard:
            self._before_change()
            return verb(self, *given)

    return cast(Verb, call)


def checked(verb: Verb) -> Verb:
    """A verb that changes something at times, and takes `Core.guard` itself: its arguments are checked."""
    settle, shapes, _ = _border(verb)

    @wraps(verb)
    def call(self: Bounded, *given: Any, **named: Any) -> Any:
        if named or tuple(map(type, given)) not in shapes:
            given = settle(given, named)
        return verb(self, *given)

    return cast(Verb, call)


# -- numbers -----------------------------------------------------------------------------------------------------------


def clamped_time(moment_ns: int) -> int:
    """The nearest time that can be kept, which is never `NOW`."""
    return min(max(moment_ns, TIME_MIN_NS), TIME_MAX_NS)


def owner(number: int, what: str) -> int:
    """The number of a user or a group. EINVAL."""
    if not 0 <= number <= OWNER_MAX:
        raise PosixError(errno.EINVAL, what, f"numbers of users and groups are 0 to {OWNER_MAX}")
    return number


def _check_credentials(cred: Credentials) -> None:
    for number in (*cred, *cred.groups):
        if number is not cred.groups and not isinstance(number, int):
            raise TypeError(f"credentials are numbers, not {type(number).__name__}")
    owner(cred.uid, "uid")
    owner(cred.gid, "gid")
    if cred.umask & ~0o777:
        raise PosixError(errno.EINVAL, "umask", "a umask takes permissions, 0 to 0o777")


def _device(number: int) -> int:
    if not 0 <= number <= DEVICE_NUMBER_MAX:
        raise PosixError(errno.EINVAL, "rdev", f"device numbers are 0 to {DEVICE_NUMBER_MAX}")
    return number


_NUMBERS: Final = frozenset((int, type(None)))
_NO_TIMES: Final = (None, None, None)  # of `SetAttr`, access to change


def _change(change: SetAttr) -> SetAttr:
    if not _NUMBERS.issuperset(map(type, change)):
        for value in change:
            if value is not None and not isinstance(value, int):
                raise TypeError(f"attributes are numbers, not {type(value).__name__}")
    if change.uid is not None:
        owner(change.uid, "uid")
    if change.gid is not None:
        owner(change.gid, "gid")
    if change[4:7] == _NO_TIMES:
        return change
    atime, mtime, ctime = (
        moment if moment is None or moment == NOW else clamped_time(moment)
        for moment in (change.atime_ns, change.mtime_ns, change.ctime_ns)
    )
    return change._replace(atime_ns=atime, mtime_ns=mtime, ctime_ns=ctime)


def _octets(data: bytes | memoryview) -> bytes | memoryview:
    return data.tobytes() if isinstance(data, memoryview) and (data.itemsize != 1 or data.ndim != 1) else data


_RANGES: Final[dict[str, _Rule]] = {"rdev": _device, "change": _change, "data": _octets}  # by the parameter's name


def typed(verb: str, name: str, value: Any, kind: type) -> Any:
    """An argument of a verb that checks itself. TypeError."""
    return value if type(value) is kind else _settled(verb, name, value, (kind,))


# -- types -------------------------------------------------------------------------------------------------------------


def _border(verb: Callable[..., Any]) -> tuple[_Settle, frozenset[tuple[type, ...]], dict[int, _Rule]]:
    """What makes a verb's arguments those of its declaration, the types of arguments that are so already, and the rules of those
    parameters that have one."""
    shape, hints = signature(verb), get_type_hints(verb)
    parameters = list(shape.parameters.values())[1:]
    kinds = [get_args(hints[it.name]) if isinstance(hints[it.name], UnionType) else (hints[it.name],) for it in parameters]
    least = sum(it.default is it.empty for it in parameters)
    shapes = frozenset(types for count in range(least, len(kinds) + 1) for types in product(*kinds[:count]))
    keywords = {it.name for it in parameters if it.kind is it.KEYWORD_ONLY}
    assert not keywords, f"{verb.__name__}: the border passes arguments by position"

    def settle(given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        bound = shape.bind(None, *given, **named)
        bound.apply_defaults()
        return tuple(_settled(verb.__name__, it.name, bound.arguments[it.name], kind) for it, kind in zip(parameters, kinds))

    return settle, shapes, {at: _RANGES[it.name] for at, it in enumerate(parameters) if it.name in _RANGES}


def _settled(verb: str, name: str, value: Any, kinds: tuple[type, ...]) -> Any:
    """The argument as one of the declared types. TypeError."""
    if isinstance(value, kinds):
        return int(value) if isinstance(value, int) else value
    if bytes in kinds and isinstance(value, bytearray | memoryview):
        return bytes(value)
    expected = " or ".join(kind.__name__ for kind in kinds)
    raise TypeError(f"{verb}: {name} is {type(value).__name__}, not {expected}")
