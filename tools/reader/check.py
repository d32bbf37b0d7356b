"""The whole check of an image: which parts, in which order. The command `mdstore fsck` is a front of `check_image`.

What is judged: the trees, counts and space as of the superblock; the log's framing and contents after it; then the name
space as it is once the log is replayed and the metadata server's events are applied. Both happen in memory, bounded by
the length of the logs; nothing is ever written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from mdstore.errors import NotFound
from mdstore.tools.reader.check_events import open_name_space
from mdstore.tools.reader.check_log import LogCheck, LogState
from mdstore.tools.reader.check_names import NameCheck
from mdstore.tools.reader.check_snapshots import SnapshotFindings, SnapshotsCheck
from mdstore.tools.reader.check_space import Observer
from mdstore.tools.reader.check_store import StoreCheck
from mdstore.tools.reader.check_superblock import check_superblocks, choose_superblock
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.overlay import Overlay
from mdstore.tools.reader.problems import Damage, Findings, Place, Problem
from mdstore.tools.reader.snapshots import Snapshot, find_snapshot
from mdstore.tools.reader.store import StoreReader
from mdstore.tools.reader.superblock import ROOT_SNAPSHOTS, Superblock

QUICK: Final = "quick"
NORMAL: Final = "normal"
DEEP: Final = "deep"

Progress = Callable[[str, int, int], None]  # phase, how far, of how many (0: unknown)


@dataclass(frozen=True, slots=True)
class Options:
    """How thorough: QUICK is superblocks and log, NORMAL all metadata, DEEP every data block too (or `sample` of them)."""

    level: str = NORMAL
    sample: float = 1.0
    seed: int = 0
    snapshot: bytes | None = None  # check this snapshot and nothing else; another process may be writing the image
    watch: Callable[[Superblock, int], Observer] | None = None  # given the superblock and the size, says who is told of runs


@dataclass(slots=True)
class Result:
    """What a check came to."""

    level: str
    size: int = 0
    epoch: int = 0
    is_clean: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    severities: dict[str, int] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        return self.severities.get("error", 0)


def check_image(
    path: str, options: Options, sink: Callable[[Problem], None], progress: Progress = lambda *_: None
) -> Result:
    """Check the image at `path`; every problem goes to `sink` as it is found.

    Reads only. NotFound (of the image, of the snapshot), NotAnImage, UnsupportedFormat or DeviceFailed when there is nothing
    that could be checked.
    """
    with Image(path) as image:
        if options.snapshot is not None:
            return _check_snapshot(image, options.snapshot, options, sink, progress)
        return check_opened(image, options, sink, progress)


def check_opened(
    image: Image, options: Options, sink: Callable[[Problem], None], progress: Progress = lambda *_: None
) -> Result:
    """`check_image` of an image that is open already."""
    findings = Findings(sink)
    result = Result(options.level, image.size)
    candidates = check_superblocks(image, findings)
    if candidates:
        superblock = choose_superblock(image, candidates, findings)
        result.epoch, result.is_clean = superblock.epoch, superblock.is_clean
        _check(image, superblock, options, findings, progress, result)
    result.severities = dict(findings.by_severity)
    result.codes = dict(findings.by_code)
    return result


def _check(
    image: Image, superblock: Superblock, options: Options, findings: Findings, progress: Progress, result: Result
) -> None:
    """All parts that the level asks for."""
    strict = StoreReader(image, superblock)
    is_deep = options.level == DEEP
    if options.level == QUICK:
        _note_log(LogCheck(image, superblock, findings, strict).run(), superblock, findings, result)
        return
    store = StoreCheck(
        strict,
        findings,
        is_deep=is_deep,
        sample=options.sample,
        seed=options.seed,
        tick=_ticker(progress, "objects", superblock.objects),
        observe=None if options.watch is None else options.watch(superblock, image.size),
    )
    snapshots = None
    if ROOT_SNAPSHOTS in superblock.roots:
        snapshots = SnapshotsCheck(strict, findings, is_deep=is_deep, tick=_ticker(progress, "objects of snapshots", 0))
        store.on_uses = snapshots.note_live
    store.run()
    _note_store(store, result)
    if snapshots is not None:
        snapshots.run()
        result.counts.update(snapshots=len(snapshots.snapshots), snapshot_pages=snapshots.pages)
    # Damage met from here on was reported by the walk above: it is read around.
    overlay = Overlay(StoreReader(image, superblock, on_damage=lambda _: None))
    log = LogCheck(image, superblock, findings, strict, is_deep=is_deep).run(overlay)
    _note_log(log, superblock, findings, result)
    _check_names(overlay, findings, progress, result)


def _check_names(overlay: Overlay, findings: Findings, progress: Progress, result: Result) -> None:
    names = open_name_space(overlay, findings)
    if names is None:
        return
    check = NameCheck(names, findings, _ticker(progress, "names", 0))
    check.run()
    result.counts.update(check.counts)


def _note_store(store: StoreCheck, result: Result) -> None:
    result.counts.update(
        collections=store.counts.collections,
        objects=store.counts.objects,
        extents=store.counts.extents,
        pages=store.counts.pages,
        map_records=store.counts.records,
        data_blocks=store.counts.data_blocks,
        verified_blocks=store.counts.verified_blocks,
    )


def _check_snapshot(
    image: Image, name: bytes, options: Options, sink: Callable[[Problem], None], progress: Progress
) -> Result:
    """What one snapshot keeps, and the name space in it. It does not change, whoever writes the image."""
    found = _find_snapshot(image, name)
    result = Result(options.level, image.size, found.superblock.epoch, is_clean=True)
    findings = SnapshotFindings(Findings(sink), name)
    if options.level == QUICK:
        _enter_trees(StoreReader(image, found.superblock), findings)
    else:
        store = StoreCheck(
            StoreReader(image, found.superblock),
            findings,
            is_deep=options.level == DEEP,
            sample=options.sample,
            seed=options.seed,
            tick=_ticker(progress, "objects", found.superblock.objects),
            observe=None if options.watch is None else options.watch(found.superblock, image.size),
        )
        store.run()
        _note_store(store, result)
        overlay = Overlay(StoreReader(image, found.superblock, on_damage=lambda _: None))
        _check_names(overlay, findings, progress, result)
    result.severities, result.codes = dict(findings.by_severity), dict(findings.by_code)
    return result


def _enter_trees(reader: StoreReader, findings: Findings) -> None:
    """Each tree that a snapshot names, from its root down to its first record."""
    for kind in reader.superblock.roots:
        try:
            next(reader.root_tree(kind).items(), None)
        except Damage as damage:
            findings.add_damage(damage)


def _find_snapshot(image: Image, name: bytes) -> Snapshot:
    """Its record, by the newest superblock that has one that reads: a writer may be reusing what an older one names."""
    error: Damage | None = None
    for _ in range(_LOOKS):
        for superblock in check_superblocks(image, Findings(lambda _: None)):
            try:
                found = find_snapshot(StoreReader(image, superblock), name)
            except Damage as damage:
                error = error or damage
                continue
            if found.is_deleting:
                raise NotFound("snapshot (it is being deleted)", name)
            return found
    raise error or Damage("superblock-none", "no copy of the superblock can be used")


_LOOKS: Final = 5  # at an image that another process may be writing


def _note_log(state: LogState, superblock: Superblock, findings: Findings, result: Result) -> None:
    result.counts.update(log_entries=state.entries, log_bytes=state.size)
    if not superblock.is_clean:
        what = f"the image was not closed: {state.entries} entries of its log follow the checkpoint of epoch {superblock.epoch}"
        findings.add("superblock-unclean", what, Place("superblock"))


def _ticker(progress: Progress, phase: str, total: int) -> Callable[[int], None]:
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        progress(phase, done, total)

    return tick
