"""Sampling against the processors of Hugging Face transformers, and K candidates against all V logits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as hf

from seqrt.errors import EngineError, RequestError
from seqrt.runtime.rows import Row, Rows
from seqrt.runtime.sampling import Sampler
from seqrt.runtime.settings import Sampling

VOCAB = 60
NEUTRAL: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "no_repeat_ngram": 0,
}


def option(name: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.just(NEUTRAL[name]) | values


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.6]),
    top_k=option("top_k", st.integers(1, VOCAB + 5)),
    top_p=option("top_p", st.floats(0.05, 1.0)),
    min_p=option("min_p", st.floats(0.0, 0.5)),
    repetition_penalty=option("repetition_penalty", st.floats(0.8, 2.0)),
    frequency_penalty=option("frequency_penalty", st.floats(-0.2, 1.0)),
    presence_penalty=option("presence_penalty", st.floats(-0.2, 1.0)),
    no_repeat_ngram=st.integers(0, 3),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-5, 5) | st.just(-np.inf), max_size=3),
    seed=st.integers(0, 2**64 - 1),
)
HISTORIES = st.tuples(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20), st.lists(st.integers(0, 9), max_size=20)
)


def random_logits(seed: int, scale: float = 3.0) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(VOCAB) * scale).astype(np.float32)


def row_of(logits: npt.NDArray[np.float32], k: int = VOCAB) -> Row:
    ids = np.argsort(-logits, kind="stable")[:k]
    return Row(ids, logits[ids], float(np.logaddexp.reduce(logits)))


def transformers_probabilities(
    s: Sampling, logits: npt.NDArray[np.float32], prompt: list[int], output: list[int]
) -> npt.NDArray[np.float64]:
    """What transformers draws from; frequency and presence penalty, which it lacks, by OpenAI's formula."""
    ids, scores = torch.tensor([prompt + output]), torch.tensor(logits, dtype=torch.float64)[None]
    if s.logit_bias:
        bias = {(token,): value for token, value in s.logit_bias.items()}
        scores = hf.SequenceBiasLogitsProcessor(bias)(ids, scores)
    scores = hf.RepetitionPenaltyLogitsProcessor(float(s.repetition_penalty))(ids, scores)
    for token, count in Counter(output).items():
        scores[0, token] -= count * s.frequency_penalty + s.presence_penalty
    if s.no_repeat_ngram:
        scores = hf.NoRepeatNGramLogitsProcessor(s.no_repeat_ngram)(ids, scores)
    if s.greedy:
        return np.asarray(np.arange(VOCAB) == int(scores.argmax()), np.float64)
    scores = hf.TemperatureLogitsWarper(s.temperature)(ids, scores)
    if s.top_k:
        scores = hf.TopKLogitsWarper(s.top_k)(ids, scores)
    if s.top_p < 1:
        scores = hf.TopPLogitsWarper(s.top_p)(ids, scores)
    scores = hf.MinPLogitsWarper(s.min_p)(ids, scores)
    probabilities: npt.NDArray[np.float64] = scores.softmax(-1)[0].numpy()
    return probabilities


