"""Rules of answers: whatever a model says, an answer is well formed; and every well-formed one can be said."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrt.runtime.rules import RULES, Bools, Ints, Rules

SIZE = 8


def walk(rules: Rules, rng: np.random.Generator) -> list[list[list[int]]]:
    """Outputs of each instance and row, drawn among those allowed, parents too."""
    count, rows = rules.finished.shape
    said: list[list[list[int]]] = [[[] for _ in range(rows)] for _ in range(count)]
    for _ in range(rules.max_steps):
        parent = rng.integers(0, rows, (count, rows))
        # A row goes on from its parent, so that it is the parent's mask that it must keep to.
        allowed = np.take_along_axis(mask(rules), parent[..., None], 1)
        assert allowed.any(2).all()
        token = np.where(allowed, rng.random(allowed.shape), -1.0).argmax(2)
        said = [[[*said[b][parent[b, k]], int(token[b, k])] for k in range(rows)] for b in range(count)]
        rules.advance(parent, token)
        if rules.finished.all():
            break
    assert rules.finished.all()
    return said


@given(
    task=st.sampled_from(list(RULES)),
    length=st.lists(st.integers(3, SIZE), min_size=1, max_size=3),
    rows=st.integers(1, 3),
    has_end=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_answers_are_well_formed(task: str, length: list[int], rows: int, has_end: bool, seed: int) -> None:
    has_end = has_end or task in ("hull", "triangulation")
    rules = RULES[task](np.array(length), rows, SIZE, has_end)
    for n, instance in zip(length, walk(rules, np.random.default_rng(seed)), strict=True):
        for outputs in instance:
            check(task, n, [token for token in outputs if token < SIZE], outputs)


def mask(rules: Rules) -> Bools:
    """Where each row may point."""
    found = np.empty((*rules.finished.shape, SIZE + 1), np.bool_)
    rules.allow(found)
    return found


def check(task: str, n: int, order: Sequence[int], outputs: Sequence[int]) -> None:
    """Raises AssertionError unless `order`, which `outputs` say, is an answer to n points."""
    assert all(0 <= token < n for token in order)
    behind = list(itertools.dropwhile(lambda token: token < SIZE, outputs))
    assert all(token == SIZE for token in behind)  # nothing comes behind the end
    if task in ("tour", "permutation"):
        assert sorted(order) == list(range(n))
    elif task == "hull":
        polygon = order[:-1] if order[-1] == order[0] else order
        assert len(polygon) >= 3
        assert len(set(polygon)) == len(polygon)
    elif task == "triangulation":
        triangles = [tuple(order[i : i + 3]) for i in range(0, len(order), 3)]
        assert all(len(triangle) == 3 and triangle[0] < triangle[1] < triangle[2] for triangle in triangles)
        assert 1 <= len(triangles) <= 2 * n - 5
        assert all(one < other for one, other in itertools.pairwise(triangles))


def can_say(rules: Rules, outputs: Sequence[int]) -> bool:
    """Whether one row may say all of them, one after the other, and nothing is left to say."""
    for token in outputs:
        if not mask(rules)[0, 0, token]:
            return False
        rules.advance(None, np.array([[token]]))
    return bool(rules.finished.all())


@given(data=st.data(), n=st.integers(3, SIZE))
def test_every_answer_can_be_said(data: st.DataObject, n: int) -> None:
    def rules(task: str, has_end: bool = True) -> Rules:
        return RULES[task](np.array([n]), 1, SIZE, has_end)

    order = data.draw(st.permutations(range(n)))
    assert can_say(rules("tour"), order)
    assert can_say(rules("permutation", has_end=False), order)
    corners = order[: data.draw(st.integers(3, n))]
    assert can_say(rules("hull"), [*corners, SIZE])
    assert can_say(rules("hull"), [*corners, corners[0]])
    triples = list(itertools.combinations(range(n), 3))
    chosen = data.draw(st.lists(st.sampled_from(triples), min_size=1, max_size=2 * n - 5, unique=True))
    assert can_say(rules("triangulation"), [*itertools.chain(*sorted(chosen)), SIZE])


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        ("tour", [0, 0]),
        ("tour", [5]),
        ("tour", [0, SIZE]),
        ("hull", [SIZE]),
        ("hull", [0, 1, 0]),
        ("hull", [0, 1, SIZE]),
        ("hull", [0, 1, 2, 1]),
        ("triangulation", [SIZE]),
        ("triangulation", [0, 1, SIZE]),
        ("triangulation", [1, 0]),
        ("triangulation", [3]),  # of five points, two larger ones must be left
        ("triangulation", [0, 1, 2, 0, 1, 2]),
        ("triangulation", [0, 1, 3, 0, 1, 2]),
        ("none", [SIZE]),
        ("none", [6]),
    ],
)
def test_what_may_not_be_said(task: str, outputs: list[int]) -> None:
    rules = RULES[task](np.array([5]), 1, SIZE, True)
    for token in outputs[:-1]:
        assert mask(rules)[0, 0, token]
        rules.advance(None, np.array([[token]]))
    assert not mask(rules)[0, 0, outputs[-1]]


def test_starts_are_told() -> None:
    rules = RULES["tour"](np.array([5, 4]), 3, SIZE, False)
    rules.starts = np.array([[0, 1, 2], [3, 0, 1]])
    first: Ints = mask(rules).argmax(2)
    assert (first == rules.starts).all()
    assert (mask(rules).sum(2) == 1).all()
    rules.advance(None, first)
    assert (mask(rules).sum(2) == [[4], [3]]).all()
