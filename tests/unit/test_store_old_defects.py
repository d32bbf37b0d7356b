"""Seventeen defects of ebofs, the object store of 2008 that this one takes after: what each was, and the tests that would fail
with it.

1. Mounting took the superblock of the higher epoch without checking that one's checksum.
    tests: test_recovery_falls_back_to_the_older_superblock_when_the_newest_one_is_torn
        test_the_newest_is_taken_and_the_damaged_named
2. References to tree nodes had a checksum that nobody wrote or checked.
    tests: test_every_flipped_byte_of_every_page_is_detected_and_named
3. A failed operation was swallowed, and those before it stayed applied.
    tests: test_a_refused_operation_leaves_nothing_behind
4. Applying a transaction emptied it before it was logged; attributes were not logged at all.
    tests: test_every_operation_of_a_transaction_comes_back_from_the_log test_a_transaction_is_not_used_up_by_submitting_it
5. Removing a collection took a lock that it held.
    tests: test_a_collection_is_removed_beside_readers_that_list_it
6. Blocks freed by one epoch were reused before the superblock that did not reach them was durable.
    tests: test_freed_blocks_wait_for_the_superblock_that_no_longer_reaches_them
        test_every_write_of_a_mixed_workload_is_a_crash_point
7. Dropping a reference count took records out of leaves and left the tree unbalanced.
    tests: test_nothing_is_left_when_the_last_clone_goes test_shared_intervals_agree_with_a_count_for_each_block
8. The map of nodes had to be in one piece, and there could be ten regions of them.
    tests: test_the_new_space_is_used_and_nothing_is_lost test_a_value_of_a_hundred_megabytes_in_fragmented_space
9. Merging two nodes changed one that might be on its way to the medium.
    tests: test_a_snapshot_of_a_map_outlives_checkpoints_and_writes
        test_sealed_pages_are_found_before_they_are_written_and_survive_a_failed_write
10. A full device stopped the store, and a small write at a high offset was refused for want of space.
    tests: test_a_store_never_fails_after_it_said_yes_and_is_nearly_full_when_it_says_no
        test_a_small_write_at_a_high_offset_takes_little_space
11. Truncating could not grow; the target of a clone must not exist, and could not be written.
    tests: test_truncate_down_and_up_never_shows_old_bytes test_a_clone_replaces_all_of_its_target
        test_a_change_of_one_side_does_not_show_on_the_other
12. Names of attributes ended at a zero byte, and counts had 16 bits.
    tests: test_names_of_attributes_may_hold_any_byte test_as_many_attributes_as_the_limit_and_no_more
13. One lock for everything, every node in memory.
    tests: test_many_threads_share_flushes_and_lose_nothing test_cache_stays_under_its_bound_while_a_large_tree_is_read
14. Damage and failed writes ended the process.
    tests: test_every_flipped_bit_of_a_small_image_gives_an_error_or_the_right_answer
        test_eio_at_every_device_call_never_loses_what_was_acknowledged
15. A log that could not be opened was ignored.
    tests: test_a_log_without_its_heads_is_found_again test_flipped_byte_of_a_closed_log_is_always_rot
        test_the_log_head_of_another_image_is_not_believed
16. Blocks were written with whatever memory held behind the record.
    tests: test_nothing_removed_is_left_in_the_image test_after_any_crash_and_a_wipe_nothing_removed_is_left
17. One stray entry of the log ended the mount.
    tests: test_an_older_lap_behind_the_end_is_stale test_garbage_behind_the_end_is_torn_and_gone_after_the_next_append
"""

from __future__ import annotations

import re
import threading
from pathlib import Path

from mdstore.device.memory import MemoryDevice
from mdstore.limits import MIB
from mdstore.store.store import Store
from mdstore.store.transaction import HINT_UNCHECKED, Op, Transaction
from tests.conformance.subjects import everything

TESTS = Path(__file__).resolve().parents[1]


def make() -> Store:
    store = Store.create(MemoryDevice(16 * MIB), log_bytes=MIB, background=False)
    store.apply(Transaction().create_collection("c"))
    return store


def killed(store: Store) -> Store:
    assert isinstance(store.device, MemoryDevice)
    return Store.open(MemoryDevice.from_bytes(store.device.image()), background=False)


