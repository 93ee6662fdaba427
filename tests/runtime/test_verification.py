"""Tree decoding against plain decoding of a toy model: the same text, or at least the same distribution."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from seqrt.errors import RequestError
from seqrt.runtime import draws
from seqrt.runtime.history import History
from seqrt.runtime.rows import Rows
from seqrt.runtime.sampling import Sampler
from seqrt.runtime.settings import Sampling
from seqrt.runtime.tree import Template, Tree
from seqrt.runtime.verification import Accepted, Drawn, Verifier, accept_reject

FloatArray = npt.NDArray[np.float64]


class ToyModel:
    """Next-token logits that depend on the last two tokens."""

    def __init__(self, vocab: int, seed: int, scale: float = 1.5) -> None:
        self.vocab = vocab
        self.logits = (np.random.default_rng(seed).standard_normal((vocab,) * 3) * scale).astype(np.float32)
        self.ids = np.argsort(-self.logits, axis=-1, kind="stable")
        self.ranked = np.take_along_axis(self.logits, self.ids, -1)
        self.logsumexp = np.log(np.exp(self.logits.astype(np.float64)).sum(-1)).astype(np.float32)

    def rows(self, tree: Tree, history: History, k: int | None = None) -> Rows:
        """What the model says after every node; the root is history's last token."""
        before = tree.tokens[tree.parents]
        before[0] = history.tokens[-2]
        assert tree.tokens[0] == history.tokens[-1]
        at = (before, tree.tokens)
        return Rows(
            self.ids[at][:, :k],
            self.ranked[at][:, :k],
            self.logsumexp[at],
            lambda node: self.logits[before[node], tree.tokens[node]],
        )

    def probabilities(self, before: int, token: int, temperature: float = 1.0) -> FloatArray:
        weights: FloatArray = np.exp(self.logits[before, token].astype(np.float64) / temperature)
        return np.asarray(weights / weights.sum())


Drafter = Callable[[History], tuple[Tree, Drawn | None]]


def decode(
    model: ToyModel,
    verifier: Verifier,
    sampler: Sampler,
    drafter: Drafter,
    num_tokens: int,
    k: int | None = None,
) -> list[int]:
    """The loop of every drafter: the prompt is (0, 0), the second of them the first root."""
    history = sampler.history([0, 0])
    while history.num_generated < num_tokens:
        tree, drawn = drafter(history)
        before = list(history.tokens)
        accepted = verifier.accept(tree, model.rows(tree, history, k), history, drawn)
        assert history.tokens == before
        check_path(tree, accepted)
        for node in accepted.path[1:]:
            history.append(int(tree.tokens[node]))
        history.append(accepted.next_token)
    return history.tokens[2 : 2 + num_tokens]


def check_path(tree: Tree, accepted: Accepted) -> None:
    assert accepted.path[0] == 0
    assert [int(tree.parents[node]) for node in accepted.path] == [-1, *accepted.path[:-1]]


def no_drafts(history: History) -> tuple[Tree, None]:
    return Tree.chain([history.tokens[-1]]), None


@st.composite
def random_drafters(draw: st.DrawFn, vocab: int) -> Drafter:
    """Trees of any shape whose siblings differ, new ones at every step."""
    seed, max_nodes = draw(st.integers(0, 2**31)), draw(st.integers(1, 24))

    def drafter(history: History) -> tuple[Tree, None]:
        rng = np.random.default_rng([seed, len(history)])
        tokens, parents, used = [history.tokens[-1]], [-1], {(-1, -1)}
        for _ in range(max_nodes - 1):
            slot = (int(rng.integers(0, len(tokens))), int(rng.integers(0, vocab)))
            if slot not in used:
                used.add(slot)
                parents.append(slot[0])
                tokens.append(slot[1])
        return Tree(np.array(tokens), np.array(parents)), None

    return drafter


@settings(deadline=None, max_examples=60)
@given(
    random_drafters(4),
    st.integers(0, 1000),
    st.sampled_from(
        [
            Sampling(),
            Sampling(repetition_penalty=1.5),
            Sampling(frequency_penalty=0.5, presence_penalty=0.2),
            Sampling(no_repeat_ngram=3, logit_bias={2: 1.0}),
        ]
    ),
    st.sampled_from(["greedy", "match", "typical"]),
    st.sampled_from([1, 2, None]),
)
def test_greedy_tree_decoding_is_greedy_decoding(
    drafter: Drafter, seed: int, sampling: Sampling, rule: str, k: int | None
) -> None:
    model = ToyModel(4, seed)
    sampler = Sampler(sampling, 4, eos_ids=[3], min_new_tokens=6 if seed % 2 else 0)
    try:
        expected = plain_decode(model, sampler, 20)
    except RequestError:  # four tokens without a repeated n-gram can run out
        reject()
    assert decode(model, Verifier(rule, sampler), sampler, drafter, 20, k) == expected


