"""The images that a crash may leave.

At a point of a log, the durable writes are on the medium and each pending one may be, wholly or in part. Each choice is
a state with an identifier, `op=17 kind=subset seed=42 k=3`, from which the same log gives the same image again:

| kind   | of the pending writes, the medium got                                                            |
|--------|--------------------------------------------------------------------------------------------------|
| none   | nothing                                                                                          |
| all    | everything                                                                                       |
| prefix | the first k                                                                                      |
| drop   | all but the k-th                                                                                 |
| only   | the k-th alone                                                                                   |
| mask   | those whose bit is set in k: every subset, when asked for                                        |
| subset | the newest and a random choice of the others, in random order                                    |
| head   | all before the newest, and the first k sectors of that                                           |
| tail   | all before the newest, and all of that but its first k sectors                                   |
| sector | all before the newest, and a random choice of its sectors                                        |
| mix    | all before the newest, a random choice of its sectors, and some bytes of one more                |
| torn   | a random choice of the others in random order, then any one of them torn like `sector` or `mix`  |

Sectors are those of the device, not of the write. Random choices are made from (seed, op, kind, k) and nothing else.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from mdstore.device.crashlog import CrashLog, Moment, Write
from mdstore.device.faulty import FaultyDevice
from mdstore.device.images import PagedImage
from mdstore.errors import InvalidRequest

Piece = tuple[int, bytes]  # (offset, bytes) that the medium got

KINDS: Final = ("none", "all", "prefix", "drop", "only", "mask", "subset", "head", "tail", "sector", "mix", "torn")
_UPON_PRIOR: Final = frozenset({"head", "tail", "sector", "mix"})  # states that hold every pending write but the newest


@dataclass(frozen=True, slots=True)
class StateId:
    """Names a crash state of a log. `str` gives the one line that `parse` reads."""

    op: int
    kind: str
    seed: int
    k: int

    def __str__(self) -> str:
        return f"op={self.op} kind={self.kind} seed={self.seed} k={self.k}"

    @classmethod
    def parse(cls, text: str) -> StateId:
        """The identifier in `text`; `InvalidRequest` when it is none."""
        try:
            fields = dict(word.split("=", 1) for word in text.split())
            state_id = cls(int(fields["op"]), fields["kind"], int(fields["seed"]), int(fields["k"]))
        except (KeyError, ValueError):
            raise InvalidRequest(f"not a crash state: {text!r} (wanted: op=17 kind=subset seed=42 k=3)") from None
        if state_id.kind not in KINDS or len(fields) != 4 or state_id.op < 0 or state_id.k < 0:
            raise InvalidRequest(f"not a crash state: {text!r} (kinds: {' '.join(KINDS)})")
        return state_id

    def random(self) -> Random:
        return Random(f"{self.seed}/{self.op}/{self.kind}/{self.k}")


@dataclass(frozen=True, slots=True)
class CrashState:
    """One image that a crash at `state_id.op` may leave. The image is this state's own."""

    state_id: StateId
    image: PagedImage
    sector_size: int

    def device(self) -> FaultyDevice:
        """A fresh device over the image: recovery may write to it, and may be crashed in its turn. The state keeps its
        image as it is."""
        return FaultyDevice(
            self.image, self.state_id.seed, sector_size=self.sector_size, name=f"crash state {self.state_id}"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """How many states of each kind a point gets in one pass. Kinds left out of it are always enumerated in full."""

    drops: int = 2
    subsets: int = 4
    tears: int = 2  # of each way to tear
    exhaustive_writes: int = 0  # up to this many pending writes, every subset of them
    inside_sectors: bool = True  # off: the medium is trusted to write a sector whole or not at all


DEFAULT_PLAN: Final = Plan()


def crash_states(
    log: CrashLog,
    seed: int,
    *,
    plan: Plan = DEFAULT_PLAN,
    first: int = 0,
    points: Container[int] | None = None,
    in_full: Container[int] = (),
    pass_number: int = 0,
) -> Iterator[CrashState]:
    """The states of every point from `first` on, or of those in `points`, in the order of the log.

    A point's states are those that its newest operation made possible: "nothing survived" at a flush, and at a write
    what holds some of that write; so over the points of an epoch every prefix comes up as `all`. A point in `in_full`
    (where something was acknowledged, say) gets the older ones again, every prefix included.

    A later `pass_number` draws new random states and repeats no identifier. Cost: a point costs what its pending writes weigh,
    times the states.
    """
    for moment in log.moments():
        if moment.point >= first and (points is None or moment.point in points):
            full = moment.point in in_full or moment.point == first
            for kind, k in _choices(moment, log.sector_size, seed, plan, full, pass_number):
                yield _state(moment, log.sector_size, StateId(moment.point, kind, seed, k))


def rebuild_state(log: CrashLog, state_id: StateId | str) -> CrashState:
    """The state that `state_id` names, from the log it was made of. `InvalidRequest` where the log has no such point."""
    wanted = StateId.parse(state_id) if isinstance(state_id, str) else state_id
    for moment in log.moments():
        if moment.point == wanted.op:
            return _state(moment, log.sector_size, wanted)
    raise InvalidRequest(f"{wanted}: the log has {len(log.operations)} operations")


def _choices(
    moment: Moment, sector_size: int, seed: int, plan: Plan, full: bool, pass_number: int
) -> Iterator[tuple[str, int]]:
    """(kind, k) of the states that a point gets."""
    pending = moment.pending
    if pass_number == 0:
        if full or not pending:
            yield "none", 0
        if pending:
            yield from _fixed_choices(moment, sector_size, seed, plan, full)
    if pending:
        yield from _random_choices(len(pending), _sector_count(pending[-1], sector_size), plan, pass_number)


def _fixed_choices(moment: Moment, sector_size: int, seed: int, plan: Plan, full: bool) -> Iterator[tuple[str, int]]:
    count = len(moment.pending)
    random = Random(f"{seed}/{moment.point}/fixed")
    yield "all", 0
    if full:
        yield from (("prefix", k) for k in range(1, count))
    if count > 1:
        yield "only", count - 1
        yield from (("drop", k) for k in _some(random, range(count - 1), plan.drops))
    if count <= plan.exhaustive_writes:
        yield from (("mask", k) for k in range(1 << count))
    sectors = _sector_count(moment.pending[-1], sector_size)
    yield from (("head", k) for k in _some(random, range(1, sectors), plan.tears))
    yield from (("tail", k) for k in _some(random, range(1, sectors), plan.tears))


def _some(random: Random, choices: Sequence[int], count: int) -> list[int]:
    """All of a few, a sorted sample of many."""
    return list(choices) if len(choices) <= count else sorted(random.sample(choices, count))


def _random_choices(pending: int, sectors: int, plan: Plan, pass_number: int) -> Iterator[tuple[str, int]]:
    counts = {"sector": plan.tears if sectors > 1 else 0, "mix": plan.tears if plan.inside_sectors else 0}
    if pending > 1:
        counts |= {"subset": plan.subsets, "torn": plan.tears}
    for kind, count in counts.items():
        for k in range(pass_number * count, (pass_number + 1) * count):
            # An even k of `torn` tears inside a sector, an odd one between sectors; see `_torn`.
            yield kind, k if kind != "torn" or plan.inside_sectors else 2 * k + 1


def _state(moment: Moment, sector_size: int, state_id: StateId) -> CrashState:
    image = (moment.prior if state_id.kind in _UPON_PRIOR else moment.durable).copy()
    for offset, data in _pieces(moment.pending, sector_size, state_id):
        image.write(offset, data)
    return CrashState(state_id, image, sector_size)


def _pieces(pending: Sequence[Write], sector_size: int, state_id: StateId) -> list[Piece]:
    """What the medium got of the pending writes, in the order in which it got it."""
    kind, k = state_id.kind, state_id.k
    if kind == "none" or not pending:
        return []
    if kind in ("all", "prefix", "drop", "only", "mask"):
        return [(write.offset, write.data) for i, write in enumerate(pending) if _is_kept(kind, i, k)]
    if kind == "subset":
        return [(pending[i].offset, pending[i].data) for i in _shuffled(state_id.random(), len(pending))]
    if kind == "torn":
        return _torn(pending, sector_size, state_id)
    return _tear_newest(pending[-1], sector_size, state_id)


def _is_kept(kind: str, i: int, k: int) -> bool:
    """Whether a state without chance in it holds the i-th pending write."""
    if kind == "all":
        return True
    if kind == "prefix":
        return i < k
    if kind == "drop":
        return i != k
    return i == k if kind == "only" else bool(k >> i & 1)


def _shuffled(random: Random, count: int) -> list[int]:
    """The newest write and a random choice of the others, in random order."""
    density = random.choice((0.2, 0.5, 0.8))
    chosen = [i for i in range(count - 1) if random.random() < density] + [count - 1]
    random.shuffle(chosen)
    return chosen


def _tear_newest(write: Write, sector_size: int, state_id: StateId) -> list[Piece]:
    sectors = _sectors(write, sector_size)
    if state_id.kind == "head":
        return sectors[: state_id.k]
    if state_id.kind == "tail":
        return sectors[state_id.k :]
    return _tear(sectors, state_id.random(), inside=state_id.kind == "mix")


def _torn(pending: Sequence[Write], sector_size: int, state_id: StateId) -> list[Piece]:
    random = state_id.random()
    chosen = _shuffled(random, len(pending))
    victim = random.choice(chosen)
    pieces = list[Piece]()
    for i in chosen:
        write = pending[i]
        whole = [(write.offset, write.data)]
        inside = state_id.k % 2 == 0
        pieces += _tear(_sectors(write, sector_size), random, inside=inside) if i == victim else whole
    return pieces


def _tear(sectors: list[Piece], random: Random, *, inside: bool) -> list[Piece]:
    """A random choice of the sectors but never all; `inside` adds some bytes of one that was not chosen."""
    if not sectors:
        return []
    victim = random.randrange(len(sectors))
    pieces = [piece for i, piece in enumerate(sectors) if i != victim and random.random() < 0.5]
    return pieces + _some_bytes(sectors[victim], random) if inside else pieces


def _some_bytes(sector: Piece, random: Random) -> list[Piece]:
    """A head, a tail or scattered runs of one sector's bytes."""
    offset, data = sector
    shape, cut = random.randrange(3), random.randrange(len(data))
    if shape == 0:
        return [(offset, data[:cut])]
    if shape == 1:
        return [(offset + cut, data[cut:])]
    cuts = sorted(random.randrange(len(data) + 1) for _ in range(8))
    return [(offset + start, data[start:stop]) for start, stop in zip(cuts[::2], cuts[1::2]) if start < stop]


def _sector_count(write: Write, sector_size: int) -> int:
    return -(-(write.offset + len(write.data)) // sector_size) - write.offset // sector_size if write.data else 0


def _sectors(write: Write, sector_size: int) -> list[Piece]:
    """A write cut at the device's sector boundaries."""
    pieces, start = list[Piece](), 0
    while start < len(write.data):
        stop = start + sector_size - (write.offset + start) % sector_size
        pieces.append((write.offset + start, write.data[start:stop]))
        start = stop
    return pieces
