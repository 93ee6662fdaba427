"""Figures of a profile: how fast drafters are, and how long one waits.

Each function draws one, or returns None if there is nothing to draw.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from seqrt.cli.report.svg import HEIGHT, INK, WIDTH, Plot, bare, colour, heading, of_drafter, of_mark, short, thinned
from seqrt.runtime.profiling.measure import Measurement, joined

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

_LANE: Final = 0.5  # inches a drafter


def speed(document: Row, found: Sequence[Measurement]) -> Plot | None:
    """Tokens a second."""
    from matplotlib.figure import Figure

    rows, plain = document["rows"], document["rows"][0]["tokens_per_second"]
    if not plain:
        return None
    figure = Figure(figsize=(WIDTH, max(1.2 + _LANE * len(rows), HEIGHT * 0.7)))
    axes = figure.subplots()
    for place, row in enumerate(rows):
        rate, interval = row["tokens_per_second"], row["speedup_interval"] if place else None
        axes.barh(place, rate, 0.6, color=of_drafter(place))
        ends = [plain * bound for bound in interval or ()]
        for shade, width in (("paper", 3.2), (INK, 1.2)) if ends else ():  # on any colour of bars
            line: Row = {"color": colour(shade), "linewidth": width, "markeredgewidth": width}
            axes.plot(ends, [place, place], marker="|", markersize=8, **line)
        text = short(rate) + (f" ({row['speedup_vs_none']:.2f}×)" if place and row["speedup_vs_none"] else "")
        axes.annotate(text, (max([rate, *ends]), place), (6, 0), textcoords="offset points", va="center")
    axes.axvline(plain, color=of_drafter(0), linewidth=1, linestyle="--")
    axes.set(xlabel="tokens/s while decoding", xlim=(0, 1.35 * axes.dataLim.xmax))
    _lanes(axes, rows)
    caption = (
        "Tokens after the first of each answer, by the time they took. The whisker is the 95 % interval of the speed-up"
        " for other prompts of this kind: where it crosses the dashed line of plain decoding, the profile does not say"
        " which is faster."
    )
    return Plot("speed", "Speed of each drafter", caption, figure)


def token_latency(document: Row, found: Sequence[Measurement]) -> Plot | None:
    """Time between tokens."""
    samples = [joined(answer.itl_ms for answer in one.answers) for one in found]
    figure = _shares(document["rows"], samples, "itl_ms", ("ms since the token before", "share of tokens"))
    caption = (
        "Share of tokens that came within so many ms of the one before; further left is better. Tokens of one step"
        " come together, so that a drafter's curve starts above 0. Marks: p50 and p99."
    )
    return None if figure is None else Plot("tokens", "Time between tokens", caption, figure)


def step_latency(document: Row, found: Sequence[Measurement]) -> Plot | None:
    """Time of steps."""
    figure = _shares(document["rows"], [one.step_ms for one in found], "step_ms", ("ms a step", "share of steps"))
    caption = (
        "Share of steps that took at most so many ms. A drafted step computes more rows, takes longer, and pays if"
        " it emits enough tokens. Marks: p50 and p99."
    )
    return None if figure is None else Plot("steps", "Time of a step", caption, figure)


def first_token(document: Row, found: Sequence[Measurement]) -> Plot | None:
    """Time to the first token."""
    from matplotlib.figure import Figure

    if not any(one.answers for one in found):
        return None
    rows = document["rows"]
    figure = Figure(figsize=(WIDTH, max(1.1 + _LANE * len(rows), HEIGHT * 0.7)))
    axes = figure.subplots()
    for place, (row, one) in enumerate(zip(rows, found, strict=True)):
        values = thinned(np.array([answer.ttft_ms for answer in one.answers]))
        spread = 0.36 * ((np.arange(len(values)) * 0.618034) % 1 - 0.5)
        axes.plot(values, place + 0.1 + spread, of_mark(place), color=of_drafter(place), markersize=4, alpha=0.7)
        middle = row["ttft_ms"]["p50"]
        if middle is not None:
            axes.plot([middle] * 2, [place - 0.16, place + 0.36], color=colour(INK), linewidth=1.6)
            axes.annotate(short(middle), (middle, place - 0.2), ha="center", va="bottom")
    axes.set(xlabel="ms from the request to its first token", xlim=(0, 1.06 * axes.dataLim.xmax))
    _lanes(axes, rows)
    caption = (
        "One mark an answer, and the median as a line. Most of it is the prompt, which all drafters compute alike:"
        " it grows with the prompt's length and is short where a further turn of a conversation finds the cache filled."
    )
    return Plot("first-token", "Time to the first token", caption, figure)


def _shares(
    rows: Sequence[Row], samples: "Sequence[np.typing.NDArray[np.float64]]", key: str, labels: tuple[str, str]
) -> "Figure | None":
    """The share of values that are at most so large, a line a drafter; marks where `key` says."""
    from matplotlib.figure import Figure

    if not any(len(values) for values in samples):
        return None
    figure, last = Figure(), 0.0
    axes = figure.subplots()
    for place, (row, values) in enumerate(zip(rows, samples, strict=True)):
        if len(values):
            line, marks, shade = thinned(values), [row[key]["p50"], row[key]["p99"]], of_drafter(place)
            axes.plot(line, np.linspace(0, 1, len(line)), color=shade)
            axes.plot(marks, [0.5, 0.99], of_mark(place), color=shade)
            axes.plot([], [], f"{of_mark(place)}-", color=shade, label=row["draft"])
            last = max(last, marks[1])
    axes.set(xlabel=labels[0], ylabel=labels[1], xlim=(0, 1.1 * last or 1), ylim=(0, 1.03))
    heading(figure, *axes.get_legend_handles_labels())
    return figure


def _lanes(axes: "Axes", rows: Sequence[Row]) -> None:
    """One for each drafter, the first on top."""
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_yticks(range(len(rows)), [row["draft"] for row in rows])
    bare(axes)
