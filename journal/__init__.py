"""A log: framed, checksummed entries over a ring of device blocks, striped objects, or memory."""

from journal.ceilings import Ceilings, Hold
from journal.directory import DirectoryObjects
from journal.entry import PAYLOAD_MAX, TYPE_MAX, Entry
from journal.errors import (
    DumpDamaged,
    EntryTooLarge,
    HeadLost,
    JournalBusy,
    JournalClosed,
    JournalCorrupt,
    JournalError,
    JournalFailed,
    JournalFenced,
    JournalFull,
    JournalReadOnly,
    JournalTrimmed,
    LogChanged,
    MediumUnreadable,
    NoJournal,
    UnsupportedJournal,
    WrongGeometry,
)
from journal.follow import Follower, Lag
from journal.head import Head
from journal.journal import Journal
from journal.medium import FencingMedium, Medium, ObjectIO, Region
from journal.memory import MemoryMedium
from journal.options import Counters, Options
from journal.ring import RingMedium
from journal.scan import Tail
from journal.striped import Layout, StripedMedium

__all__ = [
    "PAYLOAD_MAX", "TYPE_MAX", "Ceilings", "Counters", "DirectoryObjects", "DumpDamaged", "Entry", "EntryTooLarge",
    "FencingMedium", "Follower", "Head", "HeadLost", "Hold", "Journal", "JournalBusy", "JournalClosed",
    "JournalCorrupt", "JournalError", "JournalFailed", "JournalFenced", "JournalFull", "JournalReadOnly",
    "JournalTrimmed", "Lag", "Layout", "LogChanged", "Medium", "MediumUnreadable", "MemoryMedium", "NoJournal", "ObjectIO",
    "Options", "Region", "RingMedium", "StripedMedium", "Tail", "UnsupportedJournal", "WrongGeometry",
]  # fmt: skip
