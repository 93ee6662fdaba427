"""Medusa heads over a reduced vocabulary: what they compute, their loss, and how often they are right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import cast

import torch
from tools.train.answers import Answer
from tools.train.features import Rows
from torch import Tensor, nn
from torch.nn import functional

TOP_RANKS = 10
"""Ranks of a head's guesses that are measured: as many as a static tree branches into."""


class Heads(nn.Module):
    """Residual blocks of every head, before the shared output layer."""

    def __init__(self, num_heads: int, num_layers: int, hidden_size: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(num_layers)) for _ in range(num_heads)
        )
        for parameter in self.parameters():
            if parameter.ndim == 2:  # at the start a head says what the base says
                nn.init.zeros_(parameter)

    def forward(self, hidden: Tensor, head: int) -> Tensor:
        """States ``[N, H]`` of the base -> states ``[N, H]`` of one head."""
        state = hidden
        for layer in cast("nn.ModuleList", self.blocks[head]):
            state = state + functional.silu(layer(state))
        return state


def draft_vocabulary(answers: Sequence[Answer], size: int) -> Tensor:
    """The ``size`` most frequent tokens of the answers, in falling order; ties by the prompts, then by id."""
    said = Counter(token for answer in answers for token in answer.answer)
    read = Counter(token for answer in answers for token in answer.prompt)
    ranked = sorted(said.keys() | read.keys(), key=lambda token: (-said[token], -read[token], token))
    return torch.tensor(ranked[:size])


def draft_labels(future: Tensor, token_map: Tensor, vocab_size: int) -> Tensor:
    """Token ids ``[N, K]`` as indices into ``token_map``; -1 stays, a token outside the map becomes -2."""
    index = torch.full((vocab_size + 1,), -2)
    index[token_map] = torch.arange(len(token_map))
    index[-1] = -1
    return index[future]


def loss(state: Tensor, labels: Tensor, output: Tensor) -> Tensor:
    """Cross-entropy of one head's states ``[N, H]`` against ``labels`` ``[N]``; ``output`` is ``[Vd, H]``."""
    return functional.cross_entropy(functional.linear(state.to(output.dtype), output).float(), labels)


@torch.inference_mode()
def rank_accuracy(heads: Heads, rows: Rows, labels: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """How often the guess of each rank is right, and the rank of the right token at every position.

    Returns:
        Shares ``[K, TOP_RANKS]`` of the positions at which the answer goes on that far (a token outside the
        draft vocabulary counts as missed), and ranks ``[N, K]``, TOP_RANKS where missed or past the end.
    """
    ranks = torch.full(labels.shape, TOP_RANKS)
    for part in torch.split(torch.arange(len(labels)), 1024):
        for k in range(labels.shape[1]):
            state = heads(rows.hidden[part].float(), k)
            top = functional.linear(state.to(output.dtype), output).topk(TOP_RANKS).indices
            hit = top == labels[part, k, None]
            ranks[part, k] = torch.where(hit.any(-1), hit.to(torch.int8).argmax(-1), TOP_RANKS)
    inside = (labels != -1).sum(0)
    counts = torch.stack([(ranks == rank).sum(0) for rank in range(TOP_RANKS)], dim=1)
    return counts / inside[:, None], ranks
