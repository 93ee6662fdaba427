"""The metadata of a GGUF file to a DecoderConfig, with the constants that llama.cpp supplies itself."""

from typing import Any, Final, cast

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints.gguf_file import GgufFile
from seqrt.graphs.config import DecoderConfig, LayerKind
from seqrt.graphs.rope import RopeConfig, RopeKind

ARCHITECTURES: Final = ("llama", "qwen2", "qwen3", "gemma3", "gpt2")
ROPE_FACTORS: Final = "rope_freqs.weight"
_GEMMA_PATTERN: Final = 6  # five sliding layers, then a full one
_GEMMA_27B_LAYERS: Final = 62


def decoder_config(file: GgufFile) -> DecoderConfig:
    """The decoder that a GGUF file describes.

    Raises:
        CheckpointError: the file asks for something that is not supported, or contradicts itself.
    """
    try:
        return _Reader(file).config()
    except (ArithmeticError, TypeError, ValueError) as error:
        raise CheckpointError(f"the metadata of {file.path} make no sense ({error}); convert it again") from error


class _Reader:
    """Typed access to one architecture's metadata."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.architecture = str(file.metadata.get("general.architecture"))
        if self.architecture not in ARCHITECTURES:
            raise CheckpointError(
                f"architecture {self.architecture!r} is not supported; use one of {', '.join(ARCHITECTURES)}"
            )
        if file.metadata.get("split.count", 0) > 1:
            raise CheckpointError(
                f"{file.path} is one of several parts; join them first with `llama-gguf-split --merge`"
            )

    def get(self, key: str, default: Any = None) -> Any:
        """A number of this architecture; one that a list gives every layer alike counts as one."""
        value = self.file.metadata.get(f"{self.architecture}.{key}", default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise CheckpointError(f"{self.architecture}.{key} differs between layers, which is not supported")
            value = value[0]
        if value is not None and not isinstance(value, int | float):
            raise CheckpointError(f"{self.architecture}.{key} is {value!r}, expected a number; convert the model again")
        return value

    def need(self, key: str) -> Any:
        """A value that every file of this architecture has."""
        value = self.get(key)
        if value is None:
            raise CheckpointError(f"{self.file.path} has no {self.architecture}.{key}; convert the model again")
        return value

    def has(self, key: str) -> bool:
        """Whether the first layer has a tensor."""
        return f"blk.0.{key}" in self.file.tensors

    def config(self) -> DecoderConfig:
        """The whole description."""
        self._refuse()
        gpt2, gemma = self.architecture == "gpt2", self.architecture == "gemma3"
        hidden, num_heads = self.need("embedding_length"), self.need("attention.head_count")
        head_dim = self.get("attention.key_length", hidden // num_heads)
        if self.get("attention.value_length", head_dim) != head_dim:
            raise CheckpointError(f"{self.file.path} has values and keys of different widths, which is not supported")
        kinds = self._layer_kinds()
        epsilon = "attention.layer_norm_epsilon" if gpt2 else "attention.layer_norm_rms_epsilon"
        embedding = self.file.tensors.get("token_embd.weight")
        if embedding is None:
            raise CheckpointError(f"tensor token_embd.weight is missing from {self.file.path}; download it again")
        return DecoderConfig(
            vocab_size=embedding.shape[0],
            hidden_size=hidden,
            intermediate_size=self.need("feed_forward_length"),
            num_layers=self.need("block_count"),
            num_heads=num_heads,
            num_kv_heads=self.get("attention.head_count_kv", num_heads),
            head_dim=head_dim,
            max_positions=self.need("context_length"),
            norm="layer" if gpt2 else "rms",  # the converter has added Gemma's 1 to the weights
            norm_eps=self.need(epsilon),
            activation="gelu_tanh" if gpt2 or gemma else "silu",
            gated_mlp=not gpt2,
            qkv_bias=self.has("attn_qkv.bias") or self.has("attn_q.bias"),
            out_bias=self.has("attn_output.bias"),
            mlp_bias=self.has("ffn_down.bias"),
            qk_norm=self.has("attn_q_norm.weight"),
            post_norms=gemma,
            learned_positions=gpt2,
            tied_embeddings="output.weight" not in self.file.tensors,
            embedding_scale=hidden**0.5 if gemma else 1.0,
            attention_scale=self._attention_scale(head_dim, hidden // num_heads),
            layer_kinds=kinds,
            sliding_window=self.get("attention.sliding_window") if "sliding" in kinds else None,
            ropes={} if gpt2 else {kind: self._rope(kind, head_dim) for kind in dict.fromkeys(kinds)},
        )

    def _refuse(self) -> None:
        for key in ("expert_count", "attn_logit_softcapping", "final_logit_softcapping"):
            if self.get(key):
                raise CheckpointError(f"{self.architecture}.{key}={self.get(key)} is not supported")

    def _layer_kinds(self) -> tuple[LayerKind, ...]:
        num_layers: int = self.need("block_count")
        if f"blk.{num_layers - 1}.attn_norm.weight" not in self.file.tensors:
            raise CheckpointError(f"{self.file.path} has no layer {num_layers - 1} of {num_layers}; download it again")
        window = self.get("attention.sliding_window")
        kinds: list[LayerKind] = ["full"] * num_layers
        if window and self.architecture in ("llama", "gemma3"):
            kinds = ["sliding"] * num_layers
        if self.architecture == "gemma3":
            kinds[_GEMMA_PATTERN - 1 :: _GEMMA_PATTERN] = ["full"] * (num_layers // _GEMMA_PATTERN)
        return tuple(kinds)

    def _attention_scale(self, head_dim: int, hidden_per_head: int) -> float:
        """Gemma 3 27B alone scales by hidden / heads; llama.cpp too knows it by its number of layers."""
        is_27b = self.architecture == "gemma3" and self.need("block_count") == _GEMMA_27B_LAYERS
        return float((hidden_per_head if is_27b else head_dim) ** -0.5)

    def _rope(self, kind: LayerKind, head_dim: int) -> RopeConfig:
        dim = self.get("rope.dimension_count", head_dim)
        if dim != head_dim:
            raise CheckpointError(f"{self.architecture}.rope.dimension_count={dim}, but all {head_dim} must rotate")
        if self.architecture == "gemma3" and kind == "sliding":
            return RopeConfig("default", float(self.get("rope.freq_base_swa", 10000.0)), head_dim)
        theta = float(self.get("rope.freq_base", 10000.0))
        rope_kind, parameters = self._rope_scaling()
        return RopeConfig(rope_kind, theta, head_dim, parameters, self._rope_factors())

    def _rope_scaling(self) -> tuple[RopeKind, dict[str, float]]:
        kind = self.file.metadata.get(f"{self.architecture}.rope.scaling.type", "none")
        factor = float(self.get("rope.scaling.factor", self.get("rope.scale_linear", 1.0)))
        if kind == "none" and factor == 1.0:
            return "default", {}
        if kind in ("none", "linear"):
            return "linear", {"factor": factor}
        if kind != "yarn":
            return cast(RopeKind, kind), {}  # RopeConfig refuses it by name
        parameters = {
            "factor": factor,
            "original_max_position_embeddings": float(self.need("rope.scaling.original_context_length")),
        }
        for name in ("beta_fast", "beta_slow"):
            if self.get(f"rope.scaling.yarn_{name}") is not None:
                parameters[name] = float(self.get(f"rope.scaling.yarn_{name}"))
        return "yarn", parameters

    def _rope_factors(self) -> tuple[float, ...]:
        if ROPE_FACTORS not in self.file.tensors:
            return ()
        return tuple(self.file.tensor(ROPE_FACTORS).astype(float).tolist())
