"""Medusa drafting with heads that are a table: trees, their order, and estimates that learn."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrt.errors import RequestError
from seqrt.runtime.decoder import StepOutput
from seqrt.runtime.drafters import Proposal
from seqrt.runtime.drafters.medusa import MedusaDrafter
from seqrt.runtime.engines import Array, Engine, Operator, TensorInfo
from seqrt.runtime.tree import Template

HEADS, RANKS, HIDDEN = 3, 4, 2
TEMPLATE = Template.parse("0 1 2 00 01 10 11 20 000 001 010 100 110")


class Table:
    """Heads whose candidates depend on the hidden row's first value only: row `hidden[0]` of a table."""

    def __init__(self, log_probabilities: npt.NDArray[np.float64]) -> None:
        self.table = log_probabilities  # [rows, heads, ranks]
        self.inputs = {"hidden": TensorInfo(np.dtype(np.float32), (1, HIDDEN))}
        self.outputs = {
            "token_ids": TensorInfo(np.dtype(np.int64), (HEADS, RANKS)),
            "log_probabilities": TensorInfo(np.dtype(np.float32), (HEADS, RANKS)),
        }
        self.buckets: dict[int, int] = {}
        self.hidden = np.zeros((1, HIDDEN), np.float32)
        self.ids = np.zeros((HEADS, RANKS), np.int64)
        self.log = np.zeros((HEADS, RANKS), np.float32)

    def input(self, name: str, shape: Sequence[int]) -> Array:
        assert (name, tuple(shape)) == ("hidden", self.hidden.shape)
        return self.hidden

    def output(self, name: str, shape: Sequence[int]) -> Array:
        assert tuple(shape) == (HEADS, RANKS)
        arrays: dict[str, Array] = {"token_ids": self.ids, "log_probabilities": self.log}
        return arrays[name]

    def operators(self) -> list[Operator]:
        raise AssertionError("nobody asked for times")

    def state(self, past: str, present: str, shape: Sequence[int]) -> None:
        raise AssertionError("heads have no state")

    def share_state(self, owner: Engine) -> None:
        raise AssertionError("heads have no state")

    def run(self) -> None:
        row = int(self.hidden[0, 0])
        self.ids[:] = token(row, np.arange(HEADS)[:, None], np.arange(RANKS))
        self.log[:] = self.table[row]

    def close(self) -> None:
        pass


def token(row: int, head: npt.NDArray[np.int64] | int, rank: npt.NDArray[np.int64] | int) -> npt.NDArray[np.int64]:
    """A token that tells where it came from."""
    return np.asarray(1000 * (row + 1) + 100 * head + rank)


def table_of(seed: int, rows: int = 4) -> npt.NDArray[np.float64]:
    """Falling log-probabilities of distributions that no two candidates tie in."""
    weights = np.random.default_rng(seed).dirichlet(np.full(RANKS + 1, 0.7), (rows, HEADS))
    return np.log(np.maximum(-np.sort(-weights[..., :-1], axis=-1), 1e-6))


def output(*rows: int) -> StepOutput:
    """A step whose hidden row i names row `rows[i]` of the table."""
    hidden = np.zeros((len(rows), HIDDEN), np.float32)
    hidden[:, 0] = rows
    return StepOutput(np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32), np.zeros(1, np.float32), hidden)


def begun(table: npt.NDArray[np.float64], template: Template = TEMPLATE, row: int = 0) -> MedusaDrafter:
    drafter = MedusaDrafter(Table(table), template)
    drafter.begin([5, 6], output(3, 3, row))
    return drafter


def paths(proposal: Proposal) -> list[tuple[int, ...]]:
    """The ranks along the path to each node, read off its tokens."""
    tree = proposal.tree
    found: list[tuple[int, ...]] = [()]
    for node in range(1, tree.num_nodes):
        rank = int(tree.tokens[node]) % 100
        found.append((*found[tree.parents[node]], rank))
    return found


