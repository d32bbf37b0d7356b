"""The compiled kernel: CRC-32C, the page cache, copy-on-write B+trees, cursors. The contract its users build on.

End the threads that change a tree before the interpreter ends. It stops those that are daemons wherever they are, also with the
tree's lock, in the middle of a device's `read`, say; a finalizer that then uses this tree waits for ever. The calls of a store
look whether a thread was stopped inside before they come here (store/exiting.py).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Self, final

from mdstore.device.protocol import Buffer, Device

Run = tuple[int, int]  # (first page address, pages); an address is a page number: byte offset / page_size
Freed = tuple[int, int, int]  # (first page address, pages, generation that wrote them)

COMPARE_BYTES: int  # 1
COMPARE_U64_LE: int  # 2
COMPARE_U64_BE: int  # 3
COMPARE_I64: int  # 4
COMPARE_REVERSE: int  # 5
COMPARE_PAIR: int  # 6
PAGE_HEADER_SIZE: int
REFS_DESCRIPTOR: Descriptor  # what Pager.refs must be

def crc32c(data: Buffer, value: int = 0) -> int:
    """CRC-32C of any buffer, continuing from `value`. InvalidRequest: `value` is no number of 32 bits. TypeError, here and
    wherever the kernel takes a number: it is no whole one."""

def crc32c_table(data: Buffer, value: int = 0) -> int:
    """The same number as `crc32c` by tables, as on a processor without the instruction; for tests."""

def fail_memory(after: int, failures: int = 1) -> int:
    """Let the next `after` allocations of the kernel succeed and `failures` then fail; for tests. -1: none fails. Returns
    how many have failed since the last call."""

def bound_memory(largest: int) -> int:
    """Have every allocation of the kernel of more than `largest` bytes fail, until called with -1; for tests. Returns how many
    allocations have failed since the last call."""

def call_at_refusal(hook: Callable[[], object]) -> None:
    """Have the next key that the descent of a group does not take to a leaf, since a view reaches a page of its path, call `hook`
    before the next key of the group is looked at; for tests. In the thread that puts, with the tree's lock held."""

def call_in_walk(hook: Callable[[], object]) -> None:
    """Have the next step of a walk over pages call `hook` while it looks at a child; for tests. In the thread that walks, with
    the lock held that keeps pages from being evicted."""

def call_between(operation: str, hook: Callable[[], object]) -> None:
    """Have the next operation of that name call `hook` in its middle; for tests. "seal": with the tree's lock held, between
    sealing the pages and making the root record; "clone": as soon as the tree's lock was let go."""

def compare_torn(descriptor: Descriptor, key: bytes, memory: bytes, size: int) -> int:
    """How `key` compares (below zero, zero, above) with the cell in the first `size` bytes of `memory`, whatever they hold; for
    tests."""

def call_where_threads_meet(hook: Callable[[str], object] | None) -> None:
    """Have `hook(place)` called wherever a thread could meet another, until None is given; for tests. "read": a
    reader has read a leaf and looks at the leaf's version next; "counted": a count knows one of its borders in a leaf; "wait": a
    lock or a latch is taken, and is waited for after the hook; "aside": a page will be read with no lock held; "file": a
    descriptor is read next, and not closed before. In the thread that is there, with the locks it holds."""

def is_free(tree: TreeView) -> bool:
    """Whether an operation of another thread would get the tree's lock and the pager's for itself at once; for tests."""

def hold(tree: TreeView, lock: str, key: bytes, taken: bool) -> None:
    """Take a lock (or let go of it) as an operation of another thread would; for tests. "leaf": the latch of the leaf of `key`,
    which is in memory; "tree", "tree shared", "pager", "pager shared": their reader-writer words."""

def key_size_max(page_size: int, copies: int = 1) -> int:
    """The longest key a tree with such pages takes: at least three of them fit in an index page."""

def crc32c_blocks(data: Buffer, block_size: int) -> bytes:
    """CRC-32C of each `block_size` bytes of `data` (the last may be short), packed as little-endian u32."""

