"""Train the prefix layer of Hydra++ (arXiv 2402.05109, section 4) together with Hydra heads.

The heads begin as they were trained without the layer, and the layer as one that adds nothing; from there both are
trained on whole texts, prompts included, against what the base thought of each token (the paper's teacher loss).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from tools.train import features
from tools.train.answers import Answer
from tools.train.base import Llama
from tools.train.features import Rows
from tools.train.heads import PrefixHydraHeads, draft_labels, loss
from tools.train.optimise import Optimisation
from tools.train.recipe import Trained
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]

BATCH_TOKENS = 2048
"""Rows of a batch, padding included."""


def batches(lengths: Sequence[int], seed: int) -> list[list[int]]:
    """Texts of like length together, at most BATCH_TOKENS rows with padding, in random order."""
    found: list[list[int]] = [[]]
    for text in sorted(range(len(lengths)), key=lambda text: lengths[text]):
        if found[-1] and lengths[text] * (len(found[-1]) + 1) > BATCH_TOKENS:
            found.append([])
        found[-1].append(text)
    random.Random(seed).shuffle(found)
    return found


def batch_loss(
    heads: PrefixHydraHeads, states: Sequence[Tensor], answers: Sequence[Answer], token_map: Tensor, model: Llama
) -> Tensor:
    """The sum of all heads' losses on a batch of texts, whose states are ``[length, H]`` each."""
    made, tokens = heads.run(states), [torch.tensor(answer.answer) for answer in answers]
    inner = [slice(len(rows) - len(each), len(rows)) for rows, each in zip(states, tokens, strict=True)]
    after = torch.cat([made[text, part] for text, part in enumerate(inner)])
    rows = Rows(
        torch.cat([each[part] for each, part in zip(states, inner, strict=True)]),
        torch.cat(tokens),
        torch.cat([features.later_tokens(each, len(heads.blocks)) for each in tokens]),
    )
    labels, output = draft_labels(rows.future, token_map, model.vocab_size), model.head[token_map]
    total = after.new_zeros(())
    for head in range(len(heads.blocks)):
        part = (labels[:, head] >= 0).nonzero()[:, 0]
        if len(part):
            state = heads(after[part], rows.path(part, head, model.embed), head)
            total = total + loss(state, labels[part, head], output, rows.teacher(part, head))
    return total


def train(model: Llama, answers: Sequence[Answer], work: Path, start: Trained) -> Trained:
    """Train the layer, and the heads of ``start`` further, on the answers not held out; go on where it was stopped."""
    recipe = start.recipe
    chosen = [answer for answer in answers if not features.is_held_out(answer, recipe.held_out)]
    states = features.texts(chosen, work / "states")
    torch.manual_seed(recipe.seed)
    inner_size = model.layers[0]["down"].shape[1]
    heads = PrefixHydraHeads(recipe.num_heads, recipe.num_layers, model.shape, inner_size)
    heads.blocks.load_state_dict(start.heads.blocks.state_dict())
    heads.fit_norm(states[:100])
    lengths = [len(rows) for rows in states]
    per_epoch = len(batches(lengths, 0))
    total = per_epoch * recipe.prefix_epochs
    file = work / "hydra-prefix.pt"
    run = Optimisation(heads, total, recipe.prefix_learning_rate, recipe.warm_up, file, str(recipe))
    with tqdm(total=total, initial=run.step, desc="prefix layer and heads", unit="step", mininterval=5) as bar:
        try:
            while run.step < total:
                epoch, first = divmod(run.step, per_epoch)
                for batch in batches(lengths, recipe.seed + epoch)[first:]:
                    texts = [states[text] for text in batch]
                    value = batch_loss(heads, texts, [chosen[text] for text in batch], start.token_map, model)
                    run.descend(value)
                    bar.update()
                    bar.set_postfix(epoch=epoch + 1, loss=f"{value.item():.3f}", refresh=False)
                run.save()
        except KeyboardInterrupt:
            run.save()
            raise
    return replace(start, heads=heads, steps=[*start.steps, total])
