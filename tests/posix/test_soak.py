"""The soak for a short while, and that what it looks for would be found."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from tests.posix.conftest import need_fuse
from tests.posix.soak import OPERATIONS, Soak
from tests.posix.soak_model import Look, Model, Op, Tree, check, content_of, is_possible

pytestmark = pytest.mark.fuse

BEFORE: list[Op] = [["mkdir", "d", 0o755], ["create", "d/f", 0o644], ["write", "d/f", 0, 10, 1], ["fsync", "d/f"]]
AFTER: list[Op] = [["link", "d/f", "g"], ["write", "g", 2, 3, 2], ["chmod", "g", 0o600], ["rename", "d", "e"]]


@pytest.mark.slow
def test_a_mount_survives_kills_for_a_short_while(tmp_path: Path) -> None:
    need_fuse()
    seed = int(os.environ.get("MDSTORE_SEED", "5"))
    print("seed", seed)
    tally = Soak(tmp_path, seed).run(rounds=10)
    print(tally)
    assert tally.rounds == 10
    assert tally.kills >= 2
    assert tally.operations >= 10 * OPERATIONS[0]


def seen_after(operations: list[Op]) -> tuple[Tree, dict[str, bytes]]:
    """What there is when all of them survived."""
    model = Model()
    for op in operations:
        model.apply(op)
    return model.tree(), {path: node.versions[-1] for path, node in model.names.items() if node.kind == "f"}


def judged(tree: Tree, contents: dict[str, bytes], begun: Op | None = None) -> str:
    return check(Model(), BEFORE + AFTER, begun, tree, contents)


@pytest.mark.parametrize("survived", range(len(AFTER) + 1))
def test_every_moment_since_the_last_fsync_is_allowed(survived: int) -> None:
    assert judged(*seen_after(BEFORE + AFTER[:survived])) == ""


def test_an_operation_that_was_not_answered_may_have_happened() -> None:
    begun: Op = ["unlink", "g"]
    assert judged(*seen_after(BEFORE + AFTER + [begun]), begun) == ""
    assert "no moment" in judged(*seen_after(BEFORE + AFTER + [begun]))


def test_a_moment_before_the_last_fsync_is_not_allowed() -> None:
    assert "no moment" in judged(*seen_after(BEFORE[:1]))


def test_one_change_without_those_before_it_is_not_allowed() -> None:
    assert "no moment" in judged(*seen_after([*BEFORE, AFTER[3]]))


@pytest.mark.parametrize("wrong", [{"mode": 0o777}, {"links": 1}, {"xattrs": (("user.a", "b"),)}, {"same": "g"}])
def test_a_wrong_attribute_is_found(wrong: dict[str, object]) -> None:
    tree, contents = seen_after(BEFORE + AFTER)
    look: Look = tree["e/f"]
    assert "no moment" in judged({**tree, "e/f": look._replace(**wrong)}, contents)  # type: ignore[arg-type]


def test_bytes_that_were_never_there_are_found() -> None:
    tree, contents = seen_after(BEFORE + AFTER)
    for content in (bytes(10), contents["g"][:9], contents["g"] + b"x"):
        assert "bytes of" in judged(tree, {"e/f": content, "g": content})


def test_overwritten_bytes_may_be_old_or_new_each() -> None:
    old, new = content_of(1, 10), content_of(2, 10)
    assert is_possible([old, new], old[:5] + new[5:])
    assert not is_possible([old, new], old[:5] + bytes([old[5] ^ new[5] ^ 0xFF]) + new[6:])
    assert not is_possible([old, new], old[:9])


def test_a_write_may_be_cut_where_its_first_page_ends() -> None:
    """The kernel sends what it can of a write to a page it has not cached, and the rest after it: a crash may come in between."""
    ops: list[Op] = [["create", "f", 0o644], ["write", "f", 5000, 20_000, 1]]
    tree, contents = seen_after(ops)
    cut = contents["f"][: 5000 - 5000 % mmap.PAGESIZE + mmap.PAGESIZE]
    assert check(Model(), ops, None, tree, {"f": cut}) == ""
    for wrong in (cut[:-1], cut + contents["f"][len(cut) : len(cut) + 1], bytes([cut[0] ^ 1]) + cut[1:]):
        assert "bytes of" in check(Model(), ops, None, tree, {"f": wrong})
    assert "bytes of" in check(Model(), [*ops, ["fsync", "f"]], None, tree, {"f": cut})
