"""Directories: each hangs in one place, its header says so, and all are reached from the root.

A directory's header is its backtrace: it names parent and name, and holds mode, owner, times and attributes. So the tree can be
made from headers alone, when every entry is lost.
"""

from __future__ import annotations

from typing import Final

from mdstore.tools.reader.mds_inode import ROOT
from mdstore.tools.reader.problems import readable
from mdstore.tools.repair.mend import Places, set_place
from mdstore.tools.repair.names import DIRECTORY, Folder, Model, Place

_ATTACH: Final = "put directories back into the tree"
_REMAKE: Final = "make directories anew whose record is lost"
_REMOVE: Final = "remove names that lead nowhere"
_TURN: Final = "have directories say where they hang"


def mend_folders(places: Places, wanted: set[int]) -> None:
    """All of it. `wanted`: numbers of directories that something lost says it was in."""
    _strangers(places)
    _root(places)
    hanging = _entries_of_folders(places, wanted)
    _lost_headers(places, hanging)
    for ino in sorted(wanted - places.model.folders.keys()):
        folder = places.new_folder(ino, places.in_lost_found(ino), 0o700)
        assert folder.header is not None
        places.hang_folder(folder, (folder.header.parent, folder.header.name))
        places.report.did(_REMAKE, f"{places.model.path_of(ino)}: something that was in it is left")
    _orphans(places, hanging)
    _loops(places)
    _headers(places)


def _strangers(places: Places) -> None:
    """An object that is named like a directory, of which nothing says that it is one, gives way to the file of that number."""
    model = places.model
    slots = [slot for folder in model.folders.values() for slot in folder.entries.values()]
    led_to = {slot.ino for slot in slots if slot.tag == DIRECTORY}
    files = {slot.ino for slot in slots if slot.tag != DIRECTORY} | model.rows.keys() | model.strays.keys() | model.data.keys()
    for ino in [ino for ino, folder in model.folders.items() if folder.header is None]:
        if ino in files and ino not in led_to and ino != ROOT:
            folder = model.folders.pop(ino)
            number = folder.ino = model.fresh_ino()
            folder.is_stored = False
            if folder.entries:
                model.folders[number] = folder
            places.report.did(_REMAKE, f"directory {ino}, which nothing names: a file has its number")


def wanted_folders(model: Model) -> set[int]:
    """Directories that are named as a place by a directory's header, or by bytes that no inode owns."""
    owned = {slot.ino for folder in model.folders.values() for slot in folder.entries.values()}
    owned |= model.rows.keys() | model.strays.keys() | model.folders.keys()
    wanted = {folder.header.parent for folder in model.folders.values() if folder.header is not None}
    for ino, held in model.data.items():
        if ino not in owned and held.trace is not None and held.trace.directory:
            wanted.add(held.trace.directory)
    return wanted


def _root(places: Places) -> None:
    model = places.model
    folder = model.folders.get(ROOT)
    if folder is None or folder.header is None:
        made = places.new_folder(ROOT, (ROOT, b""), 0o755)
        if folder is None:
            made.is_stored = False
        places.report.did(_REMAKE, "/: the root is lost")
        places.report.lost(_REMAKE, "/: mode, owner, times and attributes")


def _entries_of_folders(places: Places, wanted: set[int]) -> dict[int, Place]:
    """Where each directory hangs. Names that lead to none, or to one that hangs elsewhere, go."""
    model, hanging = places.model, dict[int, Place]()
    for folder in list(model.folders.values()):
        for name, slot in list(folder.entries.items()):
            if slot.tag != DIRECTORY:
                continue
            place = (folder.ino, name)
            if slot.ino == ROOT or (slot.ino not in model.folders and slot.ino not in wanted):
                del folder.entries[name]
                places.report.lost(_REMOVE, f"{model.path(place)}: directory {slot.ino} and what was in it")
            elif slot.ino in hanging:
                loser = place if _says(model, slot.ino) == hanging[slot.ino] else hanging[slot.ino]
                del model.folders[loser[0]].entries[loser[1]]
                hanging[slot.ino] = hanging[slot.ino] if loser == place else place
                places.report.did(_REMOVE, f"{model.path(loser)}: directory {slot.ino} hangs at {model.path(hanging[slot.ino])}")
            else:
                hanging[slot.ino] = place
    return hanging


