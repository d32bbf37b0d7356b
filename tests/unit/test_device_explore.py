"""The exploration finds what is broken, and finds nothing where nothing is: tried on a small store with bugs to order."""

from __future__ import annotations

import json
import os
import signal
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

from mdstore.device.crashstates import Plan, rebuild_state
from mdstore.device.explore import Exploration, History, Report, explore, record
from mdstore.device.faulty import Effect, Fault, FaultyDevice
from mdstore.device.file import FileDevice
from mdstore.device.kill import kill_loop
from mdstore.device.protocol import Device
from mdstore.device.subject import Delete, Put, Script, explore_subject, key_value_script, reopen_of, workload_of
from mdstore.device.verdicts import Problem, judge
from mdstore.errors import CorruptionError, DeviceFailed, InvalidRequest

SIZE = 64 * 1024
SLOT = 4096
Table = dict[bytes, bytes]


@dataclass(frozen=True)
class Bugs:
    """What the small store gets wrong."""

    mark_before_data: bool = False  # the mark that names the data is durable before the data is
    no_flush_at_all: bool = False
    one_slot: bool = False  # overwrites the only copy
    trusts_checksum: bool = False  # reads without checking
    forgets_removals: bool = False  # writes a removal to memory only
    recovery_wipes_first: bool = False  # recovery drops the other slot, then copies
    acknowledges_early: bool = False  # says "durable" with the write still in a buffer of its own


SOUND = Bugs()


class SmallStore:
    """A table, written whole into one of two slots: `length, sequence, crc`, then records; the newest valid one counts."""

    def __init__(self, device: Device, bugs: Bugs) -> None:
        self.device, self.bugs = device, bugs
        self.table: Table = {}
        self.held_back: list[tuple[int, bytes]] = []
        self.sequence = self.applied = 0

    def recover(self) -> None:
        slots = [found for index in (0, 1) if (found := self._read_slot(index))]
        if not slots:
            raise CorruptionError("slot", "both")
        self.sequence, self.table = max(slots, key=lambda found: found[0])
        if self.bugs.recovery_wipes_first:
            self.device.write(self.sequence % 2 * SLOT, [bytes(SLOT)])
            self.device.flush()
            self.sequence -= 2
            self.commit(self.table)

    def commit(self, table: Table) -> None:
        table = {**self.table, **table} if self.bugs.forgets_removals else table
        self.table = table
        self.sequence += 1
        body = b"".join(struct.pack("<HH", len(k), len(v)) + k + v for k, v in sorted(table.items()))
        head = struct.pack("<II", len(body), self.sequence)
        head += struct.pack("<I", crc32c(head + body))
        at = 0 if self.bugs.one_slot else self.sequence % 2 * SLOT
        parts = [(at, head), (at + 12, body)] if self.bugs.mark_before_data else [(at, head + body)]
        if self.bugs.acknowledges_early:
            parts, self.held_back = self.held_back, parts
        for offset, data in parts:
            self.device.write(offset, [data])
            if not self.bugs.no_flush_at_all:
                self.device.flush()

    def _read_slot(self, index: int) -> tuple[int, Table] | None:
        length, sequence, crc = struct.unpack("<III", self.device.read(index * SLOT, 12))
        if not sequence or length > SLOT - 12:
            return None
        body = self.device.read(index * SLOT + 12, length)
        if crc32c(struct.pack("<II", length, sequence) + body) != crc and not self.bugs.trusts_checksum:
            return None
        table, at = {}, 0
        while at < length:
            key_size, value_size = struct.unpack_from("<HH", body, at)
            at += 4 + key_size + value_size
            table[body[at - value_size - key_size : at - value_size]] = body[at - value_size : at]
        return sequence, table

    # -- as a session --------------------------------------------------------------------------------------------------

    def apply(self, operation: Put | Delete) -> None:
        table = {key: value for key, value in self.table.items() if key != operation.key}
        self.commit({**table, operation.key: operation.value} if isinstance(operation, Put) else table)
        self.applied += 1

    def acknowledged(self) -> int:
        return self.applied

    def dump(self) -> Table:
        return self.table

    def close(self) -> None:
        self.device.close()


@dataclass(frozen=True)
class OnDevice:
    """The small store as a subject on a device."""

    bugs: Bugs = SOUND

    def format(self, device: Device) -> SmallStore:
        store = SmallStore(device, self.bugs)
        store.commit({})
        return store

    def open(self, device: Device) -> SmallStore:
        store = SmallStore(device, self.bugs)
        store.recover()
        return store


@dataclass(frozen=True)
class OnFile:
    """The small store as a subject on a path."""

    bugs: Bugs = SOUND

    def format(self, path: str) -> SmallStore:
        return OnDevice(self.bugs).format(FileDevice.create(path, SIZE))

    def open(self, path: str) -> SmallStore:
        return OnDevice(self.bugs).open(FileDevice.open(path))


