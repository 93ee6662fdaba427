"""Pointer models of each task: their shapes, and how they are saved, as `seqrt export` reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file

from seqrt.exporter.checkpoints.solver import Settings
from seqrt.graphs.attention_model import AttentionModel, AttentionModelConfig
from seqrt.graphs.pointing import PointerModel
from seqrt.graphs.ptrnet import PtrNet, PtrNetConfig
from seqrt.graphs.read_process_write import ReadProcessWrite, SetConfig

_ATTENTION: Final = AttentionModelConfig(dim=128, num_heads=8, ffn_dim=512, num_layers=3, norm="instance")


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is trained for a task.

    Attributes:
        settings: what is saved beside the weights.
        make: the model.
        points: fewest and most points of an instance.
    """

    settings: Settings
    make: Callable[[], PointerModel]
    points: range


def _recipe(kind: str, task: str, make: Callable[[], PointerModel], points: range, **more: object) -> Recipe:
    return Recipe(Settings(kind=kind, task=task, **more), make, points)  # type: ignore[arg-type]


RECIPES: Final = {
    recipe.settings.task: recipe
    for recipe in (
        _recipe(
            "attention", "hull", lambda: AttentionModel(_ATTENTION), range(5, 51), norm="instance", clip=_ATTENTION.clip
        ),
        _recipe(
            "attention",
            "tour",
            lambda: AttentionModel(_ATTENTION),
            range(5, 21),
            norm="instance",
            clip=_ATTENTION.clip,
            needs_start=True,
        ),
        _recipe("ptrnet", "triangulation", lambda: PtrNet(PtrNetConfig(dim=256)), range(5, 6)),
        _recipe("set", "permutation", lambda: ReadProcessWrite(SetConfig(dim=128)), range(5, 6), num_process=5),
    )
}


def save(model: PointerModel, settings: Settings, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes config.json and model.safetensors, weights as `dtype`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.to(dtype).contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"solver": asdict(settings)}, indent=2) + "\n", encoding="utf-8")
