"""Loaded bundles that point: instances of any size in any batch, searches, and what is said of bad input."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import seqrt
from seqrt.errors import BundleError, EngineError, RequestError
from seqrt.runtime.geometry import is_hull, tour_length
from seqrt.runtime.solution import Solution
from seqrt.runtime.solver import Search, Solver, load

Bundles = dict[str, Path]


def instances(counts: list[int], dim: int = 2, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.random((count, dim)) for count in counts]


@pytest.mark.parametrize("task", ["tour", "hull", "triangulation", "permutation"])
@pytest.mark.parametrize("search", [Search(), Search(beam=3), Search(samples=4)], ids=["greedy", "beam", "samples"])
def test_answers_do_not_depend_on_batches_and_padding(task: str, search: Search, solver_bundles: Bundles) -> None:
    given = instances([3, 6, 10, 4, 7, 5, 9, 6], 1 if task == "permutation" else 2)
    with load(solver_bundles[task]) as solver:
        together = solver.solve(given, search=search)
        if not search.samples:
            for points, found in zip(given, together, strict=True):
                alone = solver.solve([points], search=search, batch=1)[0]
                assert alone.order == found.order
                assert alone.log_probability == pytest.approx(found.log_probability, abs=1e-4)
        for points, found in zip(given, together, strict=True):
            check(task, points, found)


def check(task: str, points: np.ndarray, found: Solution) -> None:
    order: Any = found.order
    if task == "tour":
        assert sorted(order) == list(range(len(points)))
        assert found.cost == pytest.approx(float(tour_length(points, np.array(order))))
        assert found.valid
    elif task == "permutation":
        assert sorted(order) == list(range(len(points)))
        assert (found.cost, found.valid) == (None, True)
    elif task == "hull":
        assert len(order) >= 3
        assert found.valid == is_hull(points, points[order])
        x, y = points[order].T
        assert found.cost == pytest.approx(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
    else:
        assert all(len(triangle) == 3 for triangle in order)
        assert found.cost == len(order)


def test_the_order_of_a_set_makes_no_difference(solver_bundles: Bundles) -> None:
    """Of an attention model and a set model, under padding too; of an LSTM it does."""
    rng = np.random.default_rng(1)
    for task, dim in (("tour", 2), ("permutation", 1)):
        points = rng.random((7, dim))
        shuffle = rng.permutation(7)
        with load(solver_bundles[task]) as solver:
            one, other = solver.solve([points, points[shuffle]])
        assert shuffle[np.array(other.order)].tolist() == one.order
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-4)


def test_more_search_is_never_worse(solver_bundles: Bundles) -> None:
    given = instances([8] * 12, seed=3)
    with load(solver_bundles["tour"]) as solver:
        searches = Search(multistart=True), Search(), *(Search(samples=count, seed=1) for count in (2, 64, 64))
        many, greedy, few, more, again = (
            [found.cost or 0.0 for found in solver.solve(given, search=search)] for search in searches
        )
    assert np.mean(many) < np.mean(greedy)
    assert np.mean(more) < np.mean(few)
    assert more == again


def test_multistart_is_the_best_of_every_start_and_symmetry(solver_bundles: Bundles) -> None:
    points = instances([6], seed=5)[0]
    x, y = points.T
    with load(solver_bundles["tour"]) as solver:
        found = solver.solve([points], search=Search(multistart=True))[0]
        costs = []
        for a, b in ((x, y), (1 - x, y), (x, 1 - y), (1 - x, 1 - y), (y, x), (1 - y, x), (y, 1 - x), (1 - y, 1 - x)):
            turned = np.stack([a, b], 1)
            for start in range(6):  # a told start is the first point: put it there
                order = [start, *(place for place in range(6) if place != start)]
                solver.info = _told(solver)
                told = np.array(order)[solver.solve([turned[order]])[0].order]
                costs.append(float(tour_length(points, told)))
    assert found.cost == pytest.approx(min(costs), abs=1e-6)


def _told(solver: Solver) -> Any:
    from dataclasses import replace

    return replace(solver.info, needs_start=True)


def test_points_of_any_scale(solver_bundles: Bundles) -> None:
    """Are moved into the unit square, all by one factor; costs are those of the points as given."""
    points = instances([9], seed=7)[0]
    points = (points - points.min(0)) / np.ptp(points, 0).max()
    with load(solver_bundles["tour"]) as solver:
        one, other = solver.solve([points, points * 250 - 40])
        flat = solver.solve([np.ones((4, 2)), np.array([[0.0, 0], [1, 1], [2, 2], [3, 3]])])
        small = solver.solve([points * 1e-3 + 0.4])[0]
    assert one.order == other.order == small.order
    assert one.cost is not None
    assert other.cost == pytest.approx(250 * one.cost)
    assert small.cost == pytest.approx(1e-3 * one.cost)
    assert [found.valid for found in flat] == [True, True]
    assert flat[0].cost == 0


def test_duplicates_are_points_of_their_own(solver_bundles: Bundles) -> None:
    points = np.repeat(instances([3])[0], 2, 0)
    with load(solver_bundles["tour"]) as solver:
        order = solver.solve([points])[0].order
    assert sorted(order) == list(range(6))


def test_memory_is_bounded(solver_bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large batch is solved in parts, with the same answers."""
    for task in ("tour", "triangulation"):
        with load(solver_bundles[task]) as solver:
            points = instances([6] * 7)
            whole = solver.solve(points, search=Search(samples=3))
            monkeypatch.setattr("seqrt.runtime.solver._MOST_FLOATS", 3000)
            assert solver.solve(points, search=Search(samples=3)) == whole
            monkeypatch.undo()


