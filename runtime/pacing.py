"""Never slower than plain decoding: how many rows to verify, and whether to draft at all.

A step of T rows costs c(T) seconds, measured as the loop runs; a draft costs what it costs. With plain decoding as
the alternative, a node is worth verifying while the probability that it will be accepted exceeds the time that its
row adds, in units of the time that a token takes now. When drafting turns out slower than plain decoding over a
stretch of steps, it pauses, each time twice as long, and then tries again: texts change their nature midway.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

_DECAY: Final = 0.9  # of the running cost when a step took longer
_DECAY_DOWN: Final = 0.6  # and when it took less
_REFRESH: Final = 48  # drafted steps after which a plain step is measured again: what it is judged by must be fresh
_PRIOR_ROW: Final = 0.12  # cost of a further row before any is measured, in plain steps: optimistic, so it is tried
_TRIAL_STEPS: Final = 12  # drafted steps before drafting is judged
_FIRST_PAUSE: Final = 24
_LONGEST_PAUSE: Final = 384
_MARGIN: Final = 0.99  # drafting pauses when it falls behind plain decoding by more than this


@dataclass(slots=True)
class Pacer:
    """Chooses the number of nodes of each step from running measurements; one for a model and drafter.

    Attributes:
        max_rows: most nodes of a tree.
        seconds: running cost of a step by its rows.
        adaptive: False verifies every proposal whole (for measurements and tests).
        relative: what steps with 1, 2, ... rows cost in plain steps, if known from earlier; stands in for what was
            not measured yet.
    """

    max_rows: int
    adaptive: bool = True
    seconds: dict[int, float] = field(default_factory=dict)
    relative: Sequence[float] = ()
    _pause: int = 0
    _next_pause: int = _FIRST_PAUSE
    _trial_tokens: int = 0
    _trial_seconds: float = 0.0
    _trial_steps: int = 0
    _since_plain: int = 0

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
        cost = np.array([self.cost(rows) for rows in range(1, most + 1)])
        return int(np.argmax(gain - self.rate * cost)) + 1

    @property
    def rate(self) -> float:
        """Tokens that a second is worth: what plain decoding, or drafting of late, brings in; 0 while unknown."""
        if not self.adaptive or 1 not in self.seconds:
            return 0.0
        return max(1.0 / self.seconds[1], self._rate())

    def cost(self, rows: int) -> float:
        """Seconds of a step with so many rows: as measured, between measurements a line, beyond them its slope."""
        known = self.seconds
        if rows in known:
            return known[rows]
        if rows <= len(self.relative) and 1 in known:
            return known[1] * self.relative[rows - 1]
        below = max((n for n in known if n < rows), default=None)
        above = min((n for n in known if n > rows), default=None)
        if below is None:
            return known[above] if above is not None else 0.0
        if above is not None:
            share = (rows - below) / (above - below)
            return known[below] + share * (known[above] - known[below])
        slope = _PRIOR_ROW * known.get(1, known[below])
        if below > 1 and 1 in known:
            slope = max(slope, (known[below] - known[1]) / (below - 1))
        return known[below] + slope * (rows - below)

    def record(self, rows: int, emitted: int, step_seconds: float, total_seconds: float, *, drafted: bool) -> None:
        """A step ended: its rows, the tokens it emitted, its own time and that of the whole round."""
        old = self.seconds.get(rows)
        # An outlier (another process took the core) must not drive the choice for long: it counts at most double,
        # and as noise only ever adds to a time, a shorter one is believed sooner than a longer one.
        new = step_seconds if old is None else min(step_seconds, 2 * old)
        decay = _DECAY if old is None or new > old else _DECAY_DOWN
        self.seconds[rows] = new if old is None else decay * old + (1 - decay) * new
        self._since_plain = 0 if rows == 1 else self._since_plain + 1
        if not drafted:
            return
        self._trial_tokens += emitted
        # Judged by the running cost, as plain decoding is: what other processes added to this step says nothing of it.
        self._trial_seconds += self.seconds[rows] + min(total_seconds - step_seconds, self.seconds[rows])
        self._trial_steps += 1
        if self.adaptive and self._trial_steps >= _TRIAL_STEPS and 1 in self.seconds:
            self._judge()

    def _judge(self) -> None:
        """Pauses drafting that lost against plain decoding."""
        if self._rate() * self.seconds[1] < _MARGIN:
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, _LONGEST_PAUSE)
        else:
            self._next_pause = _FIRST_PAUSE
        self._trial_tokens, self._trial_seconds, self._trial_steps = 0, 0.0, 0

    def _rate(self) -> float:
        """Tokens per second of the drafted steps on trial."""
        return self._trial_tokens / self._trial_seconds if self._trial_seconds else 0.0
