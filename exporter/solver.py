"""A pointer model's checkpoint to a bundle: for each size a graph that reads an instance and one that points."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from seqrt.errors import ExportError
from seqrt.exporter.checkpoints.solver import SolverCheckpoint, open_solver
from seqrt.exporter.export import DEFAULT_TARGETS, Report
from seqrt.exporter.parts import Part, Progress, write_bundle
from seqrt.exporter.staging import check_replaceable
from seqrt.exporter.targets import variants
from seqrt.graphs.pointing import Encode, PointerModel, Step
from seqrt.runtime.bundle import Manifest, SolverInfo

DEFAULT_SIZES: Final = (5, 10, 20, 50, 100)
_LARGEST: Final = 500
_FEWEST: Final = 3
_INSTANCES, _ROWS = 2, 3  # of example inputs; the graphs take any numbers
_SHARE: Final = 0.7  # of slots that are allowed in them


def export_solver(
    source: Path,
    bundle: Path,
    *,
    task: str | None = None,
    sizes: Sequence[int] | None = None,
    targets: Sequence[str] = DEFAULT_TARGETS,
    dtypes: Sequence[str] = (),
    check: bool = True,
    force: bool = False,
    progress: Progress = lambda _: None,
) -> Report:
    """Exports a pointer model as a bundle. Nothing appears at `bundle` before it is complete.

    Args:
        source: file of attention-learn-to-route, RL4CO, POMO or gchaperon, or directory of seqrt.
        bundle: directory to make.
        task: what its answers are, of SOLVER_TASKS; what the checkpoint says if None.
        sizes: most points of the graphs; DEFAULT_SIZES if None.
        targets: engines to export for.
        dtypes: types of floats, each for every target.
        check: compare every graph with torch.
        force: replace what is at `bundle`.
        progress: told what is being done.

    Raises:
        CheckpointError: the source cannot be read.
        ExportError: bad arguments, a task that neither the checkpoint nor the caller names, a target that lacks an
            operator, a failed check.
    """
    wanted = variants(tuple(targets), tuple(dtypes))
    chosen = tuple(sorted(set(DEFAULT_SIZES if sizes is None else sizes)))
    if not chosen or chosen[0] < _FEWEST or chosen[-1] > _LARGEST:
        raise ExportError(f"--sizes {','.join(map(str, chosen))} are out of range; give {_FEWEST} to {_LARGEST}")
    check_replaceable(bundle, force)
    checkpoint = open_solver(source)
    model = checkpoint.model
    info = SolverInfo(
        kind=checkpoint.kind,
        task=_task(checkpoint, task),
        input_dim=model.input_dim,
        sizes=chosen,
        has_end=model.has_end,
        needs_start=checkpoint.needs_start,
    )
    if (why := info.lacks(info.task)) is not None:
        raise ExportError(f"--task {info.task} {why}")
    parts = [part for size in chosen for part in _parts(model, size)]
    manifest = Manifest(
        name=checkpoint.name,
        family=checkpoint.kind,
        task="solve",
        capacity=chosen[-1],
        quantization="none",
        solver=info,
        graphs=(),
        files={},
    )
    differences = write_bundle(bundle, parts, wanted, manifest, check=check, progress=progress)
    return Report(bundle, checkpoint.name, {}, {}, differences, _notes(checkpoint))


def _notes(checkpoint: SolverCheckpoint) -> list[str]:
    if not checkpoint.assumed:
        return []
    told = ", ".join(f"{name} {value}" for name, value in checkpoint.assumed.items())
    return [
        f"{checkpoint.name} does not say it, so this is assumed: {told}; write what differs into args.json beside it"
    ]


def _task(checkpoint: SolverCheckpoint, task: str | None) -> str:
    found = task or checkpoint.task
    if found is None:
        raise ExportError(f"{checkpoint.name} does not say what it solves; give --task hull or --task tour")
    return found


def _parts(model: PointerModel, size: int) -> list[Part]:
    """The two graphs of a size, with random instances, one of which is not full."""
    encode, step = Encode(model), Step(model)
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(_INSTANCES, size, model.input_dim, generator=generator)
    length = torch.tensor([size, size - 1])
    with torch.no_grad():
        memory = dict(zip(model.memory_names, encode(points, length), strict=True))
    previous = torch.arange(_INSTANCES * _ROWS).reshape(_INSTANCES, _ROWS) % size
    previous[0, 0] = size  # a start
    allowed = torch.rand(_INSTANCES, _ROWS, size + 1, generator=generator) < _SHARE
    allowed[..., 0] = True
    inputs = {"previous": previous, "parent": torch.tensor([[0, 1, 1]] * _INSTANCES), "allowed": allowed}
    inputs |= {f"state_{name}": _state(name, memory) for name in model.state_names}
    inputs |= {f"memory_{name}": value for name, value in memory.items()}
    rows = {name: {0: "B", 1: "K"} for name in inputs if not name.startswith("memory_")}
    own = {f"model.{name}": name for name in model.state_dict()}
    outputs = ["log_probabilities", *(f"next_{name}" for name in model.state_names)]
    return [
        Part(
            f"encode.{size}",
            encode,
            {"points": points, "length": length},
            [f"memory_{name}" for name in memory],
            {"points": {0: "B"}, "length": {0: "B"}},
            own,
        ),
        Part(f"step.{size}", step, inputs, outputs, rows | {f"memory_{name}": {0: "B"} for name in memory}, own),
    ]


def _state(name: str, memory: dict[str, Tensor]) -> Tensor:
    """Of the rows of the example, no two the same: of an LSTM, or the slots that rows began with."""
    if name in ("hidden", "cell"):
        return (memory[name][:, None] * torch.linspace(0.5, 1.5, _ROWS)[:, None]).contiguous()
    return torch.tensor([[2, 0, 1]] * _INSTANCES)