def read_blocks(pager: Pager, offset: int, length: int, block_size: int) -> tuple[bytes, bytes] | None:
    """`length` bytes (whole blocks) of the pager's device from `offset` on, and the CRC-32C of each block as `crc32c_blocks`
    gives them. What is cached is not looked at.

    Without the interpreter lock. None when the device has no descriptor or could not be read, ends before, or the pager is
    closed: read it by other means to learn why. InvalidRequest: not whole blocks.
    """

@final
class Descriptor:
    """What a tree is. Kept in its root record; opening with another one is refused.

    key_size, value_size: > 0 fixed; -1, -2, -4: that many bytes of length prefix; value_size 0: a set.
    embed_limit: bytes of records up to which the whole tree lives inside its root record (0: never), as long as they also fit
    one leaf page (docs/format/tree-root.md).
    copies: how many addresses every page reference holds, 1 to 3.
    """

    key_size: int
    value_size: int
    comparator: int
    duplicates: bool
    copies: int
    embed_limit: int
    def __init__(
        self,
        key_size: int = -2,
        value_size: int = -4,
        *,
        comparator: int = 1,
        duplicates: bool = False,
        copies: int = 1,
        embed_limit: int = 0,
    ) -> None: ...

@final
class Pager:
    """A bounded cache of checksummed pages over one device, shared by every tree of an image.

    `generation` is stamped into the pages sealed next, and pinned by every snapshot, cursor and iterator while it lives. It never
    falls (InvalidRequest). A tree whose pages are of a later one is read, but not changed (CorruptionError): pages that name
    younger ones would be damage to whoever reads them.
    """

    generation: int
    cache_bytes: int
    page_bounds: tuple[int, int]
    """(first, end): addresses that pages may have; (0, 2**48) until its owner says otherwise, who keeps other things in front of
    them, or behind. Elsewhere no damaged copy is written anew and no page is handed over as freed, whatever a reference says
    (CorruptionError). InvalidRequest: first above end, or end above 2**48."""
    refs: Tree | None
    """The tree (REFS_DESCRIPTOR) that counts, for each address, the trees beyond one that reach it. `Tree.clone` needs it; its
    owner seals it after every other tree, keeps its root with theirs, and sets it again on opening."""

    @property
    def device(self) -> Device: ...
    def __init__(self, device: Device, *, page_size: int = 16384, cache_bytes: int = 64 << 20) -> None:
        """`page_size`: bytes of every page and the unit of addresses, a power of two from 256 to 65536. Larger pages make puts,
        scans and trees in memory quicker and smaller; smaller ones write less where a seal finds few changes in each page
        (docs/performance.md has figures). A store's pages are its blocks, 4096 bytes unless it was made with others.
        An image read with pages of another size than it was written with looks damaged. `cache_bytes`: memory for clean
        pages; dirty ones are not counted in it. TypeError: the device has a descriptor, and no `lend` of its own."""
    @property
    def page_size(self) -> int: ...
    @property
    def dirty_bytes(self) -> int:
        """Memory of pages and long values of trees that no seal has reached yet, plus that of sealed ones not yet written: what
        is still to be written. 0 when every tree has been sealed and `write_sealed` has returned, whatever views hold."""
    @property
    def held_bytes(self) -> int:
        """Memory of pages and long values that a tree has changed, or let go of, before a seal reached them, while a view
        (snapshot, iterator, cursor) held them: they are never written. 0 when no view is left. Neither this nor `dirty_bytes` is
        bounded by `cache_bytes`."""
    @property
    def sealed_pages(self) -> int: ...
    @property
    def oldest_pinned_generation(self) -> int | None:
        """The smallest generation a living snapshot, cursor or iterator holds; None when there is none."""
    @property
    def pinned_generations(self) -> list[int]:
        """Every generation that a living snapshot, cursor or iterator holds, ascending, each once. Such a reader reaches no page
        of a later generation, and none that was freed in an earlier one."""
    def write_sealed(self, max_bytes: int = -1) -> int:
        """Write sealed pages, in address order, merged into large sequential writes, without the GIL; returns the bytes
        written. Not durable until the device is flushed. A failure raises DeviceFailed and the pages stay sealed. One thread at a
        time: another waits, and writes what is left then; so on return without a bound all that was sealed before is written."""
    def take_freed(self) -> list[Freed]:
        """Pages that the trees stopped reaching since the last call. The owner may reuse them only after a root that
        does not reach them is durable and no generation is pinned from the one that wrote them to the one they were freed in.
        All of them lie on the device, or were given by the owner: a change that would give up another address is refused
        (CorruptionError)."""
    def counters(self) -> dict[str, int]:
        """hits, misses, evictions, pages_read, pages_written, bytes_read, bytes_written, splits, merges, rotations,
        cached_bytes, dirty_pages, dirty_bytes, held_bytes, copies_repaired, copies_left (damaged, and not written anew: another
        page lies there, or none may, or the device refused), ..."""
    def close(self) -> None:
        """Refuse further reads and writes of the device: StoreClosed. Nothing is written; what it counts can still be asked.

        No read of the device's descriptor is under way on return, so that it may be closed: a device calls this from its own
        `close`. Interrupted while it waits, it has refused already; called again, it waits again."""

