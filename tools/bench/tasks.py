"""Drafting against plain decoding by kind of task: tokens per step, speed-up, and whether the text stays the same.

    python -m tools.bench.tasks BUNDLE --prompts spec_bench_dev.jsonl [--draft lookup --draft medusa] [--output FILE]

Every prompt (its first turn) is answered by all drafters in turn before the next one, in rotating order, so that all
see the machine in the same state; --repeats plays all prompts again. Of the repeats the fastest counts, because what
else the machine does only ever adds to a time; a speed-up is the ratio of the summed decoding times per token. The
prompt stays in the cache from one drafter to the next: only decoding is compared here.
"""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

import seqrt
from seqrt.runtime.lossless import divergence
from seqrt.runtime.model import Model
from seqrt.runtime.prompts import Prompt, read_prompts
from seqrt.runtime.stream import Generation

PLAIN = "none"
WARM_UP = 2  # prompts answered before anything is counted


@dataclass(slots=True)
class Sums:
    """What one drafter did on the prompts of one task."""

    prompts: int = 0
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    mismatches: int = 0
    ties: int = 0

    def add(self, answer: Generation, plain: Generation) -> None:
        """Counts an answer, judged against the plain one."""
        difference = divergence(plain, answer)
        self.prompts += 1
        self.tokens += answer.new_tokens - 1  # the first one belongs to the prompt
        self.steps += answer.steps
        self.seconds += answer.seconds["decode"]
        self.ties += difference is not None and difference.is_tie
        self.mismatches += difference is not None and not difference.is_tie

    @property
    def tokens_per_second(self) -> float:
        """Decoded tokens by decoding time."""
        return self.tokens / self.seconds if self.seconds else 0.0


def measure(
    model: Model, prompts: Sequence[Prompt], drafts: Sequence[str], max_new_tokens: int, repeats: int
) -> dict[str, dict[str, Sums]]:
    """Sums by task and drafter; the task "all" holds everything."""
    best: list[dict[str, Generation]] = [{} for _ in prompts]
    work = [(number, prompt) for _ in range(repeats) for number, prompt in enumerate(prompts)]
    warm_up = [(-1, prompt) for prompt in prompts[:WARM_UP]]
    for done, (number, prompt) in enumerate(track([*warm_up, *work], console=Console(stderr=True))):
        if number == 0:
            model.forget(learnt=True)  # a drafter that learns would know the answers of the round before
        for name in rotated(drafts, done):
            answer = model.chat(
                [{"role": "user", "content": first_turn(prompt)}],
                draft=name,
                max_new_tokens=max_new_tokens,
                log_probabilities=name == PLAIN,
            )
            if number >= 0 and (
                name not in best[number] or answer.seconds["decode"] < best[number][name].seconds["decode"]
            ):
                best[number][name] = answer
    sums: dict[str, dict[str, Sums]] = defaultdict(lambda: {name: Sums() for name in drafts})
    for prompt, answers in zip(prompts, best, strict=True):
        for task in (prompt.task or "other", "all"):
            for name, answer in answers.items():
                sums[task][name].add(answer, answers[PLAIN])
    return dict(sums)


def first_turn(prompt: Prompt) -> str:
    """What the user says first."""
    return prompt.turns[0] if prompt.turns else str(prompt.messages[-1]["content"])


def rotated(names: Sequence[str], by: int) -> Sequence[str]:
    """The names in turn, so that over many calls each comes first as often."""
    by %= len(names)
    return [*names[by:], *names[:by]]


def show(sums: dict[str, dict[str, Sums]], drafts: Sequence[str]) -> Table:
    """A row a task."""
    table = Table(
        "task", "prompts", "none tok/s", *(f"{name}: tokens/step, speed-up" for name in drafts if name != PLAIN)
    )
    for task in [*sorted(set(sums) - {"all"}), "all"]:
        row = sums[task]
        plain = row[PLAIN].tokens_per_second
        cells = [
            f"{_per_step(row[name]):.2f}  {row[name].tokens_per_second / plain:.2f}x"
            for name in drafts
            if name != PLAIN
        ]
        table.add_row(task, str(row[PLAIN].prompts), f"{plain:.1f}", *cells)
    return table


def _per_step(sums: Sums) -> float:
    return sums.tokens / sums.steps if sums.steps else 1.0


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompts", type=Path, required=True, help="JSONL with task and turns")
    parser.add_argument("--draft", action="append", help="drafter; by default all of the bundle")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--every", type=int, default=1, help="take each n-th prompt")
    parser.add_argument("--output", type=Path, help="write the sums as JSON")
    arguments = parser.parse_args()
    model = seqrt.load(arguments.bundle, threads=arguments.threads)
    drafts = [PLAIN, *(arguments.draft or [name for name in model.ready_drafts if name != PLAIN])]
    prompts = read_prompts(arguments.prompts)[:: arguments.every]
    sums = measure(model, prompts, drafts, arguments.max_new_tokens, arguments.repeats)
    Console().print(show(sums, drafts))
    for name in drafts[1:]:
        total = sums["all"][name]
        print(f"{name}: {total.mismatches} mismatches, {total.ties} ties in {total.prompts} prompts", file=sys.stderr)
    if arguments.output:
        rows = {task: {name: asdict(row) for name, row in by.items()} for task, by in sums.items()}
        arguments.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
