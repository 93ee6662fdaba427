"""From logits to a token: penalties, temperature, truncation and one keyed draw.

The steps and their order are those of Hugging Face transformers: see penalties.py, then temperature,
top-k, top-p and min-p, each over what the one before has left.

What is exact. The engine gives the K best raw logits of V and the log-sum-exp of all. A decision is made
from them only when it is the one that all V logits would give (up to the rounding of logsumexp,
LOGSUMEXP_ERROR); otherwise `pick` and `distribution` return None and the caller comes back with all V
logits.

* No token outside the candidates has a logit above the last candidate's, the floor. Penalties may push
  candidates under the floor; those that stay above it are the best of all V, in order. What raises tokens
  outside the candidates (a positive bias on one, a repetition penalty under 1, a negative frequency or
  presence penalty) needs all V.
* The token is the first, best ones first, whose cumulative weight exceeds u times the weight of the
  support, so it takes no more than bounds on that weight. Top-k within the candidates and min-p above the
  floor give it exactly. Otherwise the weight outside is bounded: relative to the floor each raw weight
  outside is in [0, 1], and logsumexp gives their sum n; at temperature T each is raised to 1/T, so by
  convexity their sum lies between n and m * (n/m)**(1/T), with m = V - K (equal at T = 1). Penalties may
  lower any of them: the lower bound is then 0.
* If both bounds give the same token, it is the token. Unrestricted sampling therefore needs all V logits
  only for draws near or beyond the mass that the candidates hold.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from seqrt.errors import EngineError, RequestError
from seqrt.runtime import draws
from seqrt.runtime.history import History
from seqrt.runtime.penalties import FloatArray, Penalties
from seqrt.runtime.rows import IntArray, Row, Rows
from seqrt.runtime.settings import Sampling

LOGSUMEXP_ERROR = 3e-5  # relative error of exp(logsumexp): float32 sums over a large vocabulary


class _Support(NamedTuple):
    """The tokens that may be drawn, best first, as far as the candidates tell.

    ids [n] with cumulative weights [n]. The support has between `low` and `high` tokens, where n + 1 means
    that some of them are not in ids, and its weight lies between low_weight and high_weight.
    """

    ids: IntArray
    cumulative: FloatArray
    low: int
    high: int
    low_weight: float
    high_weight: float


class Sampler:
    """Draws tokens by the rules of one Sampling; keeps no state between calls.

    Attributes:
        sampling: the rules.
        vocab_size: V, the number of logits.
        plain_greedy: the token is always the first candidate.
    """

    def __init__(
        self,
        sampling: Sampling,
        vocab_size: int,
        *,
        eos_ids: Collection[int] = (),
        min_new_tokens: int = 0,
    ) -> None:
        """Prepare for a vocabulary.

        Args:
            sampling: the rules.
            vocab_size: V.
            eos_ids: tokens that end the text.
            min_new_tokens: eos_ids are not drawn before that many tokens were generated.

        Raises:
            RequestError: min_new_tokens is negative or the bias names a token outside the vocabulary.
        """
        self.sampling = sampling
        self.vocab_size = vocab_size
        self._penalties = Penalties(sampling, vocab_size, eos_ids, min_new_tokens)
        self.plain_greedy = sampling.greedy and not self._penalties.exist

    def history(self, prompt: Sequence[int]) -> History:
        """A history that starts from a prompt and counts what these rules need."""
        return self._penalties.history(prompt)

    def choose(self, rows: Rows, node: int, history: History) -> int:
        """The token after a node; `history` ends with the node's own token. Errors as in `pick`."""
        if self.plain_greedy:
            return int(rows.ids[node, 0])
        token = self.pick(rows.candidates(node), history)
        if token is None:
            token = self.pick(self._every(rows, node), history)
            assert token is not None, "all logits always decide"
        return token

    def probabilities(self, rows: Rows, node: int, history: History) -> tuple[IntArray, FloatArray]:
        """The distribution of the token after a node; `history` ends with the node's own token."""
        found = self.distribution(rows.candidates(node), history)
        if found is None:
            found = self.distribution(self._every(rows, node), history)
            assert found is not None, "all logits always decide"
        return found

    def pick(self, row: Row, history: History) -> int | None:
        """The next token, drawn by (seed, len(history)); None when these candidates do not decide it.

        Greedy takes the largest logit, the lowest id among equals.

        Raises:
            RequestError: the settings ban every token.
            EngineError: the logits hold NaN.
        """
        if self.plain_greedy:
            return int(row.ids[0])
        support = self._support(row, history)
        if support is None:
            return None
        ids, cumulative, low, _, low_weight, high_weight = support
        u = draws.uniform(self.sampling.seed, draws.TOKEN, len(history))
        index = int(cumulative.searchsorted(u * low_weight, "right"))
        if low_weight == high_weight:
            index = min(index, low - 1)  # u * weight may round up to the weight itself
        elif index != cumulative.searchsorted(u * high_weight, "right"):
            return None
        return int(ids[index]) if index < len(ids) else None

    def distribution(self, row: Row, history: History) -> tuple[IntArray, FloatArray] | None:
        """Tokens [n] and their probabilities [n], best first; None as in `pick`.

        Unrestricted sampling (no top-k, top-p or min-p) has all V tokens in its support and needs all V.
        """
        if self.plain_greedy:
            return row.ids[:1], np.ones(1)
        support = self._support(row, history)
        if support is None or support.low != support.high or support.low > len(support.ids):
            return None
        cumulative = support.cumulative[: support.low]
        return support.ids[: support.low], np.diff(cumulative, prepend=0.0) / cumulative[-1]

    def _every(self, rows: Rows, node: int) -> Row:
        row = rows.every(node)
        if len(row.ids) != self.vocab_size:
            raise EngineError(
                f"the engine gave {len(row.ids)} logits for a vocabulary of {self.vocab_size}; export the bundle again"
            )
        return row

    def _support(self, row: Row, history: History) -> _Support | None:
        """What may be drawn; None when the candidates do not even tell which token is the best."""
        is_complete = len(row.ids) == self.vocab_size
        floor = -math.inf if is_complete else float(row.logits[-1])
        ids, logits = row.ids, row.logits.astype(np.float64)
        is_altered = self._penalties.are_active(history)
        if is_altered:
            if not is_complete and self._penalties.may_raise_outside(ids):
                return None
            logits = self._penalties.apply(row, history)
            order = np.lexsort((ids, -logits))
            ids, logits = ids[order], logits[order]
        best = float(logits[0])
        if best < floor:
            return None
        if not best > -math.inf:
            raise _no_token(best)
        if self.sampling.greedy:
            return _Support(ids[:1], np.ones(1), 1, 1, 1.0, 1.0)
        # Below the floor a token outside the candidates may come first.
        known = int(np.count_nonzero((logits >= floor) & (logits > -np.inf)))
        s, rest = self.sampling, (0.0, 0.0)
        if 0 < s.top_k <= known:
            known = int(np.count_nonzero(logits[:known] >= logits[s.top_k - 1]))  # equals of the k-th stay
        elif floor > -math.inf:
            low, high = self._outside(row, floor, best, is_altered)
            below = float(_weights(logits[known:], best, s.temperature).sum())
            rest = (0.0 if s.top_k else low + below, high + below)
        return self._truncate(ids[:known], logits[:known], floor, rest)

    def _truncate(self, ids: IntArray, logits: FloatArray, floor: float, rest: tuple[float, float]) -> _Support:
        """Temperature, top-p and min-p.

        Args:
            ids: int64 [n], the best of all V that top-k lets through.
            logits: float64 [n], descending.
            floor: no other token's logit is above it.
            rest: bounds on the weight of all others that top-k lets through.
        """
        s, n, best = self.sampling, len(ids), float(logits[0])
        cumulative = np.cumsum(_weights(logits, best, s.temperature))
        low_weight, high_weight = float(cumulative[-1]) + rest[0], float(cumulative[-1]) + rest[1]
        low = high = n + (rest[1] > 0)
        if s.top_p < 1:
            low = min(low, 1 + int(cumulative.searchsorted(s.top_p * low_weight)))
            high = min(high, 1 + int(cumulative.searchsorted(s.top_p * high_weight)))
        if s.min_p > 0:
            limit = best + s.temperature * math.log(s.min_p)
            kept = int(np.count_nonzero(logits >= limit))
            if kept < n or floor < limit:
                low, high = min(low, kept), min(high, kept)
        # A nucleus that ends outside the candidates holds top_p of the weight and at most one token more.
        least = 0.0 if s.min_p > 0 else s.top_p * low_weight
        most = s.top_p * high_weight + math.exp(max((floor - best) / s.temperature, -700.0))
        low_weight = float(cumulative[low - 1]) if low <= n else max(float(cumulative[-1]), least)
        high_weight = float(cumulative[high - 1]) if high <= n else min(high_weight, most)
        return _Support(ids, cumulative, low, high, low_weight, high_weight)

    def _outside(self, row: Row, floor: float, best: float, is_altered: bool) -> tuple[float, float]:
        """Bounds on the weight of all tokens outside the candidates, relative to that of `best`."""
        temperature, num_outside = self.sampling.temperature, self.vocab_size - len(row.ids)
        # in units of the floor's own raw weight; exp(700) is as good as infinite and does not overflow
        total = math.exp(min(row.logsumexp - floor, 700.0))
        inside = float(np.exp(np.minimum(row.logits.astype(np.float64) - floor, 700.0)).sum())
        error = LOGSUMEXP_ERROR * total
        least = min(max(total - inside - error, 0.0), float(num_outside))
        most = min(max(total - inside + error, 0.0), float(num_outside))
        unit = math.exp(max((floor - best) / temperature, -700.0))
        low, high = (num_outside * (n / num_outside) ** (1 / temperature) for n in (least, most))
        return (0.0 if is_altered else min(least, low) * unit), max(most, high) * unit


def _weights(logits: FloatArray, best: float, temperature: float) -> FloatArray:
    """exp((logits - best) / temperature), without underflow."""
    weights: FloatArray = np.exp(np.maximum((logits - best) / temperature, -700.0))
    return weights


def _no_token(best: float) -> RequestError | EngineError:
    if math.isnan(best):
        return EngineError("the model gave logits that are not numbers; try the bundle in fp32")
    return RequestError(
        "every token is banned by --no-repeat-ngram, --logit-bias or --min-new-tokens; relax one of them"
    )
