"""The one place that touches files and block devices.

`Device` is the seam. `FileDevice` (files and block devices) and `MemoryDevice` stand behind stores in use;
`FaultyDevice` remembers every write and flush, injects faults, and with `crashstates` and `explore` proves recovery.
"""

from mdstore.device.file import FileDevice
from mdstore.device.memory import MemoryDevice
from mdstore.device.protocol import Device

__all__ = ["Device", "FileDevice", "MemoryDevice"]
