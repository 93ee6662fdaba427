import json
import random
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tools.train import features, fit, states, tree, zoo
from tools.train.answers import Answer, Job, answer_all, read_answers
from tools.train.base import Llama, LlamaShape
from tools.train.decode import continuations, sampler
from tools.train.features import Rows
from tools.train.heads import KINDS, Heads, HydraHeads, MedusaHeads, draft_labels, draft_vocabulary, loss, rank_accuracy
from tools.train.recipe import Recipe

from seqrt.exporter.checkpoints.head_tensors import open_heads
from seqrt.exporter.checkpoints.hydra import Linear, read_hydra
from seqrt.runtime.tree import Template

HIDDEN, VOCAB, LAYERS = 24, 40, 2
EOS = 2


class Letters:
    """A tokenizer of one token a character, with a template of its own."""

    eos_token_id = EOS

    def apply_chat_template(self, messages: list[dict[str, str]], **_: Any) -> str:
        return "".join(f"<{message['content']}>" for message in messages)

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(letter) % (VOCAB - 3) for letter in text]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(chr(97 + token % 26) for token in ids)


def one_by_one(model: Llama, prompt: list[int], num_new: int) -> list[int]:
    """Greedy decoding without batch, padding or cache."""
    ids = list(prompt)
    for _ in range(num_new):
        hidden = model.hidden(torch.tensor([ids]), torch.tensor([0]), model.cache(1, len(ids)), 0)
        ids.append(int((hidden[0, -1] @ model.head.T).argmax()))
        if ids[-1] == EOS:
            break
    return ids[len(prompt) :]


