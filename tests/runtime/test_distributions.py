"""Sampling through trees keeps the model's distribution: 200,000 draws of two tokens for each rule, drafter and tree.

The vocabulary has 4 tokens and the model's logits depend on the last two, so the joint distribution of the first two
tokens after a prompt is known exactly. An exact rule leaves a total variation of about 0.003 at so many draws.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from seqrt.runtime.decoder import StepOutput
from seqrt.runtime.drafters.corpus import CorpusDrafter
from seqrt.runtime.drafters.hydra import HydraDrafter
from seqrt.runtime.drafters.lookup import LookupDrafter
from seqrt.runtime.drafters.medusa import MedusaDrafter
from seqrt.runtime.drafters.recycling import RecyclingDrafter
from seqrt.runtime.engines import TensorInfo
from seqrt.runtime.rows import Rows
from seqrt.runtime.sampling import Sampler
from seqrt.runtime.settings import Sampling
from seqrt.runtime.tree import Template, Tree
from seqrt.runtime.verification import Drawn, Verifier

DRAWS, LIMIT, V = 200_000, 0.01, 4
PROMPT = (1, 2, 0, 3, 1, 0, 0)
TARGET, DRAFT = (np.random.default_rng(seed).standard_normal((V, V, V)) * 1.5 for seed in (11, 12))
NOTHING = StepOutput(
    np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32), np.zeros(1, np.float32), np.zeros((1, 2), np.float32)
)

Floats = npt.NDArray[np.float64]


def rows_after(before: int, tree: Tree) -> Rows:
    """What the model says after every node; `before` comes before the root."""
    previous = tree.tokens[tree.parents]
    previous[0] = before
    logits = TARGET[previous, tree.tokens].astype(np.float32)
    ids = np.argsort(-logits, axis=-1, kind="stable")
    logsumexp = np.log(np.exp(logits).sum(-1))
    return Rows(ids, np.take_along_axis(logits, ids, -1), logsumexp, lambda node: logits[node])


def exact(sampling: Sampling, text: Sequence[int]) -> Floats:
    """The distribution of the next token, written down again from the definitions."""
    logits = TARGET[text[-2], text[-1]].copy()
    for token in set(text):
        logits[token] *= 1 / sampling.repetition_penalty if logits[token] > 0 else sampling.repetition_penalty
    for token in range(V):
        logits[token] -= sampling.frequency_penalty * list(text[len(PROMPT) :]).count(token)
    p = np.exp(logits / sampling.temperature)
    order = np.argsort(-p)
    if sampling.top_k:
        p[order[sampling.top_k :]] = 0
    p /= p.sum()
    p[order[1:][np.cumsum(p[order])[:-1] >= sampling.top_p]] = 0
    p[p < sampling.min_p * p.max()] = 0
    return np.asarray(p / p.sum())


def variation(verifier: Verifier, sampler: Sampler, propose: Callable[[tuple[int, ...], int], Any]) -> float:
    """Total variation between drawn and exact joint distributions of two tokens.

    `propose(text, draw)` gives a tree, how it was drawn, and the rows after its nodes.
    """
    counts = np.zeros((V, V))
    for draw in range(DRAWS):
        object.__setattr__(sampler.sampling, "seed", draw)  # a sampler of its own for each draw takes twice as long
        history = sampler.history(PROMPT)
        while history.num_generated < 2:
            tree, drawn, rows = propose(tuple(history.tokens), draw)
            accepted = verifier.accept(tree, rows, history, drawn)
            for token in (*tree.tokens[accepted.path[1:]].tolist(), accepted.next_token):
                history.append(token)
        counts[tuple(history.tokens[len(PROMPT) : len(PROMPT) + 2])] += 1
    first = exact(sampler.sampling, PROMPT)
    joint = [[first[a] * p for p in exact(sampler.sampling, (*PROMPT, a))] if first[a] else [0.0] * V for a in range(V)]
    return float(np.abs(counts / DRAWS - joint).sum() / 2)


@dataclass(slots=True)
class Guesses:
    """Draft heads: whatever the state, the same guesses."""

    ids: npt.NDArray[np.int64]
    inputs: Mapping[str, TensorInfo]

    @property
    def outputs(self) -> Mapping[str, TensorInfo]:
        info = TensorInfo(np.dtype(np.int64), self.ids.shape)
        return {"token_ids": info, "log_probabilities": info}

    def input(self, name: str, shape: Sequence[int]) -> npt.NDArray[Any]:
        return np.zeros(tuple(shape), self.inputs[name].dtype)

    def output(self, name: str, shape: Sequence[int]) -> npt.NDArray[Any]:
        falling = np.log(np.broadcast_to(0.4 * 0.7 ** np.arange(self.ids.shape[1]), tuple(shape))).astype(np.float32)
        return np.broadcast_to(self.ids, tuple(shape)).copy() if name == "token_ids" else falling

    def run(self) -> None:
        pass


def state_info(*names: str) -> dict[str, TensorInfo]:
    return {name: TensorInfo(np.dtype(np.float32), (1, 2)) for name in names} | {
        "path": TensorInfo(np.dtype(np.int64), ("P", 1))
    }


def lookup() -> Any:
    return LookupDrafter()


def corpus() -> Any:
    return CorpusDrafter(np.random.default_rng(5).integers(0, V, 60))


def recycling() -> Any:
    drafter = RecyclingDrafter(V, Template.parse("0 1 00 01 10 000"))
    drafter._renew(np.arange(V), np.argsort(-DRAFT[0], axis=-1))
    return drafter


def medusa(tree: str = "0 1 00 2 01 10 11") -> Any:
    engine: Any = Guesses(np.array([[2, 0, 1], [1, 3, 2]]), state_info("hidden"))
    return MedusaDrafter(engine, Template.parse(tree))


def medusa_chain() -> Any:
    return medusa("0 00")


def hydra() -> Any:
    heads: Any = [
        Guesses(np.array([[3, 2, 0]]), state_info("state")),
        Guesses(np.array([[0, 1, 2]]), state_info("state")),
    ]
    return HydraDrafter(heads, Template.dynamic(2, 3, 9))


WARM = Sampling(temperature=1.0)
RULES_APPLY = Sampling(temperature=0.8, top_k=3, top_p=0.95, min_p=0.02, repetition_penalty=1.3, frequency_penalty=0.4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "sampling"),
    [
        (lookup, WARM),
        (corpus, WARM),
        (recycling, RULES_APPLY),
        (medusa, WARM),
        (medusa, RULES_APPLY),
        (medusa_chain, WARM),
        (hydra, WARM),
    ],
)
def test_matching_keeps_the_distribution(make: Callable[[], Any], sampling: Sampling) -> None:
    known: dict[tuple[int, ...], tuple[Tree, None, Rows]] = {}

    def propose(text: tuple[int, ...], draw: int) -> tuple[Tree, None, Rows]:
        if text not in known:
            drafter = make()
            drafter.begin(text, NOTHING)
            tree = drafter.propose(text[-1], 9).tree
            known[text] = tree, None, rows_after(text[-2], tree)
        return known[text]

    sampler = Sampler(Sampling(**{name: getattr(sampling, name) for name in sampling.__slots__}), V)
    assert variation(Verifier("match", sampler), sampler, propose) < LIMIT
    assert propose(PROMPT, 0)[0].num_nodes > 2


def sampled(shape: Sequence[int], with_replacement: bool, seed: int) -> Callable[[tuple[int, ...], int], Any]:
    """Trees sampled from the draft model: node i of the first levels has `shape[level]` children."""
    rng = np.random.default_rng(seed)
    noise = rng.random((DRAWS, 2, sum(np.cumprod(shape)[:-1], start=1), max(shape)))
    known: dict[tuple[int, ...], tuple[Tree, Drawn, Rows]] = {}

    def propose(text: tuple[int, ...], draw: int) -> tuple[Tree, Drawn, Rows]:
        tokens, parents, level, inner = [text[-1]], [-1], [0], {}
        numbers = iter(noise[draw, len(text) - len(PROMPT)])
        for width in shape:
            below = []
            for node in level:
                before = text[-2] if parents[node] < 0 else tokens[parents[node]]
                weights = np.exp(DRAFT[before, tokens[node]])
                inner[node] = weights / weights.sum()
                left = inner[node].tolist()
                for u in next(numbers)[:width].tolist():
                    token = _drawn(left, u)
                    if not with_replacement:
                        left[token] = 0.0
                    below.append(len(tokens))
                    tokens.append(token)
                    parents.append(node)
            level = below
        key = (text[-2], *tokens)
        if key not in known:
            tree = Tree(np.array(tokens), np.array(parents))
            known[key] = tree, Drawn(inner, with_replacement), rows_after(text[-2], tree)
        return known[key]

    return propose


def _drawn(weights: Sequence[float], u: float) -> int:
    rest = u * sum(weights)
    for token, weight in enumerate(weights):
        rest -= weight
        if rest < 0:
            return token
    return max(token for token, weight in enumerate(weights) if weight)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "with_replacement", "sampling"),
    [
        ((1, 1), False, WARM),  # a chain: plain speculative sampling
        ((2, 2), False, RULES_APPLY),
        ((3, 1), False, WARM),
        ((2, 2), True, WARM),
    ],
)
def test_recursive_rejection_keeps_the_distribution(
    shape: Sequence[int], with_replacement: bool, sampling: Sampling
) -> None:
    sampler = Sampler(Sampling(**{name: getattr(sampling, name) for name in sampling.__slots__}), V)
    verifier = Verifier(None, sampler, samples_drafts=True)
    assert verifier.rule == "reject"
    assert variation(verifier, sampler, sampled(shape, with_replacement, 1)) < LIMIT


@pytest.mark.slow
def test_children_dropped_for_what_they_are_are_noticed() -> None:
    """The popular mistake: of two sampled siblings the more probable is kept, as if it had been drawn alone."""
    sampler = Sampler(Sampling(temperature=1.0), V)
    draw_tree = sampled((2,), False, 1)

    def propose(text: tuple[int, ...], draw: int) -> tuple[Tree, Drawn, Rows]:
        tree, drawn, _ = draw_tree(text, draw)
        kept = max(tree.tokens[1:].tolist(), key=lambda token: drawn.probabilities[0][token])
        pruned = Tree.chain([text[-1], kept])
        return pruned, drawn, rows_after(text[-2], pruned)

    assert variation(Verifier("reject", sampler, samples_drafts=True), sampler, propose) > 5 * LIMIT
