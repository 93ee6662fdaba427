"""Figures of a profile: how many drafts are accepted, and what rows cost.

Each function draws one, or returns None if there is nothing to draw.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from seqrt.cli.report.svg import INK, Plot, colour, heading, of_drafter, of_mark, plain_numbers
from seqrt.cli.report.tables import shown_depths
from seqrt.runtime.bundle import CHUNK
from seqrt.runtime.profiling.measure import Measurement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]

_LINEAR: Final = 16  # rows up to which an axis of rows is linear


def acceptance(document: Row, found: Sequence[Measurement]) -> Plot | None:
    """How deep drafts are accepted."""
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots()
    for place, row in enumerate(document["rows"]):
        rates = row["acceptance_by_depth"][: shown_depths(row)]
        if rates:
            depths = range(1, len(rates) + 1)
            axes.plot(depths, rates, color=of_drafter(place), marker=of_mark(place), label=row["draft"])
    if not axes.lines:
        return None
    deepest = max(int(np.size(line.get_xdata())) for line in axes.lines)
    axes.set(xlabel="depth in the draft", ylabel="share accepted", ylim=(0, 1.02))
    axes.set_xlim(0.7, max(deepest, 2) + 0.3)
    axes.set_xticks(range(1, max(deepest, 2) + 1))
    heading(figure, *axes.get_legend_handles_labels())
    caption = (
        "Of the steps whose draft was so deep, the share that accepted a token at that depth. Depths that"
        " fewer than one in twenty drafted steps reach are left out."
    )
    return Plot("acceptance", "Acceptance by depth", caption, figure)


def cost(document: Row, found: Sequence[Measurement]) -> Plot | None:
    """What a step costs by its rows."""
    from matplotlib.figure import Figure

    plain, points = document["rows"][0]["step_ms"]["p50"], _steps(document)
    if plain is None or not points:
        return None
    most, dearest = max(rows for rows, *_ in points), max(ms for _, ms, *_ in points)
    figure = Figure()
    axes = figure.subplots()
    ends = np.linspace(1, max(most, 4), 64)
    axes.plot(ends, plain * ends, ":", color=colour("muted"), linewidth=1.2, label="one by one")
    axes.axhline(plain, color=of_drafter(0), linestyle="--", linewidth=1.2, label="one plain step")
    _scatter(axes, document, points, lambda rows, ms: ms)
    axes.set(xlabel="rows of a step", ylabel="ms, median", ylim=(0, 1.12 * max(dearest, 2 * plain)))
    _rows_axis(axes, max(most, 4))
    heading(figure, *axes.get_legend_handles_labels())
    caption = (
        "A step of so many rows, the larger the mark the more steps. On the dashed line further rows would be free;"
        " on the dotted one verifying them together would cost as much as decoding them one by one."
    )
    return Plot("cost", "Cost of a step by its rows", caption, figure)


def roofline(document: Row, found: Sequence[Measurement]) -> Plot | None:
    """Rows a second, and what memory would allow."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    points = _steps(document)
    if not points:
        return None
    figure, per_row, prompts = Figure(), _memory_roof(document), _prompts(document)
    axes = figure.subplots()
    reached = _scatter(axes, document, points, lambda rows, ms: 1e3 * rows / ms)
    for name, rows, rate in prompts:
        axes.plot([rows], [rate], "*", color=colour(INK), markersize=9, label=name)
        reached.append(rate)
    most = max(2, *(rows for rows, *_ in points), *(rows for _, rows, _ in prompts))
    if per_row is not None:
        ends = np.array([1, most])
        axes.plot(ends, per_row * ends, color=colour(INK), linewidth=1.2, label="memory")
    axes.set_yscale("log")
    axes.set(xlabel="rows of a step", ylabel="rows/s", ylim=(0.6 * min(reached), 2 * max(*reached, per_row or 0)))
    _rows_axis(axes, most, log=True)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(plain_numbers())
    heading(figure, *axes.get_legend_handles_labels())
    caption = (
        "What memory allows is not known: its bandwidth was not measured."
        if per_row is None
        else "The line is what memory allows if a step only reads what plain decoding reads; points far below it are"
        " bound by arithmetic or by other costs."
    )
    caption += " Where points rise no more, a further row is no cheaper than a plain step."
    if prompts:
        caption += f" Star: a prompt, {CHUNK} rows at a time."
    return Plot("roofline", "Roofline: rows a second", caption, figure)


def _steps(document: Row) -> list[tuple[int, float, int, int]]:
    """Rows, ms and number of steps, and which drafter's."""
    return [
        (each["rows"], each["step_ms"], each["steps"], place)
        for place, row in enumerate(document["rows"])
        for each in row["steps_by_rows"]
        if each["step_ms"] > 0
    ]


def _scatter(
    axes: "Axes",
    document: Row,
    points: Sequence[tuple[int, float, int, int]],
    height: Callable[[int, float], float],
) -> list[float]:
    """Steps as marks, larger the more there are of them; returns their heights."""
    most = max(steps for *_, steps, _ in points)
    for place, row in enumerate(document["rows"]):
        ours = [(rows, height(rows, ms), steps) for rows, ms, steps, whose in points if whose == place]
        if ours:
            x, y, steps = zip(*ours, strict=True)
            sizes = [10 + 70 * math.sqrt(count / most) for count in steps]
            style: Row = {"color": of_drafter(place), "marker": of_mark(place), "linewidths": 0}
            axes.scatter(x, y, sizes, alpha=0.75, **style)
            axes.scatter([], [], 30, label=row["draft"], **style)  # for the legend
    return [height(rows, ms) for rows, ms, *_ in points]


def _prompts(document: Row) -> list[tuple[str, int, float]]:
    """Tests of prompts: name, rows of a chunk, and rows a second."""
    tests = [(test["test"], test["tokens_per_second"]) for test in document["tests"]]
    return [(name, min(int(name[2:]), CHUNK), rate) for name, rate in tests if name.startswith("pp") and rate]


def _memory_roof(document: Row) -> float | None:
    """Rows a second, by row of a step, if a step took no longer than its reads."""
    copy, read = document["stability"]["copy_gb_per_second"]["median"], document["rows"][0]["bytes_per_step"]
    return 1e9 * copy / read if copy and read else None


def _rows_axis(axes: "Axes", most: int, *, log: bool = False) -> None:
    """Numbers of rows are whole; far ones are drawn close."""
    from matplotlib.ticker import MaxNLocator, NullLocator

    if log or most > _LINEAR:
        axes.set_xscale("log", base=2)
        axes.set_xlim(0.85, 1.2 * max(most, 2))
        axes.xaxis.set_major_formatter(plain_numbers())
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(0.5, most + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
