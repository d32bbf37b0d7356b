"""The house keeps its shape: imports go one way, there are no cycles, and none hides inside a function."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ORDER = ["errors", "limits", "device", "btree", "store", "engines", "mds", "client", "tools"]
OVER_A_LOG = {"store", "mds", "tools"}  # rooms that may import the journal
LAZY = {"lmdb", "rich", "plyvel", "rocksdict"}  # imported where they are used


def modules() -> list[Path]:
    found = [path for package in ("journal", "mdstore") for path in (ROOT / package).rglob("*.py")]
    return sorted(path for path in found if "tools" not in path.relative_to(ROOT).parts) + sorted((ROOT / "tools").rglob("*.py"))


def room_of(dotted: str) -> str | None:
    parts = dotted.split(".")
    return parts[1] if parts[0] == "mdstore" and len(parts) > 1 else None


def dotted_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("mdstore", *parts) if parts[0] == "tools" else parts).removesuffix(".__init__")


def imports_of(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert not node.level, "modules are imported by their whole names"
    if isinstance(node, ast.ImportFrom) and node.module:
        if node.module == "mdstore":
            return [f"mdstore.{alias.name}" for alias in node.names]
        return [node.module]
    return []


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_direction(path: Path) -> None:
    parts = path.relative_to(ROOT).parts
    room = "tools" if parts[0] == "tools" else parts[1].removesuffix(".py") if parts[0] == "mdstore" and len(parts) > 1 else None
    for node in ast.walk(ast.parse(path.read_text())):
        for name in imports_of(node):
            if parts[0] == "journal":
                assert not name.startswith("mdstore"), f"{path}: the journal knows nothing of mdstore ({name})"
            other = room_of(name)
            if name.split(".")[0] == "journal" and parts[0] != "journal":
                assert room in OVER_A_LOG, f"{path}: {room} must not import the journal"
            if other in ORDER and room in ORDER and other != room:
                assert ORDER.index(other) < ORDER.index(room), f"{path}: {room} must not import {other}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_import_hides_in_a_function(path: Path) -> None:
    if path.is_relative_to(ROOT / "tools"):
        return  # commands are loaded when they are run, so that `mdstore --help` is quick
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(function):
                hidden = [name for name in imports_of(node) if name.split(".")[0] not in LAZY]
                assert not hidden, f"{path}, {function.name}: {hidden} belong at the head of the module"


def test_modules_do_not_import_each_other_in_circles() -> None:
    graph: dict[str, set[str]] = {}
    known = {dotted_name(path) for path in modules()}
    for path in modules():
        name = dotted_name(path)
        graph[name] = set()
        for node in ast.parse(path.read_text()).body:  # type-checking blocks are not imports
            graph[name].update(imports_of(node))
            if isinstance(node, ast.ImportFrom) and node.module:
                members = {f"{node.module}.{alias.name}" for alias in node.names}
                graph[name].update(members)
                if members <= known:  # modules of a package, not what its head re-exports
                    graph[name].discard(node.module)
    graph = {name: {other for other in others if other in graph and other != name} for name, others in graph.items()}
    visiting: list[str] = []
    done: set[str] = set()

    def visit(name: str) -> None:
        assert name not in visiting, f"import cycle: {' -> '.join([*visiting, name])}"
        if name in done:
            return
        visiting.append(name)
        for other in graph[name]:
            visit(other)
        visiting.pop()
        done.add(name)

    for name in graph:
        visit(name)
