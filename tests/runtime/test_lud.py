"""Lexical units on a tiny model that learnt them: verify mode against plain decoding, paper mode against torch."""

import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tools.lud import mark
from tools.lud.corpus import read_corpus
from tools.lud.units import Marking, read_marked

from seqrt.errors import CheckpointError, ExportError, RequestError
from seqrt.exporter.export import export
from seqrt.runtime.decoder import StepOutput
from seqrt.runtime.drafters.lud import LudDrafter
from seqrt.runtime.model import Model, load
from seqrt.runtime.options import Options
from seqrt.runtime.profiling.measure import measure
from seqrt.runtime.prompts import Prompt
from seqrt.runtime.tree import Tree
from seqrt.runtime.tune import choose, record, replay_units
from seqrt.runtime.tuned import Choice

FIRST = 10
PROMPT = [FIRST + 3, FIRST + 4, FIRST + 5]  # lud_bundle's model counts on, modulo LETTERS


@pytest.fixture(scope="session")
def model(lud_bundle: Path) -> Model:
    return load(lud_bundle)


@pytest.fixture(scope="session")
def stranger(llama_bundle: Path, random_pad: Path) -> Model:
    """A model that knows nothing of PADs, which are random to it: its drafts are wrong."""
    return load(export(llama_bundle.parent, random_pad / "bundle", lud=random_pad).bundle)


def output(ids: Sequence[int], confidence: Sequence[float]) -> StepOutput:
    rows = len(ids)
    return StepOutput(
        np.array(ids)[:, None],
        np.log(np.array(confidence, np.float32))[:, None],
        np.zeros(rows, np.float32),
        np.zeros((rows, 1), np.float32),
    )


# The drafter by itself


def test_the_worked_example() -> None:
    """Specification, section 1.11: cache of one token, the last token pending, k = 4, beta 0.9."""
    drafter = LudDrafter(pad=100, lookahead=4, beta=0.9)
    drafter.begin([10, 11], output([12], [1.0]))
    first = drafter.propose(11, 64)
    assert first.tree.tokens.tolist() == [11, 100, 100, 100]
    assert first.tree.depth.tolist() == [0, 1, 2, 3]
    drafter.observe(first, [0], [12], output([12, 13, 14, 99], [0.41, 0.97, 0.93, 0.30]))
    second = drafter.propose(12, 64)
    assert second.tree.tokens.tolist() == [12, 13, 14, 100, 100, 100]
    assert second.tree.depth.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("said", "confidence", "taken"),
    [
        ([13, 14, 15], [0.95, 0.5, 0.99], [13]),  # contiguous
        ([12, 13, 14], [0.99, 0.99, 0.99], []),  # the next token said again
        ([13, 13, 14], [0.99, 0.99, 0.99], [13]),  # a draft said again
        ([11, 12, 14], [0.99, 0.99, 0.99], [11]),  # 11 12 was said: the text's last pair
        ([13, 12, 13], [0.99, 0.99, 0.99], [13, 12]),  # 12 13 occurs in the span
        ([13, 14, 15], [0.9, 0.99, 0.99], []),  # above beta, not at it
    ],
)
def test_paper_mode_takes_what_is_contiguous_confident_and_new(
    said: list[int], confidence: list[float], taken: list[int]
) -> None:
    drafter = LudDrafter(pad=100, lookahead=4, beta=float(np.exp(np.log(np.float32(0.9)).astype(np.float64))))
    drafter.begin([10, 11], output([12], [1.0]))
    drafter.observe(drafter.propose(11, 64), [0], [12], output([12, *said], [0.4, *confidence]))
    assert drafter.propose(12, 64).tree.tokens[1 : 1 + len(taken)].tolist() == taken
    assert drafter.propose(12, 64).tree.tokens.tolist().count(100) == 3


