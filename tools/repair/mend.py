"""Setting the name space right, in memory. What is done, in this order, so that each part may rely on those before:

1. names that no program could use get others; 2. directories: each hangs in one place, which is where its header says, and all
are reached from the root; 3. inodes: each has one record, where all its names lead; 4. bytes that belong to nobody get a name;
5. tables; 6. sizes, link counts and statistics (`totals`).

What has no place any more goes to `/lost+found`, named `#` and its number in hexadecimal. Nothing is removed but names that lead
nowhere, and every one of those is named as lost.
"""

from __future__ import annotations

from typing import Final

from mdstore.tools.reader.mds_directory import Header
from mdstore.tools.reader.mds_inode import ROOT, TYPE_DIRECTORY, TYPE_REGULAR, Inode, is_name
from mdstore.tools.reader.problems import readable
from mdstore.tools.repair.bench import Step
from mdstore.tools.repair.names import DIRECTORY, PRIMARY, REMOTE, Folder, Model, Place, Slot

LOST_FOUND: Final = b"lost+found"
_PHASE: Final = "names"


class Report:
    """Sentences by what kind of thing was done; each kind becomes a step."""

    def __init__(self) -> None:
        self._steps: dict[str, Step] = {}

    def did(self, title: str, detail: str) -> None:
        """Something was set right."""
        self._step(title).details.append(detail)

    def lost(self, title: str, what: str) -> None:
        """Something is gone, by name."""
        self._step(title).lost.append(what)

    def steps(self) -> list[Step]:
        """In the order in which the kinds first came."""
        return list(self._steps.values())

    def _step(self, title: str) -> Step:
        return self._steps.setdefault(title, Step(_PHASE, title))


class Places:
    """Where things hang: the few ways in which the model changes."""

    def __init__(self, model: Model, report: Report) -> None:
        self.model = model
        self.report = report

    def new_folder(self, ino: int, place: Place, mode: int) -> Folder:
        """An empty directory of the superuser's at `place`, whose entry the caller makes."""
        inode = new_inode(self.model, ino, TYPE_DIRECTORY << 12 | mode)._replace(nlink=2)
        directory, name = place
        header = Header(1, directory, 0, 0, 0, inode.ctime, 0, 0, 0, inode.ctime, name, inode)
        folder = self.model.folders.get(ino) or Folder(ino, None)
        folder.header = header
        self.model.folders[ino] = folder
        return folder

    def hang_folder(self, folder: Folder, place: Place) -> None:
        """The directory's entry, and its header's word for it."""
        self.model.folders[place[0]].entries[place[1]] = Slot(DIRECTORY, folder.ino, TYPE_DIRECTORY, None, b"")
        set_place(folder, place)

    def hang_inode(self, inode: Inode, place: Place) -> None:
        """An entry that owns the inode."""
        self.model.folders[place[0]].entries[place[1]] = Slot(PRIMARY, inode.ino, inode.type, inode, b"")

    def hang_link(self, inode: Inode, place: Place) -> None:
        """An entry that leads to the inode's row; the row of the link table with it."""
        self.model.folders[place[0]].entries[place[1]] = Slot(REMOTE, inode.ino, inode.type, None, b"")
        self.model.links.add((inode.ino, *place))

    def is_free(self, place: Place) -> bool:
        """Whether an entry could be made there: the directory is there, the name can be used and is not."""
        folder = self.model.folders.get(place[0])
        return folder is not None and is_name(place[1]) and place[1] not in folder.entries

    def in_lost_found(self, ino: int) -> Place:
        """A place in `/lost+found`, which is made when it is not there."""
        root = self.model.folders[ROOT]
        slot = root.entries.get(LOST_FOUND)
        if slot is None or slot.tag != DIRECTORY or slot.ino not in self.model.folders:
            name = LOST_FOUND if slot is None else self.other_name(ROOT, LOST_FOUND)
            folder = self.new_folder(self.model.fresh_ino(), (ROOT, name), 0o700)
            self.hang_folder(folder, (ROOT, name))
            return folder.ino, b"#%016x" % ino
        return slot.ino, self.other_name(slot.ino, b"#%016x" % ino)

    def other_name(self, directory: int, name: bytes) -> bytes:
        """`name`, or it with a number, whichever is free."""
        entries, number, made = self.model.folders[directory].entries, 1, name
        while made in entries:
            number += 1
            made = b"%s.%d" % (name[:240], number)
        return made


def set_place(folder: Folder, place: Place) -> None:
    """The header says that the directory hangs there."""
    header = folder.header
    assert header is not None
    if (header.parent, header.name) != place:
        folder.header = _moved(header, place)


def _moved(header: Header, place: Place) -> Header:
    return Header(
        header.version, place[0], header.rbytes, header.rfiles, header.rdirs, header.rctime, header.accounted_bytes,
        header.accounted_files, header.accounted_dirs, header.accounted_ctime, place[1], header.inode,
    )  # fmt: skip


def new_inode(model: Model, ino: int, mode: int = TYPE_REGULAR << 12 | 0o600) -> Inode:
    """An inode of the superuser's, made now, empty."""
    now = model.now_ns
    return Inode(0, mode, ino, 1, 1, 0, 0, 0, 0, 0, now, now, now, now, 1, b"", b"")


def mend_names(places: Places) -> None:
    """Keys of entries that are no names become names."""
    title = "give names that no program could use others"
    for folder in places.model.folders.values():
        for name in [name for name in folder.entries if not is_name(name)]:
            clean = name.replace(b"/", b"_").replace(b"\0", b"_")[:255] or b"_"
            made = places.other_name(folder.ino, b"_" if clean in (b".", b"..") else clean)
            folder.entries[made] = folder.entries.pop(name)
            places.report.did(title, f"{places.model.path_of(folder.ino)}/{readable(name)} becomes {readable(made)}")
