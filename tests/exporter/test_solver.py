"""Pointer models from the files of others to bundles: the same probabilities, and clear words where that cannot be."""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.exporter import pointing
from torch import nn

from seqrt.errors import CheckpointError, ExportError, SeqrtError
from seqrt.exporter.checkpoints.solver import is_solver, open_solver
from seqrt.exporter.solver import export_solver
from seqrt.graphs.attention_model import AttentionModel
from seqrt.graphs.pointing import PointerModel
from seqrt.runtime.solver import load

CLOSE = 2e-5
N, SIZE = 9, 12

MODELS: dict[str, Callable[[], Any]] = {
    "kool": pointing.Kool,
    "rl4co-batch": pointing.Rl4co,
    "rl4co-instance": lambda: pointing.Rl4co(norm="instance"),
    "rl4co-layer-bias": lambda: pointing.Rl4co(norm="layer", bias=True),
    "pomo": pointing.Pomo,
    "glimpse": lambda: pointing.GlimpsePtrNet(24),
}


def saved(model: nn.Module, folder: Path, **beside: Any) -> Path:
    """As its project saves it."""
    file = folder / "policy.pt"
    torch.save({"model": model.state_dict(), **beside}, file)
    (folder / "args.json").write_text(json.dumps({"problem": "tsp", "num_heads": pointing.Attention.num_heads}))
    return file


def followed(model: PointerModel, points: torch.Tensor, order: list[int], size: int) -> torch.Tensor:
    """Log-probabilities before every output, in a padded graph, along an order that is given."""
    padded = torch.full((2, size, 2), 7.7)
    padded[:, : len(points)] = points
    memory = model.encode(padded, torch.tensor([len(points), len(points)]))
    free = torch.arange(size + 1).lt(len(points)).repeat(2, 1)[:, None].contiguous()
    previous, parent, found = torch.full((2, 1), size), torch.zeros(2, 1, dtype=torch.int64), []
    state: tuple[torch.Tensor, ...] = (torch.zeros(2, 1, memory[1].shape[2]), torch.zeros(2, 1, memory[1].shape[2]))
    if model.state_names == ("first",):
        state = (torch.zeros(2, 1, dtype=torch.int64),)
    for place in order:
        made, state = model.step(previous, parent, free, state, memory)
        assert torch.equal(made[0], made[1])
        found.append(made[0, 0, : len(points)])
        free[..., place] = False
        previous = torch.full((2, 1), place)
    return torch.stack(found)


@pytest.mark.parametrize("name", MODELS)
def test_probabilities_are_those_of_the_authors(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    reference = MODELS[name]().eval()
    read = open_solver(saved(reference, tmp_path))
    assert read.task == "tour"
    assert read.needs_start == (name == "pomo")
    points = torch.rand(N, 2)
    with torch.no_grad():
        expected = reference.tour(points)
        order = expected.argmax(1).tolist()
        assert sorted(order) == list(range(N))
        found = followed(read.model, points, order, SIZE)
    first = 1 if read.needs_start else 0
    expected, found = expected[first:], found[first:]
    is_free = torch.isfinite(expected)
    assert torch.equal(is_free, torch.isfinite(found))
    torch.testing.assert_close(found[is_free], expected[is_free], atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_weights_of_any_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    model = pointing.Kool().to(dtype)
    read = open_solver(saved(model, tmp_path)).model
    exact = open_solver(saved(model.float(), tmp_path)).model
    for name, value in read.state_dict().items():
        torch.testing.assert_close(value, exact.state_dict()[name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "bogus"}, "norm is 'bogus'; choose from"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"num_process": -2}, "num_process -2"),
        ({"clip": -3.0}, "clip -3.0"),
    ],
)
def test_settings_that_are_none(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"solver": {"kind": "attention", "task": "tour"} | settings}))
    with pytest.raises(CheckpointError, match=message):
        open_solver(tmp_path)


