"""Draft heads as graphs of their own: they run on the accepted row, not on every node of a tree. A file a method."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn

from seqrt.exporter.trace import trace
from seqrt.exporter.weights import DecoderWeights
from seqrt.runtime.bundle import HeadInfo

TOP_K: Final = 10  # candidates of each head: what the published trees ask for
EMBEDDING: Final = "embed.weight"  # a table of the base model that heads read too
_CACHES: Final = ("past_key", "past_value")
_GUESSES: Final = ("token_ids", "log_probabilities")

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class HeadGraph:
    """A graph of draft heads before it is traced.

    Attributes:
        role: its name in the bundle.
        module: with its weights in place.
        inputs: example inputs, for the tracer and for the check.
        outputs: names of the outputs.
        symbols: of each input, its symbolic dimensions.
        shared: parameters that other graphs have too, and the names they share.
    """

    role: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str] = _GUESSES
    symbols: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)

    def trace(self, dtype: torch.dtype = torch.float32) -> ir.Graph:
        """The ONNX graph; its initialisers are the module's parameters, its caches and what it computes are `dtype`."""
        module = self.module if dtype == torch.float32 else copy.deepcopy(self.module).to(dtype)
        inputs = {name: value.to(dtype) if name in _CACHES else value for name, value in self.inputs.items()}
        return trace(self.role, module, inputs, self.outputs, self.symbols)


@dataclass(frozen=True, slots=True)
class Heads:
    """Draft heads read from a checkpoint."""

    info: HeadInfo
    graphs: Sequence[HeadGraph]


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


def random_input(*shape: int) -> Tensor:
    """The same numbers for the same shape."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
