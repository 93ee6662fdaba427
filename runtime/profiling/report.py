"""The document of a profile, docs/profile.schema.json: figures of each drafter beside plain decoding.

docs/profiling.md defines every number.
"""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any, Final

import numpy as np

from seqrt.runtime.generate import REQUEST_STAGES, STEP_STAGES
from seqrt.runtime.model import Model
from seqrt.runtime.probe import Timeline
from seqrt.runtime.profiling.measure import Answer, Measurement, joined
from seqrt.runtime.profiling.statistics import Totals, percentiles, rate_ratio, spread

SCHEMA: Final = 2
_DECILE: Final = 10

Row = dict[str, Any]


def rows(
    model: Model, found: Sequence[Measurement], trees: Sequence[str | None], copy_gb_per_second: float | None
) -> list[Row]:
    """One of each drafter, the first of `found` being plain decoding.

    Args:
        model: what was measured; tells how large weights are.
        found: answers to the same prompts.
        trees: the tree of each, None for the drafter's own.
        copy_gb_per_second: what memory can do.
    """
    weights = {role: model.bundle.info(role, model.engines.variant).weight_bytes for role in model.engines}
    return [
        {"draft": one.draft, "tree": tree, "prompts": len({answer.prompt for answer in one.answers})}
        | _speed(one)
        | shares(one.timelines, STEP_STAGES, REQUEST_STAGES)
        | _drafting(one, found[0])
        | _bandwidth(one, weights, copy_gb_per_second)
        | {
            "itl_growth": _growth(one.answers),
            "steps_by_rows": steps_by_rows([one]),
            "answers": [_answer(answer) for answer in one.answers],
        }
        for one, tree in zip(found, trees, strict=True)
    ]


def shares(timelines: Sequence[Timeline], of_steps: Sequence[str], of_requests: Sequence[str]) -> Row:
    """What every family of models reports: `stages_ms` and `seconds`, from timelines alone.

    Args:
        timelines: of all requests.
        of_steps: stages that each step of a loop has; their percentiles, and the host's, are over steps. Without any,
            the host's are over requests.
        of_requests: stages that each request has once; their percentiles are over requests.
    """
    per_step = {name: joined(timeline.of_steps(name) for timeline in timelines) for name in of_steps}
    if of_steps:
        steps = joined(timeline.of_steps() for timeline in timelines)
        host = steps - joined(timeline.engines_of_steps() for timeline in timelines)
    else:
        host = np.array([timeline.seconds - timeline.engine_seconds for timeline in timelines])
    per_request = {name: [timeline.totals.get(name, 0.0) for timeline in timelines] for name in of_requests}
    stages: dict[str, float] = {}
    for timeline in timelines:
        for name, seconds in timeline.totals.items():
            stages[name] = stages.get(name, 0.0) + seconds
    total = sum(timeline.seconds for timeline in timelines)
    engines = sum(timeline.engine_seconds for timeline in timelines)
    return {
        "stages_ms": {
            name: percentiles(1e3 * np.asarray(values))
            for name, values in {**per_request, **per_step, "host": host}.items()
        },
        "seconds": {
            "total": round(total, 6),
            "stages": {name: round(seconds, 6) for name, seconds in stages.items()},
            "engines": round(engines, 6),
            "host": round(total - engines, 6),
        },
    }


def steps_by_rows(found: Sequence[Measurement]) -> list[dict[str, float]]:
    """What steps cost by their rows: `{"rows", "steps", "step_ms"}`, medians, from what decoding itself ran."""
    times: dict[int, list[float]] = {}
    for one in found:
        for rows_, step_ms in zip(one.rows, one.step_ms.tolist(), strict=True):
            times.setdefault(rows_, []).append(step_ms)
    return [
        {"rows": rows_, "steps": len(values), "step_ms": round(median(values), 4)}
        for rows_, values in sorted(times.items())
    ]


