"""Pointer models as others and seqrt save them.

    others   .pt, .pth or .ckpt, see solver_names.py
    seqrt    a directory with config.json and model.safetensors, in the names of the graphs themselves

Sizes are read off the tensors. What tensors do not say is taken from the hyper-parameters in the file, from `args.json`
beside it as attention-learn-to-route writes it, or is what these projects use.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import Tensor

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints.inert import read_inert
from seqrt.exporter.checkpoints.reading import Safetensors, read_json, read_settings, told_of
from seqrt.exporter.checkpoints.solver_names import State, is_known, layout_of, unwrapped
from seqrt.graphs.attention_model import NORMS, AttentionModel, AttentionModelConfig, NormKind
from seqrt.graphs.pointing import PointerModel
from seqrt.graphs.ptrnet import PtrNet, PtrNetConfig
from seqrt.graphs.read_process_write import ReadProcessWrite, SetConfig
from seqrt.runtime.bundle import SOLVER_TASKS

Kind = Literal["ptrnet", "set", "attention"]

_CONFIG: Final = "config.json"
_KEY: Final = "solver"  # of config.json
_ARGUMENTS: Final = "args.json"
_INSIDE: Final = ("state_dict", "model", "model_state_dict")  # of Lightning, attention-learn-to-route, POMO
_CLIP: Final = 10.0
_HEADS: Final = 8
_TOURS: Final = ("tsp", "TSP")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What config.json says beside a pointer model of seqrt.

    Attributes:
        kind: of graph.
        task: what its answers are, of `bundle.SOLVER_TASKS`.
        num_process: steps of a set model's process.
        num_heads, norm: of an attention model.
        clip: bound of the scores; 0 for none.
        needs_start: it must be told where to begin.
    """

    kind: str
    task: str
    needs_start: bool = False
    num_process: int = 0
    num_heads: int = _HEADS
    norm: str = "batch"
    clip: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("ptrnet", "set", "attention") or self.task not in SOLVER_TASKS:
            raise ValueError(f"a {self.kind!r:.40} for {self.task!r:.40} is unknown; choose from {SOLVER_TASKS}")
        if self.norm not in NORMS:
            raise ValueError(f"norm is {self.norm!r:.40}; choose from {NORMS}")
        if self.num_heads < 1 or self.num_process < 0 or not self.clip >= 0:
            raise ValueError(
                f"num_heads is {self.num_heads}, num_process {self.num_process}, clip {self.clip}; give 1 or more, 0 or"
                " more, 0 or more"
            )


@dataclass(frozen=True, slots=True)
class SolverCheckpoint:
    """A pointer model that was read.

    Attributes:
        name: for people.
        kind: of graph.
        model: in eval mode, with its weights.
        task: what its answers are; None if nobody says.
        needs_start: it must be told where to begin, as POMO's are trained.
        assumed: what neither the file nor args.json says, by RL4CO's names.
    """

    name: str
    kind: Kind
    model: PointerModel
    task: str | None
    needs_start: bool
    assumed: Mapping[str, object]


def is_solver(path: Path) -> bool:
    """Whether `path` looks like a pointer model: by its config.json, or by its tensors."""
    if path.is_dir():
        return (path / _CONFIG).is_file() and _KEY in read_json(path / _CONFIG)
    if path.suffix == ".ckpt" or path.suffix not in (".pt", ".pth") or not path.is_file():
        return path.suffix == ".ckpt"
    try:
        state, _ = _stored(path)
    except CheckpointError:
        return False
    return is_known(state)


def open_solver(path: Path) -> SolverCheckpoint:
    """Reads a pointer model.

    Raises:
        CheckpointError: missing, damaged, no pointer model, or one for another problem.
    """
    if path.is_dir():
        return _own(path)
    state, hints = _stored(path)
    hints = (read_json(path.with_name(_ARGUMENTS)) if path.with_name(_ARGUMENTS).is_file() else {}) | hints
    problem = hints.get("problem", hints.get("env_name", _TOURS[0]))
    if isinstance(problem, str) and problem not in _TOURS:
        raise CheckpointError(f"{path} is for the problem {problem!r}; take a model of the travelling salesman problem")
    with told_of(path, "pointer model"):
        own, names = layout_of(state)({name: value.float() for name, value in state.items()})
        kind: Kind = "attention" if any(name.startswith("layers.") for name in own) else "ptrnet"
        if not hints.get("mask_inner", True):
            raise CheckpointError("mask_inner is false: its glimpse sees points that are taken, which is not supported")
        assumed = {name: value for name, value in _usual(kind, own, state).items() if name not in hints}
        hints = assumed | hints
        model: PointerModel = _attention(own, hints, state) if kind == "attention" else _ptrnet(own, hints)
        _load(model, own, names)
    # What was trained without the mean of the graph was trained as POMO is.
    needs_start = kind == "attention" and not (own["start"].any() and own["graph.weight"].any())
    task = None if model.has_end else "tour"
    return SolverCheckpoint(path.stem, kind, model.eval(), task, needs_start, assumed)


def _usual(kind: Kind, own: State, stored: State) -> dict[str, object]:
    """What these projects use where tensors do not say it."""
    if kind == "ptrnet":
        return {} if "decoder.end" in own else {"tanh_clipping": _CLIP}
    usual: dict[str, object] = {"tanh_clipping": _CLIP}
    if any(name.endswith("W_query") for name in stored):  # attention-learn-to-route, which has no choice of the rest
        return usual
    return usual | {"num_heads": _HEADS} | ({"use_graph_context": True} if own["graph.weight"].any() else {})


