"""Figures of a profile: where the time of a request, of a step and of a graph goes.

Each function draws one, or returns None if there is nothing to draw.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from seqrt.cli.report.svg import HEIGHT, INK, WIDTH, Plot, bare, colour, heading, of_stage, short
from seqrt.cli.report.tables import counted, stages_of_steps
from seqrt.runtime.probe import Span
from seqrt.runtime.profiling.measure import Answer, Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]

_STEPS: Final = 12  # of a request that are shown
_BEFORE: Final = 0.25  # of the plot's width is left for what precedes them
_OPERATORS: Final = 12
_LONGEST: Final = 44  # letters of an operator's name
_LANE: Final = 0.62  # inches a drafter
_HIGH: Final = 0.36  # of a lane are the bars of stages


def timeline(document: Row, found: Sequence[Measurement]) -> Plot | None:
    """The first answer of each drafter: the end of its prompt and its first steps."""
    from matplotlib.figure import Figure

    shown = [(one.draft, one.answers[0]) for one in found if one.answers]
    if not shown or not any(_numbers(answer.timeline.stages) for _, answer in shown):
        return None
    figure = Figure(figsize=(WIDTH, 1.35 + _LANE * len(shown)))
    axes, stages = figure.subplots(), _Stages(document)
    first = [_begin(answer) for _, answer in shown]
    until = [max(span.end for span in _early(answer)) for _, answer in shown]
    right = 1e3 * max(end - start for end, start in zip(until, first, strict=True))
    for place, (draft, answer) in enumerate(shown):
        early = _early(answer)
        stages.draw(axes, place, early, first[place])
        _separate(axes, place, early, first[place])
        _engines(axes, place, [run for run in answer.timeline.runs if run.step <= _STEPS], first[place])
        _say(axes, place, -_BEFORE * right, _told(draft, answer, first[place], until[place]))
    axes.set(xlabel="ms since the first step began", xlim=(-_BEFORE * right, 1.01 * right))
    _rows(axes, len(shown))
    heading(figure, *stages.legend())
    caption = (
        f"The prompt {shown[0][1].prompt!r} with each drafter: left of 0 the end of what precedes the first step, then"
        f" up to {_STEPS} steps and the tokens that they emit. The thin bar is when engines run; where it is missing,"
        " the host works."
    )
    return Plot("timeline", "One request", caption, figure)


def one_step(document: Row, found: Sequence[Measurement]) -> Plot | None:
    """A step of each drafter from close by."""
    from matplotlib.figure import Figure

    shown = [(one.draft, answer, step) for one in found for answer in one.answers[:1] if (step := _typical(answer))]
    if not shown:
        return None
    figure = Figure(figsize=(WIDTH, 1.35 + _LANE * len(shown)))
    axes, stages = figure.subplots(), _Stages(document)
    right = 0.0
    for place, (draft, answer, step) in enumerate(shown):
        spans = [span for span in answer.timeline.stages if span.step == step]
        stages.draw(axes, place, spans, spans[0].start)
        _engines(axes, place, [run for run in answer.timeline.runs if run.step == step], spans[0].start)
        took, rows = 1e3 * (spans[-1].end - spans[0].start), answer.generation.trace.rows
        text = f"{draft}: step {step}" + (f", {counted(rows[step - 1], 'row')}" if step <= len(rows) else "")
        _say(axes, place, 0, f"{text}, {short(took)} ms")
        right = max(right, took)
    axes.set(xlabel="ms since the step began", xlim=(0, 1.01 * right))
    _rows(axes, len(shown))
    heading(figure, *stages.legend())
    caption = (
        "A step of the same requests, of a drafter one that drafted if there is any. The thin bar is when engines run:"
        " the decoder while verifying, and draft heads while drafting."
    )
    return Plot("step", "One step from close by", caption, figure)


def stages(document: Row, found: Sequence[Measurement]) -> Plot | None:
    """Mean time of a step by its stages, and again without the longest of them."""
    from matplotlib.figure import Figure

    rows = [row for row in document["rows"] if row["stages_ms"]["host"]["mean"] is not None]
    if not rows:
        return None
    names = stages_of_steps(rows[0])
    longest = max(names, key=lambda name: sum(row["stages_ms"][name]["mean"] for row in rows))
    figure = Figure(figsize=(WIDTH, 1.7 + 0.62 * len(rows)))
    whole, rest = figure.subplots(2, 1, height_ratios=(1, 1.7))
    painted = _Stages(document)
    for axes, title, without in ((whole, "all of a step", ""), (rest, f"without {longest}", longest)):
        _stacked(axes, painted, rows, [name for name in names if name != without], with_host=bool(without))
        axes.set_title(f"{title}, mean ms")
    heading(figure, *painted.legend())
    caption = (
        f"Where the time of a step goes on average, above in all and below without {longest} at a larger scale."
        " The thin bar is the host's part of the whole step: all that no engine computes."
    )
    return Plot("stages", "Stages of a step", caption, figure)


def operators(document: Row, found: Sequence[Measurement]) -> Plot | None:
    """The largest operators of the first graph, which is the decoder."""
    from matplotlib.figure import Figure

    every = document.get("operators")
    if not every:
        return None
    ours = [each for each in every if each["graph"] == every[0]["graph"]]
    shown, others = ours[:_OPERATORS], ours[_OPERATORS:]
    named = [(_named(each), each["ms_per_step"], each["share"]) for each in shown]
    if others:
        total = (sum(each["ms_per_step"] for each in others), sum(each["share"] for each in others))
        named.append((counted(len(others), "smaller one"), *total))
    figure = Figure(figsize=(WIDTH, max(0.55 + 0.3 * len(named), HEIGHT / 2)))
    axes = figure.subplots()
    longest = max(ms for _, ms, _ in named) or 1.0
    for place, (name, ms, share) in enumerate(named):
        is_rest = place == len(shown)
        axes.barh(place, ms, 0.28, color=colour("muted") if is_rest else of_stage(3))
        axes.annotate(name, (0, place - 0.18), va="bottom")
        axes.annotate(f"{short(ms)} ms · {share:.0%}", (longest, place - 0.18), ha="right", va="bottom")
    axes.set(xlim=(0, longest), xlabel="ms a step", ylim=(len(named) - 0.7, -0.9))
    axes.set_yticks([])
    bare(axes)
    caption = (
        f"Of the graph {every[0]['graph']}, in steps of plain decoding, by module and kind; layers, *, are summed."
        " Engines that keep these times are slower, so read the shares rather than the ms."
    )
    return Plot("operators", "Largest operators", caption, figure)


class _Stages:
    """Draws stages, each in its colour, and remembers which there were."""

    def __init__(self, document: Row) -> None:
        self._order = [name for name in document["rows"][0]["stages_ms"] if name != "host"]
        self._seen: set[str] = set()

    def draw(self, axes: "Axes", place: int, spans: Sequence[Span], start: float, height: float = _HIGH) -> None:
        """Spans as bars of the lane `place`, in ms after `start`."""
        for name in dict.fromkeys(span.name for span in spans):
            if name not in self._order:
                self._order.append(name)
            self._seen.add(name)
            bars = [(1e3 * (span.start - start), 1e3 * span.seconds) for span in spans if span.name == name]
            axes.broken_barh(bars, (place - height / 2, height), color=of_stage(self._order.index(name)), linewidth=0)

    def legend(self) -> tuple[list[object], list[str]]:
        """Of all that was drawn."""
        from matplotlib.patches import Patch

        names = [name for name in self._order if name in self._seen]
        return [Patch(color=of_stage(self._order.index(name)), linewidth=0) for name in names], names


def _named(operator: Row) -> str:
    """By module and kind; of a long name the end."""
    name = f"{operator['module']} · {operator['op_type']}" if operator["module"] else operator["op_type"]
    return name if len(name) <= _LONGEST else f"…{name[-_LONGEST:]}"


def _stacked(axes: "Axes", painted: "_Stages", rows: Sequence[Row], names: Sequence[str], *, with_host: bool) -> None:
    """A lane a drafter with the means of its stages, and beneath them the host's."""
    for place, row in enumerate(rows):
        means, host = row["stages_ms"], row["stages_ms"]["host"]["mean"]
        ends = np.cumsum([0.0, *(means[name]["mean"] for name in names)]) / 1e3
        spans = [Span(name, begin, end, 0) for name, (begin, end) in zip(names, pairwise(ends.tolist()), strict=True)]
        painted.draw(axes, place, spans, 0.0, _HIGH if with_host else 0.5)
        text, end = short(1e3 * ends[-1]), 1e3 * ends[-1]
        if with_host:
            axes.barh(place + 0.3, host, 0.14, color=colour(INK))
            text, end = f"host {short(host)}", max(host, end)
        axes.annotate(text, (end, place), (4, 0), textcoords="offset points", va="center")
    axes.set_xlim(0, 1.22 * axes.dataLim.xmax or 1)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [row["draft"] for row in rows])
    bare(axes)


