"""The README keeps its word: what it names exists, and its examples run."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
ROUTE = re.findall(r"^\| `([\w.]+)` \| ([\w/]+)\.py \|", README, re.M)


def test_the_route_through_the_source_is_short() -> None:
    assert 5 <= len(ROUTE) <= 8


@pytest.mark.parametrize(("name", "path"), ROUTE)
def test_every_function_of_the_route_exists(name: str, path: str) -> None:
    found: object = importlib.import_module(path.replace("/", "."))
    for part in name.split("."):
        found = getattr(found, part)
    assert callable(found)
    assert found.__doc__, f"{name} says what it does"


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.S))
def test_the_examples_run(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("document", ["README.md", "docs/ARCHITECTURE.md"])
def test_links_and_paths_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    named = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    named += re.findall(r"`((?:docs|tests|mdstore|journal)/[\w/.-]+\.(?:py|md))`", text)
    for path in named:
        assert (ROOT / path).exists(), f"{document} names {path}"


def test_the_map_names_nothing_that_is_not_there() -> None:
    """Functions it spoke of had moved to another class, under another name."""
    rooms = [ROOT / name for name in ("journal", "mdstore", "tools", "tests")]
    sources = [path for room in rooms for path in room.rglob("*.p*") if path.is_file()]
    modules = {path.name for path in sources} | {path.name for path in (ROOT / "docs").rglob("*.md")}
    modules |= {path.name for path in (ROOT / "mdstore/btree").glob("*.h")}
    text = "\n".join(path.read_text() for path in sources if path.suffix in {".py", ".pxi", ".pyx"})
    defined = set(re.findall(r"\b(?:def|class)\s+(\w+)", text)) | {"mds", "tools", "journal", "mdstore"}
    named = re.findall(r"`([A-Za-z_][\w.]*)(?:\([^`]*\))?`", (ROOT / "docs/ARCHITECTURE.md").read_text())
    assert [name for name in named if name not in modules and name.split(".")[-1] not in defined] == []


@pytest.mark.parametrize("room", ["journal", *(f"mdstore/{room}" for room in ("device", "store", "engines", "mds", "client"))])
def test_the_map_names_every_module(room: str) -> None:
    text = (ROOT / "docs/ARCHITECTURE.md").read_text()
    missing = [path.name for path in (ROOT / room).glob("*.py") if path.name != "__init__.py" and f"`{path.name}`" not in text]
    assert not missing, f"docs/ARCHITECTURE.md does not name these of {room}: {missing}"


def test_the_map_names_every_file_of_the_kernel() -> None:
    text = (ROOT / "docs/ARCHITECTURE.md").read_text()
    files = {path.name for kind in ("*.pxi", "*.h") for path in (ROOT / "mdstore/btree").glob(kind)}
    assert {name for name in files if f"`{name}`" not in text} == set()
