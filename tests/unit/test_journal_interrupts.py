"""An interrupt at every place of a commit where the interpreter lets one in: nobody hangs, no turn is lost, nothing is latched
that did not fail, and the log is whole.

CPython raises what comes from outside (a signal, PyThreadState_SetAsyncExc) behind a call, at the beginning of a function and
where a loop jumps back. `Interruption` raises in the thread that it traces, at one such place after the other, in
the modules of the journal that take part and in what they use of contextlib.
"""

from __future__ import annotations

import dis
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from types import CodeType, FrameType
from typing import Any

import pytest

from journal import Journal, JournalClosed, JournalError, MemoryMedium, Options

HANG_S = 250  # before pytest ends the test, so that the place is told
FILES = (*(f"journal/{module}.py" for module in ("writer", "commit", "pack", "journal", "heads")), "contextlib.py")


@cache
def places(code: CodeType) -> frozenset[int]:
    """Offsets of the instructions before which an interrupt may come in. The interpreter raises it as if the call had, so where
    the next instruction is under another handler (`return f()` inside a `with`) it cannot be played, and is left out."""
    found, lets_in, before = set(), False, 0
    handlers = dis.Bytecode(code).exception_entries  # type: ignore[attr-defined]

    def handler(offset: int) -> int | None:
        return next((entry.target for entry in handlers if entry.start <= offset < entry.end), None)

    for instruction in dis.get_instructions(code):
        if lets_in and handler(before) == handler(instruction.offset):
            found.add(instruction.offset)
        before = instruction.offset
        name = instruction.opname
        lets_in = name.startswith("CALL") or name in ("RESUME", "JUMP_BACKWARD")
        if name == "JUMP_BACKWARD":
            found.add(int(instruction.argval))
    return frozenset(found)


