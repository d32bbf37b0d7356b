"""Repairing an image: diagnosis by the second reader, changes by whichever part is not the one that judges them.

| module     | what it does                                                                                        |
|------------|-----------------------------------------------------------------------------------------------------|
| shadow     | a device over the image that keeps every write to itself, in order: plans are carried out on it      |
| record     | the repair file: what was there, what will be there (docs/format/repair-file.md)                    |
| perform    | carrying a repair file out, finishing one that was interrupted, taking one back                     |
| planning   | the rounds: check, repair what was found, check again; the plan and what it leaves                  |
| superblocks| copies from copies, lost ones from anywhere on the device                                           |
| ring       | the store's log: heads, damaged entries, entries that do not fit the state                          |
| encode     | pages, roots, records and superblocks, from the format pages                                        |
| build      | trees from records in order, and trees from what is left of their pages                             |
| usage      | what every block is used for, as the trees say                                                      |
| trees      | trees that lost pages; records that make no sense                                                   |
| counts     | free space, reference counts, groups and totals, from what the trees use                            |
| contents   | data that does not match its checksum; bytes behind an object's end                                 |
| events     | the metadata server's log: heads, damaged events; writing back what it holds                        |
| names      | the name space as a whole, in memory                                                                |
| mend       | what is wrong with it, and setting it right: links, orphans, duplicates, statistics, tables         |
| command    | `mdstore repair`                                                                                    |

Everything below the objects (superblocks, log, trees, counts) is written by plain Python and then opened by the engine;
everything above goes through the engine's transactions and is then judged by the second reader.
"""