@final
class RecordCursor:
    """A place among the records of a tree as it was when `TreeView.cursor` made it; moves both ways. Pins its generation until
    `close` (or garbage collection). What each step costs in pages, its docstring says.

    A move that cannot read a page of the tree (CorruptionError, DeviceFailed) loses the place: `record` is None, and `next` and
    `prev` raise InvalidRequest until `first`, `last` or `seek` found another. Where only the pages of a spilled value cannot be
    read, the move is made: it raises, `record` raises again, and `next` and `prev` go on from there."""

    def first(self) -> tuple[bytes, bytes] | None: ...
    def last(self) -> tuple[bytes, bytes] | None: ...
    def seek(self, key: bytes) -> tuple[bytes, bytes] | None:
        """Go to the first record at or after `key`; where there is none the place is behind the last, and None is returned."""
    def next(self) -> tuple[bytes, bytes] | None:
        """Go to the next record; of a fresh cursor, the first. None behind the last one, from where `prev` gives the last."""
    def prev(self) -> tuple[bytes, bytes] | None:
        """Go to the record before; of a fresh cursor, the last. None before the first one, from where `next` gives the first."""
    @property
    def record(self) -> tuple[bytes, bytes] | None:
        """The record at the place; None beside the ends and in a fresh cursor."""
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...

