"""`seqrt solve` as a user meets it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.cli.conftest import Seqrt

Bundles = dict[str, Path]
LINES = "0.1 0.2 0.9 0.1 0.5 0.8 0.4 0.4\n\n0.3 0.3 0.2 0.9 0.8 0.7 output 1 2 3 1\n"


@pytest.fixture
def points(tmp_path: Path) -> Path:
    """Two instances."""
    file = tmp_path / "points.txt"
    file.write_text(LINES)
    return file


def test_a_line_an_instance(seqrt: Seqrt, solver_bundles: Bundles, points: Path) -> None:
    first, second = seqrt("solve", solver_bundles["tour"], "--points", points).out.splitlines()
    cost, valid, *order = first.split()
    assert float(cost) > 0
    assert valid == "valid"
    assert sorted(order) == ["0", "1", "2", "3"]
    assert len(second.split()) == 5


@pytest.mark.parametrize(
    "options", [["--beam", "3"], ["--samples", "4", "--seed", "7"], ["--multistart"], ["--batch", "1"]]
)
def test_json_says_the_same_as_python(seqrt: Seqrt, solver_bundles: Bundles, points: Path, options: list[str]) -> None:
    from seqrt.runtime.solver import Search, load

    items = json.loads(seqrt("solve", solver_bundles["tour"], "--points", points, "--json", *options).out)["items"]
    search = {
        "--beam": Search(beam=3),
        "--samples": Search(samples=4, seed=7),
        "--multistart": Search(multistart=True),
        "--batch": Search(),
    }[options[0]]
    given = [np.array(line.partition("output")[0].split(), float).reshape(-1, 2) for line in LINES.split("\n") if line]
    with load(solver_bundles["tour"]) as solver:
        for item, found in zip(items, solver.solve(given, search=search), strict=True):
            assert item == {"order": found.order, "cost": found.cost, "valid": True, "error": None}


def test_triangles_and_sorted_numbers(seqrt: Seqrt, solver_bundles: Bundles, points: Path, tmp_path: Path) -> None:
    line = seqrt("solve", solver_bundles["triangulation"], "--points", points).out.splitlines()[0].split()
    assert all(len(triangle.split("-")) == 3 for triangle in line[2:])
    assert float(line[0]) == len(line) - 2
    np.save(tmp_path / "numbers.npy", np.array([0.3, 0.1, 0.2]))
    item = json.loads(
        seqrt("solve", solver_bundles["permutation"], "--points", tmp_path / "numbers.npy", "--json").out
    )["items"][0]
    assert sorted(item["order"]) == [0, 1, 2]
    assert item["cost"] is None


def test_bad_lines_among_good_ones(seqrt: Seqrt, solver_bundles: Bundles, tmp_path: Path) -> None:
    file = tmp_path / "points.txt"
    file.write_text("0.1 0.2 0.9 0.1 0.5 0.8\nx\n0.1 0.2\n" + " ".join(["0.5"] * 22) + "\n0.1 0.2 0.9 0.1 0.5 0.8\n")
    result = seqrt("solve", solver_bundles["hull"], "--points", file)
    assert result.code == 1
    assert [line.split()[0] == "-" for line in result.out.splitlines()] == [False, True, True, True, False]
    first, second, third = result.err.splitlines()
    assert "line 2 holds no numbers" in first
    assert "instance 3 has 1 points; give 3 or more" in second
    assert "takes 10; export again with --sizes 10,11" in third
    result = seqrt("solve", solver_bundles["hull"], "--points", file, "--json")
    assert [item["error"] is None for item in json.loads(result.out)["items"]] == [True, False, False, False, True]


def test_json_of_what_is_not_valid(seqrt: Seqrt, solver_bundles: Bundles, points: Path) -> None:
    out = seqrt("solve", solver_bundles["triangulation"], "--points", points, "--json", "--samples", "2").out
    assert False in [item["valid"] for item in json.loads(out)["items"]]


def test_nothing_to_solve(seqrt: Seqrt, solver_bundles: Bundles, tmp_path: Path) -> None:
    file = tmp_path / "points.txt"
    file.write_text("\n")
    assert seqrt("solve", solver_bundles["hull"], "--points", file).out == ""
    assert json.loads(seqrt("solve", solver_bundles["hull"], "--points", file, "--json").out) == {"items": []}


def test_pictures(seqrt: Seqrt, solver_bundles: Bundles, points: Path, tmp_path: Path) -> None:
    from PIL import Image

    for task in ("tour", "triangulation"):
        seqrt("solve", solver_bundles[task], "--points", points, "--plot", tmp_path / f"{task}.png")
        picture = np.asarray(Image.open(tmp_path / f"{task}.png").convert("RGB"), int)
        assert (np.ptp(picture, 2) > 60).sum() > 100  # lines in blue


@pytest.mark.slow
def test_the_standard_input_is_answered_as_it_comes(solver_bundles: Bundles) -> None:
    command = [sys.executable, "-c", "import sys; from seqrt.cli import main; sys.exit(main())", "solve"]
    command += [str(solver_bundles["tour"]), "--points", "-", "--batch", "4"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for _ in range(4):
            process.stdin.write("0.1 0.2 0.9 0.1 0.5 0.8\n")
        process.stdin.flush()
        assert "valid" in process.stdout.readline()  # the input has not ended
        process.stdin.close()
        assert len(process.stdout.readlines()) == 3
    assert process.returncode == 0


def test_mistakes_are_one_line(
    seqrt: Seqrt, solver_bundles: Bundles, bundle: Path, points: Path, tmp_path: Path
) -> None:
    tour = solver_bundles["tour"]
    for arguments, message in (
        ([tour], "--points"),
        ([tour, "--points", tmp_path / "none.txt"], "cannot be read: No such file or directory"),
        ([tour, "--points", tmp_path], "is of no known format"),
        ([tour, "--points", points, "--beam", "2", "--multistart"], "give one of them"),
        ([tour, "--points", points, "--plot", tmp_path / "a.txt"], "give a name that ends in .png"),
        ([tour, "--points", points, "--task", "sort"], "--task sort is unknown; choose from tour"),
        ([bundle, "--points", points], "is a bundle for `seqrt run` and solves no instances"),
    ):
        error = seqrt("solve", *arguments).error
        assert message in error


def test_inspect_says_what_it_takes(seqrt: Seqrt, solver_bundles: Bundles) -> None:
    out = seqrt("inspect", solver_bundles["hull"]).out
    assert "hull of points with 2 numbers; graphs for up to 10" in out
    document = json.loads(seqrt("inspect", solver_bundles["hull"], "--json").out)
    assert (document["task"], document["model"], document["solver"]["has_end"]) == ("solve", None, True)


def test_models_that_cannot_be_exported(seqrt: Seqrt, tmp_path: Path) -> None:
    import torch

    file = tmp_path / "cvrp.pt"
    torch.save({"model": {"init_embed_depot.weight": torch.zeros(2, 2)}}, file)
    assert "a problem with a depot" in seqrt("export", file, tmp_path / "bundle").error
    (tmp_path / "a.ckpt").write_bytes(b"nothing")
    assert "is damaged or no torch file" in seqrt("export", tmp_path / "a.ckpt", tmp_path / "bundle").error
    assert "does not exist" in seqrt("export", tmp_path / "none.ckpt", tmp_path / "bundle", "--task", "hull").error


def test_export_options_are_for_their_own(seqrt: Seqrt, solver_bundles: Bundles, tmp_path: Path) -> None:
    source = solver_bundles["tour"].parent / "tour"
    for arguments, message in (
        (["--quantize", "int8"], "--quantize is for a language model, and"),
        (["--recipe", "x"], "--recipe is for a recogniser, and"),
        (["--sizes", "5;6"], "--sizes is '5;6'; give numbers with commas between"),
        (["--sizes", "5,2"], "--sizes 2,5 are out of range"),
    ):
        assert message in seqrt("export", source, tmp_path / "bundle", *arguments).error
