"""Memory of an import does not follow the number of files: 100,000 small ones stay under 500 MB of resident memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES, PER_DIRECTORY = 100_000, 1000
RESIDENT_MAX_BYTES = 500_000_000

# VmHWM is of this program alone; getrusage's figure survives exec and would be that of the (large) test process.
_MEASURED = (
    "import sys; from mdstore.tools import cli\n"
    "code = cli.run(sys.argv[1:])\n"
    "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
    "print(int(peak.split()[1]) * 1024, file=sys.stderr); sys.exit(code)"
)


def _make_files(top: Path) -> None:
    for number in range(0, FILES, PER_DIRECTORY):
        directory = top / f"d{number:06}"
        directory.mkdir(parents=True)
        for name in range(PER_DIRECTORY):
            fd = os.open(directory / f"f{name:04}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            os.write(fd, b"%d\n" % (number + name))
            os.close(fd)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_importing_100000_small_files_stays_under_500_mb(tmp_path: Path) -> None:
    _make_files(tmp_path / "source")
    image = tmp_path / "disk.img"
    subprocess.run([sys.executable, "-m", "mdstore.tools.cli", "mkfs", image, "--size", "1G", "--sparse"], cwd=ROOT, check=True)
    command = [sys.executable, "-c", _MEASURED, "import", str(image), str(tmp_path / "source"), "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f'"files": {FILES}' in done.stdout
    resident = int(done.stderr.split()[-1])
    print(f"{FILES:,} files imported with at most {resident / 1e6:.0f} MB resident")
    assert resident < RESIDENT_MAX_BYTES
