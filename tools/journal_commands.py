"""`mdstore journal`: look into a log, keep it, mend it.

Everything streams: memory does not grow with the log. What changes a log only says what it would do, until `--apply` is
given; then what it overwrites is first written to an undo file, which `mdstore journal undo` applies.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import click

from journal import Head, NoJournal
from journal.dump import KIND_LOG, apply_dump, check_dump, check_untouched
from journal.edit import (
    Change,
    apply_change,
    export_log,
    plan_header,
    plan_repair,
    plan_reset,
    plan_splice,
    plan_truncate,
    read_entries,
    replace_heads,
    replace_log,
)
from journal.survey import Survey, recover_head, survey
from mdstore.tools.images import json_option
from mdstore.tools.journal_events import Filter, Summary, entry_json, line, type_number
from mdstore.tools.journal_targets import Target, opened_log
from mdstore.tools.output import CommandFailed, complain, count_text, print_json, print_json_list, print_line, size_text

EXIT_DAMAGED = 4

_target = click.argument("target")
_ring = click.option("--ring", is_flag=True, help="The store's own log instead of the metadata events.")
_apply = click.option("--apply", "apply_it", is_flag=True, help="Do it; without this, only say what would be done.")
_undo = click.option("--undo", "undo_path", type=click.Path(), help="Where the undo file goes [TARGET.journal-undo].")


@click.group("journal")
def journal() -> None:
    """Look into the log of an image, keep it, mend it.

    TARGET is an image, or `dir:PATH/NAME` for a log in a directory of objects. What changes a log is a dry run until
    --apply, and writes an undo file first.

    \b
    mdstore journal inspect photos.img
    mdstore journal events photos.img list --path may.jpg
    mdstore journal repair photos.img --apply
    """


# -- looking -----------------------------------------------------------------------------------------------------------


@journal.command("inspect")
@_target
@_ring
@json_option
def inspect_command(target: str, ring: bool, as_json: bool) -> int:
    """Check every entry; say what is damaged or missing, with ranges. Exit code 4 when something is.

    \b
    mdstore journal inspect photos.img
    mdstore journal inspect photos.img --ring
    """
    with opened_log(target, ring=ring, read_only=True) as log:
        found = survey(log.medium, head=log.head)
        intact = found.intact and not log.unreadable
        found.end = max(found.end, found.start)  # of a log without an entry
    if as_json:
        print_json({**asdict(found), "unreadable": log.unreadable, "intact": intact})
    else:
        _print_survey(found, log.unreadable, intact=intact)
    return 0 if intact else EXIT_DAMAGED


def _print_survey(found: Survey, unreadable: list[tuple[int, int]], *, intact: bool) -> None:
    print_line(f"integrity: {'OK' if intact else 'DAMAGED'}")
    for slot, said in enumerate(found.heads):
        print_line(f"head {slot}: {said}")
    entries = count_text(found.entries, "entry", "entries")
    print_line(f"log: {found.start} to {found.end}, {entries}, {size_text(found.end - found.start)}")
    print_line(f"tail: {found.tail}")
    for damage in found.damage:
        print_line(f"damaged: {damage.start} to {damage.end}: {damage.reason}")
    for low, high in unreadable:
        print_line(f"unreadable: bytes {low} to {high} of the image")
    for name, position in found.missing:
        print_line(f"missing object: {name}, from position {position}")


@journal.command("events")
@_target
@click.argument("what", type=click.Choice(["list", "summary", "json", "binary"]), default="list")
@click.option("--range", "between", help="Positions, LOW..HIGH; either may be left out.")
@click.option("--type", "types", multiple=True, help="Event type, by name or number; may be repeated.")
@click.option("--path", help="A part of a name the event speaks of.")
@click.option("--inode", type=int, help="An inode the event speaks of.")
@click.option("--client", type=int, help="A client whose request the event was, or whose session it changes.")
@_ring
@json_option
def events_command(target: str, what: str, ring: bool, as_json: bool, **chosen: Any) -> int:
    """Entries of the log, those that all options choose, up to the first damage; exit code 4 when there is some. `binary`
    writes their payloads one after another; `--json` is the same as `json`, and a summary is JSON always.

    \b
    mdstore journal events photos.img list --path may.jpg
    mdstore journal events photos.img json --type rename --range 4194304..8388608
    """
    if as_json and what == "binary":
        raise click.UsageError("binary writes the payloads as they are: --json does not go with it")
    what = "json" if as_json and what == "list" else what
    wanted = _filter(**chosen)
    with opened_log(target, ring=ring, read_only=True) as log:
        entries = filter(wanted, read_entries(log.medium, log.current_head()))
        if what == "list":
            for entry in entries:
                print_line(line(entry, events=log.events))
        elif what == "json":
            print_json_list(entry_json(entry, events=log.events) for entry in entries)
        elif what == "binary":
            for entry in entries:
                sys.stdout.buffer.write(entry.payload)
        else:
            summary = Summary()
            summary.add(entries, events=log.events)
            print_json({"entries": summary.entries, "bytes": summary.bytes, "first": summary.first, "last": summary.last})
        return _left_out(log)


def _left_out(log: Target) -> int:
    """The exit code of having shown the entries up to the first damage; says so where there is some. Cost: the log, once more."""
    found = survey(log.medium, head=log.head)
    if not found.damage and not found.missing and not log.unreadable:
        return 0
    where = f"at position {found.damage[0].start}" if found.damage else "in places"
    complain(f"the log is damaged {where}: what lies behind is not shown; see `mdstore journal inspect`")
    return EXIT_DAMAGED


def _filter(
    between: str | None, types: tuple[str, ...], path: str | None, inode: int | None, client: int | None
) -> Filter:
    try:
        low, high = _range(between)
        numbers = frozenset(map(type_number, types))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return Filter(low, high, numbers, os.fsencode(path) if path is not None else None, inode, client)


def _range(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    low, dots, high = text.partition("..")
    if not dots:
        raise ValueError(f"{text!r} is no range; write LOW..HIGH")
    first, end = int(low, 0) if low else None, int(high, 0) if high else None
    if first is not None and end is not None and first > end:
        raise ValueError(f"{text} is no range: LOW is above HIGH")
    return first, end


# -- the head ----------------------------------------------------------------------------------------------------------


@journal.group("header")
def header() -> None:
    """Show the head, set its fields, or make one from the entries."""


@header.command("get")
@_target
@_ring
@json_option
def header_get(target: str, ring: bool, as_json: bool) -> None:
    """The newer intact head copy.

    \b
    mdstore journal header get photos.img
    """
    with opened_log(target, ring=ring, read_only=True) as log:
        fields = asdict(log.current_head())
    if as_json:
        print_json(fields)
    else:
        for name, value in fields.items():
            print_line(f"{name:<17} {value}")


@header.command("set")
@_target
@click.argument("fields", nargs=-1, required=True)
@_apply
@_undo
@json_option
def header_set(target: str, fields: tuple[str, ...], apply_it: bool, undo_path: str | None, as_json: bool) -> None:
    """Set FIELD=VALUE ...: trimmed, expire, safe, next_sequence, generation, generation_start, epoch.

    \b
    mdstore journal header set photos.img expire=4194304 --apply
    """
    try:
        values = {name: int(value, 0) for name, _, value in (field.partition("=") for field in fields)}
    except ValueError:
        raise click.UsageError("write FIELD=NUMBER") from None
    _change(target, lambda log: plan_header(log.medium, values), apply_it, undo_path, as_json)


@header.command("recover")
@_target
@click.option("--after-damage", is_flag=True, help="Begin behind the last damage instead of at the first entry.")
@_apply
@_undo
@json_option
def header_recover(target: str, after_damage: bool, apply_it: bool, undo_path: str | None, as_json: bool) -> None:
    """Search the whole medium for entries and make a head that describes them. Nothing but the head is written.

    \b
    mdstore journal header recover photos.img --apply
    """
    path = _undo_path(target, undo_path) if apply_it else None
    with opened_log(target, ring=False, read_only=not apply_it) as log:
        try:
            head = recover_head(log.medium, after_damage=after_damage)
        except NoJournal:
            raise CommandFailed(f"no entry was found in {target}, so there is nothing that a head could describe") from None
        if path is not None:
            with _new_file(path) as undo:
                replace_heads(log.medium, head, undo)
    _say(_head_words(head), apply_it, as_json, head=asdict(head), undo_file=path)


def _head_words(head: Head) -> list[str]:
    return [f"write a head: log {head.log:08x}, expire {head.expire}, safe {head.safe}, generation {head.generation}"]


# -- keeping -----------------------------------------------------------------------------------------------------------


@journal.command("export")
@_target
@click.argument("file", type=click.Path())
@click.option("--force", is_flag=True, help="Even when the log is damaged.")
@_ring
@json_option
def export_command(target: str, file: str, force: bool, ring: bool, as_json: bool) -> None:
    """Write the live log to FILE, which must not exist.

    \b
    mdstore journal export photos.img photos.log
    """
    with opened_log(target, ring=ring, read_only=True) as log, _new_file(file) as out:
        total = export_log(log.medium, out, force=force)
    if as_json:
        print_json({"file": file, "bytes": total})
    else:
        print_line(f"{size_text(total)} of log in {file}")


@journal.command("import")
@_target
@click.argument("file", type=click.Path(exists=True))
@_apply
@_undo
@json_option
def import_command(target: str, file: str, apply_it: bool, undo_path: str | None, as_json: bool) -> None:
    """Replace the log by the one in FILE. The one there is goes to the undo file.

    \b
    mdstore journal import photos.img photos.log --apply
    """
    path = _undo_path(target, undo_path) if apply_it else None
    with opened_log(target, ring=False, read_only=not apply_it, is_there=False) as log, open(file, "rb") as source:
        if path is None:
            check_dump(source)
        else:
            with _new_file(path) as undo:
                replace_log(log.medium, source, undo)
    _say([f"replace the log by the one in {file}"], apply_it, as_json, undo_file=path)


@journal.command("undo")
@_target
@click.argument("file", type=click.Path(exists=True))
@_apply
@json_option
def undo_command(target: str, file: str, apply_it: bool, as_json: bool) -> None:
    """Take back the change that wrote the undo file FILE. Refused when anything else has written to the log since.

    \b
    mdstore journal undo photos.img photos.img.journal-undo --apply
    """
    with opened_log(target, ring=False, read_only=not apply_it, is_there=False) as log, open(file, "rb") as source:
        dump = check_dump(source)
        if dump.kind == KIND_LOG and not dump.left:
            raise CommandFailed(f"{file} is an export, not an undo file: `mdstore journal import` puts it in place of the log")
        check_untouched(log.medium, dump)
        source.seek(0)
        if apply_it:
            apply_dump(log.medium, source)
    _say([f"take back what is kept in {file}"], apply_it, as_json)


# -- mending -----------------------------------------------------------------------------------------------------------


@journal.command("splice")
@_target
@click.option("--range", "between", help="Positions, LOW..HIGH; either may be left out.")
@click.option("--type", "types", multiple=True, help="Event type, by name or number; may be repeated.")
@click.option("--path", help="A part of a name the event speaks of.")
@click.option("--inode", type=int, help="An inode the event speaks of.")
@click.option("--client", type=int, help="A client whose request the event was, or whose session it changes.")
@_apply
@_undo
@json_option
def splice_command(target: str, apply_it: bool, undo_path: str | None, as_json: bool, **chosen: Any) -> None:
    """Take out the entries that all options choose: each becomes a pad of the same length.

    \b
    mdstore journal splice photos.img --range 4194304..4194472 --apply
    """
    wanted = _filter(**chosen)
    if wanted.empty:
        raise click.UsageError("say which entries: --range, --type, --path, --inode or --client")
    _change(target, lambda log: plan_splice(log.medium, wanted), apply_it, undo_path, as_json)


@journal.command("repair")
@_target
@_apply
@_undo
@json_option
def repair_command(target: str, apply_it: bool, undo_path: str | None, as_json: bool) -> None:
    """Bridge damaged ranges by pads, so that what lies behind is read; cut off what cannot be bridged.

    \b
    mdstore journal repair photos.img --apply
    """
    _change(target, lambda log: plan_repair(log.medium), apply_it, undo_path, as_json)


@journal.command("truncate")
@_target
@click.argument("position", type=int)
@_apply
@_undo
@json_option
def truncate_command(target: str, position: int, apply_it: bool, undo_path: str | None, as_json: bool) -> None:
    """End the log at POSITION, the end of an entry; everything behind it goes.

    \b
    mdstore journal truncate photos.img 4194472 --apply
    """
    _change(target, lambda log: plan_truncate(log.medium, position), apply_it, undo_path, as_json)


@journal.command("reset")
@_target
@_apply
@_undo
@json_option
def reset_command(target: str, apply_it: bool, undo_path: str | None, as_json: bool) -> None:
    """Begin an empty log behind the present one. Events that were not written back are lost.

    \b
    mdstore journal reset photos.img --apply
    """
    _change(target, lambda log: plan_reset(log.medium), apply_it, undo_path, as_json)


def _change(
    target: str, plan: Callable[[Target], Change], apply_it: bool, undo_path: str | None, as_json: bool
) -> None:
    path = None
    with opened_log(target, ring=False, read_only=not apply_it) as log:
        try:
            change = plan(log)
        except ValueError as error:
            raise CommandFailed(str(error)) from None
        if apply_it and change.summary:
            path = _undo_path(target, undo_path)
            with _new_file(path) as undo:
                apply_change(log.medium, change, undo)
    _say(change.summary, apply_it, as_json, undo_file=path)


def _undo_path(target: str, given: str | None) -> str:
    return given or f"{target.removeprefix('dir:')}.journal-undo"


def _say(sentences: list[str], applied: bool, as_json: bool, **more: Any) -> None:
    """What was done, or would be. `more` goes into the JSON, and the undo file's name to a person too."""
    if as_json:
        print_json({"changes": sentences, "applied": applied, **more})
        return
    for sentence in sentences or ["nothing to do"]:
        print_line(sentence if applied or not sentences else f"would {sentence}")
    if more.get("undo_file"):
        print_line(f"undo file: {more['undo_file']}")


class _DurableFile:
    """A file that must not exist yet; its `flush` reaches the medium, its name included."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        try:
            self._file = self._path.open("xb")
        except FileExistsError:
            raise CommandFailed(f"{path} exists already; name another file, or move it away") from None

    def write(self, data: bytes) -> int:
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        directory = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def __enter__(self) -> BinaryIO:
        return self  # type: ignore[return-value]

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None:
            self.flush()
        self._file.close()


def _new_file(path: str) -> _DurableFile:
    return _DurableFile(path)
