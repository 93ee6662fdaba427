"""Hydra heads (arXiv 2402.05109) in their authors' layout, and in the same layout without what the base model has.

    hydra_mlp.{head}.{place}.linear.{weight,bias}           W, b of each block; the first is the one with a
    hydra_mlp.{head}.{place}.res_connection.{weight,bias}   R, r
    hydra_lm_head.{head}[.{place}].{weight,bias}            O, o; without them the base model's output layer serves
    prefix_embeding_layer.{layers.0...,norm}.weight         Hydra++ only; the authors' spelling
    token_map                                               tokens of a reduced draft vocabulary

Places count modules that have no weights too (dropout), so only their order means anything. Blocks after the first are
one shared module saved under several keys: read one by one they are the same. Copies of the embedding are not read.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy.typing as npt
from numpy import int64

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints.head_tensors import TOKEN_MAP, Array, HeadTensors
from seqrt.exporter.checkpoints.reading import read_json

_BLOCK: Final = re.compile(r"hydra_mlp\.(\d+)\.(\d+)\.(linear|res_connection)\.(weight|bias)")
_OUTPUT: Final = re.compile(r"hydra_lm_head\.(\d+)\.(?:\d+\.)?(weight|bias)")
_PREFIX: Final = "prefix_embeding_layer."
_COPIES: Final = ("input_embed_fn.weight", f"{_PREFIX}embed_tokens.weight")
_BUFFER: Final = ".rotary_emb.inv_freq"
_LAYER: Final = f"{_PREFIX}layers.0."
# Names of `graphs.hydra.PrefixLayer` parameters, projections before they are fused, and what their shape is made of.
_PREFIX_TENSORS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    f"{_LAYER}input_layernorm.weight": ("layer.attention_norm.weight", ("hidden",)),
    f"{_LAYER}post_attention_layernorm.weight": ("layer.mlp_norm.weight", ("hidden",)),
    f"{_LAYER}self_attn.q_proj.weight": ("layer.attention.q.weight", ("queries", "hidden")),
    f"{_LAYER}self_attn.k_proj.weight": ("layer.attention.k.weight", ("keys", "hidden")),
    f"{_LAYER}self_attn.v_proj.weight": ("layer.attention.v.weight", ("keys", "hidden")),
    f"{_LAYER}self_attn.o_proj.weight": ("layer.attention.o.weight", ("hidden", "queries")),
    f"{_LAYER}mlp.gate_proj.weight": ("layer.mlp.gate.weight", ("inner", "hidden")),
    f"{_LAYER}mlp.up_proj.weight": ("layer.mlp.up.weight", ("inner", "hidden")),
    f"{_LAYER}mlp.down_proj.weight": ("layer.mlp.down.weight", ("hidden", "inner")),
    f"{_PREFIX}norm.weight": ("norm.weight", ("hidden",)),
}
_ARCHS: Final = {"mlp": False, "prefix-mlp": True}  # and whether they have a prefix layer


@dataclass(frozen=True, slots=True)
class Linear:
    """`x W^T + b`: weight `[out, in]`, bias `[out]`."""

    weight: Array
    bias: Array | None


@dataclass(frozen=True, slots=True)
class HydraWeights:
    """The weights of all heads; head i predicts the token i + 2 places after the row whose state it reads.

    Attributes:
        first: per head, W and R of its first block, `[H, (i + 2) H]`, or `[H, H]` when not grounded.
        later: per head, the blocks after the first, `[H, H]`.
        outputs: per head, `[Vd, H]`; None means the base model's output layer.
        token_map: int64 `[Vd]`, the draft vocabulary; None means the base's.
        prefix: parameters of the prefix layer by name, or None.
        hidden_state_offset: how many layers before the last the hidden state is taken; 0 takes the final one.
    """

    first: list[tuple[Linear, Linear]]
    later: list[list[Linear]]
    outputs: list[Linear] | None
    token_map: npt.NDArray[int64] | None
    is_grounded: bool
    prefix: Mapping[str, Array] | None
    hidden_state_offset: int

    @property
    def num_heads(self) -> int:
        """Number of heads."""
        return len(self.first)


def is_hydra(tensors: HeadTensors) -> bool:
    """Whether these are Hydra heads."""
    return any(name.startswith("hydra_mlp.") for name in tensors.shapes)


def read_hydra(tensors: HeadTensors, sizes: Mapping[str, int], vocab_size: int) -> HydraWeights:
    """Read heads.

    Args:
        tensors: what was published.
        sizes: of the base model: hidden, queries and keys (heads times their width), inner (of the MLP).
        vocab_size: of the base model.

    Raises:
        CheckpointError: an incomplete set of heads, made for a model of another size, or of a kind that is not
            supported; a config that contradicts the tensors.
    """
    _check_names(tensors)
    places: dict[int, set[int]] = defaultdict(set)
    for name in tensors.shapes:
        if match := _BLOCK.fullmatch(name):
            places[int(match[1])].add(int(match[2]))
    num_heads = 1 + max(places)
    ordered = [sorted(places.get(head, ())) for head in range(num_heads)]
    if len(set(map(len, ordered))) > 1:
        raise CheckpointError(f"{tensors.path} has heads of {sorted(map(len, ordered))} blocks; download it again")
    hidden = sizes["hidden"]
    is_grounded = _width(tensors, f"hydra_mlp.0.{ordered[0][0]}.linear.weight") != hidden

    def linear(name: str, width: int) -> Linear:
        if f"{name}.weight" not in tensors.shapes:
            raise CheckpointError(f"{tensors.path} has no {name}.weight; download it again")
        weight = tensors.array(f"{name}.weight", (hidden, width), of="hidden size")
        has_bias = f"{name}.bias" in tensors.shapes
        return Linear(weight, tensors.array(f"{name}.bias", (hidden,), of="hidden size") if has_bias else None)

    first, later = [], []
    for head, (place, *others) in enumerate(ordered):
        width, block = (head + 2 if is_grounded else 1) * hidden, f"hydra_mlp.{head}.{place}"
        first.append((linear(f"{block}.linear", width), linear(f"{block}.res_connection", width)))
        later.append([linear(f"hydra_mlp.{head}.{other}.linear", hidden) for other in others])
    prefix = _prefix(tensors, sizes)
    token_map = tensors.token_map(vocab_size)
    found = {
        "hydra_num_heads": num_heads,
        "hydra_num_layers": len(ordered[0]),
        "grounded_heads": is_grounded,
        "hydra_head_arch": "mlp" if prefix is None else "prefix-mlp",
    }
    config = _config(tensors, found)
    return HydraWeights(
        first=first,
        later=later,
        outputs=_outputs(tensors, num_heads, (vocab_size, hidden), token_map),
        token_map=token_map,
        is_grounded=is_grounded,
        prefix=prefix,
        hidden_state_offset=int(config.get("hidden_state_offset", 0)),
    )


def _check_names(tensors: HeadTensors) -> None:
    known = {*_COPIES, *_PREFIX_TENSORS, TOKEN_MAP}
    for name in tensors.shapes:
        if name not in known and not _BLOCK.fullmatch(name) and not _OUTPUT.fullmatch(name):
            if name.startswith(_PREFIX) and name.endswith(_BUFFER):
                continue
            raise CheckpointError(
                f"{tensors.path} has Hydra heads of an unknown kind: {name} has no place in {' or '.join(_ARCHS)}"
            )


def _width(tensors: HeadTensors, name: str) -> int:
    shape = tensors.shapes.get(name, ())
    return shape[1] if len(shape) == 2 else 0


def _config(tensors: HeadTensors, found: Mapping[str, Any]) -> dict[str, Any]:
    """config.json, where there is one; what it says of the heads must be what the tensors say.

    Raises:
        CheckpointError: it is not, or names an architecture that is not supported.
    """
    file = tensors.path / "config.json"
    config = read_json(file) if tensors.path.is_dir() and file.exists() else {}
    arch = config.get("hydra_head_arch", found["hydra_head_arch"])
    if arch not in _ARCHS:
        raise CheckpointError(f"{file}: hydra_head_arch {arch!r} is not supported; use one of {', '.join(_ARCHS)}")
    for name, value in found.items():
        if config.get(name, value) != value:
            raise CheckpointError(f"{file}: {name} is {config[name]!r}, the tensors say {value!r}; download it again")
    return config


def _outputs(
    tensors: HeadTensors, num_heads: int, full: tuple[int, int], token_map: npt.NDArray[int64] | None
) -> list[Linear] | None:
    """Output layer of every head with its bias, reduced to the draft vocabulary."""
    names: dict[tuple[int, str], str] = {}
    for name in tensors.shapes:
        if match := _OUTPUT.fullmatch(name):
            names[int(match[1]), match[2]] = name
    if not names:
        return None
    if {head for head, part in names if part == "weight"} != set(range(num_heads)):
        raise CheckpointError(f"{tensors.path} lacks output layers of its {num_heads} heads; download it again")
    return [
        Linear(
            tensors.output(names[head, "weight"], full, token_map),
            tensors.output(names[head, "bias"], full[:1], token_map) if (head, "bias") in names else None,
        )
        for head in range(num_heads)
    ]


def _prefix(tensors: HeadTensors, sizes: Mapping[str, int]) -> dict[str, Array] | None:
    if not any(name.startswith(_LAYER) for name in tensors.shapes):
        return None
    missing = [name for name in _PREFIX_TENSORS if name not in tensors.shapes]
    if missing:
        raise CheckpointError(f"{tensors.path} has no {missing[0]}; download it again")
    return {
        own: tensors.array(name, tuple(sizes[size] for size in shape), of="hidden, head or MLP size")
        for name, (own, shape) in _PREFIX_TENSORS.items()
    }
