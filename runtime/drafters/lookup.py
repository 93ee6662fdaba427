"""Prompt lookup (Saxena 2023; LLMA, arXiv 2304.04487): what followed the same words before, follows again.

The longest suffix of the text that occurred earlier, up to MAX_NGRAM tokens, proposes what came after its latest
occurrence. Needs no training, and wins where answers copy: summaries, extraction, code edits.
"""

from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import Final

import numpy as np

from seqrt.runtime.decoder import StepOutput
from seqrt.runtime.drafters import Proposal
from seqrt.runtime.tree import Tree

MAX_NGRAM: Final = 4
_DECAY: Final = 0.9  # of the running acceptance, per observation
_PRIOR: Final = (0.3, 0.5, 0.7, 0.8)  # acceptance of the next token after a match of 1, 2, ... tokens


class LookupDrafter:
    """Chains copied from earlier in the text."""

    name = "lookup"
    samples = False

    def __init__(self) -> None:
        self._acceptance = list(_PRIOR)
        self._match = 0
        self._tokens: list[int] = []
        self._latest: list[dict[tuple[int, ...], int]] = []

    def begin(self, tokens: Sequence[int], output: StepOutput) -> None:
        """Indexes the prompt."""
        self._tokens, self._latest = [], [{} for _ in range(MAX_NGRAM)]
        self._extend(tokens)

    def propose(self, root: int, max_nodes: int, rate: float = 0.0, prices: Sequence[float] = ()) -> Proposal:
        """The tokens after the latest occurrence of the longest suffix that occurred before; O(MAX_NGRAM)."""
        tokens = self._tokens
        for size in range(min(MAX_NGRAM, len(tokens) - 1), 0, -1):
            start = self._latest[size - 1].get(tuple(tokens[-size:]))
            if start is not None:
                draft = self._copy(start, max_nodes - 1)
                self._match = size
                # A token that was accepted makes the match one longer: acceptance rises along the chain.
                rates = [self._acceptance[min(size + i, MAX_NGRAM) - 1] for i in range(len(draft))]
                return Proposal(Tree.chain([root, *draft]), np.array([*accumulate([1.0, *rates], mul)]))
        self._match = 0
        return Proposal.nothing(root)

    def observe(self, proposal: Proposal, path: Sequence[int], tokens: Sequence[int], output: StepOutput) -> None:
        """Moves the running acceptance of each match length towards what just happened; indexes the tokens."""
        for depth in range(1, min(proposal.tree.num_nodes, len(path) + 1)):
            size = min(self._match + depth - 1, MAX_NGRAM)
            hit = float(depth < len(path))
            self._acceptance[size - 1] = _DECAY * self._acceptance[size - 1] + (1 - _DECAY) * hit
        self._extend(tokens)

    def _copy(self, start: int, length: int) -> list[int]:
        """`length` tokens from `start`; a copy that reaches the end of the text goes on with itself."""
        tokens, period = self._tokens, len(self._tokens) - start
        return [tokens[start + i % period] for i in range(length)]

    def _extend(self, tokens: Sequence[int]) -> None:
        """Appends tokens; n-grams are indexed once something follows them."""
        known = self._tokens
        for token in tokens:
            for size in range(1, min(MAX_NGRAM, len(known)) + 1):
                self._latest[size - 1][tuple(known[-size:])] = len(known)
            known.append(token)
