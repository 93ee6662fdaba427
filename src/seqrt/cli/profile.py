"""`seqrt profile`: how fast each drafter is, and where the time goes."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from seqrt.cli.common import Backend, BundlePath, Drafts, Json, PromptFile, Threads, command
from seqrt.cli.console import emit, note, print_table, progress
from seqrt.cli.session import drafted, open_model, prompts_of
from seqrt.errors import RequestError
from seqrt.runtime.options import Options

_SHOWN_DEPTH: Final = 8
_WARM_UP: Final = "the first prompt once with each drafter, not counted"


@command(
    "seqrt profile smollm2 --prompts prompts.jsonl --repeat 3",
    without=("draft", "log_probabilities"),
    defaults={"max_new_tokens": 64},
)
def profile(
    bundle: BundlePath,
    options: Options,
    prompts: PromptFile = None,
    draft: Drafts = None,
    repeat: Annotated[int, typer.Option(help="Play all prompts so often.")] = 1,
    backend: Backend = "cpu",
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Measure drafters beside plain decoding.

    They take turns, prompt by prompt. Warm-up (the first prompt once with each drafter) is not counted.
    Without --prompts, a dozen of our own are played.
    """
    from seqrt.runtime.machine import environment
    from seqrt.runtime.profile import SCHEMA, measure, rows, weight_bytes

    if repeat < 1:
        raise RequestError(f"--repeat is {repeat}; give 1 or more")
    asked = prompts_of(prompts)
    model = open_model(bundle, backend, threads)
    wanted = drafted(model, draft, options)
    with progress("profiling", len(asked) * len(wanted) * repeat) as advance:
        found = measure(model, asked, wanted, repeat=repeat, advance=advance)
    table = rows(found, [model.plan(one).tree for one in wanted], len(asked), weight_bytes(model))
    if as_json:
        manifest = model.bundle.manifest
        settings = _settings(options) | {"repeat": repeat, "warm_up": _WARM_UP, "backend": backend}
        settings |= {
            "bundle": manifest.name,
            "quantization": manifest.quantization,
            "capacity": manifest.capacity,
        }
        emit(
            {
                "schema": SCHEMA,
                "environment": environment(threads)
                | {"engine": model.engines.description, "gpu": model.engines.device},
                "settings": settings,
                "rows": table,
            }
        )
        return
    note(f"warm-up: {_WARM_UP}")
    _print(table)


def _settings(options: Options) -> dict[str, object]:
    """What the user may have changed; the drafter is a matter of the rows."""
    values = dataclasses.asdict(options)
    del values["draft"], values["log_probabilities"]
    values["logit_bias"] = {token: str(bias) for token, bias in options.logit_bias.items()}  # JSON has no -inf
    return values


def _print(table: Sequence[dict[str, Any]]) -> None:
    print_table(
        (
            "draft",
            "tok/s",
            "speed-up",
            "tok/step",
            "TTFT ms",
            "p99",
            "step ms",
            "p99",
            "draft",
            "verify",
            "host",
            "GB/s",
        ),
        [
            (
                row["draft"],
                f"{row['tokens_per_second']:.1f}",
                _figure(row["speedup_vs_none"], 2),
                f"{row['tokens_per_step']:.2f}",
                *(_figure(row[name][p], 1) for name in ("ttft_ms", "step_ms") for p in ("p50", "p99")),
                *(_figure(row["stages_ms"][name]["p50"], 2) for name in ("draft", "verify", "host")),
                _figure(row["gb_per_second"], 2),
            )
            for row in table
        ],
    )
    for row in table:
        if row["acceptance_by_depth"]:
            rates = " ".join(f"{rate:.2f}" for rate in row["acceptance_by_depth"][:_SHOWN_DEPTH])
            print(f"{row['draft']}: acceptance by depth {rates}")


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
