"""Exact labels, training and measuring of pointer models."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tools.bench import solve as bench
from tools.pointer import data, measure, train
from tools.pointer.model import RECIPES, save
from tools.pointer.train import Lessons, allowed_along, losses

from seqrt.exporter.checkpoints.solver import Settings, open_solver
from seqrt.exporter.solver import export_solver
from seqrt.graphs.pointing import PointerModel
from seqrt.graphs.ptrnet import PtrNet, PtrNetConfig
from seqrt.graphs.read_process_write import ReadProcessWrite, SetConfig
from seqrt.runtime.geometry import area, is_hull, is_triangulation, tour_length
from seqrt.runtime.points import Instance, read_points


@given(count=st.integers(5, 7), seed=st.integers(0, 10**6))
@settings(max_examples=30)
def test_labels_are_exact(count: int, seed: int) -> None:
    """Against all tours there are, and checks of their own."""
    for task in ("hull", "tour", "triangulation", "permutation"):
        item = data.make(task, count, (seed,))
        assert item.labels is not None
        order = item.labels - 1
        points = item.points
        if task == "tour":
            assert order[0] == order[-1] == 0
            every = np.array([(0, *rest) for rest in itertools.permutations(range(1, count))])
            assert float(tour_length(points, order[:-1])) == pytest.approx(float(tour_length(points, every).min()))
            assert area(points[order[:-1]]) >= 0
        elif task == "hull":
            assert order[0] == order[-1] == order.min()
            assert is_hull(points, points[order[:-1]])
        elif task == "triangulation":
            triangles = order.reshape(-1, 3)
            assert is_triangulation(points, triangles)
            assert triangles.tolist() == sorted(map(sorted, triangles.tolist()))
        else:
            assert (np.diff(points[order, 0]) >= 0).all()


def test_files_of_instances(tmp_path: Path) -> None:
    file = tmp_path / "hull.txt"
    data.main(["hull", "--points", "5-7", "--count", "6", "--seed", "3", "--out", str(file)])
    found = list(read_points(file, 2))
    assert [len(item.points) for item in found if isinstance(item, Instance)] == [5, 6, 7, 5, 6, 7]
    assert isinstance(found[0], Instance)
    assert np.array_equal(found[0].points, data.make("hull", 5, (3, 0)).points)


@pytest.mark.parametrize("task", list(RECIPES))
def test_lessons_keep_to_the_rules(task: str) -> None:
    has_end = RECIPES[task].make().has_end
    lesson = Lessons(task, task, has_end, 4, 0).lesson(1)
    for points, labels, allowed in zip(lesson.points, lesson.labels, lesson.allowed, strict=True):
        said = labels[labels >= 0]
        assert allowed[torch.arange(len(said)), said].all()
        assert allowed.shape[1] == len(points) + 1
    again = allowed_along(task, lesson.labels.numpy(), lesson.points.shape[1], has_end)
    assert np.array_equal(again, lesson.allowed.numpy())


def test_permutations_without_rules() -> None:
    lesson, free = (Lessons("permutation", rules, False, 4, 0).lesson(1) for rules in ("permutation", "none"))
    assert torch.equal(free.labels, lesson.labels)
    assert free.allowed[..., :-1].all()
    assert not lesson.allowed[:, 1:, :-1].all()
    with pytest.raises(SystemExit):
        train.main(["hull", "--rules", "none", "--work", "unused"])


@pytest.mark.parametrize("task", ["hull", "tour"])  # the others have no other way
def test_training_follows_what_decoding_says(task: str) -> None:
    """The log-probability of an answer, all outputs at once, is that of its steps one by one."""
    torch.manual_seed(0)
    model = RECIPES[task].make()
    lesson = Lessons(task, task, model.has_end, 3, 0).lesson(0)
    length = torch.full((3,), lesson.points.shape[1])
    labels = lesson.labels.clamp(min=0)
    with torch.no_grad():
        at_once = model.follow(lesson.points, length, labels, lesson.allowed)
        one_by_one = PointerModel.follow(model, lesson.points, length, labels, lesson.allowed)
        each = losses(model, lesson)
    is_open = lesson.allowed & (lesson.labels >= 0)[..., None]
    torch.testing.assert_close(at_once[is_open], one_by_one[is_open], atol=1e-4, rtol=1e-4)
    assert (each[lesson.labels >= 0] >= 0).all()
    assert (each[lesson.labels < 0] == 0).all()


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on(tmp_path: Path) -> None:
    common = ["permutation", "--batch", "8", "--every", "2", "--steps", "4"]
    train.main([*common, "--work", str(tmp_path / "whole")])
    whole = open_solver(tmp_path / "whole")
    assert isinstance(whole.model, ReadProcessWrite)
    assert (whole.kind, whole.task, whole.model.config.num_process) == ("set", "permutation", 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.main([*common, "--work", str(tmp_path / "again")])
    train.main([*common, "--work", str(tmp_path / "again")])
    for name, value in open_solver(tmp_path / "again").model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[name]), name


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_model_that_sorts_is_measured_as_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An untrained one next to it is not: the figures tell them apart."""
    instances = [data.make("permutation", 5, (0, i)) for i in range(8)]
    from seqrt.runtime.solution import Solution

    right = [Solution((item.labels - 1).tolist(), None, True, 0.0) for item in instances if item.labels is not None]
    wrong = [Solution([4, 3, 2, 1, 0], None, True, 0.0)] * 8
    assert measure.quality("permutation", instances, right).accuracy == 1
    assert measure.quality("permutation", instances, wrong).accuracy < 0.5
    file = tmp_path / "numbers.txt"
    data.main(["permutation", "--points", "5", "--count", "8", "--out", str(file)])
    torch.manual_seed(0)
    save(
        ReadProcessWrite(SetConfig(dim=8, num_process=1)),
        Settings(kind="set", task="permutation", num_process=1),
        tmp_path / "m",
    )
    bundle = export_solver(tmp_path / "m", tmp_path / "bundle", sizes=(5,), check=False).bundle
    capsys.readouterr()
    measure.main([str(bundle), str(file), "--beam", "2", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["search"] for row in rows] == ["greedy", "beam 2"]
    assert all(0 <= row["accuracy"] < 0.9 and row["instances"] == 8 and row["area"] is None for row in rows)
    for line, message in (("0.1 0.2 0.3", "has no labels"), ("0.1 x", "line 1 holds no numbers")):
        file.write_text(line + "\n")
        with pytest.raises(SystemExit, match=message):
            measure.main([str(bundle), str(file)])


def test_figures_of_hulls_tours_and_triangles() -> None:
    from seqrt.runtime.solution import Solution

    square = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1], [0.5, 0.4]])
    hulls = [Instance(square, np.array([1, 2, 3, 4, 1]))] * 4
    orders = [[2, 3, 0, 1], [0, 1, 2], [0, 2, 1, 3], [0, 4, 1, 2, 3]]  # right, a part, crossed, with a dent
    found = [Solution(order, 0.0, order == orders[0], 0.0) for order in orders]
    quality = measure.quality("hull", hulls, found)
    assert (quality.accuracy, quality.valid, quality.simple) == (0.25, 0.25, 0.75)
    assert quality.area == pytest.approx((1 + 0.5 + 0.8) / 3)
    tours = [Instance(square[:4], np.array([1, 2, 3, 4, 1]))] * 2
    lengths = [Solution([0, 1, 2, 3], 4.0, True, 0.0), Solution([0, 2, 1, 3], 2 + 2 * 2**0.5, True, 0.0)]
    quality = measure.quality("tour", tours, lengths)
    assert quality.accuracy == 0.5
    assert quality.gap == pytest.approx((2 + 2 * 2**0.5 + 4) / 8 - 1)
    triangles = [Instance(square[:4], np.array([1, 2, 3, 1, 3, 4]))] * 2
    covers = [Solution([[0, 1, 2], [0, 2, 3]], 2.0, True, 0.0), Solution([[0, 1, 2], [1, 2, 3]], 2.0, False, 0.0)]
    quality = measure.quality("triangulation", triangles, covers)
    assert (quality.accuracy, quality.coverage) == (0.5, 0.75)


def test_the_bench(solver_bundles: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    bundle = solver_bundles["tour"]
    arguments = [str(bundle), str(bundle.parent / "tour"), "--points", "6", "--batch", "1", "--batch", "8"]
    bench.main([*arguments, "--repeats", "1", "--json"])
    for row in json.loads(capsys.readouterr().out):
        assert row["torch"]["same"] == row["seqrt"]["same"] == 1
        assert row["torch"]["per_second"] > 0


def test_half_precision_is_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = PtrNet(PtrNetConfig(dim=8))
    save(model, Settings(kind="ptrnet", task="hull"), tmp_path / "m", torch.float16)
    for name, value in open_solver(tmp_path / "m").model.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], atol=2e-3, rtol=1e-3)
