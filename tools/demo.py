"""The demo: one prompt answered without and with drafting, the answers compared, the speeds in one table.

    python -m tools.demo BUNDLE [--prompt TEXT] [--max-new-tokens N] [--repeats N] [--threads N]

Each way of drafting first streams its answer; then all run in turn, so that a busy moment of the machine
meets each of them, and the medians are printed. Exit code 1 when a drafted answer is not the plain one.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from seqrt.errors import SeqrtError
from seqrt.runtime.chat import ChatTemplate
from seqrt.runtime.model import Model, load
from seqrt.runtime.stream import Generation

PROMPT = (
    "Correct the spelling of this text and change nothing else: The quick brown fox jumps over the lazzy dog."
    " The dog sleeps in the gardn, and the fox runs thruogh the forest to the river."
)
TIE = 1e-3  # apart in log-probability: kernels that sum in another order may swap two such tokens
_BAN = -1e9


@dataclass(frozen=True, slots=True)
class Divergence:
    """Where a drafted answer leaves the plain one.

    Attributes:
        position: index of the first token that differs.
        gap: log-probability between the plain run's best two tokens there.
    """

    position: int
    gap: float

    @property
    def is_tie(self) -> bool:
        """The plain run itself could hardly tell the two tokens apart."""
        return self.gap <= TIE


@dataclass(frozen=True, slots=True)
class Speed:
    """Medians over the repeats of one way of drafting; the first token comes with the prompt."""

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
            median(run.tokens_per_step for run in runs),
            1e3 * median(run.seconds["prefill"] for run in runs),
        )


def divergence(
    model: Model, prompt: Sequence[int], plain: Sequence[int], drafted: Sequence[int]
) -> Divergence | None:
    """The first difference of two greedy answers, None when they are the same."""
    if plain == drafted:
        return None
    shorter = min(len(plain), len(drafted))
    position = next((i for i in range(shorter) if plain[i] != drafted[i]), shorter)
    # Decoding up to there once more leaves the plain run's own cache, on which the next step is computed.
    before = [*prompt, *plain[:position]]
    if position:
        model.generate(prompt, raw=True, max_new_tokens=position, ignore_eos=True)
    best = model.generate(before, raw=True, max_new_tokens=1, log_probabilities=True)
    bias = {best.token_ids[0]: _BAN}
    second = model.generate(before, raw=True, max_new_tokens=1, log_probabilities=True, logit_bias=bias)
    first_log, second_log = best.log_probabilities or [], second.log_probabilities or []
    return Divergence(position, first_log[0] - second_log[0])


def prompt_ids(model: Model, text: str) -> list[int]:
    """Token ids of the prompt as the model gets it: a user's message where the bundle has a chat template."""
    template = model.bundle.text("chat_template.jinja")
    if template is None:
        return model.encode(text)
    chat = ChatTemplate(template).render([{"role": "user", "content": text}])
    ids: list[int] = model.tokenizer.encode(chat, add_special_tokens=False).ids
    return ids


def measure(
    model: Model, prompt: Sequence[int], max_new_tokens: int, repeats: int
) -> dict[str, list[Generation]]:
    """Answers by way of drafting, `repeats` of each, run in turn and each from an empty cache."""
    runs: dict[str, list[Generation]] = {draft: [] for draft in model.drafts}
    for _ in range(repeats):
        for draft, done in runs.items():
            forget(model, prompt)
            done.append(model.generate(prompt, raw=True, draft=draft, max_new_tokens=max_new_tokens))
    return runs


def forget(model: Model, prompt: Sequence[int]) -> None:
    """Fills the cache with something else: rows of the prompt that it still holds would be used again."""
    other = next(token for token in range(len(prompt) + 1) if token != prompt[0])
    model.generate([other], raw=True, max_new_tokens=1)


def table(speeds: Sequence[Speed]) -> Table:
    """One row a way of drafting; the first is what the others are compared with."""
    result = Table("draft")
    for name in ("tok/s", "tokens per step", "time to first token", "speed-up"):
        result.add_column(name, justify="right")
    for speed in speeds:
        result.add_row(
            speed.draft,
            f"{speed.tokens_per_second:.1f}",
            f"{speed.tokens_per_step:.2f}",
            f"{speed.first_token_ms:.0f} ms",
            f"{speed.tokens_per_second / speeds[0].tokens_per_second:.2f}x",
        )
    return result


def verdict(draft: str, found: Divergence | None) -> str:
    """One line on whether the drafted answer is the plain one."""
    if found is None:
        return f"{draft}: the same text, token for token"
    judged = "a tie" if found.is_tie else "NOT A TIE"
    gap = f"the plain run's best two log-probabilities there lie {found.gap:.2g} apart: {judged}"
    return f"{draft}: another text from token {found.position} on; {gap}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tools.demo", description="Answer without and with drafting.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
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
    console.print(f"\n[bold]Prompt[/bold] {options.prompt}", markup=True)
    streamed = {draft: _stream(console, model, draft, options) for draft in model.drafts}
    prompt = prompt_ids(model, options.prompt)
    runs = measure(model, prompt, options.max_new_tokens, options.repeats)
    console.print()
    console.print(table([Speed.of(draft, done) for draft, done in runs.items()]))
    plain = streamed[model.drafts[0]].token_ids
    console.print(f"{len(plain)} tokens; medians of {options.repeats} runs each, taken in turn")
    found = {draft: divergence(model, prompt, plain, streamed[draft].token_ids) for draft in model.drafts[1:]}
    for draft, difference in found.items():
        console.print(verdict(draft, difference))
    return int(any(difference is not None and not difference.is_tie for difference in found.values()))


def _stream(console: Console, model: Model, draft: str, options: argparse.Namespace) -> Generation:
    title = "Without drafting" if draft == model.drafts[0] else f"With --draft {draft}"
    console.print(f"\n[bold]{title}[/bold]")
    stream = model.stream(options.prompt, draft=draft, max_new_tokens=options.max_new_tokens)
    for piece in stream:
        console.file.write(piece)
        console.file.flush()
    console.file.write("\n")
    return stream.result


if __name__ == "__main__":
    sys.exit(main())
