"""A crash log survives its file; a damaged file is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from crc32c import crc32c

from mdstore.device.crashfile import CrashFile, load_crash_file, save_crash_file
from mdstore.device.crashlog import CrashLog, Flush, Operation, Resize, Rot, Write
from mdstore.device.crashstates import crash_states, rebuild_state
from mdstore.device.images import PagedImage
from mdstore.device.models import Promise
from mdstore.errors import CorruptionError, InvalidRequest, MdstoreError, UnsupportedFormat

PAGE = Path(__file__).parents[2] / "docs" / "format" / "crash-log.md"


@pytest.fixture
def crash() -> CrashFile:
    base = PagedImage.from_bytes(bytes(5000) + b"base" + bytes(3000) + b"odd end")
    operations: list[Operation] = [
        Write(0, bytes(range(256)) * 3),
        Flush(),
        Write(8000, b"\xff"),
        Resize(9000),
        Rot(17, b"!"),
        Write(8999, b""),
    ]
    return CrashFile(CrashLog(base, 64, operations), {"workload": "demo", "seed": 3}, ["op=1 kind=all seed=3 k=0"])


def test_every_state_is_the_same_from_the_file(tmp_path: Path, crash: CrashFile) -> None:
    save_crash_file(tmp_path / "log", crash)
    loaded = load_crash_file(tmp_path / "log")
    assert (loaded.origin, loaded.states) == (crash.origin, crash.states)
    assert loaded.log.operations == crash.log.operations
    assert loaded.log.sector_size == 64
    for state in crash_states(crash.log, 3):
        assert rebuild_state(loaded.log, state.state_id).image.to_bytes() == state.image.to_bytes()


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    promise = Promise(0, [{b"k": 1}, {}], [0, 1], [(0, 0), (2, 1)])
    small = CrashFile(CrashLog(PagedImage(100), 64, [Write(3, b"abc"), Flush(), Resize(200)]), promise=promise)
    save_crash_file(path, small)
    sample = path.read_bytes()
    for at in range(len(sample)):
        for damage in (sample[at] ^ 1, sample[at] ^ 0x80, 0x20):
            path.write_bytes(sample[:at] + bytes([damage]) + sample[at + 1 :])
            try:
                assert load_crash_file(path).log.operations == small.log.operations
            except (CorruptionError, UnsupportedFormat):
                continue


def test_what_was_promised_comes_back_whatever_the_models_hold(tmp_path: Path, crash: CrashFile) -> None:
    first = {b"k": ("text", 7, None, [True, {"deep": b"\0\xff"}]), "gone": 1, ("tuple", b"key"): -1}
    second = {b"k": first[b"k"], "new": {}}
    crash.promise = Promise(2, [first, second, 17, {}, {b"again": ()}], [2, 2, 3, 4, 4], [(2, 0), (3, 1), (6, 4)])
    save_crash_file(tmp_path / "log", crash)
    loaded = load_crash_file(tmp_path / "log").promise
    assert loaded == crash.promise
    assert [loaded.windows()(point) for point in (2, 3, 4, 6)] == [(0, 1), (1, 2), (1, 4), (4, 4)]


def test_a_model_that_the_format_cannot_keep_is_refused_and_nothing_written(tmp_path: Path, crash: CrashFile) -> None:
    crash.promise = Promise(0, [object()], [0], [(0, 0)])
    with pytest.raises(InvalidRequest, match="type object"):
        save_crash_file(tmp_path / "log", crash)
    assert not (tmp_path / "log").exists()


def test_a_file_of_version_1_has_no_models(tmp_path: Path) -> None:
    header = '{"format":"mdstore crash log","version":1,"size_bytes":100,"sector_size":64,"origin":{},"states":[]}'
    body = header + '\n{"flush":true}\n'
    (tmp_path / "log").write_text(f'{body}{{"end":{crc32c(body.encode())}}}\n')
    assert load_crash_file(tmp_path / "log").log.operations == [Flush()]
    assert load_crash_file(tmp_path / "log").promise == Promise()


@pytest.mark.parametrize("kept", [0, 1, 50, -2, -20])
def test_a_file_cut_short_is_refused(tmp_path: Path, crash: CrashFile, kept: int) -> None:
    save_crash_file(tmp_path / "log", crash)
    content = (tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(content[:kept])
    with pytest.raises(MdstoreError):
        load_crash_file(tmp_path / "log")


@pytest.mark.parametrize(
    "line",
    [
        '{"write":99,"data":"YWJj"}',
        '{"write":-1,"data":"YQ=="}',
        '{"resize":1}',
        '{"rot":1}',
        "[]",
        "7",
        '{"resize":1e99}',
        '{"model":{"is":{"bytes":"YQ"}},"begun":0}',
        '{"model":{"is":{"file":"/etc/passwd"}},"begun":0}',
        '{"model":{"is":1},"begun":0}',
        '{"model":{"is":1},"begun":-1}\n{"acknowledged":0,"point":0}',
        '{"model":{"is":1},"begun":0}\n{"acknowledged":1,"point":0}',
        '{"model":{"set":[[[],1]],"gone":[]},"begun":0}\n{"acknowledged":0,"point":0}',
        '{"acknowledged":' + "[" * 5000 + "]" * 5000 + ',"point":0}',
    ],
)
def test_lines_that_make_no_sense_are_refused_though_the_checksum_is_right(tmp_path: Path, line: str) -> None:
    path = tmp_path / "log"
    save_crash_file(path, CrashFile(CrashLog(PagedImage(100), 64, [])))
    body = path.read_text().splitlines()[0] + "\n" + line + "\n"
    path.write_text(f'{body}{{"end":{crc32c(body.encode())}}}\n')
    with pytest.raises(CorruptionError):
        load_crash_file(path)


def test_the_format_pages_example_reads_as_the_page_says(tmp_path: Path) -> None:
    example = PAGE.read_text().split("```")[1].lstrip("\n")
    (tmp_path / "log").write_text(example)
    crash = load_crash_file(tmp_path / "log")
    assert crash.log.base.read(4096, 4) == b"old\0"
    assert crash.log.operations == [Write(4096, b"new"), Flush()]
    assert crash.origin == {"seed": 42}
    shown = bytes.fromhex(PAGE.read_text().split("third line: `")[1].split("`")[0])
    assert example.encode().split(b"\n")[2] + b"\n" == shown
    save_crash_file(tmp_path / "again", crash)
    assert (tmp_path / "again").read_text() == example
