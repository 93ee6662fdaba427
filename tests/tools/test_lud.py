"""Lexical units: marking, packing and training, against the worked example, brute force, transformers and PEFT."""

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tools.lud import corpus, merge, train
from tools.lud.model import UnitModel
from tools.lud.packing import IGNORED, PACKINGS, Packed, branch, inplace, prefix
from tools.lud.train import Recipe, windows
from tools.lud.units import HEADS, Marked, Marking

from seqrt.exporter.checkpoints import lud as reading
from seqrt.exporter.checkpoints import open_checkpoint

VOCAB = 40
PAD = VOCAB


def marked(ids: Sequence[int], start: int = 1, units: Sequence[tuple[int, int]] = (), name: str = "a") -> Marked:
    return Marked(name, "text", list(ids), start, list(units), 0.9, "any", 4, "test")


def decoder(*, tied: bool) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
        attn_implementation="sdpa",
    )
    return transformers.LlamaForCausalLM(config)


# Marking


@pytest.mark.parametrize(("head", "unit"), [("any", (2, 4)), ("confident", (3, 4))])
def test_the_worked_example_is_marked(head: str, unit: tuple[int, int]) -> None:
    """Specification, section 1.11."""
    log = np.log([0.5, 0.40, 0.97, 0.95, 0.30])  # of tokens 1 to 5; the prompt's last counts for nothing
    assert Marking(0.9, head).units([10, 11, 12, 13, 14, 15], log, 2) == [unit]


@given(
    sure=st.lists(st.booleans(), min_size=2, max_size=40),
    start=st.integers(0, 6),
    longest=st.integers(2, 6),
    head=st.sampled_from(HEADS),
    special=st.sets(st.integers(0, 39), max_size=5),
)
def test_units_are_what_they_should_be(
    sure: list[bool], start: int, longest: int, head: str, special: set[int]
) -> None:
    ids = list(range(len(sure)))
    log = np.log([0.95 if each else 0.5 for each in sure[1:]])
    units = Marking(0.9, head, longest).units(ids, log, start, special)
    held = [position for first, last in units for position in range(first, last + 1)]
    assert held == sorted(set(held)), "in order, none overlaps another"
    first_allowed = max(start, 1)
    for first, last in units:
        assert 2 <= last - first + 1 <= longest
        assert all(sure[position] for position in range(first + (head == "any"), last + 1))
        assert first >= first_allowed
        assert not special & set(ids[first : last + 1])
    for position in range(first_allowed, len(ids) - 1):
        both = {position, position + 1}
        could = sure[position + 1] and (head == "any" or sure[position]) and not both & special
        assert not could or both & set(held), "two tokens that could be a unit are not left out"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0.0,), "--alpha is 0.0"),
        ((1.1,), "--alpha is 1.1"),
        ((0.9, "first"), "--unit-head"),
        ((0.9, "any", 1), "2 tokens"),
    ],
)
def test_markings_that_are_none(values: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Marking(*values)


# Packing


def test_the_worked_example_is_packed() -> None:
    packed = prefix(marked([10, 11, 12, 13, 14, 15], 2), [(2, 4)], PAD)
    assert packed.ids[6:].tolist() == [10, 11, PAD, PAD]
    assert packed.positions[6:].tolist() == [0, 1, 2, 3]
    assert packed.unit_labels[6:].tolist() == [IGNORED, 12, 13, 14]
    assert packed.text_labels[:6].tolist() == [IGNORED, 12, 13, 14, 15, IGNORED]
    assert (packed.text_labels[6:] == IGNORED).all()
    assert packed.sees[6:, 6:].tolist() == np.tri(4, dtype=bool).tolist()
    assert not packed.sees[6:, :6].any()


def test_branches_see_their_own_prefix_and_their_own_pads() -> None:
    packed = branch(marked(range(6)), [(2, 4), (3, 5)], PAD)
    assert packed.positions[6:].tolist() == [2, 3, 3, 4]
    assert packed.sees[6:].astype(int).tolist() == [
        [1, 1, 0, 0, 0, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 1, 1, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 1, 0],
        [1, 1, 1, 0, 0, 0, 0, 0, 1, 1],
    ]
    assert not packed.sees[:6, 6:].any(), "the text sees no branch"


def test_inplace_replaces_all_but_the_last_token() -> None:
    packed = inplace(marked(range(6)), [(1, 2), (2, 4), (3, 5)], PAD)  # the second overlaps the first
    assert packed.ids[6:].tolist() == [0, PAD, 2, PAD, PAD, 5]
    assert packed.unit_labels[6:].tolist() == [1, 2, 3, 4, 5, IGNORED]


@pytest.mark.parametrize("tied", [True, False])
@given(data=st.data())
def test_branch_has_exactly_the_losses_of_prefix(tied: bool, data: st.DataObject) -> None:
    model = UnitModel(decoder(tied=tied), 0)
    ids = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=4, max_size=14))
    start = data.draw(st.integers(1, len(ids) - 2))
    firsts = data.draw(st.sets(st.integers(start, len(ids) - 2), min_size=1))
    units = [(first, data.draw(st.integers(first + 1, min(first + 4, len(ids) - 1)))) for first in sorted(firsts)]
    text = marked(ids, start)
    with torch.no_grad():
        losses = [model.losses(pack(text, units, PAD), distil=False) for pack in (branch, prefix)]
    for of_branch, of_prefix in zip(*losses, strict=True):
        assert float(of_branch) == pytest.approx(float(of_prefix), rel=1e-5)