def test_every_defect_names_tests_that_exist() -> None:
    defined = {name for path in TESTS.rglob("test_*.py") for name in re.findall(r"^def (test_\w+)\(", path.read_text(), re.M)}
    rows = re.split(r"^(\d+)\. ", __doc__ or "", flags=re.M)[1:]
    assert [int(number) for number in rows[::2]] == list(range(1, 18))
    for row in rows[1::2]:
        names = set(re.findall(r"\btest_\w+", row))
        assert names, row
        assert names <= defined, names - defined


def test_every_operation_of_a_transaction_comes_back_from_the_log() -> None:
    store = make()
    store.apply(Transaction().write("c", "o", 0, b"x" * 9000).touch("c", "gone"))
    store.apply(Transaction().map_set("c", "o", {b"%d" % number: b"v" for number in range(9)}))
    store.apply(Transaction(rev=1).setattr("c", "o", "kept", b"").at_revision(2).setattr("c", "o", "kept", b"2"))
    store.checkpoint()
    change = Transaction().noop().create_collection("d").create_collection("e").remove_collection("e").create_collection("f")
    change.create("c", "new").touch("d", "touched").write("c", "new", 10, b"data")
    change.write("c", "large", 0, bytes(range(256)) * 1024)
    change.zero("c", "o", 100, 5000).truncate("c", "o", 8500).remove("c", "gone").clone("c", "o", "clone")
    change.clone_range("c", "o", "part", 8000, 400, 3).rename("c", "clone", "d", "moved")
    change.alloc_hint("c", "new", 1, 1, HINT_UNCHECKED)
    change.setattr("c", "new", "a", b"1").setattr("c", "new", "b", b"2").rmattr("c", "new", "a")
    change.map_set("c", "new", {b"k": b"v", b"l": b"w"}).map_remove("c", "new", [b"k"]).map_remove_range("c", "o", b"3", b"6")
    change.map_set_header("c", "o", b"header").map_clear("d", "moved").set_floor(7, "c", name="fenced")
    change.at_revision(9).write("c", "o", 0, b"nine").remove_revision("c", "o", 1).trim_revisions("c", "o", 2)
    change.split("c", 1, 1, "f").merge("f", "d")
    used = {operation[0] for operation in change.operations}
    assert used == set(Op) - {Op.WRITE_MAPPED}, "which stands in the log for the large write"
    store.apply(change)
    found = killed(store)
    assert everything(found) == everything(store)
    assert dict(found.tables.floors) == dict(store.tables.floors)
    assert found.stat("c" if found.exists("c", "new") else "d", "new").checksum == "none"


def test_a_collection_is_removed_beside_readers_that_list_it() -> None:
    store, stop = make(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            for collection in store.list_collections():
                if collection == b"c":
                    store.list_objects("c")

    def remove() -> None:
        for _ in range(200):
            store.submit(Transaction().create_collection("d").touch("d", "o"))
            store.submit(Transaction().remove("d", "o").remove_collection("d"))

    threads = [threading.Thread(target=read), threading.Thread(target=remove)]
    for thread in threads:
        thread.start()
    try:
        threads[1].join()
    finally:
        stop.set()
    threads[0].join()
    assert store.list_collections() == [b"c"]


def test_a_small_write_at_a_high_offset_takes_little_space() -> None:
    store = make()
    store.checkpoint()
    free = store.statistics()["free_bytes"]
    store.apply(Transaction().write("c", "o", 1 << 50, b"far away"))
    store.checkpoint()
    assert free - store.statistics()["free_bytes"] < 64 * 1024
    assert store.read("c", "o", (1 << 50) - 2, 100) == b"\0\0far away"


def test_names_of_attributes_may_hold_any_byte() -> None:
    store = make()
    names = {bytes([byte, 0, byte]): bytes([byte]) for byte in range(256)} | {b"\0": b"", b"\0\0": b"\0"}
    transaction = Transaction()
    for name, value in names.items():
        transaction.setattr("c", "o", name, value)
    store.apply(transaction)
    assert killed(store).getattrs("c", "o") == names


def test_a_log_without_its_heads_is_found_again() -> None:
    store = make()
    for _ in range(3):
        store.checkpoint()
        store.apply(Transaction().touch("c", "acknowledged"))
    assert isinstance(store.device, MemoryDevice)
    image, block = store.device.image(), store.superblock.block_size
    start = store.superblock.log_start * block
    heads = Store.open(MemoryDevice.from_bytes(image[:start] + bytes(2 * block) + image[start + 2 * block :]), background=False)
    assert heads.exists("c", "acknowledged")