def _own(folder: Path) -> SolverCheckpoint:
    settings = read_settings(Settings, folder, _KEY, "tools.pointer.model")
    store = Safetensors([folder / "model.safetensors"])
    state = {name: store.read(name) for name in store.entries}
    with told_of(folder, "pointer model"):
        model = _model(settings, state)
        _load(model, state, {})
    return SolverCheckpoint(folder.name, settings.kind, model.eval(), settings.task, settings.needs_start, {})  # type: ignore[arg-type]


def _model(settings: Settings, state: State) -> PointerModel:
    if settings.kind == "attention":
        return AttentionModel(_attention_config(state, settings.num_heads, settings.norm, settings.clip))
    shape = {"has_end": "decoder.end" in state, "has_glimpse": "decoder.glimpse.v" in state}
    dim = state["decoder.pointer.v"].shape[0]
    if settings.kind == "set":
        inputs = state["read1.weight"].shape[0]
        return ReadProcessWrite(SetConfig(dim=dim, input_dim=inputs, num_process=settings.num_process, **shape))
    return _ptrnet(state, {"tanh_clipping": settings.clip})


def _ptrnet(state: State, hints: Mapping[str, Any]) -> PtrNet:
    has_end, embedding = "decoder.end" in state, state.get("embedding.weight")
    config = PtrNetConfig(
        dim=state["decoder.pointer.v"].shape[0],
        input_dim=(state["input.weight"] if embedding is None else embedding).shape[0],
        is_embedded=embedding is not None,
        has_end=has_end,
        has_glimpse="decoder.glimpse.v" in state,
        clip=float(hints.get("tanh_clipping", 0.0)),
    )
    return PtrNet(config)


def _attention(own: State, hints: Mapping[str, Any], stored: State) -> AttentionModel:
    """The module; its mean of the graph is taken out of `own` if the hints say that it was not used."""
    norms: dict[bool, NormKind] = {True: "batch", False: "instance"}
    kinds = [name for name in stored if "norm" in name.lower() and name.endswith(("weight", "running_mean"))]
    norm = norms[any(name.endswith("running_mean") for name in kinds)] if kinds else "layer"
    known = next((value.shape[0] for name, value in stored.items() if name.endswith("W_query")), None)
    heads = int(known or hints["num_heads"])
    if not hints.get("use_graph_context", True):
        own["graph.weight"] = torch.zeros_like(own["graph.weight"])
    return AttentionModel(_attention_config(own, heads, norm, float(hints["tanh_clipping"])))


def _attention_config(state: State, heads: int, norm: str, clip: float) -> AttentionModelConfig:
    inputs, dim = state["embedding.weight"].shape
    if dim % heads:
        raise CheckpointError(f"embedding.weight is {dim} wide, which {heads} heads do not divide; correct num_heads")
    return AttentionModelConfig(
        dim=dim,
        num_heads=heads,
        ffn_dim=state["layers.0.fc1.weight"].shape[1],
        num_layers=len({name.split(".")[1] for name in state if name.startswith("layers.")}),
        norm=norm,  # type: ignore[arg-type]
        clip=clip,
        input_dim=inputs,
    )


def _load(model: PointerModel, state: State, names: Mapping[str, str]) -> None:
    """Gives the module its weights; the first that does not fit is named as the file names it."""
    wanted = model.state_dict()
    for name, value in wanted.items():
        if name not in state:
            raise CheckpointError(f"{names.get(name, name)} {list(value.shape)} is missing: it is not whole")
        if state[name].shape != value.shape:
            has, needed = list(state[name].shape), list(value.shape)
            if name in names:  # theirs are [out, in]
                has, needed = has[::-1], needed[::-1]
            raise CheckpointError(f"{names.get(name, name)} is {has}, expected {needed}; take another checkpoint")
        if not state[name].isfinite().all():
            raise CheckpointError(f"{names.get(name, name)} holds NaN or infinite weights; take another checkpoint")
    if surplus := sorted(state.keys() - wanted.keys()):
        raise CheckpointError(
            f"{names.get(surplus[0], surplus[0])} has no place in such a model; it cannot be exported"
        )
    model.load_state_dict({name: value.float() for name, value in state.items()})


def _stored(path: Path) -> tuple[State, dict[str, Any]]:
    """The tensors of a policy, and hyper-parameters beside them."""
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; pass a .pt, .pth or .ckpt file or a directory of seqrt")
    found = read_inert(path)
    hints: dict[str, Any] = {}
    if isinstance(found, dict):
        hyper = found.get("hyper_parameters")
        for held in (hyper, hyper.get("policy_kwargs") if isinstance(hyper, dict) else None):
            if isinstance(held, dict):
                hints |= {key: value for key, value in held.items() if isinstance(value, (str, int, float, bool))}
        if hints.get("baseline") == "shared" or "num_augment" in hints:  # RL4CO's POMO, whose policy says it in code
            hints.setdefault("use_graph_context", False)
        inner = next((found[key] for key in _INSIDE if isinstance(found.get(key), dict)), found)
        tensors = {key: value for key, value in inner.items() if isinstance(value, Tensor)}
        if tensors and all(isinstance(key, str) for key in tensors):
            return unwrapped(tensors), hints
    raise CheckpointError(f"{path} holds no dictionary of tensors; save the policy's state_dict")
