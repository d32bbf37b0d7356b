"""What every part of a repair works with: the shadow of the image, readers over it, and what was done so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from mdstore.device.protocol import Device
from mdstore.errors import DeviceFailed, InvalidRequest, MdstoreError, NotAnImage, UnsupportedFormat
from mdstore.mds.layout import META, TABLE_OBJECTS, Tab
from mdstore.mds.server import MetadataServer
from mdstore.store import Store
from mdstore.store.check import check as check_engine
from mdstore.tools.reader.check import DEEP, NORMAL, Options, check_opened
from mdstore.tools.reader.check_superblock import candidates, choose_superblock
from mdstore.tools.reader.image import Image
from mdstore.tools.reader.problems import Damage, Findings, Problem
from mdstore.tools.reader.store import StoreReader
from mdstore.tools.reader.superblock import Superblock, unknown_features
from mdstore.tools.repair.salvage import newest_generation
from mdstore.tools.repair.shadow import NoRoomForPlan, Shadow

Progress = Callable[[str, int, int], None]  # phase, how far, of how many (0: unknown)
PROBLEMS_KEPT: Final = 200


class DeviceImage(Image):
    """The second reader's view of a device."""

    def __init__(self, device: Device) -> None:
        self.path = device.name
        self.size = device.size_bytes
        self._device = device

    def read(self, offset: int, length: int) -> bytes:
        """As `Image.read`."""
        try:
            return self._device.read(offset, length)
        except InvalidRequest as error:
            where = f"{offset} .. {offset + length}"
            raise Damage("beyond-image", "bytes", f"at or below byte {self.size}", where, byte=offset) from error
        except DeviceFailed as error:
            raise Damage("unreadable", "bytes", f"{length} bytes", str(error), byte=offset) from error

    def close(self) -> None:
        """Nothing: the device belongs to whoever made it."""


@dataclass(frozen=True, slots=True)
class RepairOptions:
    """is_deep: look at every data block too. drops_damaged: blocks of files that do not match their checksum become holes."""

    is_deep: bool = False
    drops_damaged: bool = False


@dataclass(slots=True)
class Step:
    """One thing that a repair does: a sentence, what it consists of, and what is lost by it, by name."""

    phase: str
    title: str
    details: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """The step with stable keys."""
        return {"phase": self.phase, "title": self.title, "details": self.details, "lost": self.lost}


@dataclass(slots=True)
class Verdict:
    """What a check found: codes of errors and warnings with how often, the first in full, and why it could not go on, if so."""

    codes: Counter[str] = field(default_factory=Counter)
    severities: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)
    failure: str = ""

    @property
    def open_problems(self) -> int:
        """Errors and warnings."""
        return self.severities["error"] + self.severities["warning"] + bool(self.failure)

    def add(self, problem: Problem) -> None:
        """Count a finding; keep it while there are few. Notes are facts that nobody has to set right."""
        self.severities[problem.severity] += 1
        if problem.severity == "note":
            return
        self.codes[problem.code] += 1
        if len(self.problems) < PROBLEMS_KEPT:
            self.problems.append(problem)


class Bench:
    """One repair in the making. Everything happens on `shadow`; the image does not change."""

    def __init__(self, device: Device, options: RepairOptions, progress: Progress = lambda *_: None) -> None:
        self.shadow = Shadow(device)
        self.image = DeviceImage(self.shadow)
        self.options = options
        self.progress = progress
        self.verdict = Verdict()  # of the last check
        self.untried: list[str] = []  # what might be restored, and was not looked for (`restore` says why)

    def check_writable(self) -> None:
        """UnsupportedFormat when the image has features that only a newer mdstore may change."""
        newest = next(iter(candidates(self.image)), None)
        if newest is not None and newest.features_read_only:
            raise UnsupportedFormat(f"{unknown_features(newest)}: repair it with the version that made the image")

    def check(self) -> Verdict:
        """Everything that `fsck` says of the image as it would be."""
        verdict = self.verdict = Verdict()
        options = Options(DEEP if self.options.is_deep else NORMAL)
        try:
            check_opened(self.image, options, verdict.add, self.progress)
        except NotAnImage as error:
            verdict.failure = str(error)
            verdict.codes["superblock-none"] += 1
        except Damage as damage:
            verdict.failure = str(damage)
            verdict.codes[damage.code] += 1
        return verdict

    def superblock(self) -> Superblock | None:
        """The superblock that counts; None when there is none."""
        found = candidates(self.image)
        return choose_superblock(self.image, found, Findings(lambda _: None)) if found else None

    def reader(self, superblock: Superblock) -> StoreReader:
        """Reads of that superblock's trees; damage is read around."""
        return StoreReader(self.image, superblock, on_damage=lambda _: None)

    def outdated(self) -> str:
        """Why the superblock that counts cannot be the image's newest one; empty when nothing says so.

        A page of epoch E + 2 was written after superblock E + 1 was durable. Cost: reads the whole image."""
        superblock = self.superblock()
        if superblock is None:
            return ""
        space = (superblock.first_block, min(superblock.blocks, self.image.size // superblock.block_size))
        newest = newest_generation(self.image, superblock.block_size, space)
        if newest < superblock.epoch + 2:
            return ""
        return f"the newest superblock is lost: the one of epoch {superblock.epoch} counts, and there are pages of epoch {newest}"

    def ticker(self, phase: str, total: int = 0) -> Callable[[int], None]:
        """Something to call with how much more was done."""
        done = 0

        def tick(count: int) -> None:
            nonlocal done
            done += count
            self.progress(phase, done, total)

        return tick

    # -- the engine ----------------------------------------------------------------------------------------------------
    @contextmanager
    def store(self) -> Iterator[Store]:
        """The image opened by the engine, its log replayed; a checkpoint is written on leaving, unless something failed."""
        store = Store.open(self.shadow, background=False)
        yield store
        store.close()

    def engine_problems(self) -> list[str]:
        """What the engine's own checker finds, log replayed and checkpoint written on a shadow of its own; why the image does not
        open, if so."""
        trial = Shadow(self.shadow)
        try:
            store = Store.open(trial, background=False)
            problems = check_engine(store, deep=self.options.is_deep)
            if META in store.list_collections() and store.exists(META, TABLE_OBJECTS[Tab.SERVER]):
                MetadataServer.mount(store, read_only=True)
            return problems
        except NoRoomForPlan:
            raise
        except MdstoreError as error:
            return [str(error)]
        finally:
            trial.drop()
