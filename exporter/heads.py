"""Draft heads as graphs of their own: they run on the accepted row, not on every node of a tree."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from seqrt.exporter.checkpoints.medusa import MedusaWeights, read_medusa
from seqrt.exporter.checkpoints.reading import read_json
from seqrt.exporter.trace import trace
from seqrt.exporter.weights import DecoderWeights
from seqrt.graphs.medusa import MedusaHeads
from seqrt.runtime.bundle import HeadInfo

TOP_K: Final = 10  # candidates of each head: what the published trees ask for
_TREE: Final = "tree.json"


@dataclass(frozen=True, slots=True)
class Heads:
    """Draft heads read from a checkpoint, as a torch module with its weights in place."""

    info: HeadInfo
    module: MedusaHeads


def read_heads(name: str, path: Path, weights: DecoderWeights) -> Heads:
    """Medusa heads in any published layout, made to fit the base model `weights`.

    Raises:
        CheckpointError: missing, damaged, or made for a base of another size.
    """
    config = weights.checkpoint.config
    heads = read_medusa(path, config.hidden_size, config.vocab_size)
    module = _module(heads, weights)
    tree, accuracy = _read_tree(path)
    info = HeadInfo(
        name=name, kind="medusa", num_heads=heads.num_heads, top_k=module.top_k, tree=tree, accuracy=accuracy
    )
    return Heads(info, module)


def heads_graph(heads: Heads) -> ir.Graph:
    """Hidden `[1, H]` -> token_ids int64 and log_probabilities `[heads, k]`."""
    size = heads.module.first.shape[0]
    graph = trace(heads.module, {"hidden": torch.zeros(1, size)}, ["token_ids", "log_probabilities"], {})
    graph.name = heads.info.name
    return graph


def _module(heads: MedusaWeights, weights: DecoderWeights) -> MedusaHeads:
    output = _output(heads, weights)
    vocab_size = output.shape[-1]
    module = MedusaHeads(
        heads.hidden_size,
        heads.num_heads,
        heads.num_layers,
        vocab_size,
        min(TOP_K, vocab_size),
        own_outputs=output.ndim == 3,
    )
    tokens = np.arange(vocab_size) if heads.token_map is None else heads.token_map
    zero = np.zeros(heads.hidden_size, np.float32)
    state = {
        "first": np.concatenate([layers[0][0].T for layers in heads.blocks], axis=1),
        "output": output,
        "tokens": tokens,
    }
    for layer in range(heads.num_layers):
        biases = [layers[layer][1] for layers in heads.blocks]
        state[f"biases.{layer}"] = np.array([zero if bias is None else bias for bias in biases])[:, None]
    for layer in range(1, heads.num_layers):
        state[f"later.{layer - 1}"] = np.array([layers[layer][0].T for layers in heads.blocks])
    module.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()})
    return module.eval()


def _output(heads: MedusaWeights, weights: DecoderWeights) -> npt.NDArray[np.float32]:
    """`[H, Vd]` shared or `[heads, H, Vd]` own."""
    if heads.outputs is not None:
        return np.array([output.T for output in heads.outputs])
    base = weights.tensor("head.weight")
    return base.T if heads.token_map is None else base[heads.token_map].T


def _read_tree(path: Path) -> tuple[tuple[str, ...], tuple[tuple[float, ...], ...]]:
    """Rank paths, best first, and accuracy by head and rank, where the heads come with them."""
    file = path / _TREE
    if not path.is_dir() or not file.is_file():
        return (), ()
    raw = read_json(file)
    return tuple(raw.get("paths", ())), tuple(tuple(map(float, row)) for row in raw.get("accuracy", ()))
