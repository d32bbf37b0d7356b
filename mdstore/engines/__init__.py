"""What can stand where the store stands: one small protocol, implemented by `btree:`, `lmdb:` and `mem:`."""
