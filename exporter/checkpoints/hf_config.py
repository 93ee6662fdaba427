"""A Hugging Face config.json to a DecoderConfig, through the normalisation of transformers and optimum."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

from optimum.utils.normalized_config import NormalizedTextConfig
from transformers import AutoConfig
from transformers.utils import logging

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints.reading import one_line, read_json
from seqrt.graphs.config import ACTIVATIONS, Activation, DecoderConfig, LayerKind, NormKind
from seqrt.graphs.rope import RopeConfig, RopeKind

MODEL_TYPES: Final = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma3ForCausalLM": "gemma3_text",
    "GPT2LMHeadModel": "gpt2",
}
_ACTIVATION_NAMES: Final[dict[str, Activation]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_LAYER_KINDS: Final[dict[str, LayerKind]] = {"full_attention": "full", "sliding_attention": "sliding"}
_REFUSED: Final = (  # each changes the arithmetic, and no graph of ours computes it
    "add_cross_attention",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "quantization_config",
    "scale_attn_by_inverse_layer_idx",
    "use_bidirectional_attention",
)


def read_config(directory: Path) -> tuple[str, Any]:
    """Model type and normalised transformers config of a model directory; runs no code of the checkpoint.

    Raises:
        CheckpointError: config.json is missing, unreadable, or of an architecture that is not supported.
    """
    raw = read_json(directory / "config.json")
    if "auto_map" in raw:
        raise CheckpointError(f"{directory} needs its own Python code (auto_map), which seqrt never runs")
    model_type = _model_type(raw)
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # transformers raises errors of many libraries here, some of their own making
        raise CheckpointError(f"{directory / 'config.json'} is not valid: {one_line(error)}") from error
    return model_type, config


def decoder_config(model_type: str, config: Any) -> DecoderConfig:
    """The decoder that a normalised transformers config describes.

    Raises:
        CheckpointError: the config asks for something that is not supported, or contradicts itself.
    """
    for name in _REFUSED:
        if getattr(config, name, None):
            raise CheckpointError(f"{name}={getattr(config, name)} is not supported for {model_type} models")
    common = NormalizedTextConfig(config)
    num_heads, hidden = common.num_attention_heads, common.hidden_size
    head_dim = getattr(config, "head_dim", None) or hidden // num_heads
    layer_kinds = _layer_kinds(model_type, config, common.num_layers)
    gpt2, gemma = model_type == "gpt2", model_type == "gemma3_text"
    bias = bool(getattr(config, "attention_bias", gpt2))
    return DecoderConfig(
        vocab_size=common.vocab_size,
        hidden_size=hidden,
        intermediate_size=(config.n_inner or 4 * hidden) if gpt2 else config.intermediate_size,
        num_layers=common.num_layers,
        num_heads=num_heads,
        num_kv_heads=getattr(config, "num_key_value_heads", None) or num_heads,
        head_dim=head_dim,
        max_positions=config.max_position_embeddings,
        norm=_norm(model_type),
        norm_eps=config.layer_norm_epsilon if gpt2 else config.rms_norm_eps,
        activation=_activation(config),
        gated_mlp=not gpt2,
        qkv_bias=bias or model_type == "qwen2",
        out_bias=bias,
        mlp_bias=bool(getattr(config, "mlp_bias", gpt2)),
        qk_norm=gemma or model_type == "qwen3",
        post_norms=gemma,
        learned_positions=gpt2,
        tied_embeddings=bool(config.tie_word_embeddings),
        embedding_scale=hidden**0.5 if gemma else 1.0,
        attention_scale=_attention_scale(config, head_dim),
        layer_kinds=layer_kinds,
        sliding_window=config.sliding_window if "sliding" in layer_kinds else None,
        ropes={} if gpt2 else {kind: _rope(config, kind, head_dim) for kind in dict.fromkeys(layer_kinds)},
    )


def _model_type(raw: Mapping[str, Any]) -> str:
    """Supported model type of a raw config; heads trained into a model rename its class to Medusa..."""
    architectures, model_type = raw.get("architectures"), str(raw.get("model_type"))
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else None
    if architecture is None or architecture.startswith("Medusa"):
        if model_type in MODEL_TYPES.values():
            return model_type
        architecture = architecture or model_type
    if MODEL_TYPES.get(architecture) != model_type:
        supported = ", ".join(MODEL_TYPES)
        raise CheckpointError(
            f"architecture {architecture!r} (model_type {model_type!r}) is not supported; use one of {supported}"
        )
    return MODEL_TYPES[architecture]


def _norm(model_type: str) -> NormKind:
    kinds: dict[str, NormKind] = {"gpt2": "layer", "gemma3_text": "rms_plus_one"}
    return kinds.get(model_type, "rms")


def _activation(config: Any) -> Activation:
    fields = ("hidden_activation", "hidden_act", "activation_function")
    name = next(getattr(config, field) for field in fields if getattr(config, field, None))
    if name not in _ACTIVATION_NAMES:
        raise CheckpointError(f"activation {name!r} is not supported; use one of {', '.join(ACTIVATIONS)}")
    return _ACTIVATION_NAMES[name]


def _attention_scale(config: Any, head_dim: int) -> float:
    if not getattr(config, "scale_attn_weights", True):
        return 1.0
    return float(getattr(config, "query_pre_attn_scalar", head_dim) ** -0.5)


def _layer_kinds(model_type: str, config: Any, num_layers: int) -> tuple[LayerKind, ...]:
    if model_type in ("llama", "mistral", "gpt2"):
        is_sliding = model_type == "mistral" and config.sliding_window
        kinds: list[LayerKind] = ["sliding" if is_sliding else "full"]
        return tuple(kinds * num_layers)
    unknown = sorted(set(config.layer_types) - _LAYER_KINDS.keys())
    if unknown:
        raise CheckpointError(f"layer type {unknown[0]!r} is not supported; use one of {', '.join(_LAYER_KINDS)}")
    return tuple(_LAYER_KINDS[str(kind)] for kind in config.layer_types)


def _rope(config: Any, kind: LayerKind, head_dim: int) -> RopeConfig:
    """Rotation of one kind of layer; Gemma 3 nests its parameters by layer type, the others do not."""
    parameters = dict(config.rope_parameters)
    parameters = dict(parameters.get(f"{kind}_attention", parameters))
    rope_type, theta = parameters.pop("rope_type", "default"), parameters.pop("rope_theta")
    if parameters.pop("partial_rotary_factor", None) not in (None, 1.0):
        raise CheckpointError("partial_rotary_factor is not supported; every dimension of a head must rotate")
    if rope_type == "yarn" and parameters.get("factor") is None:
        parameters["factor"] = config.max_position_embeddings / parameters["original_max_position_embeddings"]
    numbers = {name: float(value) for name, value in parameters.items() if isinstance(value, int | float)}
    return RopeConfig(cast(RopeKind, rope_type), float(theta), head_dim, numbers)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the advice that transformers gives to its own users away from ours."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
