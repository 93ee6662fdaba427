"""`seqrt solve`: tours, hulls, triangulations and permutations of points."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from seqrt.cli.common import Backend, BundlePath, Json, Threads, check_drawing, command, in_order
from seqrt.cli.console import FAILURE, note, progress
from seqrt.cli.session import open_solver
from seqrt.errors import RequestError
from seqrt.runtime.bundle import SOLVER_TASKS

if TYPE_CHECKING:
    from seqrt.runtime.geometry import Doubles
    from seqrt.runtime.solution import Solution

_PICTURES: Final = (".png", ".svg", ".pdf")
_DRAWN: Final = 9


@command("seqrt solve am-tsp20 --points cities.csv --beam 3 --plot tour.png")
def solve(
    bundle: BundlePath,
    points: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Instances: .npy [n, 2] or [m, n, 2]; .csv, a point a line; .txt or - for the standard input, an"
            " instance a line: x1 y1 x2 y2 ...",
            show_default=False,
        ),
    ],
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK", help=f"{', '.join(SOLVER_TASKS)}; what the bundle is made for.", show_default=False
        ),
    ] = None,
    beam: Annotated[int, typer.Option(help="Hypotheses that are kept; 1 is greedy.")] = 1,
    samples: Annotated[int, typer.Option(help="Draw so many answers, and take the best.")] = 0,
    multistart: Annotated[
        bool,
        typer.Option("--multistart", help="Tours from every point in eight symmetries, of which the shortest counts."),
    ] = False,
    temperature: Annotated[float, typer.Option(help="Of --samples.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of --samples: same seed, same answers.")] = 0,
    batch: Annotated[int, typer.Option(help="Instances that are solved at once.")] = 64,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"Draw the first {_DRAWN}: a picture ({', '.join(_PICTURES)})."),
    ] = None,
    backend: Backend = "cpu",
    threads: Threads = 0,
    as_json: Json = False,
) -> None:
    """Point at the answer: the shortest tour, the convex hull, a triangulation, the sorted order.

    A line an instance: cost, whether it is valid, and the order, places counted from 0. What is no instance is said
    on stderr and has a line without an order, the others come out all the same, and the exit code is 1.
    """
    from seqrt.runtime.points import Instance, read_points
    from seqrt.runtime.solver import Search

    check_drawing("--plot", plot, _PICTURES)
    search = Search(beam=beam, samples=samples, multistart=multistart, temperature=temperature, seed=seed)
    solver = open_solver(bundle, backend, threads)
    given = read_points(points, solver.info.input_dim)
    kept: dict[int, Doubles] = {}  # what is to be drawn

    def instances() -> Iterator[object]:
        for number, item in enumerate(given):
            if plot is not None and number < _DRAWN and isinstance(item, Instance):
                kept[number] = item.points
            yield item.points if isinstance(item, Instance) else item

    failed = 0
    drawn: list[tuple[Doubles, Solution]] = []
    # Lines on a terminal show how far it is by themselves.
    with progress("solving", None, hidden=not as_json and sys.stdout.isatty()) as advance, _items(as_json) as put:
        for number, found in in_order(solver.each(instances(), task=task, search=search, batch=batch)):
            advance()
            failed += isinstance(found, RequestError)
            put(found)
            if number in kept and not isinstance(found, RequestError):
                drawn.append((kept[number], found))
    if plot is not None and drawn:
        from seqrt.cli.solve_plot import draw

        draw(drawn, task or solver.info.task, plot)
    if failed:
        raise typer.Exit(FAILURE)


@contextmanager
def _items(as_json: bool) -> Iterator[Callable[["Solution | RequestError"], None]]:
    """A function that prints what was found at once, a line or an item of one document, however many there are."""
    count = 0

    def put(found: "Solution | RequestError") -> None:
        nonlocal count
        if as_json:
            print("," if count else '{"items": [', json.dumps(_item(found), allow_nan=False), sep="\n", flush=True)
        elif isinstance(found, RequestError):
            note(f"error: {found}")
            print("- invalid", flush=True)  # a line an instance, whatever it is
        else:
            cost = "-" if found.cost is None else f"{found.cost:.6g}"
            print(cost, "valid" if found.valid else "invalid", *_flat(found.order), flush=True)
        count += 1

    yield put
    if as_json:  # what was interrupted is no document, so that nobody takes it for all
        print("]}" if count else '{"items": []}')


def _item(found: "Solution | RequestError") -> dict[str, Any]:
    if isinstance(found, RequestError):
        return {"order": None, "cost": None, "valid": False, "error": str(found)}
    return {"order": found.order, "cost": found.cost, "valid": found.valid, "error": None}


def _flat(order: list[int] | list[list[int]]) -> Iterator[str]:
    """Places; corners of a triangle with hyphens between."""
    for part in order:
        yield "-".join(map(str, part)) if isinstance(part, list) else str(part)
