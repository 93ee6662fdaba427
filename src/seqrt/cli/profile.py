"""`seqrt profile`: how fast each drafter is, and where the time goes."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from seqrt.cli.common import Backend, BundlePath, Drafts, Json, PromptFile, Threads, check_output, command
from seqrt.cli.console import emit, note, progress
from seqrt.cli.doctor_jetson import power_mode
from seqrt.cli.report.tables import FORMATS, print_profile
from seqrt.cli.session import drafted, open_model, prompts_of
from seqrt.errors import RequestError
from seqrt.runtime.options import Options

if TYPE_CHECKING:
    from seqrt.runtime.model import Model
    from seqrt.runtime.profiling.operators import Traced
    from seqrt.runtime.prompts import Prompt

_PAGE: Final = (".html", ".htm")


@command(
    "seqrt profile smollm2 --draft none,lookup,hydra --prompts prompts.jsonl --html profile.html",
    without=("draft", "log_probabilities"),
    defaults={"max_new_tokens": 64},
)
def profile(
    bundle: BundlePath,
    options: Options,
    prompts: PromptFile = None,
    draft: Drafts = None,
    repeat: Annotated[int, typer.Option(help="Play all prompts so often.")] = 1,
    warmup: Annotated[int, typer.Option(help="Play so many prompts before, which are not counted.")] = 1,
    pp: Annotated[
        int, typer.Option(help="Also measure a prompt of so many tokens, as llama-bench does; 0: not.")
    ] = 512,
    tg: Annotated[int, typer.Option(help="Also measure so many generated tokens, likewise; 0: not.")] = 128,
    as_format: Annotated[str, typer.Option("--format", help="Of what is printed: table, markdown or csv.")] = "table",
    html: Annotated[Path | None, typer.Option(help="Write a page with figures.", show_default=False)] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write a timeline for ui.perfetto.dev, operators included.", show_default=False)
    ] = None,
    backend: Backend = "cpu",
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Measure drafters beside plain decoding.

    They take turns, prompt by prompt. Without --prompts, a dozen of our own are played. Ctrl-C ends it early, and
    prints what was measured by then. docs/profiling.md defines every number; `seqrt compare` compares two profiles.
    """
    from seqrt.runtime.profiling.run import Amount
    from seqrt.runtime.profiling.run import profile as run

    _check(repeat, warmup, pp, tg, as_format)
    check_output("--trace", trace)
    _check_page(html)
    asked = prompts_of(prompts)
    model = open_model(bundle, backend, threads)
    wanted = drafted(model, draft, options)
    amount = Amount(repeat=repeat, warm_up=warmup, pp=pp, tg=tg)
    settings = _settings(options, model, asked) | dataclasses.asdict(amount) | {"warm_up": _warm_up(warmup)}
    if as_format == FORMATS[0] and not as_json:
        note(f"warm-up: {settings['warm_up']}")
    with progress("profiling", len(asked) * len(wanted) * repeat) as advance:
        made = run(model, asked, wanted, amount, threads=threads, settings=settings, advance=advance)
    document = made.document
    mode = power_mode(Path("/"))
    document["environment"]["power_mode"] = None if mode is None else mode.detail
    traced = _operators(bundle, backend, threads, asked[0], wanted, document) if trace or html else []
    if trace is not None:
        from seqrt.runtime.profiling.trace import chrome_trace

        _write(trace, json.dumps(chrome_trace(made.measured.rows, traced), separators=(",", ":")))
    if html is not None:
        from seqrt.cli.report.page import page

        _write(html, page(document, made.measured.rows))
    if as_json:
        emit(document)
    else:
        print_profile(document, as_format)
    for warning in document["stability"]["warnings"]:
        note(f"warning: {warning}")
    if not document["complete"]:
        played = len({(answer["prompt"], answer["repeat"]) for answer in document["rows"][0]["answers"]})
        note(f"of {played} of {len(asked) * repeat} conversations, and marked so (complete: false)")
        raise KeyboardInterrupt


def _operators(
    bundle: Path, backend: str, threads: int, prompt: "Prompt", wanted: Sequence[Options], document: dict[str, Any]
) -> "list[Traced]":
    """Operators of a few more steps, from engines that keep their times; their summary goes to the document."""
    from seqrt.runtime.model import load
    from seqrt.runtime.profiling.operators import by_module, trace_operators

    if not document["complete"]:
        return []
    try:
        with load(bundle, backend=backend, threads=threads, operators=True) as slow:
            traced = trace_operators(slow, prompt, wanted)
    except KeyboardInterrupt:  # what was measured is not lost
        document["complete"] = False
        return []
    document["operators"] = by_module(traced)
    return traced


def _check(repeat: int, warmup: int, pp: int, tg: int, as_format: str) -> None:
    for name, value, least in (("repeat", repeat, 1), ("warmup", warmup, 0), ("pp", pp, 0), ("tg", tg, 0)):
        if value < least:
            raise RequestError(f"--{name} is {value}; give {least} or more")
    if as_format not in FORMATS:
        raise RequestError(f"--format is {as_format!r:.40}; choose one of {', '.join(FORMATS)}, or --json")


def _check_page(html: Path | None) -> None:
    """Raises RequestError before anything is measured."""
    import importlib.util

    check_output("--html", html, _PAGE)
    if html is not None and importlib.util.find_spec("matplotlib") is None:
        raise RequestError("--html needs matplotlib; run: pip install 'seqrt[plot]'")


def _settings(options: Options, model: "Model", asked: "Sequence[Prompt]") -> dict[str, object]:
    """What the user may have changed; the drafter is a matter of the rows."""
    values = dataclasses.asdict(options)
    del values["draft"], values["log_probabilities"]
    values["logit_bias"] = {token: str(bias) for token, bias in options.logit_bias.items()}  # JSON has no -inf
    texts = json.dumps([dataclasses.asdict(prompt) for prompt in asked], sort_keys=True)
    manifest = model.bundle.manifest
    return values | {
        "backend": model.backend,
        "bundle": manifest.name,
        "quantization": manifest.quantization,
        "capacity": manifest.capacity,
        "variant": model.engines.variant,
        "prompts": len(asked),
        "prompts_sha256": hashlib.sha256(texts.encode(errors="surrogatepass")).hexdigest(),
    }


def _warm_up(count: int) -> str:
    if not count:
        return "none"
    return f"the first {f'{count} prompts' if count > 1 else 'prompt'} once with each drafter, not counted"


def _write(file: Path, text: str) -> None:
    from seqrt.runtime.files import write_whole

    write_whole(file, lambda new: new.write_text(text, encoding="utf-8"))
    note(f"written to {file}")