@given(
    drafts=st.integers(0, 5),
    prices=st.lists(st.floats(0, 0.5), min_size=1, max_size=40),
    confidence=st.lists(st.floats(0.01, 0.99), min_size=5, max_size=5),
    most=st.integers(1, 40),
)
def test_proposals_hold_together(drafts: int, prices: list[float], confidence: list[float], most: int) -> None:
    drafter = LudDrafter(pad=100, lookahead=6)
    drafter.begin([1, 2], output([3], [1.0]))
    before = drafter.propose(2, 1 + drafts)
    pads = before.tree.num_nodes - 1
    drafter.observe(before, [0], [3], output([3, 4, 5, 6, 7, 8][: pads + 1], [1.0, *confidence][: pads + 1]))
    proposal = drafter.propose(3, most, 1.0, sorted(prices))
    tree = proposal.tree
    assert tree.num_nodes <= most
    assert tree.tokens[0] == 3
    real = tree.tokens != 100
    held = int(real.sum())
    assert real[:held].all(), "drafts stand before PADs, so that their rows are those of a chain"
    assert tree.tokens[1:held].tolist() == [4, 5, 6, 7, 8][: held - 1]
    assert (tree.parents[1:held] == np.arange(held - 1)).all()
    assert (np.diff(proposal.probability[held:]) <= 0).all(), "PADs worth most come first"
    for node in range(1, tree.num_nodes):
        assert proposal.probability[node] <= proposal.probability[tree.parents[node]] + 1e-12
        assert tree.depth[node] <= held - 1 + 5
    again = Tree(tree.tokens, tree.parents)
    assert (again.ancestors == tree.ancestors).all()


def test_rows_that_cost_nothing_are_all_taken_and_dear_ones_are_not() -> None:
    drafter = LudDrafter(pad=100, lookahead=3)
    drafter.begin([1, 2], output([3], [1.0]))
    first = drafter.propose(2, 64)
    drafter.observe(first, [0], [3], output([3, 4, 5], [1.0, 0.9, 0.9]))
    assert drafter.propose(3, 64, 1.0, [0.0] * 63).tree.num_nodes == 3 + 3 * 2, "two PADs behind each of three nodes"
    assert drafter.propose(3, 64, 1.0, [2.0] * 63).tree.tokens[1] == 100, "no draft pays"


def test_the_pads_behind_the_last_accepted_node_are_read() -> None:
    drafter = LudDrafter(pad=100, lookahead=3)
    drafter.begin([1, 2], output([3], [1.0]))
    drafter.observe(drafter.propose(2, 64), [0], [3], output([3, 4, 5], [1.0, 0.9, 0.9]))
    proposal = drafter.propose(3, 64, 1.0, [0.0] * 63)
    tree, said = proposal.tree, 200 + np.arange(9)
    for path in ([0], [0, 1], [0, 1, 2]):
        drafter = LudDrafter(pad=100, lookahead=3)
        drafter.begin([1, 2], output([3], [1.0]))
        drafter.observe(drafter.propose(2, 64), [0], [3], output([3, 4, 5], [1.0, 0.9, 0.9]))
        drafter.observe(drafter.propose(3, 64, 1.0, [0.0] * 63), path, [7], output(said.tolist(), [0.5] * 9))
        behind = [node for node in range(9) if tree.tokens[node] == 100 and tree.ancestors[node, path[-1]]]
        behind = [node for node in behind if tree.ancestors[node, :3].sum() == len(path)]
        assert len(behind) == 2
        assert drafter.propose(7, 64).tree.tokens[1:3].tolist() == said[behind].tolist()


def test_trust_is_learnt_and_comes_back() -> None:
    drafter = LudDrafter(pad=100, lookahead=2)
    drafter.begin([1, 2], output([3], [1.0]))
    prices = [0.3] * 10

    def step(*, right: bool) -> int:
        proposal = drafter.propose(3, 64, 1.0, prices)
        gain = np.cumsum(proposal.probability[1:] - 0.3)  # the loop cuts what does not pay
        proposal = proposal.truncated(1 + int(np.argmax([0.0, *gain])))
        rows = proposal.tree.num_nodes
        path = list(range(1 + (right and 4 in proposal.tree.tokens)))
        drafter.observe(proposal, path, [3], output([4] * rows, [0.9] * rows))
        return rows

    assert step(right=False) > 1
    assert sum(step(right=False) > 1 for _ in range(300)) < 200, "what is never right is asked for less and less"
    assert any(step(right=True) > 1 for _ in range(60)), "and again after a while"


