"""How good the answers of a bundle are, on instances with labels; greedy and with a beam.

    python -m tools.pointer.measure BUNDLE hull50.txt hull10.txt [--beam 3] [--count 1000] [--json]

Files are those of `python -m tools.pointer.data`, or the released ones of pointer networks. Reported are, in terms of
arXiv 1506.03134: the share of right answers (the same polygon, triangles or order); of hulls, the share of simple
polygons, and their area to the true one; the share of true triangles that were found; the mean length of tours, and
what it is above that of the labels.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from seqrt.errors import RequestError, SeqrtError
from seqrt.runtime.geometry import Doubles, area, cross, tour_length
from seqrt.runtime.points import Instance, read_points
from seqrt.runtime.solution import Solution
from seqrt.runtime.solver import Search, load

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """Means over the instances of a file; None where a task has no such figure."""

    instances: int
    accuracy: float
    valid: float
    simple: float | None = None
    area: float | None = None
    coverage: float | None = None
    length: float | None = None
    gap: float | None = None


def quality(task: str, instances: Sequence[Instance], found: Sequence[Solution]) -> Quality:
    """Compares answers with labels."""
    labels = [_order(task, item) for item in instances]
    points = [item.points for item in instances]
    pairs = list(zip(points, labels, found, strict=True))
    common = {"instances": len(pairs), "valid": fmean(answer.valid for answer in found)}
    if task == "tour":
        ours = [float(answer.cost or 0.0) for answer in found]
        best = [float(tour_length(where, order)) for where, order in zip(points, labels, strict=True)]
        same = fmean(one <= other * (1 + 1e-6) for one, other in zip(ours, best, strict=True))
        return Quality(**common, accuracy=same, length=fmean(ours), gap=fmean(ours) / fmean(best) - 1)  # type: ignore[arg-type]
    if task == "hull":
        same = fmean(_cycle(np.array(answer.order)) == _cycle(order) for _, order, answer in pairs)
        shares = [
            abs(area(where[answer.order])) / abs(area(where[order]))
            for where, order, answer in pairs
            if is_simple(where[answer.order])
        ]
        simple = len(shares) / len(pairs)
        return Quality(**common, accuracy=same, simple=simple, area=fmean(shares or [0.0]))  # type: ignore[arg-type]
    if task == "triangulation":
        true = [{tuple(sorted(three)) for three in order.reshape(-1, 3).tolist()} for order in labels]
        said = [{tuple(sorted(three)) for three in answer.order} for answer in found]  # type: ignore[arg-type]
        same = fmean(one == other for one, other in zip(true, said, strict=True))
        cover = sum(len(one & other) for one, other in zip(true, said, strict=True)) / sum(map(len, true))
        return Quality(**common, accuracy=same, coverage=cover)  # type: ignore[arg-type]
    same = fmean(answer.order == order.tolist() for _, order, answer in pairs)
    return Quality(**common, accuracy=same)  # type: ignore[arg-type]


def is_simple(corners: Doubles) -> bool:
    """Whether no two sides of a polygon `[n, 2]` cross."""
    sides = np.roll(corners, -1, 0) - corners
    on = np.sign(cross(sides[:, None], corners - corners[:, None]))  # side i, corner j: left or right
    parted = on * np.roll(on, -1, 1) < 0  # side i has the ends of side j on both of its sides
    return not (parted & parted.T).any()


def _labelled(item: Instance | RequestError) -> Instance:
    if isinstance(item, RequestError):
        raise SystemExit(str(item))
    if item.labels is None:
        raise SystemExit("an instance has no labels; write them with tools.pointer.data")
    return item


def _order(task: str, item: Instance) -> Ints:
    """Labels as places from 0, without what closes."""
    assert item.labels is not None
    order = item.labels - 1
    return order[:-1] if task in ("tour", "hull") and order[0] == order[-1] else order


def _cycle(order: Ints) -> list[int]:
    """From its smallest place on."""
    return np.roll(order, -int(order.argmin())).tolist()  # type: ignore[no-any-return]


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--beam", type=int, default=3)
    parser.add_argument("--task", choices=("none",), help="answer without the rules of permutations")
    parser.add_argument("--count", type=int, default=1000, help="instances of a file, at most; 1000 if not given")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    try:
        rows = measured(arguments)
    except SeqrtError as error:
        raise SystemExit(str(error)) from error
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    used = [key for key in rows[0] if rows[0][key] is not None]
    table = Table(*used)
    for row in rows:
        table.add_row(*(f"{row[key]:.4f}" if isinstance(row[key], float) else str(row[key]) for key in used))
    Console().print(table)


def measured(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """A row for each file and search."""
    rows: list[dict[str, object]] = []
    with load(arguments.bundle) as solver:
        if arguments.task is not None and solver.info.task != "permutation":
            raise SystemExit(f"--task none is for permutations, {arguments.bundle} is for {solver.info.task}")
        for file in arguments.files:
            instances = list(map(_labelled, islice(read_points(file, solver.info.input_dim), arguments.count)))
            if not instances:
                raise SystemExit(f"{file} holds no instances; give another file")
            for name, search in (("greedy", Search()), (f"beam {arguments.beam}", Search(beam=arguments.beam))):
                found = solver.solve([item.points for item in instances], task=arguments.task, search=search)
                rows.append({"file": file.stem, "search": name, **asdict(quality(solver.info.task, instances, found))})
    return rows


if __name__ == "__main__":
    main()
