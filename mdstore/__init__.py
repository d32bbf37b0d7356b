"""mdstore: a journaling metadata server over a checksummed B-tree object store."""