# Verify mode


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("lookahead", [2, 3, 4, 6])
def test_the_text_is_that_of_plain_decoding(model: Model, stranger: Model, lookahead: int, adaptive: bool) -> None:
    for one in (model, stranger):
        for prompt in (PROMPT, list(range(20, 50)), [7, 250, 33]):
            plain = one.generate(prompt, max_new_tokens=40)
            drafted = one.generate(prompt, max_new_tokens=40, draft="lud", lookahead=lookahead, adaptive=adaptive)
            assert drafted.token_ids == plain.token_ids


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("adaptive", [True, False])
def test_quantised_weights_change_nothing_of_that(
    lud_checkpoint: Path, tmp_path: Path, quantize: Any, adaptive: bool
) -> None:
    with load(export(lud_checkpoint, tmp_path / "bundle", lud=lud_checkpoint, quantize=quantize).bundle) as one:
        for prompt in (PROMPT, list(range(20, 50)), [7, 250, 33]):
            plain = one.generate(prompt, max_new_tokens=40)
            drafted = one.generate(prompt, max_new_tokens=40, draft="lud", adaptive=adaptive)
            assert drafted.token_ids == plain.token_ids


@pytest.mark.parametrize("max_rows", [1, 2, 3, 4])
def test_few_rows_are_enough(model: Model, max_rows: int) -> None:
    plain = model.generate(PROMPT, max_new_tokens=20)
    for mode in ("verify", "paper"):
        answer = model.generate(
            PROMPT, max_new_tokens=20, draft="lud", lud_mode=mode, max_rows=max_rows, adaptive=False
        )
        assert max(answer.trace.rows) <= max_rows
        assert mode == "paper" or answer.token_ids == plain.token_ids


def test_units_are_decoded_at_once(model: Model) -> None:
    answer = model.generate(PROMPT, max_new_tokens=60, draft="lud", adaptive=False)
    assert answer.token_ids[:20] == [FIRST + (6 + i) % 24 for i in range(20)]
    assert answer.tokens_per_step > 2
    with load(model.bundle.path) as fresh:
        assert fresh.generate(PROMPT, max_new_tokens=20, draft="lud").token_ids == answer.token_ids[:20]


@pytest.mark.parametrize("seed", range(4))
def test_a_seed_gives_the_text_of_plain_sampling(model: Model, stranger: Model, seed: int) -> None:
    for one in (model, stranger):
        wanted = Options(max_new_tokens=40, temperature=0.9, top_p=0.95, seed=seed)
        plain = one.generate(PROMPT, wanted)
        assert one.generate(PROMPT, wanted, draft="lud", adaptive=False).token_ids == plain.token_ids


@settings(max_examples=15)
@given(
    prompt=st.lists(st.integers(5, 271), min_size=1, max_size=12),
    steps=st.integers(1, 8),
    lookahead=st.integers(2, 5),
    mode=st.sampled_from(["verify", "paper"]),
    knows=st.booleans(),
)
def test_the_cache_holds_real_tokens_only(
    model: Model, stranger: Model, prompt: list[int], steps: int, lookahead: int, mode: str, knows: bool
) -> None:
    one = model if knows else stranger
    one.forget()
    wanted = Options(draft="lud", lookahead=lookahead, lud_mode=mode, adaptive=False, ignore_eos=True)
    stream = one.stream(prompt, wanted, beta=0.3 if mode == "paper" else None)
    decoder, text = stream.loop.decoder, list(prompt)
    for _, tokens in zip(range(steps + 1), stream.tokens, strict=False):
        text += tokens
        assert decoder.past_len == len(text) - 1, "all that is decided but the last token, and no PAD"
    chain = Tree.chain(text[-1:])
    found = decoder.step(chain.tokens, chain.ancestors, chain.depth, np.zeros(1, np.int64))
    logits = dict(zip(found.topk_ids[0].tolist(), found.topk_logits[0].tolist(), strict=True))
    one.forget()
    again = decoder.prefill(text)[-1]
    for token, logit in zip(again.topk_ids[0, :20].tolist(), again.topk_logits[0, :20].tolist(), strict=True):
        assert logits[token] == pytest.approx(logit, abs=1e-3)
    one.forget()


# Paper mode


def papers(decoder: Any, row: torch.Tensor, prompt: list[int], lookahead: int, beta: float, length: int) -> list[int]:
    """The paper's loop, specification section 1.5, by transformers and without a cache; no PADs behind the prompt."""
    text, spans = list(prompt), 0
    while len(text) < len(prompt) + length:
        table = decoder.get_input_embeddings().weight
        rows = torch.cat((table[torch.tensor(text)], row.expand(lookahead - 1, -1)))
        with torch.no_grad():
            logits = decoder(inputs_embeds=rows[None]).logits[0, len(text) - 1 :]
        shares = torch.softmax(logits.double(), -1)
        span = [int(shares[0].argmax())]
        for j in range(1, lookahead if spans else 1):
            token, before = int(shares[j].argmax()), [*text[-2:], *span]
            said = set(itertools.pairwise(before))
            if shares[j].max() <= beta or token == span[-1] or (span[-1], token) in said:
                break
            span.append(token)
        text, spans = text + span, spans + 1
    return text[len(prompt) : len(prompt) + length]


