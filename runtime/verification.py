"""Which drafts are kept: the rules that walk a verified tree from its root.

greedy   At each node take the most probable token; go to the child that has it, or stop. The same text as
         without drafting.
match    At each node draw a token from the model's distribution; go to the child that has it, or stop. The
         token that caused the stop is emitted, never drawn again, so the text has the model's distribution
         whatever the tree, if the tree was made without looking at the draws. They are keyed by (seed,
         position): one seed gives one text with any such drafter.
reject   For drafts that were sampled: accept child c, drawn from q, with probability min(1, p(c) / q(c));
         after a rejection go on with the residual max(p - q, 0). Keeps the model's distribution (SpecInfer,
         2305.09781; drafts drawn without replacement: RSD, 2402.14160, Sequoia, 2402.12374).
typical  Accept children whose probability exceeds min(threshold, alpha * exp(-entropy)). LOSSY: it does not
         keep the model's distribution (Medusa, arXiv 2401.10774, section 2.3.1).
unseen   Accept every draft. LOSSY, and no --accept: the drafter proposes only what it is confident of (Lexical Unit
         Decoding, arXiv 2405.15208; runtime/drafters/lud.py).

A node whose token is none of the vocabulary (PAD) is never accepted. Every walk asks for a node's distribution only
when it gets there, because penalties depend on the path.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from seqrt.errors import RequestError
from seqrt.runtime import draws
from seqrt.runtime.history import History
from seqrt.runtime.penalties import FloatArray
from seqrt.runtime.rows import Rows
from seqrt.runtime.sampling import Sampler
from seqrt.runtime.tree import Tree

RULES = ("greedy", "match", "reject", "typical")
UNSEEN = "unseen"
POSTERIOR_THRESHOLD = 0.09
POSTERIOR_ALPHA = 0.3  # Medusa's default, the square root of its threshold


@dataclass(frozen=True, slots=True)
class Accepted:
    """The outcome of one verification.

    Attributes:
        path: accepted nodes from the root, which is always the first.
        next_token: the token that follows the path: the next root.
    """

    path: list[int]
    next_token: int


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """How a tree's drafts were sampled, for rule reject.

    Siblings must stand in the order in which they were drawn, and none may have been dropped for what it is.

    Attributes:
        probabilities: for every node with children, float64 [V], the distribution of its first child.
        with_replacement: siblings were drawn independently, rather than each from what its elders left.
    """

    probabilities: Mapping[int, FloatArray]
    with_replacement: bool = False


class Verifier:
    """One rule, ready to judge trees.

    Attributes:
        rule: one of RULES, or UNSEEN.
    """

    def __init__(
        self,
        rule: str | None,
        sampler: Sampler,
        *,
        samples_drafts: bool = False,
        threshold: float = POSTERIOR_THRESHOLD,
        alpha: float = POSTERIOR_ALPHA,
    ) -> None:
        """Choose a rule.

        Args:
            rule: one of RULES, or UNSEEN; None takes greedy at temperature 0, else reject for drafts that are sampled
                and match for all others.
            sampler: the model's distribution.
            samples_drafts: the drafter samples its drafts and tells how (Drawn).
            threshold: of rule typical.
            alpha: of rule typical.

        Raises:
            RequestError: the rule is unknown or does not go with the temperature or the drafter.
        """
        if rule is None:
            rule = "greedy" if sampler.sampling.greedy else "reject" if samples_drafts else "match"
        if rule not in (*RULES, UNSEEN):
            raise RequestError(f"--accept is {rule!r}; choose one of {', '.join(RULES)}")
        if rule == "greedy" and not sampler.sampling.greedy:
            raise RequestError(
                f"--accept greedy goes with --temperature 0, which is {sampler.sampling.temperature};"
                " use --accept match"
            )
        if rule == "reject" and not samples_drafts:
            raise _not_drawn()
        for name, value in (("threshold", threshold), ("alpha", alpha)):
            if not 0 < value <= 1:
                raise RequestError(f"--posterior-{name} is {value}; give more than 0 and at most 1")
        self.rule = rule
        self._sampler = sampler
        self._threshold, self._alpha = threshold, alpha

    def accept(self, tree: Tree, rows: Rows, history: History, drawn: Drawn | None = None) -> Accepted:
        """Judge a tree.

        Args:
            tree: the drafts.
            rows: what the model says after each node.
            history: everything decided, the root included; as it was on return.
            drawn: how the drafts were sampled; only rule reject asks, and only where there are drafts.
        """
        if self.rule == "reject":
            if drawn is None and tree.num_nodes > 1:
                raise _not_drawn()
            return accept_reject(tree, rows, self._sampler, history, drawn or Drawn({}))
        if self.rule == "typical":
            return accept_typical(tree, rows, self._sampler, history, self._threshold, self._alpha)
        if self.rule == UNSEEN:
            return accept_unseen(tree, rows, self._sampler, history)
        if self._sampler.plain_greedy:
            return accept_greedy(tree, rows)
        return accept_match(tree, rows, self._sampler, history)


def accept_greedy(tree: Tree, rows: Rows) -> Accepted:
    """Rule greedy where nothing but the logits counts: one comparison for all nodes at once."""
    best = rows.ids[:, 0]
    if tree.num_nodes == 1:
        return Accepted([0], int(best[0]))
    hits = np.flatnonzero(tree.tokens[1:] == best[tree.parents[1:]]) + 1
    path = [0]
    # Children stand after their parents, so one pass in order meets each next node of the path.
    for node, parent in zip(hits.tolist(), tree.parents[hits].tolist(), strict=True):
        if parent == path[-1]:
            path.append(node)
    return Accepted(path, int(best[path[-1]]))


def accept_match(tree: Tree, rows: Rows, sampler: Sampler, history: History) -> Accepted:
    """Rule match; at temperature 0 it is rule greedy with penalties."""
    path, base = [0], len(history)
    try:
        while True:
            token = sampler.choose(rows, path[-1], history)
            found = np.flatnonzero((tree.parents == path[-1]) & (tree.tokens == token))
            if not found.size:
                return Accepted(path, token)
            path.append(int(found[0]))
            history.append(token)
    finally:
        _go_back(history, base)


def accept_reject(tree: Tree, rows: Rows, sampler: Sampler, history: History, drawn: Drawn) -> Accepted:
    """Rule reject. Acceptance and residual have random streams of their own, apart from the drafter's."""
    path, base = [0], len(history)
    try:
        while children := tree.children(path[-1]):
            target = np.zeros(sampler.vocab_size)
            ids, probabilities = sampler.probabilities(rows, path[-1], history)
            target[ids] = probabilities
            accepted, residual = _try_children(tree, children, target, drawn, path[-1], sampler, history)
            if accepted is None:
                return Accepted(path, _draw(residual, sampler, history))
            path.append(accepted)
            history.append(int(tree.tokens[accepted]))
        return Accepted(path, sampler.choose(rows, path[-1], history))
    finally:
        _go_back(history, base)


