"""What the engine does best: going back to an older superblock with the log, and checkpoints that write every copy anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mdstore.store import Store
from mdstore.tools.output import count_text
from mdstore.tools.reader.check import NORMAL, Options, check_opened
from mdstore.tools.reader.check_superblock import candidates
from mdstore.tools.reader.problems import Damage
from mdstore.tools.reader.superblock import SIZE, Superblock
from mdstore.tools.repair.bench import Bench, DeviceImage, Step, Verdict
from mdstore.tools.repair.ring import open_log
from mdstore.tools.repair.shadow import Shadow

FALLBACK_CODES: Final = frozenset({
    "superblock-fallback", "page-checksum", "page-identity", "page-structure", "overflow", "beyond-image", "root-record",
})  # fmt: skip
CODES: Final = frozenset({"superblock-copy", "superblock-fallback", "log-clean", "journal-head"})


def fall_back(bench: Bench) -> Iterator[Step]:
    """The superblock before, when its trees are whole and the log reaches from there: then nothing is lost at all."""
    found = candidates(bench.image)
    if len(found) < 2 or not _reaches(bench, found[1], found[0]):
        return
    trial = Shadow(bench.shadow)
    try:
        _forget(trial, found[0])
        if _is_whole(trial):
            store = Store.open(trial, background=False)
            store.checkpoint()
            store.close()
            _copy(trial, bench.shadow)
            title = f"go back to the superblock of epoch {found[1].epoch} and replay the log from there"
            details = [f"the trees of epoch {found[0].epoch} are damaged, those before are whole: nothing is lost"]
            yield Step("store", title, details)
    finally:
        trial.drop()


def _reaches(bench: Bench, older: Superblock, newer: Superblock) -> bool:
    """Whether the log, replayed from the older superblock, gets as far as the newer one's."""
    try:
        scan = open_log(bench, older).scan()
        for _ in scan.entries():
            pass
    except Damage:
        return False
    return scan.end >= newer.log_position


def _forget(trial: Shadow, superblock: Superblock) -> None:
    """Both copies of a superblock become zeros."""
    end = trial.size_bytes // SIZE * SIZE
    slot = superblock.epoch % 2
    for at in (slot * SIZE, end - 2 * SIZE + slot * SIZE):
        trial.write(at, [bytes(SIZE)])
    trial.flush()


def _is_whole(trial: Shadow) -> bool:
    verdict = Verdict()
    check_opened(DeviceImage(trial), Options(NORMAL), verdict.add)
    ours = {problem.code for problem in verdict.problems}
    return not ours & (FALLBACK_CODES | {"log-replay", "log-entry", "log-rot", "space-false-free", "references"})


def _copy(source: Shadow, target: Shadow) -> None:
    for change in source.changes():
        if change is None:
            target.flush()
        else:
            target.write(change[0], [change[1]])


def checkpoint(bench: Bench) -> Iterator[Step]:
    """Two checkpoints by the engine: every copy of the superblock, and both heads of the log, are written anew."""
    with bench.store() as store:
        entries = store.recovery.entries
        store.checkpoint()
        store.checkpoint()
    details = [f"replayed {count_text(entries, 'entry', 'entries')} of the log", "every superblock copy is new"]
    yield Step("store", "write two checkpoints", details)


