"""Copy-on-write B+trees over checksummed pages: the compiled kernel. See `docs/format/page.md` and `tree-root.md`."""

from mdstore.btree._kernel import (
    COMPARE_BYTES,
    COMPARE_I64,
    COMPARE_PAIR,
    COMPARE_REVERSE,
    COMPARE_U64_BE,
    COMPARE_U64_LE,
    REFS_DESCRIPTOR,
    Descriptor,
    PackedPairs,
    Pager,
    Tree,
    TreeView,
    crc32c,
    crc32c_blocks,
    key_size_max,
    read_blocks,
)

__all__ = [
    "COMPARE_BYTES",
    "COMPARE_I64",
    "COMPARE_PAIR",
    "COMPARE_REVERSE",
    "COMPARE_U64_BE",
    "COMPARE_U64_LE",
    "REFS_DESCRIPTOR",
    "Descriptor",
    "PackedPairs",
    "Pager",
    "Tree",
    "TreeView",
    "crc32c",
    "crc32c_blocks",
    "key_size_max",
    "read_blocks",
]
