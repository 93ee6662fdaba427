"""The running counts of a history against counting from scratch."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from seqrt.runtime.history import History


@given(
    st.lists(st.integers(0, 5), max_size=8),
    st.lists(st.integers(0, 5) | st.none(), max_size=30),
    st.integers(0, 3),
)
def test_counts_and_followers_match_a_recount(prompt: list[int], steps: list[int | None], ngram: int) -> None:
    history = History(prompt, 4, count=True, count_generated=True, ngram=ngram)
    tokens = list(prompt)
    for step in steps:  # None goes back by one
        if step is not None:
            tokens.append(step)
            history.append(step)
        elif len(tokens) > len(prompt):
            assert history.pop() == tokens.pop()
        assert history.tokens == tokens
        assert history.num_generated == len(tokens) - len(prompt)
        # ids 4 and 5 have no logit and share the spare slot
        np.testing.assert_array_equal(history.counts, np.bincount(np.minimum(tokens, 4).astype(int), minlength=5))
        generated = np.minimum(tokens[len(prompt) :], 4).astype(int)
        np.testing.assert_array_equal(history.generated_counts, np.bincount(generated, minlength=5))
        windows = [tuple(tokens[i : i + ngram]) for i in range(len(tokens) - ngram + 1)] if ngram else []
        last = tuple(tokens[len(tokens) - ngram + 1 :])
        assert history.ngram_followers() == [w[-1] for w in windows if w[:-1] == last]
