"""Medusa drafting (arXiv 2401.10774): heads on the last accepted row fill a token tree.

The template says which candidates may combine; of its nodes, those with the highest joint probability are kept.
"""

from collections.abc import Sequence

import numpy as np

from seqrt.runtime.decoder import StepOutput
from seqrt.runtime.drafters import Proposal, most_probable
from seqrt.runtime.drafters.trust import Probabilities, Trust
from seqrt.runtime.engines import Engine
from seqrt.runtime.tree import Template


class MedusaDrafter:
    """Trees from Medusa heads.

    Args:
        engine: graph hidden `[1, H]` -> token_ids, log_probabilities `[heads, k]`.
        template: nodes that a tree may have.

    Raises:
        RequestError: the template is deeper than there are heads, or wider than their candidates.
    """

    name = "medusa"
    samples = False

    def __init__(self, engine: Engine, template: Template) -> None:
        heads, candidates = (int(size) for size in engine.outputs["token_ids"].shape)
        template.check(heads, candidates)
        self.engine, self.template = engine, template
        self._hidden = engine.input("hidden", (1, int(engine.inputs["hidden"].shape[1])))
        self._ids = engine.output("token_ids", (heads, candidates))
        self._log = engine.output("log_probabilities", (heads, candidates))
        self._levels = [np.flatnonzero(template.depth == depth) for depth in range(1, template.max_depth + 1)]
        self._trust = Trust(heads)
        self._own = np.ones(template.num_nodes)

    def begin(self, tokens: Sequence[int], output: StepOutput) -> None:
        """Takes the hidden state of the prompt's last row."""
        self._hidden[0] = output.hidden[-1]

    def propose(self, root: int, max_nodes: int, rate: float = 0.0, prices: Sequence[float] = ()) -> Proposal:
        """The `max_nodes` most probable nodes of the template, most probable first."""
        self.engine.run()
        own, probability = self._probabilities()
        order = most_probable(probability, max_nodes)
        self._own = own[order]
        return Proposal(self.template.fill(root, self._ids).chosen(order), probability[order])

    def observe(self, proposal: Proposal, path: Sequence[int], tokens: Sequence[int], output: StepOutput) -> None:
        """Takes the hidden state of the last accepted row, and learns how far the heads can be trusted."""
        self._hidden[0] = output.hidden[path[-1]]
        self._trust.observe(proposal.tree.parents, self._own, path)

    def _probabilities(self) -> tuple[Probabilities, Probabilities]:
        """For the template's nodes `[N]`: the head's own probability, and the calibrated product along the path."""
        table = np.exp(self._log, dtype=np.float64)
        template = self.template
        own, product = np.ones(template.num_nodes), np.ones(template.num_nodes)
        for head, nodes in enumerate(self._levels):
            own[nodes] = table[head, template.rank[nodes]]
            product[nodes] = self._trust.calibrated(head, own[nodes]) * product[template.parents[nodes]]
        return own, product