def test_the_network_of_the_paper(tmp_path: Path) -> None:
    torch.manual_seed(2)
    reference = pointing.PtrNet(16).eval()
    file = tmp_path / "hull.ckpt"
    torch.save({"state_dict": reference.state_dict(), "hyper_parameters": {"hidden_size": 16}}, file)
    read = open_solver(file)
    assert (read.kind, read.task) == ("ptrnet", None)
    points, order = torch.rand(N, 2), [3, 1, 8, 5, 3]
    with torch.no_grad():
        expected = reference.steps(points, [slot + 1 for slot in order])
        model = read.model
        padded = torch.full((1, SIZE, 2), -3.0)
        padded[0, :N] = points
        memory = model.encode(padded, torch.tensor([N]))
        allowed = torch.arange(SIZE + 1).lt(N)
        allowed[SIZE] = True
        state: tuple[torch.Tensor, ...] = (torch.randn(1, 1, 16), torch.randn(1, 1, 16))  # of a start, nobody reads it
        for step, previous in enumerate([SIZE, *order]):
            made, state = model.step(
                torch.tensor([[previous]]), torch.zeros(1, 1, dtype=torch.int64), allowed[None, None], state, memory
            )
            slots = torch.cat([made[0, 0, SIZE:], made[0, 0, :N]])  # theirs: the end comes first
            torch.testing.assert_close(slots, expected[step], atol=CLOSE, rtol=CLOSE)


@pytest.mark.parametrize("name", ["kool", "pomo", "glimpse"])
def test_bundles_answer_as_the_authors(name: str, tmp_path: Path) -> None:
    """Greedy tours of instances of different sizes in one batch, padded."""
    torch.manual_seed(3)
    reference = MODELS[name]().eval()
    bundle = export_solver(saved(reference, tmp_path), tmp_path / "bundle", sizes=(SIZE,), check=False).bundle
    rng = np.random.default_rng(0)
    instances = [rng.random((count, 2), np.float32).astype(np.float64) for count in (4, 6, 7, 12, 9)]
    with load(bundle) as solver, torch.no_grad():
        for points, found in zip(instances, solver.solve(instances), strict=True):
            expected = reference.tour(torch.from_numpy(points.astype(np.float32)))
            assert found.order == expected.argmax(1).tolist()
            assert found.log_probability == pytest.approx(float(expected.max(1).values.sum()), abs=1e-4)
            assert found.valid


class Policy:
    """Stands for an object of a framework in a checkpoint."""

    ran = False

    def __reduce__(self) -> Any:
        return _run, ()


def _run() -> Policy:
    Policy.ran = True
    return Policy()


def test_lightning_checkpoints(tmp_path: Path) -> None:
    """A policy among a baseline's copy of it, optimisers, and objects whose classes must not run."""
    torch.manual_seed(4)
    reference = pointing.Rl4co(norm="instance").eval()
    state = {f"policy.{name}": value for name, value in reference.state_dict().items()}
    state |= {f"baseline.baseline.{name}": torch.zeros_like(value) for name, value in state.items()}
    hyper = {"policy": Policy(), "policy_kwargs": {"num_heads": 2, "tanh_clipping": 5.0, "use_graph_context": False}}
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": hyper, "epoch": 3}, file)
    Policy.ran = False
    read = open_solver(file)
    assert not Policy.ran
    assert isinstance(read.model, AttentionModel)
    config = read.model.config
    assert (config.num_heads, config.clip, config.norm, config.num_layers) == (2, 5.0, "instance", 2)
    assert read.needs_start
    assert not read.assumed
    assert not read.model.state_dict()["graph.weight"].any()


def test_what_a_file_does_not_say_needs_start(tmp_path: Path) -> None:
    torch.manual_seed(5)
    file = tmp_path / "policy.pt"
    torch.save(pointing.Rl4co(dim=64).state_dict(), file)
    (note,) = export_solver(file, tmp_path / "bundle", sizes=(5,), check=False).notes
    assert "this is assumed: tanh_clipping 10.0, num_heads 8, use_graph_context True; write what differs" in note
    (tmp_path / "args.json").write_text(json.dumps({"num_heads": 4, "tanh_clipping": 5, "use_graph_context": True}))
    assert not open_solver(file).assumed
    torch.save(pointing.Kool().state_dict(), file)
    (tmp_path / "args.json").unlink()
    assert open_solver(file).assumed == {"tanh_clipping": 10.0}  # its heads are seen


def test_pomo_of_rl4co(tmp_path: Path) -> None:
    """Its policy is made without the mean of the graph, which only the module's own options give away."""
    torch.manual_seed(4)
    state = {f"policy.{name}": value for name, value in pointing.Rl4co(dim=64, norm="instance").state_dict().items()}
    file = tmp_path / "pomo.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": {"policy_kwargs": {}, "num_augment": 8}}, file)
    read = open_solver(file)
    assert read.needs_start
    assert not read.model.state_dict()["graph.weight"].any()


