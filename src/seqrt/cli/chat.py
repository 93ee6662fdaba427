"""`seqrt chat`: a conversation in the terminal."""

import contextlib
import sys
from typing import TYPE_CHECKING, Annotated, Final, TextIO

import typer

from seqrt.cli.common import Backend, BundlePath, Json, Threads, check_text, command
from seqrt.cli.console import emit, fail, note
from seqrt.cli.run import summary
from seqrt.cli.session import open_model
from seqrt.errors import RequestError, SeqrtError
from seqrt.runtime.options import Options

if TYPE_CHECKING:
    from seqrt.runtime.chat import Message
    from seqrt.runtime.conversation import Conversation
    from seqrt.runtime.model import Model

_HELP: Final = "/reset forgets the conversation, /exit or Ctrl-D ends, Ctrl-C stops an answer"


@command("seqrt chat smollm2 --draft medusa", without=("raw", "log_probabilities"))
def chat(
    bundle: BundlePath,
    options: Options,
    system: Annotated[str | None, typer.Option(help="What the model is told first.", show_default=False)] = None,
    backend: Backend = "cpu",
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Talk with a model.

    It remembers the conversation and computes no part of it twice. /reset forgets it, /exit or Ctrl-D ends,
    Ctrl-C stops an answer.
    """
    if system is not None:
        check_text("--system", system)
    start: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    model = open_model(bundle, backend, threads, options)
    if sys.stdin.isatty():
        note(_HELP)
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  gives `input` editing and a history
    try:
        results = _talk(model, start, options, sys.stderr if as_json else sys.stdout)
        if as_json:
            emit({"results": results})
    finally:
        model.save_memory(options)  # also where Ctrl-C ends the conversation


def _talk(model: "Model", start: "list[Message]", options: Options, out: TextIO) -> list[dict[str, object]]:
    """Answers line after line until the user has enough."""
    from seqrt.runtime.conversation import Conversation

    conversation, results = Conversation(start), []
    while (text := _ask()) is not None:
        if text == "/exit":
            break
        if text == "/reset":
            conversation = Conversation(start)
            continue
        if text.startswith("/") and " " not in text:
            note(f"{text} is no command: {_HELP}")
        elif text.strip():
            results += _answer(model, conversation, text, options, out)
    return results


def _ask() -> str | None:
    """A line from the user, None at the end of the input."""
    try:
        if sys.stdin.isatty():
            sys.stderr.write("> ")
            sys.stderr.flush()
        return input()
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise RequestError(
            f"the input is not valid UTF-8 (byte 0x{error.object[error.start]:02x}); type or pipe UTF-8"
        ) from error


def _answer(
    model: "Model", conversation: "Conversation", text: str, options: Options, out: TextIO
) -> list[dict[str, object]]:
    """Streams the answer to `text`; an interrupted one stays in the conversation as far as it came.

    A message that cannot be served is reported and forgotten; the conversation goes on without it.
    """
    before = list(conversation.messages)
    conversation.ask(text)
    stopped = begun = False
    try:
        stream = conversation.stream(model, options)
        try:
            for piece in stream:
                begun = True
                out.write(piece)
                out.flush()
        except KeyboardInterrupt:
            stopped = True
    except SeqrtError as error:
        if begun:
            out.write("\n")
            out.flush()
        fail(f"{error} (/reset forgets the conversation)")
        conversation.messages[:] = before
        return []
    out.write("\n")
    out.flush()
    if stopped:
        note("stopped")
    result = stream.result
    conversation.answer(result.text)
    if sys.stdin.isatty():
        note(summary(result))
    return [result.to_dict()]