def plain_decode(model: ToyModel, sampler: Sampler, num_tokens: int) -> list[int]:
    history = sampler.history([0, 0])
    for _ in range(num_tokens):
        rows = model.rows(no_drafts(history)[0], history)
        history.append(sampler.choose(rows, 0, history))
    return history.tokens[2:]


@settings(deadline=None, max_examples=60)
@given(
    random_drafters(5),
    st.integers(0, 1000),
    st.sampled_from(
        [
            Sampling(temperature=1.0, seed=3),
            Sampling(temperature=0.7, top_p=0.8, repetition_penalty=1.2, seed=4),
            Sampling(temperature=1.3, top_k=3, no_repeat_ngram=4, seed=5),
        ]
    ),
    st.sampled_from([2, 4, None]),
)
def test_a_seed_gives_one_text_whatever_the_tree(
    drafter: Drafter, seed: int, sampling: Sampling, k: int | None
) -> None:
    model, sampler = ToyModel(5, seed), Sampler(sampling, 5)
    try:
        expected = plain_decode(model, sampler, 20)
    except RequestError:
        reject()
    assert decode(model, Verifier(None, sampler), sampler, drafter, 20, k) == expected


# Distributions of two tokens after the root: 12,000 trials leave an exact rule a variation of about 0.014.
# That the rules keep the distribution is tested in test_distributions.py.
TRIALS = 12_000
LIMIT = 0.03
TARGET, DRAFT = ToyModel(4, 11), ToyModel(4, 12)


def total_variation(run: Callable[[int], list[int]], temperature: float = 1.0) -> float:
    counts = np.zeros((4, 4))
    for seed in range(TRIALS):
        counts[tuple(run(seed)[:2])] += 1
    first = TARGET.probabilities(0, 0, temperature)
    exact = np.array([first[a] * TARGET.probabilities(0, a, temperature) for a in range(4)])
    return float(np.abs(counts / TRIALS - exact).sum() / 2)


def sampled(seed: int, with_replacement: bool) -> Drafter:
    """Two drafts under the root and two under each of them, sampled from the draft model."""

    def drafter(history: History) -> tuple[Tree, Drawn]:
        tokens, parents = list(history.tokens[-1:]), [-1]
        probabilities = {}
        for node in range(3):
            before = history.tokens[-2] if node == 0 else tokens[0]
            q = probabilities[node] = DRAFT.probabilities(before, tokens[node])
            for index in range(2):
                u = draws.uniform(seed, draws.DRAFT, len(history) + 100 * node, index)
                tokens.append(int(np.searchsorted(np.cumsum(q), u * q.sum(), "right")))
                parents.append(node)
                if not with_replacement:
                    q = np.where(np.arange(4) == tokens[-1], 0.0, q)
        return Tree(np.array(tokens), np.array(parents)), Drawn(probabilities, with_replacement)

    return drafter


def sampler_of(seed: int, temperature: float = 1.0) -> Sampler:
    return Sampler(Sampling(temperature=temperature, seed=seed), 4)


def test_rejection_draws_independently_of_acceptance() -> None:
    """One root with three drafts, tight enough to see a shared random number."""
    p, q = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.4, 0.3, 0.2, 0.1])
    rows = rows_of([p.tolist()] * 4)
    counts = np.zeros(4)
    for seed in range(20_000):
        sampler = sampler_of(seed)
        gumbel = [-np.log(-np.log(draws.uniform(seed, draws.DRAFT, 0, token))) for token in range(4)]
        children = np.argsort(-(np.log(q) + gumbel))[:3]  # draws without replacement, in order
        tree = Tree(np.array([0, *children]), np.array([-1, 0, 0, 0]))
        accepted = accept_reject(tree, rows, sampler, sampler.history([0]), Drawn({0: q}))
        node = accepted.path[-1]
        counts[tree.tokens[node] if node else accepted.next_token] += 1
    assert np.abs(counts / 20_000 - p).sum() / 2 < 0.01


def test_the_distribution_test_catches_drawing_again_after_a_mismatch() -> None:
    def run(seed: int) -> list[int]:
        sampler, again = sampler_of(seed), sampler_of(seed + TRIALS)
        history = sampler.history([0, 0])
        while history.num_generated < 2:
            rows = TARGET.rows(no_drafts(history)[0], history)
            best = int(DRAFT.ids[tuple(history.tokens[-2:])][0])
            drawn = sampler.choose(rows, 0, history)
            history.append(drawn if drawn == best else again.choose(rows, 0, history))
        return history.tokens[2:]

    assert total_variation(run) > 3 * LIMIT


