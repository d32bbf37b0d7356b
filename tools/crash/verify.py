"""What a workload raises when an engine answers wrongly or does not check: a finding, not an error of the tool."""

from __future__ import annotations

import tempfile

from mdstore.device.explore import Reopen
from mdstore.device.protocol import Device
from mdstore.store.check import check
from mdstore.store.store import Store
from mdstore.tools.reader.check import DEEP, Options, check_image
from mdstore.tools.reader.problems import Problem


class Inconsistent(Exception):
    """An engine broke a rule while it worked, or failed its own checker. The text is the evidence."""


class Unsound(Inconsistent):
    """An engine's own checker, or the second reader, says that something is wrong: it was noticed, no wrong bytes were handed
    out."""


def require(holds: bool, *evidence: str) -> None:
    """Raise `Inconsistent` with the evidence unless it holds."""
    if not holds:
        raise Inconsistent("; ".join(evidence))


def require_sound(store: Store) -> None:
    """`Unsound` with every violated invariant of the store. Runs a checkpoint."""
    problems = check(store, deep=True)
    if problems:
        raise Unsound("; ".join(problems))


def checked_by_fsck(reopen: Reopen) -> Reopen:
    """`reopen`, after the second reader has found no error in the image as the crash left it."""

    def reopen_checked(device: Device) -> object:
        errors: list[Problem] = []
        with tempfile.NamedTemporaryFile(prefix="mdstore-crash-") as file:
            file.write(device.read(0, device.size_bytes))
            file.flush()
            check_image(file.name, Options(DEEP), errors.append)
        wrong = [problem.as_line() for problem in errors if problem.severity == "error"]
        if wrong:
            raise Unsound("; ".join(wrong))
        return reopen(device)

    return reopen_checked