class Interruption:
    """Raises KeyboardInterrupt at place number `at` of those that this thread passes while it is traced."""

    def __init__(self, at: int) -> None:
        self.passed = 0
        self.where = ""
        self._at = at

    @contextmanager
    def traced(self) -> Iterator[None]:
        sys.settrace(self._call)
        try:
            yield
        finally:
            sys.settrace(None)

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.endswith(FILES) or frame.f_code.co_name == "_call":
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return self._step

    def _step(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode" and frame.f_lasti in places(frame.f_code):
            self.passed += 1
            if self.passed - 1 == self._at:
                self.where = f"{frame.f_code.co_qualname}, line {frame.f_lineno}, instruction {frame.f_lasti}"
                raise KeyboardInterrupt
        return self._step


class Gated(MemoryMedium):
    """Runs `on_flush` inside the next flush."""

    on_flush: Callable[[], None] | None = None

    def flush(self) -> None:
        action, self.on_flush = self.on_flush, None
        if action is not None:
            action()
        super().flush()


@dataclass
class Scene:
    """A journal, and the threads that commit beside the one that is interrupted."""

    medium: Gated = field(default_factory=Gated)
    threads: list[threading.Thread] = field(default_factory=list)
    called: list[BaseException | None] = field(default_factory=list)
    acknowledged: set[int] = field(default_factory=set)
    journal: Journal = field(init=False)
    main: threading.Thread = field(default_factory=threading.current_thread)

    def __post_init__(self) -> None:
        self.journal = Journal.create(self.medium, options=Options(buffer_bytes=256))
        self.journal.write_head()
        self.over = threading.Event()  # the one that is interrupted is done

    def start(self, work: Callable[[], object]) -> None:
        def run() -> None:
            with suppress(JournalError):
                work()

        self.threads.append(threading.Thread(target=run, daemon=True))
        self.threads[-1].start()

    def commit(self) -> None:
        end = self.journal.append(b"event")
        self.journal.wait(end)
        self.acknowledged.add(end)

    def until_parked(self, count: int) -> None:
        """Until that many wait behind the leader, or the interrupted one is done and will not."""
        while len(self.journal._writer.turns._parked) < count and not self.over.is_set():
            self.over.wait(0.0002)

    def behind_a_flush(self, *others: Callable[[], object]) -> None:
        """Another thread leads and is in its flush; `others` wait behind it. It ends when one more does."""
        flushing = threading.Event()

        def stay() -> None:
            flushing.set()
            self.until_parked(len(others) + 1)

        self.medium.on_flush = stay
        self.start(self.commit)
        assert flushing.wait(HANG_S)
        for number, other in enumerate(others):
            self.start(other)
            self.until_parked(number + 1)

    def joined_by(self, count: int) -> None:
        """In the next flush, that many others come to wait behind it."""

        def join() -> None:
            for number in range(count):
                self.start(self.commit)
                while len(self.journal._writer.turns._parked) < number + 1:
                    self.over.wait(0.0002)

        self.medium.on_flush = join


def alone(scene: Scene) -> Callable[[], object]:
    return scene.commit


def joined(scene: Scene) -> Callable[[], object]:
    scene.joined_by(2)
    return scene.commit


def told(scene: Scene) -> Callable[[], object]:
    end = scene.journal.append(b"event")
    for _ in range(3):
        scene.journal.add_waiter(end, scene.called.append)
    return lambda: scene.journal.wait(end)


def failing(scene: Scene) -> Callable[[], object]:
    scene.joined_by(1)
    join = scene.medium.on_flush

    def fail() -> None:
        assert join is not None
        join()
        raise OSError(5, "the medium")

    scene.medium.on_flush = fail
    return scene.commit


def covered(scene: Scene) -> Callable[[], object]:
    """Its entry is part of the flush it waits behind, as others' are: it is woken in a chain, and wakes the next."""
    first, second, own = (scene.journal.append(b"event") for _ in range(3))
    scene.behind_a_flush(lambda: scene.journal.wait(first), lambda: scene.journal.wait(second))
    return lambda: scene.journal.wait(own)


def promoted(scene: Scene) -> Callable[[], object]:
    scene.behind_a_flush()
    return scene.commit


def behind_others(scene: Scene) -> Callable[[], object]:
    scene.behind_a_flush(scene.commit, scene.commit)
    return scene.commit


def too_late(scene: Scene) -> Callable[[], object]:
    scene.behind_a_flush(scene.commit)

    def wait() -> None:
        with suppress(TimeoutError):
            scene.journal.wait(scene.journal.append(b"event"), timeout=0)

    return wait


def pushing(scene: Scene) -> Callable[[], object]:
    scene.journal.append(b"event")
    return scene.journal.push


def pushing_behind_a_flush(scene: Scene) -> Callable[[], object]:
    scene.behind_a_flush(scene.commit)
    scene.journal.append(b"event")
    return scene.journal.push


def appending_too_much(scene: Scene) -> Callable[[], object]:
    return lambda: scene.journal.append([b"x" * 600, b"y" * 500])


def appending_too_much_behind_a_flush(scene: Scene) -> Callable[[], object]:
    scene.behind_a_flush(scene.commit)
    return lambda: scene.journal.append([b"x" * 600, b"y" * 500])


def appending_parts(scene: Scene) -> Callable[[], object]:
    """Kept by reference, behind a header of their own."""
    return lambda: scene.journal.append([b"x" * 3000, b"y" * 3000])


def beginning(scene: Scene) -> Callable[[], object]:
    """The first write of a generation, behind which the tail of the last one is removed."""
    scene.commit()
    scene.journal = Journal.open(scene.medium, options=Options(buffer_bytes=256))
    return scene.commit


def writing_a_head(scene: Scene) -> Callable[[], object]:
    scene.commit()
    return scene.journal.write_head


def once_interrupted(scene: Scene, owner: object, name: str) -> None:
    """The first call of that method by the one who is interrupted does nothing: an interrupt comes first. The traced one is then
    the second, and may come while it leaves."""
    method = getattr(owner, name)

    def interrupted(*arguments: Any) -> Any:
        if threading.current_thread() is not scene.main:
            return method(*arguments)
        delattr(owner, name)
        raise KeyboardInterrupt

    setattr(owner, name, interrupted)


def twice_at_the_end_of_a_turn(scene: Scene) -> Callable[[], object]:
    scene.joined_by(2)
    once_interrupted(scene, scene.journal._writer, "_end_turn")
    return scene.commit


def twice_behind_a_turn(scene: Scene) -> Callable[[], object]:
    """The callbacks are due."""
    once_interrupted(scene, scene.journal._writer.turns, "call_due")
    return told(scene)


def twice_asleep(scene: Scene) -> Callable[[], object]:
    scene.behind_a_flush(scene.commit, scene.commit)
    once_interrupted(scene, scene.journal._writer.turns, "sleep")
    return scene.commit


def twice_woken(scene: Scene) -> Callable[[], object]:
    """It was to wake the next one of those whose entries are durable."""
    work = covered(scene)
    once_interrupted(scene, scene.journal._writer.turns, "_wake_next")
    return work


def twice_failing(scene: Scene) -> Callable[[], object]:
    once_interrupted(scene, scene.journal._writer, "_end_turn")
    return failing(scene)


SCENES = [
    twice_at_the_end_of_a_turn, twice_behind_a_turn, twice_asleep, twice_woken, twice_failing,
    appending_parts, beginning, writing_a_head,
    alone, joined, told, failing, covered, promoted, behind_others, too_late, pushing, pushing_behind_a_flush,
    appending_too_much, appending_too_much_behind_a_flush,
]  # fmt: skip


def play(prepare: Callable[[Scene], Callable[[], object]], at: int) -> Interruption:
    """One run with an interrupt at place `at`; everybody comes to an end afterwards."""
    scene, interruption = Scene(), Interruption(at)
    work = prepare(scene)
    with suppress(KeyboardInterrupt, JournalError), interruption.traced():
        work()
    scene.over.set()
    said = f"{prepare.__name__}, place {at}: {interruption.where}"
    scene.start(scene.commit)
    for thread in scene.threads:
        thread.join(HANG_S)
        assert not thread.is_alive(), f"hangs after {said}"
    turns = scene.journal._writer.turns
    assert not turns.busy, said
    assert not turns._parked, said
    refusal = scene.journal._writer.refusal
    assert refusal is None or prepare in (failing, twice_failing), f"latched with {refusal!r} after {said}"
    assert scene.journal.safe == scene.journal.write or refusal is not None, said
    if prepare in (told, twice_behind_a_turn):
        assert len(scene.called) >= 3, said
    if refusal is None:
        scene.journal.assert_state()
        found: list[Any] = []
        assert Journal.open(scene.medium, visit=found.extend).write == scene.journal.safe, said
        assert scene.acknowledged <= {entry.end for entry in found}, said
    return interruption


def while_handling(error: Exception, work: Callable[[], object]) -> None:
    try:
        raise error
    except type(error):
        work()


class Lost(Exception):
    """A medium's own kind of error."""


class Failing(Gated):
    """A flush fails, and before anybody hears of it Ctrl-C is raised in its place; the second one would say "fine"."""

    error: Exception | None = None

    def flush(self) -> None:
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
        except type(error):
            raise KeyboardInterrupt  # noqa: B904
        super().flush()


@pytest.mark.parametrize("error", [OSError(5, "the medium"), Lost("the medium")])
@pytest.mark.parametrize("how", ["wait", "write_head"])
@pytest.mark.parametrize("handling", [False, True])
def test_a_failure_that_an_interrupt_overtakes_still_latches(error: Exception, how: str, *, handling: bool) -> None:
    """It was forgotten where the error was of a kind of the medium's own, and where a head was written."""
    medium = Failing()
    journal = Journal.create(medium)
    journal.write_head()
    end = journal.append(b"event")
    medium.error = error
    work = partial(journal.wait, end) if how == "wait" else journal.write_head
    with pytest.raises(KeyboardInterrupt):
        while_handling(KeyError("a caller's"), work) if handling else work()
    with pytest.raises(JournalError, match="the medium"):
        journal.wait(end)
    assert journal.safe < end


@pytest.mark.parametrize("handled", [OSError(2, "no such file"), JournalError("another journal's"), ValueError("a value")])
@pytest.mark.parametrize("how", ["wait", "push", "write_head"])
def test_what_the_caller_was_handling_is_no_failure_of_the_medium(handled: Exception, how: str) -> None:
    """Ctrl-C in a flush that somebody called in an `except OSError:` latched the journal for good."""
    medium = Gated()
    journal = Journal.create(medium)
    journal.write_head()
    end = journal.append(b"event")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    work = {"wait": partial(journal.wait, end), "push": journal.push, "write_head": journal.write_head}[how]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(medium, "write" if how == "push" else "flush", interrupt)
        with pytest.raises(KeyboardInterrupt):
            while_handling(handled, work)
    journal.wait(end)
    assert journal.safe == end


def test_an_interrupted_append_opens_no_closed_journal() -> None:
    """What had held the packer still let it go when the interrupt's traceback was freed, behind `close`."""
    at, where = 0, "the first"
    while where:
        journal, interruption = Journal.create(MemoryMedium()), Interruption(at)
        kept: BaseException | None = None
        try:
            with interruption.traced():
                journal.append([b"x" * 3000, b"y" * 3000])
        except KeyboardInterrupt as error:
            kept = error
        journal.close()
        del kept
        assert journal._pack.limit == 0, interruption.where
        with pytest.raises(JournalClosed):
            journal.append(b"event")
        at, where = at + 1, interruption.where
    assert at > 10, "places were passed"


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_flush_is_made_again_by_the_next_who_waits(error: type[BaseException]) -> None:
    """It latched the journal with "flush failed: ", although none had failed, and everybody who waited was told so."""
    scene = Scene()

    def interrupted() -> None:
        raise error

    scene.medium.on_flush = interrupted
    end = scene.journal.append(b"event")
    with pytest.raises(error):
        scene.journal.wait(end)
    scene.commit()
    assert scene.journal.safe == scene.journal.write > end
    assert next(entry.end for entry in scene.journal.entries()) == end


@pytest.mark.parametrize("prepare", SCENES)
def test_no_interrupt_takes_the_turn_along(prepare: Callable[[Scene], Callable[[], object]]) -> None:
    """One between taking the turn and the `try` behind it, or inside `give`, left the turn taken: every later wait hung."""
    at = 0
    while play(prepare, at).where:
        at += 1
    assert at > 15, "places were passed"
