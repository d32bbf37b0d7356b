"""What follows from the entries: sizes and link counts of directories, and recursive statistics, from the leaves up."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from mdstore.tools.reader.mds_directory import Header
from mdstore.tools.reader.mds_inode import ROOT
from mdstore.tools.repair.mend import Report
from mdstore.tools.repair.names import DIRECTORY, Folder, Model

_TITLE: Final = "set sizes, link counts and statistics of directories right"


def mend_totals(model: Model, report: Report) -> None:
    """Every directory that is wrong; and those above it, which then are. Directories form a tree by now."""
    homed: dict[int, int] = {}
    for row in model.rows.values():
        if row.home:
            homed[row.home] = homed.get(row.home, 0) + row.inode.size
    for ino in reversed(_from_the_root(model)):
        folder = model.folders[ino]
        header = _totalled(model, folder, homed.get(ino, 0))
        if header != folder.header:
            report.did(_TITLE, f"{model.path_of(ino) or '/'}: {_words(folder.header, header)}")
            folder.header = header


def _from_the_root(model: Model) -> list[int]:
    """Every directory after the one it hangs in."""
    order = [ROOT]
    for ino in order:
        order += [slot.ino for slot in model.folders[ino].entries.values() if slot.tag == DIRECTORY]
    return order


def _totalled(model: Model, folder: Folder, homed: int) -> Header:
    """The header as it should be; below it all are right."""
    header = folder.header
    assert header is not None
    below = [model.folders[slot.ino].header for slot in folder.entries.values() if slot.tag == DIRECTORY]
    headers = [child for child in below if child is not None]
    files = len(folder.entries) - len(headers)
    rbytes = homed + sum(slot.inode.size for slot in folder.entries.values() if slot.inode is not None)
    rbytes += sum(child.accounted_bytes for child in headers)
    rfiles = files + sum(child.accounted_files for child in headers)
    rdirs = len(headers) + sum(child.accounted_dirs for child in headers)
    rctime = max([header.rctime, *(child.accounted_ctime for child in headers)])
    made = replace(header, rbytes=rbytes, rfiles=rfiles, rdirs=rdirs, rctime=rctime)
    if folder.ino != ROOT:
        made = replace(
            made, accounted_bytes=rbytes, accounted_files=rfiles, accounted_dirs=rdirs, accounted_ctime=rctime
        )
    inode = header.inode._replace(size=len(folder.entries), nlink=2 + len(headers))
    return replace(made, inode=inode)


def _words(before: Header | None, after: Header) -> str:
    if before is None:
        return "new"
    pairs = [(name, getattr(before, name), getattr(after, name)) for name in ("rbytes", "rfiles", "rdirs")]
    pairs += [("entries", before.inode.size, after.inode.size), ("nlink", before.inode.nlink, after.inode.nlink)]
    said = [f"{name} {was} becomes {now}" for name, was, now in pairs if was != now]
    return ", ".join(said) or "what its parent knows of it"
