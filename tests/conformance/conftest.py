"""Fixtures: the store under test, once for each engine and disturbance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mdstore.store.transaction import Transaction
from tests.conformance.subjects import KINDS, RIGS, Kind, Rig, Subject
from tests.sound_images import sound_images


@pytest.fixture(autouse=True)
def images_are_sound(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test the checker looks at every image it left."""
    with sound_images(request.node):
        yield


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind.engine}-{kind.disturbance}")
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Subject]:
    """A store with one empty collection `c`, disturbed before each query."""
    kind: Kind = request.param
    subject = Subject(kind.make(tmp_path), kind.disturbance)
    subject.apply(Transaction().create_collection("c"))
    yield subject
    subject.rig.store.close()


@pytest.fixture(params=RIGS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    """An engine to open, kill and reopen by hand, with one empty collection `c`."""
    yield from opened(RIGS[request.param](tmp_path))


def opened(made: Rig) -> Iterator[Rig]:
    """What a fixture of an engine yields: with one empty collection `c`, closed at the end."""
    made.store.apply(Transaction().create_collection("c"))
    yield made
    made.store.close()
