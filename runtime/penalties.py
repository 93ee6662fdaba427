"""What changes logits before the temperature does: bias, penalties and bans, in the order of Hugging Face."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from seqrt.errors import RequestError
from seqrt.runtime.history import History
from seqrt.runtime.rows import IntArray, Row
from seqrt.runtime.settings import Sampling

FloatArray = npt.NDArray[np.float64]


class Penalties:
    """Logit bias, repetition, frequency and presence penalty, no repeated n-gram, no early end.

    The repetition penalty is that of CTRL (arXiv 1909.05858) over prompt and output; frequency and presence
    penalty are OpenAI's and count the output only.
    """

    def __init__(self, sampling: Sampling, vocab_size: int, eos_ids: Collection[int], min_new_tokens: int) -> None:
        """Prepare for a vocabulary; arguments and errors as in Sampler."""
        if min_new_tokens < 0:
            raise RequestError(f"--min-new-tokens is {min_new_tokens}; give 0 or more")
        self._sampling = sampling
        self._vocab_size = vocab_size
        self._eos_ids = list(eos_ids)
        self._min_new_tokens = min_new_tokens if self._eos_ids else 0
        bias = sampling.logit_bias
        for token in bias:
            if not 0 <= token < vocab_size:
                raise RequestError(f"--logit-bias names token {token}; the vocabulary has ids 0 to {vocab_size - 1}")
        self._bias: FloatArray | None = None
        if bias:
            self._bias = np.zeros(vocab_size)
            self._bias[list(bias)] = list(bias.values())
        self._raised = np.array([token for token in bias if bias[token] > 0], np.int64)
        # True when they may raise tokens that are known only from the history
        self.raise_any = (
            sampling.repetition_penalty < 1 or sampling.frequency_penalty < 0 or sampling.presence_penalty < 0
        )
        self.exist = bool(self._min_new_tokens) or not sampling.plain_order

    def history(self, prompt: Sequence[int]) -> History:
        """A history that starts from a prompt and counts what these penalties need."""
        s = self._sampling
        return History(
            prompt,
            self._vocab_size,
            count=s.repetition_penalty != 1,
            count_generated=bool(s.frequency_penalty or s.presence_penalty),
            ngram=s.no_repeat_ngram,
        )

    def are_active(self, history: History) -> bool:
        """Whether the next logits may change; the minimum length matters only until it is reached."""
        return self.exist and (not self._sampling.plain_order or history.num_generated < self._min_new_tokens)

    def may_raise_outside(self, ids: IntArray) -> bool:
        """Whether a token that is not among `ids` may rise."""
        return self.raise_any or not (self._raised.size == 0 or np.isin(self._raised, ids).all())

    def apply(self, row: Row, history: History) -> FloatArray:
        """The candidates' logits [K] after everything; -inf for what is banned."""
        s, ids = self._sampling, row.ids
        logits: FloatArray = row.logits.astype(np.float64)
        if self._bias is not None:
            logits += self._bias[ids]
        if history.counts is not None:
            r = s.repetition_penalty
            scaled = np.where(logits < 0, logits * r, logits / r)
            logits = np.where(history.counts[ids] > 0, scaled, logits)
        if history.generated_counts is not None:
            count = history.generated_counts[ids]
            logits -= s.frequency_penalty * count + s.presence_penalty * (count > 0)
        banned = history.ngram_followers()
        if history.num_generated < self._min_new_tokens:
            banned = banned + self._eos_ids
        if banned:
            logits[np.isin(ids, banned)] = -np.inf
        return logits
