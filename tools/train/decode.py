"""Batched decoding with the base model, greedy or drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from tools.train.base import Cache, Llama
from tools.train.states import Array

Pick = Callable[[torch.Tensor], torch.Tensor]
"""How the next tokens are chosen from logits."""


def greedy(logits: torch.Tensor) -> torch.Tensor:
    """The likeliest token of each row ``[B, V]`` -> ``[B]``."""
    return logits.argmax(-1)


def sampler(temperature: float, seed: int) -> Pick:
    """A choice that draws from the softmax of ``logits / temperature``."""
    generator = torch.Generator().manual_seed(seed)

    def pick(logits: torch.Tensor) -> torch.Tensor:
        noise = torch.empty(logits.shape).exponential_(generator=generator).log()
        return (logits.float() / temperature - noise).argmax(-1)  # Gumbel-max

    return pick


@torch.inference_mode()
def continuations(
    model: Llama, prompts: Sequence[Sequence[int]], num_new: int, stop: set[int], pick: Pick = greedy
) -> tuple[list[list[int]], list[Array]]:
    """Continue a batch of prompts, each up to and with its stop token, by at most ``num_new`` tokens.

    Returns:
        The new tokens of each prompt, and the hidden states ``[prompt + new - 1, H]`` (float16) of all rows: the last
        ``new`` of them are those from which the new tokens were chosen.
    """
    width = max(map(len, prompts))
    padding = torch.tensor([width - len(prompt) for prompt in prompts])
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    cache = model.cache(len(prompts), width + num_new)
    rows = list(range(len(prompts)))
    done: list[list[int]] = [[] for _ in prompts]
    kept: list[list[Array]] = [[] for _ in prompts]
    for step in range(num_new):
        start = 0 if step == 0 else width + step - 1
        hidden = model.hidden(ids, padding, cache, start)
        chosen = pick(torch.nn.functional.linear(hidden[:, -1], model.head))
        for row, token, states in zip(rows, chosen.tolist(), hidden.half().numpy(), strict=True):
            if not (done[row] and done[row][-1] in stop):
                done[row].append(token)
                kept[row].append(states if step else states[width - len(prompts[row]) :].copy())
        alive = torch.tensor([i for i, row in enumerate(rows) if done[row][-1] not in stop], dtype=torch.int64)
        if len(alive) == 0:
            break
        ids = chosen[:, None]
        if len(alive) <= 0.75 * len(rows):  # drop finished rows now and then: a copy of the cache costs a step
            rows, padding, ids = [rows[i] for i in alive.tolist()], padding[alive], ids[alive]
            cache = _select(cache, alive)
    return done, [np.concatenate(each) for each in kept]


def _select(cache: Cache, rows: torch.Tensor) -> Cache:
    return [(key[rows], value[rows]) for key, value in cache]
