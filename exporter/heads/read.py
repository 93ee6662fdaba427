"""Draft heads of any method from what was published."""

from dataclasses import replace
from pathlib import Path
from typing import Final

from seqrt.exporter.checkpoints.head_tensors import open_heads
from seqrt.exporter.checkpoints.hydra import is_hydra, read_hydra
from seqrt.exporter.checkpoints.medusa import read_medusa
from seqrt.exporter.checkpoints.reading import read_json
from seqrt.exporter.heads import Heads
from seqrt.exporter.heads.hydra import hydra_heads
from seqrt.exporter.heads.medusa import medusa_heads
from seqrt.exporter.weights import DecoderWeights

_TREE: Final = "tree.json"


def head_kind(path: Path) -> str:
    """What the draft heads at `path` are: "medusa" or "hydra".

    Raises:
        CheckpointError: missing or damaged.
    """
    return "hydra" if is_hydra(open_heads(path)) else "medusa"


def read_heads(name: str, path: Path, weights: DecoderWeights) -> Heads:
    """Medusa or Hydra heads in any published layout, made to fit the base model `weights`.

    Raises:
        CheckpointError: missing, damaged, or made for a base of another size.
    """
    config, tensors = weights.checkpoint.config, open_heads(path)
    if is_hydra(tensors):
        sizes = {
            "hidden": config.hidden_size,
            "queries": config.num_heads * config.head_dim,
            "keys": config.num_kv_heads * config.head_dim,
            "inner": config.intermediate_size,
        }
        heads = hydra_heads(name, read_hydra(tensors, sizes, config.vocab_size), weights)
    else:
        heads = medusa_heads(name, read_medusa(tensors, config.hidden_size, config.vocab_size), weights)
    tree, accuracy = _read_tree(path)
    return replace(heads, info=replace(heads.info, tree=tree, accuracy=accuracy))


def _read_tree(path: Path) -> tuple[tuple[str, ...], tuple[tuple[float, ...], ...]]:
    """Rank paths, best first, and accuracy by head and rank, where the heads come with them."""
    file = path / _TREE
    if not path.is_dir() or not file.is_file():
        return (), ()
    raw = read_json(file)
    return tuple(raw.get("paths", ())), tuple(tuple(map(float, row)) for row in raw.get("accuracy", ()))
