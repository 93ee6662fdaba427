"""Drafts from a corpus (REST, arXiv 2311.08252): what followed the last words in texts like this one.

The corpus is sorted by its suffixes once; the longest suffix of the text that occurs in it is found by bisection, and
what came after its occurrences makes a tree, the more frequent continuations first.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from heapq import nlargest
from typing import Final

import numpy as np
import numpy.typing as npt

from seqrt.runtime.decoder import StepOutput
from seqrt.runtime.drafters import Proposal
from seqrt.runtime.tree import Tree

MAX_NGRAM: Final = 6  # tokens that a match may have; places are sorted by so many
_DEPTH: Final = 8  # tokens that are drafted behind a match
_SAMPLE: Final = 32  # occurrences that are looked at
_DECAY: Final = 0.95  # of the running acceptance, per observation
_PRIOR: Final = (0.1, 0.2, 0.4, 0.6, 0.7, 0.8)  # that the next token is among those seen after a match of 1, 2, ...


class CorpusDrafter:
    """Trees of what followed in a corpus.

    Args:
        tokens: of the corpus, int64 `[N]`.
        branches: propose all continuations; False proposes the most frequent one alone.
    """

    name = "corpus"
    samples = False

    def __init__(self, tokens: npt.NDArray[np.int64], *, branches: bool = True) -> None:
        padded = np.append(tokens, np.full(MAX_NGRAM, -1))
        columns = [padded[shift : shift + len(tokens)] for shift in reversed(range(MAX_NGRAM))]
        self._order = np.lexsort(columns)  # places in the corpus, sorted by the tokens from there on
        self._corpus: list[int] = tokens.tolist()
        self._branches = branches
        self._acceptance = list(_PRIOR)
        self._match = 0
        self._text: list[int] = []

    def begin(self, tokens: Sequence[int], output: StepOutput) -> None:
        """A text starts."""
        self._text = list(tokens[-MAX_NGRAM:])

    def propose(self, root: int, max_nodes: int, rate: float = 0.0, prices: Sequence[float] = ()) -> Proposal:
        """The most probable continuations of the longest suffix that the corpus has."""
        for size in range(min(MAX_NGRAM, len(self._text)), 0, -1):
            places = self._places(self._text[-size:])
            if len(places):
                self._match = size
                return self._tree(root, places + size, max_nodes)
        self._match = 0
        return Proposal.nothing(root)

    def observe(self, proposal: Proposal, path: Sequence[int], tokens: Sequence[int], output: StepOutput) -> None:
        """Learns how often the next token was among those proposed, by the length of the match."""
        if proposal.tree.num_nodes > 1:
            size = self._match - 1
            self._acceptance[size] += (1 - _DECAY) * (float(len(path) > 1) - self._acceptance[size])
        self._text = [*self._text, *tokens][-MAX_NGRAM:]

    def _places(self, suffix: list[int]) -> npt.NDArray[np.int64]:
        """Up to _SAMPLE of the places where these tokens stand, spread over all of them."""
        size, corpus = len(suffix), self._corpus

        def words(place: int) -> list[int]:
            return corpus[place : place + size]

        first = bisect_left(self._order, suffix, key=words)
        last = bisect_right(self._order, suffix, first, key=words)
        return self._order[first : last : -(-(last - first) // _SAMPLE) or 1]

    def _tree(self, root: int, starts: npt.NDArray[np.int64], max_nodes: int) -> Proposal:
        """A trie of the continuations; a node's probability is the share of occurrences that go through it."""
        counts: dict[tuple[int, ...], int] = {}
        for start in starts.tolist():
            continuation = tuple(self._corpus[start : start + _DEPTH])
            for length in range(1, len(continuation) + 1):
                counts[continuation[:length]] = counts.get(continuation[:length], 0) + 1
        if not self._branches:
            counts = _main_branch(counts)
        # Longer paths occur no more often than those they begin with, which come first among equals.
        best = nlargest(max_nodes - 1, counts, key=lambda node: (counts[node], -len(node)))
        place = {(): 0} | {node: index for index, node in enumerate(best, start=1)}
        parents = [-1, *(place[node[:-1]] for node in best)]
        tree = Tree(np.array([root, *(node[-1] for node in best)]), np.array(parents))
        trusted = self._acceptance[self._match - 1]
        share = np.array([1.0, *(trusted * counts[node] / len(starts) for node in best)])
        return Proposal(tree, share)


def _main_branch(counts: dict[tuple[int, ...], int]) -> dict[tuple[int, ...], int]:
    """The path that takes the most frequent token at each step."""
    kept: dict[tuple[int, ...], int] = {}
    path: tuple[int, ...] = ()
    while below := [node for node in counts if node[:-1] == path]:
        path = max(below, key=lambda node: counts[node])
        kept[path] = counts[path]
    return kept
