"""Prompt lookup: what it proposes, against a search that looks at the text itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrt.runtime.decoder import StepOutput
from seqrt.runtime.drafters import Proposal
from seqrt.runtime.drafters.lookup import MAX_NGRAM, LookupDrafter

NOTHING = StepOutput(
    np.zeros((1, 1), np.int64),
    np.zeros((1, 1), np.float32),
    np.zeros(1, np.float32),
    np.zeros((1, 1), np.float32),
)

texts = st.lists(st.integers(0, 4), min_size=1, max_size=60)


def begun(text: list[int]) -> LookupDrafter:
    drafter = LookupDrafter()
    drafter.begin(text, NOTHING)
    return drafter


def searched(text: list[int], length: int) -> list[int]:
    """The tokens after the latest earlier occurrence of the longest suffix; a copy of the end goes round."""
    for size in range(min(MAX_NGRAM, len(text) - 1), 0, -1):
        for start in range(len(text) - size - 1, -1, -1):
            if text[start : start + size] == text[-size:]:
                copied = list(text)
                for i in range(length):
                    copied.append(copied[start + size + i])
                return copied[len(text) :]
    return []


def drafts(proposal: Proposal) -> list[int]:
    assert (np.diff(proposal.tree.parents) == 1).all(), "a chain"
    tokens: list[int] = proposal.tree.tokens[1:].tolist()
    return tokens


@given(text=texts, length=st.integers(0, 20))
def test_the_latest_continuation_of_the_longest_suffix(text: list[int], length: int) -> None:
    proposal = begun(text).propose(text[-1], length + 1)
    assert proposal.tree.tokens[0] == text[-1]
    assert drafts(proposal) == searched(text, length)


@given(text=texts, more=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=5), max_size=6))
def test_tokens_that_come_later_are_searched_too(text: list[int], more: list[list[int]]) -> None:
    drafter, text = begun(text), list(text)
    for tokens in more:
        drafter.observe(Proposal.nothing(text[-1]), [0], tokens, NOTHING)
        text += tokens
    assert drafts(drafter.propose(text[-1], 9)) == searched(text, 8)


@given(text=texts, hits=st.lists(st.integers(0, 8), max_size=30))
def test_estimates_are_probabilities_that_fall_along_the_chain(text: list[int], hits: list[int]) -> None:
    drafter = begun(text)
    for hit in hits:
        proposal = drafter.propose(text[-1], 9)
        estimates = proposal.probability
        assert estimates[0] == 1
        assert ((estimates >= 0) & (estimates <= 1)).all()
        assert (np.diff(estimates) <= 0).all()
        assert len(estimates) == proposal.tree.num_nodes
        path = list(range(min(hit, proposal.tree.num_nodes - 1) + 1))
        drafter.observe(proposal, path, [*drafts(proposal)[: len(path) - 1], 3], NOTHING)
        text = [*text, *drafts(proposal)[: len(path) - 1], 3]


@pytest.mark.parametrize("is_right", [False, True])
def test_estimates_follow_what_happens(is_right: bool) -> None:
    """A text of period 3, whose copies are always accepted or always rejected."""
    drafter = begun([1, 2, 3] * 3)
    before = drafter.propose(3, 4).probability.copy()
    for _ in range(60):
        proposal = drafter.propose(0, 4)
        count = proposal.tree.num_nodes if is_right else 1
        tokens = [*drafts(proposal)[: count - 1], drafts(proposal)[0] if is_right else 1]
        drafter.observe(proposal, list(range(count)), tokens if is_right else [1, 2, 3], NOTHING)
    after = drafter.propose(0, 4).probability
    assert ((after > before) if is_right else (after < before))[1:].all()
    assert after[1] > 0.95 if is_right else after[1] < 0.1


def test_a_new_request_forgets_the_text_of_the_last() -> None:
    drafter = begun([1, 2, 3, 1, 2, 3, 1])
    assert drafts(drafter.propose(1, 3)) == [2, 3]
    drafter.begin([5, 6, 1], NOTHING)
    assert drafts(drafter.propose(1, 3)) == []
    assert drafter.propose(1, 3).probability.tolist() == [1.0]
