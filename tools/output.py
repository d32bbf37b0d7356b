"""What commands print: results on stdout (text or one JSON document), one line per trouble on stderr, progress bars.

Names from an image or a directory are bytes and may hold anything: `shown` makes them safe for a terminal, `json_name`
keeps every byte (surrogate escapes, as `os.fsdecode` does).
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final, Protocol, TextIO

from mdstore.errors import MdstoreError, NoSpace, NotAnImage, NotFound, PosixError, TransactionError, UnsupportedFormat

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells count
EXIT_PIPE_CLOSED: Final = 141  # 128 + SIGPIPE: whoever read our output went away

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\\\udc80-\udcff]")
_PROGRESS_EVERY_S: Final = 0.1
_REPLAY_SHOWN_AFTER_S: Final = 0.5


class Told(Exception):
    """A failure in the middle of a JSON document, which ends with it, so that it is one document all the same."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class CommandFailed(Exception):
    """A command that cannot go on: one line for the person, and the exit code."""

    def __init__(self, line: str, exit_code: int = EXIT_FAILED) -> None:
        super().__init__(line)
        self.exit_code = exit_code


# -- results -----------------------------------------------------------------------------------------------------------


def print_json(value: object) -> None:
    """One JSON document, indented for people, keys in the order given."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def print_json_list(values: Iterable[object]) -> None:
    """One JSON array, written element by element, so that a long listing needs no memory. A failure on the way is its last
    element, an object with `error`, and raises `Told`; one before the first element is raised as it is, nothing written."""
    write, separator = sys.stdout.write, "[\n  "
    try:
        for value in values:
            write(separator + json.dumps(value))
            separator = ",\n  "
    except (MdstoreError, OSError) as error:
        if separator == "[\n  " or isinstance(error, BrokenPipeError):
            raise
        write(f"{separator}{json.dumps({'error': explain(error)})}\n]\n")
        raise Told(error) from error
    write("\n]\n" if separator != "[\n  " else "[]\n")


def print_json_failure(line: str, exit_code: int) -> None:
    """The document of a command that failed before it had one."""
    print_json({"status": "failed", "error": line, "exit_code": exit_code})


def print_line(text: str) -> None:
    """A line of a result."""
    sys.stdout.write(text + "\n")


def can_write(text: str, stream: TextIO | None = None) -> bool:
    """Whether the encoding of standard output, or of another stream, has these characters."""
    try:
        text.encode((stream or sys.stdout).encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def complain(text: str) -> None:
    """A line of trouble on stderr, under the command's name. Always exactly one line."""
    sys.stdout.flush()
    sys.stderr.write(f"mdstore: {' '.join(text.split())}\n")
    sys.stderr.flush()


# -- words -------------------------------------------------------------------------------------------------------------


def shown(name: bytes | str) -> str:
    """A name as a terminal may see it: control characters, backslashes and stray bytes are written as escapes."""
    return _UNSAFE.sub(_escaped, os.fsdecode(name))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match.group())
    if match.group() == "\\":
        return "\\\\"
    return f"\\x{code - 0xDC00 if code >= 0xDC80 else code:02x}"


def json_name(name: bytes) -> str:
    """A name for JSON; `os.fsencode` gives the bytes back."""
    return os.fsdecode(name)


def size_text(size_bytes: float) -> str:
    """`1.5 MiB`; whole bytes stay whole."""
    unit = 0
    while size_bytes >= 1024 and unit < len(_UNITS) - 1:
        size_bytes /= 1024
        unit += 1
    return f"{size_bytes:.0f} B" if unit == 0 else f"{size_bytes:.1f} {_UNITS[unit]}"


def duration_text(seconds: float) -> str:
    """`8 ms`, `1.24 s`, `2 min 5 s`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 else f"{seconds * 1e6:.0f} us"
    return f"{seconds:.2f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60} s"


def count_text(count: int, one: str, many: str = "") -> str:
    """`1 file`, `7,733 files`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def counted_text(count: int, many: str) -> str:
    """`count_text` of a word that is given as the many: `1 entry` of `entries`."""
    return count_text(count, many.removesuffix("ies") + "y" if many.endswith("ies") else many.removesuffix("s"), many)


