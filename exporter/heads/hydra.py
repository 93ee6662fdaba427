"""Hydra heads: one graph a head, because each reads what the ones before guessed, and one for the prefix layer."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from seqrt.errors import CheckpointError
from seqrt.exporter.checkpoints.hydra import HydraWeights, Linear
from seqrt.exporter.heads import EMBEDDING, GUESSES, TOP_K, Array, Heads, base_output, draft_tokens, filled
from seqrt.exporter.parts import Part, random_input
from seqrt.exporter.weights import DecoderWeights
from seqrt.graphs.config import DecoderConfig
from seqrt.graphs.hydra import HydraHead, PrefixLayer, prefix_config
from seqrt.runtime.bundle import HeadInfo


def hydra_heads(name: str, heads: HydraWeights, weights: DecoderWeights) -> Heads:
    """One graph a head, and one for the prefix layer where there is one."""
    config = weights.checkpoint.config
    if heads.hidden_state_offset not in range(config.num_layers):
        raise CheckpointError(
            f"hidden_state_offset is {heads.hidden_state_offset}, the model has {config.num_layers} layers;"
            " use heads made for this model"
        )
    vocab_size = config.vocab_size if heads.token_map is None else len(heads.token_map)
    embedding = torch.from_numpy(weights.tensor(EMBEDDING)) if heads.is_grounded else None
    graphs = []
    for head, (inner, straight) in enumerate(heads.first):
        own = None if heads.outputs is None else heads.outputs[head]
        module = HydraHead(
            config.hidden_size,
            config.vocab_size,
            head + 1 if heads.is_grounded else 0,
            1 + len(heads.later[head]),
            vocab_size,
            min(TOP_K, vocab_size),
            has_bias=own is not None and own.bias is not None,
            embedding_scale=config.embedding_scale,
        )
        state = {
            "first": np.concatenate([inner.weight.T, straight.weight.T], axis=1),
            "first_bias": np.concatenate([_bias(inner), _bias(straight)]),
            "output": (base_output(heads.token_map, weights) if own is None else own.weight).T,
            "tokens": draft_tokens(heads.token_map, vocab_size),
        }
        if own is not None and own.bias is not None:
            state["output_bias"] = own.bias
        for layer, block in enumerate(heads.later[head]):
            state |= {f"later.{layer}": block.weight.T, f"later_biases.{layer}": _bias(block)}
        paths = torch.arange(2 * (head + 1)).view(2, head + 1) % config.vocab_size
        shared = {"tokens": f"{name}.tokens"} | ({EMBEDDING: EMBEDDING} if heads.is_grounded else {})
        graphs.append(
            Part(
                f"{name}.{head}",
                filled(module, state, embedding),
                {"state": random_input(1, config.hidden_size), "path": paths},
                GUESSES,
                symbols={"path": {0: "P"}},
                shared=shared | ({"output": f"{name}.output"} if own is None else {}),
            )
        )
    info = HeadInfo(
        name=name,
        kind="hydra",
        num_heads=heads.num_heads,
        top_k=min(TOP_K, vocab_size),
        graphs=tuple(graph.role for graph in graphs),
        hidden_state_offset=heads.hidden_state_offset,
    )
    if heads.prefix is None:
        return Heads(info, graphs)
    graphs.append(_prefix_graph(f"{name}.prefix", heads.prefix, config))
    return Heads(replace(info, prefix=f"{name}.prefix"), graphs)


def _prefix_graph(role: str, tensors: Mapping[str, Array], base: DecoderConfig) -> Part:
    config = prefix_config(base)
    part = "layer.attention."
    query = tensors[f"{part}q.weight"] * np.float32(config.attention_scale)
    keys = np.concatenate([query, tensors[f"{part}k.weight"], tensors[f"{part}v.weight"]])
    state = {name: tensors[name] for name in ("layer.attention_norm.weight", "layer.mlp_norm.weight", "norm.weight")}
    state |= {
        f"{part}qkv.weight": keys.T,
        f"{part}o.weight": tensors[f"{part}o.weight"].T,
        "layer.mlp.up.weight": np.concatenate([tensors["layer.mlp.gate.weight"], tensors["layer.mlp.up.weight"]]).T,
        "layer.mlp.down.weight": tensors["layer.mlp.down.weight"].T,
    }
    cache = (1, config.num_kv_heads, 32, config.head_dim)
    return Part(
        role,
        filled(PrefixLayer(config), state),
        {
            "hidden": random_input(3, config.hidden_size),
            "past_len": torch.tensor([4]),
            "past_key": random_input(*cache),
            "past_value": random_input(*cache),
        },
        ("state", "present_key", "present_value"),
        {"hidden": {0: "N"}, "past_key": {2: "C"}, "past_value": {2: "C"}},
    )


def _bias(linear: Linear) -> Array:
    return np.zeros(len(linear.weight), np.float32) if linear.bias is None else linear.bias
