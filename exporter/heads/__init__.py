"""Draft heads as graphs of their own: they run on the accepted row, not on every node of a tree. A file a method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from seqrt.exporter.parts import Part
from seqrt.exporter.weights import DecoderWeights
from seqrt.runtime.bundle import HeadInfo

TOP_K: Final = 10  # candidates of each head: what the published trees ask for
EMBEDDING: Final = "embed.weight"  # a table of the base model that heads read too
GUESSES: Final = ("token_ids", "log_probabilities")  # outputs of a graph that guesses

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Heads:
    """Draft heads read from a checkpoint."""

    info: HeadInfo
    graphs: Sequence[Part]


def filled(
    module: nn.Module, state: Mapping[str, npt.NDArray[np.generic]], embedding: Tensor | None = None
) -> nn.Module:
    """The module with the values of `state`, and the base's embedding if given, as its own."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}
    if embedding is not None:
        tensors[EMBEDDING] = embedding
    module.load_state_dict(tensors, assign=True)
    return module.eval().requires_grad_(requires_grad=False)


def base_output(token_map: npt.NDArray[np.int64] | None, weights: DecoderWeights) -> Array:
    """`[Vd, H]`: the base's output layer, or its rows of the draft vocabulary."""
    base = weights.tensor("head.weight")
    return base if token_map is None else base[token_map]


def draft_tokens(token_map: npt.NDArray[np.int64] | None, vocab_size: int) -> npt.NDArray[np.int64]:
    """int64 `[Vd]`: tokens of the draft vocabulary."""
    return np.arange(vocab_size) if token_map is None else token_map
