"""The one place that touches files and block devices.

`Device` is the seam; `FileDevice`, `MemoryDevice` and `FaultyDevice` implement it.
"""
