"""`seqrt profile`: how fast each drafter is, and where the time goes."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from seqrt.cli.common import (
    Backend,
    BundlePath,
    Drafts,
    Json,
    PromptFile,
    Threads,
    check_drawing,
    check_output,
    command,
    refuse,
)
from seqrt.cli.console import emit, note, progress
from seqrt.cli.doctor_jetson import power_mode_here
from seqrt.cli.profile_words import profile_words
from seqrt.cli.report.tables import FORMATS, print_profile, warnings
from seqrt.cli.session import drafted, open_model, prompts_of
from seqrt.errors import RequestError, SeqrtError
from seqrt.runtime.bundle import read_manifest
from seqrt.runtime.options import Options
from seqrt.runtime.prompts import prompts_sha256

if TYPE_CHECKING:
    from seqrt.runtime.model import Model
    from seqrt.runtime.profiling.measure import Measurement
    from seqrt.runtime.profiling.operators import Traced
    from seqrt.runtime.profiling.run import Amount
    from seqrt.runtime.prompts import Prompt

_NEW_TOKENS: Final = 64
_PAGE: Final = (".html", ".htm")


@command(
    "seqrt profile smollm2 --draft none,lookup,hydra --prompts prompts.jsonl --html profile.html",
    without=("draft", "log_probabilities"),
    defaults={"max_new_tokens": _NEW_TOKENS},
)
def profile(
    bundle: BundlePath,
    options: Options,
    prompts: PromptFile = None,
    draft: Drafts = None,
    repeat: Annotated[int, typer.Option(help="Play all prompts so often.")] = 1,
    warmup: Annotated[int, typer.Option(help="Play so many prompts before with each drafter, uncounted.")] = 1,
    pp: Annotated[
        int | None, typer.Option(help="Tokens of the prompt of llama-bench's pp; 512 if not given, 0 for none.")
    ] = None,
    tg: Annotated[
        int | None, typer.Option(help="Tokens generated in llama-bench's tg; 128 if not given, 0 for none.")
    ] = None,
    as_format: Annotated[str, typer.Option("--format", help="Of what is printed: table, markdown or csv.")] = "table",
    html: Annotated[Path | None, typer.Option(help="Write a page with figures.", show_default=False)] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write a timeline for ui.perfetto.dev, operators included.", show_default=False)
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(help="Of a recogniser: files or folders of images; repeat for several.", show_default=False),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="Of a recogniser: images read at once; 1,16 if not given."),
    ] = None,
    backend: Backend = "cpu",
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Measure drafters beside plain decoding, or a recogniser by batch size.

    They take turns, prompt by prompt. Without --prompts, a dozen of our own are played; without --images, a dozen
    words are read. Ctrl-C ends it early, and prints what was measured by then. docs/profiling.md defines every number;
    `seqrt compare` compares two profiles.
    """
    from seqrt.runtime.profiling.operators import by_module
    from seqrt.runtime.profiling.run import profile as run

    _check(repeat, warmup, pp, tg, as_format)
    if read_manifest(bundle).task == "ocr":
        others: dict[str, object] = {
            "prompts": prompts,
            "draft": draft,
            "pp": pp,
            "tg": tg,
            "html": html,
            "trace": trace,
        }
        usual = dataclasses.replace(Options(), max_new_tokens=_NEW_TOKENS)
        others |= {
            field.name.replace("_", "-"): True
            for field in dataclasses.fields(options)
            if getattr(options, field.name) != getattr(usual, field.name)
        }
        refuse(others, "is of no use to a recogniser")
        profile_words(bundle, images, batch, repeat, warmup, as_format, backend, threads, as_json=as_json)
        return
    refuse({"images": images, "batch": batch}, "is of no use to a language model")
    check_output("--trace", trace)
    check_drawing("--html", html, _PAGE)
    asked = prompts_of(prompts)
    model = open_model(bundle, backend, threads)
    wanted = drafted(model, draft, options)
    amount = _amount(model, repeat, warmup, pp, tg)
    settings = _settings(options, model, asked) | dataclasses.asdict(amount) | {"warm_up": _warm_up(warmup)}
    if as_format == FORMATS[0] and not as_json:
        note(f"warm-up: {settings['warm_up']}")
    with progress("profiling", len(asked) * len(wanted) * repeat) as advance:
        try:
            made = run(model, asked, wanted, amount, threads=threads, settings=settings, advance=advance)
        except KeyboardInterrupt:
            note("nothing was measured yet")
            raise
    document, rows, stopped_by = made.document, made.measured.rows, made.measured.stopped_by
    document["environment"]["power_mode"] = power_mode_here()
    traced: list[Traced] = []
    if (trace or html) and stopped_by is None:
        model.close()  # before another takes as much memory
        traced, stopped_by = _operators(bundle, backend, threads, asked[0], wanted)
        document |= {"operators": by_module(traced)} if traced else {}
    _print(document, None if as_json else as_format)  # first of all, whatever happens to the files
    _write_files(document, rows, traced, trace, html)
    if stopped_by is not None:
        raise stopped_by


