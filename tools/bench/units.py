"""What beta and k of lexical units buy, separately for prose and for code, and what the paper's mode costs in quality.

    python -m tools.bench.units BUNDLE --prompts spec_bench_dev.jsonl --output units.json --plot units.svg

Every prompt is answered plainly, in verify mode with each k, and in paper mode with each k and each beta, in turn. Of
each: tokens a step; time of decoding against plain; and for the paper's texts how often they are greedy's, how far they
go until they first differ, and their perplexity under the model, over that of greedy's texts.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.progress import track
from rich.table import Table
from tools.bench.tasks import PLAIN, first_turn, rotated

import seqrt
from seqrt.runtime.lossless import divergence
from seqrt.runtime.model import Model
from seqrt.runtime.options import PAPER, VERIFY, Options
from seqrt.runtime.prompts import Prompt, read_prompts
from seqrt.runtime.stream import Generation

CODE: Final = frozenset(("coding", "mbpp", "humaneval"))
_OVER_BETA: Final = {
    "tokens per step": "tokens_per_step",
    "share of text before it leaves greedy's": "agreed_share",
    "perplexity over greedy's": "perplexity",
}
_OVER_K: Final = {"tokens per step": "tokens_per_step", "speed over plain decoding": "speedup"}


@dataclass(slots=True)
class Sums:
    """What one way of decoding did on prompts of one kind.

    Attributes:
        same: answers that are greedy's.
        agreed: tokens before the first that is not greedy's, ties excepted.
        loss: negative log-probability of all tokens under the model.
        spans: steps by the tokens that they emitted.
    """

    answers: int = 0
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    same: int = 0
    agreed: int = 0
    loss: float = 0.0
    spans: Counter[int] = field(default_factory=Counter)

    def add(self, answer: Generation, plain: Generation) -> None:
        """Counts an answer; the rows of its tokens tell their log-probabilities, whether they were verified or not."""
        assert answer.log_probabilities is not None
        difference = divergence(plain, answer)
        left = None if difference is None or difference.is_tie else difference.position
        self.answers += 1
        self.tokens += answer.new_tokens - 1
        self.steps += answer.steps
        self.seconds += answer.seconds["decode"]
        self.same += left is None
        self.agreed += answer.new_tokens if left is None else left
        self.loss -= sum(answer.log_probabilities)
        self.spans.update(answer.trace.emitted)

    def row(self, plain: Sums) -> dict[str, Any]:
        """The figures, against plain decoding."""
        return {
            "answers": self.answers,
            "tokens": self.tokens,
            "tokens_per_step": round(self.tokens / self.steps, 4),
            "speedup": round(plain.seconds / plain.tokens / (self.seconds / self.tokens), 4),
            "same_answers": round(self.same / self.answers, 4),
            "agreed_share": round(self.agreed / (self.tokens + self.answers), 4),
            "perplexity": round(math.exp(self.loss / (self.tokens + self.answers)), 4),
            "spans": {str(length): self.spans[length] for length in sorted(self.spans)},
        }


def ways(
    lookaheads: Sequence[int], betas: Sequence[float], at: tuple[int, float], new_tokens: int
) -> dict[str, Options]:
    """Plain decoding, verify mode with each k, and paper mode with each k at one beta and each beta at one k."""
    plain = Options(max_new_tokens=new_tokens, log_probabilities=True)
    lud = replace(plain, draft="lud", adaptive=False)
    places = dict.fromkeys([at, *((k, at[1]) for k in lookaheads), *((at[0], beta) for beta in betas)])
    return {
        PLAIN: plain,
        **{f"verify k={k}": replace(lud, lud_mode=VERIFY, lookahead=k) for k in lookaheads},
        **{f"paper k={k} beta={b:g}": replace(lud, lud_mode=PAPER, lookahead=k, beta=b) for k, b in places},
    }


def measure(model: Model, prompts: Sequence[Prompt], wanted: Mapping[str, Options]) -> dict[str, dict[str, Sums]]:
    """Sums by kind of prompt and way of decoding."""
    sums: dict[str, dict[str, Sums]] = defaultdict(lambda: {name: Sums() for name in wanted})
    for number, prompt in enumerate(track(prompts, console=Console(stderr=True))):
        message = [{"role": "user", "content": first_turn(prompt)}]
        plain = model.chat(message, wanted[PLAIN])
        others = [name for name in wanted if name != PLAIN]
        answers = {name: model.chat(message, wanted[name]) for name in rotated(others, number)}
        again = model.chat(message, wanted[PLAIN])  # the first had the prompt to compute, and cold caches
        kind = "code" if prompt.task in CODE else "prose"
        if plain.new_tokens > 1:  # else there is nothing to decode
            for name, answer in {PLAIN: again, **answers}.items():
                sums[kind][name].add(answer, plain)
    return dict(sums)


def show(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Table:
    """A row a way of decoding."""
    names = ("tokens_per_step", "speedup", "same_answers", "agreed_share", "perplexity")
    table = Table("kind", "decoding", *(name.replace("_", " ") for name in names))
    for kind, by in rows.items():
        for way, row in by.items():
            table.add_row(kind, way, *(f"{row[name]:.3f}" for name in names))
    return table


def draw(rows: Mapping[str, Mapping[str, Mapping[str, Any]]], at: tuple[int, float], file: Path) -> None:
    """Tokens a step, speed and agreement over beta and over k, prose and code apart."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "seqrt"  # the same figures give the same file
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    over_beta, over_k = figure.subplots(2, 3)
    for kind, by in rows.items():
        paper = {_place(way): row for way, row in by.items() if way.startswith("paper")}
        verify = {_place(way)[0]: row for way, row in by.items() if way.startswith("verify")}
        betas = sorted(beta for k, beta in paper if k == at[0])
        lookaheads = sorted({k for k, beta in paper if beta == at[1]} & verify.keys())
        for axes, (title, name) in zip(over_beta, _OVER_BETA.items(), strict=True):
            unit = by[PLAIN][name] if name == "perplexity" else 1.0
            values = [paper[at[0], beta][name] / unit for beta in betas]
            axes.plot(betas, values, marker="o", markersize=3, label=kind)
            axes.set(title=title, xlabel=f"beta (paper mode, k = {at[0]})")
        for axes, (title, name) in zip(over_k, _OVER_K.items(), strict=False):
            mark = axes.plot(
                lookaheads,
                [paper[k, at[1]][name] for k in lookaheads],
                marker="o",
                markersize=3,
                label=f"{kind}, paper",
            )
            shown = [verify[k][name] for k in lookaheads]
            axes.plot(
                lookaheads, shown, "--", marker="o", markersize=3, color=mark[0].get_color(), label=f"{kind}, verify"
            )
            axes.set(title=title, xlabel=f"k (paper mode: beta = {at[1]:g})")
            axes.set_xticks(lookaheads)
        spans = paper[at]["spans"]
        total = sum(spans.values())
        lengths = sorted(map(int, spans))
        over_k[2].plot(lengths, [spans[str(n)] / total for n in lengths], marker="o", markersize=3, label=kind)
        over_k[2].set(
            title="steps by the tokens that they emit", xlabel=f"tokens (paper mode, k = {at[0]}, beta = {at[1]:g})"
        )
    for axes in figure.axes:
        axes.legend(frameon=False, fontsize=8)
        axes.grid(alpha=0.3)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None, dpi=120)


