"""Lexical Unit Decoding (arXiv 2405.15208): PADs behind the text predict what follows the next token.

A model that learnt it (tools/lud) reads PAD as a token that is not known yet. Where the last token and k - 1 PADs
behind it are computed together, the token's row gives the next token t0 as always, and the row of PAD j gives tj, j
places later. The next step computes the rows of t0, t1, ... as the real tokens that they are now, and new PADs:

    tokens   root d1 .. dm   PAD PAD PAD        root is t0 of the step before, d1 .. dm are its t1 .. tm
    rows     what follows    the next drafts

Verify mode, the default, asks these rows whether d1, d2, ... are what the model says: the text is that of plain
decoding. Paper mode takes tj unseen while the confidence of all t1 .. tj, the model's own probability whatever the
temperature, is above beta; that is LOSSY. No PAD is ever committed. The authors released no code; the repetition guard
is as others reported it.

PADs may stand behind any draft, for the case that the walk ends there. A PAD is worth the probability of that times the
probability that what it says will be accepted in the next step; the loop keeps those that pay.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from seqrt.runtime.decoder import StepOutput
from seqrt.runtime.drafters import Proposal
from seqrt.runtime.drafters.trust import Probabilities, Trust
from seqrt.runtime.tree import Tree

_LEAST: Final = 1e-9  # worth of a PAD: a child comes after its parent
_PRIOR: Final = 0.6  # how often what a PAD says is right, before anything was seen


class LudDrafter:
    """Chains of what PADs said, with new PADs behind them.

    Args:
        pad: the token PAD, the first after the vocabulary.
        lookahead: most tokens of a unit k, of which PADs predict k - 1.
        beta: of paper mode: a token is taken if its confidence is higher; None verifies.
    """

    name = "lud"
    samples = False

    def __init__(self, pad: int, lookahead: int, beta: float | None = None) -> None:
        self.pad, self.lookahead, self.beta = pad, lookahead, beta
        self._trust = Trust(lookahead - 1, _PRIOR)
        self._drafts: list[int] = []
        self._own = np.ones(0)  # confidence of each draft
        self._proposed = 0  # drafts in the last proposal
        self._pads: dict[int, list[int]] = {}  # rows of the PADs behind each node of the last proposal
        self._text: list[int] = []  # the last two tokens

    def begin(self, tokens: Sequence[int], output: StepOutput) -> None:
        """A prompt has no PADs: the first step verifies nothing."""
        self._drafts, self._own, self._pads, self._proposed = [], np.ones(0), {}, 0
        self._text = list(tokens[-2:])

    def propose(self, root: int, max_nodes: int, rate: float = 0.0, prices: Sequence[float] = ()) -> Proposal:
        """Drafts, as many as pay, and PADs behind them, worth most first; without prices all, behind the last draft."""
        lookahead = min(self.lookahead, (max_nodes + 1) // 2)
        most = min(len(self._drafts), max(lookahead - 1, 0))
        self._pads = {}
        if lookahead < 2:
            self._proposed = 0
            return Proposal.nothing(root)
        chance = self._chances(most)
        if not len(prices):
            worth = np.zeros((most + 1, lookahead - 1))
            worth[-1] = chance[-1]
            return self._proposal(root, chance, worth, max_nodes)
        reach: Probabilities = np.cumprod(np.array([self._trust.hits(j) for j in range(lookahead - 1)]))
        options = [self._worth(chance[: count + 1], reach) for count in range(most + 1)]
        gains = [self._gain(chance[: count + 1], worth, prices) for count, worth in enumerate(options)]
        count = most - int(np.argmax(gains[::-1]))  # of equals the most drafts
        return self._proposal(root, chance[: count + 1], options[count], max_nodes)

    def observe(self, proposal: Proposal, path: Sequence[int], tokens: Sequence[int], output: StepOutput) -> None:
        """Reads what the PADs behind the last accepted node say, and learns how far PADs can be trusted."""
        nodes = proposal.tree.num_nodes
        verified = min(self._proposed, nodes - 1)
        if verified:
            own = np.concatenate(([1.0], self._own[:verified]))
            self._trust.observe(proposal.tree.parents[: verified + 1], own, path)
        elif nodes == 1:
            self._trust.relax()
        rows = [row for row in self._pads.get(path[-1], ()) if row < nodes]
        self._drafts = output.topk_ids[rows, 0].tolist()
        self._own = np.exp(output.topk_logits[rows, 0].astype(np.float64) - output.logsumexp[rows])
        if self.beta is not None:
            self._text = [*self._text, *tokens][-3:]  # the next token, and the last pair before it
            self._drafts = self._drafts[: self._taken(self.beta)]
        self._pads, self._proposed = {}, 0

    def _taken(self, beta: float) -> int:
        """How many drafts paper mode takes: contiguous, confident, and none that repeats what was just said."""
        last, pairs = self._text[-1], set(pairwise(self._text))
        for count, (token, own) in enumerate(zip(self._drafts, self._own, strict=True)):
            if own <= beta or token == last or (last, token) in pairs:
                return count
            pairs.add((last, token))
            last = token
        return len(self._drafts)

    def _chances(self, count: int) -> Probabilities:
        """`[count + 1]`, that the walk gets to the root, to the first draft and so on."""
        rates = [1.0, *(float(self._trust.calibrated(j, self._own[j])) for j in range(count))]
        chance: Probabilities = np.cumprod(np.array(rates))
        return chance

    def _worth(self, chance: Probabilities, reach: Probabilities) -> Probabilities:
        """`[nodes, PADs]`: tokens of the next step that each PAD behind each node is expected to bring."""
        ends = chance - np.append(chance[1:], 0.0)
        worth: Probabilities = np.maximum(ends[:, None] * reach, _LEAST)
        return worth

    def _gain(self, chance: Probabilities, worth: Probabilities, prices: Sequence[float]) -> float:
        """Tokens that the best part of a proposal brings beyond what its rows cost."""
        values = np.concatenate((chance[1:], np.sort(worth, axis=None)[::-1]))[: len(prices)]
        gain = np.concatenate(([0.0], np.cumsum(values - np.asarray(prices[: len(values)]))))
        return float(gain[min(len(chance), len(gain)) - 1 :].max())

    def _proposal(self, root: int, chance: Probabilities, worth: Probabilities, max_nodes: int) -> Proposal:
        """The drafts, and behind them the PADs that are worth most."""
        drafts = len(chance) - 1
        tokens = [root, *self._drafts[:drafts]]
        parents, probability = list(range(-1, drafts)), chance.tolist()
        each = worth.shape[1]
        # Of one node, PADs fall in worth, and a stable order keeps equals: parents come first.
        for place in np.argsort(-worth, axis=None, kind="stable")[: max_nodes - drafts - 1].tolist():
            node, j = divmod(place, each)
            if worth[node, j] == 0.0:  # without prices none but the last node has PADs
                break
            behind = self._pads.setdefault(node, [])
            parents.append(behind[-1] if behind else node)
            behind.append(len(tokens))
            tokens.append(self.pad)
            probability.append(float(worth[node, j]))
        self._proposed = drafts
        return Proposal(Tree(np.array(tokens), np.array(parents)), np.array(probability))