@pytest.mark.parametrize("beta", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("prompt", [PROMPT, list(range(20, 50)), [7, 250, 33]])
def test_paper_mode_is_the_papers_loop(model: Model, lud_checkpoint: Path, prompt: list[int], beta: float) -> None:
    decoder = transformers.LlamaForCausalLM.from_pretrained(lud_checkpoint)
    row = load_file(lud_checkpoint / "lud.safetensors")["pad_embedding"]
    for lookahead in (2, 4):
        answer = model.generate(
            prompt, draft="lud", lud_mode="paper", beta=beta, lookahead=lookahead, max_new_tokens=30, ignore_eos=True
        )
        assert answer.token_ids == papers(decoder, row, prompt, lookahead, beta, 30)


def test_paper_mode_depends_on_no_clock(model: Model) -> None:
    wanted = Options(draft="lud", lud_mode="paper", max_new_tokens=40)
    first, second = model.generate(PROMPT, wanted), model.generate(PROMPT, wanted, adaptive=False)
    assert first.token_ids == second.token_ids
    assert first.tokens_per_step == second.tokens_per_step


def test_a_tuning_does_not_change_what_paper_mode_says(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Options(draft="lud", lud_mode="paper", beta=0.2, max_new_tokens=40)
    before = model.generate(PROMPT, wanted)
    choice = Choice(
        draft="lud", tree=None, rows=3, draft_ms=0.0, acceptance=(), tokens_per_step=1.0, tokens_per_second=1.0
    )
    tuning = SimpleNamespace(choice=lambda name: choice, relative=())
    monkeypatch.setattr(model, "tuning", tuning)
    assert model.plan(replace(wanted, lud_mode=None, adaptive=False)).rows == 3
    assert model.plan(replace(wanted, lud_mode=None, adaptive=False, lookahead=4, beta=None)).rows == 64
    after = model.generate(PROMPT, wanted)
    assert after.token_ids == before.token_ids
    assert after.tokens_per_step == before.tokens_per_step


# What is counted


def test_pads_are_no_drafts(model: Model) -> None:
    wanted = [Options(max_new_tokens=30), Options(max_new_tokens=30, draft="lud", adaptive=False)]
    rows = {row.draft: row for row in measure(model, [Prompt(turns=("the thing",))], wanted).rows}
    lud = rows["lud"]
    assert 0 < lud.drafted_tokens == sum(lud.rows) - 4 * len(lud.rows), "a root and three PADs a step are none"
    assert lud.accepted_tokens <= lud.drafted_tokens


@pytest.mark.parametrize("lookahead", [2, 3, 4])
@pytest.mark.parametrize("knows", [True, False])
def test_the_tuner_replays_what_would_happen(model: Model, stranger: Model, lookahead: int, knows: bool) -> None:
    one, wanted = model if knows else stranger, Options(draft="lud", max_new_tokens=40, ignore_eos=True)
    found = record(one, [Prompt(turns=("the thing",))], [wanted], 0.0)
    _, per_step = replay_units(found.answers["lud"], lookahead, np.ones(64), np.zeros(64))
    one.forget()
    answer = one.generate("the thing", wanted, max_rows=2 * lookahead - 1, adaptive=False)
    assert len(answer.token_ids) == 40
    assert 39 / per_step == pytest.approx(len(answer.trace.rows))


def test_tuning_chooses_a_lookahead(model: Model) -> None:
    wanted = Options(draft="lud", max_new_tokens=40, ignore_eos=True)
    found = record(model, [Prompt(turns=("the thing",))], [wanted], 0.0)
    cheap, dear = np.ones(15), np.arange(1.0, 16.0)
    many, none = (choose("lud", found, costs, ("units",)) for costs in (cheap, dear))
    assert many.rows > 3
    assert many.rows % 2 == 1, "2 k - 1"
    assert many.tree is None
    assert none.rows == 1, "off where rows are dear"


# Mistakes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"beta": 0.0}, "--beta is 0.0"),
        ({"beta": 1.5, "lud_mode": "paper"}, "--beta is 1.5"),
        ({"beta": 0.5}, "paper mode only"),
        ({"lud_mode": "fast"}, "--lud-mode is 'fast'"),
        ({"lookahead": 1}, "--lookahead is 1"),
        ({"lookahead": 70}, "--lookahead 70 needs 139 rows, a step takes 127"),
        ({"lookahead": 40}, "--lookahead 40 needs 79 rows, --max-rows allows 64"),
        ({"lud_mode": "paper", "accept": "greedy"}, "--accept greedy"),
        ({"lud_mode": "paper", "repetition_penalty": 1.2}, "--lud-mode paper takes tokens unseen"),
        ({"lud_mode": "paper", "min_new_tokens": 3}, "--lud-mode paper takes tokens unseen"),
        ({"tree": "0 00"}, "--tree is of no use to --draft lud"),
        ({"draft": "lookup", "lud_mode": "paper"}, "--lud-mode is of no use to --draft lookup; choose --draft lud"),
    ],
)
def test_options_that_cannot_be_served(model: Model, changes: dict[str, Any], words: str) -> None:
    for _ in range(2):
        with pytest.raises(RequestError, match=words):
            model.generate(PROMPT, **{"draft": "lud", **changes})


