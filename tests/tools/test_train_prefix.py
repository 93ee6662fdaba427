"""Hydra++'s prefix layer: starts as nothing, learns, goes on where it was stopped, and is what the exporter reads."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tools.train import features, fit, prefix, zoo
from tools.train.answers import Answer
from tools.train.base import Llama
from tools.train.heads import PrefixHydraHeads, draft_vocabulary
from tools.train.recipe import Recipe, Trained

from seqrt.exporter.checkpoints.head_tensors import open_heads
from seqrt.exporter.checkpoints.hydra import read_hydra

RECIPE = Recipe(kind="hydra", num_heads=2, draft_vocab=30, epochs=1, batch=64, held_out=0.2, prefix_epochs=3)


@pytest.fixture
def group() -> list[Answer]:
    """Prompts and answers of different lengths, drawn."""
    rng = random.Random(0)
    rows = []
    for index in range(40):
        text = [rng.randrange(3, 40) for _ in range(rng.randrange(8, 30))]
        rows.append(Answer(f"a-{index}", "t", 0, tuple(text[:4]), tuple(text[4:]), ""))
    return rows


@pytest.fixture
def start(base: Llama, group: list[Answer], tmp_path: Path) -> Trained:
    """Hydra heads after an epoch."""
    features.build(base, group, tmp_path / "states")
    return fit.train_all(base, group, tmp_path, RECIPE)


def fresh(base: Llama) -> PrefixHydraHeads:
    torch.manual_seed(0)
    return PrefixHydraHeads(2, 1, base.shape, 32)


def test_an_untrained_layer_changes_nothing_but_the_norm(base: Llama, group: list[Answer], tmp_path: Path) -> None:
    features.build(base, group, tmp_path)
    states = features.texts(group, tmp_path)
    heads = fresh(base)
    heads.fit_norm(states)
    for before, after in zip(states, heads.states(states), strict=True):
        size = before.float().square().mean(1, keepdim=True).sqrt()
        torch.testing.assert_close(
            after.float() / heads.layer.norm.weight[0], before.float() / size, atol=4e-3, rtol=4e-3
        )
    sizes = torch.cat([each.float().square().mean(1).sqrt() for each in states])
    assert heads.layer.norm.weight[0].item() == pytest.approx(sizes.mean().item(), rel=1e-5)


def test_padding_and_what_comes_after_change_no_state(base: Llama) -> None:
    heads = fresh(base)
    torch.nn.init.normal_(heads.layer.layers[0].self_attn.o_proj.weight)
    texts = [torch.randn(length, 24) for length in (5, 9, 2)]
    together = heads.run(texts)
    for index, text in enumerate(texts):
        torch.testing.assert_close(together[index, : len(text)], heads.run([text])[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(heads.run([text[:2]])[0], together[index, :2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", [0, 1])
def test_batches_hold_every_text_once_and_little_padding(seed: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randrange(1, 1500) for _ in range(200)]
    made = prefix.batches(lengths, seed)
    assert sorted(text for batch in made for text in batch) == list(range(200))
    for batch in made:
        assert len(batch) == 1 or max(lengths[text] for text in batch) * len(batch) <= prefix.BATCH_TOKENS


def test_training_lowers_the_loss_and_goes_on_where_it_was_stopped(
    base: Llama, group: list[Answer], start: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix, "BATCH_TOKENS", 120)
    whole = prefix.train(base, group, tmp_path, start).heads
    assert isinstance(whole, PrefixHydraHeads)
    (tmp_path / "hydra-prefix.pt").rename(tmp_path / "whole.pt")
    real, calls = prefix.batch_loss, iter(range(1000))

    def interrupted(*args: Any) -> torch.Tensor:
        if next(calls) == 9:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(prefix, "batch_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prefix.train(base, group, tmp_path, start)
    monkeypatch.setattr(prefix, "batch_loss", real)
    parts = prefix.train(base, group, tmp_path, start)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.heads.state_dict()[name], tensor, rtol=0, atol=0)
    chosen = [answer for answer in group if not features.is_held_out(answer, 0.2)]
    states = features.texts(chosen, tmp_path / "states")
    before = fresh(base)
    before.blocks.load_state_dict(start.heads.blocks.state_dict())
    before.fit_norm(states)
    old, new = (real(heads, states, chosen, start.token_map, base) for heads in (before, whole))
    assert new < 0.98 * old
    assert parts.steps[:-1] == start.steps


def test_a_heads_loss_sees_the_answer_alone(base: Llama, group: list[Answer], tmp_path: Path) -> None:
    """Against a loop over all places of an answer, head by head."""
    features.build(base, group, tmp_path)
    heads, token_map = fresh(base), draft_vocabulary(group, 30)
    texts, answers = features.texts(group[:3], tmp_path), group[:3]
    expected = torch.zeros(())
    output = base.head[token_map].float()
    for head in range(2):
        losses = []
        for states, answer in zip(texts, answers, strict=True):
            made, first = heads.run([states])[0], len(answer.prompt) - 1
            for place in range(len(answer.answer) - 1 - head):
                if answer.answer[place + 1 + head] in token_map.tolist():
                    path = base.embed[list(answer.answer[place : place + head + 1])][None].float()
                    guess = torch.log_softmax(heads(made[first + place][None], path, head)[0] @ output.T, 0)
                    target = torch.softmax(states[first + place + 1 + head].float() @ output.T, 0)
                    losses.append(-(target * guess).sum())
        expected = expected + torch.stack(losses).mean()
    found = prefix.batch_loss(heads, texts, answers, token_map, base)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_the_exporter_reads_what_is_shipped(
    base: Llama, group: list[Answer], start: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "BLOCK", 8)
    heads = fresh(base)
    torch.nn.init.normal_(heads.layer.layers[0].mlp.down_proj.weight)
    trained = replace(start, heads=heads)
    measures = fit.measure_all(base, trained, {"held out": group}, tmp_path)
    fit.ship(tmp_path / "zoo", base, "tiny", trained, measures)
    sizes = {"hidden": 24, "queries": 24, "keys": 12, "inner": 32}
    weights = read_hydra(open_heads(tmp_path / "zoo"), sizes, 40)
    assert weights.prefix is not None
    stored = load_file(tmp_path / "zoo" / "model.safetensors")
    down = heads.layer.layers[0].mlp.down_proj.weight.detach()
    torch.testing.assert_close(torch.from_numpy(weights.prefix["layer.mlp.down.weight"]), down, atol=2e-2, rtol=0)
    assert not any("embed_tokens" in name for name in stored)
    assert zoo.TREE_NODES == 64
