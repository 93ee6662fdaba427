"""Medusa heads (arXiv 2401.10774) in every layout that they are published in.

A head is num_layers residual blocks h + SiLU(W h + b) and an output layer. The layouts, told apart by their
keys alone, because published configs miscount their heads:

    {head}.{layer}.linear.{weight,bias}, {head}.{num_layers}.weight     v0.1; v2 uses the model's output layer
    medusa_head.{head}.{layer}...                                       v1.0: the same inside a full model
    blocks.{head}.layers.{layer}.{weight,bias}, lm_heads.{head}.weight  vLLM and seqrt; `token_map` names the
                                                                        tokens of a reduced draft vocabulary

The layers of a v0.1 head are one shared module saved under several keys; read one by one they are the same.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints.head_tensors import TOKEN_MAP, Array, HeadTensors, Shape
from seqrt.exporter.checkpoints.reading import read_json

_LINEAR: Final = re.compile(r"(\d+)\.(\d+)\.linear\.(weight|bias)")
_OUTPUT: Final = re.compile(r"(\d+)\.(\d+)\.weight")
_BLOCK: Final = re.compile(r"blocks\.(\d+)\.layers\.(\d+)\.(weight|bias)")
_LM_HEAD: Final = re.compile(r"lm_heads\.(\d+)\.weight")
_SHARED: Final = "lm_head.weight"

# Where a linear layer of a block stands: head, layer, weight or bias.
Place = tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class MedusaWeights:
    """The weights of all heads, head k predicting the token k + 2 places after the row that it reads.

    Attributes:
        blocks: per head and layer, weight `[H, H]` and bias `[H]` or None.
        outputs: per head, `[Vd, H]`; None means the base model's output layer.
        token_map: int64 `[Vd]`: token of each row of the outputs, or row of the base output layer to take;
            None means the whole vocabulary in its order.
    """

    num_heads: int
    num_layers: int
    hidden_size: int
    blocks: list[list[tuple[Array, Array | None]]]
    outputs: list[Array] | None
    token_map: npt.NDArray[np.int64] | None


def read_medusa(tensors: HeadTensors, hidden_size: int, vocab_size: int) -> MedusaWeights:
    """Read heads.

    Args:
        tensors: what was published.
        hidden_size: of the base model.
        vocab_size: of the base model.

    Raises:
        CheckpointError: an incomplete set of heads, or made for a model of another size.
    """
    places, outputs = _inventory(tensors)
    num_heads = 1 + max(head for head, _, _ in places)
    num_layers = 1 + max(layer for _, layer, _ in places)

    def linear(head: int, layer: int) -> tuple[Array, Array | None]:
        weight, bias = places.get((head, layer, "weight")), places.get((head, layer, "bias"))
        if weight is None:
            raise CheckpointError(f"{tensors.path} has no weights for layer {layer} of head {head}; download it again")
        return (
            tensors.array(weight, (hidden_size, hidden_size), of="hidden size"),
            None if bias is None else tensors.array(bias, (hidden_size,), of="hidden size"),
        )

    token_map = tensors.token_map(vocab_size)
    return MedusaWeights(
        num_heads=num_heads,
        num_layers=num_layers,
        hidden_size=hidden_size,
        blocks=[[linear(head, layer) for layer in range(num_layers)] for head in range(num_heads)],
        outputs=_outputs(tensors, outputs, token_map, num_heads, (vocab_size, hidden_size)),
        token_map=token_map,
    )


def _inventory(tensors: HeadTensors) -> tuple[dict[Place, str], dict[int, str]]:
    """Key of every linear layer of the blocks, and of every head's own output layer."""
    path, places = tensors.path, dict[Place, str]()
    outputs: dict[int, str] = {}
    for key in tensors.shapes:
        if match := _LINEAR.fullmatch(key) or _BLOCK.fullmatch(key):
            places[int(match[1]), int(match[2]), match[3]] = key
        elif match := _OUTPUT.fullmatch(key) or _LM_HEAD.fullmatch(key):
            if int(match[1]) in outputs:
                raise CheckpointError(f"{path} has two output layers for head {match[1]}; download it again")
            outputs[int(match[1])] = key
        elif key not in (TOKEN_MAP, _SHARED):
            raise CheckpointError(f"{path} is not a set of draft heads: no layout of theirs has a tensor {key}")
    if not places:
        raise CheckpointError(f"{path} holds no draft heads; pass the directory that the heads were published in")
    return places, outputs


def _outputs(
    tensors: HeadTensors,
    outputs: Mapping[int, str],
    token_map: npt.NDArray[np.int64] | None,
    num_heads: int,
    full: Shape,
) -> list[Array] | None:
    """Output layer of every head, reduced to the rows of the draft vocabulary."""
    path = tensors.path
    is_shared = _SHARED in tensors.shapes
    if is_shared or (len(outputs) == 1 < num_heads and _shares_output(path)):
        outputs = dict.fromkeys(range(num_heads), _SHARED if is_shared else outputs[0])
    if not outputs:
        return None
    if sorted(outputs) != list(range(num_heads)):
        raise CheckpointError(f"{path} has {len(outputs)} output layers for {num_heads} heads; download it again")
    layers = {key: tensors.output(key, full, token_map) for key in dict.fromkeys(outputs.values())}
    return [layers[outputs[head]] for head in range(num_heads)]


def _shares_output(path: Path) -> bool:
    """Whether a vLLM config says that its single output layer serves all heads."""
    config = path / "config.json"
    return config.exists() and bool(read_json(config).get("original_lm_head"))