def script(seed: int, count: int = 30) -> Script:
    return key_value_script(seed, count, keys=6, value_bytes=300)


def explored(bugs: Bugs = SOUND, seed: int = 1, **options: Any) -> Report:
    options = {"budget_states": 1500, **options}
    return explore_subject(OnDevice(bugs), script(seed), seed=seed, size_bytes=SIZE, **options)


# -- what is sound is found sound --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sound_store_survives_every_crash(seed: int) -> None:
    report = explored(seed=seed, nested_states=30)
    assert report.clean, str(report)
    assert report.tried >= 1500
    assert 300 < report.distinct <= report.tried


def test_seed_is_said_first_and_last_and_repeats_the_run() -> None:
    said: list[str] = []
    first, second = explored(seed=77, say=said.append), explored(seed=77, say=said.append)
    assert "seed 77" in said[0]
    assert said[-1].endswith("seed 77")
    assert {**first.as_json(), "seconds": 0, "states_per_second": 0} == {
        **second.as_json(),
        "seconds": 0,
        "states_per_second": 0,
    }


def test_budget_is_kept_whether_it_is_less_or_more_than_one_pass() -> None:
    assert explored(budget_states=50).tried == 50
    assert explored(budget_states=6000).tried == 6000


def test_a_small_budget_still_looks_at_the_whole_run() -> None:
    run = record(workload_of(OnDevice(), script(1, 200)), SIZE, 1)
    points = [state.state_id.op for state in Exploration(run, reopen_of(OnDevice()), 1).states(170)]
    assert min(points) < 100
    assert max(points) > 300


def test_models_of_any_type_are_compared_by_equality() -> None:
    def run(device: Device, history: History) -> None:
        history.start(0)
        for number in range(1, 5):
            history.begin(number)
            device.write(0, [bytes([number])])
            device.flush()
            history.acknowledge(number)

    report = explore(run, lambda device: device.read(0, 1)[0], seed=1, size_bytes=512, plan=Plan(inside_sectors=False))
    assert report.clean, str(report)


# -- canaries: what is broken is found ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bugs", "problem"),
    [
        (Bugs(no_flush_at_all=True), Problem.LOST),
        (Bugs(mark_before_data=True, trusts_checksum=True), Problem.ERROR),
        (Bugs(one_slot=True), Problem.ERROR),
        (Bugs(trusts_checksum=True), Problem.TORN),
        (Bugs(forgets_removals=True), Problem.RESURRECTED),
        (Bugs(acknowledges_early=True), Problem.LOST),
    ],
    ids=lambda value: str(value.value) if isinstance(value, Problem) else repr(value),
)
def test_each_bug_is_found_within_a_thousand_states(bugs: Bugs, problem: Problem) -> None:
    report = explored(bugs, budget_states=1000)
    assert report.counts[problem] > 0, str(report)
    assert not report.clean
    assert report.findings


@pytest.mark.parametrize("nth", [3, 10, 25])
def test_one_lost_flush_is_found(nth: int) -> None:
    report = explored(faults=[Fault("flush", nth, Effect.LOST)])
    assert report.counts[Problem.LOST] > 0, str(report)


@pytest.mark.parametrize("nth", [3, 10, 25])
def test_one_lost_write_is_found(nth: int) -> None:
    assert not explored(faults=[Fault("write", nth, Effect.LOST)]).clean


def test_a_recovery_that_cannot_be_interrupted_is_found_by_nested_crashes_alone() -> None:
    bugs = Bugs(recovery_wipes_first=True)
    assert explored(bugs, budget_states=200).clean
    report = explored(bugs, budget_states=200, nested_states=20)
    assert not report.clean
    assert report.nested > 0
    assert "then in its recovery" in report.findings[0].state


def test_a_finding_names_a_state_that_can_be_built_again() -> None:
    bugs = Bugs(trusts_checksum=True)
    report = explored(bugs, stop_at_first=True)
    (finding,) = report.findings[:1]
    run = record(workload_of(OnDevice(bugs), script(1)), SIZE, 1)
    state = rebuild_state(run.log, finding.state)
    again = Exploration(run, reopen_of(OnDevice(bugs)), 1).check(state)
    assert finding in again


def test_stopping_at_the_first_finding_stops_there() -> None:
    assert explored(Bugs(one_slot=True), stop_at_first=True).tried < explored(Bugs(one_slot=True)).tried


# -- running the workload ----------------------------------------------------------------------------------------------


def test_a_crash_fault_ends_the_workload_and_what_came_before_is_explored() -> None:
    report = explored(faults=[Fault("write", 9, Effect.CRASH)])
    assert report.clean, str(report)
    assert report.operations < 2 * 10


def test_a_failing_workload_is_the_callers_to_see() -> None:
    with pytest.raises(DeviceFailed):
        explored(faults=[Fault("write", 9, Effect.EIO)])


