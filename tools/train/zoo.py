"""What training ships: weights, configuration, tree and card of trained heads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tools.train import tree
from torch import Tensor

from seqrt.exporter.checkpoints.head_tensors import SCALE

TREE_NODES = 64
BLOCK = 32
"""Inputs that share a scale in int8."""
SIZES = (2, 3, 4, 8, 16, 32, 64)
"""Tree sizes whose yield the card states, the root included."""


@dataclass(frozen=True, slots=True)
class Measure:
    """How well heads guess on one set of answers.

    Attributes:
        name: What the set is.
        accuracy: ``[K][ranks]`` as :func:`tools.train.heads.rank_accuracy` returns it.
        ranks: ``[N, K]`` of the same.
        coverage: Share of the answer tokens that the draft vocabulary holds.
    """

    name: str
    accuracy: list[list[float]]
    ranks: Tensor
    coverage: float


def write_heads(
    folder: Path,
    weights: Mapping[str, Tensor],
    token_map: Tensor,
    config: Mapping[str, object],
    *,
    int8: bool = False,
) -> None:
    """Write ``model.safetensors`` and ``config.json``.

    Args:
        folder: Made if missing.
        weights: Tensors under the names that they are published with.
        token_map: Token ids of the draft vocabulary.
        config: Contents of the configuration file.
        int8: Store matrices as int8 with a scale for each block of inputs; else they are float16, as all else is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"token_map": token_map}
    for name, tensor in weights.items():
        if int8 and tensor.ndim == 2:
            blocks = tensor.reshape(len(tensor), -1, BLOCK)
            scale = (blocks.abs().amax(2) / 127).clamp(min=1e-7).to(torch.float16)
            tensors[name] = (
                (blocks / scale[:, :, None].float()).round().clamp(-127, 127).to(torch.int8).view(tensor.shape)
            )
            tensors[f"{name}{SCALE}"] = scale
        else:
            tensors[name] = tensor.to(torch.float16).contiguous()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_tree(folder: Path, accuracy: Sequence[Sequence[float]]) -> list[tree.Path]:
    """Write ``tree.json``: the best static tree for these accuracies, best node first, and the accuracies."""
    rounded = [[round(share, 4) for share in row] for row in accuracy]
    paths = tree.best_first(rounded, TREE_NODES)
    text = json.dumps({"paths": tree.digits(paths), "accuracy": rounded})
    (folder / "tree.json").write_text(text + "\n", encoding="utf-8")
    return paths


def tables(measures: Sequence[Measure], paths: Sequence[tree.Path]) -> str:
    """Markdown: accuracy per head, and tokens a step would emit with trees of several sizes."""
    lines = [
        "| answers | coverage | head | token | top-1 | top-5 | top-10 |",
        "| --- | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for measure in measures:
        for head, row in enumerate(measure.accuracy):
            shares = " | ".join(f"{sum(row[:size]):.1%}" for size in (1, 5, 10))
            lines.append(f"| {measure.name} | {measure.coverage:.1%} | {head} | t+{head + 2} | {shares} |")
    lines += ["", "| answers | " + " | ".join(f"{size} nodes" for size in SIZES) + " |"]
    lines.append("| --- |" + " ---: |" * len(SIZES))
    for measure in measures:
        gains = " | ".join(f"{tree.tokens_per_step(measure.ranks, paths[: size - 1]):.2f}" for size in SIZES)
        lines.append(f"| {measure.name} | {gains} |")
    return "\n".join(lines) + "\n"
