"""A loaded bundle that points at its inputs: tours, hulls, triangulations, permutations.

Instances go to the smallest size of graph that holds them, in batches. Points are scaled into the unit square, all by
one factor, which is where models are trained; costs are those of the points as given.
"""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from seqrt.errors import EngineError, RequestError
from seqrt.runtime.backends import Engines
from seqrt.runtime.bundle import SOLVER_ROWS, Bundle
from seqrt.runtime.geometry import Doubles
from seqrt.runtime.loaded import Loaded, collected, load_as
from seqrt.runtime.pointing import Choose, Pointer, beam, best, sampled
from seqrt.runtime.rules import CORNERS, RULES
from seqrt.runtime.solution import Solution, best_of

MOST_ROWS: Final = 4096  # of one instance, or instances at once
_MOST_FLOATS: Final = 1 << 26  # of the largest tensor that is computed at once: what bounds the memory
_LARGEST_NUMBER: Final = 1e30  # of what float32 holds
_COLDEST, _HOTTEST = 1e-3, 100.0
_SYMMETRIES: Final = 8
_SMALL: Final = 0.1  # extent of points in the unit square that are scaled all the same
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
        if not 1 <= self.beam <= MOST_ROWS:
            raise RequestError(f"--beam is {self.beam}; give 1 to {MOST_ROWS}")
        if not 0 <= self.samples <= MOST_ROWS:
            raise RequestError(f"--samples is {self.samples}; give 1 to {MOST_ROWS}, or 0 for none")
        if (self.beam > 1) + (self.samples > 0) + self.multistart > 1:
            raise RequestError("--beam, --samples and --multistart are three ways to search; give one of them")
        if not _COLDEST <= self.temperature <= _HOTTEST:
            raise RequestError(f"--temperature is {self.temperature}; give {_COLDEST} to {_HOTTEST:g}")
        if self.seed < 0:
            raise RequestError(f"--seed is {self.seed}; give 0 or more")


GREEDY: Final = Search()


