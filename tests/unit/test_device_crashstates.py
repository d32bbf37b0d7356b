"""Crash states: they cover what they claim, and a name gives the same image again."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdstore.device.crashlog import CrashLog, Flush, Operation, Resize, Rot, Write
from mdstore.device.crashstates import CrashState, Plan, StateId, crash_states, rebuild_state
from mdstore.device.images import IMAGE_PAGE, PagedImage
from mdstore.errors import InvalidRequest

SIZE = IMAGE_PAGE + 300
SECTOR = 64


def log_of(*operations: Operation, size: int = SIZE, sector_size: int = SECTOR) -> CrashLog:
    return CrashLog(PagedImage(size), sector_size, list(operations))


def images(states: list[CrashState], kind: str | None = None) -> set[bytes]:
    return {state.image.to_bytes() for state in states if kind is None or state.state_id.kind == kind}


def image_with(*writes: Write, size: int = SIZE) -> bytes:
    content = bytearray(size)
    for write in writes:
        content[write.offset : write.offset + len(write.data)] = write.data
    return bytes(content)


@st.composite
def write_runs(draw: st.DrawFn) -> list[Write]:
    """A few writes, overlapping or not, aligned or not, none empty."""
    count = draw(st.integers(1, 5))
    made = []
    for number in range(1, count + 1):
        offset = draw(st.integers(0, SIZE - 1))
        length = draw(st.integers(1, min(SIZE - offset, 5 * SECTOR)))
        made.append(Write(offset, bytes([number]) * length))
    return made


@st.composite
def logs(draw: st.DrawFn) -> CrashLog:
    operations: list[Operation] = []
    for write in draw(write_runs()):
        operations.append(write)
        if draw(st.booleans()):
            between: list[Operation] = [Flush(), Flush(), Rot(5, b"r"), Resize(SIZE)]
            operations.append(draw(st.sampled_from(between)))
    return log_of(*operations)


# -- coverage ----------------------------------------------------------------------------------------------------------


@given(write_runs(), st.integers(0, 2**32))
def test_every_subset_of_unflushed_writes_appears_when_asked_for(writes: list[Write], seed: int) -> None:
    log = log_of(*writes)
    states = [s for s in crash_states(log, seed, plan=Plan(exhaustive_writes=5)) if s.state_id.op == len(writes)]
    subsets = chain.from_iterable(combinations(writes, n) for n in range(len(writes) + 1))
    assert images(states, "mask") == {image_with(*subset) for subset in subsets}


@given(write_runs(), st.integers(0, 2**32))
def test_without_asking_every_prefix_appears_over_the_points(writes: list[Write], seed: int) -> None:
    found = images(list(crash_states(log_of(*writes, Flush()), seed)))
    for count in range(len(writes) + 1):
        assert image_with(*writes[:count]) in found


@given(write_runs())
def test_a_point_in_full_has_nothing_everything_and_every_prefix(writes: list[Write]) -> None:
    point = len(writes)
    states = list(crash_states(log_of(*writes), 1, points={point}, in_full={point}))
    assert {state.state_id.op for state in states} == {point}
    for count in range(point + 1):
        assert image_with(*writes[:count]) in images(states)


@settings(max_examples=40)
@given(logs(), st.integers(0, 2**32), st.integers(0, 3))
def test_no_state_holds_what_no_crash_could_leave(log: CrashLog, seed: int, pass_number: int) -> None:
    """Each byte of a state is the durable one, or one that a pending write put there."""
    durable, choices = dict[int, bytes](), dict[int, dict[int, set[int]]]()
    for moment in log.moments():
        durable[moment.point] = moment.durable.to_bytes()
        allowed = choices[moment.point] = {}
        for write in moment.pending:
            for at, byte in enumerate(write.data, write.offset):
                allowed.setdefault(at, {durable[moment.point][at]}).add(byte)
    for state in crash_states(log, seed, pass_number=pass_number):
        content, point = bytearray(state.image.to_bytes()), state.state_id.op
        for at, allowed_bytes in choices[point].items():
            assert content[at] in allowed_bytes
            content[at] = durable[point][at]
        assert content == durable[point]


@given(logs(), st.integers(0, 2**32))
def test_after_a_flush_only_one_image_is_possible(log: CrashLog, seed: int) -> None:
    log.operations.append(Flush())
    states = [s for s in crash_states(log, seed) if s.state_id.op == len(log.operations)]
    (state,) = states
    *_, last = log.moments()
    assert state.image.to_bytes() == last.durable.to_bytes()


def test_writes_are_torn_at_sectors_of_the_device() -> None:
    write = Write(SECTOR - 10, b"x" * (10 + 2 * SECTOR + 5))
    parts = [Write(SECTOR - 10, b"x" * 10), Write(SECTOR, b"x" * SECTOR), Write(2 * SECTOR, b"x" * SECTOR)]
    states = list(crash_states(log_of(write), 7, plan=Plan(tears=9)))
    assert images(states, "head") == {image_with(*parts[:k]) for k in (1, 2, 3)}
    last = Write(3 * SECTOR, b"x" * 5)
    assert images(states, "tail") == {image_with(*parts[k:], last) for k in (1, 2, 3)}
    every = {image_with(*chosen) for n in range(4) for chosen in combinations([*parts, last], n)}
    found = images([s for p in range(150) for s in crash_states(log_of(write), 7, pass_number=p)], "sector")
    assert found == every


def test_a_sector_is_torn_inside_only_where_the_medium_may() -> None:
    write = Write(0, bytes(range(1, SECTOR + 1)))
    whole = {image_with(), image_with(write)}
    assert images(list(crash_states(log_of(write), 1))) - whole
    trusted = [
        s for p in range(9) for s in crash_states(log_of(write), 1, plan=Plan(inside_sectors=False), pass_number=p)
    ]
    assert images(trusted) <= whole
    two = log_of(write, Write(SECTOR, bytes(range(1, SECTOR + 1))))
    for p in range(9):
        for state in crash_states(two, 1, plan=Plan(inside_sectors=False), pass_number=p):
            content = state.image.to_bytes()
            assert {content[:SECTOR], content[SECTOR : 2 * SECTOR]} <= {bytes(SECTOR), write.data}


def test_reordered_overlapping_writes_let_the_older_win_sometimes() -> None:
    old, new = Write(0, b"old" * 10), Write(0, b"new" * 10)
    found = images([s for p in range(9) for s in crash_states(log_of(old, new), 3, pass_number=p)], "subset")
    assert found == {image_with(old), image_with(new)}


def test_growth_and_rot_are_there_at_once() -> None:
    log = log_of(Write(0, b"a"), Resize(SIZE + 10), Rot(50, b"r"), Write(SIZE, b"tail"))
    sizes = {(s.state_id.op, s.image.size_bytes) for s in crash_states(log, 1)}
    assert sizes == {(0, SIZE), (1, SIZE), (2, SIZE + 10), (3, SIZE + 10), (4, SIZE + 10)}
    assert all((s.image.read(50, 1) == b"r") == (s.state_id.op >= 3) for s in crash_states(log, 1))


def test_later_passes_bring_new_names_only() -> None:
    log = log_of(*(Write(i * 100, bytes([i + 1]) * 90) for i in range(8)))
    names = [str(s.state_id) for p in range(5) for s in crash_states(log, 1, pass_number=p)]
    assert len(names) == len(set(names))
    assert len(list(crash_states(log, 1, pass_number=4))) > 20


def test_first_point_is_where_enumeration_begins() -> None:
    log = log_of(Write(0, b"a"), Write(1, b"b"), Write(2, b"c"))
    states = list(crash_states(log, 1, first=2))
    assert {s.state_id.op for s in states} == {2, 3}
    assert image_with() in images(states)


# -- names -------------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(logs(), st.integers(0, 2**64), st.integers(0, 2))
def test_a_state_is_rebuilt_from_its_name(log: CrashLog, seed: int, pass_number: int) -> None:
    for state in crash_states(log, seed, plan=Plan(exhaustive_writes=3), pass_number=pass_number):
        twin = rebuild_state(log, str(state.state_id))
        assert twin.image.to_bytes() == state.image.to_bytes()
        assert twin.image.digest() == state.image.digest()


def test_another_seed_gives_other_states() -> None:
    log = log_of(*(Write(i * 100, bytes([i + 1]) * 90) for i in range(9)))
    first, second = (images(list(crash_states(log, seed)), "subset") for seed in (1, 2))
    assert first != second


@pytest.mark.parametrize(
    "name",
    ["", "op=1", "op=x kind=all seed=1 k=0", "op=1 kind=half seed=1 k=0", "op=-1 kind=all seed=1 k=0", "all",
     "op=1 kind=all seed=1 k=0 more=1", "op=1 kind=all seed=1 k=-1"],
)  # fmt: skip
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="not a crash state"):
        StateId.parse(name)


def test_a_point_beyond_the_log_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="1 operations"):
        rebuild_state(log_of(Flush()), "op=2 kind=all seed=1 k=0")


def test_states_do_not_share_what_recovery_writes() -> None:
    for state in crash_states(log_of(Write(0, b"abc"), Write(4200, b"def")), 1):
        before = state.image.to_bytes()
        device = state.device()
        device.write(0, [b"recovered" * 400])
        assert state.image.to_bytes() == before
        assert device.sector_size == SECTOR
        assert str(state.state_id) in device.name


# -- images ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, SIZE - 1), st.binary(max_size=3 * IMAGE_PAGE), st.booleans()), max_size=8))
def test_image_is_a_bytearray_and_its_digest_depends_on_content_alone(changes: list[tuple[int, bytes, bool]]) -> None:
    image, model = PagedImage(SIZE), bytearray(SIZE)
    for offset, data, look in changes:
        data = data[: SIZE - offset]
        older, before = image.copy(), bytes(model)
        image.write(offset, data)
        model[offset : offset + len(data)] = data
        if look:
            image.digest()
        assert image.read(offset, SIZE - offset) == model[offset:]
        assert older.to_bytes() == before
    assert image.to_bytes() == model
    assert image.digest() == PagedImage.from_bytes(model).digest()


def test_digest_tells_content_place_and_size_apart() -> None:
    made = [
        PagedImage(SIZE),
        PagedImage(SIZE + 1),
        PagedImage.from_bytes(image_with(Write(0, b"a"))),
        PagedImage.from_bytes(image_with(Write(IMAGE_PAGE, b"a"))),
    ]
    assert len({image.digest() for image in made}) == len(made)
    made[2].flip_bit(0, 0)
    made[2].flip_bit(0, 0)
    assert made[2].digest() == PagedImage.from_bytes(image_with(Write(0, b"a"))).digest()
