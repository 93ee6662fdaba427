"""`seqrt run`: answers to one prompt or to a file of them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from seqrt.cli.common import Backend, BundlePath, Json, PromptFile, Threads, check_text, command
from seqrt.cli.console import INTERRUPTED, emit, note
from seqrt.cli.session import open_model
from seqrt.runtime.options import Options
from seqrt.runtime.prompts import Prompt, read_prompts

if TYPE_CHECKING:
    from seqrt.runtime.stream import Generation, Stream


@command('seqrt run smollm2 --prompt "Why is the sky blue?" --draft medusa')
def run(
    bundle: BundlePath,
    options: Options,
    prompt: Annotated[str | None, typer.Option(help="Text to answer.", show_default=False)] = None,
    prompts: PromptFile = None,
    backend: Backend = "cpu",
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Answer a prompt, or every prompt of a file.

    The text goes to stdout as it comes, a line of figures to stderr.
    """
    from seqrt.runtime.conversation import play

    conversations = _conversations(prompt, prompts)
    model = open_model(bundle, backend, threads, options)
    results: list[dict[str, object]] = []
    interrupted = False
    answers = (
        (asked, turn, stream) for asked in conversations for turn, stream in enumerate(play(model, asked, options))
    )
    try:
        for asked, turn, stream in answers:
            interrupted = _show(stream, quiet=as_json)
            results.append({"prompt": asked.id, "turn": turn} | stream.result.to_dict())
            if not as_json:
                note(summary(stream.result))
            if interrupted:
                break
        if as_json:
            document = {"results": results} if prompts is not None else stream.result.to_dict()
            emit(document | ({"interrupted": True} if interrupted else {}))
    finally:
        model.save_memory(options)  # also of answers before one that failed
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def summary(generation: "Generation") -> str:
    """A line on what an answer took."""
    seconds = generation.seconds
    return (
        f"{generation.new_tokens} tokens ({generation.finish_reason}),"
        f" {generation.tokens_per_second:.1f} tokens/s,"
        f" {generation.tokens_per_step:.2f} tokens per step ({generation.draft}),"
        f" first token after {seconds['prefill']:.2f} s, load {seconds['load']:.2f} s"
    )


def _conversations(prompt: str | None, prompts: Path | None) -> list[Prompt]:
    if (prompt is None) == (prompts is None):
        raise typer.BadParameter("give either --prompt TEXT or --prompts FILE")
    if prompts is not None:
        return read_prompts(prompts)
    assert prompt is not None
    check_text("--prompt", prompt)
    return [Prompt(turns=(prompt,))]


def _show(stream: "Stream", *, quiet: bool) -> bool:
    """Prints the pieces of an answer; True if the user interrupted it."""
    try:
        for piece in stream:
            if not quiet:
                sys.stdout.write(piece)
                sys.stdout.flush()
    except KeyboardInterrupt:
        return True
    finally:
        if not quiet:
            sys.stdout.write("\n")
    return False