def answers(count: int, seed: int = 0) -> list[Answer]:
    """Answers with a rule that heads can learn: each token is the one before plus one."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        first = rng.randrange(3, VOCAB)
        text = tuple(3 + (first + i) % (VOCAB - 3) for i in range(12))
        rows.append(Answer(f"a-{index}", "count", 0, text[:4], text[4:], ""))
    return rows


def rows_of(model: Llama, group: list[Answer], num_heads: int) -> Rows:
    states_of = zip(features.hidden_states(model, group), group, strict=True)
    hidden = np.concatenate([rows[-len(answer.answer) :] for rows, answer in states_of])
    tokens = [torch.tensor(answer.answer) for answer in group]
    future = torch.cat([features.later_tokens(each, num_heads) for each in tokens])
    return Rows(torch.from_numpy(hidden), torch.cat(tokens), future)


def test_base_matches_transformers() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    torch.manual_seed(3)
    reference = LlamaForCausalLM(config).eval()
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "model.layers": "blk",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
    }
    state = {}
    for name, tensor in reference.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        state[name.replace("lm_head", "output")] = tensor
    model = Llama(LlamaShape(LAYERS, 4, 2, 6, 10000.0, 1e-5), state)
    ids = torch.tensor([[5, 9, 30, 11, 7]])
    expected = reference(ids).logits
    actual = model.hidden(ids, torch.tensor([0]), model.cache(1, 5), 0) @ model.head.T
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_batched_greedy_equals_one_at_a_time(base: Llama) -> None:
    rng = random.Random(4)
    batch = [[rng.randrange(3, VOCAB) for _ in range(length)] for length in (3, 9, 1, 6, 6, 2)]
    found = continuations(base, batch, 15, {EOS})[0]
    assert found == [one_by_one(base, prompt, 15) for prompt in batch]


def test_finished_rows_leave_the_batch(base: Llama) -> None:
    batch = [[7, 8, 9], [10, 11], [12], [13, 14, 15, 16]]
    whole, _ = continuations(base, batch, 12, set())
    stops = {whole[0][2], whole[2][5]}
    cut, _ = continuations(base, batch, 12, stops)
    for full, short in zip(whole, cut, strict=True):
        ends = [i for i, token in enumerate(full) if token in stops]
        assert short == full[: ends[0] + 1 if ends else 12]


def test_sampler_draws_from_the_softmax() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]]).repeat(40_000, 1)
    drawn = sampler(0.5, 1)(logits)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(shares, torch.softmax(logits[0] / 0.5, 0), atol=0.01, rtol=0)
    assert torch.equal(drawn, sampler(0.5, 1)(logits))


def test_answers_resume_and_follow_ups_see_the_first_answer(base: Llama, tmp_path: Path) -> None:
    todo = [{"id": f"p{i}", "task": "t", "turns": ["ab" * i + "c", "de"][: 1 + i % 2]} for i in range(1, 6)]
    job = Job(num_new=5, batch=2)
    answer_all(base, Letters(), todo, tmp_path / "whole.jsonl", job)
    answer_all(base, Letters(), todo[:2], tmp_path / "parts.jsonl", job)
    with (tmp_path / "parts.jsonl").open("a") as file:
        file.write('{"id": "p3", "tas')  # killed while writing
    (tmp_path / "parts.jsonl").write_text((tmp_path / "parts.jsonl").read_text() + "\n")
    answer_all(base, Letters(), todo, tmp_path / "parts.jsonl", job)
    whole = {(row.id, row.turn): row for row in read_answers(tmp_path / "whole.jsonl")}
    parts = {(row.id, row.turn): row for row in read_answers(tmp_path / "parts.jsonl")}
    assert whole == parts
    assert len(whole) == 5 + 3
    first = whole["p1", 0].text
    assert list(whole["p1", 1].prompt) == Letters()(f"<abc><{first}><de>")["input_ids"]


def test_hidden_states_choose_the_answers_tokens(base: Llama) -> None:
    made = [
        Answer(f"a{n}", "t", 0, tuple(p), tuple(continuations(base, [p], n + 1, set())[0][0]), "")
        for n, p in enumerate([[5, 6, 7], [9], [4, 4]])
    ]
    for answer, rows in zip(made, features.hidden_states(base, made), strict=True):
        assert len(rows) == len(answer.prompt) + len(answer.answer) - 1
        chosen = (torch.from_numpy(rows).float() @ base.head.T).argmax(-1)
        assert chosen[-len(answer.answer) :].tolist() == list(answer.answer)


def test_only_missing_states_are_computed(base: Llama, tmp_path: Path) -> None:
    group = answers(features.CHUNK + 5)
    features.build(base, group[:-2], tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    features.build(base, group, tmp_path)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(after) == len(before) + 1
    assert before.items() <= after.items()
    chosen = [answer for answer in group if features.is_held_out(answer, 0.2)]
    assert 0 < len(chosen) < len(group) / 2
    found, expected = features.load(chosen, tmp_path, 3), rows_of(base, chosen, 3)
    torch.testing.assert_close(found.hidden, expected.hidden, atol=2e-3, rtol=2e-3)
    assert torch.equal(found.future, expected.future)
    assert torch.equal(found.tokens, expected.tokens)


def test_states_of_generation_equal_states_computed_later(base: Llama, tmp_path: Path) -> None:
    todo = [{"id": f"p{i}", "task": "t", "turns": ["ab" * i + "c"]} for i in range(5)]
    answer_all(base, Letters(), todo, tmp_path / "a.jsonl", Job(num_new=6, batch=3), tmp_path / "states")
    made = read_answers(tmp_path / "a.jsonl")
    found = dict(states.read(tmp_path / "states"))
    assert found.keys() == {answer.key for answer in made} == states.keys(tmp_path / "states")
    for answer, expected in zip(made, features.hidden_states(base, made), strict=True):
        np.testing.assert_allclose(found[answer.key], expected, atol=4e-3, rtol=4e-3)


def test_later_tokens_end_with_the_answer() -> None:
    assert features.later_tokens(torch.tensor([7, 8, 9]), 2).tolist() == [[8, 9], [9, -1], [-1, -1]]


def test_draft_vocabulary_and_labels() -> None:
    made = [Answer("a", "t", 0, (9, 9, 9, 5), (4, 6, 6), ""), Answer("b", "t", 0, (5,), (4, 7, 6), "")]
    token_map = draft_vocabulary(made, 4)
    assert token_map.tolist() == [6, 4, 7, 9]
    labels = draft_labels(torch.tensor([[4, -1], [5, 6]]), token_map, VOCAB)
    assert labels.tolist() == [[1, -1], [-2, 0]]


@pytest.mark.parametrize("kind", KINDS)
def test_untrained_heads_say_what_the_base_says(kind: str) -> None:
    hidden = torch.randn(5, HIDDEN)
    heads = KINDS[kind](2, 2, HIDDEN)
    for head, layers in enumerate(heads.blocks):
        for layer in layers.children():
            torch.nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        torch.testing.assert_close(heads(hidden, torch.randn(5, head + 1, HIDDEN), head), hidden)


RECIPE = Recipe(num_heads=2, num_layers=1, draft_vocab=VOCAB, epochs=6, batch=64, learning_rate=1e-2)


def training(base: Llama, checkpoint: Path, recipe: Recipe = RECIPE) -> tuple[Heads, Rows, torch.Tensor, torch.Tensor]:
    rows = rows_of(base, answers(60), recipe.num_heads)
    token_map = draft_vocabulary(answers(60), recipe.draft_vocab)
    labels = draft_labels(rows.future, token_map, VOCAB)
    torch.manual_seed(0)
    heads = KINDS[recipe.kind](recipe.num_heads, recipe.num_layers, HIDDEN)
    for head in range(recipe.num_heads):
        place = checkpoint.with_suffix(f".{head}")
        fit.train(heads, head, rows, labels, base.head[token_map], base.embed, recipe, place)
    return heads, rows, labels, base.head[token_map]


@pytest.mark.parametrize(("kind", "teacher"), [("medusa", False), ("hydra", False), ("hydra", True)])
def test_loss_falls_and_accuracy_rises(base: Llama, tmp_path: Path, kind: str, teacher: bool) -> None:
    heads, rows, labels, output = training(base, tmp_path / "c.pt", replace(RECIPE, kind=kind, teacher=teacher))
    untrained = KINDS[kind](2, 1, HIDDEN)
    for head in range(RECIPE.num_heads):
        known = (labels[:, head] >= 0).nonzero()[:, 0]
        path = rows.path(known, head, base.embed)
        target = rows.teacher(known, head) if teacher else None
        before, after = (
            loss(each(rows.hidden[known].float(), path, head), labels[known, head], output, target)
            for each in (untrained, heads)
        )
        assert after < (0.95 if teacher else 0.7) * before
    if not teacher:  # the answers' rule is not what the base thinks
        old, _ = rank_accuracy(untrained, rows, labels, output, base.embed)
        new, _ = rank_accuracy(heads, rows, labels, output, base.embed)
        assert (new[:, 0] > old[:, 0]).all()


def test_paths_and_teachers_are_those_of_the_answer(base: Llama) -> None:
    """Head 1 after position r reads tokens r and r + 1, and should say what the base said in state r + 2."""
    group = answers(2)
    rows = rows_of(base, group, 2)
    first = torch.tensor(group[0].answer)
    path = rows.path(torch.tensor([3]), 1, base.embed)
    torch.testing.assert_close(path[0], base.embed[first[3:5]])
    torch.testing.assert_close(rows.teacher(torch.tensor([3]), 1)[0], rows.hidden[5].float())
    assert int(rows.future[3, 1]) == int(first[5])


@pytest.mark.parametrize("int8", [False, True])
def test_hydra_blocks_are_what_the_exporter_reads(tmp_path: Path, int8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head of the trainer and the exported graph's module make the same state, names and config included."""
    monkeypatch.setattr(zoo, "BLOCK", 8)
    torch.manual_seed(0)
    heads = HydraHeads(2, 2, HIDDEN)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter)
    zoo.write_heads(tmp_path, heads.tensors(), torch.tensor([4, 9, 1]), heads.config(), int8=int8)
    sizes = {"hidden": HIDDEN, "queries": HIDDEN, "keys": 12, "inner": 32}
    weights = read_hydra(open_heads(tmp_path), sizes, VOCAB)
    hidden, path = torch.randn(3, HIDDEN), torch.randn(3, 2, HIDDEN)
    x = torch.cat([hidden, path.flatten(1)], dim=1)
    (inner, straight), (later,) = weights.first[1], weights.later[1]

    def linear(layer: Linear, value: torch.Tensor) -> torch.Tensor:
        assert layer.bias is not None
        return value @ torch.from_numpy(layer.weight).T + torch.from_numpy(layer.bias)

    y = linear(straight, x) + torch.nn.functional.silu(linear(inner, x))
    y = y + torch.nn.functional.silu(linear(later, y))
    error = (heads(hidden, path, 1) - y).abs().max() / y.abs().max()
    assert error < (0.01 if int8 else 0.002)


