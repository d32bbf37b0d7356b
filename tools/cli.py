"""The command `mdstore`: finds the verb, runs it, and turns every failure into one line and an exit code.

A command's module is imported when that command runs, so `mdstore --help` is quick and a part that is not installed breaks
no other. Exit codes: docs/howto/exit-codes.md.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Final, NamedTuple

import click

from mdstore.errors import MdstoreError
from mdstore.tools.output import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_PIPE_CLOSED,
    EXIT_USAGE,
    CommandFailed,
    Told,
    complain,
    explain,
    print_json_failure,
)


class _Verb(NamedTuple):
    module: str
    attribute: str
    help: str


_VERBS: Final = {
    "mkfs": _Verb("mdstore.tools.mkfs", "mkfs_command", "Make an image."),
    "import": _Verb("mdstore.tools.transfer", "import_command", "Copy a directory into an image; run again to complete it."),
    "export": _Verb("mdstore.tools.transfer", "export_command", "Copy a file or directory out of an image."),
    "ls": _Verb("mdstore.tools.look", "ls_command", "List a directory."),
    "tree": _Verb("mdstore.tools.look", "tree_command", "Show a directory and everything below it."),
    "stat": _Verb("mdstore.tools.look", "stat_command", "Show a file's attributes, or the image's figures."),
    "cat": _Verb("mdstore.tools.look", "cat_command", "Write files to standard output."),
    "rm": _Verb("mdstore.tools.remove", "rm_command", "Remove files and directories."),
    "mount": _Verb("mdstore.tools.mounting", "mount_command", "Serve an image as a directory (FUSE)."),
    "umount": _Verb("mdstore.tools.mounting", "umount_command", "End a mount."),
    "snapshot": _Verb("mdstore.tools.snapshot_commands", "snapshot", "Freeze directories; look into them later."),
    "fsck": _Verb("mdstore.tools.fsck", "fsck_command", "Check an image with a second, independent reader."),
    "repair": _Verb("mdstore.tools.repair.command", "repair_command", "Set a damaged image right; a dry run unless told so."),
    "scrub": _Verb("mdstore.tools.care", "scrub_command", "Check a name space in use, and repair its counts."),
    "damage": _Verb("mdstore.tools.care", "damage_group", "List or forget what was found broken."),
    "dump": _Verb("mdstore.tools.dump", "dump_command", "Show an image's structures in words."),
    "load": _Verb("mdstore.tools.whole_commands", "load_command", "Make an image of what `dump --all` wrote."),
    "recover": _Verb("mdstore.tools.whole_commands", "recover_command", "Save what still reads of a damaged image."),
    "copy": _Verb("mdstore.tools.whole_commands", "copy_command", "Copy an image's content, also a snapshot's."),
    "compact": _Verb("mdstore.tools.whole_commands", "compact_command", "Make an image smaller."),
    "inspect": _Verb("mdstore.tools.inspect_commands", "inspect", "Decode one structure by itself."),
    "journal": _Verb("mdstore.tools.journal_commands", "journal", "Look into the logs of an image."),
    "crash": _Verb("mdstore.tools.crash_commands", "crash", "Crash the engines on purpose, and judge what recovers."),
    "bench": _Verb("mdstore.tools.bench_commands", "bench_command", "Measure, against the alternative one would pick."),
}


class _Verbs(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = _VERBS.get(cmd_name)
        return None if verb is None else _load(cmd_name, verb)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in _VERBS.items()])


def _load(name: str, verb: _Verb) -> click.Command:
    try:
        command = getattr(importlib.import_module(verb.module), verb.attribute)
    except ImportError as error:
        raise CommandFailed(f"`mdstore {name}` is not part of this installation ({error})") from error
    assert isinstance(command, click.Command)
    return command


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, envvar="MDSTORE_DEBUG", help="Show the traceback of a failure.")
@click.version_option(package_name="mdstore", prog_name="mdstore")
def cli(debug: bool) -> None:
    """File systems in one checksummed, journaled image file.

    \b
    mdstore mkfs photos.img --size 20G       make an image
    mdstore import photos.img ~/Pictures     fill it
    mdstore ls -l photos.img /2024           look into it
    mdstore mount photos.img /mnt            or work in it, as in any directory
    mdstore fsck photos.img                  check it with a second, independent reader

    `mdstore COMMAND --help` explains each command, with an example. Every command knows --json. Exit codes: 0 done,
    1 failed or refused, with one line on stderr that says why; 2 wrong usage; fsck: 0 clean, 4 errors left, 8 could not run.
    """


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code. Nothing but KeyboardInterrupt's cousins escapes."""
    debug = "--debug" in arguments or bool(os.environ.get("MDSTORE_DEBUG"))
    wants_json = "--json" in arguments
    try:
        result = _invoke(list(arguments))
        sys.stdout.flush()
        return result
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else EXIT_OK if leaving.code is None else EXIT_FAILED
    except (Exception, KeyboardInterrupt) as error:  # the outermost frame: every failure ends here, as a line and a code
        if debug and not isinstance(error, click.ClickException):
            traceback.print_exc()
        if isinstance(error, click.UsageError) and error.ctx is None:  # of an option's parser, which has none
            error.ctx = _context_of(arguments)
        return _report(error, as_json=wants_json)