def time_text(time_ns: int) -> str:
    """UTC with nanoseconds: the same on every machine."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    try:
        moment = time.gmtime(seconds)
    except (OverflowError, OSError, ValueError):
        return f"{seconds}.{nanoseconds:09d} s"  # a time no calendar holds
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', moment)}.{nanoseconds:09d}"


def type_word(mode: int) -> str:
    """`file`, `directory`, `symlink` ... for the type bits of a mode."""
    words = {
        stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo",
        stat.S_IFSOCK: "socket", stat.S_IFCHR: "character device", stat.S_IFBLK: "block device",
    }  # fmt: skip
    return words.get(stat.S_IFMT(mode), "unknown")


# -- errors ------------------------------------------------------------------------------------------------------------


def explain(error: BaseException) -> str:
    """The one line for an expected failure: what, where, and the way out where there is one."""
    if isinstance(error, TransactionError):
        return explain(error.cause)
    if isinstance(error, PosixError):
        return _explain_posix(error)
    if isinstance(error, OSError):
        return _explain_os(error)
    return f"{error}{_way_out(error)}"


def _way_out(error: BaseException) -> str:
    if isinstance(error, NotFound) and error.kind == "parent directory":
        return "; make it first (`mkdir -p`), or check the path"
    if isinstance(error, NotFound) and error.kind == "file":
        return "; check the path, or make an image there with `mdstore mkfs`"
    if isinstance(error, NotAnImage) and "mkfs" not in str(error):
        return "; check the path, or make an image with `mdstore mkfs`"
    if isinstance(error, UnsupportedFormat):
        return "; use the version of mdstore that wrote it"
    if isinstance(error, NoSpace):
        return "; remove something (`mdstore rm`) or use a larger image"
    if isinstance(error, MdstoreError) and error.errno in (errno.EACCES, errno.EPERM):
        return _NOT_ALLOWED
    return ""


_NOT_ALLOWED: Final = "; change its permissions, or run as a user who may"
_POSIX_WAYS_OUT: Final = {
    errno.ENOSPC: "the image is full: remove something (`mdstore rm`) or use a larger image",
    errno.ENAMETOOLONG: "a name has at most 255 bytes, a path 4096, a symlink's target 4095",
    errno.EFBIG: "a file has at most 8 PiB",
    errno.EROFS: "it is open read-only",
    errno.EIO: "run `mdstore fsck` on the image",
}


def _explain_posix(error: PosixError) -> str:
    subject = (shown(error.subject) or "''") if isinstance(error.subject, bytes | str) else f"inode {error.subject}"
    text = f"{subject}: {os.strerror(error.errno)}" if error.subject != "" else os.strerror(error.errno)
    if error.reason:
        text += f" ({error.reason})"
    way_out = _POSIX_WAYS_OUT.get(error.errno, "")
    return f"{text}; {way_out}" if way_out else text


def _explain_os(error: OSError) -> str:
    reason = (error.strerror or str(error)) + (_NOT_ALLOWED if error.errno in (errno.EACCES, errno.EPERM) else "")
    if error.errno == errno.ENOENT and error.filename is None and not _has_directory():
        return "the current directory was removed; change to another"
    return f"{shown(error.filename)}: {reason}" if isinstance(error.filename, bytes | str) else reason


def _has_directory() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


# -- progress ----------------------------------------------------------------------------------------------------------


class Progress(Protocol):
    """Told about long work as it goes; cheap enough to be told about every file."""

    def step(self, files: int, size_bytes: int) -> None: ...


class Silent:
    """Progress that nobody watches."""

    def step(self, files: int, size_bytes: int) -> None:
        """Nothing to show."""


class _Bar:
    """A line of rich: files, bytes and time; a bar when the total is known. Redrawn ten times a second at most."""

    def __init__(self, bar: Any, task: Any) -> None:
        self._bar = bar
        self._task = task
        self._files = 0
        self._bytes = 0
        self._due = 0.0

    def step(self, files: int, size_bytes: int) -> None:
        self._files += files
        self._bytes += size_bytes
        now = time.monotonic()
        if now >= self._due:
            self._due = now + _PROGRESS_EVERY_S
            self.draw()

    def draw(self) -> None:
        """Show where things stand now."""
        self._bar.update(self._task, completed=self._files, bytes=size_text(self._bytes))


@contextmanager
def progress(label: str, total_files: int | None = None, *, quiet: bool = False) -> Iterator[Progress]:
    """A progress bar on stderr when that is a terminal and nobody asked for quiet; otherwise nothing."""
    if quiet or not sys.stderr.isatty():
        yield Silent()
        return
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    spinner = SpinnerColumn("dots" if can_write("\u280b", sys.stderr) else "line")
    columns = (spinner, TextColumn("{task.description}"), BarColumn(),
               TextColumn("{task.completed:,.0f} files, {task.fields[bytes]}"), TimeElapsedColumn())  # fmt: skip
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bar:
        line = _Bar(bar, bar.add_task(label, total=total_files, bytes="0 B"))
        yield line
        line.draw()


@contextmanager
def replay_progress() -> Iterator[Callable[[int, int], None] | None]:
    """What to hand to `MetadataServer.mount`: on a terminal, a bar on stderr with the time left, for a replay that takes longer
    than half a second; elsewhere None."""
    if not sys.stderr.isatty():
        yield None
        return
    with ExitStack() as ended:
        due = time.monotonic() + _REPLAY_SHOWN_AFTER_S
        shown: list[Callable[[int, int], None]] = []

        def show(done: int, total: int) -> None:
            if not shown and done < total and time.monotonic() >= due:
                shown.append(_replay_bar(ended))
            for bar in shown:
                bar(done, total)

        yield show


def _replay_bar(ended: ExitStack) -> Callable[[int, int], None]:
    """The bar, until `ended`."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    bar = ended.enter_context(RichProgress(*columns, console=Console(stderr=True), transient=True))
    task = bar.add_task("replaying the log", total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)
