"""Training rows in which the tokens of a unit are predicted from PADs, as they are when it is decoded.

At inference the text ends with a real token, PADs follow, and the row of each PAD predicts one token more. So a unit
from position s to e is learnt from the tokens before s and ``e - s`` PADs at positions s to e - 1, with the
labels that these rows have anyway. Three ways to lay that out:

    inplace   the text, and the text with every unit's tokens but the last replaced by PADs: cheap, but what follows a
              unit sees PADs, which never happens at inference
    prefix    the text, and for every unit the tokens before it and its PADs: exact, and as many prefixes as units
    branch    the text, and behind it every unit's PADs, which see the tokens before the unit and the earlier PADs of
              their own: exactly the losses of prefix, and each token of the text is computed once
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tools.lud.units import Marked, Unit

IGNORED = -100
"""The label of a row that teaches nothing, as torch's cross-entropy has it."""

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """S rows that one forward pass computes.

    Attributes:
        ids: ``[S]``.
        positions: ``[S]``.
        sees: ``[S, S]``, whether a row attends to another.
        text_labels: ``[S]``, what a row should predict in ordinary decoding.
        unit_labels: ``[S]``, what it should predict as a part of a unit: the row before its head, and its PADs.
    """

    ids: Ids
    positions: Ids
    sees: npt.NDArray[np.bool_]
    text_labels: Ids
    unit_labels: Ids

    @classmethod
    def joined(cls, parts: Sequence[Packed]) -> Packed:
        """Rows of several texts, none of which sees another's."""
        sizes = [len(part.ids) for part in parts]
        sees = np.zeros((sum(sizes), sum(sizes)), bool)
        for part, end in zip(parts, np.cumsum(sizes).tolist(), strict=True):
            begin = end - len(part.ids)
            sees[begin:end, begin:end] = part.sees
        names = ("ids", "positions", "text_labels", "unit_labels")
        ids, positions, text, unit = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
        return cls(ids, positions, sees, text, unit)


def inplace(text: Marked, units: Sequence[Unit], pad: int) -> Packed:
    """The text, and once more with PADs in its units; of units that overlap the first is taken."""
    ids, apart, end = np.array(text.ids, np.int64), [], -1
    for first, last in units:
        if first > end:
            ids[first:last] = pad
            apart.append((first, last))
            end = last
    return Packed.joined([_causal(text), _block(ids, _labels(text, apart))])


def prefix(text: Marked, units: Sequence[Unit], pad: int) -> Packed:
    """The text, and what came before each unit with its PADs."""
    parts = [_causal(text)]
    for first, last in units:
        ids = np.array([*text.ids[:first], *[pad] * (last - first)], np.int64)
        parts.append(_block(ids, _labels(text, [(first, last)])[:last]))
    return Packed.joined(parts)


def branch(text: Marked, units: Sequence[Unit], pad: int) -> Packed:
    """The text, and behind it the PADs of each unit as a branch of their own."""
    length, sizes = len(text.ids), [last - first for first, last in units]
    total = length + sum(sizes)
    ids, positions = np.full(total, pad, np.int64), np.arange(total)
    ids[:length] = text.ids
    sees = np.tri(total, dtype=bool)
    sees[length:] = False
    labels = np.full(total, IGNORED)
    row = length
    for (first, last), size in zip(units, sizes, strict=True):
        rows = slice(row, row + size)
        positions[rows] = np.arange(first, last)
        sees[rows, :first] = True
        sees[rows, rows] = np.tri(size, dtype=bool)
        labels[first - 1] = text.ids[first]
        labels[rows] = text.ids[first + 1 : last + 1]
        row += size
    text_labels = np.concatenate([_causal(text).text_labels, np.full(total - length, IGNORED)])
    return Packed(ids, positions, sees, text_labels, labels)


PACKINGS: Mapping[str, Callable[[Marked, Sequence[Unit], int], Packed]] = {
    "branch": branch,
    "prefix": prefix,
    "inplace": inplace,
}


def _causal(text: Marked) -> Packed:
    """The text as it is, its response to be learnt."""
    plain = _block(np.array(text.ids, np.int64), np.full(len(text.ids), IGNORED))
    start = max(text.resp_start, 1)
    plain.text_labels[start - 1 : -1] = text.ids[start:]
    return plain


def _block(ids: Ids, unit_labels: Ids) -> Packed:
    size = len(ids)
    return Packed(ids, np.arange(size), np.tri(size, dtype=bool), np.full(size, IGNORED), unit_labels)


def _labels(text: Marked, units: Sequence[Unit]) -> Ids:
    """Labels of the units' rows, those of all others ignored."""
    labels = np.full(len(text.ids), IGNORED)
    for first, last in units:
        labels[first - 1 : last] = text.ids[first : last + 1]
    return labels