def test_ordinary_decoding_has_the_loss_of_transformers() -> None:
    model, ids = UnitModel(decoder(tied=False), 0), list(range(3, 20))
    text, _ = model.losses(branch(marked(ids, 5), [(6, 8)], PAD), distil=False)
    labels = torch.tensor([[IGNORED] * 5 + ids[5:]])
    expected = model.decoder(input_ids=torch.tensor([ids]), labels=labels).loss
    assert text.item() == pytest.approx(expected.item(), rel=1e-5)


def test_pad_is_read_and_never_predicted_as_a_token_of_the_text() -> None:
    model = UnitModel(decoder(tied=True), 4)
    packed = Packed(np.array([1, PAD]), np.arange(2), np.tri(2, dtype=bool), *(np.full(2, IGNORED),) * 2)
    arrays = [torch.from_numpy(values) for values in (packed.ids, packed.positions, packed.sees)]
    before = model.hidden(*arrays)
    with torch.no_grad():
        model.pad_row.add_(1)
    after = model.hidden(*arrays)
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1])
    assert model.logits(after).shape == (2, VOCAB + 1), "tied: PAD has a logit, which is learnt to be low"


def test_distilling_begins_at_the_base() -> None:
    model = UnitModel(decoder(tied=True), 4)
    text, unit = model.losses(branch(marked(range(12), 2), [(3, 6)], PAD), distil=True)
    pad_share = math.log1p(torch.exp(model.logits(torch.zeros(1, 32))[0, -1]).item() / VOCAB)
    assert 0 <= text.item() < 2 * pad_share + 1e-3, "all that differs is that PAD has a share"
    assert unit.item() > 1


@given(seed=st.integers(0, 99), lookahead=st.integers(2, 6), most=st.integers(0, 30))
def test_windows_lie_in_units(seed: int, lookahead: int, most: int) -> None:
    text = marked(range(40), 1, [(2, 9), (11, 12), (20, 35)])
    found = windows(text, lookahead, most, random.Random(seed))
    assert sum(last - first for first, last in found) <= most
    assert len({first for first, _ in found}) == len(found)
    for first, last in found:
        assert 1 <= last - first < lookahead
        assert any(begin <= first < last <= end for begin, end in text.units)


# Training


def counting(count: int) -> list[Marked]:
    """Texts in which each token is the one before plus one, all of which is sure."""
    rng = random.Random(0)
    starts = [rng.randrange(VOCAB) for _ in range(count)]
    return [
        marked([(first + i) % VOCAB for i in range(12)], 2, [(2, 11)], f"t{index}")
        for index, first in enumerate(starts)
    ]


RECIPE = Recipe(lookahead=3, batch=4, epochs=3, learning_rate=1e-2, rank=4, held_out=0.0)