class Scripted(nn.Module):
    """A module whose state is code."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def test_scripts_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.ckpt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its age
        torch.jit.save(torch.jit.script(Scripted()), file)
    with pytest.raises(CheckpointError, match="is a TorchScript archive; save the state_dict"):
        open_solver(file)


def test_legacy_files_run_nothing(tmp_path: Path) -> None:
    file = tmp_path / "old.pt"
    torch.save({"model": pointing.Kool().state_dict(), "x": Policy()}, file, _use_new_zipfile_serialization=False)
    Policy.ran = False
    assert is_solver(file)
    assert not Policy.ran


def damaged(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], Path]:
    """Writes a checkpoint after a change."""

    def write(folder: Path) -> Path:
        state = pointing.Kool().state_dict()
        change(state)
        torch.save({"model": state}, folder / "policy.pt")
        return folder / "policy.pt"

    return write


def written(name: str, data: bytes) -> Callable[[Path], Path]:
    """Writes a file."""

    def write(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return write


def other_problem(folder: Path) -> Path:
    """A checkpoint whose args.json names another problem."""
    file = saved(pointing.Kool(), folder)
    (folder / "args.json").write_text(json.dumps({"problem": "cvrp"}))
    return file


def unmasked(folder: Path) -> Path:
    """A checkpoint whose glimpse sees everything."""
    file = saved(pointing.Rl4co(), folder)
    (folder / "args.json").write_text(json.dumps({"num_heads": 4, "mask_inner": False}))
    return file


def deeper(folder: Path) -> Path:
    """A pointer network with two layers."""
    state = pointing.PtrNet(8).state_dict()
    state["encoder.weight_ih_l1"] = torch.zeros(32, 8)
    torch.save({"state_dict": state}, folder / "policy.pt")
    return folder / "policy.pt"


@pytest.mark.parametrize(
    ("make", "options", "kind", "message"),
    [
        (lambda folder: folder / "none.pt", {}, CheckpointError, "does not exist; pass a .pt"),
        (written("a.pt", b"nothing"), {}, CheckpointError, "is damaged or no torch file"),
        (damaged(lambda state: state.pop("W_placeholder")), {}, None, ""),  # a POMO that embeds as Kool's
        (damaged(lambda state: state.pop("init_embed.bias")), {}, None, ""),  # biases may be left out
        (damaged(lambda state: state.pop("project_out.weight")), {}, CheckpointError, "the matrix of out is missing"),
        (
            damaged(lambda state: state.pop("embedder.layers.0.0.module.W_query")),
            {},
            CheckpointError,
            "layers.0.qkv.weight [32, 96] is missing",
        ),
        (
            damaged(lambda state: state["project_fixed_context.weight"].fill_(torch.nan)),
            {},
            CheckpointError,
            "project_fixed_context.weight holds NaN",
        ),
        (
            damaged(lambda state: state.update({"project_out.weight": torch.zeros(32, 31)})),
            {},
            CheckpointError,
            "the matrix of out is [32, 31], expected [32, 32]",
        ),
        (
            damaged(lambda state: state.update({"project_more.weight": torch.zeros(2, 2)})),
            {},
            CheckpointError,
            "project_more.weight has no place",
        ),
        (
            damaged(lambda state: state.update({"init_embed_depot.weight": torch.zeros(2, 2)})),
            {},
            CheckpointError,
            "a problem with a depot",
        ),
        (other_problem, {}, CheckpointError, "is for the problem 'cvrp'"),
        (unmasked, {}, CheckpointError, "mask_inner is false"),
        (deeper, {}, CheckpointError, "encoder.weight_ih_l1 has no place"),
        (lambda folder: saved(pointing.Kool(), folder), {"task": "triangulation"}, ExportError, "says where it ends"),
        (lambda folder: saved(pointing.Kool(), folder), {"sizes": (2,)}, ExportError, "--sizes 2 are out of range"),
        (
            lambda folder: saved(pointing.Kool(), folder),
            {"task": "knapsack"},
            ExportError,
            "--task knapsack is unknown",
        ),
        (lambda folder: saved(pointing.PtrNet(8), folder), {}, ExportError, "give --task hull or --task tour"),
    ],
)
def test_what_is_refused(
    make: Callable[[Path], Path],
    options: dict[str, Any],
    kind: type[SeqrtError] | None,
    message: str,
    tmp_path: Path,
) -> None:
    source = make(tmp_path)
    if kind is None:
        open_solver(source)
        return
    with pytest.raises(kind, match=re.escape(message)):
        export_solver(source, tmp_path / "bundle", **options)
    assert not list(tmp_path.glob("*bundle*"))
