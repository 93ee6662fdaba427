"""Measures drafters against plain decoding: speed, percentiles of every stage, acceptance.

The first prompt is played once with every drafter and not counted: it warms caches and lets the loop learn
what steps cost. Then each prompt is played with one drafter after the other, so that a busy moment of the
machine meets all of them. Each conversation starts with an empty cache; later turns reuse what the earlier
ones left, as in a chat.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final

import numpy as np

from seqrt.runtime.conversation import play
from seqrt.runtime.generate import STAGES
from seqrt.runtime.model import Model
from seqrt.runtime.options import Options
from seqrt.runtime.prompts import Prompt
from seqrt.runtime.stream import Generation

SCHEMA: Final = 1
_PERCENTILES: Final = (50, 90, 95, 99)


@dataclass(slots=True)
class Measurement:
    """Everything measured of one drafter; times in milliseconds.

    Attributes:
        emitted: tokens that steps decided, wanted or not.
        ttft_ms: of each answer, from the request to its first token.
        itl_ms: of each further token, since the one before; tokens of one step come together.
        step_ms: of each step, from the previous one's end to its own.
        stages_ms: of each step, by stage; host is what happens between steps: text, stops, the caller.
        accepted: of each drafted step, depth of the tree and of the accepted path.
    """

    draft: str
    new_tokens: int = 0
    answers: int = 0
    emitted: int = 0
    decode_seconds: float = 0.0
    ttft_ms: list[float] = field(default_factory=list)
    itl_ms: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    stages_ms: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in (*STAGES, "host")})
    accepted: list[tuple[int, int]] = field(default_factory=list)

    def add(self, generation: Generation, setup_seconds: float) -> None:
        """Takes an answer into account.

        Args:
            generation: the answer.
            setup_seconds: from the request to the start of the loop: template, tokenizer, checks.
        """
        trace = generation.trace
        arrivals = np.asarray(trace.arrival_seconds)
        self.answers += 1
        self.new_tokens += generation.new_tokens
        self.emitted += sum(trace.emitted)
        self.decode_seconds += generation.seconds["decode"]
        self.ttft_ms.append(1e3 * (setup_seconds + trace.prefill_seconds))
        self.itl_ms += (1e3 * np.diff(arrivals[: generation.new_tokens])).tolist()
        ends = arrivals[np.cumsum([0, *trace.emitted])] if len(arrivals) else arrivals
        steps = 1e3 * np.diff(ends)
        stages = 1e3 * np.asarray(trace.stage_seconds).reshape(-1, len(STAGES))
        self.step_ms += steps.tolist()
        for name, column in zip(STAGES, stages.T, strict=True):
            self.stages_ms[name] += column.tolist()
        self.stages_ms["host"] += np.maximum(steps - stages.sum(1), 0.0).tolist()
        self.accepted += trace.accepted_depth

    @property
    def tokens_per_second(self) -> float:
        """While decoding: the first token of an answer comes with the prompt."""
        return (self.new_tokens - self.answers) / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def tokens_per_step(self) -> float:
        """Tokens that one verification emits, 1.0 without drafting; those beyond an end or limit are included."""
        return self.emitted / len(self.step_ms) if self.step_ms else 1.0

    @property
    def acceptance_by_depth(self) -> list[float]:
        """For depth 1, 2, ...: of the steps whose tree was that deep, the share that accepted that deep."""
        deepest = max((depth for depth, _ in self.accepted), default=0)
        rates = []
        for level in range(1, deepest + 1):
            reached = [got >= level for depth, got in self.accepted if depth >= level]
            rates.append(sum(reached) / len(reached))
        return rates


def measure(
    model: Model,
    prompts: Sequence[Prompt],
    wanted: Sequence[Options],
    *,
    repeat: int = 1,
    advance: Callable[[], None] = lambda: None,
    enough: Callable[[], bool] = lambda: False,
) -> list[Measurement]:
    """Plays every prompt with every one of `wanted`, after a round of warm-up; calls `advance` after each.

    No further prompt is played once `enough` says so.

    Returns:
        One a drafter, in the order of `wanted`.
    """
    found = [Measurement(options.draft) for options in wanted]
    for options in wanted:
        _play(model, prompts[0], options)
    for _ in range(repeat):
        model.forget(learnt=True)  # else a drafter would know the answers
        for prompt in prompts:
            for options, measurement in zip(wanted, found, strict=True):
                for generation, setup_seconds in _play(model, prompt, options):
                    measurement.add(generation, setup_seconds)
                advance()
            if enough():
                return found
    return found


def rows(
    found: Sequence[Measurement], trees: Sequence[str | None], num_prompts: int, num_bytes: int
) -> list[dict[str, object]]:
    """The rows of the profile document, the first of `found` being plain decoding.

    Args:
        found: what was measured.
        trees: the tree of each, None for the drafter's own.
        num_prompts: conversations played, without repeats.
        num_bytes: weights that a step reads.
    """
    return [_row(one, tree, num_prompts, num_bytes, found[0]) for one, tree in zip(found, trees, strict=True)]


def percentiles(values: Iterable[float]) -> dict[str, float | None]:
    """p50, p90, p95 and p99, interpolated; None of no values."""
    every = np.fromiter(values, np.float64)
    if not len(every):
        return {f"p{p}": None for p in _PERCENTILES}
    found = np.percentile(every, _PERCENTILES)
    return {f"p{p}": round(float(value), 4) for p, value in zip(_PERCENTILES, found, strict=True)}


def weight_bytes(model: Model) -> int:
    """Weights that one step of the decoder reads."""
    return model.bundle.info("decoder", model.engines.variant).weight_bytes


def _play(model: Model, prompt: Prompt, options: Options) -> list[tuple[Generation, float]]:
    """The answers of a conversation, with the seconds that each took before its loop began."""
    model.forget()
    answers = []
    start = perf_counter()
    for stream in play(model, prompt, options):
        setup_seconds = perf_counter() - start
        answers.append((stream.finish(), setup_seconds))
        start = perf_counter()
    return answers


def _row(one: Measurement, tree: str | None, num_prompts: int, num_bytes: int, plain: Measurement) -> dict[str, object]:
    step_ms = percentiles(one.step_ms)
    median_ms, speed = step_ms["p50"], plain.tokens_per_second
    return {
        "draft": one.draft,
        "tree": tree,
        "prompts": num_prompts,
        "new_tokens": one.new_tokens,
        "tokens_per_second": round(one.tokens_per_second, 3),
        "ttft_ms": percentiles(one.ttft_ms),
        "itl_ms": percentiles(one.itl_ms),
        "step_ms": step_ms,
        "stages_ms": {name: percentiles(values) for name, values in one.stages_ms.items()},
        "tokens_per_step": round(one.tokens_per_step, 4),
        "acceptance_by_depth": [round(rate, 4) for rate in one.acceptance_by_depth],
        "speedup_vs_none": round(one.tokens_per_second / speed, 4) if speed else None,
        "gb_per_second": round(num_bytes / median_ms / 1e6, 3) if median_ms else None,
    }
