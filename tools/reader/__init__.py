"""The second reader: decodes an image from the format pages alone.

Nothing here imports the engine (`mdstore.btree`, `device`, `store`, `engines`, `mds`) or `journal`: a bug of the code that
writes an image cannot hide itself in the code that checks it. `mdstore.errors` is the only other part of mdstore in use.

| module       | page                                     | what it decodes                                          |
|--------------|------------------------------------------|----------------------------------------------------------|
| image        |                                          | bytes of the file or device, read only                    |
| superblock   | docs/format/superblock.md                | the four copies, and which one counts                     |
| page, tree   | docs/format/page.md, tree-root.md        | pages, root records, records in order with bounded memory |
| named        | docs/format/page.md                      | what a reference says of the block that it names          |
| onode, store | docs/format/onode.md                     | collections, objects, extents                             |
| snapshots    | docs/format/snapshots.md                 | snapshots of the store, and what only they hold           |
| entry, ring  | docs/format/journal.md, journal-head.md  | heads, entries, where a log ends and why                  |
| storelog     | docs/format/store-log.md                 | transactions of the store's log                           |
| overlay      | docs/format/store-log.md                 | what the objects are once the log is replayed             |
| mds*         | docs/format/mds-*.md                     | the metadata server's objects and events                  |

The checks (`check` runs them): check_superblock, check_log, check_store (trees and objects), check_space and
check_sharing (space and reference counts, docs/format/space.md, shares.md), check_snapshots, check_events, check_names and
check_links (the name space). `kinds` says what each finding means; `views` and `mds_views` are what `mdstore dump` shows.

Decoders raise `Damage`, which carries a code of `problems.KINDS`; checkers turn it into a `Problem` and go on.
"""
