"""Random operations on a mount and on a plain directory side by side, and kill -9 of the server as one of them.

Until then every result, every error and in the end every name and byte must agree. After it, and a mount: all that was fsynced
is there, and of the rest a prefix in order, as the model of the soak has it; fsck finds nothing. Then the plain directory is made
what the mount became, and both go on.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mdstore.tools.reader.check import Options, check_image
from mdstore.tools.reader.problems import Problem
from tests.posix.conftest import Server
from tests.posix.soak_calls import perform
from tests.posix.soak_model import Model, Op, Tree, check, model_of, read_tree
from tests.posix.test_killed_server import make_image

pytestmark = pytest.mark.fuse

PATHS: Final = ["a", "b", "d", "e", "d/a", "d/b", "d/e", "e/a", "e/d", "d/e/a"]
EXAMPLES: Final = 10

path = st.sampled_from(PATHS)
size = st.integers(0, 20_000)
mode = st.sampled_from([0o600, 0o644, 0o700, 0o755])
xattr = st.sampled_from(["user.x", "user.y"])
seed = st.integers(0, 1 << 30)


def op(verb: str, *arguments: st.SearchStrategy[object]) -> st.SearchStrategy[Op]:
    return st.tuples(st.just(verb), *arguments).map(list)


operation: st.SearchStrategy[Op] = st.one_of(
    op("create", path, mode), op("mkdir", path, mode), op("symlink", path, st.just("to/nothing")), op("rename", path, path),
    op("link", path, path), op("unlink", path), op("rmdir", path), op("chmod", path, mode), op("truncate", path, size),
    op("write", path, size, st.integers(1, 9000), seed), op("write", path, st.just(0), st.integers(1, 30_000), seed),
    op("setxattr", path, xattr, st.text("v", max_size=300)), op("removexattr", path, xattr), op("fsync", path),
    op("fsync", st.just("")),
)  # fmt: skip
rounds = st.lists(st.lists(operation, min_size=5, max_size=60), min_size=1, max_size=2)  # the server is killed after each


class Mounted:
    """An image at a mountpoint whose server dies and comes again, and the plain directory next to it. Time passes for every other
    server: the rest loses what was not fsynced, however slow the machine is."""

    def __init__(self, directory: Path) -> None:
        self.image = directory / "image"
        make_image(self.image)
        self._servers = itertools.cycle(Server(f"{kind}:{self.image}", directory / "mount") for kind in ("still", "image"))
        self._server = next(self._servers).__enter__()
        self._plain = directory / "plain"
        self._plain.mkdir()
        self._cases = itertools.count()
        self.kills = self.lost = 0

    def fresh(self) -> tuple[Path, Path]:
        """A new directory on each side; durable on the mount."""
        name = f"case{next(self._cases)}"
        pair = self._server.mountpoint / name, self._plain / name
        for root in pair:
            root.mkdir()
        perform(str(pair[0]), ["fsync", ""])
        return pair

    def kill(self) -> list[Problem]:
        """kill -9, and what fsck, every block looked at, finds wrong."""
        assert self._server.process is not None
        self._server.process.kill()
        self._server.__exit__()
        self.kills += 1
        found: list[Problem] = []
        check_image(str(self.image), Options("deep"), found.append)
        self._server = next(self._servers).__enter__()
        return [problem for problem in found if problem.severity != "note"]

    def end(self) -> None:
        self._server.__exit__()


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    mounted = Mounted(tmp_path_factory.mktemp("differential"))
    try:
        yield mounted
    finally:
        mounted.end()


def outcome(root: Path, one: Op) -> str:
    try:
        perform(str(root), one)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "OK"


def lay_out(model: Model, root: Path) -> None:
    """Make an empty directory hold what the model says."""
    made: dict[int, str] = {}
    for name, node in sorted(model.names.items()):
        if (first := made.setdefault(id(node), name)) != name:
            perform(str(root), ["link", first, name])
        elif node.kind == "l":
            perform(str(root), ["symlink", name, node.target])
        else:
            perform(str(root), ["mkdir" if node.kind == "d" else "create", name, 0o700])
            if node.kind == "f":
                (root / name).write_bytes(node.versions[-1])
            os.chmod(root / name, node.mode)
            for key, value in node.xattrs.items():
                os.setxattr(root / name, key, value.encode())


def seen(root: Path) -> tuple[Tree, dict[str, bytes]]:
    return read_tree(str(root))


def together(ours: Path, theirs: Path, operations: list[Op]) -> list[Op]:
    """Do them on both sides, which must agree at each and at the end; those that did something."""
    done = []
    for number, one in enumerate(operations):
        result = outcome(ours, one)
        assert result == outcome(theirs, one), f"operation {number}: {one}"
        if result == "OK":
            done.append(one)
    assert seen(ours) == seen(theirs)
    return done


# No shrinking: how much a killed server had written is a matter of time, so a smaller example proves nothing.
@settings(
    max_examples=EXAMPLES, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
@given(rounds)
def run(mounted: Mounted, rounds: list[list[Op]]) -> None:
    ours, theirs = mounted.fresh()
    model = Model()
    for operations in rounds:
        done = together(ours, theirs, operations)
        whole = seen(ours)
        assert mounted.kill() == []
        found = seen(ours)
        mounted.lost += found != whole
        assert check(model, done, None, *found) == ""
        model = model_of(*found)
        theirs = theirs.with_name(theirs.name + "x")
        theirs.mkdir()
        lay_out(model, theirs)
        assert seen(theirs) == found


def test_random_operations_and_kills_end_alike_on_both_sides(mounted: Mounted) -> None:
    run(mounted)
    print(f"{mounted.kills} kills, {mounted.lost} of which lost something")
    assert mounted.kills >= EXAMPLES
    assert mounted.lost, "a killed server loses what was not fsynced: has it been killed at all?"