def test_resumed_training_ends_with_the_same_weights(
    base: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, *_ = training(base, tmp_path / "whole.pt")
    real, calls = loss, iter(range(1000))

    def interrupted(*args: Any) -> torch.Tensor:
        if next(calls) == 60:  # the second head, in the middle of an epoch
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr("tools.train.fit.loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        training(base, tmp_path / "parts.pt")
    monkeypatch.setattr("tools.train.fit.loss", real)
    parts, *_ = training(base, tmp_path / "parts.pt")
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=0, atol=0)


def test_training_does_not_go_on_from_another_recipe(base: Llama, tmp_path: Path) -> None:
    short = replace(RECIPE, epochs=1, num_heads=1)
    training(base, tmp_path / "c.pt", short)
    with pytest.raises(
        ValueError, match=r"c\.0 was made with .*teacher=False.*wanted is .*teacher=True.*another --work"
    ):
        training(base, tmp_path / "c.pt", replace(short, teacher=True))


def test_states_of_another_text_are_noticed(base: Llama, tmp_path: Path) -> None:
    group = answers(3)
    states.save(tmp_path, [answer.key for answer in group], [rows[1:] for rows in features.hidden_states(base, group)])
    with pytest.raises(ValueError, match="holds states of another text for a-0/0; delete the folder"):
        features.load(group, tmp_path, 2)


def test_rank_accuracy_counts_by_hand() -> None:
    heads = MedusaHeads(1, 1, 2)
    torch.nn.init.zeros_(heads.blocks[0][0].bias)  # type: ignore[index]
    output = torch.tensor([[float(i), 0.0] for i in range(12)])  # token i scores i * x: rank 0 is token 11
    hidden = torch.tensor([[1.0, 0.0]] * 5, dtype=torch.float16)
    labels = torch.tensor([[11], [10], [0], [-2], [-1]])
    rows = Rows(hidden, labels[:, 0], labels)
    accuracy, ranks = rank_accuracy(heads, rows, labels, output, embedding=output)
    assert ranks[:, 0].tolist() == [0, 1, 10, 10, 10]
    torch.testing.assert_close(accuracy[0, :3], torch.tensor([0.25, 0.25, 0.0]))


def test_files_hold_the_weights(tmp_path: Path) -> None:
    heads = MedusaHeads(3, 2, HIDDEN)
    torch.nn.init.normal_(heads.blocks[1][1].weight)  # type: ignore[index]
    zoo.write_heads(tmp_path, heads.tensors(), torch.tensor([4, 9, 1]), heads.config())
    tensors = load_file(tmp_path / "model.safetensors")
    names = {f"blocks.{i}.layers.{j}.{k}" for i in range(3) for j in range(2) for k in ("weight", "bias")}
    assert set(tensors) == {"token_map", *names}
    assert tensors["blocks.1.layers.1.weight"].dtype == torch.float16
    assert tensors["token_map"].tolist() == [4, 9, 1]
    for name, tensor in heads.tensors().items():
        torch.testing.assert_close(tensors[name].float(), tensor, atol=2e-3, rtol=1e-3)
    assert json.loads((tmp_path / "config.json").read_text())["num_heads"] == 3


def brute_force(accuracy: list[list[float]], num_nodes: int) -> list[tree.Path]:
    """All paths by score; with falling accuracies that is what best-first must give."""
    scored: list[tuple[float, tree.Path]] = []
    level: list[tuple[float, tree.Path]] = [(1.0, ())]
    for row in accuracy:
        level = [(score * share, (*path, rank)) for score, path in level for rank, share in enumerate(row)]
        scored += level
    return [path for _, path in sorted(scored, key=lambda item: (-item[0], item[1]))][: num_nodes - 1]


def test_tree_takes_the_most_probable_paths() -> None:
    accuracy = [[0.53, 0.17, 0.071], [0.37, 0.11, 0.059], [0.29, 0.13, 0.031]]
    paths = tree.best_first(accuracy, 20)
    assert paths == brute_force(accuracy, 20)
    for size in range(len(paths)):
        for path in paths[:size]:
            assert len(path) == 1 or path[:-1] in paths[:size]
            assert path[-1] == 0 or (*path[:-1], path[-1] - 1) in paths[:size]
    assert tree.digits(paths)[:2] == ["0", "00"]


def test_tokens_per_step_by_hand() -> None:
    ranks = torch.tensor([[0, 1], [0, 0], [1, 0], [9, 0]])
    assert tree.tokens_per_step(ranks, [(0,), (0, 0), (1,)]) == 1 + (1 + 2 + 1 + 0) / 4
    assert tree.tokens_per_step(ranks, []) == 1.0


def test_written_tree_is_readable(tmp_path: Path) -> None:
    zoo.write_tree(tmp_path, [[0.5, 0.1], [0.25, 0.1]])
    found = json.loads((tmp_path / "tree.json").read_text())
    assert found["paths"] == ["0", "00", "1", "01", "10", "11"]
    assert found["accuracy"] == [[0.5, 0.1], [0.25, 0.1]]


def test_whole_run_ships_heads_tree_and_tables(base: Llama, tmp_path: Path) -> None:
    group, others = answers(60), answers(5, seed=9)
    others = [Answer(f"o-{i}", *other[1:]) for i, other in enumerate(map(astuple, others))]
    features.build(base, group, tmp_path / "states")
    recipe = Recipe(num_heads=2, draft_vocab=30, epochs=2, batch=64, held_out=0.2)
    fit.train_all(base, group, tmp_path, recipe, only=[1])
    assert sorted(path.name for path in tmp_path.glob("*.pt")) == ["medusa-1.pt"]
    trained = fit.train_all(base, group, tmp_path, recipe)
    measures = fit.measure_all(base, trained, {"held out": group, "others": others}, tmp_path)
    tables = fit.ship(tmp_path / "zoo", base, "tiny", trained, measures)
    assert [measure.name for measure in measures] == ["held out", "others"]
    assert len(measures[1].ranks) == sum(len(other.answer) for other in others)
    assert len(measures[0].ranks) + trained.num_positions == sum(len(answer.answer) for answer in group)
    config = json.loads((tmp_path / "zoo" / "config.json").read_text())
    assert (config["num_heads"], config["truncated_vocab_size"], config["vocab_size"]) == (2, 30, VOCAB)
    assert len(json.loads((tmp_path / "zoo" / "tree.json").read_text())["paths"]) == zoo.TREE_NODES - 1
    found = load_file(tmp_path / "zoo" / "model.safetensors")
    assert torch.equal(found["token_map"], trained.token_map)
    for name, tensor in trained.heads.tensors().items():
        torch.testing.assert_close(found[name].float(), tensor, atol=2e-3, rtol=1e-3)
    assert tables.count("| others |") == 3


ZOO = Path(zoo.__file__).parents[1] / "zoo"


@pytest.mark.parametrize(
    "folder", sorted(file.parent for file in ZOO.glob("*/tree.json")), ids=lambda folder: folder.name
)
def test_shipped_heads_are_complete(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    tensors = open_heads(folder)
    token_map = tensors.token_map(config["vocab_size"])
    assert token_map is not None
    assert len(token_map) == config["truncated_vocab_size"]
    num_heads, hidden_size = config["training"]["num_heads"], config["hidden_size"]
    if "medusa" in folder.name:
        expected = MedusaHeads(num_heads, config["num_layers"], hidden_size).tensors()
        assert set(tensors.shapes) == {"token_map", *expected}
    else:
        sizes = {"hidden": hidden_size, "queries": hidden_size, "keys": 192, "inner": 1536}
        weights = read_hydra(tensors, sizes, config["vocab_size"])  # checks the tensors against the config
        assert weights.num_heads == num_heads
        assert (weights.prefix is not None) == ("plus" in folder.name)
        assert all(np.isfinite(inner.weight).all() for inner, _ in weights.first)
    made = json.loads((folder / "tree.json").read_text())
    assert made["paths"] == tree.digits(tree.best_first(made["accuracy"], zoo.TREE_NODES))
    Template.parse(" ".join(made["paths"])).check_monotone()
    card = (folder / "README.md").read_text()
    assert all(f"{sum(row):.1%}" in card for row in made["accuracy"])  # the card's table is of these heads
    assert (folder / "model.safetensors").stat().st_size < 16e6
