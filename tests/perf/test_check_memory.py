"""fsck's memory does not grow with the image: two sorted streams side by side, no dictionary of everything."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mdstore.device.file import FileDevice
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.store.store import Store

FILES = 120_000
IN_ONE_DIRECTORY = 400
MEMORY_MAX = 120 << 20  # bytes resident; 87 MB were seen at a million files

# VmHWM is of this program alone; getrusage's figure survives exec and would be that of the (large) test process.
_CHECK = """
import sys
from mdstore.tools.cli import run
code = run(["fsck", "--deep", "--json", sys.argv[1]])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024, file=sys.stderr)
sys.exit(code)
"""

pytestmark = pytest.mark.slow


def test_checking_120000_files_stays_under_120_mb(tmp_path: Path) -> None:
    image = tmp_path / "image"
    with Store.create(FileDevice.create(image, 1 << 30)) as store:
        MetadataServer.format(store, now_ns=1)
        server = MetadataServer.mount(store, count_references=False)
        for directory in range(FILES // IN_ONE_DIRECTORY):
            ino = server.mkdir(SUPERUSER, ROOT_INO, b"d%d" % directory, 0o755).ino
            for number in range(IN_ONE_DIRECTORY):
                server.mknod(SUPERUSER, ino, b"file-%d" % number, 0o100644)
        server.close()
    done = subprocess.run([sys.executable, "-c", _CHECK, str(image)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["counts"]["entries"] == FILES + FILES // IN_ONE_DIRECTORY
    resident = int(done.stderr.splitlines()[-1])
    print(f"{FILES:,} files checked with at most {resident / 1e6:.0f} MB resident")
    assert resident < MEMORY_MAX
