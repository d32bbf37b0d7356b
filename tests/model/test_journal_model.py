"""The journal against a list: append, flush, expire, trim, close, crash, reopen, take over, in any order."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from journal import Journal, JournalFenced, JournalFull, Layout, Medium, Options, RingMedium, StripedMedium
from journal.simulation import CrashObjects, CrashRegion

BLOCK = 256


class JournalModel(RuleBasedStateMachine):
    """`entries` are (end, payload) of everything appended and not lost; `safe` is how many of them are durable."""

    journal: Journal
    region: CrashRegion
    store: CrashObjects

    @initialize(kind=st.sampled_from(["ring", "one", "three"]), split=st.booleans())
    def begin(self, kind: str, split: bool) -> None:
        self.kind = kind
        self.epoch = 1
        self.options = Options(allow_split=split, window_bytes=200, buffer_bytes=500)
        self.region = CrashRegion(BLOCK * 12)
        self.store = CrashObjects()
        self.entries: list[tuple[int, bytes]] = []
        self.safe = 0
        self.expired = 0  # position
        self.old: Journal | None = None
        self.journal = Journal.create(self.medium(), options=self.options)
        self.expired = self.journal.expire
        self.settled()

    def medium(self) -> Medium:
        if self.kind == "ring":
            return RingMedium(self.region, block_size=BLOCK)
        layout = Layout(64, 3 if self.kind == "three" else 1, 128)
        return StripedMedium(self.store.view(self.epoch), "log", layout, prezero_periods=1)

    def settled(self) -> None:
        """Only the operations from here on can be cut by the next crash."""
        if self.kind == "ring":
            self.settled_at = len(self.region.operations)
        else:
            self.settled_at = len(self.store.operations)

    @rule(size=st.sampled_from([0, 1, 11, 12, 13, 60, 75, 76, 77, 130, 400]), fill=st.integers(1, 255))
    def append(self, size: int, fill: int) -> None:
        payload = bytes([fill]) * size
        before = self.journal.write
        try:
            end = self.journal.append(payload)
        except JournalFull:
            assert (self.kind, self.journal.write) == ("ring", before)
            return
        self.entries.append((end, payload))
        self.note_safe()

    @rule(sizes=st.lists(st.integers(0, 90), min_size=1, max_size=6))
    def append_many(self, sizes: list[int]) -> None:
        payloads = [b"m" * size for size in sizes]
        before, written = self.journal.write, len(self.entries)
        try:
            end = self.journal.append_many(payloads)
        except JournalFull:
            assert self.journal.write == before
            return
        self.note_safe()
        self.journal.flush()
        self.entries += [(entry.end, entry.payload) for entry in self.journal.entries(start=before)]
        assert [payload for _, payload in self.entries[written:]] == payloads
        assert self.entries[-1][0] == end
        self.note_safe()

    @rule()
    def flush(self) -> None:
        self.journal.flush()
        self.note_safe()
        assert self.safe == len(self.entries)

    def note_safe(self) -> None:
        self.safe = sum(end <= self.journal.safe for end, _ in self.entries)

    @precondition(lambda self: self.safe > 0)
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, self.safe - 1))
        if self.entries[index][0] >= self.expired:
            self.expired = self.entries[index][0]
            self.journal.set_expire(self.expired)

    @rule()
    def trim(self) -> None:
        trimmed = self.journal.trim()
        assert (
            self.expired - self.journal.medium.period < trimmed <= self.expired or trimmed == self.journal.medium.start
        )

    @rule()
    def write_head(self) -> None:
        self.journal.write_head()

    @rule()
    def close_and_reopen(self) -> None:
        torn = self.journal.tail.kind == "torn"  # opening removes nothing: who writes nothing leaves the tail as it was
        self.journal.close()
        self.note_after_flush()
        self.journal = Journal.open(self.medium(), start=self.expired, options=self.options)
        assert self.journal.tail.kind in (("clean", "stale", "torn") if torn else ("clean", "stale"))

    def note_after_flush(self) -> None:
        self.safe = len(self.entries)
        self.settled()

    @rule(seed=st.integers(0, 1 << 30))
    def crash(self, seed: int) -> None:
        rng = random.Random(seed)
        if self.kind == "ring":
            images = list(self.region.images(len(self.region.operations), rng))
            self.region = rng.choice(images)
        else:
            stores = list(self.store.images(len(self.store.operations), rng))
            self.store = rng.choice(stores)
        self.journal = Journal.open(self.medium(), start=self.expired, options=self.options)
        self.keep_what_survived()

    @precondition(lambda self: self.kind != "ring")
    @rule(late=st.booleans())
    def take_over(self, late: bool) -> None:
        old = self.journal
        self.epoch += 1
        self.journal = Journal.take_over(self.medium(), start=self.expired, options=self.options)
        self.keep_what_survived()
        if late:
            try:
                old.wait(old.append(b"too late"))
            except JournalFenced:
                return
            raise AssertionError("a replaced writer was told of a success")

    def keep_what_survived(self) -> None:
        kept = sum(end <= self.journal.safe for end, _ in self.entries)
        assert kept >= self.safe, "something durable is lost"
        self.entries = self.entries[:kept]
        self.safe = kept
        if self.entries and self.journal.safe != self.expired:
            behind = self.journal.safe - self.entries[-1][0]
            assert not behind or (behind < self.journal.medium.unit and not self.journal.safe % self.journal.medium.unit), (
                "nothing but a pad may follow the last entry"
            )

    @invariant()
    def same_as_the_list(self) -> None:
        if not hasattr(self, "journal"):
            return
        self.journal.assert_state()
        found = [(entry.end, entry.payload) for entry in self.journal.entries()]
        assert found == [(end, payload) for end, payload in self.entries[: self.safe] if end > self.expired]


JournalModel.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestJournalModel = JournalModel.TestCase
