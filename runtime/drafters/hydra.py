"""Hydra drafting (arXiv 2402.05109): heads that know the path fill a token tree, a depth at a time.

The template says which candidates may follow which. Deeper heads run while what they may bring in pays for the time
that they take, which is measured as they run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Final

import numpy as np
import numpy.typing as npt

from seqrt.runtime.bundle import STATIC_ROOM
from seqrt.runtime.decoder import Floats, StepOutput
from seqrt.runtime.drafters import Proposal, most_probable
from seqrt.runtime.drafters.trust import Trust
from seqrt.runtime.engines import Engine
from seqrt.runtime.tree import Template, Tree

_DECAY: Final = 0.9  # of the running cost of a head
_FADE: Final = 0.99  # of that, each time the head is left out for it
_GRAIN: Final = 256  # rows that the prefix layer's cache grows by

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Level:
    """What one head fills in.

    Attributes:
        parents: nodes `[P]` of one depth that have children.
        paths: `[P, depth + 1]`, the nodes from the root to each parent.
        children: nodes `[N]` of the next depth.
        rows, ranks: child i is candidate `ranks[i]` after path `rows[i]`.
    """

    parents: Ints
    paths: Ints
    children: Ints
    rows: Ints
    ranks: Ints

    def only(self, kept: npt.NDArray[np.bool_]) -> "_Level":
        """The part of it that some of the parents have."""
        if kept.all():
            return self
        below = kept[self.rows]
        rows = (np.cumsum(kept) - 1)[self.rows[below]]
        return _Level(self.parents[kept], self.paths[kept], self.children[below], rows, self.ranks[below])


class HydraDrafter:
    """Trees from Hydra heads.

    Args:
        heads: graphs state `[1, H]`, path `[P, i + 1]` -> token_ids, log_probabilities `[P, k]`, one a depth.
        template: nodes that a tree may have.
        prefix: the graph of Hydra++'s prefix layer; None takes hidden states as they are.
        offset: how many layers before the last hidden states are taken.

    Raises:
        RequestError: the template is deeper than there are heads, wider than their candidates, or goes on from a
            candidate but not from a better one.
    """

    name = "hydra"
    samples = False

    def __init__(
        self, heads: Sequence[Engine], template: Template, prefix: Engine | None = None, offset: int = 0
    ) -> None:
        self._candidates = int(heads[0].outputs["token_ids"].shape[1])
        template.check(len(heads), self._candidates)
        template.check_monotone()
        self.heads, self.template, self.offset = heads, template, offset
        self._levels = [_level(template, depth) for depth in range(template.max_depth)]
        self._prefix = None if prefix is None else PrefixState(prefix)
        self._state: Floats = np.zeros((1, int(heads[0].inputs["state"].shape[1])), np.float32)
        self._trust = Trust(len(heads))
        self._seconds = [0.0] * len(heads)
        self._own = np.ones(template.num_nodes)

    def begin(self, tokens: Sequence[int], output: StepOutput) -> None:
        """Takes the hidden states of the prompt: the last one, or all of them where there is a prefix layer."""
        self._take(output.at_layer(self.offset))
        if self._prefix is not None:
            self._prefix.begin(tokens[:-1], output.at_layer(self.offset))

    def propose(self, root: int, max_nodes: int, rate: float = 0.0, prices: Sequence[float] = ()) -> Proposal:
        """The `max_nodes` most probable nodes that the heads found, most probable first.

        Args:
            root: the last decided token.
            max_nodes: most nodes of the tree.
            rate: tokens that a second is worth: what a head may bring in must be more than it costs.
            prices: tokens that further rows are worth: what its nodes bring in beyond that counts.
        """
        if self._prefix is not None:
            self._state = self._prefix.state()
        template = self.template
        tokens, own, probability = (
            np.zeros(template.num_nodes, np.int64),
            np.ones(template.num_nodes),
            np.zeros(template.num_nodes),
        )
        tokens[0], probability[0] = root, 1.0
        for head, level in enumerate(self._levels):
            # A parent no more probable than max_nodes others has no child among these.
            least = np.partition(probability, -max_nodes)[-max_nodes] if max_nodes < len(probability) else 0.0
            some = level.only(probability[level.parents] > least)
            gain = np.maximum(
                probability[some.parents] * self._trust.hits(head) - self._price(probability, prices), 0.0
            ).sum()
            if not gain or gain < rate * self._seconds[head]:
                self._seconds[head] *= _FADE  # until it is tried again: texts turn, and one call may have been slow
                break
            ids, given = self._guess(head, tokens[some.paths])
            nodes = some.children
            tokens[nodes], own[nodes] = ids[some.rows, some.ranks], given[some.rows, some.ranks]
            probability[nodes] = self._trust.calibrated(head, own[nodes]) * probability[template.parents[nodes]]
        order = most_probable(probability, min(max_nodes, int(np.count_nonzero(probability))))
        self._own = own[order]
        tree = Tree.assemble(tokens, template.parents, template.depth, template.ancestors)
        return Proposal(tree.chosen(order), probability[order])

    def observe(self, proposal: Proposal, path: Sequence[int], tokens: Sequence[int], output: StepOutput) -> None:
        """Takes the hidden states of the accepted rows, and learns how far the heads can be trusted."""
        self._take(output.at_layer(self.offset)[path])
        if self._prefix is not None:
            self._prefix.append(proposal.tree.tokens[path].tolist(), output.at_layer(self.offset)[path])
        self._trust.observe(proposal.tree.parents, self._own, path)

    @staticmethod
    def _price(probability: npt.NDArray[np.float64], prices: Sequence[float]) -> float:
        """What the next row costs, after those of the nodes found so far that will be verified."""
        if not len(prices):
            return 0.0
        rows = int(np.count_nonzero(probability > prices[0]))
        return float(prices[min(rows, len(prices)) - 1])

    def _take(self, hidden: Floats) -> None:
        if self._prefix is None:
            self._state = hidden[-1:].copy()

    def _guess(self, head: int, paths: Ints) -> tuple[Ints, npt.NDArray[np.float64]]:
        """Candidates and their probabilities, `[P, k]`."""
        engine, shape = self.heads[head], (len(paths), self._candidates)
        start = perf_counter()
        engine.input("state", self._state.shape)[:] = self._state
        engine.input("path", paths.shape)[:] = paths
        ids, log = engine.output("token_ids", shape), engine.output("log_probabilities", shape)
        engine.run()
        seconds, old = perf_counter() - start, self._seconds[head]
        self._seconds[head] = seconds if not old else _DECAY * old + (1 - _DECAY) * min(seconds, 2 * old)
        return ids, np.exp(log, dtype=np.float64)


class PrefixState:
    """What the prefix layer makes of the rows so far; it keeps their keys and values, and computes when asked.

    Args:
        engine: graph hidden `[N, H]`, past_len, caches -> state `[1, H]`.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        _, heads, fixed, width = engine.inputs["past_key"].shape
        self._heads, self._width = int(heads), int(width)
        self._fixed = fixed if isinstance(fixed, int) else None
        self._capacity = 0
        self._cached: list[int] = []  # tokens whose rows are in the cache
        self._waiting: list[tuple[list[int], Floats]] = []  # further ones, and their hidden states
        self._state: Floats = np.zeros((1, int(engine.inputs["hidden"].shape[1])), np.float32)

    def begin(self, tokens: Sequence[int], hidden: Floats) -> None:
        """A text starts; `hidden` are the rows of its last tokens, those before them were not computed anew.

        Where those are not known here, because another drafter answered then, the layer sees the new rows only.
        """
        reused, waiting = len(tokens) - len(hidden), self._waiting
        pending = [token for some, _ in waiting for token in some]
        is_known = [*self._cached, *pending][:reused] == list(tokens[:reused])
        missing = reused - len(self._cached)
        self._waiting = []
        self._cached = self._cached[:reused] if is_known else []
        if is_known and missing > 0:
            self.append(pending[:missing], np.concatenate([rows for _, rows in waiting])[:missing])
        self.append(tokens[reused:], hidden)

    def append(self, tokens: Sequence[int], hidden: Floats) -> None:
        """Further rows; they are copied, and computed when the state is asked for."""
        self._waiting.append((list(tokens), hidden.copy()))

    def state(self) -> Floats:
        """State `[1, H]` of the last row."""
        if not self._waiting:
            return self._state
        rows = np.concatenate([hidden for _, hidden in self._waiting])
        tokens = [token for some, _ in self._waiting for token in some]
        for start in range(0, len(rows), STATIC_ROOM):  # more at once than engines are built for
            part = slice(start, start + STATIC_ROOM)
            self._state = self._run(rows[part])
            self._cached += tokens[part]
            self._waiting = [(tokens[part.stop :], rows[part.stop :])]
        self._waiting = []
        return self._state

    def _run(self, rows: Floats) -> Floats:
        """Computes rows behind those in the cache."""
        past = len(self._cached)
        if past + len(rows) > self._capacity:
            capacity = self._fixed or -(-(past + len(rows)) // _GRAIN) * _GRAIN
            for name in ("key", "value"):
                self.engine.state(f"past_{name}", f"present_{name}", (1, self._heads, capacity, self._width))
            self._capacity = capacity  # last: an interrupt above leaves caches that the next call binds again
        self.engine.input("hidden", rows.shape)[:] = rows
        self.engine.input("past_len", (1,))[0] = past
        state: Floats = self.engine.output("state", self._state.shape)
        self.engine.run()
        return state


def _level(template: Template, depth: int) -> _Level:
    children = np.flatnonzero(template.depth == depth + 1)
    parents, rows = np.unique(template.parents[children], return_inverse=True)
    paths = np.array([np.flatnonzero(template.ancestors[parent]) for parent in parents])
    return _Level(parents, paths, children, rows, template.rank[children])
