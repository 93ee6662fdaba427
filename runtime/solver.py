"""A loaded bundle that points at its inputs: tours, hulls, triangulations, permutations.

Instances go to the smallest size of graph that holds them, in batches. Points are scaled into the unit square, all by
one factor, which is where models are trained; costs are those of the points as given.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from seqrt.errors import RequestError
from seqrt.runtime.backends import Engines
from seqrt.runtime.bundle import SOLVER_ROWS, SOLVER_TASKS, Bundle
from seqrt.runtime.geometry import Doubles, area, is_hull, is_triangulation, tour_length
from seqrt.runtime.loaded import Loaded, load_as
from seqrt.runtime.pointing import Answers, Choose, Pointer, beam, best, drawn
from seqrt.runtime.rules import RULES, Ints

FEWEST: Final = 3
MOST_ROWS: Final = 4096  # rows that are computed at once
_SYMMETRIES: Final = 8
_PATIENCE: Final = 16  # batches after which a size that is rare is solved though its batch is not full


def load(path: str | Path, *, backend: str = "cpu", threads: int = 0, operators: bool = False) -> "Solver":
    """Loads a bundle that points; arguments and errors are those of `seqrt.load`."""
    return load_as(Solver, "solve", path, backend, threads, operators)


@dataclass(frozen=True, slots=True)
class Search:
    """How answers are looked for; one of the three at most. Greedy by default.

    Attributes:
        beam: hypotheses that are kept.
        samples: answers that are drawn, of which the best counts.
        multistart: begin at every point, in each of the eight symmetries of the square; the best counts.
        temperature: of the draws.
        seed: same seed, same draws.
    """

    beam: int = 1
    samples: int = 0
    multistart: bool = False
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.beam <= MOST_ROWS or not 0 <= self.samples <= MOST_ROWS:
            raise RequestError(f"--beam {self.beam}, --samples {self.samples}: give 1 to {MOST_ROWS}")
        if (self.beam > 1) + (self.samples > 0) + self.multistart > 1:
            raise RequestError("--beam, --samples and --multistart are three ways to search; give one of them")
        if not 0 < self.temperature < 100:
            raise RequestError(f"--temperature is {self.temperature}; give a number above 0")


GREEDY: Final = Search()


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


@dataclass(slots=True)
class _Batch:
    """Instances of one size that are solved at once."""

    numbers: list[int] = field(default_factory=list)
    points: list[Doubles] = field(default_factory=list)


class Solver(Loaded):
    """A loaded bundle that points at its inputs."""

    def __init__(self, bundle: Bundle, engines: Engines) -> None:
        super().__init__(bundle, engines)
        self.info = bundle.manifest.pointer
        self._pointers: dict[int, Pointer] = {}

    def solve(
        self, points: Iterable[object], *, task: str | None = None, search: Search = GREEDY, batch: int = 64
    ) -> list[Solution]:
        """Solves instances.

        Args:
            points: instances, each `[n, 2]`, or as many numbers as the bundle's points have.
            task: what the answers are; what the bundle is made for if None.
            search: how they are looked for.
            batch: instances that are solved at once.

        Raises:
            RequestError: an instance is none, has more points than the largest graph, or an option is out of range.
        """
        if getattr(points, "ndim", 3) < 3:
            raise RequestError("solve takes several instances, not one; give [points]")
        found: dict[int, Solution] = {}
        for number, item in self.each(points, task=task, search=search, batch=batch):
            if isinstance(item, RequestError):
                raise item
            found[number] = item
        return [found[number] for number in range(len(found))]

    def each(
        self,
        points: Iterable[object],
        *,
        task: str | None = None,
        search: Search = GREEDY,
        batch: int = 64,
    ) -> Iterator[tuple[int, "Solution | RequestError"]]:
        """The same as they are solved, with their numbers: in batches of a size, not in the order given.

        What is no instance comes as its error, and so does an error among `points`; the others are solved all the same.

        Raises:
            RequestError: an option is out of range.
        """
        task = task or self.info.task
        if task not in SOLVER_TASKS:
            raise RequestError(f"--task {task} is unknown; choose from {', '.join(SOLVER_TASKS)}")
        if task == "triangulation" and not self.info.has_end:
            raise RequestError("--task triangulation needs a model that says where it ends; this one does not")
        if search.multistart and task != "tour":
            raise RequestError(f"--multistart is for tours, which may begin anywhere, not for --task {task}")
        if not 1 <= batch <= MOST_ROWS:
            raise RequestError(f"--batch is {batch}; give 1 to {MOST_ROWS}")
        waiting: dict[int, _Batch] = {}
        for number, given in enumerate(points):
            try:
                instance = self._checked(given, number)
            except RequestError as error:
                yield number, error
                continue
            size = next(size for size in self.info.sizes if size >= len(instance))
            held = waiting.setdefault(size, _Batch())
            held.numbers.append(number)
            held.points.append(instance)
            if len(held.numbers) == batch:
                yield from self._solved(waiting.pop(size), size, task, search)
            for late in [size for size, held in waiting.items() if number - held.numbers[0] >= _PATIENCE * batch]:
                yield from self._solved(waiting.pop(late), late, task, search)
        for size, held in waiting.items():
            yield from self._solved(held, size, task, search)

    def _checked(self, given: object, number: int) -> Doubles:
        """An instance as float64 `[n, d]`.

        Raises:
            RequestError: it is none that the bundle takes.
        """
        if isinstance(given, RequestError):
            raise given
        which, dim, largest = f"instance {number + 1}", self.info.input_dim, self.info.sizes[-1]
        try:
            points = np.asarray(given, np.float64)
        except (TypeError, ValueError) as error:
            raise RequestError(f"{which} holds no numbers ({error}); give points [n, {dim}]") from error
        if points.ndim == 1 and dim == 1:
            points = points[:, None]
        if points.ndim != 2 or points.shape[1] != dim:
            raise RequestError(f"{which} has shape {list(points.shape)}; give points [n, {dim}]")
        if not np.isfinite(points).all():
            place = int(np.argwhere(~np.isfinite(points))[0, 0])
            raise RequestError(f"{which}: point {place + 1} is {points[place].tolist()}; give finite numbers")
        fewest = FEWEST if dim > 1 else 2
        if len(points) < fewest:
            raise RequestError(f"{which} has {len(points)} points; give {fewest} or more")
        if len(points) > largest:
            raise RequestError(
                f"{which} has {len(points)} points, the largest graph of {self.bundle.path} takes {largest}; export"
                f" again with --sizes {','.join(map(str, (*self.info.sizes, len(points))))}"
            )
        return points

    def _solved(self, held: _Batch, size: int, task: str, search: Search) -> Iterator[tuple[int, Solution]]:
        """Solves a batch, in parts if its rows are too many."""
        turns, rows = (_SYMMETRIES, size) if search.multistart else (1, max(search.beam, search.samples))
        part = max(1, MOST_ROWS // (turns * rows))
        if self.backend in ("trt", "rtx"):
            if rows > SOLVER_ROWS["K"]:
                raise RequestError(f"{rows} rows an instance are too many for engines, which take {SOLVER_ROWS['K']}")
            part = min(part, SOLVER_ROWS["B"] // turns)
        for first in range(0, len(held.numbers), part):
            numbers, points = held.numbers[first : first + part], held.points[first : first + part]
            yield from zip(numbers, self._answered(points, size, task, search), strict=True)

    def _answered(self, points: Sequence[Doubles], size: int, task: str, search: Search) -> Iterator[Solution]:
        length = np.array([len(instance) for instance in points])
        turns = _SYMMETRIES if search.multistart else 1
        given = np.zeros((turns * len(points), length.max(), self.info.input_dim), np.float32)
        for i, instance in enumerate(points):
            unit = _unit(instance) if self.info.input_dim == 2 else instance
            for turn in range(turns):
                given[turn * len(points) + i, : len(unit)] = _turned(unit, turn)
        lengths = np.tile(length, turns)
        rows = int(length.max()) if search.multistart else max(search.beam, search.samples)
        rules = RULES[task](lengths, rows, size, self.info.has_end)
        if search.multistart:
            rules.starts = np.arange(rows) % lengths[:, None]
        elif self.info.is_told:
            rules.starts = np.zeros((len(lengths), rows), np.int64)
        choose: Choose = beam if search.beam > 1 else best
        if search.samples:
            choose = drawn(np.random.default_rng(search.seed), search.temperature)
        pointer = self._pointer(size)
        self.probe.stage("engine")
        pointer.read(given, lengths)
        answers = pointer.answer(rules, choose)
        self.probe.end()
        for i, instance in enumerate(points):
            yield _chosen(answers, np.arange(i, len(lengths), len(points)), instance, task, size)

    def _pointer(self, size: int) -> Pointer:
        if size not in self._pointers:
            encode, step = (self.engines[f"{graph}.{size}"] for graph in ("encode", "step"))
            self._pointers[size] = Pointer(encode, step, size)
        return self._pointers[size]


def _unit(points: Doubles) -> Doubles:
    """The points in the unit square, if they are not: moved, and scaled alike in both directions."""
    low, high = points.min(0), points.max(0)
    if (low >= 0).all() and (high <= 1).all():
        return points
    extent = float((high - low).max())
    return (points - low) / extent if extent > 0 else points - low  # type: ignore[no-any-return]


def _turned(points: Doubles, turn: int) -> Doubles:
    """One of the eight symmetries of the unit square; 0 is the points themselves."""
    x, y = points.T if points.shape[1] == 2 else (points[:, 0], points[:, 0])
    if turn == 0:
        return points
    x, y = (1 - x if turn & 1 else x), (1 - y if turn & 2 else y)
    return np.stack([y, x] if turn & 4 else [x, y], 1)


def _chosen(answers: Answers, instances: Ints, points: Doubles, task: str, size: int) -> Solution:
    """The best of what was said of one instance: the shortest tour, else the most probable answer."""
    tokens = answers.tokens[instances].reshape(-1, answers.tokens.shape[2])
    scores = answers.scores[instances].reshape(-1)
    if task == "tour":
        orders = tokens[:, : len(points)]
        alive = np.flatnonzero(np.isfinite(scores))
        lengths = tour_length(points, orders[alive])
        place = int(lengths.argmin())
        order = orders[alive[place]]
        return Solution(order.tolist(), float(lengths[place]), True, float(scores[alive[place]]))
    row = int(scores.argmax())
    order, score = tokens[row][tokens[row] < size], float(scores[row])
    if task == "hull":
        order = _hull(points, order)
        return Solution(order.tolist(), abs(area(points[order])), is_hull(points, points[order]), score)
    if task == "triangulation":
        triangles = order[: len(order) // 3 * 3].reshape(-1, 3)
        return Solution(triangles.tolist(), float(len(triangles)), is_triangulation(points, triangles), score)
    return Solution(order.tolist(), None, task == "none" or len(order) == len(points), score)


def _hull(points: Doubles, order: Ints) -> Ints:
    """Without the first point again, and counter-clockwise."""
    if len(order) > 1 and order[-1] == order[0]:
        order = order[:-1]
    return order[::-1] if area(points[order]) < 0 else order
