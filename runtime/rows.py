"""What an engine says about the next token: the best candidates of every row, or all logits of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Float32Array = npt.NDArray[np.float32]


class Row(NamedTuple):
    """Candidates for the token that follows one node.

    Attributes:
        ids: int64 [K].
        logits: float32 [K], descending; tokens that are not among `ids` have none above the last.
        logsumexp: over the whole vocabulary, of the same logits.
    """

    ids: IntArray
    logits: Float32Array
    logsumexp: float


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The outputs of one verification.

    Attributes:
        ids: int64 [N, K], as in Row.
        logits: float32 [N, K].
        logsumexp: float32 [N].
        full: gives float32 [V], all logits of a node; slow, and only called when K candidates do not decide.
    """

    ids: IntArray
    logits: Float32Array
    logsumexp: Float32Array
    full: Callable[[int], Float32Array]

    def candidates(self, node: int) -> Row:
        """The K best candidates after a node."""
        return Row(self.ids[node], self.logits[node], float(self.logsumexp[node]))

    def every(self, node: int) -> Row:
        """The whole vocabulary after a node, as a row of V candidates; equal logits stand in order of id."""
        logits = self.full(node)
        ids = np.argsort(-logits, kind="stable")
        return Row(ids, logits[ids], float(self.logsumexp[node]))
