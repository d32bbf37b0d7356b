"""`mdstore repair`: say what would set an image right, do it, finish what was interrupted, take it back."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count, takewhile
from typing import Final

import click

from mdstore.device.file import FileDevice
from mdstore.errors import Conflict, InvalidRequest, MdstoreError, NotAnImage
from mdstore.tools.fsck import progress_display
from mdstore.tools.images import image_argument, json_option
from mdstore.tools.output import complain, count_text, explain, print_json, print_line, size_text
from mdstore.tools.repair import perform
from mdstore.tools.repair.bench import Progress, RepairOptions, Verdict
from mdstore.tools.repair.planning import Plan, plan
from mdstore.tools.repair.record import HEADER_SIZE, MAGIC, FileState, RepairFile
from mdstore.tools.repair.untouched import check_image

EXIT_CLEAN: Final = 0
EXIT_CORRECTED: Final = 1
EXIT_LEFT: Final = 4
EXIT_FAILED: Final = 8
_SUFFIX: Final = ".repair"
_LINES_MAX: Final = 20  # of details, losses and problems each, as text; --json has all of them


@click.command("repair")
@image_argument
@click.option("--apply", "applies", is_flag=True, help="Do it; without this, only say what would be done.")
@click.option("--deep", is_flag=True, help="Look at every data block too.")
@click.option("--drop-damaged", is_flag=True, help="Blocks of files that are damaged become holes (zeros). Implies --deep.")
@click.option("--file", "path", type=click.Path(dir_okay=False), help="The repair file [IMAGE.repair].")
@click.option("--undo", "undo_path", type=click.Path(dir_okay=False), help="Take the repair in this file back.")
@json_option
def repair_command(
    image: str, applies: bool, deep: bool, drop_damaged: bool, path: str | None, undo_path: str | None, as_json: bool
) -> None:
    """Set IMAGE right: say what would be done, in order, and what would be lost by it. With --apply, do it.

    Before the first byte changes, everything that is overwritten and everything that is written is durable in the repair file.
    A repair that was killed is finished by running it again; `--undo FILE` restores every byte.

    \b
    mdstore repair photos.img
    mdstore repair photos.img --apply
    mdstore repair photos.img --undo photos.img.repair

    \b
    Exit codes: 0 nothing to do, 1 errors were corrected and none is left, 4 errors are left
    (or would be corrected by --apply), 8 could not look or could not write.
    """
    if undo_path is not None:
        _refuse_beside_undo({"--apply": applies, "--deep": deep, "--drop-damaged": drop_damaged, "--file": path is not None})
    front = _Front(image, as_json=as_json)
    try:
        if undo_path is not None:
            sys.exit(_undo(image, undo_path, front))
        options = RepairOptions(is_deep=deep or drop_damaged, drops_damaged=drop_damaged)
        sys.exit(_repair(image, options, path, front, applies=applies))
    except BrokenPipeError:
        raise  # whoever read the plan went away: no failure of the repair
    except (MdstoreError, OSError) as error:
        front.failed(explain(error))
        sys.exit(EXIT_FAILED)


def _refuse_beside_undo(given: dict[str, bool]) -> None:
    beside = [option for option, is_given in given.items() if is_given]
    if beside:
        raise click.UsageError(f"--undo takes a repair back and does nothing else: {' and '.join(beside)} cannot go with it")


def _repair(image: str, options: RepairOptions, path: str | None, front: _Front, *, applies: bool) -> int:
    device = FileDevice.open(image, read_only=not applies)
    try:
        interrupted = _unfinished(path or f"{image}{_SUFFIX}")
        if interrupted is not None:
            return _finish(device, interrupted, front, applies=applies)
        with progress_display() as progress:
            made = plan(device, options, progress)
        try:
            if not made.steps:
                if made.before.failure:
                    raise NotAnImage(made.before.failure)
                front.plan(made, None)
                return EXIT_LEFT if made.left else EXIT_CLEAN
            if not applies:
                front.plan(made, None)
                return EXIT_LEFT
            path = _free_name(path or _beside(device))
            with progress_display() as progress:
                _apply(made, device, path, progress)
            front.plan(made, path)
            return EXIT_LEFT if made.left else EXIT_CORRECTED
        finally:
            made.bench.shadow.drop()
    finally:
        device.close()


def _beside(device: FileDevice) -> str:
    """Where the repair file goes when nobody says. InvalidRequest for a block device: what lies in /dev does not last."""
    if device.is_block_device:
        raise InvalidRequest(f"{device.name} is a block device: say with --file where the repair file goes")
    return f"{device.name}{_SUFFIX}"


def _apply(made: Plan, device: FileDevice, path: str, progress: Progress) -> None:
    file = perform.write_file(path, made.bench.shadow, [step.title for step in made.steps])
    try:
        perform.carry_out(file, device, _counter(progress, "writing"))
    finally:
        file.close()


def _counter(progress: Progress, phase: str) -> Callable[[int], None]:
    done = 0

    def tick(count: int) -> None:
        nonlocal done
        done += count
        progress(phase, done, 0)

    return tick


def _state_of(path: str) -> FileState:
    """How far the repair in a file came. CorruptionError when it is no repair file."""
    with open(path, "rb") as begun:
        start = begun.read(HEADER_SIZE)
    if len(start) < HEADER_SIZE and MAGIC.startswith(start[: len(MAGIC)]):
        return FileState.PLANNED  # killed before its first write was whole
    file = RepairFile.open(path)
    try:
        return file.state()
    finally:
        file.close()


def _names(path: str) -> Iterator[str]:
    """Names of repair files: `path`, then it with numbers."""
    yield path
    yield from (f"{path}.{number}" for number in count(2))


def _unfinished(path: str) -> str | None:
    """The file of a repair that was interrupted, or of one whose taking back was, if there is one."""
    existing = takewhile(os.path.exists, _names(path))
    return next((name for name in existing if _state_of(name) in (FileState.READY, FileState.UNDOING)), None)


def _finish(device: FileDevice, path: str, front: _Front, *, applies: bool) -> int:
    """A repair of this image was interrupted: the rest of it is done, nothing is planned anew."""
    if not applies:
        file = RepairFile.open(path)
        try:
            check_image(file, device)
            state = file.state()
        finally:
            file.close()
        ways = "--undo" if state is FileState.UNDOING else "--apply finishes it, --undo"
        front.said(f"{path} holds a repair that was interrupted; {ways} takes it back", "interrupted")
        return EXIT_LEFT
    file = RepairFile.open(path)
    try:
        if file.state() is FileState.UNDOING:
            raise Conflict(f"the repair in {path} is half taken back: `mdstore repair {device.name} --undo {path}` ends that")
        perform.carry_out(file, device)
    finally:
        file.close()
    front.said(f"the repair in {path} is finished now; run `mdstore repair` again to see what is left", "finished")
    return EXIT_CORRECTED


def _free_name(path: str) -> str:
    """The first name that no repair has: a file that never became complete gives way."""
    for name in _names(path):
        if not os.path.exists(name):
            return name
        if _state_of(name) is FileState.PLANNED:
            os.unlink(name)
            return name
    raise AssertionError("names do not end")


def _undo(image: str, path: str, front: _Front) -> int:
    device = FileDevice.open(image)
    try:
        file = RepairFile.open(path)
        try:
            perform.take_back(file, device)
        finally:
            file.close()
    finally:
        device.close()
    front.said(f"every byte of {image} that the repair in {path} changed is what it was before", "undone")
    return EXIT_CLEAN


class _Front:
    """What is printed."""

    def __init__(self, image: str, *, as_json: bool) -> None:
        self._image = image
        self._as_json = as_json
        self._began = time.monotonic()

    def failed(self, line: str) -> None:
        if self._as_json:
            print_json({"image": self._image, "status": "failed", "error": line})
        else:
            complain(line)

    def said(self, line: str, status: str) -> None:
        if self._as_json:
            print_json({"image": self._image, "status": status, "message": line})
        else:
            print_line(line)

    def plan(self, made: Plan, path: str | None) -> None:
        """The whole report; `path`: where the repair file is, when the plan was carried out."""
        if self._as_json:
            print_json(self._document(made, path))
        else:
            self._text(made, path)

    def _document(self, made: Plan, path: str | None) -> dict[str, object]:
        idle = "unrepairable" if made.left else "clean"
        return {
            "image": self._image,
            "status": ("planned" if path is None else "applied") if made.steps else idle,
            "repair_file": path,
            "steps": [step.as_json() for step in made.steps],
            "could_not": made.failed,
            "problems_before": _counts(made.before),
            "problems_left": {**_counts(made.after), "engine": made.engine},
            "left": made.left,
            "changed_bytes": made.bench.shadow.changed_bytes,
            "seconds": round(time.monotonic() - self._began, 3),
        }

    def _text(self, made: Plan, path: str | None) -> None:
        for number, step in enumerate(made.steps, 1):
            print_line(f"{number}. {step.title}")
            _some(step.details, "   ")
            _some(step.lost, "   lost: ")
        for line in made.failed:
            print_line(f"could not: {line}")
        for problem in made.after.problems[:_LINES_MAX]:
            print_line(f"left: {problem.as_line()}")
        _some([f"left, says the engine: {line}" for line in made.engine], "")
        print_line(f"{self._image}: {self._summary(made, path)}; {time.monotonic() - self._began:.2f} s")

    def _summary(self, made: Plan, path: str | None) -> str:
        was, left = count_text(made.before.open_problems, "problem"), made.left
        if not made.steps:
            return f"{count_text(left, 'problem')} that repair cannot mend" if left else "nothing to repair"
        if path is not None:
            return f"{was}, {left} left; `mdstore repair {self._image} --undo {path}` takes it back"
        size = size_text(made.bench.shadow.changed_bytes)
        return f"{was}, {left} would be left; {size} would change; nothing was written (--apply does it)"


def _some(lines: list[str], indent: str) -> None:
    for line in lines[:_LINES_MAX]:
        print_line(indent + line)
    if len(lines) > _LINES_MAX:
        print_line(f"{indent}... and {len(lines) - _LINES_MAX} more (--json lists them)")


def _counts(verdict: Verdict) -> dict[str, object]:
    return {
        "errors": verdict.severities["error"] + bool(verdict.failure),
        "warnings": verdict.severities["warning"],
        "codes": dict(verdict.codes),
        "problems": [problem.as_json() for problem in verdict.problems],
    }