def test_a_bundle_without_units_says_how_to_get_them(llama_bundle: Path) -> None:
    with load(llama_bundle) as plain, pytest.raises(RequestError, match="export with --lud"):
        plain.generate(PROMPT, draft="lud")


def test_pad_is_no_token_of_a_prompt(model: Model) -> None:
    with pytest.raises(RequestError, match="the prompt has token"):
        model.generate([FIRST, model.bundle.manifest.decoder.vocab_size])


@pytest.fixture
def adapter(lud_checkpoint: Path, tmp_path: Path) -> Path:
    for name in ("lud.json", "lud.safetensors"):
        shutil.copy(lud_checkpoint / name, tmp_path / name)
    return tmp_path


def test_adapters_that_cannot_be_merged(adapter: Path, lud_checkpoint: Path, llama_bundle: Path) -> None:
    def fails(words: str, source: Path = lud_checkpoint) -> None:
        with pytest.raises(CheckpointError, match=words):
            export(source, adapter / "bundle", lud=adapter)

    fails("is for another base", llama_bundle.parent)
    learnt, config = load_file(adapter / "lud.safetensors"), json.loads((adapter / "lud.json").read_text())
    save_file({"base_norm": learnt["base_norm"]}, adapter / "lud.safetensors")
    fails("has no pad_embedding")
    save_file({name: values[:-1].clone() for name, values in learnt.items()}, adapter / "lud.safetensors")
    fails("hidden size 63")
    save_file(learnt, adapter / "lud.safetensors")
    (adapter / "lud.json").write_text(json.dumps({**config, "lookahead": 1}))
    fails("has lookahead 1")
    (adapter / "lud.json").write_text(json.dumps(config))
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LOHA", "r": 4, "lora_alpha": 4}))
    key = "base_model.model.model.layers.{}.self_attn.q_proj.lora_{}.weight"
    save_file({key.format(0, "A"): torch.ones(4, 64)}, adapter / "adapter_model.safetensors")
    fails("LOHA")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4}))
    fails("one half")
    two = {key.format(0, "A"): torch.ones(4, 32), key.format(0, "B"): torch.ones(64, 4)}
    save_file(two, adapter / "adapter_model.safetensors")
    fails(r"is \[64, 32\], this base has \[64, 64\]")
    save_file({key.format(7, "A"): torch.ones(4, 64)}, adapter / "adapter_model.safetensors")
    fails("this base has 2 layers")
    (adapter / "lud.json").unlink()
    fails("has no lud.json")