def test_rejection_at_temperature_zero_is_greedy() -> None:
    sampler = Sampler(Sampling(), 4)
    verifier = Verifier("reject", sampler, samples_drafts=True)
    for seed in range(30):
        text = decode(TARGET, verifier, sampler, sampled(seed, False), 8)
        assert text == plain_decode(TARGET, sampler, 8)


def rows_of(probabilities: list[list[float]]) -> Rows:
    """Rows of a tree whose nodes are followed by these distributions."""
    logits = np.log(np.array(probabilities, np.float32))
    ids = np.argsort(-logits, axis=-1, kind="stable")
    ranked = np.take_along_axis(logits, ids, -1)
    return Rows(ids, ranked, np.zeros(len(ids), np.float32), lambda node: logits[node])


def test_typical_takes_what_is_probable_enough_for_the_entropy() -> None:
    def accepts(p: list[float], token: int, **settings: float) -> bool:
        sampler = Sampler(Sampling(temperature=1.0), 4)
        verifier = Verifier("typical", sampler, **settings)  # type: ignore[arg-type]
        rows = rows_of([p, [0.25] * 4])
        return len(verifier.accept(Tree.chain([0, token]), rows, sampler.history([0])).path) == 2

    flat, sharp = [0.26, 0.26, 0.26, 0.22], [0.83, 0.10, 0.05, 0.02]
    entropy = -sum(p * math.log(p) for p in flat)
    bar = 0.3 * math.exp(-entropy)
    assert bar < 0.09  # so the entropy decides
    assert accepts(flat, 3)
    assert accepts(sharp, 1)  # above 0.09
    assert not accepts(sharp, 2)  # the threshold decides
    assert accepts(sharp, 2, threshold=0.04)
    assert accepts(flat, 3, threshold=1.0, alpha=0.85)
    assert not accepts(flat, 3, threshold=1.0, alpha=0.95)


def test_typical_takes_the_deepest_path_and_then_the_more_probable() -> None:
    sampler = Sampler(Sampling(temperature=1.0), 4)
    tree = Template.parse("0 1 00 10 11").fill(0, np.array([[1, 2], [3, 1]]))
    even = [0.25] * 4
    node_1, node_2 = [0.97, 0.01, 0.01, 0.01], [0.1, 0.4, 0.1, 0.4]
    rows = rows_of([[0.1, 0.5, 0.3, 0.1], node_1, node_2, even, even, even])
    accepted = Verifier("typical", sampler).accept(tree, rows, sampler.history([0]))
    assert accepted.path in ([0, 2, 4], [0, 2, 5])  # deeper than the more probable node 1
    rows = rows_of([[0.1, 0.5, 0.3, 0.1], node_1, [0.1, 0.5, 0.1, 0.3], even, even, even])
    accepted = Verifier("typical", sampler).accept(tree, rows, sampler.history([0]))
    assert accepted.path == [0, 2, 5]


def test_history_is_restored_when_a_row_fails() -> None:
    def fail(node: int) -> npt.NDArray[np.float32]:
        raise RuntimeError("the engine is gone")

    sampler = Sampler(Sampling(temperature=1.0, top_k=2), 4)
    rows = rows_of([[0.97, 0.01, 0.01, 0.01]] * 2 + [[0.0001, 0.3333, 0.3333, 0.3333]])
    poor = Rows(rows.ids[:, :1], rows.logits[:, :1], rows.logsumexp, fail)
    tree = Tree.chain([0, 0, 0])
    for rule in ("match", "typical"):
        history = sampler.history([0])
        with pytest.raises(RuntimeError, match="the engine is gone"):
            Verifier(rule, sampler).accept(tree, poor, history)
        assert history.tokens == [0]


def test_rules_that_do_not_fit_are_refused() -> None:
    warm, cold = sampler_of(0), Sampler(Sampling(), 4)
    assert Verifier(None, cold).rule == "greedy"
    assert Verifier(None, warm).rule == "match"
    with pytest.raises(RequestError, match="--accept is 'best'; choose one of greedy, match, reject, typical"):
        Verifier("best", warm)
    with pytest.raises(RequestError, match=r"goes with --temperature 0, which is 1\.0; use --accept match"):
        Verifier("greedy", warm)
    with pytest.raises(RequestError, match="this drafter does not sample; use --accept match"):
        Verifier("reject", warm)
    verifier = Verifier("reject", warm, samples_drafts=True)
    with pytest.raises(RequestError, match="needs drafts that were sampled with known probabilities"):
        verifier.accept(Tree.chain([0, 1]), rows_of([[0.25] * 4] * 2), warm.history([0]))
    with pytest.raises(RequestError, match="--posterior-threshold is 0; give more than 0"):
        Verifier("typical", warm, threshold=0)
    with pytest.raises(RequestError, match="--posterior-alpha is nan"):
        Verifier("typical", warm, alpha=float("nan"))
