"""Inodes that are no directories: each has one record, where all its names lead, and bytes that nobody owns get a name.

A record lies in the one entry that names the inode, or, with several names, in the inode table. A backtrace, with the first of a
file's bytes, holds name and record as they were; the link table holds the names of what had several.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

from mdstore.tools.reader.mds_inode import FLAG_DATA, FLAG_SPARSE, TYPE_REGULAR, Inode
from mdstore.tools.repair.mend import Places, new_inode
from mdstore.tools.repair.names import PRIMARY, REMOTE, Bytes, Model, Place, Row

_SHARE: Final = "have all names of an inode lead to one record"
_NUMBER: Final = "give inodes numbers of their own"
_FIND: Final = "give what has no name a name"
_REMOVE: Final = "remove names that lead nowhere"
_COUNT: Final = "set link counts, types and flags right"
_TABLES: Final = "have the tables say what the names say"
_TRACE: Final = "write backtraces anew"

Owners = dict[int, list[Place]]


def mend_inodes(places: Places) -> None:
    """All of it."""
    owners, names = _places_of(places.model)
    _apart_from_folders(places, owners)
    for ino in sorted(owners.keys() | names.keys() | places.model.rows.keys()):
        _one(places, ino, owners.get(ino, []), names.get(ino, []))
    _strays(places)
    _ownerless(places)
    _links(places)
    _flags(places)


def _places_of(model: Model) -> tuple[Owners, Owners]:
    """(entries that own, entries that lead) by inode, in the order of directories and names."""
    owners: Owners = defaultdict(list)
    names: Owners = defaultdict(list)
    for ino, folder in sorted(model.folders.items()):
        for name, slot in sorted(folder.entries.items()):
            if slot.tag == PRIMARY:
                owners[slot.ino].append((ino, name))
            elif slot.tag == REMOTE:
                names[slot.ino].append((ino, name))
    return owners, names


def _inode_at(model: Model, place: Place) -> Inode:
    inode = model.folders[place[0]].entries[place[1]].inode
    assert inode is not None, "an entry that owns"
    return inode


# -- numbers that two things have --------------------------------------------------------------------------------------
def _apart_from_folders(places: Places, owners: Owners) -> None:
    """A number that a directory has is no file's; different kinds of file do not share one either."""
    model = places.model
    for ino in sorted(owners):
        kinds = {_inode_at(model, place).type for place in owners[ino]}
        if ino in model.folders:
            keep: list[Place] = []
            regular = [place for place in owners[ino] if _inode_at(model, place).type == TYPE_REGULAR]
            if regular and ino in model.data:
                _renumber(places, regular[0], with_data=True)
                owners[ino].remove(regular[0])
        elif len(kinds) > 1:
            kept_type = TYPE_REGULAR if ino in model.data and TYPE_REGULAR in kinds else min(kinds)
            keep = [place for place in owners[ino] if _inode_at(model, place).type == kept_type]
        else:
            continue
        for place in owners[ino]:
            if place not in keep:
                _renumber(places, place)
        owners[ino] = keep
    for ino in sorted(model.rows.keys() & model.folders.keys()):
        del model.rows[ino]
        places.report.lost(_NUMBER, f"the row of inode {ino} in the inode table: a directory has that number")


def _renumber(places: Places, place: Place, *, with_data: bool = False) -> None:
    inode = _inode_at(places.model, place)
    number = places.model.fresh_ino()
    loses = inode.type == TYPE_REGULAR and inode.size and not with_data
    flags = inode.flags if with_data else 0
    places.hang_inode(inode._replace(ino=number, nlink=1, flags=flags, size=0 if loses else inode.size), place)
    places.report.did(_NUMBER, f"{places.model.path(place)}: {inode.ino} becomes {number}")
    if with_data:
        places.model.move_data(inode.ino, number)
    if loses:
        places.report.lost(_NUMBER, f"{places.model.path(place)}: its bytes, which are another's")


# -- one inode ---------------------------------------------------------------------------------------------------------
def _one(places: Places, ino: int, owners: list[Place], names: list[Place]) -> None:
    model, row = places.model, places.model.rows.get(ino)
    if len(owners) == 1 and not names and row is None:
        inode = _inode_at(model, owners[0])
        if inode.nlink != 1:
            places.hang_inode(inode._replace(nlink=1), owners[0])
            places.report.did(_COUNT, f"{model.path(owners[0])}: link count {inode.nlink} becomes 1")
        return
    if row is None:
        record = _best(model, ino, owners)
        if record is None:
            for place in names:
                del model.folders[place[0]].entries[place[1]]
                places.report.lost(_REMOVE, f"{model.path(place)}: inode {ino}")
            return
        row = model.rows[ino] = Row(0, record)
        places.report.did(_SHARE, f"inode {ino} gets a row for {', '.join(model.path(place) for place in owners + names)}")
    for place in owners:
        places.hang_link(row.inode, place)
        places.report.did(_SHARE, f"{model.path(place)} leads to the row of inode {ino}")
    if not owners and not names:
        names = _named_again(places, ino, row.inode)
    _settle_row(places, ino, row, owners + names)


def _best(model: Model, ino: int, owners: list[Place]) -> Inode | None:
    """The record of an inode that several entries hold, or none does: the newest of theirs, else that of its backtrace."""
    held = model.data.get(ino)
    if owners:
        at_trace = [place for place in owners if held is not None and held.trace is not None and held.trace[:2] == place]
        return max((_inode_at(model, place) for place in at_trace or owners), key=lambda inode: inode.change)
    if held is not None and held.trace is not None:
        return _with_bytes(held.trace.inode, held)
    return None


