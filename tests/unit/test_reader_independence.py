"""The second reader shares no code with what it checks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_WALK = """
import pkgutil, importlib, sys
import mdstore.tools.fsck, mdstore.tools.dump, mdstore.tools.reader
for module in pkgutil.iter_modules(mdstore.tools.reader.__path__):
    importlib.import_module("mdstore.tools.reader." + module.name)
print("\\n".join(sorted(sys.modules)))
"""


def loaded_modules() -> set[str]:
    """Every module in memory once fsck, dump and each module of the reader are imported, in a fresh interpreter."""
    found = subprocess.run([sys.executable, "-c", _WALK], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(found.stdout.split())


def test_reader_fsck_and_dump_load_nothing_of_the_engine() -> None:
    loaded = loaded_modules()
    ours = {name for name in loaded if name == "mdstore" or name.startswith("mdstore.")}
    allowed = {
        "mdstore", "mdstore.errors", "mdstore.tools", "mdstore.tools.fsck", "mdstore.tools.dump", "mdstore.tools.present",
        "mdstore.tools.output",
    }  # fmt: skip
    assert {name for name in ours - allowed if not name.startswith(("mdstore.tools.reader", "mdstore.tools.report"))} == set()
    assert not {name for name in loaded if name == "journal" or name.startswith("journal.")}
    assert len([name for name in ours if name.startswith("mdstore.tools.reader.")]) > 20


def test_the_checksum_is_not_the_one_that_wrote_the_image() -> None:
    loaded = loaded_modules()
    assert "crcmod" in loaded
    assert not {name for name in loaded if name == "crc32c" or name.startswith("crc32c.")}


def test_the_checksum_runs_compiled() -> None:
    from mdstore.tools.reader import checksum

    assert checksum.is_compiled()
    assert checksum.crc32c(b"123456789") == 0xE3069283
