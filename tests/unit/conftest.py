"""Fixtures: the whole-store checker after every test of the store; the command line."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from mdstore.tools import cli
from tests.commandline import Ran, Run
from tests.sound_images import sound_images


@pytest.fixture(autouse=True)
def images_are_sound(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test of the store the checker looks at every image it left."""
    if not request.node.path.name.startswith("test_store"):
        yield
        return
    with sound_images(request.node):
        yield


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs one command line, of anything that has words."""

    def call(*arguments: object) -> Ran:
        code = cli.run([str(argument) for argument in arguments])
        return Ran(code, *capfd.readouterr())

    return call
