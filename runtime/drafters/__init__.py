"""Drafters: what guesses the tokens that one verification checks. One file each; docs/drafters.md has an example.

A drafter sees the accepted tokens and the outputs of the step that verified them, and proposes a token tree with an
estimate, for each node, of the probability that the node will be accepted. The loop cuts the tree to what pays.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from seqrt.runtime.decoder import StepOutput
from seqrt.runtime.tree import Tree
from seqrt.runtime.verification import Drawn

__all__ = ["Drafter", "Learner", "Proposal", "most_probable"]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A drafted tree.

    Attributes:
        tree: nodes in the order in which they are worth verifying; the root first, parents before children.
        probability: float `[N]`, estimate that a node will be accepted; 1 for the root, never more than its parent's.
        drawn: how the drafts were sampled; None for a deterministic drafter.
    """

    tree: Tree
    probability: npt.NDArray[np.float64]
    drawn: Drawn | None = None

    def truncated(self, num_nodes: int) -> "Proposal":
        """The first nodes of the proposal."""
        if num_nodes >= self.tree.num_nodes:
            return self
        return Proposal(self.tree.truncated(num_nodes), self.probability[:num_nodes], self.drawn)

    @classmethod
    def nothing(cls, root: int) -> "Proposal":
        """The root alone: plain decoding."""
        return cls(Tree.chain([root]), np.ones(1))


class Drafter(Protocol):
    """One method of drafting, for one request after another.

    Attributes:
        name: what it is called.
        samples: its drafts are sampled, and every proposal says how (`drawn`).
    """

    name: str
    samples: bool

    def begin(self, tokens: Sequence[int], output: StepOutput) -> None:
        """A request starts.

        Args:
            tokens: its prompt, and the root at the end.
            output: what the prompt's rows computed, those excepted that were in the cache already.
        """

    def propose(self, root: int, max_nodes: int, rate: float = 0.0, prices: Sequence[float] = ()) -> Proposal:
        """Guesses what follows `root`.

        Args:
            root: the last decided token.
            max_nodes: most nodes of the tree, the root included.
            rate: tokens that a second is worth now, for drafters whose own work takes long; 0 spares nothing.
            prices: tokens that a second, third, ... row is worth: a node less probable will not be verified.
        """

    def observe(self, proposal: Proposal, path: Sequence[int], tokens: Sequence[int], output: StepOutput) -> None:
        """A step ended.

        Args:
            proposal: what was verified; a part of what was proposed, or the root alone.
            path: accepted nodes of it, the root first.
            tokens: newly decided tokens: the accepted drafts, then the next root.
            output: of the verification, its rows the nodes of the proposal.
        """


@runtime_checkable
class Learner(Drafter, Protocol):
    """A drafter whose knowledge can be kept from run to run."""

    def save(self, memory: Path) -> None:
        """Writes what it learnt to a file, for a drafter of the same model to go on from.

        Raises:
            RequestError: the file cannot be written.
        """


def most_probable(probability: npt.NDArray[np.float64], count: int) -> npt.NDArray[np.int64]:
    """The `count` most probable nodes of a tree, most probable first, parents before their children."""
    if count >= len(probability):
        return np.argsort(-probability, kind="stable")
    best = np.argpartition(-probability, count)[:count]
    return best[np.lexsort((best, -probability[best]))]
