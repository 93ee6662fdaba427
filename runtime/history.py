"""The tokens decided so far, with the counts that penalties ask for kept up to date."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


class History:
    """Prompt and output, root included. Append and pop are O(1), so a walk can try a path and go back.

    Attributes:
        tokens: all tokens; change them by append and pop only.
        num_prompt: how many of them were given rather than generated.
        counts: int64 [V + 1], occurrences of each token, or None when nothing asks for them.
        generated_counts: the same for the generated part.
    """

    __slots__ = ("_followers", "_ngram", "_vocab_size", "counts", "generated_counts", "num_prompt", "tokens")

    def __init__(
        self,
        prompt: Sequence[int],
        vocab_size: int,
        *,
        count: bool = False,
        count_generated: bool = False,
        ngram: int = 0,
    ) -> None:
        """Start from a prompt.

        Args:
            prompt: tokens that are given.
            vocab_size: V.
            count: keep `counts`.
            count_generated: keep `generated_counts`.
            ngram: keep what followed every (ngram - 1)-gram, for `ngram_followers`; 0 keeps nothing.
        """
        self.tokens: list[int] = []
        self.num_prompt = len(prompt)
        # One slot more takes tokens of the input that have no logit (vocabularies padded for embeddings).
        self._vocab_size = vocab_size
        self.counts: npt.NDArray[np.int64] | None = np.zeros(vocab_size + 1, np.int64) if count else None
        self.generated_counts: npt.NDArray[np.int64] | None = None
        self._ngram = ngram
        self._followers: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for token in prompt:
            self.append(token)
        if count_generated:
            self.generated_counts = np.zeros(vocab_size + 1, np.int64)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_generated(self) -> int:
        """How many tokens follow the prompt."""
        return len(self.tokens) - self.num_prompt

    def append(self, token: int) -> None:
        """Add a token to the end."""
        if self._ngram and len(self.tokens) >= self._ngram - 1:
            self._followers[self._prefix()].append(token)
        self.tokens.append(token)
        self._count(token, 1)

    def pop(self) -> int:
        """Take the last token away and return it."""
        token = self.tokens.pop()
        self._count(token, -1)
        if self._ngram and len(self.tokens) >= self._ngram - 1:
            self._followers[self._prefix()].pop()
        return token

    def ngram_followers(self) -> list[int]:
        """Tokens that would complete an n-gram which has already occurred."""
        if not self._ngram or len(self.tokens) < self._ngram:
            return []
        return self._followers.get(self._prefix(), [])

    def _prefix(self) -> tuple[int, ...]:
        return tuple(self.tokens[len(self.tokens) - self._ngram + 1 :])

    def _count(self, token: int, step: int) -> None:
        slot = min(token, self._vocab_size)
        if self.counts is not None:
            self.counts[slot] += step
        if self.generated_counts is not None:
            self.generated_counts[slot] += step