@dataclass(slots=True)
class _Batch:
    """Instances of one size that are solved at once."""

    numbers: list[int] = field(default_factory=list)
    points: list[Doubles] = field(default_factory=list)

    def add(self, number: int, instance: Doubles) -> None:
        """Another one, and its number."""
        self.numbers.append(number)
        self.points.append(instance)


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
            points: instances, each `[n, 2]`, or as many numbers as the bundle's points have; of numbers `[n]` too.
            task: what the answers are; what the bundle is made for if None.
            search: how they are looked for.
            batch: instances that are solved at once.

        Raises:
            RequestError: an instance is none, has more points than the largest graph, or an option is out of range.
        """
        if getattr(points, "ndim", 3) < (2 if self.info.input_dim == 1 else 3):
            raise RequestError("solve takes several instances, not one; give [points]")
        return collected(self.each(points, task=task, search=search, batch=batch))

    def each(
        self,
        points: Iterable[object],
        *,
        task: str | None = None,
        search: Search = GREEDY,
        batch: int = 64,
    ) -> Generator[tuple[int, "Solution | RequestError"], None, None]:
        """The same as they are solved, with their numbers: in batches of a size, not in the order given.

        What is no instance comes as its error, and so does an error among `points`; the others are solved all the same.

        Raises:
            RequestError: an option is out of range.
        """
        task = task or self.info.task
        if (why := self.info.lacks(task)) is not None:
            raise RequestError(f"--task {task} {why}")
        if search.multistart and task != "tour":
            raise RequestError(f"--multistart is for tours, which may begin anywhere, not for --task {task}")
        if not 1 <= batch <= MOST_ROWS:
            raise RequestError(f"--batch is {batch}; give 1 to {MOST_ROWS}")
        waiting: dict[int, _Batch] = {}
        for number, given in enumerate(points):
            try:
                instance = self._checked(given, number)
                size = next(size for size in self.info.sizes if size >= len(instance))
                waiting.setdefault(size, _Batch()).add(number, instance)
            except RequestError as error:
                yield number, error.with_traceback(None)
            for size, held in list(waiting.items()):
                if len(held.numbers) == batch or number - held.numbers[0] >= _PATIENCE * batch:
                    yield from self._solved(waiting.pop(size), size, task, search)
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
            points = np.asarray(given)
            if points.dtype.kind not in "biuf":
                raise ValueError(f"it is of type {points.dtype}")
        except (TypeError, ValueError, RuntimeError) as error:
            raise RequestError(f"{which} holds no numbers ({error}); give points [n, {dim}]") from error
        points = points.astype(np.float64, copy=False)
        if points.ndim == 1 and dim == 1:
            points = points[:, None]
        if points.ndim != 2 or points.shape[1] != dim:
            raise RequestError(f"{which} has shape {list(points.shape)}; give points [n, {dim}]")
        is_number = (abs(points) <= _LARGEST_NUMBER).all(1)  # NaN is none
        if not is_number.all():
            place = int(is_number.argmin())
            raise RequestError(
                f"{which}: point {place + 1} is {points[place].tolist()}; give finite numbers up to {_LARGEST_NUMBER:g}"
            )
        fewest = CORNERS if dim > 1 else 2
        if len(points) < fewest:
            raise RequestError(f"{which} has {len(points)} points; give {fewest} or more")
        if len(points) > largest:
            raise RequestError(
                f"{which} has {len(points)} points, the largest graph of {self.bundle.path} takes {largest}; export"
                f" again with --sizes {','.join(map(str, (*self.info.sizes, len(points))))} (500 at most)"
            )
        return points

    def _solved(
        self, held: _Batch, size: int, task: str, search: Search
    ) -> Iterator[tuple[int, "Solution | RequestError"]]:
        """Solves a batch, in parts if its rows are too many."""
        self.require_open()
        symmetries, rows = 1, max(search.beam, search.samples)
        if search.multistart:
            symmetries, rows = _SYMMETRIES, max(map(len, held.points))
        part = max(1, _MOST_FLOATS // (symmetries * self._pointer(size).floats(rows)))
        if self.backend in ("trt", "rtx"):
            if rows > SOLVER_ROWS["K"]:
                why = f"{rows} rows an instance are more than engines take, {SOLVER_ROWS['K']}; search less"
                yield from ((number, RequestError(why)) for number in held.numbers)
                return
            part = min(part, SOLVER_ROWS["B"] // symmetries)
        for first in range(0, len(held.numbers), part):
            numbers, points = held.numbers[first : first + part], held.points[first : first + part]
            yield from zip(numbers, self._answered(numbers, points, size, task, search), strict=True)

    def _answered(
        self, numbers: Sequence[int], points: Sequence[Doubles], size: int, task: str, search: Search
    ) -> Iterator[Solution]:
        """Instance i in symmetry s is row s * instances + i of what the graphs get."""
        symmetries = _SYMMETRIES if search.multistart else 1
        length = np.array([len(instance) for instance in points])
        given = np.zeros((symmetries, len(points), length.max(), self.info.input_dim), np.float32)
        for i, instance in enumerate(points):
            unit = _unit(instance)
            for symmetry in range(symmetries):
                given[symmetry, i, : len(unit)] = _turned(unit, symmetry)
        lengths = np.tile(length, symmetries)
        rows = int(length.max()) if search.multistart else max(search.beam, search.samples)
        rules = RULES[task](lengths, rows, size, self.info.has_end)
        if search.multistart:
            rules.starts = np.arange(rows) % lengths[:, None]
        elif self.info.needs_start:
            rules.starts = np.zeros((len(lengths), rows), np.int64)
        choose: Choose = beam if search.beam > 1 else best
        if search.samples:
            generators = [np.random.default_rng((search.seed, number)) for number in numbers]
            choose = sampled(generators, search.temperature)
        pointer = self._pointer(size)
        self.probe.stage("engine")
        pointer.read(given.reshape(-1, *given.shape[2:]), lengths)
        answers = pointer.answer(rules, choose)
        self.probe.end()
        if np.isnan(answers.scores).any():
            raise EngineError(f"{self.bundle.path} gives NaN instead of probabilities; its weights are damaged")
        tokens = answers.tokens.reshape(symmetries, len(points), rows, -1)
        scores = answers.scores.reshape(symmetries, len(points), rows)
        for i, instance in enumerate(points):
            said = tokens[:, i].reshape(symmetries * rows, -1)
            yield best_of(said, scores[:, i].ravel(), instance, task, size)

    def _pointer(self, size: int) -> Pointer:
        if size not in self._pointers:
            encode, step = (self.engines[f"{graph}.{size}"] for graph in ("encode", "step"))
            self._pointers[size] = Pointer(encode, step, size)
        return self._pointers[size]


def _unit(points: Doubles) -> Doubles:
    """The points, moved and scaled alike in all directions if they are not in the unit square, or fill little of it."""
    low, high = points.min(0), points.max(0)
    extent = float((high - low).max())
    if extent >= _SMALL and low.min() >= 0 and high.max() <= 1:
        return points
    return (points - low) / extent if extent > 0 else points - low  # type: ignore[no-any-return]


def _turned(points: Doubles, symmetry: int) -> Doubles:
    """One of the eight symmetries of the unit square; 0 is the points themselves."""
    if symmetry == 0:
        return points
    x, y = points.T
    x, y = (1 - x if symmetry & 1 else x), (1 - y if symmetry & 2 else y)
    return np.stack([y, x] if symmetry & 4 else [x, y], 1)
