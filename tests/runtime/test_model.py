"""A loaded bundle as its users call it, against transformers and against itself without drafting."""

import dataclasses
import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import seqrt
from seqrt.errors import RequestError
from seqrt.runtime.backends import open_engines
from seqrt.runtime.model import Model, load
from seqrt.runtime.options import Options
from seqrt.runtime.probe import Timeline
from seqrt.runtime.profiling.measure import Answer, Measurement

Continuation = Callable[[Any, list[int], int], list[int]]
Prophesied = Callable[[Model, list[int]], dict[str, Any]]
LogitsOf = Callable[[Any, list[int]], npt.NDArray[np.float32]]

TEXT = "the rest of the string in the tool"
BOS, EOS, USER, ASSISTANT = 0, 1, 2, 3
DRAFTS = [("none", True), ("lookup", True), ("lookup", False), ("medusa", True), ("medusa", False)]


def test_the_face_of_the_package(llama_bundle: Path) -> None:
    model = seqrt.load(str(llama_bundle), backend="cpu", threads=1)
    assert isinstance(model, seqrt.Model)
    assert model.drafts == ("none", "lookup", "recycling", "corpus", "medusa")
    assert 0 < model.load_seconds < 60
    text = "".join(model.stream(TEXT, draft="medusa", max_new_tokens=8))
    assert text == model.generate(TEXT, seqrt.Options(max_new_tokens=8)).text


@pytest.mark.parametrize(("draft", "adaptive"), DRAFTS)
def test_greedy_is_that_of_transformers(
    model: Model, prompt: list[int], answer: list[int], draft: str, adaptive: bool
) -> None:
    made = model.generate(prompt, draft=draft, adaptive=adaptive, max_new_tokens=64, ignore_eos=True)
    assert made.token_ids == answer
    assert (made.prompt_tokens, made.new_tokens, made.finish_reason, made.draft) == (len(prompt), 64, "length", draft)
    assert made.text == model.tokenizer.decode(answer)
    if not adaptive:
        assert max(made.trace.rows) > 1
    if draft == "none":
        assert (made.steps, made.tokens_per_step) == (63, 1.0)


@pytest.mark.parametrize("tree", ["0 1 00", "0 00 000", "mc_sim_7b_63"])
def test_trees_for_the_heads(model: Model, prompt: list[int], answer: list[int], tree: str) -> None:
    if tree == "mc_sim_7b_63":
        with pytest.raises(RequestError, match="the tree is 4 deep but there are 3 draft heads"):
            model.generate(prompt, draft="medusa", tree=tree)
        return
    made = model.generate(prompt, draft="medusa", tree=tree, adaptive=False, max_new_tokens=40, ignore_eos=True)
    assert made.token_ids == answer[:40]
    assert max(made.trace.rows) == 4


def test_the_heads_own_tree_is_the_default(model: Model, prompt: list[int]) -> None:
    made = model.generate(prompt, draft="medusa", adaptive=False, max_new_tokens=10, ignore_eos=True)
    assert set(made.trace.rows) == {8}, "seven paths and the root"
    made = model.generate(prompt, draft="medusa", adaptive=False, max_rows=3, max_new_tokens=10, ignore_eos=True)
    assert set(made.trace.rows) == {3}


@pytest.mark.parametrize("accept", [None, "match", "typical"])
def test_sampling_with_a_seed(model: Model, prompt: list[int], accept: str | None, prophesied: Prophesied) -> None:
    options = Options(temperature=1.0, top_p=0.95, seed=11, max_new_tokens=40, ignore_eos=True)
    plain = model.generate(prompt, options)
    assert model.generate(prompt, options).token_ids == plain.token_ids
    assert model.generate(prompt, options, seed=12).token_ids != plain.token_ids
    if accept == "typical":
        made = model.generate(prompt, options, draft="medusa", accept=accept)
        assert made.new_tokens == 40
        return
    for draft, adaptive in DRAFTS:
        made = model.generate(prompt, options, draft=draft, adaptive=adaptive, accept=accept)
        assert made.token_ids == plain.token_ids
    made = model.generate(prompt, options, accept=accept, **prophesied(model, plain.token_ids))
    assert made.token_ids == plain.token_ids
    assert made.steps <= 8


def test_end_token_within_an_accepted_path(
    model: Model, prompt: list[int], answer: list[int], prophesied: Prophesied
) -> None:
    # neither the root of a chain of six nor its end
    places = [i for i, token in enumerate(answer) if i > 8 and i % 6 in (1, 2, 3, 4) and token not in answer[:i]]
    place = places[0]
    plain = model.generate(prompt, stop_ids=(answer[place],), ignore_eos=True)
    made = model.generate(prompt, stop_ids=(answer[place],), ignore_eos=True, **prophesied(model, answer))
    assert made.steps < plain.steps
    for generation in (plain, made):
        assert generation.token_ids == answer[: place + 1]
        assert generation.finish_reason == "stop"
        assert generation.text == model.tokenizer.decode(answer[:place])