def _named_again(places: Places, ino: int, inode: Inode) -> list[Place]:
    """Names for an inode of the table that none leads to: those of the link table, else one in lost+found."""
    known = sorted((directory, name) for number, directory, name in places.model.links if number == ino)
    made = [place for place in known if places.is_free(place)] or [places.in_lost_found(ino)]
    for place in made:
        places.hang_link(inode, place)
        places.report.did(_FIND, f"inode {ino} as {places.model.path(place)}")
    return made


def _settle_row(places: Places, ino: int, row: Row, names: list[Place]) -> None:
    """Count, home, and the types that the entries show."""
    model = places.model
    if row.inode.nlink != len(names):
        places.report.did(_COUNT, f"inode {ino}: link count {row.inode.nlink} becomes {len(names)}")
        row.inode = row.inode._replace(nlink=len(names))
    homes = {directory for directory, _ in names}
    if row.home and row.home not in homes:
        places.report.did(_TABLES, f"inode {ino}: its home {row.home} becomes {min(homes)}")
        row.home = min(homes)
    for place in names:
        slot = model.folders[place[0]].entries[place[1]]
        if slot.file_type != row.inode.type:
            places.report.did(_COUNT, f"{model.path(place)}: type {slot.file_type} becomes {row.inode.type}")
            places.hang_link(row.inode, place)


# -- what has no name --------------------------------------------------------------------------------------------------
def _strays(places: Places) -> None:
    """Files on their way out: not those that are named, and only what can be one."""
    model = places.model
    owned = _owned(model)
    for ino, inode in sorted(model.strays.items()):
        if ino in owned or inode.type != TYPE_REGULAR:
            del model.strays[ino]
            places.report.did(_TABLES, f"inode {ino} is no stray")
        elif inode.nlink:
            model.strays[ino] = inode._replace(nlink=0)
            places.report.did(_TABLES, f"stray {ino}: link count {inode.nlink} becomes 0")


def _owned(model: Model) -> set[int]:
    return {*model.folders, *model.rows} | {
        slot.ino for folder in model.folders.values() for slot in folder.entries.values()
    }


def _ownerless(places: Places) -> None:
    """Bytes of inodes that are nowhere: back to where their backtrace says, else to lost+found."""
    model = places.model
    for ino in sorted(model.data.keys() & model.folders.keys()):
        number = model.fresh_ino()
        model.move_data(ino, number)
        places.report.did(_NUMBER, f"bytes of inode {ino}, which is a directory, become those of {number}")
    owned = _owned(model) | model.strays.keys()
    for ino in sorted(model.data.keys() - owned):
        held = model.data[ino]
        record = held.trace.inode if held.trace is not None else new_inode(model, ino)
        inode = _with_bytes(record._replace(ino=ino), held)
        places_known = [(directory, name) for number, directory, name in sorted(model.links) if number == ino]
        if places_known and any(places.is_free(place) for place in places_known):
            model.rows[ino] = Row(places_known[0][0], inode)
            _settle_row(places, ino, model.rows[ino], _named_again(places, ino, inode))
            continue
        said = (held.trace.directory, held.trace.name) if held.trace is not None else (0, b"")
        place = said if places.is_free(said) else places.in_lost_found(ino)
        places.hang_inode(inode._replace(nlink=1), place)
        places.report.did(_FIND, f"inode {ino}, {inode.size} bytes, as {model.path(place)}")
        if held.trace is None:
            places.report.lost(_FIND, f"{model.path(place)}: name, mode, owner, times and attributes")


def _with_bytes(inode: Inode, held: Bytes) -> Inode:
    """A record whose size is what is really there."""
    flags = inode.flags | FLAG_DATA | (FLAG_SPARSE if held.held != held.end else 0)
    return inode._replace(flags=flags, size=held.end, allocated=held.held)


# -- what must agree ---------------------------------------------------------------------------------------------------
def _links(places: Places) -> None:
    """The link table has exactly the entries that lead to the inode table."""
    model = places.model
    due = {
        (slot.ino, ino, name)
        for ino, folder in model.folders.items()
        for name, slot in folder.entries.items()
        if slot.tag == REMOTE
    }
    if due != model.links:
        places.report.did(_TABLES, f"link table: {len(due - model.links)} rows come, {len(model.links - due)} go")
        model.links = due


def _flags(places: Places) -> None:
    """Inodes with bytes know it; backtraces that cannot be read are written anew."""
    model = places.model
    for directory, folder in sorted(model.folders.items()):
        for name, slot in folder.entries.items():
            if slot.inode is None or slot.ino not in model.data:
                continue
            if not slot.inode.flags & FLAG_DATA:
                places.hang_inode(slot.inode._replace(flags=slot.inode.flags | FLAG_DATA), (directory, name))
                places.report.did(_COUNT, f"{model.path((directory, name))}: it has bytes")
            _trace(places, slot.ino, f"{model.path((directory, name))}")
    for ino, row in sorted(model.rows.items()):
        if ino in model.data:
            if not row.inode.flags & FLAG_DATA:
                row.inode = row.inode._replace(flags=row.inode.flags | FLAG_DATA)
                places.report.did(_COUNT, f"inode {ino}: it has bytes")
            _trace(places, ino, f"inode {ino}")


    for ino in sorted(model.strays.keys() & model.data.keys()):
        _trace(places, ino, f"stray {ino}")


def _trace(places: Places, ino: int, where: str) -> None:
    if places.model.data[ino].is_trace_damaged:
        places.report.did(_TRACE, where)
