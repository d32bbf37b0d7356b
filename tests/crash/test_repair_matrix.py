"""The damage matrix, continued: each structure damaged, then repaired. The image opens, both checkers are clean, what is lost was
named in the plan, everything else is as before, a second run finds nothing to do. The table in docs/damage.md is the expectation.

One seed drives the junk and the bits: DAMAGE_SEED=n replays it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from mdstore.device.memory import MemoryDevice
from mdstore.tools.reader.check import DEEP
from mdstore.tools.reader.problems import Damage
from mdstore.tools.reader.ring import Ring
from mdstore.tools.reader.scan import Scan
from mdstore.tools.reader.storelog import decode_transaction
from mdstore.tools.repair.bench import RepairOptions
from mdstore.tools.repair.planning import Plan, plan
from tests.crash.test_damage_matrix import DAMAGES, SEED, Subject, codes_in, content_of, outcome, table
from tests.unit.reader_images import check

AFTER = {row[0]: codes_in(row[4]) for row in table("Matrix")}
OPTIONS = RepairOptions(is_deep=True, drops_damaged=True)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    print(f"DAMAGE_SEED={SEED}")
    return Subject(tmp_path_factory.mktemp("repair"))


def repaired(image: bytes) -> tuple[Plan, bytes]:
    """The plan for an image, which is left as it is, and what the plan makes of it."""
    device = MemoryDevice.from_bytes(image)
    made = plan(device, OPTIONS)
    assert device.image() == image
    return made, made.bench.shadow.read(0, len(image))


@pytest.mark.parametrize("structure", AFTER)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_structure_is_repaired_and_what_is_lost_is_named(
    structure: str, damage: Callable[[Subject, bytes, int, Random], bytes], subject: Subject, tmp_path: Path
) -> None:
    image = subject.damaged(structure, damage)
    if image == subject.image:
        return  # it is the same in the older version
    made, after = repaired(image)
    got = outcome_after(made, after, image, structure, subject)
    assert got in AFTER[structure], got
    if got != "none":
        assert not [problem for problem in check(after, tmp_path, DEEP) if problem.severity != "note"]
        again, still = repaired(after)
        assert again.steps == []
        assert again.left == 0
        assert still == after


def outcome_after(made: Plan, after: bytes, damaged: bytes, structure: str, subject: Subject) -> str:
    """A word of the table, or what was wrong."""
    if made.left:
        assert after == damaged, "what cannot be repaired is left alone"
        assert made.failed or made.after.failure
        return "none"
    found = outcome(after, subject.content)
    if not found.startswith("wrong data"):
        return found
    content = content_of(after, list(subject.content))
    wrong = {key for key in content if content[key] != subject.content[key]}
    named = set(named_as_lost(made, structure, subject))
    return "loses" if wrong <= named and not any(is_error(content[key]) for key in wrong) else f"not named: {wrong - named}"


def is_error(answers: tuple[object, ...]) -> bool:
    return any(isinstance(answer, type) for answer in answers)


def named_as_lost(made: Plan, structure: str, subject: Subject) -> Iterator[tuple[bytes, bytes]]:
    """(collection, object) of everything the plan says is lost. A damaged log entry is known by its sequence alone: what it said
    is looked up in the image before the damage."""
    for line in (line for step in made.steps for line in step.lost):
        for collection, name in subject.content:
            if f"{collection.decode()}/{name.decode()}" in line and name:
                yield collection, name
        if "sequence" in line:
            yield from touched_by_entries(subject, int(line.split("sequence ")[1].split(" ")[0]))


def touched_by_entries(subject: Subject, sequence: int) -> Iterator[tuple[bytes, bytes]]:
    ring = Ring(subject.reader.image, subject.block)
    for entry in Scan(ring, ring.read_head(_fail), subject.block.log_position).entries():
        if entry.header.sequence == sequence:
            for operation in decode_transaction(entry.payload).operations:
                collection, name = operation.operands[:2]
                assert isinstance(collection, bytes)
                assert isinstance(name, bytes)
                yield collection, name
                yield collection, b""


def _fail(damage: Damage) -> None:
    pytest.fail(str(damage))


def test_a_sound_image_needs_no_repair(subject: Subject) -> None:
    made, after = repaired(subject.image)
    assert made.steps == []
    assert made.left == 0
    assert after == subject.image