def test_a_workload_that_never_starts_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="never called"):
        explore(lambda device, history: None, lambda device: 0, seed=1, size_bytes=512)


@pytest.mark.parametrize("bases", [{}, {"size_bytes": 512, "base": b"x"}])
def test_size_or_image_but_one_of_them(bases: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="one of the two"):
        explore(lambda device, history: None, lambda device: 0, seed=1, **bases)


def test_an_exploration_may_start_from_an_image() -> None:
    image = FaultyDevice(SIZE)
    OnDevice().format(image)

    def run(device: Device, history: History) -> None:
        store = OnDevice().open(device)
        history.start({})
        number = history.begin({b"k": b"v"})
        store.apply(Put(b"k", b"v"))
        history.acknowledge(number)

    assert explore(run, reopen_of(OnDevice()), seed=1, base=image.image()).clean


def test_acknowledgements_out_of_order_do_not_take_back_earlier_ones() -> None:
    history = History(FaultyDevice(512))
    history.start("a")
    numbers = [history.begin(model) for model in "bc"]
    history.acknowledge(numbers[1])
    history.acknowledge(numbers[0])
    assert history.promise.windows()(0) == (2, 2)
    with pytest.raises(InvalidRequest):
        history.start("again")


def test_report_is_json() -> None:
    report = explored(Bugs(one_slot=True), budget_states=100)
    assert json.loads(json.dumps(report.as_json()))["states_tried"] == 100


# -- verdicts ----------------------------------------------------------------------------------------------------------

MODELS: list[dict[str, int]] = [{}, {"a": 1}, {"a": 2}, {"a": 2, "b": 1}, {"b": 1}, {"b": 1, "c": 1}]


@pytest.mark.parametrize(
    ("found", "acknowledged", "begun", "problems"),
    [
        ({"a": 2}, 2, 3, []),
        ({"a": 2, "b": 1}, 2, 3, []),
        ({"a": 1}, 2, 3, [Problem.LOST]),
        ({}, 2, 3, [Problem.LOST]),
        ({"a": 2, "b": 1}, 4, 4, [Problem.RESURRECTED]),
        ({"b": 1, "z": 1}, 4, 4, [Problem.TORN]),
        ({"b": 7}, 4, 4, [Problem.TORN]),
        ({"a": 2, "b": 1, "c": 1}, 3, 5, [Problem.TORN]),
    ],
)
def test_what_is_wrong_gets_its_name(
    found: dict[str, int], acknowledged: int, begun: int, problems: list[Problem]
) -> None:
    assert [problem for problem, _ in judge(found, MODELS, acknowledged, begun)] == problems


def test_models_without_keys_are_lost_or_torn_as_a_whole() -> None:
    assert judge(3, [1, 2, 3], 1, 2) == []
    assert [problem for problem, _ in judge(1, [1, 2, 3], 1, 2)] == [Problem.LOST]
    assert [problem for problem, _ in judge(9, [1, 2, 3], 1, 2)] == [Problem.TORN]


def test_evidence_stays_short() -> None:
    ((_, detail),) = judge({}, [{}, dict.fromkeys(range(1000), 1)], 1, 1)
    assert detail.startswith("1000 of its keys: 0, 1, 10, 100, 101 ...")


# -- real processes ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sound_store_survives_kills(tmp_path: Path) -> None:
    report = kill_loop(OnFile(), lambda number, _: script(number, 200), str(tmp_path / "image"), seed=5, rounds=8)
    assert report.clean, str(report)
    assert report.rounds == 8
    assert report.killed > 0
    assert 0 < report.acknowledged <= report.begun
    assert json.loads(json.dumps(report.as_json()))["rounds"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("bugs", [Bugs(acknowledges_early=True), Bugs(forgets_removals=True)], ids=repr)
def test_kills_find_what_they_can_find(tmp_path: Path, bugs: Bugs) -> None:
    report = kill_loop(OnFile(bugs), lambda number, _: script(number, 60), str(tmp_path / "image"), seed=6, rounds=40)
    assert not report.clean
    assert report.rounds < 40


def test_working_process_that_fails_is_a_finding(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = kill_loop(OnFile(), lambda number, _: script(number), str(tmp_path / "no" / "image"), seed=6, rounds=3)
    (finding,) = report.findings
    assert finding.problem is Problem.ERROR
    assert "status 1" in finding.detail
    assert "NotFound" in capfd.readouterr().err


class DiesInRecovery(OnFile):
    def open(self, path: str) -> SmallStore:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("not reached")


def test_recovery_that_dies_is_a_finding(tmp_path: Path) -> None:
    report = kill_loop(DiesInRecovery(), lambda number, _: script(number), str(tmp_path / "image"), seed=6, rounds=3)
    (finding,) = report.findings
    assert finding.detail == "the recovering process died"
