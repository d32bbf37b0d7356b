# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: embedsignature=False, binding=False, auto_pickle=False
"""The compiled kernel: CRC-32C, the page cache, copy-on-write B+trees, cursors. `_kernel.pyi` is its contract.

Read in this order. A page: layout.pxi, keys.pxi, search.h (finding a key in it), edit.pxi (changing it in place), check.pxi (what is
checked after a read); in memory: node.pxi, held.pxi; what goes wrong: fault.pxi. The cache: pager.pxi, copies.pxi (read-repair), evict.pxi,
aside.pxi (reading with no lock held), ahead.pxi (and before one is taken).
Changing: release.pxi (what a change gives up), own.pxi (copy before change), spill.pxi, patch.pxi and write.pxi (long values, whole
and by range), balance.pxi, split.pxi, merge.pxi (where cells go), tree.pxi (find, put, delete). seal.pxi and root.pxi: addresses,
checksums, the root record. Reading: read.pxi, batch.pxi, cursor.pxi. What Python sees: api.pxi (functions, errors, descriptor),
packed.pxi (what bulk writes carry), cache.pxi, view.pxi, iterate.pxi, plan.pxi (seals), bulk.pxi (many
records), mutable.pxi, walk.pxi. blocks.pxi (data of objects) knows only the device.

Threads. Everything above api.pxi in the list of includes runs without the interpreter lock and touches no Python object (a device without a
descriptor is the one exception: it takes the lock for its read). Locks and their order are stated in pager.pxi (G3). A single
operation tries its locks with the interpreter lock held; if one is taken, a page has to be read, or the tree's shape must
change, it lets the interpreter go on and does its work without it.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from libc.errno cimport EINTR, errno
from libc.stdint cimport int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport bsearch, free, qsort
from libc.string cimport memcmp, memcpy, memmove, memset

from collections.abc import Mapping
from operator import index
from sys import is_finalizing
from threading import RLock

from mdstore.device.protocol import lends
from mdstore.errors import (
    CorruptionError, DeviceFailed, InvalidRequest, LimitExceeded, MdstoreError, NotFound, StoreClosed, UnsupportedFormat,
)
from mdstore.limits import MAP_KEY_MAX, MAP_VALUE_MAX, TRANSACTION_BYTES_MAX, USER_BLOB_MAX, VALUE_SIZE_MAX

cdef extern from "<unistd.h>" nogil:
    ctypedef long off_t
    ctypedef long ssize_t
    ssize_t pread(int fd, void *buf, size_t count, off_t offset)
    int getpid()

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t preadv(int fd, const iovec *iov, int iovcnt, off_t offset)

cdef extern from "<fcntl.h>" nogil:
    int posix_fadvise(int fd, off_t offset, off_t size, int advice)
    int POSIX_FADV_WILLNEED

cdef extern from "crc32c.h" nogil:
    void crc32c_setup()
    uint32_t crc32c_update(uint32_t value, const void *data, size_t n, int software)

cdef extern from "memory.h" nogil:
    void *take(size_t size)
    void *take_zeroed(size_t n, size_t size)
    void *take_more(void *old, size_t size)
    void *take_aligned(size_t size)
    int64_t memory_failed
    void memory_fail(int64_t after, int64_t failures)
    void memory_bound(int64_t largest)

cdef extern from "sync.h" nogil:
    uint16_t ld16(const void *p)
    uint32_t ld32(const void *p)
    uint64_t ld64(const void *p)
    void st16(void *p, uint16_t v)
    void st32(void *p, uint32_t v)
    void st64(void *p, uint64_t v)
    uint32_t be32(uint32_t v)
    uint64_t be64(uint64_t v)
    void prefetch(const void *p)
    void prefetch_node(const void *p)
    void prefetch_gap(const void *p)
    int32_t at_add32(int32_t *p, int32_t v)
    int32_t at_get32(int32_t *p)
    void at_set32(int32_t *p, int32_t v)
    int at_inc_living(int32_t *p)
    int64_t at_add64(int64_t *p, int64_t v)
    int64_t at_get64(int64_t *p)
    void at_set64(int64_t *p, int64_t v)
    uint8_t at_get8(uint8_t *p)
    void at_set8(uint8_t *p, uint8_t v)
    void *at_getp(void *p)
    void at_setp(void *p, void *v)
    int at_casp(void *p, void *expected, void *v)
    int rw_try_shared(uint64_t *w)
    void rw_lock_shared(uint64_t *w)
    void rw_lock_shared_again(uint64_t *w)
    void rw_unlock_shared(uint64_t *w)
    void rw_unlock_shared_adding(uint64_t *w, int64_t amount)
    void rw_tally_add(uint64_t *w, int64_t amount)
    int64_t rw_tally(uint64_t *w)
    int rw_try_exclusive(uint64_t *w)
    void rw_lock_exclusive(uint64_t *w)
    void rw_unlock_exclusive(uint64_t *w)
    int rw_shut(uint64_t *w)
    void spin_lock(uint32_t *w)
    void spin_unlock(uint32_t *w)
    int MEET_READ, MEET_COUNTED, MEET_WAIT, MEET_ASIDE, MEET_FILE
    void meet(int place)
    void (*meeting)(int place) noexcept nogil
    uint32_t latch_read(uint32_t *v)
    void race_begin()
    void race_end()
    int latch_same(uint32_t *v, uint32_t seen)
    void latch_lock(uint32_t *v)
    void latch_unlock(uint32_t *v)

cdef extern from "search.h" nogil:
    int PAGE_COUNT, PAGE_SKIP, PAGE_SLOTS
    int lower_slot(const uint8_t *slots, int lo, int hi, uint32_t head)
    int compare_keys(const uint8_t *a, int alen, const uint8_t *b, int blen, int same)
    uint32_t first_four(const uint8_t *p, int n)
    int find_plain(const uint8_t *page, int cap, int lo, const uint8_t *key, int klen, bint *found)

cdef extern from "Python.h":
    PyObject *bytes_or_null "PyBytes_FromStringAndSize"(const char *data, Py_ssize_t size)
    void PyErr_Clear()
    int PyErr_CheckSignals() except -1
    int Py_AddPendingCall(int (*call)(void *) except -1, void *argument)

cdef struct TreeCore

include "fault.pxi"
include "layout.pxi"
include "edit.pxi"
include "node.pxi"
include "held.pxi"
include "check.pxi"
include "copies.pxi"
include "pager.pxi"
include "evict.pxi"
include "release.pxi"
include "own.pxi"
include "spill.pxi"
include "balance.pxi"
include "split.pxi"
include "merge.pxi"
include "patch.pxi"
include "write.pxi"
include "aside.pxi"
include "tree.pxi"
include "ahead.pxi"
include "seal.pxi"
include "root.pxi"
include "read.pxi"
include "batch.pxi"
include "cursor.pxi"
include "api.pxi"
include "packed.pxi"
include "cache.pxi"
include "view.pxi"
include "iterate.pxi"
include "plan.pxi"
include "bulk.pxi"
include "mutable.pxi"
include "walk.pxi"
include "blocks.pxi"

REFS_DESCRIPTOR = Descriptor(8, 4, comparator=COMPARE_U64_BE)
