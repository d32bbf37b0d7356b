"""The object store: objects of data, attributes and maps; transactions; a write-ahead log; checkpoints; recovery."""