@given(seed=st.integers(0, 2**32 - 1), row=st.integers(0, 3), count=st.integers(1, 20))
def test_the_most_probable_nodes_of_the_template(seed: int, row: int, count: int) -> None:
    table = table_of(seed)
    proposal = begun(table, row=row).propose(9, count)
    expected: dict[tuple[int, ...], float] = {(): 1.0}
    for path in TEMPLATE.paths:
        expected[path] = float(np.prod([min(np.exp(table[row, head, rank]), 0.99) for head, rank in enumerate(path)]))
    found = paths(proposal)
    assert len(set(found)) == len(found) == min(count, len(expected))
    assert set(found) <= set(expected)
    np.testing.assert_allclose(proposal.probability, np.array([expected[path] for path in found]), rtol=1e-5)
    best = sorted(expected.values(), reverse=True)[: len(found)]
    np.testing.assert_allclose(proposal.probability, np.array(best), rtol=1e-5)
    tree = proposal.tree
    assert tree.tokens[0] == 9
    for node in range(1, tree.num_nodes):
        assert tree.tokens[node] == token(row, int(tree.depth[node]) - 1, found[node][-1])
        assert tree.parents[node] < node
        chain = {node, *np.flatnonzero(tree.ancestors[tree.parents[node]])}
        assert set(np.flatnonzero(tree.ancestors[node])) == chain


@pytest.mark.parametrize("logarithm", [0.0, -1e4])
def test_equal_probabilities_keep_parents_before_children(logarithm: float) -> None:
    """Heads that are certain of everything, or of nothing: all products are 1 or 0 as far as floats tell."""
    certain = np.full((1, HEADS, RANKS), logarithm)
    template = Template.parse(" ".join("".join(p) for n in (1, 2, 3) for p in product("0123", repeat=n)))
    for count in (2, 5, 21, 84, 85):
        tree = begun(certain, template).propose(9, count).tree
        assert (tree.parents[1:] < np.arange(1, count)).all()
        assert (tree.parents[1:] >= 0).all()


def test_the_hidden_state_of_the_last_accepted_row_counts() -> None:
    table = table_of(1)
    drafter = begun(table, row=2)
    proposal = drafter.propose(9, 6)
    assert (proposal.tree.tokens[1:] // 1000 == 3).all()
    child = int(np.flatnonzero(proposal.tree.parents == 0)[0])
    rows = [3] * proposal.tree.num_nodes
    rows[child] = 1
    drafter.observe(proposal, [0, child], [int(proposal.tree.tokens[child]), 7], output(*rows))
    assert (drafter.propose(7, 6).tree.tokens[1:] // 1000 == 2).all()


@pytest.mark.parametrize(("is_right", "relation"), [(True, np.greater), (False, np.less)])
def test_estimates_learn_how_often_a_head_is_right(is_right: bool, relation: np.ufunc) -> None:
    """A head that says 0.5 and is always, or never, right."""
    table = np.log(np.array([[[0.4, 0.1, 0.05, 0.05]] * HEADS]))
    drafter = begun(table)
    before = drafter.propose(9, 8).probability
    for _ in range(50):
        proposal = drafter.propose(9, 8)
        path, tokens = [0], [7]
        if is_right:
            path.append(int(np.flatnonzero(proposal.tree.parents == 0)[0]))
            tokens.insert(0, int(proposal.tree.tokens[path[-1]]))
        drafter.observe(proposal, path, tokens, output(*[0] * 8))
    after = drafter.propose(9, 8).probability
    assert after[0] == 1
    assert relation(after[1], before[1] * (1.2 if is_right else 0.5))
    assert (np.diff(after) <= 0).all()
    assert ((after >= 0) & (after <= 1)).all()


def test_a_step_that_was_not_drafted_teaches_nothing() -> None:
    drafter = begun(table_of(3))
    before = drafter.propose(9, 8).probability
    for _ in range(20):
        drafter.observe(Proposal.nothing(9), [0], [9], output(0))
    np.testing.assert_array_equal(drafter.propose(9, 8).probability, before)


def test_trees_that_the_heads_cannot_fill() -> None:
    engine = Table(table_of(0))
    with pytest.raises(RequestError, match="the tree is 4 deep but there are 3 draft heads"):
        MedusaDrafter(engine, Template.parse("0 00 000 0000"))
    with pytest.raises(RequestError, match="asks for candidate 4 of a draft head, which gives 4"):
        MedusaDrafter(engine, Template.parse("0 4"))
