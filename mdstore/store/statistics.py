"""The store's statistics: plain numbers, gathered from whoever counts them."""

from __future__ import annotations

from journal import Journal
from mdstore.btree import Pager
from mdstore.store.latency import Latencies
from mdstore.store.superblock import Superblock
from mdstore.store.tables import Tables

Numbers = dict[str, int | float]


def of_space(tables: Tables, superblock: Superblock, pending_blocks: int, held_blocks: int) -> Numbers:
    """Sizes in bytes. Free is what a checkpoint would leave: `pending_blocks` is what it would take, and `held_blocks` what it
    could not give back."""
    allocator, size = tables.allocator, superblock.block_size
    free = max(0, allocator.free_blocks + allocator.limbo_blocks - held_blocks - pending_blocks)
    return {
        "size_bytes": superblock.blocks * size,
        "block_size": size,
        "free_bytes": free * size,
        "allocated_bytes": (superblock.blocks - free) * size,
        "reader_held_bytes": held_blocks * size,
        "stored_bytes": tables.objects.stored_bytes,
        "objects": len(tables.objects),
        "fragmentation": allocator.fragmentation(),
        "stripes_whole": allocator.whole_stripes,
        "stripes_partial": allocator.partial_stripes,
        "epoch": superblock.epoch,
        "snapshots": len(tables.space.snapshots),
    }


def of_snapshot(superblock: Superblock) -> Numbers:
    """The same of a superblock that is kept."""
    size = superblock.block_size
    return {
        "size_bytes": superblock.blocks * size,
        "block_size": size,
        "free_bytes": superblock.free_blocks * size,
        "allocated_bytes": (superblock.blocks - superblock.free_blocks) * size,
        "stored_bytes": superblock.stored_bytes,
        "objects": superblock.objects,
        "epoch": superblock.epoch,
    }


def of_log(journal: Journal) -> Numbers:
    """The write-ahead log: its size and fill, and what was written since the store was opened."""
    capacity, free = journal.capacity or 0, journal.free or 0
    return {
        "log_bytes": capacity,
        "log_free_bytes": free,
        "log_fill": 1 - free / capacity if capacity else 0.0,
        "log_appends": journal.counters.appends,
        "log_flushes": journal.counters.flushes,
        "log_written_bytes": journal.counters.bytes,
    }


def of_cache(pager: Pager) -> Numbers:
    """The page cache's counters, and the share of looks that found their page."""
    rows: Numbers = {f"cache_{name}": value for name, value in pager.counters().items()}
    looks = rows["cache_hits"] + rows["cache_misses"]
    rows["cache_hit_rate"] = rows["cache_hits"] / looks if looks else 1.0
    return rows


def of_waits(waits: Latencies) -> Numbers:
    """How long callers waited for durability, in seconds."""
    median, late = waits.percentiles(0.5, 0.99)
    return {
        "commit_waits": waits.count, "commit_wait_worst_s": waits.worst,
        "commit_wait_p50_s": median, "commit_wait_p99_s": late,
    }  # fmt: skip
