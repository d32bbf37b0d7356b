"""One small pair into the map of one object: what a transaction does, in fewer steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from journal import JournalError
from mdstore.btree import Tree
from mdstore.store import log
from mdstore.store.onode import Onode

if TYPE_CHECKING:
    from mdstore.store.store import Store

_BLOCKS: Final = 64  # a bound of what a short put may take: Validator's for it, and more


class PairPuts:
    """Those of one store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._journal = store.journal
        self._objects = store.tables.objects
        self._find_cached = store.tables.objects.cached.get

    def put(self, held: bytes, onode: Onode, key: bytes, value: bytes, payload: bytes) -> int:
        """The short way of a transaction, without an epoch, that sets one small key of a map: `submit` in fewer steps.

        `held`: the key of `onode` in the object tree; `payload`: the transaction as `log.encode` gives it. Returns the
        position to `wait_durable` for; 0: nothing was done, and the long way will do it or say why not.
        """
        store, objects, journal = self._store, self._objects, self._journal
        with store.lock:  # of the store: a forked child has another
            tree = onode.map
            if tree is None or self._find_cached(held) is not onode or objects.changes & 1 or store.read_only or store.closing:
                return 0
            if store.room.blocks() < _BLOCKS or len(payload) + log.ENTRY_OVERHEAD > (journal.free or 0):
                return 0
            if tree.height > 1:
                tree.get(key)  # so that damage refuses the put before anything has changed
            begun = objects.changes
            try:
                objects.changes = begun + 1
                tree.put(key, value)
                if not onode.dirty:
                    objects.mark_dirty(onode)
                position = journal.append(payload, log.ENTRY_TRANSACTION)
                objects.changes = begun + 2
            except JournalError as error:
                raise store.latch(log.typed(error)) from error
            except Exception as error:
                store.latch(error)
                raise
            except BaseException:
                self._finish(begun, onode, tree, key, value, payload)
                raise
        if store.room.checkpoint_is_due():
            store.checkpointer.want()
        return position

    def _finish(self, begun: int, onode: Onode, tree: Tree, key: bytes, value: bytes, payload: bytes) -> None:
        """An interrupt came between two steps of `put`: all are done again, which changes nothing where they were done, and what
        is in memory is in the log. Under `lock`. A second interrupt meanwhile leaves `changes` odd (`Store.check_whole`)."""
        self._objects.changes = begun + 1
        tree.put(key, value)
        self._objects.mark_dirty(onode)
        self._objects.measure(onode)
        self._journal.append(payload, log.ENTRY_TRANSACTION)
        self._objects.changes = begun + 2
