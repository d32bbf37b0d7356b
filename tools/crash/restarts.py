"""Workload `restarts`: a store that has crashed before. It is opened on what a torn write left, works on, and crashes again.

Entries of the log are all of one size, and the second life flushes each of them, so that what it writes ends exactly where an
entry of the first life begins: nothing of what recovery dropped may come back.
"""

from __future__ import annotations

from random import Random
from typing import Final

from journal.entry import HEADER_SIZE
from mdstore.device.crashstates import CrashState, crash_states
from mdstore.device.explore import History, Recording, Workload, record
from mdstore.device.protocol import Device
from mdstore.device.subject import Put, Script, step_key_value, workload_of
from mdstore.device.verdicts import judge
from mdstore.store.store import Store
from mdstore.tools.crash.pairs import SIZE, SMALL, PairsSession, StoreOnDevice
from mdstore.tools.crash.verify import Inconsistent

KEYS: Final = 6
VALUE_BYTES: Final = 12
FIRST_LIFE: Final = 30  # operations before the first crash
_TORN: Final = frozenset({"tail", "sector", "mix", "torn", "subset", "drop"})  # ways for the first life to end
LOOKED_AT: Final = 60  # torn states, among which one is looked for whose log has whole entries behind its end


def workload_of_restarts(seed: int, steps: int) -> Workload:
    """`steps` operations after a first life that ended in a torn write."""

    def workload(device: Device, history: History) -> None:
        subject = StoreOnDevice(batch=1)
        state = _crashed(seed)
        device.write(0, [state.image.to_bytes()])
        device.flush()
        session = subject.open(device)
        model = session.pairs()
        history.start(model)
        for operation in _script(f"{seed}/second", steps).operations:
            model = step_key_value(model, operation)
            history.begin(model)
            session.apply(operation)
            history.acknowledge(session.acknowledged())
        session.close()

    return workload


def _crashed(seed: int) -> CrashState:
    """What the first life left: a torn state, which recovers to what it must; if possible with entries behind the log's end."""
    run = record(workload_of(StoreOnDevice(), _script(f"{seed}/first", FIRST_LIFE)), SIZE, seed)
    first = run.promise.first_point
    points = range(first + (len(run.log.operations) - first) // 2, len(run.log.operations) + 1)
    torn = [state for state in crash_states(run.log, seed, points=points) if state.state_id.kind in _TORN]
    Random(f"{seed}/restarts").shuffle(torn)
    return next((state for state in torn[:LOOKED_AT] if _has_entries_behind_the_end(state, run)), torn[0])


def _has_entries_behind_the_end(state: CrashState, run: Recording) -> bool:
    store = Store.open(state.device(), **SMALL, background=False)
    wrong = judge(PairsSession(store).pairs(), run.promise.models, *run.promise.windows()(state.state_id.op))
    if wrong:
        raise Inconsistent(f"after the first crash ({state.state_id}): {wrong}")
    tail = store.journal.tail
    return tail.kind == "torn" and tail.dirty_end > tail.position + HEADER_SIZE


def _script(seed: str, steps: int) -> Script:
    random = Random(seed)
    puts = [
        Put(b"key-%d" % random.randrange(KEYS), b"%04d" % number + random.randbytes(VALUE_BYTES - 4))
        for number in range(steps)
    ]
    return Script(puts, step_key_value, {})
