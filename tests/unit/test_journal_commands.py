"""`mdstore journal` on an image and on a directory of objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from journal import Journal, Layout, StripedMedium
from journal.directory import DirectoryObjects
from journal.head import decode_head
from mdstore.device.file import FileDevice
from mdstore.errors import DeviceFailed
from mdstore.mds.server import MetadataServer
from mdstore.mds.vfs import ROOT_INO, SUPERUSER
from mdstore.store import Store, Transaction
from mdstore.tools.cli import run
from mdstore.tools.images import opened_store


def mdstore(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    found = run(list(arguments))
    captured = capsys.readouterr()
    assert found == code, captured.err
    return captured.out


@pytest.fixture
def image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """An image with a few events in its log: the server was killed, as it were, before it wrote them back."""
    path = str(tmp_path / "t.img")
    mdstore(capsys, "mkfs", path, "--size", "64M")
    with opened_store(path, read_only=False) as store:
        server = MetadataServer.mount(store)
        for name in (b"alpha", b"beta", b"gamma"):
            server.mkdir(SUPERUSER, ROOT_INO, name, 0o755)
        server.syncfs()
    return path


@pytest.fixture
def log(tmp_path: Path) -> str:
    """A log in a directory."""
    medium = StripedMedium(DirectoryObjects(tmp_path / "d"), "log", Layout(256, 2, 512))
    with Journal.create(medium) as journal:
        for n in range(50):
            journal.wait(journal.append(b"entry %d" % n, type=1 + n % 2))
    return f"dir:{tmp_path}/d/log"


def entries(target: str) -> list[bytes]:
    path, _, name = target.removeprefix("dir:").rpartition("/")
    medium = StripedMedium(DirectoryObjects(path), name, Layout(256, 2, 512))
    return [entry.payload for entry in Journal.open(medium, read_only=True).entries()]


def damage(target: str, offset: int) -> None:
    path, _, name = target.removeprefix("dir:").rpartition("/")
    with open(f"{path}/{name}.00000002", "r+b") as file:
        file.seek(offset)
        file.write(b"\xee\xee")


def test_inspect_of_an_image(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(mdstore(capsys, "journal", "inspect", image, "--json"))
    assert found["intact"]
    assert "integrity: OK" in mdstore(capsys, "journal", "inspect", image)
    assert "integrity: OK" in mdstore(capsys, "journal", "inspect", "--ring", image)


def test_events_of_an_image_are_shown_and_chosen(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    listed = mdstore(capsys, "journal", "events", image, "list", "--path", "bet")
    assert "beta" in listed
    assert "alpha" not in listed
    found = json.loads(mdstore(capsys, "journal", "events", image, "json", "--type", "mkdir"))
    assert found == json.loads(mdstore(capsys, "journal", "events", image, "--type", "mkdir", "--json"))
    names = [record["name"] for event in found for record in event["records"] if record["record"] == "EntrySet"]
    assert {"alpha", "beta", "gamma"} <= set(names)
    inode = next(r["directory"] for e in found for r in e["records"] if r["record"] == "EntrySet")
    assert mdstore(capsys, "journal", "events", image, "list", "--inode", str(inode)).count("\n") >= 3
    summary = json.loads(mdstore(capsys, "journal", "events", image, "summary"))
    assert summary["entries"]["MKDIR"] == 3
    mdstore(capsys, "journal", "events", image, "list", "--type", "nonsense", code=2)


def test_events_are_chosen_by_the_client_that_asked_for_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "t.img")
    mdstore(capsys, "mkfs", path, "--size", "64M")
    with opened_store(path, read_only=False) as store:
        server = MetadataServer.mount(store)
        server.mkdir(SUPERUSER, ROOT_INO, b"nobody", 0o755)
        sessions = [server.clients.open(name, timeout_ns=10**12) for name in (b"first", b"second")]
        for number, (session, name) in enumerate(zip([*sessions, sessions[0]], (b"one", b"two", b"three"), strict=True), 1):
            server.clients.perform(session, number, 1, "mkdir", SUPERUSER, ROOT_INO, name, 0o755)
        server.syncfs()

    def made_by(session: int) -> list[str]:
        chosen = mdstore(capsys, "journal", "events", path, "json", "--client", str(session), "--type", "mkdir")
        return [r["name"] for event in json.loads(chosen) for r in event["records"] if r["record"] == "EntrySet"]

    assert made_by(sessions[0]) == ["one", "three"]
    assert made_by(sessions[1]) == ["two"]
    assert made_by(max(sessions) + 1) == []
    listed = mdstore(capsys, "journal", "events", path, "list", "--client", str(sessions[1]))
    assert f"of client {sessions[1]}" in listed
    assert "one" not in listed
    mdstore(capsys, "journal", "splice", path, "--client", str(sessions[0]), "--type", "mkdir", "--apply")
    assert mdstore(capsys, "ls", path, "/").split() == ["nobody", "two"]


def test_spliced_event_never_happened_until_it_is_taken_back(image: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert mdstore(capsys, "journal", "splice", image, "--path", "beta").startswith("would replace")
    assert mdstore(capsys, "ls", image, "/").split() == ["alpha", "beta", "gamma"]
    mdstore(capsys, "journal", "splice", image, "--path", "beta", "--apply")
    assert "beta" not in mdstore(capsys, "ls", image, "/")
    mdstore(capsys, "journal", "inspect", image)
    mdstore(capsys, "journal", "undo", image, f"{image}.journal-undo", "--apply")
    assert mdstore(capsys, "ls", image, "/").split() == ["alpha", "beta", "gamma"]
    mdstore(capsys, "journal", "splice", image, code=2)


def test_damage_is_found_bridged_and_taken_back(log: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = entries(log)
    damage(log, 100)
    said = mdstore(capsys, "journal", "inspect", log, code=4)
    assert "DAMAGED" in said
    assert "damaged: " in said
    mdstore(capsys, "journal", "export", log, str(tmp_path / "dump"), code=1)
    assert mdstore(capsys, "journal", "repair", log).startswith("would replace")
    planned = json.loads(mdstore(capsys, "journal", "repair", log, "--json"))
    assert (len(planned["changes"]), planned["applied"], planned["undo_file"]) == (1, False, None)
    mdstore(capsys, "journal", "inspect", log, code=4)
    mdstore(capsys, "journal", "repair", log, "--apply")
    mdstore(capsys, "journal", "inspect", log)
    assert mdstore(capsys, "journal", "repair", log) == "nothing to do\n"
    assert len(entries(log)) == len(before) - 1
    undo = f"{tmp_path}/d/log.journal-undo"
    mdstore(capsys, "journal", "undo", log, undo)
    mdstore(capsys, "journal", "inspect", log)
    mdstore(capsys, "journal", "undo", log, undo, "--apply")
    mdstore(capsys, "journal", "inspect", log, code=4)


def test_export_reset_import(log: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = entries(log)
    dump = str(tmp_path / "dump")
    mdstore(capsys, "journal", "export", log, dump)
    mdstore(capsys, "journal", "export", log, dump, code=1)
    mdstore(capsys, "journal", "reset", log)
    assert entries(log) == before
    mdstore(capsys, "journal", "reset", log, "--apply", "--undo", str(tmp_path / "undo"))
    assert entries(log) == []
    second = str(tmp_path / "second")
    mdstore(capsys, "journal", "import", log, dump)
    assert entries(log) == []
    said = json.loads(mdstore(capsys, "journal", "import", log, dump, "--apply", "--undo", second, "--json"))
    assert (said["applied"], said["undo_file"]) == (True, second)
    assert entries(log) == before
    mdstore(capsys, "journal", "undo", log, second, "--apply")
    assert entries(log) == [], "the log that was replaced is back"
    mdstore(capsys, "journal", "import", log, dump, "--apply", "--undo", second, code=1)
    assert entries(log) == [], "no undo file, no change"


def test_truncate_and_header(log: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    positions = json.loads(mdstore(capsys, "journal", "events", log, "json"))
    end = positions[9]["end"]
    mdstore(capsys, "journal", "truncate", log, str(end + 1), code=1)
    mdstore(capsys, "journal", "truncate", log, str(end), "--apply")
    assert len(entries(log)) == 10
    head = json.loads(mdstore(capsys, "journal", "header", "get", log, "--json"))
    assert head["safe"] == end
    undo = str(tmp_path / "second")
    mdstore(capsys, "journal", "header", "set", log, f"expire={positions[4]['position']}", "--apply", "--undo", undo)
    assert len(entries(log)) == 6
    mdstore(capsys, "journal", "header", "set", log, "expire=nonsense", code=2)
    mdstore(capsys, "journal", "header", "set", log, "log=1", code=1)
    assert mdstore(capsys, "journal", "events", log, "binary", "--type", "1") == "entry 4entry 6entry 8"


def test_header_is_recovered(log: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head0 = tmp_path / "d" / "log.head0"
    kept = decode_head(head0.read_bytes())
    head0.write_bytes(b"\xee" * 132)
    assert mdstore(capsys, "journal", "header", "recover", log).startswith("would write a head")
    assert json.loads(mdstore(capsys, "journal", "header", "recover", log, "--json"))["head"]["expire"] == 512 * 2
    assert "generation_start" in mdstore(capsys, "journal", "header", "get", log)
    mdstore(capsys, "journal", "header", "recover", log, "--apply")
    assert decode_head(head0.read_bytes()) != kept
    assert len(entries(log)) == 50
    mdstore(capsys, "journal", "undo", log, f"{tmp_path}/d/log.journal-undo", "--apply")
    assert head0.read_bytes() == b"\xee" * 132, "as it was, damage and all"


def test_trouble_is_one_line_and_an_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for target in (str(tmp_path / "absent"), f"dir:{tmp_path}/absent/log", f"dir:{tmp_path}/log"):
        assert run(["journal", "inspect", target]) in (1, 4)
        assert capsys.readouterr().err.count("\n") <= 1
    assert run(["journal", "header", "get", f"dir:{tmp_path}/log"]) == 1
    assert "no log 'log'" in capsys.readouterr().err


# -- the store's own log, where it does not read -----------------------------------------------------------------------
RING, BLOCK, ENTRIES = 8192, 512, 41


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """An image whose log holds transactions, as a kill leaves it."""
    path = tmp_path / "killed.img"
    store = Store.create(FileDevice.create(path, 4 << 20), block_size=BLOCK, log_bytes=64 << 10, background=False)
    store.apply(Transaction().create_collection("c"))
    for number in range(ENTRIES - 1):
        store.apply(Transaction().write("c", f"o{number}", 0, b"x" * 300))
    store.device.close()
    return path


def bad_sectors(monkeypatch: pytest.MonkeyPatch, *ranges: tuple[int, int]) -> None:
    """Bytes of every file device that do not read from now on."""
    read = FileDevice.read

    def failing(self: FileDevice, offset: int, length: int) -> bytes:
        for low, high in ranges:
            if offset < high and low < offset + length:
                raise DeviceFailed("read", f"byte {max(low, offset)}", "Input/output error")
        return read(self, offset, length)

    monkeypatch.setattr(FileDevice, "read", failing)


def inspected(capsys: pytest.CaptureFixture[str], image: Path, code: int = 4) -> dict[str, Any]:
    """What `inspect` says, in both ways."""
    text = mdstore(capsys, "journal", "inspect", str(image), "--ring", code=code)
    assert ("integrity: DAMAGED" in text) == bool(code)
    assert "-" not in text.split("log: ")[1].splitlines()[0]
    found: dict[str, Any] = json.loads(mdstore(capsys, "journal", "inspect", str(image), "--ring", "--json", code=code))
    assert found["intact"] is (code == 0)
    return found


def shown(capsys: pytest.CaptureFixture[str], image: Path, code: int) -> int:
    """How many entries `events` shows."""
    return len(mdstore(capsys, "journal", "events", str(image), "list", "--ring", code=code).splitlines())


@pytest.mark.parametrize("fill", [b"\0", b"\xa5"])
def test_a_ring_without_heads_is_inspected_by_its_entries(capsys: pytest.CaptureFixture[str], killed: Path, fill: bytes) -> None:
    """It was refused: `no journal at ...`."""
    assert inspected(capsys, killed, code=0)["entries"] == ENTRIES
    with killed.open("r+b") as file:
        file.seek(RING)
        file.write(fill * 2 * BLOCK)
    found = inspected(capsys, killed)
    assert found["entries"] == ENTRIES
    assert not any("intact" in head for head in found["heads"])
    assert shown(capsys, killed, 0) == ENTRIES


def test_heads_that_do_not_read_are_said_and_the_entries_are_found(
    capsys: pytest.CaptureFixture[str], killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad_sectors(monkeypatch, (RING, RING + 2 * BLOCK))
    found = inspected(capsys, killed)
    assert found["entries"] == ENTRIES
    assert all("unreadable" in head for head in found["heads"])


def test_a_sector_among_the_entries_that_does_not_read_costs_those_in_it(
    capsys: pytest.CaptureFixture[str], killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`inspect` ended with the first error, `events` showed the first few and said nothing."""
    at = RING + 8 * BLOCK
    bad_sectors(monkeypatch, (at, at + BLOCK))
    found = inspected(capsys, killed)
    assert found["unreadable"] == [[at, at + BLOCK]]
    assert ENTRIES - 4 <= found["entries"] < ENTRIES
    assert len(found["damage"]) == 1
    assert shown(capsys, killed, 4) < ENTRIES // 2


