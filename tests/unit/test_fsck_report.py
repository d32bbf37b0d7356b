"""The page of `mdstore fsck --html`: what it says, and what a browser makes of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image as Picture

from mdstore.device.file import FileDevice
from mdstore.store.store import Store
from mdstore.store.transaction import Transaction
from mdstore.tools.cli import run
from mdstore.tools.reader.check import Options, check_image
from mdstore.tools.report.fsck_report import Mapper
from mdstore.tools.report.image_map import CELLS_MAX, Kind
from mdstore.tools.report.page import COLOURS, DAMAGE, FREE_IN_THE_DARK

BLOCK = 4096


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image with data, maps, a large value, clones, and holes between what was removed."""
    path = tmp_path / "image"
    with Store.create(FileDevice.create(path, 32 << 20)) as store:
        store.submit(Transaction().create_collection("c"))
        for number in range(40):
            store.submit(Transaction().write("c", f"o{number:02}", 0, bytes([number]) * BLOCK * 60))
        store.submit(Transaction().clone("c", "o01", "clone").write("c", "clone", 0, b"apart" * 1000))
        store.submit(Transaction().map_set("c", "map", {b"%d" % n: b"v" * 100 for n in range(3000)}))
        store.submit(Transaction().map_set("c", "large", {b"k": b"v" * 2_000_000}))
        store.apply(Transaction().remove("c", "o10").remove("c", "o20").remove("c", "o30"))
    return path


def checked(path: Path) -> tuple[Mapper, int]:
    """The map of an image, and how many errors it has."""
    mapper = Mapper()
    result = check_image(str(path), Options(level="deep", watch=mapper.watch), mapper.problem)
    return mapper, result.errors


def test_every_block_is_on_the_map_once(image: Path) -> None:
    mapper, errors = checked(image)
    assert not errors
    drawn = mapper.image_map
    assert drawn is not None
    assert drawn.blocks == 32 << 20 >> 12
    assert len(drawn.cells[0]) <= CELLS_MAX
    totals = drawn.totals()
    assert sum(totals.values()) == drawn.blocks
    assert totals[Kind.SUPERBLOCK] == 4
    assert totals[Kind.SHARED] == 58, "one object of 60 blocks has a clone, two blocks of which were written since"
    assert totals[Kind.DATA] == 36 * 60 + 2 + 2
    assert totals[Kind.LARGE_VALUES] >= 2_000_000 // BLOCK
    assert totals[Kind.OBJECT_TREES] > 3000 * 100 // BLOCK
    assert Kind.UNKNOWN not in totals
    with Store.open(FileDevice.open(image), read_only=True) as store:
        assert totals[Kind.FREE] * BLOCK == store.statistics()["free_bytes"]


def test_the_map_in_words_adds_up(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dump", str(image), "--map", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert sum(row["bytes"] for row in shown["map"]) == 32 << 20
    assert shown["free_space"]["extents"] == sum(row["extents"] for row in shown["free_extents"]) > 1
    assert run(["dump", str(image), "--html", "x"]) == 2
    assert run(["dump", str(image), "log", "--map"]) == 2


def test_the_page_names_what_is_damaged_and_marks_it(image: Path, tmp_path: Path) -> None:
    _damage(image, Kind.DATA)
    page = tmp_path / "page.html"
    assert run(["fsck", "--deep", "--html", str(page), str(image)]) == 4
    text = page.read_text()
    assert "data-checksum" not in text, "the page speaks in words"
    assert "checksum of logical block" in text
    assert 'class="hurt"' in text
    assert not list(tmp_path.glob("*.part"))
    for reference in ("http://", "https://", "<script", "@import", "url("):
        assert reference not in text, "one file, no network"


def test_names_from_the_image_cannot_become_markup(tmp_path: Path) -> None:
    path = tmp_path / "<b>image"
    with Store.create(FileDevice.create(path, 16 << 20)) as store:
        store.submit(Transaction().create_collection("c"))
        store.apply(Transaction().write("c", "<script>alert(1)</script>", 0, b"x" * BLOCK * 40))
    _damage(path, Kind.DATA)
    page = tmp_path / "page.html"
    assert run(["fsck", "--deep", "--html", str(page), str(path)]) == 4
    text = page.read_text()
    assert "&lt;script&gt;" in text
    assert "<script" not in text
    assert "<b>" not in text


def test_a_page_that_cannot_be_written_is_an_error_and_leaves_nothing(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fsck", "--html", str(tmp_path / "no" / "page.html"), str(image)]) == 8
    told = capsys.readouterr()
    assert "no such" in told.err.lower()
    assert "clean" not in told.out


def test_a_page_never_replaces_an_image(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.write_bytes(image.read_bytes())
    before = image.read_bytes()
    for page in (image, other):
        assert run(["fsck", "--html", str(page), str(image)]) == 8
        assert run(["dump", "--map", "--html", str(page), str(image)]) == 8
        assert "is an image" in capsys.readouterr().err
        assert page.read_bytes() == before


@pytest.mark.slow
def test_a_browser_draws_every_kind_and_every_damage(image: Path, tmp_path: Path) -> None:
    _damage(image, Kind.DATA)
    page = tmp_path / "page.html"
    run(["fsck", "--deep", "--html", str(page), str(image)])
    for scheme in ("light", "dark"):
        colours = _drawn(page, tmp_path / f"{scheme}.png", scheme)
        mapper, _ = checked(image)
        assert mapper.image_map is not None
        for kind in mapper.image_map.totals():
            is_dim = kind is Kind.FREE and scheme == "dark"
            assert colours[_rgb(FREE_IN_THE_DARK if is_dim else COLOURS[kind])] > 20, (scheme, kind)
        assert colours[_rgb(DAMAGE)] > 20, scheme
        background = colours.most_common(1)[0][0]
        assert (sum(background) > 3 * 200) == (scheme == "light"), background


def _damage(path: Path, kind: Kind) -> None:
    """Overwrite a block in the middle of the first cell that holds nothing but `kind`."""
    drawn = checked(path)[0].image_map
    assert drawn is not None
    cell = next(n for n, count in enumerate(drawn.cells[kind]) if count == drawn.cell_bounds(n)[1])
    with open(path, "r+b") as file:
        file.seek(drawn.cell_bounds(cell)[0] * BLOCK + 100)
        file.write(b"not what was written")


def _browser() -> str:
    """The path of Chromium. A skip that says what to install; in CI a failure."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        reason = "no Chromium: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def _drawn(page: Path, picture: Path, scheme: str) -> Counter[tuple[int, int, int]]:
    """How many pixels of each colour headless Chromium shows."""
    command = [
        _browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
        "--force-device-scale-factor=1", "--window-size=1200,1800",
        f"--user-data-dir={picture.with_suffix('.profile')}", "--enable-logging=stderr",
        f"--blink-settings=preferredColorScheme={int(scheme == 'light')}", f"--screenshot={picture}", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    with Picture.open(picture) as shown:
        pixels = shown.convert("RGB")
        return Counter({colour: count for count, colour in pixels.getcolors(1 << 24) or []})  # type: ignore[misc]


def _rgb(text: str) -> tuple[int, int, int]:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