def _place(way: str) -> tuple[int, float]:
    parts = dict(part.split("=") for part in way.split()[1:])
    return int(parts["k"]), float(parts.get("beta", "nan"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--prompts", type=Path, required=True, nargs="+", help="JSONL with task and turns")
    parser.add_argument("--every", type=int, default=1, help="take each n-th prompt")
    parser.add_argument("--lookaheads", type=int, nargs="+", default=[2, 3, 4, 5])
    parser.add_argument("--betas", type=float, nargs="+", default=[0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
    parser.add_argument("--at", nargs=2, default=("5", "0.9"), metavar=("K", "BETA"), help="where the others vary")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    parser.add_argument("--plot", type=Path, help="draw the curves: .svg or .png")
    options = parser.parse_args()
    at = (int(options.at[0]), float(options.at[1]))
    prompts = [prompt for file in options.prompts for prompt in read_prompts(file)][:: options.every]
    wanted = ways(options.lookaheads, options.betas, at, options.max_new_tokens)
    with seqrt.load(options.bundle) as model:
        model.tuning = None  # what was tuned must not cut what is compared
        sums = measure(model, prompts, wanted)
    rows = {kind: {name: each.row(by[PLAIN]) for name, each in by.items()} for kind, by in sums.items()}
    Console().print(show(rows))
    if options.output:
        options.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    if options.plot:
        draw(rows, at, options.plot)


if __name__ == "__main__":
    main()
