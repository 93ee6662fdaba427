"""The frozen base model, as the trainer needs it: hidden states of padded batches, with a cache.

A plain Llama forward over preallocated caches. The cache of transformers' own generate grows by
concatenation, and grouped heads are repeated: on a CPU that costs as much as the matrix products of a
model this small.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Cache = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, ``[B, num_kv_heads, capacity, head_dim]``."""


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """The sizes of a Llama decoder; ``rope_theta`` is the base of the default rotary embedding."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    norm_eps: float


class Llama:
    """A frozen Llama decoder over float weights with the tensor names of GGUF."""

    def __init__(self, shape: LlamaShape, state: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
        self.shape = shape
        self.dtype = dtype
        weights = {name: tensor.to(dtype) for name, tensor in state.items()}
        self.embed = weights["token_embd.weight"]
        self.head = weights.get("output.weight", self.embed)
        self.norm = weights["output_norm.weight"]
        self.layers = [_layer(weights, f"blk.{i}.") for i in range(shape.num_layers)]
        rate = torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim
        self.inverse_frequency = shape.rope_theta**-rate

    @property
    def hidden_size(self) -> int:
        """Width H of the hidden states."""
        return self.embed.shape[1]

    @property
    def vocab_size(self) -> int:
        """Number of tokens V."""
        return self.head.shape[0]

    def cache(self, batch: int, capacity: int) -> Cache:
        """Empty keys and values for ``batch`` rows of at most ``capacity`` tokens."""
        size = (batch, self.shape.num_kv_heads, capacity, self.shape.head_dim)
        return [(torch.zeros(size, dtype=self.dtype), torch.zeros(size, dtype=self.dtype)) for _ in self.layers]

    @torch.inference_mode()
    def hidden(self, ids: Tensor, padding: Tensor, cache: Cache, start: int) -> Tensor:
        """Post-norm hidden states of ``ids``, whose keys and values are written at columns ``start`` onwards.

        Args:
            ids: Token ids ``[B, T]``, padded on the left.
            padding: Number of padding columns of each row ``[B]``, counted from column 0 of the cache.
            cache: As :meth:`cache` makes it; changed in place.
            start: Number of columns already in the cache.

        Returns:
            Hidden states ``[B, T, H]`` after the final norm: what the output layer and the heads read.
        """
        length = ids.shape[1]
        columns = torch.arange(start, start + length)
        cos, sin = self._rotation((columns[None] - padding[:, None]).clamp(min=0))
        keys = torch.arange(start + length)
        seen = (keys[None, None] <= columns[None, :, None]) & (keys[None, None] >= padding[:, None, None])
        seen |= keys[None, None] == columns[None, :, None]  # a row that sees nothing would be NaN
        mask = seen[:, None]
        x = self.embed[ids]
        for weights, (key_cache, value_cache) in zip(self.layers, cache, strict=True):
            normed = self._rms(x, weights["attention_norm"])
            heads = functional.linear(normed, weights["qkv"]).reshape(*ids.shape, -1, self.shape.head_dim)
            num_heads, num_kv_heads = self.shape.num_heads, self.shape.num_kv_heads
            q, k, v = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=2)
            key_cache[:, :, start : start + length] = _rotate(k.transpose(1, 2), cos, sin)
            value_cache[:, :, start : start + length] = v.transpose(1, 2)
            attended = self._attend(
                _rotate(q.transpose(1, 2), cos, sin),
                key_cache[:, :, : start + length],
                value_cache[:, :, : start + length],
                mask,
            )
            x = x + functional.linear(attended, weights["o"])
            normed = self._rms(x, weights["mlp_norm"])
            gate, up = functional.linear(normed, weights["gate_up"]).chunk(2, dim=-1)
            x = x + functional.linear(functional.silu(gate) * up, weights["down"])
        return self._rms(x, self.norm)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Grouped attention ``[B, T, H]``; one query token is folded over its group: no key is repeated."""
        batch, heads, length, width = q.shape
        if length == 1:
            grouped = q.reshape(batch, self.shape.num_kv_heads, -1, width)
            out = functional.scaled_dot_product_attention(grouped, k, v, attn_mask=mask)
        else:
            out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        return out.reshape(batch, heads, length, width).transpose(1, 2).reshape(batch, length, heads * width)

    def _rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[:, None, :, None] * self.inverse_frequency
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def _rms(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, (x.shape[-1],), weight, self.shape.norm_eps)


def load_base(path: Path, dtype: torch.dtype = torch.float32) -> tuple[Llama, Any]:
    """Read a Llama model and its tokenizer, with its chat template, from a GGUF file.

    Raises:
        ValueError: The file is of another architecture.
    """
    from gguf import GGUFReader, dequantize
    from transformers import AutoTokenizer

    reader = GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    if architecture != "llama":
        raise ValueError(f"{path}: architecture {architecture!r}; the trainer reads llama only")

    def field(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    num_heads, num_kv_heads = field("attention.head_count"), field("attention.head_count_kv")
    shape = LlamaShape(
        num_layers=field("block_count"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=field("embedding_length") // num_heads,
        rope_theta=field("rope.freq_base"),
        norm_eps=field("attention.layer_norm_rms_epsilon"),
    )
    state = {}
    for tensor in reader.tensors:
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type))  # a copy: the file is mapped read-only
        if tensor.name.endswith(("attn_q.weight", "attn_k.weight")):
            weight = _half_rotation(weight, num_heads if "attn_q" in tensor.name else num_kv_heads)
        state[tensor.name] = weight
    return Llama(shape, state, dtype), AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def _half_rotation(weight: Tensor, num_heads: int) -> Tensor:
    """Undo the row order of llama.cpp, which rotates neighbouring pairs and not the two halves of a head."""
    return weight.reshape(num_heads, -1, 2, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def _layer(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights of one layer, with the projections that share an input joined."""

    def joined(*names: str) -> Tensor:
        return torch.cat([weights[f"{prefix}{name}.weight"] for name in names])

    return {
        "attention_norm": weights[f"{prefix}attn_norm.weight"],
        "mlp_norm": weights[f"{prefix}ffn_norm.weight"],
        "qkv": joined("attn_q", "attn_k", "attn_v"),
        "o": joined("attn_output"),
        "gate_up": joined("ffn_gate", "ffn_up"),
        "down": joined("ffn_down"),
    }


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in the half-rotation form; ``x`` is ``[B, heads, T, head_dim]``."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
