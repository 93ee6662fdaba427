from types import SimpleNamespace
from typing import Any

import pytest
from tools import demo
from tools.demo import Speed

from seqrt.runtime.lossless import Divergence


def test_same_text_is_said_to_be_so() -> None:
    assert demo.verdict("lookup", None) == "lookup: the same text, token for token"


@pytest.mark.parametrize(
    ("margin", "judged"),
    [
        (2e-4, "where the plain run's best two log-probabilities lie 0.0002 apart: a tie"),
        (0.02, "where the plain run's best two log-probabilities lie 0.02 apart: NOT THE SAME"),
        (None, "where the plain one had ended: NOT THE SAME"),
    ],
)
def test_another_text_is_said_to_be_so(margin: float | None, judged: str) -> None:
    found = Divergence(position=7, expected=1, got=2, margin=margin)
    assert demo.verdict("medusa", found) == f"medusa: another text from token 7 on, {judged}"


@pytest.mark.parametrize(
    ("quantization", "margins", "code", "remark"),
    [
        ("none", [], 0, ""),
        ("none", [1e-4], 0, ""),
        ("none", [1e-4, 0.1], 1, ""),
        ("source", [1e-4], 0, ""),
        ("source", [1e-4, 0.1], 0, demo.QUANTIZED),
        ("none", [None], 1, ""),
    ],
)
def test_another_text_fails_unless_weights_are_quantised(
    quantization: str, margins: list[float | None], code: int, remark: str
) -> None:
    found = [Divergence(position=7, expected=1, got=2, margin=margin) for margin in margins]
    assert demo.outcome(quantization, [None, *found]) == (code, remark)


def test_speed_is_the_median_of_the_runs() -> None:
    runs: list[Any] = [
        SimpleNamespace(tokens_per_second=speed, new_tokens=21, steps=10, seconds={"prefill": speed / 1000})
        for speed in (10.0, 30.0, 11.0)
    ]
    assert Speed.of("none", runs) == Speed("none", 11.0, 2.0, 11.0)


def test_table_compares_with_the_first_row_of_a_prompt() -> None:
    speeds = [Speed("none", 100.0, 1.0, 50.0), Speed("medusa", 150.0, 1.8, 51.0)]
    found = demo.table([speeds, [Speed("none", 50.0, 1.0, 50.0)]])
    first, second, third = zip(*(column.cells for column in found.columns), strict=True)
    assert first == ("1", "none", "100.0", "1.00", "50 ms", "1.00x")
    assert second == ("1", "medusa", "150.0", "1.80", "51 ms", "1.50x")
    assert third == ("2", "none", "50.0", "1.00", "50 ms", "1.00x")


def test_a_bundle_that_is_not_there_is_one_line(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
