"""`mdstore bench`: the benchmarks, each in a module of its own below `tools/bench`, imported when it is run."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from typing import Any, Final

import click

from mdstore.tools.images import json_option
from mdstore.tools.output import CommandFailed, print_json, print_line

_BENCHES: Final = {
    "btree": "The tree kernel: point reads, scans, loads; against LMDB and others that are installed.",
    "journal": "Appends, flushes and replay; against LevelDB's and SQLite's logs and a bare file.",
    "mds": "Metadata operations in process: creates, stats, listings, renames, unlinks.",
    "store": "Loads, durable puts, replay, clones, large objects; against LevelDB, RocksDB, LMDB, SQLite.",
    "mount": "Operations through the kernel, as programs meet them.",
}


class _Benches(click.Group):
    """Commands `mdstore.tools.bench.NAME`, and `all` of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_BENCHES, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _load(cmd_name) if cmd_name in _BENCHES else super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Benchmarks"):
            formatter.write_dl([*_BENCHES.items(), ("all", "All of these, each in a process of its own.")])


def _load(name: str) -> click.Command:
    try:
        module = importlib.import_module(f"mdstore.tools.bench.{name}")
    except ImportError as error:
        raise CommandFailed(f"`mdstore bench {name}` is not part of this installation ({error})") from error
    own = [item for item in vars(module).values() if isinstance(item, click.Command)]
    assert len(own) == 1, f"{module.__name__} must define one command"
    return own[0]


@click.group("bench", cls=_Benches)
def bench_command() -> None:
    """Measure mdstore against what one would use instead, in the same run, as ratios.

    \b
    mdstore bench journal --quick
    mdstore bench mds --json
    mdstore bench all --json > today.json

    Peers that are not installed are left out: pip install 'mdstore[bench]' brings them.
    """


@bench_command.command("all")
@json_option
def all_command(as_json: bool) -> None:
    """Run every benchmark, one after another, each in a process of its own, so that none inherits another's caches.

    \b
    mdstore bench all --json
    """
    results: dict[str, Any] = {}
    failed = []
    for name in _BENCHES:
        if not as_json:
            print_line(f"\n{name}: {_BENCHES[name]}")
            sys.stdout.flush()
        command = [sys.executable, "-m", "mdstore.tools.cli", "bench", name, *(["--json"] if as_json else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE if as_json else None, text=True)
        if done.returncode:
            failed.append(name)
        elif as_json:
            results[name] = json.loads(done.stdout)
    if as_json:
        print_json(results)
    if failed:
        raise CommandFailed(f"these benchmarks failed, each with a line of its own above: {', '.join(failed)}")
