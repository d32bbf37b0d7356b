"""The object store: objects of data, attributes and maps; transactions; a write-ahead log; checkpoints; recovery."""

from mdstore.store.store import Store
from mdstore.store.transaction import Transaction

__all__ = ["Store", "Transaction"]
