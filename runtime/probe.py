"""Where the time of a request goes.

Whatever answers a request says which stage it enters, and a probe listens: at each moment one stage is under way, so
that the times of all stages add up to that of the request. Engines say when they run, which is what part of a stage
is theirs and what the host's. Every family of models reports in this way: a loop calls `probe.stage("engine")` and all
of the profiler follows.

Most requests are not listened to: `OFF` costs a call of a method that does nothing.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from time import perf_counter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]

_DOMAIN: Final = "seqrt"


class Probe:
    """Is told what is under way; this one does not listen."""

    __slots__ = ()

    def stage(self, name: str) -> None:
        """The stage `name` begins, and ends the one before."""

    def step(self, name: str) -> None:
        """Likewise, and a step of the loop begins with it."""

    def end(self) -> None:
        """The request is answered."""

    def enter(self, role: str) -> None:
        """An engine starts a run."""

    def leave(self) -> None:
        """It has ended."""


OFF: Final = Probe()


@dataclass(frozen=True, slots=True)
class Span:
    """A stage, or the run of an engine. Times are those of `perf_counter`; `step` is 0 before the first."""

    name: str
    start: float
    end: float
    step: int

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


@dataclass(frozen=True)
class Timeline:
    """A request from its beginning to its end.

    Attributes:
        stages: one after the other, without a gap.
        runs: of engines, named by their role.
    """

    stages: tuple[Span, ...]
    runs: tuple[Span, ...]

    @property
    def start(self) -> float:
        """When it began."""
        return self.stages[0].start

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.stages[-1].end - self.start

    @property
    def engine_seconds(self) -> float:
        """What engines took of that; the rest is the host's."""
        return sum(run.seconds for run in self.runs)

    @cached_property
    def totals(self) -> dict[str, float]:
        """Seconds of all stages of a name; they add up to `seconds`."""
        found: dict[str, float] = {}
        for stage in self.stages:
            found[stage.name] = found.get(stage.name, 0.0) + stage.seconds
        return found

    def until(self, name: str) -> float | None:
        """Seconds from the beginning to the first stage of that name; None if there is none."""
        return next((stage.start - self.start for stage in self.stages if stage.name == name), None)

    def of_steps(self, name: str | None = None) -> Seconds:
        """`[steps]`: seconds of each step, or of its stages of one name; 0 where it has none."""
        return self._summed([stage for stage in self.stages if name in (None, stage.name)])

    def engines_of_steps(self) -> Seconds:
        """`[steps]`: seconds in which engines ran."""
        return self._summed(self.runs)

    def _summed(self, spans: Sequence[Span]) -> Seconds:
        steps = np.array([span.step for span in spans], np.int64)
        seconds = np.array([span.seconds for span in spans], np.float64)
        sums: Seconds = np.bincount(steps, seconds, minlength=self.stages[-1].step + 1)[1:].astype(np.float64)
        return sums


class Recorder(Probe):
    """Keeps what it is told, one request after the other.

    Args:
        ranges: the module `nvtx`, to show stages and runs in Nsight as ranges; None for none.
    """

    __slots__ = ("_inside", "_marks", "_ranges", "_runs")

    def __init__(self, ranges: Any = None) -> None:
        self._ranges = ranges
        self._marks: list[tuple[float, str | None, bool]] = []
        self._runs: list[tuple[str, float, float]] = []
        self._inside: tuple[str, float] | None = None

    def stage(self, name: str) -> None:
        """The stage `name` begins."""
        self._mark(name)

    def step(self, name: str) -> None:
        """A step begins with the stage `name`."""
        self._mark(name, begins_step=True)

    def end(self) -> None:
        """The request is answered."""
        if self._is_open:
            self._mark(None)

    def enter(self, role: str) -> None:
        """The engine `role` starts a run."""
        if self._ranges is not None:
            self._ranges.push_range(role, domain=_DOMAIN)
        self._inside = role, perf_counter()

    def leave(self) -> None:
        """It has ended."""
        if self._inside is not None:
            self._runs.append((*self._inside, perf_counter()))
            self._inside = None
            if self._ranges is not None:
                self._ranges.pop_range(domain=_DOMAIN)

    def take(self) -> Timeline:
        """What was recorded since the last call.

        Raises:
            ValueError: nothing was.
        """
        self.end()
        if not self._marks:
            raise ValueError("no request was recorded: attach the recorder to a model that answers one")
        stages, step = [], 0
        for (start, name, begins_step), (end, *_) in pairwise(self._marks):
            step += begins_step
            if name is not None:
                stages.append(Span(name, start, end, step))
        begins = [stage.start for stage in stages if stage.step]
        steps = [stage.step for stage in stages if stage.step]
        places = np.searchsorted(begins, [start for _, start, _ in self._runs], side="right")
        within = np.array([0, *steps])[places].tolist()
        runs = tuple(Span(*run, step) for run, step in zip(self._runs, within, strict=True))
        self.clear()
        return Timeline(tuple(stages), runs)

    def clear(self) -> None:
        """Forgets what was recorded."""
        self.end()
        self._inside = None
        self._marks, self._runs = [], []

    @property
    def _is_open(self) -> bool:
        return bool(self._marks) and self._marks[-1][1] is not None

    def _mark(self, name: str | None, *, begins_step: bool = False) -> None:
        if self._ranges is not None:
            if self._is_open:
                self._ranges.pop_range(domain=_DOMAIN)
            if name is not None:
                self._ranges.push_range(name, domain=_DOMAIN)
        self._marks.append((perf_counter(), name, begins_step))


def nvtx_ranges() -> Any:
    """The module that names ranges in Nsight; None where it is not installed."""
    try:
        return importlib.import_module("nvtx")
    except ImportError:
        return None