def _print(document: dict[str, Any], as_format: str | None) -> None:
    """On stdout; where stdout is for programs, warnings go to stderr."""
    if as_format is None:
        emit(document)
    else:
        print_profile(document, as_format)
    if as_format in (None, "csv"):
        for warning in warnings(document):
            note(warning)


def _write_files(
    document: dict[str, Any],
    rows: "Sequence[Measurement]",
    traced: "Sequence[Traced]",
    trace: Path | None,
    html: Path | None,
) -> None:
    if trace is not None:
        from seqrt.runtime.profiling.trace import chrome_trace

        _write("--trace", trace, json.dumps(chrome_trace(rows, traced), separators=(",", ":")))
    if html is not None:
        from seqrt.cli.report.page import page

        _write("--html", html, page(document, rows))


def _amount(model: "Model", repeat: int, warmup: int, pp: int | None, tg: int | None) -> "Amount":
    """How much is measured.

    Raises:
        RequestError: more tokens are asked for than the bundle holds.
    """
    from seqrt.runtime.profiling.run import Amount

    capacity, usual = model.bundle.manifest.capacity, Amount()
    for flag, tokens in (("--pp", pp), ("--tg", tg)):
        if tokens is not None and tokens >= capacity:
            raise RequestError(f"{flag} is {tokens}, the bundle's capacity is {capacity}; give {capacity - 1} or less")
    counts = (min(default, capacity - 1) if own is None else own for own, default in ((pp, usual.pp), (tg, usual.tg)))
    return Amount(repeat, warmup, *counts)


def _operators(
    bundle: Path, backend: str, threads: int, prompt: "Prompt", wanted: Sequence[Options]
) -> "tuple[list[Traced], BaseException | None]":
    """Operators of a few more steps, from engines that keep their times; none and the reason, if that fails."""
    from seqrt.runtime.model import load
    from seqrt.runtime.profiling.operators import trace_operators

    try:
        with load(bundle, backend=backend, threads=threads, operators=True) as slow:
            return trace_operators(slow, prompt, wanted), None
    except (KeyboardInterrupt, MemoryError, SeqrtError) as error:
        note("there are no times of operators; all else was measured")
        return [], error


def _check(repeat: int, warmup: int, pp: int | None, tg: int | None, as_format: str) -> None:
    for name, value, least in (("repeat", repeat, 1), ("warmup", warmup, 0), ("pp", pp, 0), ("tg", tg, 0)):
        if value is not None and value < least:
            raise RequestError(f"--{name} is {value}; give {least} or more")
    if as_format not in FORMATS:
        raise RequestError(f"--format is {as_format!r:.40}; choose one of {', '.join(FORMATS)}, or --json")


def _settings(options: Options, model: "Model", asked: "Sequence[Prompt]") -> dict[str, object]:
    """What the user may have changed; the drafter is a matter of the rows."""
    values = dataclasses.asdict(options)
    del values["draft"], values["log_probabilities"]
    values["logit_bias"] = {token: str(bias) for token, bias in options.logit_bias.items()}  # JSON has no -inf
    manifest = model.bundle.manifest
    return values | {
        "backend": model.backend,
        "bundle": manifest.name,
        "quantization": manifest.quantization,
        "capacity": manifest.capacity,
        "variant": model.engines.variant,
        "tuned": model.tuning is not None,
        "prompts": len(asked),
        "prompts_sha256": prompts_sha256(asked),
    }


def _warm_up(count: int) -> str:
    if not count:
        return "none"
    return f"the first {f'{count} prompts' if count > 1 else 'prompt'} once with each drafter, not counted"


def _write(flag: str, file: Path, text: str) -> None:
    from seqrt.runtime.files import write_whole

    try:
        write_whole(file, lambda new: new.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"{flag} {file} cannot be written: {error.strerror}; give another file") from error
    note(f"written to {file}")
