from types import SimpleNamespace
from typing import Any

import pytest

from seqrt.runtime.lossless import TIE, divergence


def answer(token_ids: list[int], margins: tuple[float, ...] = ()) -> Any:
    return SimpleNamespace(token_ids=token_ids, trace=SimpleNamespace(margins=list(margins)))


def test_equal_answers() -> None:
    assert divergence(answer([1, 2]), answer([1, 2])) is None


@pytest.mark.parametrize(("margin", "is_tie"), [(0.0, True), (TIE, True), (1.1 * TIE, False)])
def test_first_difference(margin: float, is_tie: bool) -> None:
    found = divergence(answer([1, 2, 3, 4], (9, 9, margin, 0)), answer([1, 2, 7, 8]))
    assert found is not None
    assert (found.position, found.expected, found.got, found.margin) == (2, 3, 7, margin)
    assert found.is_tie is is_tie


def test_answers_of_different_length() -> None:
    shorter = divergence(answer([1, 2, 3], (9, 9, 9)), answer([1, 2]))
    longer = divergence(answer([1, 2], (9, 9)), answer([1, 2, 3]))
    assert shorter is not None
    assert longer is not None
    assert (shorter.position, shorter.expected, shorter.got, shorter.is_tie) == (2, 3, None, False)
    assert (longer.position, longer.expected, longer.got, longer.margin) == (2, None, 3, None)
    assert not longer.is_tie
