"""Whether one profile is slower than another, beyond what chance does.

Answers are compared in pairs: the same prompt, turn and repeat. How much the ratio differs from one stretch of the runs
to the next says how sure it is. A machine that was slower during all of the second run shows in its pulse; then nothing
is known to be slower.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from seqrt.errors import RequestError
from seqrt.runtime.profiling.pulse import KINDS
from seqrt.runtime.profiling.report import SCHEMA
from seqrt.runtime.profiling.statistics import STUDENT, Totals, rate_ratio_of_runs

_MACHINE: Final = ("cpu", "cores", "threads", "gpu", "power_mode")
_MAX_BYTES: Final = 1 << 28
_DRIFT: Final = 0.1  # of the machine's own pulse between two profiles

Document = dict[str, Any]
Answers = dict[tuple[str, int, int], Document]

# By task, of an answer or of a batch of images: an amount, and the seconds that it took.
_AMOUNTS: Final[Mapping[str, Mapping[str, Callable[[Document], tuple[float, float]]]]] = {
    "generate": {
        "tokens_per_second": lambda answer: (answer["new_tokens"] - 1, answer["decode_seconds"]),
        "ttft_ms": lambda answer: (1, answer["ttft_ms"] / 1e3),
    },
    "ocr": {"images_per_second": lambda one: (one["images"], one["seconds"])},
}


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure of two profiles.

    Attributes:
        draft: whose; a batch size, such as "batch 16", of profiles of images.
        metric: "tokens_per_second" of decoding, "ttft_ms", a test such as "pp512", or "images_per_second".
        old, new: the figure itself.
        ratio: of speeds, new by old: below 1 is slower, whatever the figure.
        interval: of the ratio, 99.5 %; None of too few answers.
    """

    draft: str
    metric: str
    old: float
    new: float
    ratio: float
    interval: tuple[float, float] | None

    def verdict(self, limit: float = 0.0) -> str:
        """Whether it is "slower" or "faster" by more than `limit` and beyond chance, or the "same"; else "unknown"."""
        if self.interval is None:
            return "unknown"
        low, high = self.interval
        if self.ratio < 1 - limit and high < 1:
            return "slower"
        return "faster" if self.ratio > 1 + limit and low > 1 else "same"


def read_profile(file: Path) -> Document:
    """What `seqrt profile --json` printed.

    Raises:
        RequestError: the file cannot be read, or is none.
    """
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise RequestError(f"{file} has {file.stat().st_size} bytes; give the output of seqrt profile --json")
        document = json.loads(file.read_bytes(), parse_constant=_no_number)
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror}; give a readable file") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{file} is not JSON: {error}; give the output of seqrt profile --json") from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema is None or "rows" not in document:
        raise RequestError(f"{file} is no profile; give the output of seqrt profile --json")
    if schema != SCHEMA:
        raise RequestError(
            f"{file} has profile schema {schema!r:.40}, expected {SCHEMA}; measure again with this seqrt"
        )
    try:
        found: Document = document
        for read in (compare, remarks, differences):  # what one of them would miss is missed when it meets itself
            list(read(found, found))
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise RequestError(f"{file} is a damaged profile ({error!r:.80}); measure again") from error
    return found


def differences(old: Document, new: Document) -> list[str]:
    """What makes two profiles incomparable: machine, settings, drafters that are gone, runs that did not end."""
    before, after = _identity(old), _identity(new)
    gone = {_name(row) for row in old["rows"]} - {_name(row) for row in new["rows"]}
    return [
        *(
            f"{name} is {before[name]!r:.60} and {after[name]!r:.60}"
            for name in before
            if name in after and before[name] != after[name]
        ),
        *(f"{'--draft ' if old['task'] == 'generate' else ''}{draft} is in the first only" for draft in sorted(gone)),
        *(
            f"the {which} is of an interrupted run"
            for which, one in (("first", old), ("second", new))
            if not one["complete"]
        ),
    ]