def test_what_is_closed_meanwhile_says_so(solver_bundles: Bundles) -> None:
    solver = load(solver_bundles["tour"])
    found = solver.each(instances([5, 5, 5]), batch=1)
    next(found)
    solver.close()
    with pytest.raises(EngineError, match="was closed"):
        next(found)


def test_rare_sizes_do_not_wait_for_ever(solver_bundles: Bundles) -> None:
    with load(solver_bundles["tour"]) as solver:
        came = []
        for number, _ in solver.each(iter(instances([9] + [5] * 200)), batch=2):
            came.append(number)
    assert came.index(0) < 50
    assert sorted(came) == list(range(201))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((2, 2)), "instance 1 has 2 points; give 3 or more"),
        (np.zeros((11, 2)), "the largest graph of {bundle} takes 10; export again with --sizes 6,10,11"),
        (np.zeros((4, 3)), "instance 1 has shape [4, 3]; give points [n, 2]"),
        (np.zeros(4), "instance 1 has shape [4]"),
        (np.array([[0, 0], [1, np.nan], [1, 1]]), "instance 1: point 2 is [1.0, nan]; give finite numbers up to 1e+30"),
        (np.array([[0, 0], [1, 1], [np.inf, 1]]), "point 3 is [inf, 1.0]"),
        (np.array([[0, 0], [1, 1], [1e200, 1]]), "point 3 is [1e+200, 1.0]; give finite numbers up to 1e+30"),
        ([["a", "b"]] * 3, "instance 1 holds no numbers"),
        ([[1, 2], [3]], "instance 1 holds no numbers"),
        ([[10**400, 1], [0, 0], [0, 1]], "instance 1 holds no numbers (it is of type object)"),
        (np.zeros((3, 2), np.complex128), "instance 1 holds no numbers (it is of type complex128)"),
        (np.zeros((3, 2), "datetime64[s]"), "instance 1 holds no numbers (it is of type datetime64[s])"),
    ],
)
def test_bad_instances(points: Any, message: str, solver_bundles: Bundles) -> None:
    bundle = solver_bundles["tour"]
    with load(bundle) as solver, pytest.raises(RequestError, match=re.escape(message.format(bundle=bundle))):
        solver.solve([points])


