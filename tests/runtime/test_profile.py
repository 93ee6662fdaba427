from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from seqrt.runtime.profile import Measurement, percentiles, rows

from seqrt.runtime.generate import Trace


def generation(new_tokens: int = 6) -> Any:
    """First token at 0.1 s; steps of 3, 2 and 1 tokens that end at 0.2, 0.3 and 0.5 s; 10 ms in no stage."""
    trace = Trace(
        prefill_seconds=0.1,
        rows=[4, 4, 1],
        emitted=[3, 2, 1],
        accepted_depth=[(3, 2), (3, 1)],
        stage_seconds=[(0.01, 0.06, 0.01, 0.01), (0.01, 0.06, 0.01, 0.01), (0.0, 0.18, 0.005, 0.005)],
        arrival_seconds=[0.1, 0.2, 0.2, 0.2, 0.3, 0.3, 0.5],
    )
    decode = trace.arrival_seconds[new_tokens - 1] - 0.1
    return SimpleNamespace(trace=trace, new_tokens=new_tokens, seconds={"decode": decode})


def test_measurement() -> None:
    one = Measurement("medusa")
    one.add(generation(7), setup_seconds=0.05)
    np.testing.assert_allclose(one.ttft_ms, [150])
    np.testing.assert_allclose(one.itl_ms, [100, 0, 0, 100, 0, 200])
    np.testing.assert_allclose(one.step_ms, [100, 100, 200])
    np.testing.assert_allclose(one.stages_ms["verify"], [60, 60, 180])
    np.testing.assert_allclose(one.stages_ms["host"], [10, 10, 10])
    assert one.tokens_per_second == pytest.approx(6 / 0.4)
    assert one.tokens_per_step == 2.0
    assert one.acceptance_by_depth == [1.0, 0.5, 0.0]


def test_tokens_beyond_the_limit_are_not_counted() -> None:
    one = Measurement("medusa")
    one.add(generation(6), setup_seconds=0.0)  # the last step decided more than was asked for
    assert len(one.itl_ms) == 5
    assert one.tokens_per_second == pytest.approx(5 / 0.2)


def test_an_answer_of_one_token_has_no_steps() -> None:
    one = Measurement("none")
    trace = Trace(prefill_seconds=0.1, arrival_seconds=[0.1])
    one.add(SimpleNamespace(trace=trace, new_tokens=1, seconds={"decode": 0.0}), 0.0)  # type: ignore[arg-type]
    row = rows([one], [None], 1, 1000)[0]
    assert row["tokens_per_second"] == 0.0
    assert row["tokens_per_step"] == 1.0
    assert row["step_ms"] == {"p50": None, "p90": None, "p95": None, "p99": None}
    assert row["speedup_vs_none"] is row["gb_per_second"] is None


def test_rows_compare_with_the_first() -> None:
    plain, fast = Measurement("none"), Measurement("medusa")
    plain.add(generation(7), 0.0)
    fast.add(generation(7), 0.0)
    fast.decode_seconds /= 2
    table = rows([plain, fast], [None, "0 00"], 1, 50_000_000)
    assert [row["speedup_vs_none"] for row in table] == [1.0, 2.0]
    assert [row["tree"] for row in table] == [None, "0 00"]
    assert table[0]["gb_per_second"] == 0.5  # 50 MB in a median step of 100 ms


def test_percentiles() -> None:
    assert percentiles(range(101)) == {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}
