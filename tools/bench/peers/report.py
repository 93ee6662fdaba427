"""A measurement as a markdown table and as a JSON document."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from tools.bench.peers.measure import Measurement, Run

SCHEMA = 1
HEADINGS = (
    "peer", "tok/s", "× {reference}", "first token, ms", "memory, MB", "perplexity", "same text", "load, s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One variant's medians.

    `ratio` is the median over prompts and repeats of this variant's decoding rate divided by the reference's
    on the same prompt in the same repeat. `same_text` is the share of runs whose tokens equal those of the
    variant's plain sibling, or of the same weights in transformers; None for a variant that has neither.
    """

    name: str
    tokens_per_second: float
    ratio: float
    first_ms: float
    peak_mb: float
    perplexity: float | None
    same_text: float | None
    load_s: float
    version: str
    note: str


def summarise(measurement: Measurement, reference: str) -> list[Row]:
    """Return the rows of the variants that ran, in the order given.

    Args:
        measurement: What was measured.
        reference: Name of the variant that ratios are taken to; they are NaN when it did not run.
    """
    runs = {(run.variant, run.prompt, run.repeat): run for run in measurement.runs}
    rows = []
    for variant in measurement.variants:
        own = [run for run in measurement.runs if run.variant == variant.name]
        if not own:
            continue
        facts = measurement.facts[variant.name]
        ratios = [
            run.tokens_per_second / other.tokens_per_second
            for run in own
            if (other := runs.get((reference, run.prompt, run.repeat)))
        ]
        rows.append(
            Row(
                name=variant.name,
                tokens_per_second=_median([run.tokens_per_second for run in own]),
                ratio=_median(ratios),
                first_ms=_median([run.first_s * 1e3 for run in own]),
                peak_mb=facts.peak_bytes / 1e6,
                perplexity=None if facts.mean_nll is None else math.exp(facts.mean_nll),
                same_text=_same_text(own, variant.plain, runs),
                load_s=facts.load_s,
                version=facts.version,
                note=variant.note,
            )
        )
    return rows


def markdown(measurement: Measurement, reference: str, settings: dict[str, Any]) -> str:
    """Return the table, what was measured and how, and one line for each peer that failed."""
    lines = [_line([heading.format(reference=reference) for heading in HEADINGS])]
    lines.append("| --- |" + " ---: |" * (len(HEADINGS) - 1))
    rows = summarise(measurement, reference)
    for row in rows:
        lines.append(
            _line(
                [
                    row.name,
                    f"{row.tokens_per_second:.1f}",
                    f"{row.ratio:.2f}",
                    f"{row.first_ms:.0f}",
                    f"{row.peak_mb:.0f}",
                    "–" if row.perplexity is None else f"{row.perplexity:.2f}",
                    "–" if row.same_text is None else f"{row.same_text:.0%}",
                    f"{row.load_s:.1f}",
                ]
            )
        )
    lines += ["", ", ".join(f"{key} {value}" for key, value in settings.items()) + "."]
    lines.append("Versions: " + ", ".join(dict.fromkeys(row.version for row in rows)) + ".")
    lines += [f"{row.name}: {row.note}." for row in rows if row.note]
    lines += [f"{name}: not measured ({reason})." for name, reason in measurement.failures.items()]
    return "\n".join(lines) + "\n"


def document(measurement: Measurement, reference: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON document: settings, rows, every single run, failures."""
    rows = [{name: _number(value) for name, value in asdict(row).items()} for row in summarise(measurement, reference)]
    runs = [
        {
            "name": run.variant,
            "prompt": run.prompt,
            "repeat": run.repeat,
            "new_tokens": len(run.token_ids),
            "first_s": run.first_s,
            "total_s": run.total_s,
            "token_ids": run.token_ids,
        }
        for run in measurement.runs
    ]
    return {
        "schema": SCHEMA,
        "reference": reference,
        "settings": settings,
        "rows": rows,
        "runs": runs,
        "failures": measurement.failures,
    }


def _same_text(own: list[Run], plain: str | None, runs: dict[tuple[str, int, int], Run]) -> float | None:
    if plain is None:
        return None
    same = [run.token_ids == other.token_ids for run in own if (other := runs.get((plain, run.prompt, run.repeat)))]
    return sum(same) / len(same) if same else None


def _median(values: list[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return median(finite) if finite else math.nan


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no NaN


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
