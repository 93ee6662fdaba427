"""`seqrt compare`: whether a second profile is slower than a first."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from seqrt.cli.common import Json, command
from seqrt.cli.console import REGRESSION, emit, note, print_table
from seqrt.cli.report.tables import FORMATS, Table, markdown
from seqrt.errors import RequestError

if TYPE_CHECKING:
    from seqrt.runtime.profiling.compare import Ratio

SCHEMA: Final = 1


@command("seqrt compare before.json after.json --fail-if-slower 5%")
def compare(
    first: Annotated[Path, typer.Argument(help="What `seqrt profile --json` printed before.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="What it printed afterwards.", show_default=False)],
    fail_if_slower: Annotated[
        str | None,
        typer.Option(metavar="PERCENT", help="Exit code 3 if a figure is slower by more.", show_default=False),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Compare other machines and settings too.")] = False,
    as_format: Annotated[str, typer.Option("--format", help="Of what is printed: table or markdown.")] = "table",
    as_json: Json = False,
) -> None:
    """Compare two profiles: decoding and time to first token of each drafter, llama-bench's figures; or batch sizes.

    Ratios are of speeds: below 1 the second is slower. A figure counts as slower or faster if the 99.5 % interval
    of its ratio leaves out 1. docs/profiling.md says how it is made.
    """
    from seqrt.runtime.profiling.compare import compare as ratios_of
    from seqrt.runtime.profiling.compare import differences, read_profile, remarks

    limit = _percent(fail_if_slower)
    if as_format not in FORMATS[:2]:
        raise RequestError(f"--format is {as_format!r:.40}; choose table or markdown, or --json")
    old, new = read_profile(first), read_profile(second)
    differing = differences(old, new)
    if differing and not force:
        raise RequestError(
            f"{first} and {second} cannot be compared: {'; '.join(differing)}; add --force if that is meant"
        )
    ratios = list(ratios_of(old, new))
    if not ratios:
        raise RequestError(f"{first} and {second} have no figure in common; profile the same drafters and prompts")
    slower = [one for one in ratios if one.verdict(limit or 0.0) == "slower"]
    lines = [*differing, *remarks(old, new)]
    if as_json:
        emit(
            {
                "schema": SCHEMA,
                "limit": limit,
                "figures": [_figure(one, limit or 0.0) for one in ratios],
                "slower": len(slower),
                "remarks": lines,
            }
        )
    elif as_format == "markdown":
        print(markdown(_table(ratios, limit or 0.0)))
    else:
        print_table(*_table(ratios, limit or 0.0))
    for line in lines:
        note(line)
    if limit is not None and slower:
        note(f"{len(slower)} of {len(ratios)} figures are slower by more than {limit:.2%}, beyond chance")
        raise typer.Exit(REGRESSION)


def _percent(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text.removesuffix("%")) / 100
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise RequestError(f"--fail-if-slower is {text!r:.40}; give per cent from 0 to 100, for example 5%")
    return value


def _figure(one: "Ratio", limit: float) -> dict[str, object]:
    return {
        "draft": one.draft,
        "metric": one.metric,
        "first": round(one.old, 4),
        "second": round(one.new, 4),
        "ratio": round(one.ratio, 4),
        "interval": None if one.interval is None else [round(bound, 4) for bound in one.interval],
        "verdict": one.verdict(limit),
    }


def _table(ratios: "Sequence[Ratio]", limit: float) -> Table:
    rows = [
        (
            one.draft,
            one.metric,
            f"{one.old:.2f}",
            f"{one.new:.2f}",
            f"{one.ratio:.3f}",
            "-" if one.interval is None else f"{one.interval[0]:.3f}-{one.interval[1]:.3f}",
            one.verdict(limit),
        )
        for one in ratios
    ]
    return ("draft", "figure", "first", "second", "speed ratio", "99.5 %", "verdict"), rows
