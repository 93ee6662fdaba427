"""Scores of given texts against transformers."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from seqrt.errors import RequestError
from seqrt.runtime.model import Model, load

LogitsOf = Callable[[Any, list[int]], npt.NDArray[np.float32]]


@pytest.fixture(scope="module")
def model(llama_bundle: Path) -> Model:
    return load(llama_bundle, threads=1)


@pytest.mark.parametrize("length", [2, 3, 128, 129, 130, 600, 1023])
def test_log_probabilities_perplexity_and_best_tokens(
    model: Model, llama: Any, logits_of: LogitsOf, length: int
) -> None:
    """Around the rows that are read out together (128), and more than a chunk of the prompt."""
    tokens = [int(token) for token in np.random.default_rng(length).integers(0, 272, length)]
    logits = logits_of(llama, tokens)[:-1].astype(np.float64)
    expected = (logits - np.log(np.exp(logits).sum(1, keepdims=True)))[np.arange(length - 1), tokens[1:]]
    scores = model.score(tokens)
    assert scores.token_ids.tolist() == tokens
    np.testing.assert_allclose(scores.log_probabilities, expected, atol=1e-4)
    np.testing.assert_array_equal(scores.top1_ids, logits.argmax(1))
    assert scores.perplexity == pytest.approx(math.exp(-expected.mean()), rel=1e-4)


def test_texts_are_scored_as_they_are(model: Model) -> None:
    """Without the chat template."""
    text = "the string of the thing"
    scores = model.score(text)
    assert scores.token_ids.tolist() == model.encode(text)


def test_scores_do_not_depend_on_what_was_in_the_cache(model: Model) -> None:
    tokens = list(range(10, 60))
    first = model.score(tokens)
    model.generate(tokens[:20], max_new_tokens=30)
    again = model.score(tokens)
    np.testing.assert_array_equal(first.log_probabilities, again.log_probabilities)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([], r"^the prompt is empty; give some text$"),
        ([5], r"^scoring needs two tokens, the text has 1; give a longer one$"),
        ([5] * 1025, r"^the prompt has 1025 tokens, the bundle's capacity is 1024"),
        ([5, 300], r"^the prompt has token 300; ids are whole numbers from 0 to 271$"),
    ],
)
def test_texts_that_cannot_be_scored(model: Model, text: list[int], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        model.score(text)
