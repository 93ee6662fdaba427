"""`seqrt tune`: the fastest tree of each drafter on this machine, from measured costs and measured acceptance."""

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from seqrt.cli.common import Backend, BundlePath, Drafts, Json, PromptFile, Threads, check_drawing, command
from seqrt.cli.console import emit, note, print_table, status
from seqrt.cli.session import drafted, open_model, prompts_of
from seqrt.errors import RequestError
from seqrt.runtime.options import DYNAMIC, Options

if TYPE_CHECKING:
    from seqrt.runtime.tuned import Choice, Tuning

_OPTIONS: Final = ("tree", "corpus", "memory", "max_rows", "max_new_tokens", "ignore_eos", "raw")
_SHOWN_RANKS: Final = 4
_SHOWN_DEPTH: Final = 6
_FORMATS: Final = (".svg", ".png", ".pdf")


@command(
    "seqrt tune smollm2 --budget-seconds 120 --plot tuning.svg",
    without=tuple(field.name for field in dataclasses.fields(Options) if field.name not in _OPTIONS),
    defaults={"max_new_tokens": 64},
)
def tune(
    bundle: BundlePath,
    options: Options,
    prompts: PromptFile = None,
    draft: Drafts = None,
    budget_seconds: Annotated[float, typer.Option(help="About what it may take.")] = 120.0,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves: .svg, .png or .pdf.", show_default=False)] = None,
    backend: Backend = "cpu",
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Find the fastest tree of each drafter on this machine, and keep it in the bundle.

    Measures what a step costs by its rows, and what each drafter gets right on prompts; replays the answers with
    trees of every size; and measures the best of each. run, chat and profile then start from these costs and, with
    --no-adaptive, verify the chosen trees. A quantised bundle is tuned for chains, which change no text, unless
    --tree dynamic allows branches.
    """
    from seqrt.runtime.drafters.build import for_draft
    from seqrt.runtime.tune import tune as find
    from seqrt.runtime.tuned import tuning_file

    if not 0 < budget_seconds < float("inf"):
        raise RequestError(f"--budget-seconds is {budget_seconds}; give a number above 0")
    if options.tree not in (None, DYNAMIC):
        raise RequestError(f"--tree is {options.tree!r:.60}; give dynamic, or leave it out: finding trees is the aim")
    check_drawing("--plot", plot, _FORMATS)
    if not os.access(bundle, os.W_OK) and bundle.is_dir():
        raise RequestError(
            f"{bundle} cannot be written, and {tuning_file(backend)} belongs there; copy the bundle elsewhere"
        )
    asked = prompts_of(prompts)
    model = open_model(bundle, backend, threads)
    before = model.tuning
    model.tuning = model.tuning_note = None  # what was found before must not steer what is measured now
    wanted = [one for one in drafted(model, draft, options) if one.draft != "none"]
    if not wanted:
        raise RequestError("--draft none leaves nothing to tune; name a drafter")
    if model.branches:
        wanted = [for_draft(dataclasses.replace(one, tree=DYNAMIC), one.draft) for one in wanted]
    with status() as show:
        tuning = find(model, asked, wanted, threads, budget_seconds, show)
    if as_json:
        emit(dataclasses.asdict(tuning))
    else:
        _print(tuning)
    if before is not None:
        tuning = tuning.with_others(before)
    file = tuning.save(model.bundle)
    if plot is not None:
        from seqrt.cli.tune_plot import draw

        draw(tuning, plot)
    if tuning.prompts < len(asked):
        note(
            f"{tuning.prompts} of {len(asked)} prompts fitted into --budget-seconds {budget_seconds:g}; more are surer"
        )
    note(f"written to {file}: run, chat and profile start from these costs, and with --no-adaptive verify these trees")


def _print(tuning: "Tuning") -> None:
    from seqrt.runtime.drafters.build import LUD

    base = tuning.step_ms[0]
    print_table(
        ("rows", "step ms", "of plain"),
        [(str(rows), f"{ms:.2f}", f"{ms / base:.2f}") for rows, ms in zip(tuning.rows, tuning.step_ms, strict=True)],
    )
    print_table(
        ("draft", "depth", *(f"rank {rank}" for rank in range(_SHOWN_RANKS))),
        [
            (choice.draft, str(depth), *(f"{rate:.3f}" for rate in row[:_SHOWN_RANKS]))
            for choice in tuning.choices
            for depth, row in enumerate(choice.acceptance[:_SHOWN_DEPTH], start=1)
        ],
    )
    plain, measured = tuning.plain_tokens_per_second, tuning.measured_plain_tokens_per_second
    print_table(
        ("draft", "rows", "tok/step", "draft ms", "predicted tok/s", "speed-up", "measured tok/s", "speed-up"),
        [
            ("none", "1", "1.00", "", *_speed(plain, plain), *_speed(measured, measured)),
            *(_row(choice, plain, measured) for choice in tuning.choices),
        ],
    )
    for choice in tuning.choices:
        if choice.tree is not None:
            print(f"{choice.draft}: --tree {choice.tree if choice.tree == DYNAMIC else repr(choice.tree)}")
        if choice.draft == LUD and choice.rows > 1:
            print(f"{choice.draft}: --lookahead {(choice.rows + 1) // 2}")
    speeds = {"none": measured or plain}
    for choice in tuning.choices:
        speeds[choice.draft] = choice.measured_tokens_per_second or (choice.rows > 1) * choice.tokens_per_second
    print(f"fastest: --draft {max(speeds, key=lambda name: speeds[name])}")


def _row(choice: "Choice", plain: float, measured: float | None) -> tuple[str, ...]:
    draft_ms = f"{choice.draft_ms:.2f}" if choice.rows > 1 else ""
    speeds = (*_speed(choice.tokens_per_second, plain), *_speed(choice.measured_tokens_per_second, measured))
    return (choice.draft, str(choice.rows), f"{choice.tokens_per_step:.2f}", draft_ms, *speeds)


def _speed(value: float | None, plain: float | None) -> tuple[str, str]:
    return ("", "") if not value or not plain else (f"{value:.1f}", f"{value / plain:.2f}x")
