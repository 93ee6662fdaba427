"""Lexical units: contiguous tokens that a model is sure of (Lexical Unit Decoding, arXiv 2405.15208).

The authors released no code. Whether the first token of a unit must be sure too is left open, and a choice here
(`HEADS`): a unit's first token is always decoded in the ordinary way, so by default it need not be.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

HEADS: Final = ("any", "confident")
"""Rules for the first token of a unit: any token, or one that the model is sure of like the others."""

Unit = tuple[int, int]
"""Positions of the first and of the last token of a unit."""


@dataclass(frozen=True, slots=True)
class Marking:
    """How units are found.

    Attributes:
        alpha: Tokens more probable than this are sure; more than 0, at most 1.
        head: One of ``HEADS``.
        longest: Most tokens of a unit; longer runs are split.

    Raises:
        ValueError: A value out of range.
    """

    alpha: float = 0.9
    head: str = "any"
    longest: int = 16

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ValueError(f"--alpha is {self.alpha}; give more than 0 and at most 1")
        if self.head not in HEADS:
            raise ValueError(f"--unit-head is {self.head!r}; choose one of {', '.join(HEADS)}")
        if self.longest < 2:
            raise ValueError(f"--longest is {self.longest}; a unit has at least 2 tokens")

    def units(
        self,
        ids: Sequence[int],
        log_probabilities: npt.NDArray[np.floating],
        response_start: int,
        special: Collection[int] = (),
    ) -> list[Unit]:
        """The units of a text of T tokens, in order; none overlap.

        Args:
            ids: ``[T]``.
            log_probabilities: ``[T - 1]``, of each token after the first given those before it.
            response_start: Position of the first token that may be in a unit, at least 1.
            special: Tokens that no unit holds.
        """
        sure = np.zeros(len(ids) + 1, bool)  # and after the last token an end
        sure[1:-1] = log_probabilities > math.log(self.alpha)
        allowed = np.append(~np.isin(ids, list(special)), False)
        allowed[: max(response_start, 1)] = False
        sure &= allowed
        units = []
        position, end = max(response_start, 1), len(ids)
        while position < end:
            last = position
            if allowed[position] and (sure[position] or self.head == "any"):
                while sure[last + 1] and last - position + 1 < self.longest:
                    last += 1
            if last > position:
                units.append((position, last))
            position = last + 1
        return units


@dataclass(frozen=True, slots=True)
class Marked:
    """A text with its units: one line of the file that ``tools.lud.mark`` writes.

    Attributes:
        id: Names the text in the corpus.
        task: What kind of text it is.
        ids: Token ids ``[T]``.
        resp_start: Position of the first token of the response.
        units: First and last position of each unit.
        alpha, head, longest: Of the marking.
        scorer: What computed the probabilities.
    """

    id: str
    task: str
    ids: list[int]
    resp_start: int
    units: list[Unit]
    alpha: float
    head: str
    longest: int
    scorer: str

    def line(self) -> str:
        """The text as a line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


def read_marked(path: Path) -> Iterator[Marked]:
    """The texts of a file, one at a time.

    Raises:
        ValueError: A line is no text with units.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                yield Marked(**{**row, "units": [(first, last) for first, last in row["units"]]})
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{path}, line {number} is no text with units ({error}); mark the corpus again"
                ) from error
