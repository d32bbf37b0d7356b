"""Fixtures: a small image for tests of commands; the whole-store checker after every test of the store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commandline import Run
from tests.sound_images import sound_images
from tests.unit.whole_images import CONTENT


@pytest.fixture(autouse=True)
def images_are_sound(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test of the store the checker looks at every image it left."""
    if not request.node.path.name.startswith("test_store"):
        yield
        return
    with sound_images(request.node):
        yield


@pytest.fixture
def image(tmp_path: Path, run: Run) -> Path:
    """A small image with a few files."""
    path, source = tmp_path / "disk.img", tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "hello").write_bytes(b"hello, world\n")
    (source / "sub" / "data").write_bytes(bytes(range(256)) * 100)
    os.symlink("hello", source / "link")
    os.utime(source / "hello", ns=(0, 1_600_000_000_123_456_789))
    assert run("mkfs", path, "--size", "8M").code == 0
    assert run("import", path, source).code == 0
    return path


@pytest.fixture
def files(tmp_path: Path, run: Run) -> Path:
    """A larger image, with a larger file."""
    path, source = tmp_path / "disk.img", tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "hello").write_bytes(b"hello, world\n" * 1000)
    (source / "sub" / "data").write_bytes(CONTENT)
    assert run("mkfs", path, "--size", "16M", "--sparse").code == 0
    assert run("import", path, source).code == 0
    return path
