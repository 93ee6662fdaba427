"""Answers of pointer models, and which of several is the best."""

from dataclasses import dataclass

import numpy as np

from seqrt.runtime.geometry import Doubles, area, is_hull, is_triangulation, tour_length
from seqrt.runtime.pointing import Floats
from seqrt.runtime.rules import CORNERS, Ints


@dataclass(frozen=True, slots=True)
class Solution:
    """An answer.

    Attributes:
        order: places of points: of a tour without its first one again; of a hull counter-clockwise; of triangles,
            triples; of a permutation all.
        cost: length of a tour, area of a hull, number of triangles; None of others.
        valid: whether it is a tour or permutation, the convex hull, a triangulation.
        log_probability: of the answer; of one that was told where to begin, of all but the beginning.
    """

    order: list[int] | list[list[int]]
    cost: float | None
    valid: bool
    log_probability: float


def best_of(tokens: Ints, scores: Floats, points: Doubles, task: str, size: int) -> Solution:
    """The best answer to one instance: the shortest tour, else the most probable.

    Args:
        tokens: `[rows, outputs]`; `size` is the end, and fills up shorter ones.
        scores: `[rows]`, log-probabilities, -inf of rows that say what another one does.
        points: `[n, d]`, as given.
        task: what the answers are.
        size: places of the graph.
    """
    if task == "tour":
        alive = np.flatnonzero(np.isfinite(scores))
        lengths = tour_length(points, tokens[alive, : len(points)])
        place = int(lengths.argmin())
        order, score = tokens[alive[place], : len(points)], float(scores[alive[place]])
        return Solution(order.tolist(), float(lengths[place]), _is_permutation(order, points), score)
    row = int(scores.argmax())
    order, score = tokens[row][tokens[row] < size], float(scores[row])
    if task == "hull":
        order = _polygon(points, order)
        return Solution(order.tolist(), abs(area(points[order])), is_hull(points, points[order]), score)
    if task == "triangulation":
        triangles = order[: len(order) // CORNERS * CORNERS].reshape(-1, CORNERS)
        return Solution(triangles.tolist(), float(len(triangles)), is_triangulation(points, triangles), score)
    return Solution(order.tolist(), None, task == "none" or _is_permutation(order, points), score)


def _is_permutation(order: Ints, points: Doubles) -> bool:
    return len(order) == len(points) and bool((np.bincount(order, minlength=len(points)) == 1).all())


def _polygon(points: Doubles, order: Ints) -> Ints:
    """Without the first point again, and counter-clockwise."""
    if len(order) > 1 and order[-1] == order[0]:
        order = order[:-1]
    return order[::-1] if area(points[order]) < 0 else order
