"""A campaign: rounds of exploration, each a run of the workload under a seed of its own, for as long as wanted.

Round n records the workload under seed + n and tries its states; rounds know nothing of each other, so they may run in several
processes, and a campaign goes on where its state file says it stopped. Images of different rounds never are the same (each
recording makes an image with an identity of its own), so the distinct states of the rounds add up.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any, Final

from journal import JournalError
from mdstore.client.mount_syscalls import FuseUnavailable
from mdstore.device.crashfile import CrashFile, save_crash_file
from mdstore.device.crashstates import Plan
from mdstore.device.explore import FINDINGS_KEPT, Exploration, Recording, Report
from mdstore.device.verdicts import Finding, Problem
from mdstore.errors import DamagedFile, InvalidRequest, MdstoreError
from mdstore.tools.crash.verify import Inconsistent
from mdstore.tools.crash.workloads import CrashWorkload, chosen_workload

FORMAT: Final = "mdstore crash campaign"
VERSION: Final = 1
STATE_MAX: Final = 64 << 20  # bytes of a campaign's state: its findings are counted, and few are kept
ROUND_STATES: Final = 4000
NESTED_SHARE: Final = 400  # one state in so many has its recovery crashed as well


@dataclass(frozen=True)
class Settings:
    """What is explored. `steps` 0: as many as the workload takes by itself."""

    workload: str = "transactions"
    engine: str = ""  # MODULE:FACTORY of an adapter; empty: the workload's own
    seed: int = 1
    steps: int = 0
    round_states: int = ROUND_STATES
    nested: bool = True  # crash recoveries too
    whole_sectors: bool = False  # the medium is trusted to write a sector whole or not at all
    fsck: bool = False  # have the second reader check every state as well

    def chosen(self) -> CrashWorkload:
        """The workload. NotFound, InvalidRequest for names that lead nowhere."""
        return chosen_workload(self.workload, self.engine, fsck=self.fsck)

    def seed_of(self, number: int) -> int:
        """The seed of a round."""
        return self.seed + number


@dataclass
class Campaign:
    """What was done so far; `planned` counts the states that were asked for, crashes of recoveries not among them."""

    settings: Settings
    rounds: int = 0
    planned: int = 0
    report: Report = field(default_factory=lambda: Report(0))
    files: list[str] = field(default_factory=list)  # for `mdstore crash replay`
    seconds: float = 0.0  # on the clock; `report.seconds` is the sum over processes

    def as_json(self) -> dict[str, Any]:
        """Everything, keys stable."""
        return {
            **asdict(self.settings),
            "rounds": self.rounds,
            **self.report.as_json(),
            "seed": self.settings.seed,
            "seconds": round(self.seconds, 3),
            "states_per_second": round(self.report.tried / self.seconds, 1) if self.seconds else 0.0,
            "replay": self.files,
        }


# -- running -----------------------------------------------------------------------------------------------------------


def run_campaign(
    campaign: Campaign, states: int, *, jobs: int = 1, keep_going: bool = False, directory: str = ".",
    told: Callable[[Campaign], None] = lambda _: None,
) -> None:  # fmt: skip
    """Go on until `states` states were tried in all, or until a round finds something (unless `keep_going`).

    `told` is called after every round, with the campaign up to date; KeyboardInterrupt comes through and leaves it so.
    """
    before, started = campaign.seconds, monotonic()
    for report, path, budget in _rounds(campaign, states, jobs, directory):
        campaign.rounds += 1
        campaign.planned += budget
        campaign.report.merge(report)
        campaign.files += [path] if path else []
        campaign.seconds = before + monotonic() - started
        told(campaign)
        if not report.clean and not keep_going:
            return


_Result = tuple[Report, str]


def _rounds(campaign: Campaign, states: int, jobs: int, directory: str) -> Iterator[tuple[Report, str, int]]:
    """(report, replay file, budget) of each further round, in order."""
    numbers = _budgets(campaign, states)
    if jobs == 1:
        for number, budget in numbers:
            yield *run_round(campaign.settings, number, budget, directory), budget
        return
    fork = multiprocessing.get_context("fork")  # an engine of somebody else's need not be picklable
    with ProcessPoolExecutor(jobs, mp_context=fork, initializer=_ignore_interrupts) as pool:
        waiting: deque[tuple[Future[_Result], int]] = deque()
        try:
            for number, budget in numbers:
                waiting.append((pool.submit(run_round, campaign.settings, number, budget, directory), budget))
                if len(waiting) > jobs:
                    future, spent = waiting.popleft()
                    yield *future.result(), spent
            for future, spent in waiting:
                yield *future.result(), spent
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupts() -> None:
    """An interrupt goes to the whole group of processes; the first of them decides."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _budgets(campaign: Campaign, states: int) -> Iterator[tuple[int, int]]:
    number, planned = campaign.rounds, campaign.planned
    while planned < states:
        budget = min(campaign.settings.round_states, states - planned)
        yield number, budget
        number, planned = number + 1, planned + budget


