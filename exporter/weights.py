"""Weights of a checkpoint under the names and in the layout of the graphs, made on demand, one at a time.

The attention scale is multiplied into what makes the queries: a graph that multiplied them would do so at every step.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from seqrt.exporter.checkpoints import Checkpoint, QuantBlocks
from seqrt.graphs.decoder import Decoder

FloatArray = npt.NDArray[np.float32]

# Projections that read the same input are one matrix product: fewer, larger products are faster.
_FUSED: Final[dict[str, tuple[str, ...]]] = {
    "attention.qkv": ("attention.q", "attention.k", "attention.v"),
    "mlp.up": ("mlp.gate", "mlp.up"),
}
_LINEAR: Final = (".qkv.", ".o.", ".up.", ".down.")  # stored [in, out]; everything else as in the checkpoint


class DecoderWeights:
    """The parameters of `graphs.decoder.Decoder` by name, from a checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self._gated = checkpoint.config.gated_mlp
        self._query_scale = np.float32(checkpoint.config.attention_scale)

    def tensor(self, name: str) -> FloatArray:
        """Parameter `name` as float32; weights of projections `[in, out]`."""
        parts = [self.checkpoint.tensor(part) for part in self._parts(name)]
        if self._makes_queries(name):
            unit = np.float32(name.endswith("_norm.weight") and self.checkpoint.config.norm == "rms_plus_one")
            parts[0] = (parts[0] + unit) * self._query_scale - unit
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return np.ascontiguousarray(joined.T) if is_projection(name) and joined.ndim == 2 else joined

    def blocks(self, name: str) -> QuantBlocks | None:
        """The source's own blocks `[out, in]` of a projection or embedding, None where it has none that fit."""
        found = [self.checkpoint.blocks(part) for part in self._parts(name)]
        parts = [part for part in found if part is not None]
        if len(parts) < len(found) or len({(part.bits, part.offset is None) for part in parts}) > 1:
            return None
        if self._makes_queries(name):
            parts[0] = parts[0].scaled(self._query_scale)
        return parts[0] if len(parts) == 1 else _joined(parts)

    def is_quantized(self, name: str) -> bool:
        """Whether the source holds parameter `name`, or a part of it, in blocks of few bits."""
        return any(self.checkpoint.is_quantized(part) for part in self._parts(name))

    def _makes_queries(self, name: str) -> bool:
        """Whether the attention scale is multiplied into (the first part of) parameter `name`."""
        return ("attention.q_norm." if self.checkpoint.config.qk_norm else "attention.qkv.") in name

    def _parts(self, name: str) -> list[str]:
        if name == "head.weight" and self.checkpoint.config.tied_embeddings:
            return ["embed.weight"]
        for fused, parts in _FUSED.items():
            if f".{fused}." in name and (self._gated or fused != "mlp.up"):
                return [name.replace(fused, part) for part in parts]
        return [name]


def projection_names(num_layers: int) -> list[str]:
    """The weights of all projections inside layers."""
    return [
        f"layers.{i}.{part}weight"
        for i in range(num_layers)
        for part in ("attention.qkv.", "attention.o.", "mlp.up.", "mlp.down.")
    ]


def is_projection(name: str) -> bool:
    """Whether `name` is the weight of a projection inside a layer."""
    return name.endswith(".weight") and any(part in name for part in _LINEAR)


def parameter_names(decoder: Decoder) -> dict[str, str]:
    """Names of the decoder's own parameters and the graph names they go by."""
    return {name: name.removeprefix("frame.").removeprefix("readout.") for name, _ in decoder.named_parameters()}


def load_decoder(weights: DecoderWeights, replaced: Mapping[str, Callable[[], FloatArray]] | None = None) -> Decoder:
    """The torch module with the checkpoint's weights, those in `replaced` as made there."""
    with torch.device("meta"):
        decoder = Decoder(weights.checkpoint.config)

    def value(name: str) -> torch.Tensor:
        array = (replaced or {}).get(name, partial(weights.tensor, name))()
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))

    state = {own: value(name) for own, name in parameter_names(decoder).items()}
    if weights.checkpoint.config.tied_embeddings:
        state["readout.head.weight"] = state["frame.embed.weight"]
    decoder.load_state_dict(state, assign=True)
    return decoder.eval()


def _joined(parts: Sequence[QuantBlocks]) -> QuantBlocks:
    offsets = [part.offset for part in parts if part.offset is not None]
    return QuantBlocks(
        bits=parts[0].bits,
        codes=np.concatenate([part.codes for part in parts]),
        scale=np.concatenate([part.scale for part in parts]),
        offset=np.concatenate(offsets) if offsets else None,
    )
