"""Medusa draft heads (arXiv 2401.10774, section 2.1.1): head k guesses the token k + 2 places after a row.

Head k is a stack of residual blocks z = h + SiLU(h W + b) on the final hidden state h of the last accepted row and
an output layer: its own, the base model's, or some rows of it (a reduced draft vocabulary).
"""

import torch
from torch import Tensor, nn

from seqrt.graphs.ops import log_sum_exp


class MedusaHeads(nn.Module):
    """All heads at once: `[1, H]` to candidates and their log-probabilities, `[heads, k]` each.

    Args:
        hidden_size: H.
        num_heads, num_layers: heads, and residual blocks of each.
        vocab_size: rows of the output layer, Vd.
        top_k: candidates of each head, best first.
        own_outputs: each head has an output layer of its own.
    """

    def __init__(
        self, hidden_size: int, num_heads: int, num_layers: int, vocab_size: int, top_k: int, *, own_outputs: bool
    ) -> None:
        super().__init__()
        self.num_heads, self.top_k = num_heads, top_k
        # All heads read the same row, so the first blocks of all are a single product.
        self.first = nn.Parameter(torch.zeros(hidden_size, num_heads * hidden_size))
        # One parameter a layer: slicing a larger one would cost a node of the graph each.
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(num_heads, 1, hidden_size)) for _ in range(num_layers))
        self.later = nn.ParameterList(
            nn.Parameter(torch.zeros(num_heads, hidden_size, hidden_size)) for _ in range(num_layers - 1)
        )
        shape = (num_heads, hidden_size, vocab_size) if own_outputs else (hidden_size, vocab_size)
        self.output = nn.Parameter(torch.zeros(shape))
        self.tokens = nn.Parameter(torch.zeros(vocab_size, dtype=torch.int64), requires_grad=False)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """`hidden` float32 `[1, H]` to token ids int64 and log-probabilities float32, `[heads, k]`."""
        hidden = hidden.to(self.first.dtype)
        z = (hidden @ self.first).view(self.num_heads, 1, -1) + self.biases[0]
        z = hidden[None] + nn.functional.silu(z)
        for weight, bias in zip(self.later, list(self.biases)[1:], strict=True):
            z = z + nn.functional.silu(z @ weight + bias)
        logits = (z @ self.output)[:, 0].float()
        top = torch.topk(logits, self.top_k)
        return self.tokens[top.indices], top.values - log_sum_exp(logits, top.values[:, :1])
