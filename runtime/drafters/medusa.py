"""Medusa drafting (arXiv 2401.10774): heads on the last accepted row fill a token tree.

The template says which candidates may combine; of its nodes, those with the highest joint probability are kept.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from seqrt.runtime.decoder import StepOutput
from seqrt.runtime.drafters import Proposal
from seqrt.runtime.engines import Engine
from seqrt.runtime.tree import Template, Tree

_DECAY: Final = 0.98  # of the running means, per observation
_PRIOR: Final = 0.4
_LEAST, _MOST = 1e-9, 0.99

Probabilities = npt.NDArray[np.float64]


class MedusaDrafter:
    """Trees from Medusa heads.

    Args:
        engine: graph hidden `[1, H]` -> token_ids, log_probabilities `[heads, k]`.
        template: nodes that a tree may have.

    Raises:
        RequestError: the template is deeper than there are heads, or wider than their candidates.
    """

    name = "medusa"

    def __init__(self, engine: Engine, template: Template) -> None:
        heads, candidates = (int(size) for size in engine.outputs["token_ids"].shape)
        template.check(heads, candidates)
        self.engine, self.template = engine, template
        self._hidden = engine.input("hidden", (1, int(engine.inputs["hidden"].shape[1])))
        self._ids = engine.output("token_ids", (heads, candidates))
        self._log = engine.output("log_probabilities", (heads, candidates))
        self._depth_index, self._rank_index = template.depth[1:] - 1, template.rank[1:]
        self._level = [np.flatnonzero(template.depth == depth) for depth in range(1, template.max_depth + 1)]
        # Running means over verified positions: how often a head was right, and how often it expected to be.
        self._hits, self._expected = np.full(heads, _PRIOR), np.full(heads, _PRIOR)
        self._own = np.ones(template.num_nodes)

    def begin(self, tokens: Sequence[int], output: StepOutput) -> None:
        """Takes the hidden state of the prompt's last row."""
        self._hidden[0] = output.hidden[-1]

    def propose(self, root: int, max_nodes: int) -> Proposal:
        """The `max_nodes` most probable nodes of the template, most probable first."""
        self.engine.run()
        template, count = self.template, min(max_nodes, self.template.num_nodes)
        tree = template.fill(root, self._ids)
        own, probability = self._probabilities()
        if count == template.num_nodes:
            order = np.argsort(-probability, kind="stable")
        else:
            best = np.argpartition(-probability, count)[:count]
            order = best[np.lexsort((best, -probability[best]))]
        self._own = own[order]
        return Proposal(_chosen(tree, order), probability[order])

    def observe(self, proposal: Proposal, path: Sequence[int], tokens: Sequence[int], output: StepOutput) -> None:
        """Takes the hidden state of the last accepted row, and learns how far the heads can be trusted."""
        self._hidden[0] = output.hidden[path[-1]]
        parents = proposal.tree.parents
        for depth in range(1, min(len(path), len(self._hits)) + 1):
            below = np.flatnonzero(parents == path[depth - 1])
            if not len(below):
                return
            head = depth - 1
            self._hits[head] += (1 - _DECAY) * (float(depth < len(path)) - self._hits[head])
            self._expected[head] += (1 - _DECAY) * (float(self._own[below].sum()) - self._expected[head])

    def _probabilities(self) -> tuple[Probabilities, Probabilities]:
        """For the template's nodes `[N]`: the head's own probability, and the calibrated product along the path."""
        table = np.exp(self._log, dtype=np.float64)
        own, product = np.ones(self.template.num_nodes), np.ones(self.template.num_nodes)
        own[1:] = table[self._depth_index, self._rank_index]
        trusted = table * (self._hits / self._expected)[:, None]
        np.clip(trusted, _LEAST, _MOST, out=trusted)  # so that a child always comes after its parent
        product[1:] = trusted[self._depth_index, self._rank_index]
        for nodes in self._level[1:]:
            product[nodes] *= product[self.template.parents[nodes]]
        return own, product


def _chosen(tree: Tree, order: npt.NDArray[np.int64]) -> Tree:
    """The tree of the nodes `order`, in this order; parents come before children in it."""
    place = np.full(tree.num_nodes, -1)
    place[order] = np.arange(len(order))
    parents = np.where(tree.parents[order] < 0, -1, place[tree.parents[order]])
    return Tree.assemble(
        tree.tokens[order], parents, tree.depth[order], np.ascontiguousarray(tree.ancestors[np.ix_(order, order)])
    )
