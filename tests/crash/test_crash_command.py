"""`mdstore crash`: what is sound is found sound, what is broken is found, and what was found is found again."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from mdstore.device.crashfile import CrashFile, load_crash_file
from mdstore.device.crashstates import StateId
from mdstore.device.explore import IN_RECOVERY, Exploration, record
from mdstore.device.faulty import Effect, Fault
from mdstore.device.protocol import Device
from mdstore.device.subject import Put, reopen_of, workload_of
from mdstore.errors import CorruptionError, DeviceFailed, InvalidRequest
from mdstore.tools.crash import canaries
from mdstore.tools.crash.campaign import Campaign, Settings, load_campaign, run_campaign, save_campaign
from mdstore.tools.crash.faults import Case, FaultReport, fault_cases, run_case, run_cases, some_cases
from mdstore.tools.crash.names import names_script, step_names
from mdstore.tools.crash.replay import replay
from mdstore.tools.crash.workloads import CRASH_WORKLOADS, KILL_WORKLOADS, chosen_workload, crash_workload
from tests.commandline import Run
from tests.unit.test_device_explore import SIZE, Bugs, OnDevice, OnFile, SmallStore, script

HERE = __name__


# -- somebody else's engines -------------------------------------------------------------------------------------------


def sound() -> OnDevice:
    return OnDevice()


def forgetful() -> OnDevice:
    return OnDevice(Bugs(no_flush_at_all=True))


def trusting() -> OnDevice:
    return OnDevice(Bugs(trusts_checksum=True))


class InFile(OnFile):
    medium = "path"


def on_file() -> InFile:
    return InFile()


@dataclass(frozen=True)
class Dying(OnDevice):
    """Takes a failing device for the end of the world."""

    def format(self, device: Device) -> SmallStore:
        store = OnDevice.format(self, device)
        apply = store.apply

        def apply_or_die(operation: Put) -> None:
            try:
                apply(operation)
            except DeviceFailed:
                os._exit(3)

        store.apply = apply_or_die  # type: ignore[method-assign, assignment]
        return store


def dying() -> Dying:
    return Dying()


# -- explore -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CRASH_WORKLOADS)
def test_every_workload_recovers_from_every_state_tried(run: Run, name: str) -> None:
    found = run("crash", "explore", "--workload", name, "--seed", 11, "--states", 300, "--json")
    assert found.code == 0, found.out
    totals = found.json()
    assert totals["states_tried"] >= 300
    assert totals["states_distinct"] > 120
    assert (totals["lost"], totals["resurrected"], totals["torn"], totals["error"]) == (0, 0, 0, 0)


def test_the_second_reader_can_look_at_every_state_too(run: Run) -> None:
    found = run("crash", "explore", "--workload", "names", "--states", 25, "--no-nested", "--fsck")
    assert found.code == 0, found.out


def test_seed_is_said_first_and_last(run: Run) -> None:
    lines = run("crash", "explore", "--workload", "pairs", "--seed", 77, "--states", 20).out.splitlines()
    assert lines[0] == lines[-1] == "seed 77"
    assert "20 states tried" in lines[-2]
    assert "0 lost, 0 resurrected, 0 torn, 0 error" in lines[-2]
    assert "states/s" in lines[-2]


def test_a_campaign_goes_on_where_it_stopped_in_any_number_of_processes(tmp_path: Path) -> None:
    settings = Settings("pairs", seed=3, steps=20, round_states=40)
    whole, parts, path = Campaign(settings), Campaign(settings), tmp_path / "state"
    run_campaign(whole, 200, directory=str(tmp_path))
    for states, jobs in ((80, 1), (120, 2), (200, 2)):
        run_campaign(parts, states, jobs=jobs, directory=str(tmp_path))
        save_campaign(path, parts)
        parts = load_campaign(path)
    for field in ("tried", "nested", "points", "operations", "distinct"):
        assert getattr(parts.report, field) == getattr(whole.report, field), field
    assert parts.rounds == whole.rounds == 5


def test_resume_keeps_the_state_and_asks_for_no_workload(run: Run, tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert run("crash", "explore", "--workload", "pairs", "--states", 30, "--round-states", 10, "--resume", state).code == 0
    found = run("crash", "explore", "--states", 50, "--resume", state, "--json").json()
    assert (found["workload"], found["states_tried"], found["rounds"]) == ("pairs", 50, 5)
    assert run("crash", "explore", "--workload", "names", "--resume", state).code == 1
    state.write_text(state.read_text().replace('"planned"', '"unplanned"'))
    refused = run("crash", "explore", "--resume", state)
    assert refused.code == 1
    assert "damaged crash campaign" in refused.err


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": "mdstore crash campaign", "version": 2}'])
def test_a_state_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "state").write_text(text)
    with pytest.raises((CorruptionError, InvalidRequest)):
        load_campaign(tmp_path / "state")


def test_a_failure_is_written_down_and_replayed_exactly(run: Run, tmp_path: Path) -> None:
    with canaries.superblock_first():
        found = run("crash", "explore", "--workload", "transactions", "--states", 400, "--out", tmp_path, "--json")
    assert found.code == 4
    (path,) = found.json()["replay"]
    again, once_more = run("crash", "replay", path, "--json"), run("crash", "replay", path)
    assert (again.code, once_more.code) == (4, 4)
    replayed = [text for row in again.json()["states"] for text in row["findings"]]
    assert replayed == found.json()["findings"], "the log is what was recorded: the bug need not be in any more"
    assert once_more.out.count("error: CorruptionError") == len(replayed)


def test_a_replay_is_right_once_the_bug_is_out_of_the_recovery(run: Run, tmp_path: Path) -> None:
    with canaries.blocks_believed():
        found = run("crash", "explore", "--states", 400, "--out", tmp_path, "--json").json()
        assert run("crash", "replay", found["replay"][0]).code == 4
    mended = run("crash", "replay", found["replay"][0])
    assert mended.code == 0
    assert "right: op=" in mended.out


def test_a_crash_of_a_recovery_is_replayed_too() -> None:
    subject = OnDevice(Bugs(recovery_wipes_first=True))
    run = record(workload_of(subject, script(1)), SIZE, 1)
    exploration = Exploration(run, reopen_of(subject), 1)
    for state in exploration.states(60):
        exploration.check(state, nested=True)
    found = [finding for finding in exploration.report.findings if IN_RECOVERY in finding.state]
    assert found
    crash = CrashFile(run.log, promise=run.promise)
    for finding in found[:3]:
        ((_, again),) = replay(crash, reopen_of(subject), [finding.state])
        assert finding in again
    ((_, first),) = replay(crash, reopen_of(subject), [found[0].state.partition(IN_RECOVERY)[0]])
    assert not first, "without the crash of the recovery it recovers"


def test_a_state_before_anything_was_promised_is_refused(tmp_path: Path, run: Run) -> None:
    with canaries.superblock_first():
        path = run("crash", "explore", "--states", 400, "--out", tmp_path, "--json").json()["replay"][0]
    late = StateId(10**6, "all", 1, 0)
    assert run("crash", "replay", path, "--state", late).code == 1
    assert load_crash_file(path).promise.first_point > 0
    assert run("crash", "replay", path, "--state", StateId(0, "none", 1, 0)).code in (1, 4)


def test_other_engines_are_explored_through_their_adapter(run: Run, tmp_path: Path) -> None:
    found = run("crash", "explore", "--engine", f"{HERE}:sound", "--states", 400, "--json")
    assert (found.code, found.json()["engine"]) == (0, f"{HERE}:sound")
    broken = run("crash", "explore", "--engine", f"{HERE}:forgetful", "--states", 400, "--out", tmp_path, "--json")
    assert broken.code == 4
    assert broken.json()["lost"] + broken.json()["torn"] + broken.json()["error"] > 0
    assert run("crash", "replay", broken.json()["replay"][0]).code == 4


@pytest.mark.parametrize(
    "arguments",
    [
        ("explore", "--workload", "nosuch"),
        ("explore", "--engine", "no.such:thing"),
        ("explore", "--engine", "json:dumps"),
        ("explore", "--engine", "json"),
        ("kill", "--workload", "takeover"),
        ("kill", "--engine", f"{HERE}:sound"),
        ("replay", "/no/such/file"),
        ("canary", "nosuch"),
        ("faults", "--only", "work:write:17"),
        ("faults", "--only", "work:read:1:ENOSPC"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(run: Run, arguments: tuple[str, ...]) -> None:
    found = run("crash", *arguments)
    assert found.code == 1
    assert found.err.startswith("mdstore: ")
    assert found.err.count("\n") == 1
    assert "unexpected" not in found.err


def test_workloads_are_listed(run: Run) -> None:
    rows = {row["workload"]: row["for"] for row in run("crash", "workloads", "--json").json()}
    assert set(rows) == {*CRASH_WORKLOADS, *KILL_WORKLOADS}
    assert rows["names"] == ["explore", "faults", "kill"]
    assert all(name in run("crash", "workloads").out for name in rows)


# -- canaries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("canary", canaries.CANARIES, ids=lambda canary: canary.name)
def test_every_canary_is_found_within_its_bound(canary: canaries.Canary) -> None:
    sighting = canaries.look_for(canary, seed=1)
    assert sighting.finding is not None
    assert sighting.states <= canary.bound_states


def test_what_is_sound_is_no_canary(run: Run) -> None:
    harmless = replace(canaries.CANARIES[0], workload="pairs", bug=lambda: canaries.patch.dict({}), bound_states=50)
    assert canaries.look_for(harmless, 1) == canaries.Sighting(harmless, 50, None)
    found = run("crash", "canary", "log-unflushed", "payloads-believed")
    assert found.code == 0
    assert found.out.count("found after") == 2


# -- kill --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KILL_WORKLOADS)
def test_killed_processes_lose_nothing_acknowledged(run: Run, tmp_path: Path, name: str) -> None:
    found = run("crash", "kill", "--workload", name, "--rounds", 8, "--dir", tmp_path, "--json")
    assert found.code == 0, found.out
    assert found.json()["killed"] > 0
    assert found.json()["operations_acknowledged"] > 0
    assert not list(tmp_path.iterdir()), "nothing is left where nothing was found"


def test_other_engines_are_killed_through_their_adapter(run: Run, tmp_path: Path) -> None:
    found = run("crash", "kill", "--engine", f"{HERE}:on_file", "--rounds", 3, "--dir", tmp_path)
    assert found.code == 0, found.out
    assert "3 rounds" in found.out


def test_names_go_on_from_what_is_there() -> None:
    first = names_script(4, 60)
    left = first.models()[-1]
    second = names_script(5, 60, left)
    made = {step.number for step in second.operations if step.number and step.verb != "write"}
    assert made.isdisjoint({number for _, number, _ in left.values()})  # type: ignore[attr-defined]
    for step in second.operations:
        left = step_names(left, step)  # type: ignore[arg-type]


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "steps"), [("transactions", 25), ("full", 40), ("pairs", 20), ("takeover", 2), ("names", 25)])
def test_no_fault_makes_wrong_bytes_or_untyped_errors(name: str, steps: int) -> None:
    chosen = crash_workload(name)
    cases = fault_cases(chosen, 1, steps)
    total = FaultReport(1)
    for case in some_cases(cases, 80, 4):
        total.merge(run_case(chosen, 1, steps, case))
    assert not total.findings, total.findings[:5]
    assert total.cases == 80
    assert sum(total.told.values()) > 20
    assert {case.fault.effect for case in cases} == set(Effect) - {Effect.CRASH, Effect.TOLD_ONCE}
    assert {case.phase for case in cases} == {"work", "recovery"}


def test_an_engine_that_believes_flipped_bits_is_found(run: Run) -> None:
    found = run("crash", "faults", "--engine", f"{HERE}:trusting", "--runs", 0, "--steps", 10, "--json")
    assert found.code == 4
    assert any(finding.startswith("torn") for finding in found.json()["findings"])
    name = next(finding for finding in found.json()["findings"] if finding.startswith("torn")).rpartition("[")[2].rstrip("]")
    assert run("crash", "faults", "--engine", f"{HERE}:trusting", "--steps", 10, "--only", name).code == 4


def test_a_process_that_dies_of_a_fault_is_a_finding() -> None:
    chosen = chosen_workload("pairs", f"{HERE}:dying")
    case = Case("work", Fault("write", 4, Effect.EIO))
    (report,) = run_cases(chosen, 1, 5, [case])
    assert "the process died" in str(report.findings[0])


@pytest.mark.parametrize("text", ["work:write:17:EIO", "work:flush:0:EIO:sticky", "recovery:read:3:flip"])
def test_a_case_is_named_by_its_text(text: str) -> None:
    assert str(Case.parse(text)) == text
