"""The loop of pointer models, on a small model in numpy whose probabilities depend on all that a row said before."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrt.runtime.engines import TensorInfo
from seqrt.runtime.pointing import Answers, Pointer, beam, best, sampled
from seqrt.runtime.rules import RULES

N, MODULUS = 5, 97
I64, F32 = np.dtype(np.int64), np.dtype(np.float32)


def scores_of(seed: int, said: int, dtype: Any = np.float64) -> npt.NDArray[np.float64]:
    """Of all slots, by what was said before, as a number."""
    return np.random.default_rng((seed, said)).standard_normal(N + 1).astype(dtype)


def joined(said: int, token: int) -> int:
    return (said * 7 + token + 1) % MODULUS


class Fake:
    """Both graphs: instances are seeds, the state is what a row said."""

    def __init__(self, inputs: Mapping[str, TensorInfo], outputs: Mapping[str, TensorInfo]) -> None:
        self.inputs, self.outputs = inputs, outputs
        self.arrays: dict[str, npt.NDArray[Any]] = {}

    def input(self, name: str, shape: Sequence[int]) -> npt.NDArray[Any]:
        if name not in self.arrays or self.arrays[name].shape != tuple(shape):
            self.arrays[name] = np.full(shape, 9, self.inputs[name].dtype)
        return self.arrays[name]

    def output(self, name: str, shape: Sequence[int]) -> npt.NDArray[Any]:
        self.arrays[name] = np.zeros(shape, self.outputs[name].dtype)
        return self.arrays[name]

    def run(self) -> None:
        held = self.arrays
        if "points" in held:
            held["memory_seed"][:] = held["points"][:, 0, 0]
            return
        previous, parent, allowed = (held[name] for name in ("previous", "parent", "allowed"))
        said = np.take_along_axis(held["state_said"], parent, 1)
        for b, k in np.ndindex(*previous.shape):
            said[b, k] = 0 if previous[b, k] == N else joined(int(said[b, k]), int(previous[b, k]))
            scores = np.where(allowed[b, k], scores_of(int(held["memory_seed"][b]), int(said[b, k])), -np.inf)
            scores -= scores.max()
            held["log_probabilities"][b, k] = scores - np.log(np.exp(scores).sum())
        held["next_said"][:] = said


def made() -> Pointer:
    encode = Fake(
        {"points": TensorInfo(F32, ("B", N, 2)), "length": TensorInfo(I64, ("B",))},
        {"memory_seed": TensorInfo(F32, ("B",))},
    )
    rows: tuple[str, str] = ("B", "K")
    inputs = {"previous": I64, "parent": I64, "state_said": I64}
    step = Fake(
        {
            **{name: TensorInfo(dtype, rows) for name, dtype in inputs.items()},
            "allowed": TensorInfo(np.dtype(np.bool_), (*rows, N + 1)),
            "memory_seed": TensorInfo(F32, ("B",)),
        },
        {"log_probabilities": TensorInfo(F32, (*rows, N + 1)), "next_said": TensorInfo(I64, rows)},
    )
    return Pointer(encode, step, N)  # type: ignore[arg-type]


def answered(task: str, seeds: Sequence[int], length: Sequence[int], rows: int, choose: Any) -> Answers:
    pointer, lengths = made(), np.array(length)
    points = np.zeros((len(seeds), max(length), 2), np.float32)
    points[:, 0, 0] = seeds
    pointer.read(points, lengths)
    return pointer.answer(RULES[task](lengths, rows, N, has_end=task == "hull"), choose)


def expansions(
    task: str, seed: int, n: int, outputs: tuple[int, ...], score: float
) -> list[tuple[float, tuple[int, ...]]]:
    """All that may come next, from the rules of one row and probabilities of its own."""
    rules = RULES[task](np.array([n]), 1, N, has_end=task == "hull")
    said = 0
    for token in outputs:
        rules.advance(None, np.array([[token]]))
        said = joined(said, token)
    if rules.finished.all():
        return [(score, outputs)]
    mask = np.empty((1, 1, N + 1), np.bool_)
    rules.allow(mask)
    allowed = mask[0, 0]
    values = np.where(allowed, scores_of(seed, said), -np.inf)
    values -= values.max() + np.log(np.exp(values - values.max()).sum())
    return [(score + values[token], (*outputs, int(token))) for token in np.flatnonzero(allowed)]


def searched(task: str, seed: int, n: int, width: int) -> list[tuple[float, tuple[int, ...]]]:
    """A beam in plain Python: hypotheses with their scores, best first."""
    held: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    while True:
        after = [made for score, outputs in held for made in expansions(task, seed, n, outputs, score)]
        after = sorted(after, key=lambda item: -item[0])[:width]
        if after == held:
            return held
        held = after


def spoken(answers: Answers, instance: int, row: int) -> tuple[int, ...]:
    """Without what fills up; an end that was said counts, in a hull."""
    tokens = answers.tokens[instance, row].tolist()
    length = tokens.index(N) if N in tokens else len(tokens)
    return tuple(tokens[:length])


@given(task=st.sampled_from(["tour", "hull"]), seed=st.integers(0, 1000), width=st.integers(1, 7), data=st.data())
def test_beams_are_those_of_a_plain_search(task: str, seed: int, width: int, data: st.DataObject) -> None:
    length = data.draw(st.lists(st.integers(3, N), min_size=1, max_size=3))
    seeds = [seed + i for i in range(len(length))]
    answers = answered(task, seeds, length, width, beam)
    for instance, (own, n) in enumerate(zip(seeds, length, strict=True)):
        for row, (score, outputs) in enumerate(searched(task, own, n, width)):
            assert answers.scores[instance, row] == pytest.approx(score, abs=1e-4)
            assert spoken(answers, instance, row) == tuple(token for token in outputs if token < N)


@given(seed=st.integers(0, 1000))
def test_a_wide_beam_finds_the_most_probable_tour(seed: int) -> None:
    every = [
        sum(
            next(score for score, outputs in expansions("tour", seed, 4, order[:i], 0.0) if outputs == order[: i + 1])
            for i in range(4)
        )
        for order in itertools.permutations(range(4))
    ]
    answers = answered("tour", [seed], [4], 24, beam)
    np.testing.assert_allclose(answers.scores[0], sorted(every, reverse=True), atol=1e-4)
    assert len({spoken(answers, 0, row) for row in range(24)}) == 24


@given(seed=st.integers(0, 1000))
def test_greedy_is_a_beam_of_one(seed: int) -> None:
    greedy, one = (answered("hull", [seed], [N], 1, choose) for choose in (best, beam))
    assert (greedy.tokens == one.tokens).all()
    np.testing.assert_allclose(greedy.scores, one.scores, atol=1e-6)


def test_draws_have_the_probabilities_of_the_model() -> None:
    answers = answered("tour", [3], [3], 4000, sampled([np.random.default_rng(0)]))
    found = [spoken(answers, 0, row) for row in range(4000)]
    for score, order in searched("tour", 3, 3, 6):
        share, probability = found.count(order) / 4000, np.exp(score)
        assert abs(share - probability) < 4 * np.sqrt(probability * (1 - probability) / 4000) + 1e-9
        assert answers.scores[0, found.index(order)] == pytest.approx(score, abs=1e-4)


def test_a_low_temperature_draws_the_best() -> None:
    cold = answered("tour", [5], [N], 3, sampled([np.random.default_rng(0)], 1e-3))
    greedy = answered("tour", [5], [N], 3, best)
    assert (cold.tokens == greedy.tokens).all()
