"""A command of `mdstore` as a process that kills itself, so that no test depends on a kill that comes in time.

    python -m tests.crash.dying LINES CALLS ARGUMENTS...

Once LINES lines went to standard output it dies with SIGKILL right behind the CALLS-th of its next calls that change or flush a
file (0: at once), and at the end of the command if it makes fewer. CALLS `count`: it lives, ends with the command's exit code,
and says how many such calls it made in its last line on standard error.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).parents[2]
CHANGING = ("pwritev", "pwrite", "fsync", "fdatasync", "ftruncate")


def dying(lines: int, calls: int | str, *arguments: str | Path) -> list[str]:
    """The command line of such a process; its directory must be `ROOT`."""
    return [sys.executable, "-m", "tests.crash.dying", str(lines), str(calls), *map(str, arguments)]


class Death:
    """What is still to happen before it."""

    def __init__(self, lines: int, calls: int | None) -> None:
        self.lines = lines
        self.calls = calls
        self.made = 0

    def hear(self, text: str, out: TextIO) -> None:
        self.lines -= text.count("\n")
        if self.lines <= 0 and self.calls == 0:
            out.flush()
            self.come()

    def behind(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            result = call(*arguments)
            if self.lines <= 0:
                self.made += 1
                if self.made == self.calls:
                    self.come()
            return result

        return counted

    def come(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Heard:
    """A text stream whose lines are counted."""

    def __init__(self, out: TextIO, death: Death) -> None:
        self._out = out
        self._death = death

    def write(self, text: str) -> int:
        written = self._out.write(text)
        self._death.hear(text, self._out)
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)


def main(lines: str, calls: str, *arguments: str) -> int:
    death = Death(int(lines), None if calls == "count" else int(calls))
    for name in CHANGING:
        setattr(os, name, death.behind(getattr(os, name)))
    sys.stdout = Heard(sys.stdout, death)
    from mdstore.tools import cli  # now that what it calls is counted

    code = cli.run([*arguments])
    sys.stdout.flush()
    if calls != "count":
        death.come()
    print(death.made, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
