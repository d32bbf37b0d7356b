"""Repairing an image: diagnosis by the second reader, changes by whichever part is not the one that judges them.

| module                    | what it does                                                                               |
|---------------------------|--------------------------------------------------------------------------------------------|
| shadow                    | a device over the image that keeps every write to itself, in order: plans are made on it     |
| record, perform           | the repair file (docs/format/repair-file.md); carrying it out, ending one, taking it back    |
| untouched                 | whether anybody else wrote to the image since the repair file was made                     |
| planning, bench           | check, set right what was found, check again; what every part works with                     |
| superblocks, settle       | copies from copies; the superblock before, and checkpoints, by the engine                    |
| ring                      | the store's log: heads, damaged entries, entries that do not fit the state                   |
| encode, build             | pages, roots and records from the format pages; trees from records and leaves in order       |
| usage, counts, dead       | what every block is used for; free space, references, totals and snapshots' dead from that   |
| naming                    | everything that names certain blocks: live state, log, superblocks, snapshots               |
| restore                   | blocks that can be had exactly as they were, from elsewhere or by one bit; in snapshots too  |
| trees, salvage, extents   | trees that lost pages; a search for leaves; extents that point to the wrong blocks           |
| revisions                 | where kept states of objects begin                                                           |
| contents                  | bytes behind an object's end                                                                 |
| events                    | the metadata server's record and log                                                         |
| name_space, names         | the name space: read into memory as a whole, mended, written                                 |
| mend, mend_folders, mend_inodes, totals | where things hang, directories, inodes, sizes and statistics                   |
| writing                   | bringing the store to what was mended                                                        |
| command                   | `mdstore repair`                                                                             |

Everything below the objects (superblocks, log, trees, counts) is written by plain Python and then opened by the engine;
everything above goes through the engine's transactions and is then judged by the second reader.
"""
