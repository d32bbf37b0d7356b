"""A log that can change its layout or the format of its entries: the current log is found through a pointer.

| step | pointer (front, back) | the log is | after a crash here                      |
|------|-----------------------|------------|-----------------------------------------|
| 1    | old, -                | old        | nothing happened                        |
| 2    | old, new              | old        | new is erased, and the pointer cleared  |
| 3    | new, old              | new        | old is erased, and the pointer cleared  |
| 4    | new, -                | new        | done                                    |

The new log is complete and durable before step 3, and step 3 is one durable write of the pointer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from journal.entry import Entry
from journal.errors import JournalBusy, NoJournal
from journal.follow import Follower
from journal.journal import Journal, Visit
from journal.medium import ObjectIO
from journal.options import Options
from journal.pointer import Pointer, Side, read_pointer, write_pointer
from journal.striped import Layout, StripedMedium

Transform = Callable[[Entry], tuple[int, bytes] | None]  # (type, payload) of the new entry, or None to leave it out


class PointedLog:
    """The log `name` in `objects`, wherever its pointer says it is."""

    def __init__(self, objects: ObjectIO, name: str) -> None:
        self.objects = objects
        self.name = name

    def create(self, layout: Layout | None = None, *, options: Options | None = None) -> Journal:
        """A new, empty log; what the pointer named before is erased. Durable on return."""
        old = read_pointer(self.objects, self.name)
        serial = max(old.front.serial, old.back.serial) + 1 if old else 1
        front = _side(serial, layout or Layout())
        journal = Journal.create(self._medium(front), options=options)
        write_pointer(self.objects, self.name, Pointer(front, old.front if old else Side(), old.number if old else 0))
        self.settle()
        return journal

    def settle(self) -> Pointer:
        """Finish what a crash interrupted: erase the back log and clear it from the pointer. Durable on return."""
        pointer = self._pointer()
        if not pointer.back.serial:
            return pointer
        self._medium(pointer.back).erase()
        return write_pointer(self.objects, self.name, replace(pointer, back=Side()))

    def open(self, *, options: Options | None = None, visit: Visit | None = None, start: int | None = None) -> Journal:
        """`Journal.open` of the current log, after `settle`."""
        return Journal.open(self._medium(self.settle().front), options=options, visit=visit, start=start)

    def take_over(self, *, options: Options | None = None, visit: Visit | None = None) -> Journal:
        """`Journal.take_over` of the current log. The pointer and every log of this name are fenced first."""
        self.objects.set_floor(self.name + ".", self.objects.epoch)
        return Journal.take_over(self._medium(self.settle().front), options=options, visit=visit)

    def medium(self) -> StripedMedium:
        """The current log's. `JournalBusy` while a rewrite is under way, for readers: it is about to be replaced."""
        pointer = self._pointer()
        if pointer.back.serial:
            raise JournalBusy(f"log {self.name} is being rewritten")
        return self._medium(pointer.front)

    def follow(self) -> Follower:
        """A read-only follower of the current log. `JournalBusy` while a rewrite is under way: try again later."""
        return Follower(self.medium())

    def rewrite(
        self,
        journal: Journal,
        layout: Layout,
        *,
        options: Options | None = None,
        transform: Transform | None = None,
    ) -> Journal:
        """Move the live entries of `journal`, the current log, to a new log with `layout`; returns that, ready to append.

        transform: makes the new entry of each old one. `journal` is flushed first and closed at the end; nobody may append
        to it meanwhile. Entries get new positions and sequence numbers. Crash-safe at every step, see the head of this
        module. Memory: one window. Cost: reads and writes the live log once.
        """
        journal.flush()
        pointer = self.settle()
        back = _side(max(pointer.front.serial, pointer.back.serial) + 1, layout)
        pointer = write_pointer(self.objects, self.name, replace(pointer, back=back))
        medium = self._medium(back)
        medium.erase()
        successor = Journal.create(medium, options=options)
        for entry in journal.entries():
            made = (entry.type, entry.payload) if transform is None else transform(entry)
            if made is not None:
                successor.append(made[1], type=made[0])
        successor.flush()
        successor.write_head()
        journal.close()
        write_pointer(self.objects, self.name, Pointer(pointer.back, pointer.front, pointer.number))
        self.settle()
        return successor

    def _pointer(self) -> Pointer:
        pointer = read_pointer(self.objects, self.name)
        if pointer is None:
            raise NoJournal(f"pointer of {self.name}")
        return pointer

    def _medium(self, side: Side) -> StripedMedium:
        layout = Layout(side.stripe_unit, side.stripe_count, side.stripe_unit * side.object_units)
        return StripedMedium(self.objects, f"{self.name}.{side.serial}", layout)


def _side(serial: int, layout: Layout) -> Side:
    return Side(serial, layout.stripe_unit, layout.stripe_count, layout.object_size // layout.stripe_unit)