def test_a_sector_behind_the_entries_that_does_not_read_is_said(
    capsys: pytest.CaptureFixture[str], killed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = RING + 40 * BLOCK
    bad_sectors(monkeypatch, (at, at + BLOCK))
    found = inspected(capsys, killed)
    assert (found["entries"], found["damage"], found["unreadable"]) == (ENTRIES, [], [[at, at + BLOCK]])
    assert shown(capsys, killed, 4) == ENTRIES


@pytest.mark.parametrize("how", ["nothing reads", "zeros", "junk"])
def test_a_ring_of_which_nothing_is_left_is_inspected_to_its_end(
    capsys: pytest.CaptureFixture[str], killed: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    size = 64 << 10
    if how == "nothing reads":
        bad_sectors(monkeypatch, (RING, RING + size))
    else:
        with killed.open("r+b") as file:
            file.seek(RING)
            file.write((b"\0" if how == "zeros" else b"\xa5") * size)
    found = inspected(capsys, killed)
    assert (found["entries"], found["head"]) == (0, None)
    assert found["unreadable"] == ([[RING + 2 * BLOCK, RING + size]] if how == "nothing reads" else [])
    assert shown(capsys, killed, 1) == 0


def test_a_ring_cut_short_is_inspected_as_far_as_it_goes(capsys: pytest.CaptureFixture[str], killed: Path) -> None:
    with killed.open("r+b") as file:
        file.truncate(RING + 20 * BLOCK)
    found = inspected(capsys, killed)
    assert 0 < found["entries"] < ENTRIES
    assert found["unreadable"] == [[RING + 20 * BLOCK, RING + (64 << 10)]]
    assert shown(capsys, killed, 4) == found["entries"]
