"""The command `seqrt`: one module a command, and here what they share: arguments in, exit code out.

A failure is one line on stderr; `--debug` adds the traceback.
"""

import contextlib
import errno
import importlib
import io
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Final

import typer

from seqrt.cli.common import Debug, State
from seqrt.cli.console import FAILURE, INTERRUPTED, USAGE, fail
from seqrt.errors import SeqrtError

__all__ = ["main"]

_EXIT_CODES: Final = (
    "Exit codes: 0 success, 1 failure, 2 an unknown option or a value out of range, 3 slower (compare),"
    " 130 interrupted."
)
_ADVICE: Final = {
    errno.ENOSPC: "free some space or choose another disk",
    errno.EACCES: "choose a path that you may use",
    errno.EMFILE: "close other programs",
}
_COMMANDS: Final = (
    "export",
    "build",
    "run",
    "chat",
    "ocr",
    "solve",
    "profile",
    "compare",
    "tune",
    "verify",
    "inspect",
    "doctor",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; never raises.

    Args:
        arguments: what follows `seqrt`; those of the process if None.
    """
    state = State()
    try:
        _print_anything()
        code = _invoke(list(sys.argv[1:] if arguments is None else arguments), state)
        sys.stdout.flush()  # a full disk is found here at the latest
        return code
    except BaseException as error:
        if state.debug:
            traceback.print_exception(error)
        return _report(error)


def _print_anything() -> None:
    """What the encoding of a stream lacks is printed as an escape; it must not end the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _app() -> typer.Typer:
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        help="Export sequence models and their draft heads, and run them without torch.",
        epilog=_EXIT_CODES,
    )
    for name in _COMMANDS:
        command = getattr(importlib.import_module(f"seqrt.cli.{name}"), name)
        app.command(name, epilog=command.epilog)(command)
    app.callback()(_about)
    return app


def _version(value: bool) -> None:
    if value:
        import seqrt

        print(f"seqrt {seqrt.__version__}")
        raise typer.Exit


def _about(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    debug: Debug = False,
) -> None:
    """Export sequence models and their draft heads, and run them without torch."""


def _invoke(arguments: list[str], state: State) -> int:
    """Parses and runs. Not by `app()`: that prints and exits by itself, and swallows interrupts."""
    command = typer.main.get_command(_app())
    try:
        with command.make_context("seqrt", arguments or ["--help"], obj=state) as context:
            command.invoke(context)
    except typer.Exit as finished:
        return finished.exit_code
    return 0


def _report(error: BaseException) -> int:
    """Says in one line what went wrong; returns the exit code."""
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        fail("interrupted")
        return INTERRUPTED
    if isinstance(error, SeqrtError):
        fail(str(error))
        return USAGE if error.names_option else FAILURE
    if hasattr(error, "format_message"):  # an error of click, which newer typers carry under another name
        context = getattr(error, "ctx", None)
        hint = f"; see: {context.command_path} --help" if context is not None else ""
        fail(error.format_message().rstrip(".") + hint)
        return int(getattr(error, "exit_code", USAGE))
    if isinstance(error, OSError):
        return _report_os(error)
    if isinstance(error, MemoryError):
        fail("out of memory; close other programs, use a smaller model or a quantised bundle")
        return FAILURE
    what = f"{type(error).__name__}: {str(error) or 'no message'}"
    fail(f"unexpected {what}; add --debug for the traceback, and report it")
    return FAILURE


def _report_os(error: OSError) -> int:
    """A file or stream failed: a pipe that nobody reads any more, a full disk, a forbidden place."""
    if error.errno in (errno.EPIPE, errno.ENOSPC):
        # What is still buffered would fail again when the interpreter closes stdout.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if error.errno == errno.EPIPE:
        fail("the output was closed before everything was written")
        return FAILURE
    where = f"{error.filename}: " if error.filename else ""
    advice = _ADVICE.get(error.errno or 0, "check that this path and its disk can be used")
    fail(f"{where}{error.strerror or error}; {advice}")
    return FAILURE