def biased_to_end(answer: list[int]) -> dict[str, Any]:
    """Makes the model's own end token likely enough to come early."""
    return {"logit_bias": {EOS: 9.0}, "max_new_tokens": 64}


def test_the_models_own_end_token_and_a_least_length(
    model: Model, llama: Any, prompt: list[int], answer: list[int], logits_of: LogitsOf, prophesied: Prophesied
) -> None:
    ended = model.generate(prompt, **biased_to_end(answer))
    assert (ended.finish_reason, ended.token_ids[-1]) == ("stop", EOS)
    assert ended.new_tokens < 30
    least = ended.new_tokens + 10
    expected: list[int] = []
    while len(expected) < 64 and EOS not in expected:
        logits = logits_of(llama, prompt + expected)[-1].copy()
        logits[EOS] = -np.inf if len(expected) < least else logits[EOS] + 9
        expected.append(int(logits.argmax()))
    for options in ({"draft": "none"}, {"draft": "lookup"}, prophesied(model, expected)):
        made = model.generate(prompt, min_new_tokens=least, **biased_to_end(answer), **options)
        assert made.token_ids == expected
        assert made.new_tokens >= least
        model._drafters.clear()
    ignored = model.generate(prompt, ignore_eos=True, **biased_to_end(answer))
    assert (ignored.new_tokens, ignored.finish_reason) == (64, "length")


def test_min_new_tokens_as_transformers(model: Model, llama: Any, prompt: list[int]) -> None:
    ids = torch.tensor([prompt])
    with torch.no_grad():
        made = llama.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=20,
            max_new_tokens=40,
            eos_token_id=list(range(4, 230)),
            pad_token_id=0,
        )
    expected = made[0, len(prompt) :].tolist()
    bans = tuple(range(4, 230))
    model._info = type(model._info)(
        **{name: getattr(model._info, name) for name in model._info.__slots__} | {"eos_token_ids": bans}
    )
    assert model.generate(prompt, min_new_tokens=20, max_new_tokens=40).token_ids == expected


@pytest.mark.parametrize("is_drafted", [False, True])
def test_stop_text_is_cut_off(
    model: Model, prompt: list[int], answer: list[int], is_drafted: bool, prophesied: Prophesied
) -> None:
    text = model.tokenizer.decode(answer)
    for start in range(6, 30, 5):
        stop = text[start : start + 3]
        options = prophesied(model, answer) if is_drafted else {}
        stream = model.stream(prompt, stop=(stop, "never occurs"), max_new_tokens=64, ignore_eos=True, **options)
        pieces = list(stream)
        assert "".join(pieces) == text[: text.index(stop)] == stream.result.text
        assert stream.result.finish_reason == "stop"
        assert stream.result.token_ids == answer[: stream.result.new_tokens]
        assert stop in model.tokenizer.decode(stream.result.token_ids) or "\ufffd" in stop


def test_a_stop_text_that_is_only_begun_is_given_out_at_the_end(
    model: Model, prompt: list[int], answer: list[int]
) -> None:
    text = model.tokenizer.decode(answer[:20])
    made = model.generate(prompt, stop=(text[-2:] + "and more",), max_new_tokens=20, ignore_eos=True)
    assert (made.text, made.finish_reason) == (text, "length")


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("is_drafted", [False, True])
def test_exactly_so_many_tokens(
    model: Model, prompt: list[int], answer: list[int], count: int, is_drafted: bool, prophesied: Prophesied
) -> None:
    options = prophesied(model, answer) if is_drafted else {}
    made = model.generate(prompt, max_new_tokens=count, ignore_eos=True, log_probabilities=True, **options)
    assert (made.token_ids, made.new_tokens, made.finish_reason) == (answer[:count], count, "length")
    assert made.log_probabilities is not None
    assert len(made.log_probabilities) == count


def test_tokens_per_step_are_those_that_steps_decided(
    model: Model, prompt: list[int], answer: list[int], prophesied: Prophesied
) -> None:
    """Where an answer ends says nothing about how well its drafts did."""
    made = model.generate(prompt, max_new_tokens=8, ignore_eos=True, **prophesied(model, answer))
    assert (made.new_tokens, made.steps, made.trace.emitted) == (8, 2, [6, 6])
    assert made.tokens_per_step == 6.0
    empty = Timeline((), ())
    assert Measurement("lookup", [Answer("1", 0, 0, made, empty, 0)]).tokens_per_step == 6.0


def test_log_probabilities(
    model: Model, llama: Any, prompt: list[int], answer: list[int], logits_of: LogitsOf, prophesied: Prophesied
) -> None:
    logits = logits_of(llama, prompt + answer)[len(prompt) - 1 : -1].astype(np.float64)
    expected = (logits - np.log(np.exp(logits).sum(1, keepdims=True)))[np.arange(64), answer]
    for options in ({}, {"draft": "medusa"}, prophesied(model, answer)):
        made = model.generate(prompt, log_probabilities=True, max_new_tokens=64, ignore_eos=True, **options)
        np.testing.assert_allclose(np.array(made.log_probabilities), expected, atol=1e-4)
    assert model.generate(prompt, max_new_tokens=3).log_probabilities is None


