"""Log-probabilities of a given text: what perplexity and the quality of a quantised bundle are measured with."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from seqrt.runtime.decoder import Decoder, Floats

_ROWS: Final = 128  # full logits of so many rows at a time: 25 MB for a vocabulary of 49,152


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What the model says of a text of N tokens.

    Attributes:
        token_ids: int64 `[N]`.
        log_probabilities: float64 `[N - 1]`, of each token after the first given those before.
        top1_ids: int64 `[N - 1]`, the most probable token at each of these places.
    """

    token_ids: npt.NDArray[np.int64]
    log_probabilities: npt.NDArray[np.float64]
    top1_ids: npt.NDArray[np.int64]

    @property
    def perplexity(self) -> float:
        """Exp of the mean negative log-probability."""
        return math.exp(-float(self.log_probabilities.mean()))


def score_tokens(decoder: Decoder, full_logits: Callable[[Floats], Floats], tokens: Sequence[int]) -> Scores:
    """Runs the text through an empty cache and reads off the probability of each next token."""
    hidden = np.concatenate([output.hidden for output in decoder.prefill(tokens)])[:-1]
    following = np.asarray(tokens[1:], np.int64)
    log_probabilities, top1 = np.empty(len(following)), np.empty(len(following), np.int64)
    for start in range(0, len(following), _ROWS):
        part = slice(start, start + _ROWS)
        logits = full_logits(hidden[part])
        best = logits.max(1, keepdims=True)
        total = best[:, 0] + np.log(np.exp(logits - best).sum(1, dtype=np.float64))
        log_probabilities[part] = np.take_along_axis(logits, following[part, None], 1)[:, 0] - total
        top1[part] = logits.argmax(1)
    return Scores(np.asarray(tokens, np.int64), log_probabilities, top1)
