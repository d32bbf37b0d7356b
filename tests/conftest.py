"""What every test shares: in CI a test of the kernel's FUSE must run; the command line."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from mdstore.device.explore import SUMMARY_PREFIX
from mdstore.tools import cli
from tests.commandline import Ran, Run

# A run that a script starts in the background is born deaf to Ctrl-C, and so would be all it starts; tests interrupt themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# In CI the models try the same examples each time; at home new ones, so that a rare failure is found by a person, once. Nowhere
# does a slow machine make an example fail.
settings.register_profile("home", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("ci", settings.get_profile("home"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "home")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run the tests in the order that the seed makes")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffled where asked for; pytest then puts together again what shares a mount."""
    if (seed := config.getoption("shuffle")) is not None:
        Random(seed).shuffle(items)


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that everybody may enter; those of pytest are private, and $TMPDIR may be."""
    places = [Path(place).resolve() for place in (tempfile.gettempdir(), "/tmp", "/dev/shm")]
    public = [place for place in places if all(above.stat().st_mode & 0o001 for above in (place, *place.parents))]
    with tempfile.TemporaryDirectory(prefix="mdstore-test-", dir=public[0]) as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Where CI=true, skipping a test of the kernel's FUSE is a failure: CI would be green without having looked."""
    report = yield
    if report.skipped and item.get_closest_marker("fuse") and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, which CI does not allow: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many crash states were checked, and from which seeds, also when every test passed."""
    lines = [
        (report.nodeid.split("::")[-1], line.removeprefix(SUMMARY_PREFIX))
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        for line in report.capstdout.splitlines()
        if line.startswith(SUMMARY_PREFIX) and "states tried" in line
    ]
    if lines:
        terminalreporter.section("crash states")
        for name, line in lines:
            terminalreporter.write_line(f"{name}: {line}")
        tried, distinct = (sum(number_before(word, line) for _, line in lines) for word in (" states tried", " distinct"))
        terminalreporter.write_line(f"in all: {tried} crash states tried, {distinct} distinct")


def number_before(word: str, line: str) -> int:
    return int(line.split(word)[0].split()[-1])


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs one command line, of anything that has words."""

    def call(*arguments: object) -> Ran:
        code = cli.run([str(argument) for argument in arguments])
        return Ran(code, *capfd.readouterr())

    return call