@pytest.mark.parametrize("length", [1, 60, 120, 127])
def test_the_capacity_ends_every_answer_at_the_same_token(
    mistral_bundle: Path, mistral: Any, continuation: Continuation, length: int, prophesied: Prophesied
) -> None:
    prompt = (list(range(5, 25)) * 7)[:length]
    expected = continuation(mistral, prompt, 128 - length)
    model = load(mistral_bundle, threads=1)
    for options in ({}, {"draft": "lookup"}, {"draft": "lookup", "adaptive": False}, prophesied(model, expected)):
        made = model.generate(prompt, max_new_tokens=500, ignore_eos=True, **options)
        assert made.token_ids == expected
        assert made.finish_reason == "length"


def test_texts_go_through_the_chat_template_unless_raw(model: Model) -> None:
    template = [BOS, USER, *model.encode(TEXT), EOS, ASSISTANT]
    assert model.generate(TEXT, max_new_tokens=1).prompt_tokens == len(template)
    assert model.generate(TEXT, raw=True, max_new_tokens=1).prompt_tokens == len(template) - 4
    expected = model.generate(template, max_new_tokens=20).token_ids
    assert model.generate(TEXT, max_new_tokens=20).token_ids == expected
    assert model.chat([{"role": "user", "content": TEXT}], max_new_tokens=20).token_ids == expected


def test_streamed_pieces_are_the_text(model: Model) -> None:
    stream = model.stream(TEXT, max_new_tokens=50, ignore_eos=True, draft="lookup")
    pieces = list(stream)
    assert "".join(pieces) == stream.result.text == model.tokenizer.decode(stream.result.token_ids)
    assert all(pieces)
    assert len(pieces) > 5


def test_options_and_changes(model: Model, prompt: list[int]) -> None:
    options = Options(max_new_tokens=5, ignore_eos=True)
    assert model.generate(prompt, options).new_tokens == 5
    assert model.generate(prompt, options, max_new_tokens=3).new_tokens == 3
    with pytest.raises(TypeError, match="max_tokens"):
        model.generate(prompt, max_tokens=3)


def test_tokens_without_a_tokenizer_have_no_text(mistral_bundle: Path) -> None:
    made = load(mistral_bundle, threads=1).generate([5, 6, 7], max_new_tokens=6, ignore_eos=True)
    assert (made.text, made.new_tokens) == ("", 6)


def test_numpy_integers_are_token_ids(model: Model, prompt: list[int], answer: list[int]) -> None:
    assert model.generate(list(np.array(prompt)), max_new_tokens=3).token_ids == answer[:3]


def test_a_model_goes_with_its_last_reference(llama_bundle: Path) -> None:
    """Its caches and mapped weights must not wait for the collector of cycles."""
    model = load(llama_bundle, threads=1)
    model.generate([5, 6, 7], draft="medusa", max_new_tokens=4, adaptive=False)
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_with_quantised_weights_trees_are_chains(model: Model, prompt: list[int]) -> None:
    """Their rows have the same bits as plain decoding, those of branching trees have not (decision 6)."""
    manifest = dataclasses.replace(model.bundle.manifest, quantization="int8")
    bundle = dataclasses.replace(model.bundle, manifest=manifest)
    quantised = Model(bundle, open_engines(bundle, "cpu", 1))
    made = quantised.generate(prompt, draft="medusa", adaptive=False, max_new_tokens=10, ignore_eos=True)
    assert set(made.trace.rows) == {4}, "three heads and the root"
    made = quantised.generate(prompt, draft="medusa", tree="0 1", adaptive=False, max_new_tokens=10, ignore_eos=True)
    assert set(made.trace.rows) == {3}


def test_the_json_document(model: Model, prompt: list[int]) -> None:
    made = model.generate(prompt, max_new_tokens=9, ignore_eos=True, draft="lookup", log_probabilities=True)
    document = json.loads(json.dumps(made.to_dict()))
    assert set(document) == {
        "text", "token_ids", "prompt_tokens", "new_tokens", "finish_reason", "draft", "steps",
        "tokens_per_step", "seconds", "tokens_per_second", "log_probabilities",
    }  # fmt: skip
    assert set(document["seconds"]) == {"load", "prefill", "decode"}
    assert all(value > 0 for value in document["seconds"].values())
    assert document["token_ids"] == made.token_ids
    assert document["tokens_per_second"] == pytest.approx(8 / made.seconds["decode"], rel=1e-3)
    assert "log_probabilities" not in model.generate(prompt, max_new_tokens=2).to_dict()