def _separate(axes: "Axes", place: int, spans: Sequence[Span], start: float) -> None:
    """A gap before each step."""
    begins = [min(span.start for span in spans if span.step == step) for step in _numbers(spans)]
    ends = place - _HIGH / 2, place + _HIGH / 2
    axes.vlines([1e3 * (begin - start) for begin in begins], *ends, colour("paper"), linewidth=1)


def _engines(axes: "Axes", place: int, runs: Sequence[Span], start: float) -> None:
    bars = [(1e3 * (run.start - start), 1e3 * run.seconds) for run in runs]
    axes.broken_barh(bars, (place + 0.22, 0.1), color=colour(INK), linewidth=0)


def _say(axes: "Axes", place: int, left: float, text: str) -> None:
    """Above a lane; the plot is as wide as it would be without."""
    axes.annotate(text, (left, place - 0.24), va="bottom", in_layout=False)


def _rows(axes: "Axes", count: int) -> None:
    """Lanes that carry their names themselves."""
    axes.set_ylim(count - 0.6, -0.7)
    axes.set_yticks([])
    bare(axes)


def _told(draft: str, answer: Answer, first: float, until: float) -> str:
    """A lane in words."""
    emitted = answer.generation.trace.emitted[: len(_numbers(_early(answer)))]
    before, took = short(1e3 * (first - answer.timeline.start)), short(1e3 * (until - first))
    return f"{draft}: {before} ms, then {counted(sum(emitted), 'token')} in {took} ms"


def _early(answer: Answer) -> list[Span]:
    """Stages up to the last step that is shown."""
    return [span for span in answer.timeline.stages if span.step <= _STEPS]


def _numbers(spans: Sequence[Span]) -> list[int]:
    """Of the steps."""
    return sorted({span.step for span in spans if span.step})


def _begin(answer: Answer) -> float:
    """When the first step began; the end, if there is none."""
    end = answer.timeline.start + answer.timeline.seconds
    return min((span.start for span in answer.timeline.stages if span.step), default=end)


def _typical(answer: Answer) -> int | None:
    """The first step after two others that drafted, else any that there is."""
    numbers, rows = _numbers(answer.timeline.stages), answer.generation.trace.rows
    drafted = [step for step in numbers[2:] if step <= len(rows) and rows[step - 1] > 1]
    return next(iter([*drafted, *numbers[2:], *reversed(numbers)]), None)