@pytest.mark.parametrize("packing", sorted(PACKINGS))
def test_units_are_learnt_and_a_stopped_run_ends_like_a_whole_one(packing: str, tmp_path: Path) -> None:
    from dataclasses import replace

    recipe, texts = replace(RECIPE, packing=packing), counting(16)

    def trained(file: Path, stop: int | None) -> UnitModel:
        torch.manual_seed(0)
        model = UnitModel(decoder(tied=True), recipe.rank)
        if stop is not None:
            left = iter(range(stop))
            losses = model.losses

            def interrupted(packed: Packed, *, distil: bool) -> Any:
                if next(left, None) is None:
                    raise KeyboardInterrupt
                return losses(packed, distil=distil)

            model.losses = interrupted  # type: ignore[method-assign]
            with pytest.raises(KeyboardInterrupt):
                train.train(model, texts, recipe, file)
            model = UnitModel(decoder(tied=True), recipe.rank)
        train.train(model, texts, recipe, file)
        return model

    whole, resumed = trained(tmp_path / "whole.pt", None), trained(tmp_path / "stopped.pt", 21)
    for a, b in zip(whole.trained(), resumed.trained(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    with pytest.raises(ValueError, match="was made with"):  # other texts, as many
        train.train(whole, counting(17)[1:], recipe, tmp_path / "whole.pt")
    fresh = train.measure(UnitModel(decoder(tied=True), recipe.rank), texts, recipe)
    assert train.measure(whole, texts, recipe)["unit_loss"] < fresh["unit_loss"]


def test_all_weights_can_be_trained(tmp_path: Path) -> None:
    model, texts = UnitModel(decoder(tied=False), 0), counting(64)
    recipe = Recipe(lookahead=3, rank=0, distil=False, epochs=8, held_out=0.0, learning_rate=1e-2)
    train.train(model, texts, recipe, tmp_path / "lud.pt")
    after = train.measure(model, texts, recipe)
    assert after["text_loss"] < 0.3, "each token is the one before plus one"
    assert after["unit_loss"] < 0.3, "and PADs count on"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A base as transformers saves it, in `base`, and an adapter for it beside it."""
    model = decoder(tied=True)
    model.save_pretrained(tmp_path / "base")
    learner = UnitModel(model, 4)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in learner.trained():
            parameter.normal_(std=0.1)
    train.ship(tmp_path / "adapter", learner, None, {"base_model": "tiny", "lookahead": 3})
    return tmp_path / "adapter"


def test_what_is_merged_is_what_peft_merges(adapter: Path) -> None:
    base = adapter.parent / "base"
    ours = reading.merge(open_checkpoint(base), adapter)
    theirs = merge.merged(
        UnitModel(transformers.LlamaForCausalLM.from_pretrained(base), None), adapter, PAD
    ).state_dict()
    for layer in range(2):
        for name, theirs_name in (("attention.q", "self_attn.q_proj"), ("mlp.down", "mlp.down_proj")):
            expected = theirs[f"model.layers.{layer}.{theirs_name}.weight"].numpy()
            np.testing.assert_allclose(ours.tensor(f"layers.{layer}.{name}.weight"), expected, atol=1e-6)
    np.testing.assert_allclose(
        ours.tensor("pad.weight")[0], theirs["model.embed_tokens.weight"][PAD].numpy(), atol=1e-6
    )


def test_a_merged_checkpoint_is_plain_transformers(adapter: Path) -> None:
    base = adapter.parent / "base"
    learner = UnitModel(transformers.LlamaForCausalLM.from_pretrained(base), None)
    merge.merged(learner, adapter, PAD).save_pretrained(adapter.parent / "merged")
    plain = transformers.AutoModelForCausalLM.from_pretrained(adapter.parent / "merged")
    assert plain.get_input_embeddings().weight.shape[0] == VOCAB + 1
    out = plain(torch.tensor([[1, 2, PAD]])).logits
    assert out.shape == (1, 3, VOCAB + 1)


def test_what_is_measured_is_of_texts_with_units() -> None:
    model, texts = UnitModel(decoder(tied=True), 4), counting(2)
    assert train.measure(model, [*texts, marked(range(9))], RECIPE) == train.measure(model, texts, RECIPE)
    assert train.measure(model, [marked(range(9))], RECIPE) == {}


def test_all_weights_are_trained_in_float32() -> None:
    model = UnitModel(decoder(tied=True).to(torch.bfloat16), 0)
    assert {parameter.dtype for parameter in model.trained()} == {torch.float32}


def test_an_output_layer_of_its_own_does_not_say_pad(tmp_path: Path) -> None:
    base, learner = decoder(tied=False), UnitModel(decoder(tied=False), 4)
    train.ship(tmp_path, learner, None, {"base_model": "tiny", "lookahead": 3})
    logits = merge.merged(UnitModel(base, None), tmp_path, PAD)(torch.arange(VOCAB)[None]).logits
    assert not (logits.argmax(-1) == PAD).any()


def test_another_base_is_not_merged(adapter: Path) -> None:
    other = decoder(tied=True)
    with torch.no_grad():
        other.model.norm.weight *= 2
    with pytest.raises(ValueError, match="another base"):
        merge.merged(UnitModel(other, None), adapter, PAD)


def test_pad_is_needed(adapter: Path) -> None:
    learnt = load_file(adapter / "lud.safetensors")
    save_file({"base_norm": learnt["base_norm"]}, adapter / "lud.safetensors")
    with pytest.raises(ValueError, match="pad_embedding"):
        merge.merged(UnitModel(decoder(tied=True), None), adapter, PAD)


def test_code_is_cut_at_lines(tmp_path: Path) -> None:
    for name in ("a.py", "b.py", "test/c.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("".join(f"x{i} = {i}\n" for i in range(200)))
    texts = list(corpus.code_texts(tmp_path, 3, 100, 0))
    assert 1 <= len(texts) <= 3
    for row in texts:
        file, _, line = row["id"].partition(":")
        assert row["text"].startswith(f"x{int(line) - 1} = ")
        assert row["text"].endswith("\n")
        assert 50 < len(row["text"]) <= 100
        assert file != "test/c.py"
