"""The workloads of `mdstore crash`, by name, and other people's engines, by module."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from mdstore.device.explore import Recording, Reopen, Workload, record
from mdstore.device.faulty import Fault
from mdstore.device.subject import Script, Subject, key_value_script, reopen_of, workload_of
from mdstore.errors import InvalidRequest, NotFound
from mdstore.tools.crash import full_device, namespace, pairs, restarts, snapshots, takeover, transactions
from mdstore.tools.crash.names import names_script
from mdstore.tools.crash.recorded import recorded_workload, reopen_recorded
from mdstore.tools.crash.verify import checked_by_fsck


@dataclass(frozen=True)
class CrashWorkload:
    """What is done to which engine on a device of `size_bytes`, and how it is read back."""

    name: str
    about: str
    size_bytes: int
    steps: int  # unless told otherwise
    workload: Callable[[int, int], Workload]  # of a seed and a number of steps
    reopen: Reopen
    is_recorded: bool = False  # beneath files of the engine's, where it meets no `Device`

    def record(self, seed: int, steps: int, faults: Iterable[Fault] = ()) -> Recording:
        """Run it once. Errors: those of the engine; Inconsistent."""
        return record(self.workload(seed, steps), self.size_bytes, seed, faults=faults)


@dataclass(frozen=True)
class KillWorkload:
    """An engine in real files, and the script of a round."""

    name: str
    about: str
    steps: int  # of a round
    subject: Subject[str]
    script: Callable[[int, int, Any], Script]  # of a seed, a number of steps, and what the round before left


def _of_subject(subject: Any, script: Callable[[int, int], Script]) -> Callable[[int, int], Workload]:
    return lambda seed, steps: workload_of(subject, script(seed, steps))


def pairs_script(seed: int, steps: int, _: Any = None) -> Script:
    """Keys can be set and deleted whatever is there."""
    return key_value_script(seed, steps)


_NAMES: Final = namespace.NamesOnDevice()
_PAIRS: Final = pairs.StoreOnDevice()

CRASH_WORKLOADS: Final = {
    workload.name: workload
    for workload in (
        CrashWorkload(
            "transactions", "store transactions of every kind, with clones and checkpoints", transactions.SIZE, 100,
            transactions.workload_of_transactions, transactions.reopen_transactions,
        ),
        CrashWorkload(
            "snapshots", "the same with snapshots of the store taken and deleted", snapshots.SIZE, 60,
            snapshots.workload_of_snapshots, snapshots.reopen_snapshots,
        ),
        CrashWorkload(
            "full", "the store on an image that is full all the time", full_device.SIZE, 100,
            full_device.workload_of_full_device, transactions.reopen_transactions,
        ),
        CrashWorkload(
            "pairs", "the store as a table of keys; the workload of --engine", pairs.SIZE, 80,
            _of_subject(_PAIRS, key_value_script), reopen_of(_PAIRS),
        ),
        CrashWorkload(
            "restarts", "the store on what an earlier crash left, crashed again", pairs.SIZE, 30,
            restarts.workload_of_restarts, reopen_of(_PAIRS),
        ),
        CrashWorkload(
            "takeover", "a journal over the store's objects that changes hands; a step is an owner", takeover.SIZE, 8,
            takeover.workload_of_takeover, takeover.reopen_log,
        ),
        CrashWorkload(
            "names", "create, link, rename, unlink across directories, with fsyncs", namespace.SIZE, 100,
            _of_subject(_NAMES, names_script), reopen_of(_NAMES),
        ),
    )
}  # fmt: skip

KILL_WORKLOADS: Final = {
    workload.name: workload
    for workload in (
        KillWorkload("pairs", "the store as a table of keys", 120, pairs.StoreInFile(), pairs_script),
        KillWorkload("names", "the metadata server's name space", 150, namespace.NamesInFile(), names_script),
    )
}


def chosen_workload(name: str, engine: str = "", *, fsck: bool = False) -> CrashWorkload:
    """The workload `name`, or the keys of `pairs` in somebody else's engine. `fsck`: the second reader checks every state too."""
    chosen = crash_workload(name) if not engine else _workload_of_engine(engine)
    return replace(chosen, reopen=checked_by_fsck(chosen.reopen)) if fsck else chosen


def _workload_of_engine(place: str) -> CrashWorkload:
    subject = engine_of(place)
    about = f"keys in {place}"
    if medium_of(subject) == "device":
        size_bytes = int(getattr(subject, "size_bytes", pairs.SIZE))
        return CrashWorkload(
            "pairs", about, size_bytes, 80, _of_subject(subject, key_value_script), reopen_of(subject)
        )
    size_bytes = int(getattr(subject, "size_bytes", pairs.FILE_SIZE))
    return CrashWorkload(
        "pairs", about, size_bytes, 80,
        lambda seed, steps: recorded_workload(subject, key_value_script(seed, steps)), reopen_recorded(subject),
        is_recorded=True,
    )  # fmt: skip


def crash_workload(name: str) -> CrashWorkload:
    """NotFound, with the names there are, for any other."""
    if name not in CRASH_WORKLOADS:
        raise NotFound("workload", f"{name}; there are {', '.join(CRASH_WORKLOADS)}")
    return CRASH_WORKLOADS[name]


def chosen_kill_workload(name: str, engine: str = "") -> KillWorkload:
    """The workload `name`, or the keys of `pairs` in somebody else's engine, which works on a path."""
    if not engine:
        return kill_workload(name)
    subject = engine_of(engine)
    if medium_of(subject) != "path":
        raise InvalidRequest(f"{engine} works on a device: only a process with files of its own can be killed")
    return KillWorkload("pairs", f"keys in {engine}", 80, subject, pairs_script)


def kill_workload(name: str) -> KillWorkload:
    """NotFound, with the names there are, for any other."""
    if name not in KILL_WORKLOADS:
        raise NotFound("workload to kill", f"{name}; there are {', '.join(KILL_WORKLOADS)}")
    return KILL_WORKLOADS[name]


def engine_of(place: str) -> Any:
    """The adapter that `MODULE:FACTORY` returns, a `Subject` with `medium` "device" or "path"; `lmdb:` is the engine of that
    name. InvalidRequest when there is no such thing."""
    place = {"lmdb:": f"{pairs.__name__}:{pairs.LmdbInDirectory.__name__}"}.get(place, place)
    module_name, colon, factory_name = place.partition(":")
    try:
        subject = getattr(importlib.import_module(module_name), factory_name)() if colon else None
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise InvalidRequest(f"no engine {place}: {error}") from error
    if not (hasattr(subject, "format") and hasattr(subject, "open")):
        raise InvalidRequest(f"{place} is no engine: write MODULE:FACTORY of a function that returns an adapter")
    return subject


def medium_of(subject: Any) -> str:
    """Where an adapter works: "device" (an object with the methods of `Device`) or "path"."""
    return str(getattr(subject, "medium", "device"))