def remarks(old: Document, new: Document) -> list[str]:
    """What a reader should know: versions that differ, answers that differ, and how the machine did."""
    before, after = old["environment"], new["environment"]
    lines = [
        f"{name}: {before.get(name)} and {after.get(name)}"
        for name in dict.fromkeys([*before, *after])
        if name not in (*_MACHINE, "date") and before.get(name) != after.get(name)
    ]
    lines += [f"only one knows {name}" for name in sorted(_identity(old).keys() ^ _identity(new).keys())]
    for draft, first, second in _common(old, new):
        pairs = [(answer, second[key]) for key, answer in first.items() if key in second]
        other = sum(one["text"] != two["text"] for one, two in pairs)
        if other:
            what = "answers" if old["task"] == "generate" else "batches"
            lines.append(f"{draft}: {other} of {len(pairs)} {what} are not the same")
    lines += [
        f"the machine itself had {ratio:.2f} times {what} in the second run: what differs may be its doing"
        for what, ratio in drift(old, new).items()
        if abs(math.log(ratio)) > _DRIFT
    ]
    return lines


def drift(old: Document, new: Document) -> dict[str, float]:
    """How many times as fast the machine itself was in the second run, by its pulse."""
    pulses = [[one["stability"][key]["median"] for key in KINDS] for one in (old, new)]
    return {
        what: second / first for what, first, second in zip(KINDS.values(), *pulses, strict=True) if first and second
    }


def compare(old: Document, new: Document) -> Iterator[Ratio]:
    """All figures that both have. Where the machine itself was slower, none is known to be."""
    is_slower = min(drift(old, new).values(), default=1.0) < math.exp(-_DRIFT)
    for one in _figures(old, new):
        yield replace(one, interval=None) if is_slower and one.ratio < 1 else one


def _figures(old: Document, new: Document) -> Iterator[Ratio]:
    for draft, first, second in _common(old, new):
        yield from _of_answers(draft, first, second, _AMOUNTS[old["task"]])
    tests = {test["test"]: test for test in new["tests"]}
    for test in old["tests"]:
        if test["test"] in tests:
            yield _of_test(test, tests[test["test"]])


def _common(old: Document, new: Document) -> list[tuple[str, Answers, Answers]]:
    """Drafters or batch sizes of both, with their answers by prompt, turn and repeat."""
    before, after = ({_name(row): _timed(row) for row in side["rows"]} for side in (old, new))
    return [(draft, before[draft], after[draft]) for draft in before if draft in after]


def _name(row: Document) -> str:
    """Of a drafter, or of a batch size."""
    return str(row["draft"]) if "draft" in row else f"batch {row['batch']}"


def _timed(row: Document) -> Answers:
    """Its answers, or batches of its passes over images."""
    if "passes" in row:
        return {
            ("", batch, one["repeat"]): {
                "images": one["images"] / len(one["batch_seconds"]),
                "seconds": seconds,
                "text": one["text"],
            }
            for one in row["passes"]
            for batch, seconds in enumerate(one["batch_seconds"])
        }
    return {(one["prompt"], one["turn"], one["repeat"]): one for one in row["answers"]}


def _of_answers(
    draft: str,
    before: Answers,
    after: Answers,
    amounts: Mapping[str, Callable[[Document], tuple[float, float]]],
) -> Iterator[Ratio]:
    keys = [key for key in before if key in after]
    for metric, amount in amounts.items():
        totals = [Totals.of((str(key), *amount(side[key])) for key in keys) for side in (after, before)]
        if all(one.rate for one in totals):
            second, first = (1e3 / one.rate if metric == "ttft_ms" else one.rate for one in totals)
            yield Ratio(draft, metric, first, second, *rate_ratio_of_runs(*totals))


def _of_test(old: Document, new: Document) -> Ratio:
    """Of single runs: the interval is Student's, in logarithms; None of too few."""
    ratio = new["tokens_per_second"] / old["tokens_per_second"]
    errors = [one["stddev"] / one["tokens_per_second"] / math.sqrt(one["repeats"]) for one in (old, new)]
    width = STUDENT.get(min(old["repeats"], new["repeats"], max(STUDENT)), math.inf) * float(np.hypot(*errors))
    interval = None if math.isinf(width) else (ratio * math.exp(-width), ratio * math.exp(width))
    return Ratio("none", old["test"], old["tokens_per_second"], new["tokens_per_second"], ratio, interval)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _identity(document: Document) -> Mapping[str, object]:
    machine = {f"environment.{name}": document["environment"].get(name) for name in _MACHINE}
    settings = {f"settings.{name}": value for name, value in document["settings"].items()}
    return {"task": document["task"]} | machine | settings
