"""Log-probabilities of a given text: what perplexity and the quality of a quantised bundle are measured with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from seqrt.runtime.decoder import Decoder
from seqrt.runtime.engines import Engine

_ROWS: Final = 128  # at a time: the engine keeps 25 MB of logits for a vocabulary of 49,152


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


def score_tokens(decoder: Decoder, score: Engine, tokens: Sequence[int]) -> Scores:
    """Runs the text through an empty cache, and its hidden states and next tokens through the score graph."""
    hidden = np.concatenate([output.hidden for output in decoder.prefill(tokens)])[:-1]
    following = np.asarray(tokens[1:], np.int64)
    log_probabilities, top1 = np.empty(len(following)), np.empty(len(following), np.int64)
    for start in range(0, len(following), _ROWS):
        part = slice(start, start + _ROWS)
        rows = (len(following[part]),)
        score.input("hidden", (*rows, hidden.shape[1]))[:] = hidden[part]
        score.input("token_ids", rows)[:] = following[part]
        found, best = score.output("log_probabilities", rows), score.output("top1_ids", rows)
        score.run()
        log_probabilities[part], top1[part] = found, best
    return Scores(np.asarray(tokens, np.int64), log_probabilities, top1)