def test_numbers_of_any_size(solver_bundles: Bundles) -> None:
    """Are scaled, which keeps their order; rows of an array are instances."""
    numbers = np.random.default_rng(3).random((3, 6))
    with load(solver_bundles["permutation"]) as solver:
        for factor in (1e3, 1e-3, 1e20):
            one, other = solver.solve(numbers), solver.solve(numbers * factor + factor)
            assert [found.valid for found in other] == [True] * 3
            exact = solver.solve((numbers - numbers.min(1, keepdims=True)) / np.ptp(numbers, 1)[:, None])
            assert [found.order for found in other] == [found.order for found in exact]
            assert len(one) == 3


def test_draws_do_not_depend_on_batches(solver_bundles: Bundles) -> None:
    """Each instance has draws of its own, the same wherever it stands in a batch."""
    points = instances([7])[0]
    search = Search(samples=1, temperature=50, seed=3)
    with load(solver_bundles["tour"]) as solver:
        together, alone = (solver.solve([points] * 20, search=search, batch=batch) for batch in (64, 1))
    assert [found.order for found in together] == [found.order for found in alone]
    assert len({tuple(map(str, found.order)) for found in together}) > 10


def test_damaged_weights_are_said(solver_bundles: Bundles, tmp_path: Path) -> None:
    """Not a number is no answer, be it that finite weights overflow."""
    import torch
    from safetensors.torch import load_file, save_file

    from seqrt.exporter.solver import export_solver

    source = tmp_path / "damaged"
    shutil.copytree(solver_bundles["tour"].parent / "tour", source)
    weights = load_file(source / "model.safetensors")
    weights["embedding.weight"][0] = torch.finfo(torch.float32).max
    save_file(weights, source / "model.safetensors")
    bundle = export_solver(source, tmp_path / "bundle", sizes=(6,), check=False).bundle
    with load(bundle) as solver, pytest.raises(EngineError, match="gives NaN instead of probabilities"):
        solver.solve(instances([5]))


def test_bad_instances_do_not_hold_up_the_others(solver_bundles: Bundles) -> None:
    def many() -> Iterator[object]:
        yield instances([4])[0]
        for _ in range(100):
            yield RequestError("bad")

    with load(solver_bundles["tour"]) as solver:
        came = [number for number, _ in solver.each(many(), batch=2)]
    assert came.index(0) < 50


def test_the_others_are_solved_all_the_same(solver_bundles: Bundles) -> None:
    good = instances([4, 5])
    with load(solver_bundles["hull"]) as solver:
        found = dict(solver.each([good[0], np.zeros((2, 2)), RequestError("line 3 is bad"), good[1]]))
    assert [isinstance(found[number], Solution) for number in range(4)] == [True, False, False, True]
    assert str(found[2]) == "line 3 is bad"


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("tour", {"task": "knapsack"}, "--task knapsack is unknown"),
        ("tour", {"task": "triangulation"}, "--task triangulation is for a model that says where it ends"),
        ("permutation", {"task": "hull"}, "--task hull is for points in the plane, the model takes 1 numbers a point"),
        ("hull", {"search": Search(multistart=True)}, "--multistart is for tours"),
        ("hull", {"batch": 0}, "--batch is 0; give 1 to 4096"),
    ],
)
def test_bad_requests(task: str, options: dict[str, Any], message: str, solver_bundles: Bundles) -> None:
    with load(solver_bundles[task]) as solver, pytest.raises(RequestError, match=re.escape(message)):
        solver.solve(instances([4]), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"beam": 0},
        {"samples": -1},
        {"beam": 2, "samples": 2},
        {"temperature": 0},
        {"temperature": 1e-40},
        {"temperature": 200},
        {"seed": -1},
        {"beam": 10**9},
    ],
)
def test_bad_searches(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        Search(**options)


def test_loading(solver_bundles: Bundles, recognizer_bundle: Path) -> None:
    with seqrt.load(solver_bundles["tour"]) as solver:
        assert isinstance(solver, Solver)
        with pytest.raises(RequestError, match="takes several instances"):
            solver.solve(np.zeros((4, 2)))
    with pytest.raises(BundleError, match="is a bundle for `seqrt ocr` and solves no instances"):
        load(recognizer_bundle)
