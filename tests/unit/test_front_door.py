"""`import mdstore`: the names to embed it by, loaded when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import mdstore


@pytest.mark.parametrize("name", mdstore.__all__)
def test_every_name_is_there_and_says_what_it_is(name: str) -> None:
    assert getattr(mdstore, name).__doc__
    assert name in dir(mdstore)
    assert name in str(mdstore.__doc__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'mdstore' has no attribute 'Stoer'"):
        mdstore.Stoer  # noqa: B018


def test_importing_it_loads_nothing_else() -> None:
    code = "import sys, mdstore; print([name for name in sys.modules if name.startswith('mdstore.')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_store_by_url_and_name_space() -> None:
    with mdstore.open_store("mem:") as store:
        store.apply(mdstore.Transaction().create_collection("c").write("c", "o", 0, b"bytes"))
        assert store.read("c", "o") == b"bytes"
