"""Instances with answers, as a file in the format of the pointer networks' released data.

    python -m tools.pointer.data tour --points 5-20 --count 1000 --seed 0 --out tsp.txt

Points are uniform in the unit square; of permutations, numbers in 0 ... 1 that are to be sorted. Labels count from 1:

    hull           from the corner that comes first in the input, counter-clockwise, closed by that corner again
    tour           the shortest one, from the first city, counter-clockwise, closed
    triangulation  Delaunay's triangles, each ascending, in ascending order
    permutation    the ascending order
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from tqdm import tqdm  # type: ignore[import-untyped]

from seqrt.runtime.geometry import area
from seqrt.runtime.points import Instance, line_of
from seqrt.runtime.rules import CORNERS

Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SCALE: Final = 1_000_000  # of distances, which elkai wants as whole numbers


def hull(points: Doubles) -> Ints:
    """Places of the corners, counted from 0, not closed."""
    from scipy.spatial import ConvexHull

    corners = np.asarray(ConvexHull(points).vertices, np.int64)  # counter-clockwise in the plane
    return np.roll(corners, -int(corners.argmin()))


def tour(points: Doubles) -> Ints:
    """Of the shortest tour that Lin, Kernighan and Helsgaun's heuristic finds (elkai), not closed.

    Up to 7 points it was the shortest of all wherever that was tried, as published figures say up to 100.
    """
    import elkai

    distances = np.sqrt(((points[:, None] - points) ** 2).sum(2))
    order = np.array(elkai.DistanceMatrix((distances * _SCALE).round().astype(int).tolist()).solve_tsp()[:-1], np.int64)
    return np.roll(order[::-1], 1) if area(points[order]) < 0 else order


def triangulation(points: Doubles) -> Ints:
    """Corners of Delaunay's triangles, one after the other."""
    from scipy.spatial import Delaunay

    triangles = np.sort(Delaunay(points).simplices.astype(np.int64), 1)
    return triangles[np.lexsort(triangles.T[::-1])].ravel()


def permutation(numbers: Doubles) -> Ints:
    """The ascending order of numbers `[n, 1]`."""
    return numbers[:, 0].argsort()


ANSWERS: Final[dict[str, Callable[[Doubles], Ints]]] = {
    "hull": hull,
    "tour": tour,
    "triangulation": triangulation,
    "permutation": permutation,
}


def make(task: str, count: int, seed: Sequence[int]) -> Instance:
    """A random instance of so many points, with its labels."""
    points = np.random.default_rng(seed).random((count, 1 if task == "permutation" else 2))
    order = ANSWERS[task](points)
    closed = np.append(order, order[0]) if task in ("hull", "tour") else order
    return Instance(points, closed + 1)


def sizes(text: str) -> range:
    """`5-50`, or one number."""
    low, _, high = text.partition("-")
    found = range(int(low), int(high or low) + 1)
    if not found or found[0] < CORNERS:
        raise argparse.ArgumentTypeError(f"{text}: give 3 or more, as in 5-50")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=tuple(ANSWERS))
    parser.add_argument("--points", type=sizes, required=True, help="so many, or a range such as 5-50")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args(argv)
    with arguments.out.open("w", encoding="utf-8") as file:
        for i in tqdm(range(arguments.count), unit="instance"):
            count = arguments.points[i % len(arguments.points)]
            file.write(line_of(make(arguments.task, count, (arguments.seed, i))) + "\n")


if __name__ == "__main__":
    main()
