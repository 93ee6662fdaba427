"""Whether one profile is slower than another, beyond what chance does.

Answers are compared in pairs: the same prompt, turn and repeat. How much the ratio differs from one stretch of the runs
to the next says how sure it is; a machine that was slower during all of one of the runs it takes for the program's
doing, and only the pulse of both profiles can tell.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from seqrt.errors import RequestError
from seqrt.runtime.profiling.report import SCHEMA
from seqrt.runtime.profiling.statistics import STUDENT, Totals, rate_ratio_of_runs

_MACHINE: Final = ("cpu", "cores", "threads", "gpu", "power_mode", "platform")
_MAX_BYTES: Final = 1 << 28
_DRIFT: Final = 0.1  # of the machine's own pulse between two profiles

Document = dict[str, Any]
Key = tuple[str, int, int]

# Of an answer: an amount, and the seconds that it took.
_AMOUNTS: Final[Mapping[str, Callable[[Document], tuple[float, float]]]] = {
    "tokens_per_second": lambda answer: (answer["new_tokens"] - 1, answer["decode_seconds"]),
    "ttft_ms": lambda answer: (1, answer["ttft_ms"] / 1e3),
}


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure of two profiles.

    Attributes:
        draft: whose.
        metric: "tokens_per_second" of decoding, "ttft_ms", or a test such as "pp512".
        old, new: the figure itself.
        ratio: of speeds, new by old: below 1 is slower, whatever the figure.
        interval: of the ratio, 95 %; None of too few answers.
    """

    draft: str
    metric: str
    old: float
    new: float
    ratio: float
    interval: tuple[float, float] | None

    def verdict(self, limit: float = 0.0) -> str:
        """Whether it is "slower" or "faster" by more than `limit` and beyond chance, or the "same"."""
        low, high = self.interval or (self.ratio, self.ratio)
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
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error.strerror}; give a readable file") from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{file} is not JSON: {error}; give the output of seqrt profile --json") from error
    schema = document.get("schema") if isinstance(document, dict) else None
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
    """What makes two profiles incomparable: machine, settings, and runs that did not end; a line each."""
    before, after = _identity(old), _identity(new)
    names = dict.fromkeys([*before, *after])
    return [
        f"{name} is {before.get(name)!r:.60} and {after.get(name)!r:.60}"
        for name in names
        if before.get(name) != after.get(name)
    ] + [
        f"{which} profile is of an interrupted run"
        for which, one in (("the first", old), ("the second", new))
        if not one.get("complete")
    ]


def remarks(old: Document, new: Document) -> list[str]:
    """What a reader should know: versions that differ, drafters that only one has, and how the machine did."""
    lines = []
    before, after = old["environment"], new["environment"]
    for name in dict.fromkeys([*before, *after]):
        if name not in _MACHINE and before.get(name) != after.get(name):
            lines.append(f"{name}: {before.get(name)} and {after.get(name)}")
    drafts = [{row["draft"] for row in one["rows"]} for one in (old, new)]
    lines += [f"only one profile has --draft {name}" for name in sorted(drafts[0] ^ drafts[1])]
    for what, first, second in zip(("memory bandwidth", "a core's speed"), _pulse(old), _pulse(new), strict=True):
        if first and second and abs(math.log(second / first)) > _DRIFT:
            lines.append(f"the machine itself had {second / first:.2f} times {what} in the second run")
    return lines


def compare(old: Document, new: Document) -> Iterator[Ratio]:
    """All figures that both have."""
    rows = {row["draft"]: row for row in new["rows"]}
    for row in old["rows"]:
        other = rows.get(row["draft"])
        if other is not None:
            yield from _of_row(row, other)
    tests = {test["test"]: test for test in new["tests"]}
    for test in old["tests"]:
        if test["test"] in tests:
            yield _of_test(test, tests[test["test"]])


def _of_row(old: Document, new: Document) -> Iterator[Ratio]:
    before, after = _answers(old), _answers(new)
    keys = [key for key in before if key in after]
    for metric, amount in _AMOUNTS.items():
        totals = [Totals.of((str(key), *amount(side[key])) for key in keys) for side in (after, before)]
        if all(one.rate for one in totals):
            second, first = (1e3 / one.rate if metric == "ttft_ms" else one.rate for one in totals)
            yield Ratio(old["draft"], metric, first, second, *rate_ratio_of_runs(*totals))


def _of_test(old: Document, new: Document) -> Ratio:
    """Of independent runs: the interval is Student's, in logarithms."""
    ratio = new["tokens_per_second"] / old["tokens_per_second"]
    errors = [one["stddev"] / one["tokens_per_second"] / math.sqrt(one["repeats"]) for one in (old, new)]
    width = STUDENT[min(old["repeats"], new["repeats"], max(STUDENT))] * float(np.hypot(*errors))
    interval = (ratio * math.exp(-width), ratio * math.exp(width))
    return Ratio("none", old["test"], old["tokens_per_second"], new["tokens_per_second"], ratio, interval)


def _answers(row: Document) -> dict[Key, Document]:
    return {(one["prompt"], one["turn"], one["repeat"]): one for one in row["answers"]}


def _identity(document: Document) -> Mapping[str, object]:
    machine = {f"environment.{name}": document["environment"].get(name) for name in _MACHINE}
    settings = {f"settings.{name}": value for name, value in document["settings"].items()}
    return {"task": document["task"]} | machine | settings


def _pulse(document: Document) -> tuple[float | None, float | None]:
    stability = document["stability"]
    return stability["copy_gb_per_second"]["median"], stability["sha256_mb_per_second"]["median"]
