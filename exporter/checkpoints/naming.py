"""The canonical tensors of a decoder, and how a file format's names are made from theirs."""

from collections.abc import Mapping

from seqrt.graphs.config import DecoderConfig

Shape = tuple[int, ...]


def canonical_shapes(config: DecoderConfig) -> dict[str, Shape]:
    """Name and shape of every weight that a model of this config has, in order of use."""
    hidden = config.hidden_size
    shapes: dict[str, Shape] = {"embed.weight": (config.vocab_size, hidden)}
    if config.learned_positions:
        shapes["position.weight"] = (config.max_positions, hidden)
    for index in range(config.num_layers):
        shapes.update({f"layers.{index}.{name}": shape for name, shape in _layer_shapes(config).items()})
    shapes.update(_norm_shapes(config, "norm", hidden))
    if not config.tied_embeddings:
        shapes["head.weight"] = (config.vocab_size, hidden)
    return shapes


def source_name(name: str, modules: Mapping[str, str], layer: str) -> str:
    """A file's name of canonical tensor `name`.

    Args:
        name: canonical name.
        modules: the file's name of each module, under the canonical one without its layer ("attention.q").
        layer: what the file puts before a layer's modules, with `{}` for the index.
    """
    module, _, leaf = name.rpartition(".")
    if not module.startswith("layers."):
        return f"{modules[module]}.{leaf}"
    _, index, module = module.split(".", 2)
    return f"{layer.format(index)}{modules[module]}.{leaf}"


def _layer_shapes(config: DecoderConfig) -> dict[str, Shape]:
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes = _norm_shapes(config, "attention_norm", hidden)
    for name, rows in (("q", queries), ("k", keys), ("v", keys)):
        shapes.update(_linear_shapes(f"attention.{name}", (rows, hidden), bias=config.qkv_bias))
    if config.qk_norm:
        shapes.update(_norm_shapes(config, "attention.q_norm", config.head_dim))
        shapes.update(_norm_shapes(config, "attention.k_norm", config.head_dim))
    shapes.update(_linear_shapes("attention.o", (hidden, queries), bias=config.out_bias))
    if config.post_norms:
        shapes.update(_norm_shapes(config, "attention_post_norm", hidden))
    shapes.update(_norm_shapes(config, "mlp_norm", hidden))
    for name in ("gate", "up") if config.gated_mlp else ("up",):
        shapes.update(_linear_shapes(f"mlp.{name}", (inner, hidden), bias=config.mlp_bias))
    shapes.update(_linear_shapes("mlp.down", (hidden, inner), bias=config.mlp_bias))
    if config.post_norms:
        shapes.update(_norm_shapes(config, "mlp_post_norm", hidden))
    return shapes


def _norm_shapes(config: DecoderConfig, name: str, width: int) -> dict[str, Shape]:
    leaves = ("weight", "bias") if config.norm == "layer" else ("weight",)
    return {f"{name}.{leaf}": (width,) for leaf in leaves}


def _linear_shapes(name: str, shape: tuple[int, int], *, bias: bool) -> dict[str, Shape]:
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})
