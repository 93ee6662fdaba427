"""Figures of samples: percentiles, spreads, and how sure a ratio is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

PERCENTILES: Final = (50, 90, 95, 99)
_SPREAD: Final = (25, 50, 75)
_RESAMPLES: Final = 4000
_INTERVAL: Final = (2.5, 97.5)  # 95 %
_FEWEST: Final = 3  # prompts that say something of others
_STRETCHES: Final = 6
_IN_A_STRETCH: Final = 4  # answers, at least: fewer are too alike their neighbours in the next one
# Student's t: standard errors that hold 99.5 % of means of so many values. A comparison judges ten figures or so at
# once, and one that is slower by chance is as bad as ten.
STUDENT: Final[Mapping[int, float]] = {3: 14.089, 4: 7.453, 5: 5.598, 6: 4.773}

Numbers = Iterable[float] | npt.NDArray[np.float64]


def percentiles(values: Numbers) -> dict[str, float | None]:
    """Mean, p50, p90, p95 and p99, interpolated; None of no values."""
    every = np.fromiter(values, np.float64)
    return {"mean": round(float(every.mean()), 4) if len(every) else None} | _percentiles(every, PERCENTILES)


def spread(values: Numbers) -> dict[str, float | None]:
    """p25, p50 and p75; None of no values."""
    return _percentiles(np.fromiter(values, np.float64), _SPREAD)


def variation(values: Numbers) -> float | None:
    """Coefficient of variation: standard deviation by mean; None of fewer than two values."""
    every = np.fromiter(values, np.float64)
    return round(float(every.std(ddof=1) / every.mean()), 4) if len(every) > 1 and every.mean() else None


@dataclass(frozen=True, slots=True)
class Totals:
    """By prompt: an amount, and the seconds that it took."""

    amount: npt.NDArray[np.float64]
    seconds: npt.NDArray[np.float64]

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, float, float]]) -> "Totals":
        """Sums of (prompt, amount, seconds); prompts in the order in which they first come."""
        sums: dict[str, list[float]] = {}
        for prompt, amount, seconds in pairs:
            both = sums.setdefault(prompt, [0.0, 0.0])
            both[0] += amount
            both[1] += seconds
        table = np.array(list(sums.values()), np.float64).reshape(-1, 2)
        return cls(table[:, 0], table[:, 1])

    @property
    def rate(self) -> float:
        """Amount by seconds, of all prompts."""
        return float(self.amount.sum() / self.seconds.sum()) if self.seconds.sum() else 0.0


def rate_ratio(new: Totals, old: Totals) -> tuple[float, tuple[float, float] | None]:
    """How many times the rate of `old` is that of `new`, and a 95 % interval of it.

    The interval is the percentile bootstrap (Efron and Tibshirani 1993, section 13.3) over prompts, which are drawn
    again with all that was measured of them on either side: it says what other prompts of the kind would give.
    None with too few of them.
    """
    ratio = new.rate / old.rate if old.rate else 0.0
    count = len(new.seconds)
    if count < _FEWEST:
        return ratio, None
    drawn = np.random.default_rng(0).integers(0, count, (_RESAMPLES, count))
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = [one.amount[drawn].sum(1) / one.seconds[drawn].sum(1) for one in (new, old)]
        ratios = rates[0] / rates[1]
    ratios = ratios[np.isfinite(ratios)]
    if not len(ratios):
        return ratio, None
    low, high = np.percentile(ratios, _INTERVAL)
    return ratio, (float(low), float(high))


def rate_ratio_of_runs(new: Totals, old: Totals) -> tuple[float, tuple[float, float] | None]:
    """The same of two runs at different times, whose amounts are in the order in which they were measured; 99.5 %.

    A machine has slow and fast stretches, in which many answers in a row are alike, so that to draw answers again would
    find a chance difference of two runs certain. The interval is that of batch means (Conway 1963, Management Science
    10, 47-61): the runs are cut into stretches, and Student's t judges how much the stretches' ratios differ. None with
    too few answers.
    """
    ratio = new.rate / old.rate if old.rate else 0.0
    measured = (new.amount > 0) & (new.seconds > 0) & (old.amount > 0) & (old.seconds > 0)
    places = np.flatnonzero(measured)
    count = min(_STRETCHES, len(places) // _IN_A_STRETCH)
    if count not in STUDENT:
        return ratio, None
    cuts = np.array_split(places, count)
    rates = np.array([[one.amount[cut].sum() / one.seconds[cut].sum() for cut in cuts] for one in (new, old)])
    logs = np.log(rates[0] / rates[1])
    width = STUDENT[count] * float(logs.std(ddof=1)) / count**0.5
    return ratio, (ratio * float(np.exp(-width)), ratio * float(np.exp(width)))


def _percentiles(every: npt.NDArray[np.float64], wanted: tuple[int, ...]) -> dict[str, float | None]:
    if not len(every):
        return {f"p{p}": None for p in wanted}
    return {f"p{p}": round(float(v), 4) for p, v in zip(wanted, np.percentile(every, wanted), strict=True)}
