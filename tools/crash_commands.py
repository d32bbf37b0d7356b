"""`mdstore crash`: crash an engine in every way a device allows, and hold what recovers against what was acknowledged."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from mdstore.device.crashfile import load_crash_file
from mdstore.device.explore import Report
from mdstore.device.kill import kill_loop
from mdstore.errors import InvalidRequest
from mdstore.tools.crash.campaign import ROUND_STATES, Campaign, Settings, load_campaign, run_campaign, save_campaign
from mdstore.tools.crash.canaries import CANARIES, Sighting, look_for
from mdstore.tools.crash.faults import Case, FaultReport, fault_cases, run_cases, some_cases
from mdstore.tools.crash.replay import replay
from mdstore.tools.crash.workloads import (
    CRASH_WORKLOADS,
    KILL_WORKLOADS,
    chosen_kill_workload,
    chosen_workload,
)
from mdstore.tools.images import json_option
from mdstore.tools.output import EXIT_INTERRUPTED, CommandFailed, count_text, duration_text, print_json, print_line

EXIT_FOUND: Final = 4
_TOLD_EVERY_S: Final = 10.0
_FAULT_STEPS_SHARE: Final = 3  # a fault run is repeated for every call of the device: a third of the steps will do

_seed = click.option("--seed", type=int, default=1, show_default=True, help="Decides everything that chance decides.")
_steps = click.option("--steps", type=click.IntRange(1), help="Length of the workload [its own].")
_jobs = click.option("--jobs", type=click.IntRange(1, 64), default=1, show_default=True, help="Processes at work.")
_engine = click.option("--engine", default="", metavar="MODULE:FACTORY", help="Somebody else's engine, by its adapter.")
_workload = click.option("--workload", default="", metavar="NAME", help="What is done; `mdstore crash workloads` lists them.")


@click.group("crash")
def crash() -> None:
    """Crash an engine in every way a device allows, and compare what recovers with what it had acknowledged.

    \b
    mdstore crash explore --workload names --seed 7 --states 100000 --jobs 2
    mdstore crash explore --resume night.json --states 1000000
    mdstore crash kill --workload pairs --rounds 200
    mdstore crash faults --workload transactions --runs 2000 --jobs 2
    mdstore crash canary

    Exit codes: 0 nothing wrong, 4 something was found (for `canary`: not found), 1 could not run.
    """


@crash.command("workloads")
@json_option
def workloads_command(as_json: bool) -> None:
    """List the workloads.

    \b
    mdstore crash workloads
    """
    rows = [
        {
            "workload": name,
            "for": [verb for verb, known in _VERBS.items() if name in known],
            "about": (CRASH_WORKLOADS.get(name) or KILL_WORKLOADS[name]).about,
        }
        for name in {**CRASH_WORKLOADS, **KILL_WORKLOADS}
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        print_line(f"{row['workload']:<14} {row['about']} ({', '.join(row['for'])})")


_VERBS: Final[dict[str, dict[str, Any]]] = {
    "explore": CRASH_WORKLOADS, "faults": CRASH_WORKLOADS, "kill": KILL_WORKLOADS,
}  # fmt: skip


# -- explore -----------------------------------------------------------------------------------------------------------


@crash.command("explore")
@_workload
@_engine
@_seed
@_steps
@_jobs
@click.option("--states", type=click.IntRange(1), default=10_000, show_default=True, help="Crash states to try, in all.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="FILE", help="Keep the campaign in FILE, or go on with it.")
@click.option("--round-states", type=click.IntRange(1), default=ROUND_STATES, show_default=True, help="States to a run, a seed.")
@click.option("--no-nested", is_flag=True, help="Do not crash recoveries in their turn.")
@click.option("--whole-sectors", is_flag=True, help="Trust the medium to write a sector whole or not at all.")
@click.option("--fsck", is_flag=True, help="Have the second reader check every state too (slower).")
@click.option("--keep-going", is_flag=True, help="Do not stop at the first round that finds something.")
@click.option("--out", type=click.Path(exists=True, file_okay=False), default=".", help="Where replay files go [here].")
@json_option
def explore_command(
    resume: Path | None, states: int, jobs: int, keep_going: bool, out: str, as_json: bool, **chosen: Any
) -> int:
    """Try crash states of a workload: none, all, every prefix, reordered subsets and torn sectors of what was written between
    flushes; recover each, check it, compare it with what had been acknowledged.

    \b
    mdstore crash explore --workload namespace --states 20000
    mdstore crash explore --resume night.json --states 1000000

    A state that recovers wrongly goes to a replay file. With --resume it runs for as long as wanted: stop it with Ctrl-C, and
    start it again with the same file.
    """
    campaign = _campaign(resume, chosen)
    campaign.settings.chosen()
    say = _silent if as_json else print_line
    say(f"seed {campaign.settings.seed}")
    told = _teller(resume, quiet=as_json)
    interrupted = False
    try:
        run_campaign(campaign, states, jobs=jobs, keep_going=keep_going, directory=out, told=told)
    except KeyboardInterrupt:
        interrupted = True
    _print_campaign(campaign, as_json=as_json)
    if interrupted:
        raise CommandFailed(f"stopped after {campaign.report.tried} states" + _how_to_go_on(resume), EXIT_INTERRUPTED)
    return 0 if campaign.report.clean else EXIT_FOUND


def _campaign(resume: Path | None, chosen: dict[str, Any]) -> Campaign:
    chosen["steps"] = chosen["steps"] or 0
    chosen["nested"] = not chosen.pop("no_nested")
    if resume is None or not resume.exists():
        return Campaign(Settings(**{**chosen, "workload": chosen["workload"] or _default_workload(chosen["engine"])}))
    campaign = load_campaign(resume)
    context = click.get_current_context()
    for name, value in asdict(campaign.settings).items():
        option = _OPTION_OF.get(name, name)
        if context.get_parameter_source(option) is ParameterSource.COMMANDLINE and chosen[name] != value:
            words = option.replace("_", "-")
            raise InvalidRequest(f"{resume} is a campaign with {name.replace('_', ' ')} {value!r}: leave --{words} out")
    return campaign


_OPTION_OF: Final = {"nested": "no_nested"}  # settings that are options under another name


def _default_workload(engine: str) -> str:
    return "pairs" if engine else "transactions"


def _silent(_: str) -> None:
    """Says nothing."""


def _teller(resume: Path | None, *, quiet: bool) -> Callable[[Campaign], None]:
    """After every round: keep the state, and every few seconds say on stderr where things stand."""
    due = time.monotonic() + _TOLD_EVERY_S

    def tell(campaign: Campaign) -> None:
        nonlocal due
        if resume is not None:
            save_campaign(resume, campaign)
        if not quiet and time.monotonic() >= due:
            due = time.monotonic() + _TOLD_EVERY_S
            click.echo(f"{campaign.report.tried:,} states, {_problems(campaign.report)}", err=True)

    return tell


def _how_to_go_on(resume: Path | None) -> str:
    return f"; the same command goes on (--resume {resume})" if resume else "; with --resume FILE it could go on"


def _print_campaign(campaign: Campaign, *, as_json: bool) -> None:
    if as_json:
        print_json(campaign.as_json())
        return
    report = campaign.report
    for finding in report.findings:
        print_line(f"  {finding}")
    for path in campaign.files:
        print_line(f"replay: mdstore crash replay {path}")
    rate = report.tried / campaign.seconds if campaign.seconds else 0.0
    print_line(
        f"{campaign.settings.workload}: {report.tried:,} states tried ({report.nested:,} of them crashes of a recovery), "
        f"{report.distinct:,} distinct, in {campaign.rounds} runs: {_problems(report)}; "
        f"{duration_text(campaign.seconds)}, {rate:.0f} states/s"
    )
    print_line(f"seed {campaign.settings.seed}")


def _problems(report: Report) -> str:
    return ", ".join(f"{count} {problem.value}" for problem, count in report.counts.items())


@crash.command("replay")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--state", "states", multiple=True, metavar="STATE", help="Another state than the file names; may be repeated.")
@json_option
def replay_command(file: Path, states: tuple[str, ...], as_json: bool) -> int:
    """Build the very states of a replay file again, recover them and judge them as then. Exit code 4 while they are wrong.

    \b
    mdstore crash replay crash-transactions-7.crashlog
    """
    kept = load_crash_file(file)
    chosen = chosen_workload(
        str(kept.origin.get("workload", "")), str(kept.origin.get("engine", "")), fsck=bool(kept.origin.get("fsck"))
    )
    rows = [
        {"state": name, "findings": [str(finding) for finding in findings]}
        for name, findings in replay(kept, chosen.reopen, list(states) or kept.states)
    ]
    wrong = sum(bool(row["findings"]) for row in rows)
    if as_json:
        print_json({"file": str(file), **kept.origin, "wrong": wrong, "states": rows})
        return EXIT_FOUND if wrong else 0
    for row in rows:
        for line in row["findings"] or [f"right: {row['state']}"]:
            print_line(line)
    print_line(f"{file}: {wrong} of {len(rows)} states are wrong; seed {kept.origin.get('seed')}")
    return EXIT_FOUND if wrong else 0


# -- kill and faults ---------------------------------------------------------------------------------------------------


@crash.command("kill")
@_workload
@_engine
@_seed
@_steps
@click.option("--rounds", type=click.IntRange(1), default=50, show_default=True, help="How often the process is killed.")
@click.option("--dir", "directory", type=click.Path(exists=True, file_okay=False), help="Where the files go [TMPDIR].")
@json_option
def kill_command(
    workload: str, engine: str, seed: int, steps: int | None, rounds: int, directory: str | None, as_json: bool
) -> int:
    """Let a real process work on real files, kill it with SIGKILL at a random moment, look at what is left; again and again.

    \b
    mdstore crash kill --rounds 100 --seed 7

    Ends at the first finding, with the files left as they are.
    """
    chosen = chosen_kill_workload(workload or "pairs", engine)
    steps = steps or chosen.steps
    place = tempfile.mkdtemp(prefix="mdstore-crash-", dir=directory)
    report = kill_loop(
        chosen.subject, lambda number, left: chosen.script(seed + number, steps, left), f"{place}/{chosen.name}",
        seed=seed, rounds=rounds, say=_silent if as_json else print_line,
    )  # fmt: skip
    if report.clean:
        _remove(Path(place))
    if as_json:
        print_json({"workload": chosen.name, **report.as_json(), "files": "" if report.clean else place})
    elif not report.clean:
        print_line(f"the files are in {place}")
    return 0 if report.clean else EXIT_FOUND


def _remove(place: Path) -> None:
    for path in sorted(place.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    place.rmdir()


@crash.command("faults")
@_workload
@_engine
@_seed
@_steps
@_jobs
@click.option("--runs", type=click.IntRange(0), default=500, show_default=True, help="Cases to try, a sample of all; 0: all.")
@click.option("--only", metavar="CASE", help="One case, as a finding names it: work:write:17:EIO.")
@json_option
def faults_command(
    workload: str, engine: str, seed: int, steps: int | None, jobs: int, runs: int, only: str | None, as_json: bool
) -> int:
    """Let the device fail at every call, one at a time: EIO, ENOSPC, short writes, writes and flushes that are lost, bits that
    flip; while the workload runs, and while a crashed image is recovered.

    \b
    mdstore crash faults --workload transactions --runs 200

    Nothing but typed errors may come out, and no wrong bytes; after a fault that the device admitted, what was acknowledged is
    there when the image is opened again.
    """
    chosen = chosen_workload(workload or _default_workload(engine), engine)
    steps = steps or max(2, chosen.steps // _FAULT_STEPS_SHARE)
    total, started = FaultReport(seed), time.monotonic()
    if not as_json:
        print_line(f"seed {seed}")
    cases = [Case.parse(only)] if only else fault_cases(chosen, seed, steps)
    for report in run_cases(chosen, seed, steps, some_cases(cases, runs, seed), jobs):
        total.merge(report)
    seconds = time.monotonic() - started
    if as_json:
        print_json({"workload": chosen.name, "cases_in_all": len(cases), **total.as_json(), "seconds": round(seconds, 3)})
        return EXIT_FOUND if total.findings else 0
    for finding in total.findings:
        print_line(f"  {finding}")
    for word, counted in (("told the caller", total.told), ("noticed nothing", total.unnoticed)):
        print_line(f"{word}: " + (", ".join(f"{count} {effect}" for effect, count in sorted(counted.items())) or "never"))
    print_line(
        f"{chosen.name}: {total.cases:,} of {len(cases):,} cases, {total.states:,} states reopened, {total.refused:,} of them "
        f"refused after a lie, {count_text(len(total.findings), 'finding')}; {duration_text(seconds)}"
    )
    print_line(f"seed {seed}")
    return EXIT_FOUND if total.findings else 0


# -- canaries ----------------------------------------------------------------------------------------------------------


@crash.command("canary")
@click.argument("names", nargs=-1)
@_seed
@json_option
def canary_command(names: tuple[str, ...], seed: int, as_json: bool) -> int:
    """Put a bug in, and see that it is found: each within its bound of states. All of them, or those NAMED.

    \b
    mdstore crash canary

    A flush skipped, a superblock written too early, a log's end not cleaned, a checksum ignored: an exploration that finds
    nothing says something only as long as these are found.
    """
    known = {canary.name: canary for canary in CANARIES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidRequest(f"no canary {unknown[0]}; there are {', '.join(known)}")
    if not as_json:
        print_line(f"seed {seed}")
    sightings = []
    for canary in (known[name] for name in names) if names else CANARIES:
        sightings.append(look_for(canary, seed))
        if not as_json:
            print_line(_sighting_line(sightings[-1]))
    if as_json:
        print_json([_sighting_json(sighting) for sighting in sightings])
    else:
        print_line(f"seed {seed}")
    return 0 if all(sighting.finding for sighting in sightings) else EXIT_FOUND


def _sighting_line(sighting: Sighting) -> str:
    canary = sighting.canary
    found = f"found after {sighting.states} of {canary.bound_states} states" if sighting.finding else "NOT FOUND"
    return f"{canary.name:<22} {found}; {canary.about} ({canary.workload})"


def _sighting_json(sighting: Sighting) -> dict[str, object]:
    canary = sighting.canary
    return {
        "canary": canary.name, "about": canary.about, "workload": canary.workload, "bound_states": canary.bound_states,
        "states": sighting.states, "found": str(sighting.finding) if sighting.finding else None,
    }  # fmt: skip
