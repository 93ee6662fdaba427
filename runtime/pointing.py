"""The loop of a pointer model: rows point, one output after the other, until the rules say that all are finished.

How the next outputs are chosen is one function of log-probabilities: the best of each row, a draw, or a beam.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from seqrt.runtime.engines import Engine
from seqrt.runtime.rules import Ints, Rules

Floats = npt.NDArray[np.float32]
# Of log-probabilities [B, K, S] and scores [B, K] so far: parents, tokens and scores, [B, K] each; no parents where
# each row goes on from itself.
Choose = Callable[[Floats, Floats], tuple[Ints | None, Ints, Floats]]

_HEADS: Final = 16  # as many as any attention model has
_MEMORY: Final = "memory_"
_STATE, _NEXT = "state_", "next_"


@dataclass(frozen=True, slots=True)
class Answers:
    """What every row said.

    Attributes:
        tokens: `[B, K, outputs]`; the end, N, fills up shorter ones.
        scores: `[B, K]`, the log-probability of each.
    """

    tokens: Ints
    scores: Floats


class Pointer:
    """The two graphs of one size.

    Args:
        encode: points `[B, N, d]` and their number to the memory.
        step: memory, state and what was pointed at to log-probabilities `[B, K, N + 1]`.
        size: N.
    """

    def __init__(self, encode: Engine, step: Engine, size: int) -> None:
        self._encode, self._step, self.size = encode, step, size
        self._memory = [name for name in encode.outputs if name.startswith(_MEMORY)]
        self._states = [name.removeprefix(_STATE) for name in step.inputs if name.startswith(_STATE)]

    def read(self, points: Floats, length: Ints) -> None:
        """Computes what all steps of these instances need: points `[B, up to N, d]`."""
        count, given, dim = points.shape
        place = self._encode.input("points", (count, self.size, dim))
        place[:, :given], place[:, given:] = points, 0.0
        self._encode.input("length", (count,))[:] = length
        made = [self._encode.output(name, (count, *self._rest(name, 1))) for name in self._memory]
        self._encode.run()
        for name, value in zip(self._memory, made, strict=True):
            self._step.input(name, value.shape)[:] = value

    def answer(self, rules: Rules, choose: Choose) -> Answers:
        """Points until every row is finished. The state needs no beginning: at a start the graph takes the memory's.

        Of a beam all rows are the same at first, and only the first one counts.
        """
        shape = rules.finished.shape
        states = []
        for name in self._states:
            whole = (*shape, *self._rest(f"{_STATE}{name}", 2))
            states.append((self._step.input(f"{_STATE}{name}", whole), self._step.output(f"{_NEXT}{name}", whole)))
        previous, parents = self._step.input("previous", shape), self._step.input("parent", shape)
        allowed = self._step.input("allowed", (*shape, self.size + 1))
        log_probabilities = self._step.output("log_probabilities", allowed.shape)
        previous[:], parents[:] = self.size, np.arange(shape[1])
        scores = np.zeros(shape, np.float32)
        if choose is beam:
            scores[:, 1:] = -np.inf
        tokens = np.empty((rules.max_steps, *shape), np.int64)
        chosen: list[Ints | None] = []  # parents of each output
        for place in range(rules.max_steps):
            rules.allow(allowed)
            self._step.run()
            parent, token, scores = choose(log_probabilities, scores)
            rules.advance(parent, token)
            tokens[place] = token
            chosen.append(parent)
            if rules.some_finished and rules.finished.all():
                break
            for state, following in states:
                state[:] = following
            previous[:] = token
            if parent is not None:
                parents[:] = parent
        return Answers(_traced(tokens[: len(chosen)], chosen), scores)

    def floats(self, rows: int) -> int:
        """Numbers of the largest tensor, about, that an instance with so many rows makes.

        Products of all points by heads, or sums of all rows and points as wide as an LSTM.
        """
        hidden = self._encode.outputs.get(f"{_MEMORY}hidden")
        across = max(rows, self.size) * _HEADS if hidden is None else rows * int(hidden.shape[-1])
        return (self.size + 1) * across

    def _rest(self, name: str, known: int) -> tuple[int, ...]:
        """A tensor's shape behind its symbolic dimensions."""
        infos = self._encode.outputs if name in self._encode.outputs else self._step.inputs
        return tuple(int(size) for size in infos[name].shape[known:])


def _traced(tokens: Ints, parents: list[Ints | None]) -> Ints:
    """Outputs `[outputs, B, K]` of every row of the last step, followed back through its parents: `[B, K, outputs]`."""
    row: Ints | None = None
    for token, parent in zip(tokens[::-1], parents[::-1], strict=True):
        if row is not None:
            token[:] = np.take_along_axis(token, row, 1)
        if parent is not None:
            row = parent if row is None else np.take_along_axis(parent, row, 1)
    return tokens.transpose(1, 2, 0)


def best(log_probabilities: Floats, scores: Floats) -> tuple[None, Ints, Floats]:
    """The most probable slot of each row."""
    return None, log_probabilities.argmax(2), scores + np.maximum.reduce(log_probabilities, 2)


def sampled(generators: Sequence[np.random.Generator], temperature: float = 1.0) -> Choose:
    """A draw for each row, with a generator of its own for each instance."""

    def choose(log_probabilities: Floats, scores: Floats) -> tuple[None, Ints, Floats]:
        shape = log_probabilities.shape[1:]
        uniform = np.stack([generator.random(shape, np.float32) for generator in generators])
        noise = -np.log(-np.log(np.maximum(uniform, np.finfo(np.float32).tiny)))  # the largest sum is a draw (Gumbel)
        token = (log_probabilities / np.float32(temperature) + noise).argmax(2)
        return None, token, scores + np.take_along_axis(log_probabilities, token[..., None], 2)[..., 0]

    return choose


def beam(log_probabilities: Floats, scores: Floats) -> tuple[Ints, Ints, Floats]:
    """The K most probable of all that the rows of an instance could say next."""
    count, rows, slots = log_probabilities.shape
    flat = (scores[..., None] + log_probabilities).reshape(count, rows * slots)
    kept = np.argpartition(-flat, rows - 1, 1)[:, :rows]
    kept = np.take_along_axis(kept, np.argsort(-np.take_along_axis(flat, kept, 1), 1, kind="stable"), 1)
    found = np.take_along_axis(flat, kept, 1)
    # Where there are fewer, the rest say what the best one says, and can never win.
    kept = np.where(np.isneginf(found), kept[:, :1], kept)
    return kept // slots, kept % slots, found
