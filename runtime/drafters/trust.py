"""How far draft heads can be trusted on this text: running means of what they expected and of what came true."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

_DECAY: Final = 0.98  # of the running means, per observation
_RELAX: Final = 0.002  # of the way back, per step in which nothing was asked: far slower than it is learnt
_PRIOR: Final = 0.4
_LEAST, _MOST = 1e-9, 0.99  # so that a child always comes after its parent

Probabilities = npt.NDArray[np.float64]


class Trust:
    """One factor a head: the rate at which it was right over the rate at which it expected to be.

    Args:
        num_heads: head i guesses the nodes of depth i + 1.
        prior: both rates before anything was seen.
    """

    def __init__(self, num_heads: int, prior: float = _PRIOR) -> None:
        self._hits, self._expected, self._prior = np.full(num_heads, prior), np.full(num_heads, prior), prior

    def hits(self, head: int) -> float:
        """How often the token that follows was among those that a head proposed."""
        return float(self._hits[head])

    def calibrated(self, head: int, own: Probabilities) -> Probabilities:
        """What the probabilities that a head gave are worth."""
        worth: Probabilities = np.clip(own * (self._hits[head] / self._expected[head]), _LEAST, _MOST)
        return worth

    def relax(self) -> None:
        """Nothing was asked: what is believed moves back to where it began, so that it is tried again some time."""
        for rates in (self._hits, self._expected):
            rates += _RELAX * (self._prior - rates)

    def observe(self, parents: npt.NDArray[np.int64], own: Probabilities, path: Sequence[int]) -> None:
        """A tree was verified.

        Args:
            parents: of its nodes.
            own: the probability that its head gave to each node.
            path: accepted nodes, the root first.
        """
        for head in range(min(len(path), len(self._hits))):
            below = np.flatnonzero(parents == path[head])
            if not len(below):
                return
            self._hits[head] += (1 - _DECAY) * (float(head + 1 < len(path)) - self._hits[head])
            self._expected[head] += (1 - _DECAY) * (float(own[below].sum()) - self._expected[head])
