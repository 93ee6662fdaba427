"""A profile as a timeline for chrome://tracing and https://ui.perfetto.dev: the Trace Event Format, version of 2016.

Each drafter is a process with a track for each stage and each engine; operators, which are measured in answers of
their own, come as processes of their own.
"""

import itertools
from collections.abc import Sequence
from typing import Any

from seqrt.runtime.generate import REQUEST_STAGES, STEP_STAGES
from seqrt.runtime.probe import Span, Timeline
from seqrt.runtime.profiling.measure import Measurement
from seqrt.runtime.profiling.operators import Traced

Event = dict[str, Any]


def chrome_trace(found: Sequence[Measurement], traced: Sequence[Traced] = ()) -> dict[str, Any]:
    """The document.

    Args:
        found: answers as they were measured.
        traced: answers with their operators.
    """
    events: list[Event] = []
    processes = itertools.count(1)
    measured = (timeline for one in found for timeline in one.timelines)
    start = min(timeline.start for timeline in (*measured, *(one.timeline for one in traced)))
    for one in found:
        process = _Process(events, next(processes), f"--draft {one.draft}", start)
        for answer in one.answers:
            trace = answer.generation.trace
            steps = [{"rows": rows, "emitted": tokens} for rows, tokens in zip(trace.rows, trace.emitted, strict=True)]
            process.timeline(
                answer.timeline,
                {"prompt": answer.prompt, "turn": answer.turn, "prompt_tokens": answer.generation.prompt_tokens},
                steps,
            )
    for each in traced:
        if each.operations:
            process = _Process(events, next(processes), f"operators, --draft {each.draft} (slower)", start)
            process.timeline(each.timeline, {}, [])
            for operation in each.operations:
                module = operation.module
                name = f"{module} · {operation.op_type}" if module else operation.op_type
                known = {"module": module, "node": operation.span.name, "operator": operation.op_type}
                process.span(f"operators of {operation.role}", operation.span, name, known)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


class _Process:
    """Appends the events of one process; times count from `start`."""

    def __init__(self, events: list[Event], pid: int, name: str, start: float) -> None:
        self._events, self._pid, self._start = events, pid, start
        self._tracks: dict[str, int] = {}
        self._describe("process_name", 0, name)
        for track in ("request", "step", *REQUEST_STAGES, *STEP_STAGES):
            self._track(track)

    def timeline(self, timeline: Timeline, facts: Event, of_steps: Sequence[Event]) -> None:
        """Stages and runs of an answer, with what is known of it and of each of its steps."""
        whole = Span("request", timeline.start, timeline.start + timeline.seconds, 0)
        self.span("request", whole, "request", facts)
        steps: dict[int, list[Span]] = {}
        for stage in timeline.stages:
            self.span(stage.name, stage, stage.name, {"step": stage.step} if stage.step else {})
            if stage.step:
                steps.setdefault(stage.step, []).append(stage)
        for number, stages in steps.items():
            known = of_steps[number - 1] if number <= len(of_steps) else {}
            whole = Span("step", stages[0].start, stages[-1].end, number)
            self.span("step", whole, f"step {number}", {"step": number} | known)
        for run in timeline.runs:
            self.span(f"engine: {run.name}", run, run.name, {"step": run.step} if run.step else {})

    def span(self, track: str, span: Span, name: str, facts: Event) -> None:
        """A complete event, in microseconds."""
        self._track(track)
        self._events.append(
            {
                "ph": "X",
                "name": name,
                "pid": self._pid,
                "tid": self._tracks[track],
                "ts": round(1e6 * (span.start - self._start), 3),
                "dur": round(1e6 * span.seconds, 3),
                "args": facts,
            }
        )

    def _track(self, name: str) -> None:
        """Tracks are shown in the order in which they are first named."""
        if name not in self._tracks:
            self._tracks[name] = len(self._tracks) + 1
            self._describe("thread_name", self._tracks[name], name)

    def _describe(self, kind: str, track: int, name: str) -> None:
        self._events.append({"ph": "M", "name": kind, "pid": self._pid, "tid": track, "args": {"name": name}})
        if track:  # tracks in the order in which they come, not by name
            sort = {"sort_index": track}
            self._events.append({"ph": "M", "name": "thread_sort_index", "pid": self._pid, "tid": track, "args": sort})
