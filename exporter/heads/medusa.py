"""Medusa heads: one graph for all of them."""

import numpy as np

from seqrt.exporter.checkpoints.medusa import MedusaWeights
from seqrt.exporter.heads import GUESSES, TOP_K, Heads, base_output, draft_tokens, filled
from seqrt.exporter.parts import Part, random_input
from seqrt.exporter.weights import DecoderWeights
from seqrt.graphs.medusa import MedusaHeads
from seqrt.runtime.bundle import HeadInfo


def medusa_heads(name: str, heads: MedusaWeights, weights: DecoderWeights) -> Heads:
    """Heads that read one row each and know nothing of one another."""
    if heads.outputs is None:
        output = base_output(heads.token_map, weights).T
    else:
        output = np.array([rows.T for rows in heads.outputs])
    vocab_size = output.shape[-1]
    module = MedusaHeads(
        heads.hidden_size,
        heads.num_heads,
        heads.num_layers,
        vocab_size,
        min(TOP_K, vocab_size),
        own_outputs=output.ndim == 3,
    )
    state = {
        "first": np.concatenate([layers[0][0].T for layers in heads.blocks], axis=1),
        "output": output,
        "tokens": draft_tokens(heads.token_map, vocab_size),
    }
    zero = np.zeros(heads.hidden_size, np.float32)
    for layer in range(heads.num_layers):
        biases = [layers[layer][1] for layers in heads.blocks]
        state[f"biases.{layer}"] = np.array([zero if bias is None else bias for bias in biases])[:, None]
    for layer in range(1, heads.num_layers):
        state[f"later.{layer - 1}"] = np.array([layers[layer][0].T for layers in heads.blocks])
    info = HeadInfo(name=name, kind="medusa", num_heads=heads.num_heads, top_k=module.top_k, graphs=(name,))
    graph = Part(name, filled(module, state), {"hidden": random_input(1, heads.hidden_size)}, GUESSES)
    return Heads(info, [graph])
