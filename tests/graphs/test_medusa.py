"""Medusa heads, run eagerly, against the paper's formula written head by head."""

import pytest
import torch
from torch import Tensor

from seqrt.graphs.medusa import MedusaHeads

HIDDEN, HEADS, TOP = 12, 3, 4


def randomized(num_layers: int, vocab_size: int, *, own_outputs: bool) -> MedusaHeads:
    heads = MedusaHeads(HIDDEN, HEADS, num_layers, vocab_size, TOP, own_outputs=own_outputs)
    generator = torch.Generator().manual_seed(num_layers)
    with torch.no_grad():
        for name, parameter in heads.named_parameters():
            if name == "tokens":
                parameter.copy_(torch.randperm(1000, generator=generator)[:vocab_size])
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return heads


def reference(heads: MedusaHeads, hidden: Tensor, head: int) -> Tensor:
    """Log-probabilities `[Vd]` of one head: residual blocks h + SiLU(W h + b), then its output layer."""
    state, z = heads.state_dict(), hidden[0]
    num_layers = sum(name.startswith("biases.") for name in state)
    for layer in range(num_layers):
        if layer == 0:
            weight = state["first"][:, head * HIDDEN : (head + 1) * HIDDEN]
        else:
            weight = state[f"later.{layer - 1}"][head]
        z = z + torch.nn.functional.silu(weight.T @ z + state[f"biases.{layer}"][head, 0])
    output = state["output"]
    logits: Tensor = (output[head] if output.ndim == 3 else output).T @ z
    return logits.log_softmax(0)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("own_outputs", [False, True])
def test_candidates_of_every_head(num_layers: int, own_outputs: bool) -> None:
    heads = randomized(num_layers, 30, own_outputs=own_outputs)
    hidden = torch.randn(1, HIDDEN, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        tokens, log_probabilities = heads(hidden)
    assert tokens.shape == log_probabilities.shape == (HEADS, TOP)
    assert tokens.dtype == torch.int64
    for head in range(HEADS):
        expected = reference(heads, hidden, head)
        best = expected.argsort(descending=True)[:TOP]
        torch.testing.assert_close(log_probabilities[head], expected[best], atol=1e-5, rtol=0)
        assert tokens[head].tolist() == heads.tokens[best].tolist(), "ids are those of the base's vocabulary"


def test_heads_without_weights_repeat_what_the_base_says() -> None:
    """Zero blocks leave the hidden state alone: every head gives the base's own logits."""
    heads = MedusaHeads(HIDDEN, HEADS, 1, 20, TOP, own_outputs=False)
    hidden, output = torch.randn(1, HIDDEN), torch.randn(HIDDEN, 20)
    with torch.no_grad():
        heads.output.copy_(output)
        heads.tokens.copy_(torch.arange(20))
        tokens, log_probabilities = heads(hidden)
    base = (hidden @ output).log_softmax(-1).topk(TOP)
    assert tokens.tolist() == base.indices.tolist() * HEADS
    torch.testing.assert_close(log_probabilities, base.values.expand(HEADS, TOP), atol=1e-6, rtol=0)
