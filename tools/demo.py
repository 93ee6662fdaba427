"""The demo: prompts answered without and with drafting, the answers compared, the speeds in one table.

    python -m tools.demo BUNDLE [--prompt TEXT ...] [--max-new-tokens N] [--repeats N] [--threads N]

Each way of drafting first streams its answer; then all run in turn, so that a busy moment of the machine
meets each of them, and the medians are printed. Exit code 1 when a drafted answer is not the plain one, unless
the weights are quantised: then it is said, and why.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from seqrt.errors import SeqrtError
from seqrt.runtime.lossless import Divergence, divergence
from seqrt.runtime.model import Model, load
from seqrt.runtime.stream import Generation

# An answer that repeats most of its prompt, as edits do, and one that repeats little.
PROMPTS = (
    """Add a docstring to each method of this Python class and return the whole class:

class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError('pop from empty stack')
        return self.items.pop()

    def size(self):
        return len(self.items)
""",
    "Write a Python class for a bank account with methods to deposit, withdraw and show the balance.",
)
QUANTIZED = (
    "Kernels for quantised weights round activations to int8, and a last bit more or less may change which way one"
    " is rounded; with a bundle of --quantize none the texts are the same."
)


@dataclass(frozen=True, slots=True)
class Speed:
    """Medians over the repeats of one way of drafting; the first token comes with the prompt and counts for no step."""

    draft: str
    tokens_per_second: float
    tokens_per_step: float
    first_token_ms: float

    @classmethod
    def of(cls, draft: str, runs: Sequence[Generation]) -> "Speed":
        """Summarises the runs."""
        return cls(
            draft,
            median(run.tokens_per_second for run in runs),
            median((run.new_tokens - 1) / run.steps if run.steps else 1.0 for run in runs),
            1e3 * median(run.seconds["prefill"] for run in runs),
        )


def measure(model: Model, prompt: str, max_new_tokens: int, repeats: int) -> dict[str, list[Generation]]:
    """Answers by way of drafting, `repeats` of each, run in turn and each from an empty cache."""
    runs: dict[str, list[Generation]] = {draft: [] for draft in model.ready_drafts}
    for _ in range(repeats):
        for draft, done in runs.items():
            model.forget(learnt=True)
            done.append(model.generate(prompt, draft=draft, max_new_tokens=max_new_tokens))
    return runs


def table(prompts: Sequence[Sequence[Speed]]) -> Table:
    """One row a prompt and way of drafting; the first way is what the others are compared with."""
    result = Table("prompt", "draft")
    for name in ("tok/s", "tokens per step", "time to first token", "speed-up"):
        result.add_column(name, justify="right")
    for number, speeds in enumerate(prompts, start=1):
        for speed in speeds:
            result.add_row(
                str(number),
                speed.draft,
                f"{speed.tokens_per_second:.1f}",
                f"{speed.tokens_per_step:.2f}",
                f"{speed.first_token_ms:.0f} ms",
                f"{speed.tokens_per_second / speeds[0].tokens_per_second:.2f}x",
            )
        result.add_section()
    return result


def verdict(draft: str, found: Divergence | None) -> str:
    """One line on whether the drafted answer is the plain one, as `seqrt verify` judges it."""
    if found is None:
        return f"{draft}: the same text, token for token"
    where = f"{draft}: another text from token {found.position} on"
    if found.margin is None:
        return f"{where}, where the plain one had ended: NOT THE SAME"
    judged = "a tie" if found.is_tie else "NOT THE SAME"
    return f"{where}, where the plain run's best two log-probabilities lie {found.margin:.2g} apart: {judged}"


def outcome(quantization: str, found: Iterable[Divergence | None]) -> tuple[int, str]:
    """Exit code and remark: another text is a failure, but with quantised weights one that is to be expected."""
    if all(difference is None or difference.is_tie for difference in found):
        return 0, ""
    return (1, "") if quantization == "none" else (0, QUANTIZED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tools.demo", description="Answer without and with drafting.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompt", action="append", help="repeat for several; two of the demo's own if none is given")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: one a core")
    options = parser.parse_args(arguments)
    try:
        model = load(options.bundle, threads=options.threads)
        return _demo(Console(highlight=False), model, options)
    except SeqrtError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _demo(console: Console, model: Model, options: argparse.Namespace) -> int:
    manifest = model.bundle.manifest
    console.print(f"{manifest.name}, weights: {manifest.quantization}, loaded in {model.load_seconds:.2f} s")
    speeds, found, lines = [], [], []
    for number, prompt in enumerate(options.prompt or PROMPTS, start=1):
        console.print(f"\n[bold]Prompt {number}[/bold]")
        console.print(prompt.strip(), markup=False, soft_wrap=True)
        plain, *others = (_stream(console, model, draft, prompt, options) for draft in model.ready_drafts)
        for drafted in others:
            found.append(divergence(plain, drafted))
            lines.append(f"prompt {number}, {verdict(drafted.draft, found[-1])}")
        runs = measure(model, prompt, options.max_new_tokens, options.repeats)
        speeds.append([Speed.of(draft, done) for draft, done in runs.items()])
    console.print()
    console.print(table(speeds))
    console.print(f"medians of {options.repeats} runs each, taken in turn")
    for line in lines:
        console.print(line, soft_wrap=True)
    code, remark = outcome(manifest.quantization, found)
    if remark:
        console.print(remark, soft_wrap=True)
    console.print(f"where the time goes: seqrt profile {options.bundle} --html profile.html", soft_wrap=True)
    return code


def _stream(console: Console, model: Model, draft: str, prompt: str, options: argparse.Namespace) -> Generation:
    title = "Without drafting" if draft == model.ready_drafts[0] else f"With --draft {draft}"
    console.print(f"\n[bold]{title}[/bold]")
    # With log-probabilities, because a divergence is judged by those of the plain run.
    limits = {"max_new_tokens": options.max_new_tokens, "log_probabilities": True}
    stream = model.stream(prompt, draft=draft, **limits)
    for piece in stream:
        console.file.write(piece)
        console.file.flush()
    console.file.write("\n")
    return stream.result


if __name__ == "__main__":
    sys.exit(main())
