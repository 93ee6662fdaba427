"""Figures of a profile: how fast drafters are, how long one waits, and what rows cost.

Each function draws one, or returns None if there is nothing to draw.
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from seqrt.cli.profile_svg import HEIGHT, INK, MARKS, WIDTH, Plot, bare, colour, heading, of_drafter, plain_numbers
from seqrt.cli.profile_svg import short, thinned
from seqrt.runtime.bundle import CHUNK
from seqrt.runtime.profiling.measure import Answer, Measurement, joined

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = dict[str, Any]

_LANE: Final = 0.5  # inches a drafter
_SHOWN_DEPTH: Final = 8
_REACHED: Final = 0.05  # of drafted steps: rates at depths that fewer reach are noise
_LINEAR: Final = 16  # rows up to which an axis of rows is linear


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
        if ends:
            axes.plot(ends, [place, place], color=colour(INK), marker="|", markersize=7, linewidth=1.2)
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
    caption = (
        "Share of tokens that came within so many ms of the one before; further left is better. Tokens of one step"
        " come together, so that a drafter's curve starts above 0. Marks: p50 and p99."
    )
    samples = [joined(answer.itl_ms for answer in one.answers) for one in found]
    return _distribution(document, samples, "itl_ms", ("tokens", "Time between tokens", "ms since the token before", caption))


def step_latency(document: Row, found: Sequence[Measurement]) -> Plot | None:
    """Time of steps."""
    caption = (
        "Share of steps that took at most so many ms. A drafted step computes more rows, takes longer, and pays if"
        " it emits enough tokens. Marks: p50 and p99."
    )
    samples = [one.step_ms for one in found]
    return _distribution(document, samples, "step_ms", ("steps", "Time of a step", "ms a step", caption))


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


def acceptance(document: Row, found: Sequence[Measurement]) -> Plot | None:
    """How deep drafts are accepted."""
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots()
    for place, (row, one) in enumerate(zip(document["rows"], found, strict=True)):
        rates = row["acceptance_by_depth"][: _depths(one.answers)]
        if rates:
            depths = range(1, len(rates) + 1)
            axes.plot(depths, rates, color=of_drafter(place), marker=of_mark(place), label=row["draft"])
    if not axes.lines:
        return None
    deepest = max(len(line.get_xydata()) for line in axes.lines)
    axes.set(xlabel="depth in the draft", ylabel="share accepted", ylim=(0, 1.02))
    axes.set_xlim(0.7, max(deepest, 2) + 0.3)
    axes.set_xticks(range(1, max(deepest, 2) + 1))
    heading(figure, *axes.get_legend_handles_labels())
    caption = (
        "Of the steps whose draft was so deep, the share that accepted a token at that depth. Depths that fewer than"
        f" {_REACHED:.0%} of drafted steps reach are left out."
    )
    return Plot("acceptance", "Acceptance by depth", caption, figure)


def cost(document: Row, found: Sequence[Measurement]) -> Plot | None:
    """What a step costs by its rows."""
    from matplotlib.figure import Figure

    plain, points = document["rows"][0]["step_ms"]["p50"], _steps(document)
    if plain is None:
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
    figure = Figure()
    axes = figure.subplots()
    reached = _scatter(axes, document, points, lambda rows, ms: 1e3 * rows / ms)
    most = max(rows for rows, *_ in points)
    for test in document["tests"]:
        if test["test"].startswith("pp") and test["tokens_per_second"]:
            rows, rate = min(int(test["test"][2:]), CHUNK), test["tokens_per_second"]
            axes.plot([rows], [rate], "*", color=colour(INK), markersize=9, linestyle="none", label=test["test"])
            reached.append(rate)
            most = max(most, rows)
    top = 2 * max(reached)
    per_row = _memory_roof(document)
    if per_row is not None:
        ends = np.array([1.0, max(most, 2)])
        axes.plot(ends, per_row * ends, color=colour(INK), linewidth=1.2, label="memory")
        top = max(top, 2 * per_row)
    axes.set_yscale("log")
    axes.set(xlabel="rows of a step", ylabel="rows/s", ylim=(0.6 * min(reached), top))
    _rows_axis(axes, most, log=True)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(plain_numbers())
    heading(figure, *axes.get_legend_handles_labels())
    line = (
        "The line is what memory allows if a step only reads what plain decoding reads, as fast as this machine copies."
        if per_row is not None
        else "What memory allows is not known: its bandwidth was not measured."
    )
    caption = (
        f"{line} Points far below it are bound by arithmetic, or by what a step costs besides; where they rise no more,"
        f" a further row is no cheaper than a plain step. A prompt is computed {CHUNK} rows at a time."
    )
    return Plot("roofline", "Roofline: rows a second", caption, figure)


def of_mark(place: int) -> str:
    """Of a drafter: colours alone do not tell everybody which it is."""
    return MARKS[place % len(MARKS)]


def _distribution(
    document: Row, samples: "Sequence[np.typing.NDArray[np.float64]]", key: str, words: tuple[str, str, str, str]
) -> Plot | None:
    """The share of values that are at most so large, a line a drafter; `words` are name, title, unit and caption."""
    from matplotlib.figure import Figure

    name, title, unit, caption = words
    if not any(len(values) for values in samples):
        return None
    figure = Figure()
    axes = figure.subplots()
    last = 0.0
    for place, (row, values) in enumerate(zip(document["rows"], samples, strict=True)):
        if len(values):
            line = thinned(values)
            axes.plot(line, np.linspace(0, 1, len(line)), color=of_drafter(place))
            marks = [row[key]["p50"], row[key]["p99"]]
            axes.plot(marks, [0.5, 0.99], of_mark(place), color=of_drafter(place))
            axes.plot([], [], of_mark(place) + "-", color=of_drafter(place), label=row["draft"])
            last = max(last, marks[1])
    axes.set(xlabel=unit, ylabel=f"share of {name}", xlim=(0, 1.1 * last or 1), ylim=(0, 1.03))
    heading(figure, *axes.get_legend_handles_labels())
    return Plot(name, title, caption, figure)


def _depths(answers: Sequence[Answer]) -> int:
    """So many depths are worth showing."""
    drafted = [depth for answer in answers for depth, _ in answer.generation.trace.accepted_depth]
    reached = [sum(depth >= level for depth in drafted) for level in range(1, _SHOWN_DEPTH + 1)]
    return sum(count > _REACHED * len(drafted) for count in reached)


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
            axes.scatter(x, y, sizes, alpha=0.75, label=row["draft"], **style)
    return [height(rows, ms) for rows, ms, *_ in points]


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


def _lanes(axes: "Axes", rows: Sequence[Row]) -> None:
    """One for each drafter, the first on top."""
    axes.set_ylim(len(rows) - 0.45, -0.55)
    axes.set_yticks(range(len(rows)), [row["draft"] for row in rows])
    bare(axes)
