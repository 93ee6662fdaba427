"""How tokens are drawn, as a user states it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from seqrt.errors import RequestError

MIN_TEMPERATURE = 1e-3  # below it the weights of all but the best token vanish; 0 says that plainly


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Rules for drawing the next token; the defaults are plain greedy decoding.

    Attributes:
        temperature: 0 takes the most probable token; otherwise logits are divided by it.
        top_k: draw from the k most probable tokens only; 0 is off.
        top_p: draw from the fewest tokens that hold this much probability; 1 is off.
        min_p: drop tokens with less than this fraction of the best one's probability; 0 is off.
        repetition_penalty: divides the positive and multiplies the negative logits of tokens in prompt or
            output; 1 is off.
        frequency_penalty: taken from a token's logit for each time it was generated; 0 is off.
        presence_penalty: taken once from the logit of each token that was generated; 0 is off.
        no_repeat_ngram: no n-gram of this length occurs twice in prompt and output; 0 is off.
        logit_bias: added to the logits of these tokens before anything else; -inf bans a token.
        seed: same seed, same text.

    Raises:
        RequestError: a value is not a number or out of its range; the message names the option.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    no_repeat_ngram: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        t = self.temperature
        require(t == 0 or MIN_TEMPERATURE <= t < math.inf, "temperature", t, "0 (greedy) or 0.001 or more")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "more than 0 and at most 1 (1 is off)")
        require(0 <= self.min_p <= 1, "min_p", self.min_p, "0 (off) to 1")
        r = self.repetition_penalty
        require(0 < r < math.inf, "repetition_penalty", r, "a number above 0 (1 is off)")
        for name in ("frequency_penalty", "presence_penalty"):
            require(math.isfinite(getattr(self, name)), name, getattr(self, name), "a finite number (0 is off)")
        for name in ("top_k", "no_repeat_ngram"):
            value = getattr(self, name)
            require(is_whole(value) and value >= 0, name, value, "a whole number from 0 (off)")
        is_seed = is_whole(self.seed) and 0 <= self.seed < 1 << 64
        require(is_seed, "seed", self.seed, "a whole number from 0 to 2**64 - 1")
        for token, bias in self.logit_bias.items():
            require(is_whole(token), "logit_bias", f"for token {token!r}", "whole numbers as token ids")
            require(bias < math.inf, "logit_bias", f"{bias} for token {token}", "a finite number, or -inf to ban")

    @property
    def greedy(self) -> bool:
        """The most probable token is taken; nothing is drawn."""
        return self.temperature == 0

    @property
    def plain_order(self) -> bool:
        """Nothing but the temperature changes the logits."""
        return not (
            self.repetition_penalty != 1
            or self.frequency_penalty
            or self.presence_penalty
            or self.no_repeat_ngram
            or self.logit_bias
        )


def is_whole(value: object) -> bool:
    """Whether it is an integer, numpy's included, and not a bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def require(holds: bool, name: str, value: object, wanted: str) -> None:
    """Raises RequestError in the words of the command line unless the option `name` is as `wanted`."""
    if not holds:
        raise RequestError(f"--{name.replace('_', '-')} is {value}; give {wanted}")
