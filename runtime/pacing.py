"""Never slower than plain decoding: how many rows to verify, and whether to draft at all.

A step of T rows costs c(T) seconds, measured as the loop runs; a draft costs what it costs. With plain decoding as
the alternative, a node is worth verifying while the probability that it will be accepted exceeds the time that its
row adds, in units of the time that a token takes now. When drafting turns out slower than plain decoding over a
stretch of steps, it pauses, each time twice as long, and then tries again: texts change their nature midway.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median_low
from typing import Final

import numpy as np
import numpy.typing as npt

_RECENT: Final = 9  # steps of a size whose median is its cost
_FADE: Final = 0.8  # of a cost, per text in which it was not measured
_REFRESH: Final = 32  # drafted steps after which a plain step is measured again: what it is judged by must be fresh
_PRIOR_ROW: Final = 0.12  # cost of a further row before any is measured, in plain steps: optimistic, so it is tried
_TRIAL_STEPS: Final = 12  # drafted steps before drafting is judged
_KEEP: Final = 0.985  # of what drafting brought in and cost, per step: it is judged by some sixty steps
_KEEP_OVER_PAUSE: Final = 0.25
_FIRST_PAUSE: Final = 24
_LONGEST_PAUSE: Final = 384
_MARGIN: Final = 0.99  # drafting pauses when it falls behind plain decoding by more than this


class StepCosts(dict[int, float]):
    """Seconds of a step by its rows: the median of the latest few.

    Plain steps are many while drafting pauses and few while it does not. A median of so many is no higher or lower for
    that, as a mean that forgets would be that believes short times sooner; and it lets outliers pass, when another
    process took the core.

    What few rows cost and was not measured in a text fades, so that they are tried again: a longer text
    makes all steps dearer, and it may have been a bad moment.
    """

    def __init__(self, known: Mapping[int, float] | None = None, *, unsettled: int = 0) -> None:
        """Of each number of rows, the first `unsettled` steps are not counted: an engine sets itself up in them."""
        super().__init__(known or {})
        self._recent = {rows: deque([seconds], _RECENT) for rows, seconds in self.items()}
        self._fresh: set[int] = set()
        self._unsettled, self._steps = unsettled, Counter[int]()

    def begin(self) -> None:
        """A text starts."""
        plain = self.get(1, 0.0)
        for rows in self.keys() - self._fresh - {1}:
            if self[rows] < 2 * plain:  # to try it again in vain costs less than a token
                self[rows] = plain + _FADE * (self[rows] - plain)
                self._recent[rows] = deque([self[rows]], _RECENT)
        self._fresh.clear()

    def add(self, rows: int, seconds: float) -> None:
        """A step with so many rows took so long."""
        self._steps[rows] += 1
        if self._steps[rows] <= self._unsettled:
            return
        recent = self._recent.setdefault(rows, deque(maxlen=_RECENT))
        recent.append(seconds)
        self[rows] = median_low(recent)
        self._fresh.add(rows)


@dataclass(slots=True)
class Pacer:
    """Chooses the number of nodes of each step from running measurements; one for a model and drafter.

    Attributes:
        max_rows: most nodes of a tree.
        seconds: cost of a step by its rows, as measured; of a model, whatever the drafter.
        adaptive: False verifies every proposal whole (for measurements and tests).
        relative: what steps with 1, 2, ... rows cost in plain steps, if known from earlier; stands in for what was
            not measured yet.
        buckets: numbers of rows that the engine computes, ascending: a step costs what the next one costs. None: all.
    """

    max_rows: int
    adaptive: bool = True
    seconds: StepCosts = field(default_factory=StepCosts)
    relative: Sequence[float] = ()
    buckets: Sequence[int] = ()
    _pause: int = 0
    _next_pause: int = _FIRST_PAUSE
    _trial_tokens: float = 0.0
    _trial_seconds: float = 0.0
    _trial_steps: int = 0
    _since_plain: int = 0
    _curve: npt.NDArray[np.float64] | None = None

    def begin(self) -> None:
        """A request starts, of which the last one's text says little: drafting gets its chance soon."""
        self.seconds.begin()
        self._curve = None
        self._pause = min(self._pause, _FIRST_PAUSE)
        self._next_pause = min(self._next_pause, 2 * _FIRST_PAUSE)
        self._forget()

    def drafts(self) -> bool:
        """Whether the next step should be drafted."""
        if not self.adaptive or (self._pause == 0 and self._since_plain < _REFRESH):
            return True
        self._pause = max(self._pause - 1, 0)
        return False

    def choose(self, probability: npt.NDArray[np.float64]) -> int:
        """How many of the proposed nodes to verify: those that bring in more than their rows cost."""
        most = min(len(probability), self.max_rows)
        if not self.adaptive or most == 1:
            return most
        if 1 not in self.seconds:
            return 1  # nothing can be judged before a plain step has been measured
        gain = np.cumsum(probability[:most])
        return int(np.argmax(gain - self.rate * self._costs()[:most])) + 1

    @property
    def rate(self) -> float:
        """Tokens that a second is worth: what plain decoding, or drafting of late, brings in; 0 while unknown."""
        if not self.adaptive or 1 not in self.seconds:
            return 0.0
        return max(1.0 / self.seconds[1], self._rate())

    @property
    def prices(self) -> Sequence[float]:
        """Tokens that a second, third, ... row is worth at that rate; none while unknown."""
        if not self.adaptive or 1 not in self.seconds:
            return ()
        prices: list[float] = np.maximum(self.rate * np.diff(self._costs()), 0.0).tolist()
        return prices

    def _costs(self) -> npt.NDArray[np.float64]:
        """Seconds of steps with 1, 2, ... rows."""
        if self._curve is None:
            self._curve = self._computed()
        return self._curve

    def cost(self, rows: int) -> float:
        """Seconds of a step with so many rows, at most `max_rows`: as measured, between measurements a line."""
        return float(self._computed()[rows - 1])

    def _computed(self) -> npt.NDArray[np.float64]:
        """Seconds of all sizes: as measured, as tuned, on lines between measurements, beyond them their slope."""
        rows, known = np.arange(1, self._bucket(self.max_rows) + 1), self.seconds
        if not known:
            return np.zeros(self.max_rows)
        sizes = sorted(known)
        curve: npt.NDArray[np.float64] = np.interp(rows, sizes, [known[size] for size in sizes])
        last = sizes[-1]
        slope = _PRIOR_ROW * known.get(1, known[last])
        if last > 1 and 1 in known:
            slope = max(slope, (known[last] - known[1]) / (last - 1))
        curve += slope * np.maximum(rows - last, 0)
        if self.relative and 1 in known:
            count = min(len(self.relative), len(rows))
            tuned = np.isin(rows[:count], sizes, invert=True)
            curve[:count][tuned] = known[1] * np.asarray(self.relative[:count])[tuned]
        if self.buckets:
            curve = curve[[self._bucket(count) - 1 for count in range(1, self.max_rows + 1)]]
        return curve

    def _bucket(self, rows: int) -> int:
        """How many rows the engine computes for so many."""
        return next((size for size in self.buckets if size >= rows), rows)

    def record(self, rows: int, emitted: int, step_seconds: float, total_seconds: float, *, drafted: bool) -> None:
        """A step ended: its rows, the tokens it emitted, its own time and that of the whole round."""
        rows = self._bucket(rows)
        self.seconds.add(rows, step_seconds)
        self._curve = None
        self._since_plain = 0 if rows == 1 else self._since_plain + 1
        if not drafted or rows not in self.seconds:
            return
        # Judged by the cost of such steps, as plain decoding is: what else the machine did in this one says nothing.
        cost = self.seconds[rows]
        self._trial_tokens = _KEEP * self._trial_tokens + emitted
        self._trial_seconds = _KEEP * self._trial_seconds + cost + min(total_seconds - step_seconds, cost)
        self._trial_steps += 1
        if self.adaptive and self._trial_steps >= _TRIAL_STEPS and 1 in self.seconds:
            self._judge()

    def _judge(self) -> None:
        """Pauses drafting that lost against plain decoding."""
        if self._rate() * self.seconds[1] >= _MARGIN:
            self._next_pause = _FIRST_PAUSE
            return
        self._pause = self._next_pause
        self._next_pause = min(2 * self._next_pause, _LONGEST_PAUSE)
        self._forget()

    def _forget(self) -> None:
        """What drafting brought in before counts less from here on."""
        self._trial_steps = 0
        self._trial_tokens *= _KEEP_OVER_PAUSE
        self._trial_seconds *= _KEEP_OVER_PAUSE

    def _rate(self) -> float:
        """Tokens per second of drafted steps of late."""
        return self._trial_tokens / self._trial_seconds if self._trial_seconds else 0.0
