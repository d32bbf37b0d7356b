"""Real processes under SIGKILL, in a loop: what a crash of the process leaves, threads, descriptors and all.

A kill loses no write that the kernel has taken, so this finds other mistakes than `explore` does (acknowledging before
the system call, a recovery that depends on a clean close, a lock that outlives its holder), and it works for engines
that have no `Device` to put in their way.

Every other round the process kills itself, right behind the operation that the seed names, so that what these rounds find
does not depend on the machine; in the others the kill comes from outside, inside a system call as well as between two.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from random import Random
from typing import Any, Final

from mdstore.device.subject import Script, Session, Subject
from mdstore.device.verdicts import Finding, Problem, judge

BEGUN: Final = b"b"
ACKNOWLEDGED: Final = b"a"
DELAY_MAX_SECONDS: Final = 0.002  # so that kills fall between and inside system calls, not only after an answer
VERIFY_SECONDS: Final = 120.0  # a recovery that takes longer hangs

_processes = multiprocessing.get_context("fork")  # the subject need not be importable or picklable


@dataclass
class KillReport:
    """What a loop of kills did and found."""

    seed: int
    rounds: int = 0
    killed: int = 0  # rounds that the kill ended; in the others the script was over first
    begun: int = 0
    acknowledged: int = 0
    findings: list[Finding] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return not self.findings

    def __str__(self) -> str:
        return (
            f"{self.rounds} rounds, {self.killed} killed, {self.begun} operations begun, {self.acknowledged} acknowledged, "
            f"{len(self.findings)} findings; {self.seconds:.1f} s"
        )

    def as_json(self) -> dict[str, object]:
        return {
            "seed": self.seed,
            "rounds": self.rounds,
            "killed": self.killed,
            "operations_begun": self.begun,
            "operations_acknowledged": self.acknowledged,
            "findings": [str(finding) for finding in self.findings],
            "seconds": round(self.seconds, 3),
        }


def kill_loop(
    subject: Subject[str],
    make_script: Callable[[int, Any], Script],
    path: str,
    *,
    seed: int,
    rounds: int,
    say: Callable[[str], None] = print,
) -> KillReport:
    """Format an engine at `path`; then, `rounds` times, let a process work on it, kill that, and judge what is left.

    `make_script(n, model)` gives the script of round n, which goes on from `model`, what the round before left (None in the
    first round: the script's own `empty`). Ends at the first finding,
    so that the files at `path` are the evidence. The seed decides after which operation the process kills itself (every
    other round, the first one too) or after which acknowledgement the kill comes from outside; there the machine decides where
    exactly. Must be called from a process without other threads (it forks).
    """
    say(f"kill loop: seed {seed}")
    report, random, started = KillReport(seed), Random(seed), time.monotonic()
    model: object = None
    for number in range(rounds):
        script = make_script(number, model)
        model = script.empty if number == 0 else model
        model = _round(subject, script, path, model, number, random, report)
        if report.findings:
            break
    report.seconds = time.monotonic() - started
    for finding in report.findings:
        say(f"  {finding}")
    say(f"kill loop: {report}; seed {seed}")
    return report


def _round(
    subject: Subject[str], script: Script, path: str, model: object, number: int, random: Random, report: KillReport
) -> object:
    """Work, kill, verify; returns the model that was found."""
    kill_after = random.randrange(len(script.operations) + 1)
    delay = random.random() * DELAY_MAX_SECONDS
    from_outside = number % 2 == 1
    begun, acknowledged, was_killed, end = _work_and_kill(
        subject, script, path, number == 0, kill_after, delay if from_outside else None
    )
    report.rounds += 1
    report.killed += was_killed
    report.begun += begun
    report.acknowledged += acknowledged
    where = f"round={number} seed={report.seed} killed after {acknowledged} of {begun}"
    if not was_killed and end != 0:
        report.findings.append(Finding(where, Problem.ERROR, f"the working process ended with status {end}"))
        return model
    found, error = verify_in_process(subject, path)
    if error:
        report.findings.append(Finding(where, Problem.ERROR, error))
        return model
    models = script.models(model)
    report.findings += [
        Finding(where, problem, detail) for problem, detail in judge(found, models, acknowledged, begun)
    ]
    return found


def _work_and_kill(
    subject: Subject[str], script: Script, path: str, fresh: bool, kill_after: int, delay: float | None
) -> tuple[int, int, bool, int | None]:
    """(operations begun, acknowledged, whether a kill ended it, exit status otherwise). No delay: the process kills itself."""
    ours, theirs = _processes.Pipe(duplex=False)
    dies_after = kill_after if delay is None else None
    worker = _processes.Process(target=_work, args=(subject, script, path, fresh, theirs, dies_after), daemon=True)
    worker.start()
    theirs.close()
    counts = {BEGUN: 0, ACKNOWLEDGED: -1}  # a worker that is ready acknowledges 0
    while (message := _receive(ours)) is not None:
        counts[message[:1]] = int(message[1:])
        if delay is not None and counts[ACKNOWLEDGED] >= kill_after:
            _spin(delay)
            worker.kill()
            delay = None
    worker.join()
    ours.close()
    return counts[BEGUN], max(counts[ACKNOWLEDGED], 0), worker.exitcode == -9, worker.exitcode


def _receive(connection: Connection) -> bytes | None:
    """The next message; None when the process is gone and everything it said was read."""
    try:
        return connection.recv_bytes()
    except (EOFError, OSError):  # OSError: the kill came in the middle of a message
        return None


def _spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def _work(
    subject: Subject[str], script: Script, path: str, fresh: bool, pipe: Connection, dies_after: int | None
) -> None:
    """Runs in the process that will be killed; kills itself when it has done `dies_after` operations."""
    session = subject.format(path) if fresh else subject.open(path)
    pipe.send_bytes(ACKNOWLEDGED + b"0")
    if dies_after == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    for number, operation in enumerate(script.operations, 1):
        pipe.send_bytes(BEGUN + b"%d" % number)
        session.apply(operation)
        pipe.send_bytes(ACKNOWLEDGED + b"%d" % session.acknowledged())
        if number == dies_after:
            os.kill(os.getpid(), signal.SIGKILL)
    session.close()


def verify_in_process(subject: Subject[str], path: str) -> tuple[object, str]:
    """(what is there, what went wrong), from a process of its own: a recovery that crashes or hangs is a finding. Must be called
    from a process without other threads (it forks)."""
    ours, theirs = _processes.Pipe(duplex=False)
    verifier = _processes.Process(target=_send_dump, args=(subject, path, theirs), daemon=True)
    verifier.start()
    theirs.close()
    answer: tuple[object, str]
    try:
        hangs = not ours.poll(VERIFY_SECONDS)
        answer = (None, f"recovery takes over {VERIFY_SECONDS:.0f} s") if hangs else ours.recv()
    except EOFError:
        answer = None, "the recovering process died"
    verifier.kill()
    verifier.join()
    ours.close()
    return answer


def _send_dump(subject: Subject[str], path: str, pipe: Connection) -> None:
    faulthandler.disable()  # an engine that dies of what it finds is an answer, told over the pipe
    try:
        session: Session = subject.open(path)
        found = session.dump()
        session.close()
    except Exception as error:  # whatever an engine raises here is the answer that the loop reports
        pipe.send((None, f"{type(error).__name__}: {error}"))
    else:
        pipe.send((found, ""))