class TreeView:
    """Reads of a tree as it was at one moment. Never blocks a writer, never blocked by one. Pins its generation until
    `close` (or garbage collection). The docstring of each operation in the module says what it costs in pages; one test
    holds all of them against the counters (tests/unit/test_btree_costs.py)."""

    def __len__(self) -> int: ...
    def __contains__(self, key: bytes) -> bool: ...
    def get(self, key: bytes, default: bytes | None = None) -> bytes | None: ...
    def get_many(self, keys: Iterable[bytes]) -> list[bytes | None]: ...
    def get_all(self, key: bytes) -> list[bytes]:
        """Every value of `key` in order: one at most without duplicates."""
    def read(self, key: bytes, offset: int = 0, length: int = -1) -> bytes | None:
        """Bytes of a value from `offset` (to its end where `length` is -1, or `length` of them), short at the end; None where
        there is no such key. InvalidRequest: another number below zero.
        Of a spilled value only the pages that hold the range are read.

        Memory of more than a megabyte is had only once the device is known to hold so much, and the last index page of each
        level to name the pages that follow from the length: CorruptionError where not. So it is wherever long values are read."""
    def count(self, start: bytes | None = None, stop: bytes | None = None) -> int:
        """Records with start <= key < stop. Costs two paths from the root, and the pages that no seal has reached."""
    def union(self, other: TreeView) -> Iterator[bytes]:
        """Keys of either tree, each once, in order. Both are read as they are now. InvalidRequest: comparators differ.
        An error on the way (CorruptionError, DeviceFailed) ends the iteration: StopIteration follows."""
    def intersection(self, other: TreeView) -> Iterator[bytes]: ...
    def difference(self, other: TreeView) -> Iterator[bytes]: ...
    def first(self) -> tuple[bytes, bytes] | None: ...
    def last(self) -> tuple[bytes, bytes] | None: ...
    def seek(self, key: bytes, *, reverse: bool = False) -> tuple[bytes, bytes] | None:
        """The first record at or after `key` (reverse: the last at or before it)."""
    def items(
        self, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Records with start <= key < stop in order (reverse: the same range from its end). Stable under writers: the
        tree as it was when the iterator was made. A page of the tree that cannot be read (CorruptionError, DeviceFailed) ends the
        iteration: StopIteration follows. A spilled value that cannot be read does not: the next record follows, and `keys` gives
        its key."""
    def keys(self, start: bytes | None = None, stop: bytes | None = None, *, reverse: bool = False) -> Iterator[bytes]: ...
    def prefix(self, prefix: bytes, *, reverse: bool = False) -> Iterator[tuple[bytes, bytes]]: ...
    def cursor(self) -> RecordCursor: ...
    @property
    def user_blob(self) -> bytes: ...
    @property
    def pager(self) -> Pager: ...
    def snapshot(self) -> TreeView: ...
    def __iter__(self) -> Iterator[bytes]: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def close(self) -> None:
        """Release the pages and the pinned generation; later calls raise StoreClosed, but for `close`; `pager`, and of a tree
        `descriptor`, can still be asked. Iterators and cursors made before stand on views of their own, and go on."""

@final
class PackedPairs:
    """Pairs of key and value, copied once into the bytes that the store's log has for them, with the order in which a tree takes
    them fastest: neighbours together, pairs of one key as they were given. Iterating gives them in the order given.

    Cost: 12 ns a pair of 108 bytes, and 27 bytes of memory besides the keys and values. For a thread's use after it is made: any.
    """

    longest_key: int
    longest_value: int
    payload_bytes: int  # keys and values together
    def __init__(self, items: Iterable[tuple[Buffer, Buffer]], room: int = 0) -> None:
        """`room`: the length of the prefix that `encoded` will get, which then copies nothing the first time; 0 to
        TRANSACTION_BYTES_MAX, else InvalidRequest.

        Naming the pair by its number from 0: TypeError for what is no pair of buffers, InvalidRequest for an empty key,
        LimitExceeded (MAP_KEY_MAX, MAP_VALUE_MAX). LimitExceeded (TRANSACTION_BYTES_MAX) for all of them together;
        InvalidRequest for a list that changed meanwhile."""
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[bytes, bytes]]: ...
    def encoded(self, prefix: bytes = b"") -> bytes:
        """`prefix`, and a MessagePack array of arrays of two byte strings. Cost: one copy, or none (`room`)."""
    def values_above(self, size: int) -> list[int]:
        """The sizes of the values longer than `size`, in no order."""

@final
class Tree(TreeView):
    """A mutable tree. Writes change memory only; `seal` gives the dirty pages addresses and checksums and returns the
    root record that the owner makes durable. All methods may be called from any thread.

    Leaves are full to 0.80 or more after insertions in random order (trees of 400 leaves or more, with room for 30 records or
    more in a leaf) and to 0.95 in ascending or descending order (20 records or more). After nine of ten records were deleted at
    random a tree has at most twice the pages of a bulk build (15 records or more). Larger records leave room that holds none:
    docs/performance.md."""

    def __init__(self, pager: Pager, descriptor: Descriptor, tree_id: int) -> None:
        """A new, empty tree. `tree_id` is stamped in its pages; the owner never gives one out twice."""
    @classmethod
    def open(cls, pager: Pager, root: bytes, expect: Descriptor | None = None) -> Tree:
        """The tree that a root record names. Costs no page read. UnsupportedFormat: unknown version or comparator, or a
        descriptor other than `expect`; CorruptionError: the record makes no sense."""
    @property
    def descriptor(self) -> Descriptor: ...
    @property
    def tree_id(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def is_dirty(self) -> bool: ...
    @property
    def dirty_pages(self) -> int:
        """Pages the next `seal` will ask for (overflow pages and copies included; 0 for a tree that stays embedded)."""
    def put(self, key: bytes, value: bytes = b"") -> bool:
        """Set the value; True when the key was there before (with duplicates: the pair; key + value + 2 bytes then share the
        key's limit). LimitExceeded over a limit, nothing changed."""
    def delete(self, key: bytes) -> bool:
        """True when the key was there."""
    def write(self, key: bytes, offset: int, data: bytes) -> None:
        """Overwrite bytes of a value from `offset`, growing it (a gap reads as zeros); without data nothing changes, wherever
        `offset` lies. NotFound without the key. LimitExceeded, InvalidRequest: the value would be longer than it may. Of a
        spilled value only the pages written, and the index pages above them, are read and written anew."""
    def delete_value(self, key: bytes, value: bytes) -> bool:
        """Remove one value of a key in a tree with duplicates; True when it was there."""
    def update(self, items: Iterable[tuple[bytes, bytes]] | Mapping[bytes, bytes] | PackedPairs) -> int:
        """Put many, without the interpreter lock, a thousand at a time; returns how many keys were new. A record that is
        refused (TypeError, InvalidRequest, LimitExceeded, naming it by its number from 0) leaves the thousands before it in the
        tree, and so does an error of the iterator itself."""
    def fetch(self, pairs: PackedPairs) -> None:
        """Have every page in memory, read and checked, that `update` of these pairs looks at, as far as the cache can hold them.
        Without the interpreter lock. Cost: a descent each, and reading what has spilled. CorruptionError, DeviceFailed;
        LimitExceeded, InvalidRequest: `update` would refuse one of them."""
    def delete_many(self, keys: Iterable[Buffer]) -> int:
        """Remove many; how many were there. Refusals as `update`'s: the thousands before are removed."""
    def delete_range(self, start: bytes | None = None, stop: bytes | None = None) -> int:
        """Remove start <= key < stop, dropping whole subtrees without reading their leaves where nothing spilled."""
    def clear(self) -> None:
        """Remove everything and free every page."""
    def bulk_load(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Fill an empty tree from ascending records, at full leaves. Refusals name the record by its number from 0; the tree is
        empty then."""
    @property
    def user_blob(self) -> bytes: ...
    @user_blob.setter
    def user_blob(self, blob: bytes) -> None: ...
    def clone(self) -> Tree:
        """Another mutable tree with the same content and the same tree id: sealed pages are shared and counted in `Pager.refs`,
        dirty ones are copied in memory; O(1) for a tree just sealed. Drop a clone with `clear`, so that its pages are no
        longer counted. InvalidRequest where the pager has no `refs`."""
    def seal(self, allocate: Callable[[int], Sequence[Run]]) -> bytes:
        """Freeze the tree as it is: ask `allocate(dirty_pages)` for runs that hold exactly that many pages, give every dirty
        page its address (children before parents, neighbours side by side), compute the checksums up to the root, and
        return the root record. No I/O. Later writes copy the pages they touch. With no dirty page `allocate` is not
        called."""
    def seal_leaves(self, allocate: Callable[[int], Sequence[Run]], start: int, pages: int) -> int:
        """Do a part of the next `seal` ahead of it: give at most `pages` dirty leaves their addresses and checksums, beginning
        below the `start`-th dirty page of the level above them (first 0). Returns where to go on, -1 when all were passed.

        The tree stays dirty, and nothing is reached by the addresses before `seal` has run in the same generation. A leaf that
        is written again gets a copy, and its address is freed. No I/O."""
    def root(self) -> bytes:
        """The root record of the last seal (InvalidRequest while the tree is dirty and never sealed)."""
    def check(self) -> list[str]:
        """Every violated invariant of the whole tree, in words; empty when sound. Reads every page."""
    def pages(self) -> Iterator[tuple[int, int, int]]:
        """(first page address, pages, level) of every page and overflow run reached, for free-space checks. A dirty page
        that has no address yet is left out."""