def _speed(one: Measurement) -> Row:
    speeds = [a.decoded / a.decode_seconds for a in one.answers if a.decode_seconds]
    return {
        "new_tokens": one.new_tokens,
        "tokens_per_second": round(one.tokens_per_second, 3),
        "tokens_per_second_of_answers": spread(speeds),
        "ttft_ms": percentiles(answer.ttft_ms for answer in one.answers),
        "itl_ms": percentiles(joined(answer.itl_ms for answer in one.answers)),
        "step_ms": percentiles(one.step_ms),
        "prefill_tokens_per_second": _prefill(one),
        "tokens_per_step": round(one.tokens_per_step, 4),
        "answer_tokens_per_step": _rounded(one.answer_tokens_per_step),
        "drafted_tokens": one.drafted_tokens,
        "accepted_tokens": one.accepted_tokens,
        "drafted_by_depth": one.drafted_by_depth,
        "acceptance_by_depth": [round(rate, 4) for rate in one.acceptance_by_depth],
    }


def _drafting(one: Measurement, plain: Measurement) -> Row:
    """Against plain decoding: speed-up with its interval, and how many tokens a step must emit to pay for itself."""
    ratio, interval = rate_ratio(decoding(one.answers), decoding(plain.answers))
    is_known = bool(ratio and plain.tokens_per_second)
    cost = float(one.step_ms.mean() / plain.step_ms.mean()) if len(one.step_ms) and len(plain.step_ms) else None
    return {
        "speedup_vs_none": round(ratio, 4) if is_known else None,
        "same_text_as_none": round(float(np.mean([a.text == b.text for a, b in _pairs(one, plain)])), 4),
        "speedup_interval": None if interval is None or not is_known else [round(bound, 4) for bound in interval],
        "break_even_tokens_per_step": _rounded(cost),
    }


def _pairs(one: Measurement, plain: Measurement) -> Iterable[tuple[Answer, Answer]]:
    return zip(one.answers, plain.answers, strict=True)


def _prefill(one: Measurement) -> float | None:
    """Tokens of prompts that were computed, by the time of `prefill`."""
    seconds = sum(timeline.totals.get("prefill", 0.0) for timeline in one.timelines)
    return round(sum(a.generation.trace.computed for a in one.answers) / seconds, 3) if seconds else None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def decoding(answers: Sequence[Answer]) -> Totals:
    """Tokens after the first and the seconds they took, by prompt."""
    return Totals.of((answer.prompt, answer.decoded, answer.decode_seconds) for answer in answers)


def _bandwidth(one: Measurement, weights: Mapping[str, int], copy_gb_per_second: float | None) -> Row:
    """What engines read in steps: the weights of each run, and the caches where the decoder ran."""
    read = sum(
        weights.get(run.name, 0) + (answer.cache_bytes if run.name == "decoder" else 0)
        for answer in one.answers
        for run in answer.timeline.runs
        if run.step
    )
    seconds = float(one.step_ms.sum()) / 1e3
    if not seconds:
        return {"bytes_per_step": None, "gb_per_second": None, "bandwidth_share": None}
    reached = read / seconds / 1e9
    return {
        "bytes_per_step": round(read / len(one.step_ms)),
        "gb_per_second": round(reached, 3),
        "bandwidth_share": round(reached / copy_gb_per_second, 4) if copy_gb_per_second else None,
    }


def _growth(answers: Sequence[Answer]) -> dict[str, float | None]:
    """Mean time of a token in the first and in the last tenth of answers: does it grow?"""
    first, last = [], []
    for answer in answers:
        tenth = len(answer.itl_ms) // _DECILE
        first += answer.itl_ms[:tenth].tolist()
        last += answer.itl_ms[len(answer.itl_ms) - tenth :].tolist()
    if not first:
        return {"first_decile_ms": None, "last_decile_ms": None, "ratio": None}
    begin, end = float(np.mean(first)), float(np.mean(last))
    return {
        "first_decile_ms": round(begin, 4),
        "last_decile_ms": round(end, 4),
        "ratio": round(end / begin, 4) if begin else None,
    }


def _answer(answer: Answer) -> Row:
    """What `seqrt compare` pairs with the same answer of another profile."""
    return {
        "prompt": answer.prompt,
        "turn": answer.turn,
        "repeat": answer.repeat,
        "prompt_tokens": answer.generation.prompt_tokens,
        "computed_tokens": answer.generation.trace.computed,
        "new_tokens": answer.generation.new_tokens,
        "finish_reason": answer.generation.finish_reason,
        "text": answer.text,
        "decode_seconds": round(answer.decode_seconds, 6),
        "ttft_ms": round(answer.ttft_ms, 4),
    }