def _try_children(
    tree: Tree,
    children: list[int],
    target: FloatArray,
    drawn: Drawn,
    node: int,
    sampler: Sampler,
    history: History,
) -> tuple[int | None, FloatArray]:
    """The first child that is accepted, if any, and the distribution that is left for the next token."""
    draft = drawn.probabilities[node].astype(np.float64)  # a copy: rejected tokens are taken out of it
    for index, child in enumerate(children):
        token = tree.tokens[child]
        u = draws.uniform(sampler.sampling.seed, draws.ACCEPT, len(history), index)
        if u * draft[token] < target[token]:
            return child, target
        residual = np.maximum(target - draft, 0.0)
        if not residual.any():  # p equals q up to rounding: a rejection had no weight to begin with
            return None, target
        target = residual / residual.sum()
        if not drawn.with_replacement:
            draft[token] = 0.0
            if not draft.any():
                return None, target
            draft /= draft.sum()
    return None, target


def _draw(probabilities: FloatArray, sampler: Sampler, history: History) -> int:
    cumulative = np.cumsum(probabilities)
    u = draws.uniform(sampler.sampling.seed, draws.RESIDUAL, len(history))
    index = int(cumulative.searchsorted(u * cumulative[-1], "right"))
    return min(index, int(np.flatnonzero(probabilities)[-1]))  # u * total may round up to the total


def accept_typical(
    tree: Tree, rows: Rows, sampler: Sampler, history: History, threshold: float, alpha: float
) -> Accepted:
    """Rule typical: the deepest path of acceptable nodes, the more probable one where several are as deep."""
    base = len(history)
    best: tuple[int, float, list[int]] = (0, 0.0, [0])

    def walk(path: list[int], log_probability: float) -> None:
        nonlocal best
        best = max(best, (len(path), log_probability, path), key=lambda found: found[:2])
        children = tree.children(path[-1])
        if not children:
            return
        ids, probabilities = sampler.probabilities(rows, path[-1], history)
        held = probabilities[probabilities > 0]
        bar = min(threshold, alpha * math.exp(float((held * np.log(held)).sum())))
        for child in children:
            p = float(probabilities[ids == tree.tokens[child]].sum())
            if p > bar:
                history.append(int(tree.tokens[child]))
                walk([*path, child], log_probability + math.log(p))
                history.pop()

    try:
        walk([0], 0.0)
        path = best[2]
        for node in path[1:]:
            history.append(int(tree.tokens[node]))
        return Accepted(path, sampler.choose(rows, path[-1], history))
    finally:
        _go_back(history, base)


def accept_unseen(tree: Tree, rows: Rows, sampler: Sampler, history: History) -> Accepted:
    """Rule unseen: to the end of the first path whose nodes are tokens, and one token more."""
    path, base = [0], len(history)
    try:
        while children := [child for child in tree.children(path[-1]) if tree.tokens[child] < sampler.vocab_size]:
            path.append(children[0])
            history.append(int(tree.tokens[path[-1]]))
        return Accepted(path, sampler.choose(rows, path[-1], history))
    finally:
        _go_back(history, base)


def _go_back(history: History, length: int) -> None:
    while len(history) > length:
        history.pop()


def _not_drawn() -> RequestError:
    return RequestError(
        "--accept reject needs drafts that were sampled with known probabilities, and this drafter does not"
        " sample; use --accept match, which keeps the model's distribution too"
    )