def dense(found: tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    probabilities = np.zeros(VOCAB)
    np.add.at(probabilities, found[0], found[1])
    return probabilities


@pytest.mark.parametrize(
    "changed",
    [
        {"temperature": 0.6},
        {"top_k": 7},
        {"top_p": 0.8},
        {"min_p": 0.1},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.9},
        {"frequency_penalty": 0.4},
        {"presence_penalty": 0.7},
        {"no_repeat_ngram": 2},
        {"no_repeat_ngram": 1},
        {"logit_bias": {3: 4.0, 9: -np.inf}},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(5))
def test_each_processor_agrees_with_transformers(changed: dict[str, Any], seed: int) -> None:
    sampling = Sampling(**(NEUTRAL | changed))
    rng = np.random.default_rng(seed)
    prompt, output = rng.integers(0, VOCAB, 12).tolist(), rng.integers(0, 12, 12).tolist()
    check_against_transformers(sampling, seed, prompt, output)


@settings(deadline=None, max_examples=150)
@given(SAMPLINGS, st.integers(0, 2**31), HISTORIES)
def test_all_processors_together_agree_with_transformers(
    sampling: Sampling, seed: int, history: tuple[list[int], list[int]]
) -> None:
    check_against_transformers(sampling, seed, *history)


def check_against_transformers(sampling: Sampling, seed: int, prompt: list[int], output: list[int]) -> None:
    logits = random_logits(seed)
    sampler = Sampler(sampling, VOCAB)
    past = sampler.history(prompt)
    for given_token in output:
        past.append(given_token)
    found = sampler.distribution(row_of(logits), past)
    assert found is not None
    np.testing.assert_allclose(dense(found), transformers_probabilities(sampling, logits, prompt, output), atol=1e-7)
    token = sampler.pick(row_of(logits), past)
    assert token is not None
    assert dense(found)[token] > 0


@settings(deadline=None, max_examples=400)
@given(SAMPLINGS, st.integers(0, 2**31), st.sampled_from([1.0, 3.0, 8.0]), HISTORIES, st.integers(1, VOCAB - 1))
def test_candidates_decide_as_all_logits_would_or_not_at_all(
    sampling: Sampling, seed: int, scale: float, history: tuple[list[int], list[int]], k: int
) -> None:
    logits = random_logits(seed, scale)
    sampler = Sampler(sampling, VOCAB, eos_ids=[1], min_new_tokens=5)
    past = sampler.history(history[0])
    for given_token in history[1]:
        past.append(given_token)
    everything = row_of(logits)
    token, expected_token = sampler.pick(row_of(logits, k), past), sampler.pick(everything, past)
    assert token in (None, expected_token)
    found, expected = sampler.distribution(row_of(logits, k), past), sampler.distribution(everything, past)
    assert expected is not None
    if found is not None:
        np.testing.assert_allclose(dense(found), dense(expected), atol=1e-9)


@pytest.mark.parametrize("k", [5, 20])
@pytest.mark.parametrize("scale", [0.7, 3.0])
@pytest.mark.parametrize(
    "changed",
    [
        {"temperature": 0.5},
        {"temperature": 1.6},
        {"top_k": 30},
        {"top_k": 30, "top_p": 0.9},
        {"top_p": 0.5},
        {"top_p": 0.9},
        {"min_p": 0.05},
    ],
    ids=str,
)
def test_candidates_are_not_trusted_beyond_what_they_tell(changed: dict[str, Any], scale: float, k: int) -> None:
    decided = 0
    for seed in range(150):
        logits = random_logits(seed, scale)
        best_first = row_of(logits).ids.tolist()
        # penalties sink the best candidates under the floor, or tokens outside the candidates, or nothing
        past_tokens = [best_first[: k - 2], best_first[k:], [], best_first[:1]][seed % 4]
        for penalty in ({"repetition_penalty": 3.0}, {"logit_bias": dict.fromkeys(past_tokens, -4.0)}):
            sampler = Sampler(Sampling(**(NEUTRAL | changed | penalty | {"seed": seed})), VOCAB)
            past = sampler.history(past_tokens)
            token = sampler.pick(row_of(logits, k), past)
            assert token in (None, sampler.pick(row_of(logits), past))
            decided += token is not None
    assert decided > 0


@pytest.mark.parametrize(
    ("changed", "rate"),
    [
        ({"top_k": 20}, 1.0),
        ({"temperature": 1.7, "top_k": 20}, 1.0),
        ({"min_p": 0.2}, 1.0),
        ({"temperature": 0.5, "top_p": 0.9}, 0.99),
        ({"temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2}, 0.9),
        ({}, 0.9),
    ],
    ids=str,
)
def test_candidates_nearly_always_decide(changed: dict[str, Any], rate: float) -> None:
    decided = []
    for seed in range(200):
        sampler = Sampler(Sampling(**(NEUTRAL | changed), seed=seed), VOCAB)
        row = row_of(random_logits(seed), 30)
        decided.append(sampler.pick(row, sampler.history([1, 2, 3])) is not None)
    assert np.mean(decided) >= rate


def test_unrestricted_sampling_has_no_distribution_over_candidates() -> None:
    sampler = Sampler(Sampling(temperature=1.0), VOCAB)
    assert sampler.distribution(row_of(random_logits(0), 30), sampler.history([1])) is None


def test_draws_follow_the_probabilities() -> None:
    logits = random_logits(4, 1.5)
    expected = transformers_probabilities(Sampling(temperature=0.8, top_p=0.9), logits, [1], [])
    counts = np.zeros(VOCAB)
    for seed in range(20_000):
        sampler = Sampler(Sampling(temperature=0.8, top_p=0.9, seed=seed), VOCAB)
        token = sampler.pick(row_of(logits, 50), sampler.history([1]))
        if token is None:
            token = sampler.pick(row_of(logits), sampler.history([1]))
        counts[token] += 1
    assert np.abs(counts / 20_000 - expected).sum() / 2 < 0.025


def test_a_draw_depends_on_seed_and_position_only() -> None:
    row = row_of(random_logits(1, 0.5))
    texts = set()
    for seed in range(20):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed), VOCAB)
        past = sampler.history([7])
        tokens = []
        for _ in range(10):
            token = sampler.pick(row, past)
            assert sampler.pick(row, sampler.history(past.tokens[::-1])) == token
            tokens.append(token)
            past.append(0)
        assert len(set(tokens)) > 1
        texts.add(tuple(tokens))
    assert len(texts) == 20


def test_the_end_is_banned_until_the_minimum_length() -> None:
    logits = np.zeros(VOCAB, np.float32)
    logits[[4, 9]] = 10, 5
    for sampling in (Sampling(), Sampling(temperature=0.5, top_k=2)):
        sampler = Sampler(sampling, VOCAB, eos_ids=[4], min_new_tokens=2)
        past = sampler.history([4, 4, 4])
        for expected in (9, 9, 4):
            assert sampler.pick(row_of(logits, 10), past) == expected
            past.append(9)


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = np.zeros(VOCAB, np.float32)
    logits[[40, 8, 30]] = 2.0
    for sampling in (Sampling(), Sampling(presence_penalty=1.0)):
        sampler = Sampler(sampling, VOCAB)
        assert sampler.pick(row_of(logits, 10), sampler.history([0])) == 8


def test_choose_and_probabilities_fetch_all_logits_only_when_they_must() -> None:
    logits = random_logits(3)
    asked: list[int] = []

    def full(node: int) -> npt.NDArray[np.float32]:
        asked.append(node)
        return logits

    top = row_of(logits, 10)
    rows = Rows(top.ids[None], top.logits[None], np.array([top.logsumexp], np.float32), full)
    for sampling, times in (
        (Sampling(), 0),
        (Sampling(temperature=1.0, top_k=5), 0),
        (Sampling(logit_bias={int(row_of(logits).ids[-1]): 50.0}), 1),
    ):
        asked.clear()
        sampler = Sampler(sampling, VOCAB)
        past = sampler.history([1])
        token = sampler.choose(rows, 0, past)
        assert token == sampler.pick(row_of(logits), past)
        assert dense(sampler.probabilities(rows, 0, past))[token] > 0
        assert asked == [0] * 2 * times


def test_wrong_logits_are_an_engine_error() -> None:
    top = row_of(random_logits(3), 10)
    rows = Rows(top.ids[None], top.logits[None], np.zeros(1, np.float32), lambda node: np.zeros(7, np.float32))
    sampler = Sampler(Sampling(repetition_penalty=0.5), VOCAB)
    with pytest.raises(EngineError, match="7 logits for a vocabulary of 60"):
        sampler.choose(rows, 0, sampler.history([1]))
    row = Row(np.arange(VOCAB), np.full(VOCAB, np.nan, np.float32), float("nan"))
    sampler = Sampler(Sampling(temperature=1.0), VOCAB)
    with pytest.raises(EngineError, match="not numbers"):
        sampler.pick(row, sampler.history([1]))


def test_banning_every_token_is_refused() -> None:
    sampler = Sampler(Sampling(no_repeat_ngram=1), 4)
    with pytest.raises(RequestError, match="every token is banned by --no-repeat-ngram"):
        sampler.pick(Row(np.arange(4), np.zeros(4, np.float32), 0.0), sampler.history([0, 1, 2, 3]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"temperature": -1.0}, "--temperature is -1.0; give 0"),
        ({"temperature": float("nan")}, "--temperature is nan"),
        ({"temperature": float("inf")}, "--temperature is inf"),
        ({"temperature": 1e-9}, "--temperature is 1e-09"),
        ({"top_k": -1}, "--top-k is -1; give a whole number from 0"),
        ({"top_k": 1.5}, "--top-k is 1.5"),
        ({"top_p": 0.0}, "--top-p is 0.0; give more than 0 and at most 1"),
        ({"top_p": 1.1}, "--top-p is 1.1"),
        ({"top_p": float("nan")}, "--top-p is nan"),
        ({"min_p": -0.1}, "--min-p is -0.1"),
        ({"min_p": float("nan")}, "--min-p is nan"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty is 0.0"),
        ({"repetition_penalty": float("nan")}, "--repetition-penalty is nan"),
        ({"frequency_penalty": float("nan")}, "--frequency-penalty is nan"),
        ({"presence_penalty": float("inf")}, "--presence-penalty is inf"),
        ({"no_repeat_ngram": -2}, "--no-repeat-ngram is -2"),
        ({"logit_bias": {5: float("nan")}}, "--logit-bias is nan for token 5"),
        ({"logit_bias": {5: float("inf")}}, "--logit-bias is inf for token 5"),
        ({"seed": -1}, "--seed is -1"),
        ({"seed": 2**64}, "--seed is 18446744073709551616"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message.replace("(", r"\(")):
        Sampling(**changed)


def test_a_sampler_refuses_what_the_vocabulary_lacks() -> None:
    with pytest.raises(RequestError, match="names token 60; the vocabulary has ids 0 to 59"):
        Sampler(Sampling(logit_bias={60: 1.0}), VOCAB)
    with pytest.raises(RequestError, match="--min-new-tokens is -1"):
        Sampler(Sampling(), VOCAB, min_new_tokens=-1)


def test_plain_greedy_is_told_apart() -> None:
    assert Sampler(Sampling(), VOCAB).plain_greedy
    assert Sampler(Sampling(top_k=5), VOCAB, min_new_tokens=3).plain_greedy  # no end to ban
    assert not Sampler(Sampling(), VOCAB, eos_ids=[2], min_new_tokens=3).plain_greedy
    assert not Sampler(Sampling(repetition_penalty=1.1), VOCAB).plain_greedy
    assert not Sampler(Sampling(temperature=0.7), VOCAB).plain_greedy
