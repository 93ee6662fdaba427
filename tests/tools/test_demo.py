from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from tools import demo
from tools.demo import Divergence, Speed

PROMPT = [5, 6]
LOGITS = {  # after these tokens: log-probabilities of tokens 0, 1 and 2
    (5, 6): (-0.1, -3.0, -4.0),
    (5, 6, 0): (-0.7, -0.7004, -5.0),
    (5, 6, 0, 0): (-0.5, -0.9, -5.0),
}


class FakeModel:
    """Greedy decoding over the table above."""

    def generate(
        self,
        prompt: Sequence[int],
        *,
        raw: bool,
        max_new_tokens: int,
        logit_bias: Mapping[int, float] | None = None,
        **options: Any,
    ) -> SimpleNamespace:
        tokens, found = list(prompt), []
        for _ in range(max_new_tokens):
            row = LOGITS[tuple(tokens)]
            token = max(range(3), key=lambda token: row[token] + (logit_bias or {}).get(token, 0.0))
            tokens.append(token)
            found.append(row[token])
        return SimpleNamespace(token_ids=tokens[len(prompt) :], log_probabilities=found)


@pytest.fixture
def model() -> Any:
    return FakeModel()


def test_same_tokens_do_not_diverge(model: Any) -> None:
    assert demo.divergence(model, PROMPT, [0, 0, 1], [0, 0, 1]) is None


def test_divergence_between_tokens_as_good_as_equal_is_a_tie(model: Any) -> None:
    found = demo.divergence(model, PROMPT, [0, 0, 1], [0, 1, 1])
    assert found is not None
    assert found.position == 1
    assert found.gap == pytest.approx(0.0004)
    assert found.is_tie


@pytest.mark.parametrize(("drafted", "position", "gap"), [([1, 0], 0, 2.9), ([0, 0, 2], 2, 0.4)])
def test_divergence_elsewhere_is_none(model: Any, drafted: list[int], position: int, gap: float) -> None:
    found = demo.divergence(model, PROMPT, [0, 0, 1], drafted)
    assert found is not None
    assert found.position == position
    assert found.gap == pytest.approx(gap)
    assert not found.is_tie


def test_an_answer_that_ends_early_diverges_where_it_ends(model: Any) -> None:
    found = demo.divergence(model, PROMPT, [0, 0, 1], [0, 0])
    assert found is not None
    assert found.position == 2


def test_same_text_is_said_to_be_so() -> None:
    assert demo.verdict("lookup", None) == "lookup: the same text, token for token"


@pytest.mark.parametrize(("gap", "judged"), [(2e-4, "0.0002 apart: a tie"), (0.02, "0.02 apart: NOT A TIE")])
def test_another_text_is_said_to_be_so(gap: float, judged: str) -> None:
    said = demo.verdict("medusa", Divergence(7, gap))
    assert said.startswith("medusa: another text from token 7 on")
    assert said.endswith(f"log-probabilities there lie {judged}")


def test_speed_is_the_median_of_the_runs() -> None:
    runs: list[Any] = [
        SimpleNamespace(tokens_per_second=speed, tokens_per_step=2.0, seconds={"prefill": speed / 1000})
        for speed in (10.0, 30.0, 11.0)
    ]
    assert Speed.of("none", runs) == Speed("none", 11.0, 2.0, 11.0)


def test_table_compares_with_the_first_row() -> None:
    found = demo.table([Speed("none", 100.0, 1.0, 50.0), Speed("medusa", 150.0, 1.8, 51.0)])
    first, second = zip(*(column.cells for column in found.columns), strict=True)
    assert first == ("none", "100.0", "1.00", "50 ms", "1.00x")
    assert second == ("medusa", "150.0", "1.80", "51 ms", "1.50x")


def test_a_bundle_that_is_not_there_is_one_line(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main([str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
