"""Token Recycling (arXiv 2408.08696): after a token comes what the model put after it the last time.

A matrix holds, for every token of the vocabulary, the candidates that the model last gave behind it. A tree is filled
from it level by level; every verified node, accepted or not, then renews its own row. Needs no training and no graph,
and what it learnt goes on from prompt to prompt and, in a file, from run to run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from seqrt.errors import RequestError
from seqrt.runtime.decoder import StepOutput
from seqrt.runtime.drafters import Proposal, most_probable
from seqrt.runtime.files import write_whole
from seqrt.runtime.tree import Template, Tree

RANKS: Final = 8  # candidates that are kept of each token
_DECAY: Final = 0.98  # of the running acceptance, per observation
_PRIOR: Final = 0.3  # acceptance of the best candidate; each further one half as much
_MOST: Final = 0.99  # so that a child always comes after its parent


class RecyclingDrafter:
    """Trees from the matrix of candidates.

    Args:
        vocab_size: V.
        template: nodes that a tree may have; ranks below RANKS.
        memory: file to go on from, if it exists.

    Raises:
        RequestError: the template is wider than RANKS, or the file is of another model, damaged, or in no folder.
    """

    name = "recycling"
    samples = False

    def __init__(self, vocab_size: int, template: Template, memory: Path | None = None) -> None:
        template.check(template.max_depth, RANKS)
        self.template = template
        self._unknown = vocab_size  # stands for a candidate that was never seen; has only such candidates itself
        self.matrix = np.full((vocab_size + 1, RANKS), self._unknown, np.int32)
        if memory is not None and memory.exists():
            self._load(memory)
        elif memory is not None and not memory.parent.is_dir():
            raise RequestError(f"--memory {memory} is in no folder that exists; make {memory.parent} first")
        self._levels = [np.flatnonzero(template.depth == depth) for depth in range(1, template.max_depth + 1)]
        self._acceptance = _PRIOR / 2.0 ** np.arange(RANKS)
        self._ranks = np.zeros(1, np.int64)

    def begin(self, tokens: Sequence[int], output: StepOutput) -> None:
        """Takes the candidates behind the prompt's last token; the matrix stays."""
        self._renew(np.array(tokens[-2:-1]), output.topk_ids[-1:])

    def propose(self, root: int, max_nodes: int, rate: float = 0.0, prices: Sequence[float] = ()) -> Proposal:
        """The `max_nodes` most probable nodes of the template that the matrix knows tokens for."""
        template = self.template
        tokens, probability = np.full(template.num_nodes, root, np.int64), np.ones(template.num_nodes)
        for nodes in self._levels:
            above, ranks = template.parents[nodes], template.rank[nodes]
            tokens[nodes] = self.matrix[tokens[above], ranks]
            probability[nodes] = probability[above] * self._acceptance[ranks] * (tokens[nodes] != self._unknown)
        order = most_probable(probability, min(max_nodes, int(np.count_nonzero(probability))))
        self._ranks = template.rank[order]
        tree = Tree.assemble(tokens, template.parents, template.depth, template.ancestors)
        return Proposal(tree.chosen(order), probability[order])

    def observe(self, proposal: Proposal, path: Sequence[int], tokens: Sequence[int], output: StepOutput) -> None:
        """Renews the row of every verified token, and moves the acceptance of each rank towards what happened."""
        tree = proposal.tree
        self._renew(tree.tokens, output.topk_ids)
        for depth, node in enumerate(path):
            below = np.flatnonzero(tree.parents == node)
            hits = below == (path[depth + 1] if depth + 1 < len(path) else -1)
            ranks = self._ranks[below]
            self._acceptance[ranks] += (1 - _DECAY) * (hits * _MOST - self._acceptance[ranks])

    def save(self, memory: Path) -> None:
        """Writes the matrix, for a drafter of the same model to go on from.

        Raises:
            RequestError: the file cannot be written.
        """

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.save(file, self.matrix)

        try:
            write_whole(memory, write)
        except OSError as error:
            raise RequestError(f"--memory {memory} cannot be written: {error.strerror}; choose another file") from error

    def _renew(self, tokens: np.ndarray, candidates: np.ndarray) -> None:
        ranks = min(RANKS, candidates.shape[1])
        self.matrix[tokens, :ranks] = candidates[:, :ranks]

    def _load(self, memory: Path) -> None:
        try:
            # Mapped, so that nothing is allocated for what a damaged file claims to hold.
            matrix = np.lib.format.open_memmap(memory, mode="r")
        except (OSError, ValueError) as error:
            raise RequestError(f"--memory {memory} is no file that seqrt wrote; choose another file") from error
        is_ours = matrix.shape == self.matrix.shape and matrix.dtype == self.matrix.dtype
        if not is_ours or matrix.min() < 0 or matrix.max() > self._unknown:
            raise RequestError(f"--memory {memory} is of another model; choose another file")
        self.matrix = np.array(matrix)
