"""The shape of a causal decoder: what a checkpoint reader finds out and the decoder graph is built from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from seqrt.errors import CheckpointError
from seqrt.graphs.rope import RopeConfig

NormKind = Literal["rms", "rms_plus_one", "layer"]
Activation = Literal["silu", "gelu", "gelu_tanh"]
LayerKind = Literal["full", "sliding"]

ACTIVATIONS: Final[tuple[str, ...]] = get_args(Activation)
_SIZES: Final = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_layers",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "max_positions",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """Everything that tells one decoder family, and one model of it, from another.

    Attributes:
        head_dim: width of one head; num_heads * head_dim need not be hidden_size.
        max_positions: longest sequence that the model was made for.
        norm: "rms_plus_one" multiplies by weight + 1 (Gemma), "layer" also subtracts the mean (GPT-2).
        gated_mlp: down(act(gate(x)) * up(x)) when true, down(act(up(x))) when false.
        qk_norm: each head of q and k is normalised, with `norm`, before rotation.
        post_norms: the outputs of attention and of the MLP are normalised too (Gemma 3).
        learned_positions: a table of `max_positions` rows is added to the embeddings (GPT-2).
        embedding_scale: multiplies the token embeddings.
        attention_scale: multiplies q @ k^T.
        layer_kinds: "sliding" layers see the last `sliding_window` positions, themselves included.
        ropes: rotation of each kind of layer that occurs; empty with learned positions.
        reads_pad: token `vocab_size` is PAD, which has an embedding of its own and is never said (lexical units).

    Raises:
        CheckpointError: the values contradict one another.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    norm: NormKind
    norm_eps: float
    activation: Activation
    gated_mlp: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    learned_positions: bool = False
    tied_embeddings: bool
    embedding_scale: float = 1.0
    attention_scale: float
    layer_kinds: tuple[LayerKind, ...]
    sliding_window: int | None = None
    ropes: Mapping[LayerKind, RopeConfig] = field(default_factory=dict)
    reads_pad: bool = False

    def __post_init__(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if value <= 0:
                raise CheckpointError(f"{name} must be positive, got {value}; check the model's config")
        if self.num_heads % self.num_kv_heads:
            raise CheckpointError(
                f"{self.num_heads} attention heads cannot share {self.num_kv_heads} key-value heads evenly"
            )
        if len(self.layer_kinds) != self.num_layers:
            raise CheckpointError(f"layer types name {len(self.layer_kinds)} layers, the model has {self.num_layers}")
        if "sliding" in self.layer_kinds and (self.sliding_window or 0) <= 0:
            raise CheckpointError(f"sliding layers need a positive sliding_window, got {self.sliding_window}")
        unrotated = set() if self.learned_positions else set(self.layer_kinds) - set(self.ropes)
        if unrotated:
            raise CheckpointError(f"no RoPE parameters for {', '.join(sorted(unrotated))} layers")