def _invoke(arguments: list[str]) -> int:
    """Without click's own ending: it would turn a closed pipe and an interrupt into codes and lines of its own."""
    try:
        with cli.make_context("mdstore", arguments) as context:
            result = cli.invoke(context)
    except click.exceptions.Exit as leaving:  # --help, --version
        return leaving.exit_code
    return result if isinstance(result, int) else EXIT_OK


def _context_of(arguments: Sequence[str]) -> click.Context | None:
    """The context of the command that was asked for, as far as it can be told."""
    name = next((word for word in arguments if word in _VERBS), None)
    return None if name is None else click.Context(_load(name, _VERBS[name]), info_name=f"mdstore {name}")


def _report(error: BaseException, *, as_json: bool) -> int:
    """Tell of a failure: a line on stderr; on stdout the document of who asked for one and has none yet."""
    if isinstance(error, BrokenPipeError):
        _silence_stdout()
        return EXIT_PIPE_CLOSED
    if isinstance(error, Told):
        as_json, error = False, error.cause
    if isinstance(error, click.UsageError) and "\n" in error.format_message():  # nothing was asked for: it is the help page
        click.echo(error.format_message(), err=True)
        return EXIT_USAGE
    line, exit_code = _said_of(error)
    if as_json:
        try:
            print_json_failure(line, exit_code)
        except OSError:
            _silence_stdout()
    complain(line)
    return exit_code


def _said_of(error: BaseException) -> tuple[str, int]:
    """The line for people, and the exit code."""
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted", EXIT_INTERRUPTED
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx is not None else "mdstore"
        if isinstance(error, click.NoSuchOption) and error.option_name == "--debug":
            return "--debug stands before the command: `mdstore --debug COMMAND ...`", EXIT_USAGE
        return f"{error.format_message().rstrip('.')}; `{command} --help` explains", EXIT_USAGE
    if isinstance(error, click.ClickException):
        return error.format_message(), EXIT_FAILED
    if isinstance(error, CommandFailed):
        return str(error), error.exit_code
    if isinstance(error, MdstoreError | OSError):
        return explain(error), EXIT_FAILED
    bug = f"unexpected {type(error).__name__}: {error}; this is a bug: please report it, with what --debug prints"
    return bug, EXIT_FAILED


def _silence_stdout() -> None:
    """Nobody reads stdout any more: keep the interpreter from complaining about it when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_closed_streams() -> None:
    """A program started with stdout or stderr closed (`>&-`) has none in Python, and the next file it opens gets the number."""
    for descriptor, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            setattr(sys, name, os.fdopen(descriptor, "r" if descriptor == 0 else "w"))


def _write_any_name() -> None:
    """Names hold any character: one that the terminal's encoding does not have is written as an escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main() -> None:
    """The console script."""
    _open_closed_streams()
    _write_any_name()
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
