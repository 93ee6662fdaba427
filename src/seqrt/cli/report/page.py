"""A profile as one page of HTML: tables, figures and all that was asked for, with nothing to load and no script."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from markupsafe import Markup

from seqrt.cli.report import rows, speed, time
from seqrt.cli.report.svg import PALETTE, Plot, style
from seqrt.cli.report.tables import remarks, tables
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
        (time.timeline, time.one_step, time.stages, time.operators),
    ),
    ("Drafts and rows", (rows.acceptance, rows.cost, rows.roofline)),
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
        summary=_summary(document),
        played=sum(answer["turn"] == 0 for answer in document["rows"][0]["answers"]),
        asked=document["settings"]["prompts"] * document["settings"]["repeat"],
        tables=[table for table in tables(document) if table[1]],
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


def _summary(document: Row) -> list[str]:
    """What was measured where, in a few words each."""
    machine, settings = document["environment"], document["settings"]
    played = "1 prompt" if settings["prompts"] == 1 else f"{settings['prompts']} prompts"
    if settings["repeat"] > 1:
        played += f" {settings['repeat']} times"
    processor = machine["gpu"] or f"{machine['cpu']}, {machine['threads'] or machine['cores']} threads"
    return [
        processor,
        machine["engine"],
        f"{settings['variant']}, weights {settings['quantization']}",
        f"{played}, at most {settings['max_new_tokens']} tokens each",
    ]


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
