"""Figures of matplotlib as parts of a page: its colours, its font, ids of their own.

A figure is drawn in colours that stand for names. In the page they are CSS variables, which light and dark mode set;
each carries its light colour along for whoever takes a figure out of the page.
"""

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

INK: Final = "ink"  # of text, and of marks that matter: whatever colour text has
PALETTE: Final = {  # name: in light mode, in dark mode
    "paper": ("#ffffff", "#14171c"),
    "muted": ("#5b6572", "#a3adba"),
    "grid": ("#dde2e8", "#333a44"),
    # Drafters, plain decoding first, and stages. Found by search: they stand out from the paper by 3 : 1, and any two
    # differ by 25 or more in CIELAB for people who see all colours, and as protanopes and deuteranopes see them.
    "c0": ("#5c646d", "#a4acb6"),
    "c1": ("#056acb", "#359bfa"),
    "c2": ("#ee6112", "#fea956"),
    "c3": ("#2e894f", "#3c905f"),
    "c4": ("#6f0070", "#aa59a7"),
    "c5": ("#593200", "#fbd40c"),
    "c6": ("#2c17b5", "#5a64ff"),
    "c7": ("#069bc9", "#58ccfe"),
}
WIDTH: Final = 4.4  # inches; letters of 9 pt are readable where a phone shows that
HEIGHT: Final = 3.1
_MARKS: Final = "osD^vPX"
_NAMES: Final = [INK, *PALETTE]
_DRAFTERS: Final = 8
_STAGES: Final = (0, 7, 2, 1, 3, 4, 5, 6)  # prefill and verify, which are most of the time, in blue
_STAND_IN: Final = re.compile(r"#fe00([0-9a-f]{2})\b")
_FONT: Final = re.compile(r"'DejaVu Sans'[^;\"]*")
_ID: Final = re.compile(r'(\bid="|href="#|url\(#)')
_OPENING: Final = re.compile(r"<svg[^>]*?viewBox=\"([^\"]+)\"[^>]*>")
_SVG: Final = Markup(
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{}" role="img"'
    ' aria-label="{}"><title>{}</title>'
)
_IN_A_LINE: Final = 4  # of a legend
_MOST_POINTS: Final = 200


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure with what is said of it.

    Attributes:
        name: its id in the page.
        caption: what it shows and how to read it.
    """

    name: str
    title: str
    caption: str
    figure: "Figure"

    def svg(self) -> Markup:
        """As an element of a page. Call it within `style`."""
        import matplotlib as mpl

        out = io.StringIO()
        without = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        with mpl.rc_context({"svg.hashsalt": self.name}):
            self.figure.savefig(out, format="svg", transparent=True, metadata=without)
        text = out.getvalue()
        text = _STAND_IN.sub(_variable, text[text.index("<svg") :])
        text = _FONT.sub("system-ui, sans-serif", text)
        text = _ID.sub(lambda match: f"{match[1]}{self.name}-", text)
        return Markup(_OPENING.sub(lambda match: _SVG.format(match[1], self.title, self.title), text, count=1))


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Everything is drawn and written in here, and whatever else the user set for matplotlib does not count."""
    import matplotlib.style

    muted, grid = colour("muted"), colour("grid")
    ours = {
        "figure.figsize": (WIDTH, HEIGHT),
        "figure.constrained_layout.use": True,
        "figure.constrained_layout.h_pad": 0.07,
        "font.size": 9,
        "text.color": colour(INK),
        "text.parse_math": False,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.labelcolor": colour(INK),
        "axes.edgecolor": muted,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": grid,
        "grid.linewidth": 0.6,
        "lines.linewidth": 1.6,
        "lines.markersize": 5,
        "legend.frameon": False,
        "legend.borderpad": 0,
        "legend.columnspacing": 1.2,
        "legend.handlelength": 1.5,
        "legend.handletextpad": 0.5,
        "svg.fonttype": "none",
    }
    for axis in ("xtick", "ytick"):
        ours |= {f"{axis}.color": muted, f"{axis}.labelcolor": colour(INK), f"{axis}.major.size": 3}
    with matplotlib.style.context(["default", ours]):
        yield


def colour(name: str) -> str:
    """Of `PALETTE`, or `INK`, to draw with."""
    return f"#fe00{_NAMES.index(name):02x}"


def of_drafter(place: int) -> str:
    """The colour of a row of the profile."""
    return colour(f"c{place if place < _DRAFTERS else 1 + (place - 1) % (_DRAFTERS - 1)}")


def of_stage(place: int) -> str:
    """The colour of a stage by its place in the order of stages."""
    return colour(f"c{_STAGES[place % len(_STAGES)]}")


def of_mark(place: int) -> str:
    """Of a row of the profile: colours alone do not tell everybody which it is."""
    return _MARKS[place % len(_MARKS)]


def bare(axes: "Axes") -> None:
    """For bars whose names stand in the plot: no vertical axis, and lines for the values only."""
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def heading(figure: "Figure", handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A legend above everything, so that it covers nothing; to be read line by line."""
    lines = -(-len(labels) // _IN_A_LINE)
    columns = -(-len(labels) // lines)
    order = [place for first in range(columns) for place in range(first, len(labels), columns)]
    handles, labels = [handles[place] for place in order], [labels[place] for place in order]
    figure.legend(handles, labels, loc="outside upper left", ncols=columns)


def short(value: float) -> str:
    """With about three digits that count."""
    return f"{value:,.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2}f}"


def plain_numbers() -> "FuncFormatter":
    """For axes whose scale is logarithmic: 100 rather than a power."""
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")


def thinned(values: "np.typing.NDArray[np.float64]") -> "np.typing.NDArray[np.float64]":
    """Sorted; quantiles stand for very many."""
    if len(values) <= _MOST_POINTS:
        return np.sort(values)
    return np.asarray(np.percentile(values, np.linspace(0, 100, _MOST_POINTS + 1)), np.float64)


def _variable(match: re.Match[str]) -> str:
    name = _NAMES[int(match[1], 16)]
    return "currentColor" if name == INK else f"var(--{name}, {PALETTE[name][0]})"
