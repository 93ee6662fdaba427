"""Shapes of recognisers, and how they are saved: as `seqrt export` reads them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from seqrt.exporter.checkpoints.recognizer import Settings
from seqrt.exporter.recognizer import DICTIONARIES
from seqrt.graphs.cppd import Cppd, CppdConfig
from seqrt.graphs.nrtr import Nrtr
from seqrt.graphs.svtr import SvtrConfig

CHARACTERS = DICTIONARIES[37]
RECIPE = "tv_rgb_bicubic"
TINY = CppdConfig(
    encoder=SvtrConfig(
        height=32,
        width=128,
        dims=(64, 128, 192),
        mixers=(("conv",) * 2, ("conv",) * 4, ("global",) * 2),
        row_strides=(2, 2),
    ),
    num_classes=len(CHARACTERS) + 1,
    num_layers=2,
)
BASE = CppdConfig(  # the published shape at 32 x 100
    encoder=SvtrConfig(
        height=32,
        width=100,
        dims=(128, 256, 384),
        mixers=(("conv",) * 6, ("conv",) * 2 + ("global",) * 4, ("global",) * 4),
        row_strides=(2, 2),
    ),
    num_classes=len(CHARACTERS) + 1,
    num_layers=3,
)
SHAPES = {"tiny": TINY, "base": BASE}


def save(model: Cppd | Nrtr, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Writes config.json and model.safetensors, weights as `dtype`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: (value.to(dtype) if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    encoder = model.config.encoder
    settings = Settings(
        height=encoder.height,
        width=encoder.width,
        row_strides=encoder.row_strides,
        recipe=RECIPE,
        characters=CHARACTERS,
    )
    text = json.dumps({"recognizer": asdict(settings)}, indent=2)
    (folder / "config.json").write_text(f"{text}\n", encoding="utf-8")
