"""Pointer models of each task: their shapes, and how they are saved, as `seqrt export` reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file

from seqrt.exporter.checkpoints.solver import Settings
from seqrt.graphs.attention_model import AttentionModel, AttentionModelConfig
from seqrt.graphs.pointing import PointerModel
from seqrt.graphs.ptrnet import PtrNet, PtrNetConfig
from seqrt.graphs.read_process_write import ReadProcessWrite, SetConfig

_SET: Final = SetConfig(dim=128)
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


_HULL: Final = Settings(kind="attention", task="hull", norm="instance", clip=_ATTENTION.clip)
RECIPES: Final = {
    recipe.settings.task: recipe
    for recipe in (
        Recipe(_HULL, lambda: AttentionModel(_ATTENTION), range(5, 51)),
        Recipe(replace(_HULL, task="tour", needs_start=True), lambda: AttentionModel(_ATTENTION), range(5, 21)),
        Recipe(Settings(kind="ptrnet", task="triangulation"), lambda: PtrNet(PtrNetConfig(dim=256)), range(5, 6)),
        Recipe(
            Settings(kind="set", task="permutation", num_process=_SET.num_process),
            lambda: ReadProcessWrite(_SET),
            range(5, 6),
        ),
    )
}


def save(model: PointerModel, settings: Settings, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes config.json and model.safetensors, weights as `dtype`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.to(dtype).contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"solver": asdict(settings)}, indent=2) + "\n", encoding="utf-8")
