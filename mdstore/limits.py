"""Every limit of mdstore in one table: name, value, why, and what happens there.

Limits are checked at the border, before anything is logged; `LimitExceeded` names the constant below.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40

# -- image -------------------------------------------------------------------------------------------------------------
BLOCK_SIZE_DEFAULT: Final = 4096  # one page of a tree, one unit of allocation, one checksum of data
BLOCK_SIZE_MIN: Final = 256  # tiny geometry for tests; real images use 4096
BLOCK_SIZE_MAX: Final = 65536  # a page's cell offsets are u16
IMAGE_BLOCKS_MAX: Final = 1 << 48  # block numbers are kept in 48 bits where they share a word
IMAGE_SIZE_MIN: Final = 64 * KIB  # superblocks, a log and a handful of pages

# -- trees -------------------------------------------------------------------------------------------------------------
KEY_SIZE_MAX: Final = 1024  # with 4 KiB pages at least three keys fit an index page; smaller pages lower it, see btree
VALUE_SIZE_MAX: Final = GIB  # a value larger than a quarter page spills to overflow extents
USER_BLOB_MAX: Final = 64 * KIB  # the blob committed with a root

# -- store -------------------------------------------------------------------------------------------------------------
SNAPSHOT_NAME_MAX: Final = 255  # bytes, any of the 256 values, at least 1
COLLECTION_NAME_MAX: Final = 255  # bytes, any of the 256 values, at least 1
OBJECT_NAME_MAX: Final = 512  # bytes, any of the 256 values, at least 1
ATTR_NAME_MAX: Final = 255  # bytes
ATTRIBUTES_MAX: Final = 65535  # of one object: counted in u16
ATTR_VALUE_MAX: Final = 64 * KIB
MAP_KEY_MAX: Final = 1000  # bytes; room for the tree's own prefix under KEY_SIZE_MAX
MAP_VALUE_MAX: Final = 256 * MIB
OBJECT_SIZE_MAX: Final = 1 << 60  # bytes of the data stream
REVISION_MAX: Final = (1 << 64) - 1  # a revision's number: u64 on disk
MOVED_OBJECTS_MAX: Final = 1 << 16  # objects and revisions one split or merge moves: they are in memory until a checkpoint
MOVED_BYTES_MAX: Final = 64 * MIB  # of their records, attributes included
TRANSACTION_OPS_MAX: Final = 1 << 20
TRANSACTION_BYTES_MAX: Final = GIB  # payload of one transaction

# -- name space --------------------------------------------------------------------------------------------------------
NAME_MAX: Final = 255  # bytes of one path component: ENAMETOOLONG
PATH_MAX: Final = 4096  # bytes of a path handed to the command line: ENAMETOOLONG
SYMLINK_MAX: Final = 4095  # bytes of a symlink's target: ENAMETOOLONG
XATTR_NAME_MAX: Final = 255  # bytes: ERANGE
XATTR_VALUE_MAX: Final = 64 * KIB  # bytes: E2BIG
XATTR_TOTAL_MAX: Final = 128 * KIB  # bytes of all names and values of one inode: ENOSPC
LINK_MAX: Final = 1 << 31  # links to one inode: EMLINK
SESSIONS_MAX: Final = 65536  # at a time: LimitExceeded
SESSION_NAME_MAX: Final = 255  # bytes of a client's name: LimitExceeded
SESSION_REQUESTS_MAX: Final = 4096  # done and not yet called old by the client, which must wait: LimitExceeded
FILE_SIZE_MAX: Final = 1 << 53  # bytes of one file (8 PiB): EFBIG
TIME_MAX_NS: Final = 9_223_372_036 * 10**9  # 2262-04-11: whole seconds that fit i64 nanoseconds; later times become this one
TIME_MIN_NS: Final = -TIME_MAX_NS  # 1677-09-21: earlier times become this one, as Linux clamps to what a file system keeps
OWNER_MAX: Final = (1 << 32) - 2  # a user's or group's number: EINVAL; chown's "leave it" is the one above
DEVICE_NUMBER_MAX: Final = (1 << 32) - 1  # major and minor of a device, as the kernel packs them: EINVAL