def _says(model: Model, ino: int) -> Place | None:
    folder = model.folders.get(ino)
    return (folder.header.parent, folder.header.name) if folder is not None and folder.header is not None else None


def _lost_headers(places: Places, hanging: dict[int, Place]) -> None:
    """Directories whose record is gone, known by their entry, or by what is in them."""
    model = places.model
    without = [ino for ino, folder in model.folders.items() if folder.header is None]
    for ino in sorted({*without, *(ino for ino in hanging if ino not in model.folders)}):
        place = hanging.get(ino) or places.in_lost_found(ino)
        is_hanging = ino in hanging
        folder = places.new_folder(ino, place, 0o755 if is_hanging else 0o700)
        if not is_hanging:
            places.hang_folder(folder, place)
            hanging[ino] = place
        places.report.did(_REMAKE, f"{model.path(place)}: {len(folder.entries)} entries are left")
        places.report.lost(_REMAKE, f"{model.path(place)}: mode, owner, times and attributes of directory {ino}")


def _orphans(places: Places, hanging: dict[int, Place]) -> None:
    """Directories without an entry: back to where their header says, else to lost+found."""
    model = places.model
    for ino in sorted(model.folders.keys() - hanging.keys() - {ROOT}):
        folder = model.folders[ino]
        if _is_entered(model, folder):
            continue
        said = _says(model, ino)
        place = said if said is not None and said[0] != ino and places.is_free(said) else places.in_lost_found(ino)
        places.hang_folder(folder, place)
        hanging[ino] = place
        places.report.did(_ATTACH, f"directory {ino} as {model.path(place)}")


def _is_entered(model: Model, folder: Folder) -> bool:
    """Whether the directory's place has an entry for it: of one that was made here."""
    said = _says(model, folder.ino)
    parent = model.folders.get(said[0]) if said is not None else None
    slot = parent.entries.get(said[1]) if parent is not None and said is not None else None
    return slot is not None and slot.tag == DIRECTORY and slot.ino == folder.ino


def _loops(places: Places) -> None:
    """Directories that hold each other, and so hang from nowhere: one of each circle goes to lost+found."""
    model = places.model
    while circle := _a_circle(model):
        ino = min(circle)
        for folder in model.folders.values():
            for name in [name for name, slot in folder.entries.items() if slot.tag == DIRECTORY and slot.ino == ino]:
                del folder.entries[name]
        said = _says(model, ino)
        outside = said is not None and said[0] not in circle and places.is_free(said)
        place = said if outside and said is not None else places.in_lost_found(ino)
        places.hang_folder(model.folders[ino], place)
        places.report.did(_ATTACH, f"directory {ino} as {model.path(place)}: it lay inside itself")


def _a_circle(model: Model) -> set[int]:
    """The directories of a circle, if there is one: what is not reached from the root leads to it."""
    parents = {
        slot.ino: ino for ino, folder in model.folders.items() for slot in folder.entries.values() if slot.tag == DIRECTORY
    }
    settled = {ROOT}
    for start in model.folders:
        way: list[int] = []
        at = start
        while at not in settled:
            settled.add(at)
            way.append(at)
            at = parents.get(at, ROOT)
        if at in way:
            return set(way[way.index(at) :])
    return set()


def _headers(places: Places) -> None:
    """Every header says where the directory really hangs."""
    model = places.model
    for ino, folder in model.folders.items():
        for name, slot in folder.entries.items():
            if slot.tag == DIRECTORY and _says(model, slot.ino) != (ino, name):
                was = _says(model, slot.ino)
                set_place(model.folders[slot.ino], (ino, name))
                said = f"directory {was[0]}, {readable(was[1])}" if was is not None else "nowhere"
                places.report.did(_TURN, f"{model.path((ino, name))}: its header said {said}")