def run_round(settings: Settings, number: int, budget: int, directory: str) -> _Result:
    """Record the workload, try `budget` of its states; the report, and the path of a replay file where something was wrong."""
    chosen, seed = settings.chosen(), settings.seed_of(number)
    steps = settings.steps or chosen.steps
    try:
        run = chosen.record(seed, steps)
    except (InvalidRequest, FuseUnavailable):  # it cannot be tried here: no finding
        raise
    except (Inconsistent, MdstoreError, JournalError) as error:
        report = Report(seed)
        report.add(Finding(f"seed={seed}, no crash yet", Problem.ERROR, f"{type(error).__name__}: {error}"))
        return report, ""
    report = explore_recording(run, settings, seed, budget)
    if report.clean:
        return report, ""
    origin = {**asdict(settings), "seed": seed, "steps": steps}
    return report, save_evidence(directory, f"{settings.workload}-{seed}", run, report, origin)


def explore_recording(run: Recording, settings: Settings, seed: int, budget: int) -> Report:
    """Try `budget` states of a recording; recoveries of some of them are crashed in their turn."""
    plan = Plan(inside_sectors=not settings.whole_sectors)
    exploration = Exploration(run, settings.chosen().reopen, seed, plan)
    started = monotonic()
    for count, state in enumerate(exploration.states(budget), 1):
        exploration.check(state, nested=settings.nested and count % NESTED_SHARE == 0)
    exploration.report.seconds = monotonic() - started
    return exploration.report


def save_evidence(directory: str, name: str, run: Recording, report: Report, origin: dict[str, Any]) -> str:
    """Write a replay file; returns its path."""
    path = os.path.join(directory, f"crash-{name}.crashlog")
    states = [finding.state for finding in report.findings[:FINDINGS_KEPT]]
    save_crash_file(path, CrashFile(run.log, origin, states, run.promise))
    return path


# -- the state file ----------------------------------------------------------------------------------------------------


def save_campaign(path: Path, campaign: Campaign) -> None:
    """Replace the state file, in one step. Raises OSError."""
    report = {**asdict(campaign.report), "counts": {problem.value: n for problem, n in campaign.report.counts.items()}}
    report["findings"] = [
        {"state": found.state, "problem": found.problem.value, "detail": found.detail} for found in campaign.report.findings
    ]
    document = {
        "format": FORMAT, "version": VERSION, "settings": asdict(campaign.settings), "rounds": campaign.rounds,
        "planned": campaign.planned, "report": report, "files": campaign.files, "seconds": campaign.seconds,
    }  # fmt: skip
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(document, indent=1) + "\n")
    fresh.replace(path)


def load_campaign(path: Path) -> Campaign:
    """What `save_campaign` wrote. DamagedFile for anything else, OSError."""
    with path.open("rb") as stream:
        content = stream.read(STATE_MAX + 1)
    if len(content) > STATE_MAX:
        raise DamagedFile("crash campaign", str(path), f"at most {STATE_MAX} bytes", "more")
    try:
        document = json.loads(content)
        if (document["format"], document["version"]) != (FORMAT, VERSION):
            raise InvalidRequest(f"{path} is not the state of a crash campaign of version {VERSION}")
        report = dict(document["report"])
        report["counts"] = {problem: int(report["counts"][problem.value]) for problem in Problem}
        report["findings"] = [
            Finding(found["state"], Problem(found["problem"]), found["detail"]) for found in report["findings"]
        ]
        return Campaign(
            Settings(**document["settings"]), int(document["rounds"]), int(document["planned"]), Report(**report),
            list(map(str, document["files"])), float(document["seconds"]),
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFile("crash campaign", str(path), "the state of a campaign", type(error).__name__) from None
