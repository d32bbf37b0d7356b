"""Fixtures: the whole-store checker after every test of the store."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sound_images import sound_images


@pytest.fixture(autouse=True)
def images_are_sound(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test of the store the checker looks at every image it left."""
    if not request.node.path.name.startswith("test_store"):
        yield
        return
    with sound_images(request.node):
        yield
