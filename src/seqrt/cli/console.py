"""What commands print: results on stdout, everything else on stderr, progress only where somebody watches."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TextIO

# Exit codes besides 0.
FAILURE: Final = 1
USAGE: Final = 2  # an unknown option, or a value out of range
REGRESSION: Final = 3  # `seqrt compare` found one
INTERRUPTED: Final = 130

_WIDEST: Final = 200


def emit(document: object) -> None:
    """Prints the one JSON document of a command on stdout."""
    # The escapes that an encoding other than UTF-8 needs must be those of JSON.
    is_unicode = (sys.stdout.encoding or "utf-8").lower().startswith("utf")
    print(json.dumps(document, ensure_ascii=not is_unicode, allow_nan=False, indent=2))


def note(text: str) -> None:
    """Prints a line for people on stderr."""
    print(f"seqrt: {text}", file=sys.stderr, flush=True)


def fail(text: str) -> None:
    """Prints the one line of a failure on stderr."""
    line = " ".join(text.split())
    # What the user typed may be no valid UTF-8, and stderr may be closed: neither may hide the exit code.
    with contextlib.suppress(OSError, ValueError):
        print("seqrt: error: " + line.encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)


@contextlib.contextmanager
def everything_to_stderr() -> Iterator[None]:
    """Keeps stdout clean of what libraries print."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """A function that shows what is being done, on stderr when it is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status("starting") as shown:
        yield shown.update


@contextlib.contextmanager
def progress(description: str, total: int | None, *, hidden: bool = False) -> Iterator[Callable[[], None]]:
    """A function that moves a bar on by one, on stderr when it is a terminal and the bar is not hidden.

    Of a total that nobody knows, None, the bar says how many there were.
    """
    if hidden or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(description), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # What the command prints meanwhile is for stdout, which rich would turn to its own console.
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=False) as bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], file: TextIO | None = None) -> None:
    """Prints a table; the first column is text, the others are figures."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # As wide as it needs to be, also where the terminal is not: figures that are cut off are wrong ones.
    out = file or sys.stdout
    Console(file=out, width=_WIDEST, highlight=False, markup=False).print(table)
