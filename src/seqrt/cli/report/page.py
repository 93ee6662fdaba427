"""A profile as one page of HTML: tables, figures and all that was asked for, with nothing to load and no script."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from seqrt.cli.report import drafts, speed, stages
from seqrt.cli.report.svg import PALETTE, Plot, style
from seqrt.cli.report.tables import remarks, summary, tables, warnings
from seqrt.runtime.profiling.measure import Measurement

Row = dict[str, Any]

_TEMPLATE: Final = Path(__file__).with_name("page.html.jinja")
_SECTIONS: Final = (
    (
        "Speed and latency",
        (speed.speed, speed.token_latency, speed.step_latency, speed.first_token),
    ),
    (
        "Where the time goes",
        (stages.timeline, stages.one_step, stages.stages, stages.operators),
    ),
    ("Drafts and rows", (drafts.acceptance, drafts.cost, drafts.roofline)),
)
_BLOCKS: Final = ("environment", "settings", "stability", "memory")
_SHOWN_OPERATORS: Final = 12


def page(document: Row, found: Sequence[Measurement]) -> str:
    """The page.

    Args:
        document: the profile, docs/profile.schema.json.
        found: the answers that it was made of, a drafter after the other.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(
        document=document,
        name=document["settings"]["bundle"],
        palette=PALETTE,
        summary=summary(document),
        warnings=warnings(document),
        tables=tables(document),
        remarks=remarks(document),
        sections=_drawn(document, found),
        blocks={name: _flat(document[name]) for name in _BLOCKS},
        operators=_operators(document),
    )
    return text.encode("utf-8", "replace").decode()  # names may hold halves of characters


def _drawn(document: Row, found: Sequence[Measurement]) -> list[tuple[str, list[tuple[Plot, Markup]]]]:
    """Sections with their figures as SVG; those that show nothing are left out."""
    with style():
        sections = []
        for title, draws in _SECTIONS:
            plots = [plot for draw in draws if (plot := draw(document, found)) is not None]
            sections.append((title, [(plot, plot.svg()) for plot in plots]))
    return [section for section in sections if section[1]]


def _flat(block: Row, prefix: str = "") -> list[tuple[str, str]]:
    """Names and values of a block, nested ones with a dot."""
    found: list[tuple[str, str]] = []
    for key, value in block.items():
        if isinstance(value, dict) and value:
            found += _flat(value, f"{prefix}{key}.")
        else:
            found.append((prefix + key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return found


def _operators(document: Row) -> dict[str, list[Row]]:
    """The largest operators of each graph."""
    found: dict[str, list[Row]] = {}
    for each in document.get("operators", ()):
        found.setdefault(each["graph"], []).append(each)
    return {graph: every[:_SHOWN_OPERATORS] for graph, every in found.items()}