def test_units_rule_out_the_sources_own_blocks(lud_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--quantize source"):
        export(lud_checkpoint, tmp_path / "bundle", lud=lud_checkpoint, quantize="source")


# Marking, which needs a bundle


def rows(path: Path, lines: Sequence[Any]) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_marking_goes_on_where_it_was(model: Model, tmp_path: Path) -> None:
    lines = [{"id": index, "prompt": "the ", "answer": f"thing {index} of the ring"} for index in range(4)]
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    marking = Marking(0.2, longest=3)
    mark.mark(model, rows(tmp_path / "corpus.jsonl", lines), whole, marking)
    mark.mark(model, rows(tmp_path / "half.jsonl", lines[:2]), stopped, marking)
    with stopped.open("a") as file:
        file.write('{"id": "2", "cut sho')
    mark.mark(model, tmp_path / "corpus.jsonl", stopped, marking)
    assert stopped.read_text() == whole.read_text()
    texts = list(read_marked(whole))
    assert [text.id for text in texts] == ["0", "1", "2", "3"]
    for text in texts:
        prompt = model.prompt_tokens("the ")
        assert text.resp_start == len(prompt)
        log = model.score(text.ids).log_probabilities
        assert text.units == marking.units(text.ids, log, len(prompt), mark.special_tokens(model))
    counted = mark.histogram(whole)["units_by_length"]
    sizes = [str(last - first + 1) for text in texts for first, last in text.units]
    assert counted == {size: sizes.count(size) for size in sorted(set(sizes))}


@pytest.mark.parametrize("other", [Marking(0.3), Marking(0.2, "confident"), Marking(0.2, longest=9)])
def test_other_marks_are_not_gone_on_with(model: Model, tmp_path: Path, other: Marking) -> None:
    lines = rows(tmp_path / "corpus.jsonl", [{"text": "the thing of the ring"}])
    mark.mark(model, lines, tmp_path / "units.jsonl", Marking(0.2))
    with pytest.raises(ValueError, match=r"was marked with Marking\(alpha=0.2"):
        mark.mark(model, lines, tmp_path / "units.jsonl", other)


def test_prompts_go_through_the_chat_template(llama_bundle: Path, tmp_path: Path) -> None:
    lines = rows(tmp_path / "corpus.jsonl", [{"prompt": "the ", "answer": "thing"}])
    with load(llama_bundle) as chatty:
        for raw in (False, True):
            out = tmp_path / f"{raw}.jsonl"
            mark.mark(chatty, lines, out, Marking(), raw=raw)
            (text,) = read_marked(out)
            begin = chatty.encode("the ") if raw else chatty.prompt_tokens("the ")
            assert text.ids[: text.resp_start] == begin
        assert chatty.encode("the ") != chatty.prompt_tokens("the ")


def test_a_corpus_that_was_changed_is_noticed(model: Model, tmp_path: Path) -> None:
    for text in ("the thing", "the ring"):
        lines = rows(tmp_path / "corpus.jsonl", [{"text": text}])
        if text == "the ring":
            with pytest.raises(ValueError, match=r"holds another text 'corpus.jsonl:1'"):
                mark.mark(model, lines, tmp_path / "units.jsonl", Marking())
        else:
            mark.mark(model, lines, tmp_path / "units.jsonl", Marking())


def test_long_texts_are_cut_and_texts_without_a_name_are_kept_apart(model: Model, tmp_path: Path) -> None:
    for name in ("a", "b"):
        lines = rows(
            tmp_path / f"{name}.jsonl", [{"text": "the thing " * 2000}, {"prompt": "the " * 4000, "answer": "end"}]
        )
        mark.mark(model, lines, tmp_path / "units.jsonl", Marking())
    texts = list(read_marked(tmp_path / "units.jsonl"))
    assert [text.id for text in texts] == ["a.jsonl:1", "b.jsonl:1"]
    assert len(texts[0].ids) == model.bundle.manifest.capacity - 1


def test_only_a_text_that_begins_has_what_begins_a_text(tmp_path: Path) -> None:
    path = rows(tmp_path / "corpus.jsonl", [{"prompt": "ab", "answer": "cd"}, {"text": "ef"}])
    found = [
        text.ids for _, text in read_corpus(path, lambda text, part: [0] * (part != "answer") + [ord(c) for c in text])
    ]
    assert found == [[0, 97, 98, 99, 100], [0, 101, 102]]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "is empty"),
        ([{"text": "the ring"}, "{broken"], "line 2"),
        (["7"], "line 1: 7 is no object"),
        ([{"prompt": "the"}], "line 1: lacks 'answer'"),
        ([{"prompt": "the", "answer": ""}], "line 1: has"),
    ],
)
def test_corpora_that_are_none(lines: Sequence[Any], words: str, model: Model, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        mark.mark(model, rows(tmp_path / "corpus.jsonl", lines), tmp_path / "units.jsonl", Marking())


def test_a_mistake_is_one_line(llama_bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.lud.mark", "--bundle", str(llama_bundle), "--out", str(tmp_path / "out")]
    for more, words in ((["--alpha", "2"], "--alpha is 2.0"), ([], "No such file")):
        done = subprocess.run(
            [*command, "--corpus", str(tmp_path / "none.jsonl"), *more], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
