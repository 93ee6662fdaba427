"""What is made of measurements, on answers whose times are known."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from seqrt.errors import RequestError
from seqrt.runtime.backends import Engines
from seqrt.runtime.generate import Trace
from seqrt.runtime.model import Model
from seqrt.runtime.options import Options
from seqrt.runtime.probe import Span, Timeline
from seqrt.runtime.profiling.compare import Ratio
from seqrt.runtime.profiling.measure import Answer, Measurement, measure
from seqrt.runtime.profiling.report import rows, shares, steps_by_rows
from seqrt.runtime.profiling.run import Amount, profile
from seqrt.runtime.profiling.statistics import (
    Totals,
    percentiles,
    rate_ratio,
    rate_ratio_of_runs,
    spread,
    variation,
)
from seqrt.runtime.profiling.throughput import Throughput
from seqrt.runtime.prompts import Prompt

STEPS = ("draft", "verify", "accept", "sample", "commit", "detokenise")


def spans(start: float, step: int, *stages: tuple[str, float]) -> list[Span]:
    """Stages one after the other."""
    found = []
    for name, seconds in stages:
        found.append(Span(name, start, start + seconds, step))
        start += seconds
    return found


def answer(new_tokens: int = 7, prompt: str = "1", scale: float = 1.0) -> Answer:
    """First token at 0.15 s; steps of 3, 2 and 1 tokens that take 0.1, 0.1 and 0.2 s; engines run in all but 40 ms."""
    drafted = (("draft", 0.01), ("verify", 0.06), ("accept", 0.01), ("commit", 0.01), ("detokenise", 0.01))
    plain = (("draft", 0.0), ("verify", 0.18), ("sample", 0.005), ("commit", 0.005), ("detokenise", 0.01))
    stages = [
        *spans(0.0, 0, ("tokenise", 0.05), ("prefill", 0.08), ("sample", 0.02), ("detokenise", 0.0)),
        *spans(0.15, 1, *drafted),
        *spans(0.25, 2, *drafted),
        *spans(0.35, 3, *plain),
    ]
    runs = [Span("decoder", 0.06, 0.12, 0)]
    runs += [Span("decoder", 0.17, 0.22, 1), Span("medusa", 0.15, 0.155, 1), Span("decoder", 0.27, 0.32, 2)]
    runs += [Span("decoder", 0.36, 0.52, 3)]
    if scale != 1.0:
        stages, runs = ([Span(s.name, scale * s.start, scale * s.end, s.step) for s in each] for each in (stages, runs))
    arrivals = [0.15, 0.25, 0.25, 0.25, 0.35, 0.35, 0.55]
    trace = Trace(
        prefill_seconds=0.1,
        computed=20,
        rows=[4, 4, 1],
        emitted=[3, 2, 1],
        drafted=6,
        accepted_depth=[(3, 2), (3, 1)],
        arrival_seconds=[scale * arrival for arrival in arrivals],
    )
    decode = trace.arrival_seconds[new_tokens - 1] - trace.arrival_seconds[0]
    generation = generated(trace, new_tokens, decode)
    return Answer(prompt, 0, 0, generation, Timeline(tuple(stages), tuple(runs)), cache_bytes=1000)


def generated(trace: Trace, new_tokens: int, decode: float) -> Any:
    """Only what a report asks an answer."""
    known = {"token_ids": list(range(new_tokens)), "prompt_tokens": 25, "finish_reason": "length"}
    return SimpleNamespace(trace=trace, new_tokens=new_tokens, seconds={"decode": decode}, **known)


def model_of(weights: dict[str, int]) -> Any:
    """Only what `rows` asks a model."""
    info: Any = {role: SimpleNamespace(weight_bytes=size) for role, size in weights.items()}
    bundle = SimpleNamespace(info=lambda role, variant: info[role])
    engines: Any = Engines("cpu", "ort-fp32", "none", make=lambda role: info[role])
    engines.update(info)
    return SimpleNamespace(bundle=bundle, engines=engines)


def test_measurement() -> None:
    one = Measurement("medusa", [answer()])
    assert one.answers[0].ttft_ms == pytest.approx(150)
    np.testing.assert_allclose(one.answers[0].itl_ms, [100, 0, 0, 100, 0, 200])
    np.testing.assert_allclose(one.step_ms, [100, 100, 200])
    assert one.tokens_per_second == pytest.approx(6 / 0.4)
    assert one.tokens_per_step == 2.0
    assert one.acceptance_by_depth == [1.0, 0.5, 0.0]
    assert one.drafted_by_depth == [2, 2, 2]
    assert one.answer_tokens_per_step == 2.0
    assert one.rows == [4, 4, 1]


def test_tokens_beyond_the_limit_are_not_counted() -> None:
    one = Measurement("medusa", [answer(6)])  # the last step decided more than was asked for
    assert len(one.answers[0].itl_ms) == 5
    assert one.tokens_per_second == pytest.approx(5 / 0.2)


def test_stages_and_seconds() -> None:
    found = shares([answer().timeline], STEPS, ("tokenise", "prefill"))
    stages, seconds = found["stages_ms"], found["seconds"]
    assert stages["verify"]["p50"] == pytest.approx(60)
    assert stages["verify"]["mean"] == pytest.approx(100)
    assert stages["accept"]["p50"] == pytest.approx(10)
    assert stages["sample"]["mean"] == pytest.approx(5 / 3, abs=1e-4)  # 0 in drafted steps
    assert stages["tokenise"]["p50"] == pytest.approx(50)
    assert stages["host"]["p50"] == pytest.approx(45)  # 100 - 55, 100 - 50, 200 - 160
    assert seconds["total"] == pytest.approx(0.55)
    assert sum(seconds["stages"].values()) == pytest.approx(seconds["total"])
    assert seconds["engines"] == pytest.approx(0.06 + 0.05 + 0.005 + 0.05 + 0.16)
    assert seconds["host"] == pytest.approx(seconds["total"] - seconds["engines"])


def test_rows_compare_with_the_first() -> None:
    plain = Measurement("none", [answer(prompt=str(i), scale=2.0) for i in range(4)])
    fast = Measurement("medusa", [answer(prompt=str(i)) for i in range(4)])
    model = model_of({"decoder": 50_000, "medusa": 7_000})
    table = rows(model, [plain, fast], [None, "0 00"], copy_gb_per_second=0.01)
    assert [row["speedup_vs_none"] for row in table] == [1.0, 2.0]
    assert [row["tree"] for row in table] == [None, "0 00"]
    assert table[1]["speedup_interval"] == [2.0, 2.0]  # all prompts alike
    assert table[1]["break_even_tokens_per_step"] == 0.5
    assert [row["prompts"] for row in table] == [4, 4]
    read = 3 * (50_000 + 1000) + 7_000  # of an answer's steps: each run of the decoder reads its caches too
    assert table[1]["bytes_per_step"] == round(read / 3)
    assert table[1]["gb_per_second"] == round(read / 0.4 / 1e9, 3)
    assert table[1]["bandwidth_share"] == pytest.approx(read / 0.4 / 1e7, abs=1e-4)
    first = table[1]["answers"][0]
    assert first["text"] == table[0]["answers"][0]["text"]
    assert {key: value for key, value in first.items() if key != "text"} == {
        "prompt": "0",
        "turn": 0,
        "repeat": 0,
        "prompt_tokens": 25,
        "computed_tokens": 20,
        "new_tokens": 7,
        "finish_reason": "length",
        "decode_seconds": 0.4,
        "ttft_ms": 150.0,
    }
    assert table[1]["same_text_as_none"] == 1.0
    assert table[1]["prefill_tokens_per_second"] == 250.0
    assert table[1]["answer_tokens_per_step"] / table[1]["break_even_tokens_per_step"] == 4.0  # both of six tokens
    assert (table[1]["drafted_tokens"], table[1]["accepted_tokens"]) == (4 * 6, 4 * 3)
    assert table[1]["drafted_by_depth"] == [8, 8, 8]


def test_answers_that_differ_from_plain_ones_are_counted() -> None:
    plain, other = answer(), answer()
    other.generation.token_ids[3] = 99
    found = [Measurement("none", [plain, plain]), Measurement("x", [other, plain])]
    table = rows(model_of({"decoder": 1}), found, [None, None], None)
    assert [row["same_text_as_none"] for row in table] == [1.0, 0.5]


def test_growth_compares_the_tenths_of_answers() -> None:
    long = answer()
    long.generation.trace.arrival_seconds = np.cumsum([1.0, *[0.1] * 10, *[0.15] * 10]).tolist()
    long.generation.new_tokens = 21  # type: ignore[misc]
    row = rows(model_of({"decoder": 1}), [Measurement("none", [long])], [None], None)[0]
    assert row["itl_growth"] == {"first_decile_ms": 100.0, "last_decile_ms": 150.0, "ratio": 1.5}
    assert row["bandwidth_share"] is None
    short = rows(model_of({"decoder": 1}), [Measurement("none", [answer()])], [None], None)[0]
    assert short["itl_growth"] == {"first_decile_ms": None, "last_decile_ms": None, "ratio": None}


def test_an_answer_of_one_token_has_no_steps() -> None:
    timeline = Timeline(tuple(spans(0.0, 0, ("tokenise", 0.1), ("prefill", 0.1), ("detokenise", 0.1))), ())
    generation = generated(Trace(prefill_seconds=0.1, arrival_seconds=[0.1]), 1, 0.0)
    one = Measurement("none", [Answer("1", 0, 0, generation, timeline, 0)])
    row = rows(model_of({"decoder": 1000}), [one], [None], 1.0)[0]
    assert row["tokens_per_second"] == 0.0
    assert row["tokens_per_step"] == 1.0
    assert row["step_ms"] == row["itl_ms"] == {"mean": None, "p50": None, "p90": None, "p95": None, "p99": None}
    assert row["speedup_vs_none"] is row["gb_per_second"] is row["break_even_tokens_per_step"] is None
    assert row["ttft_ms"]["p50"] == 200.0


def test_steps_by_rows_joins_drafters() -> None:
    found = steps_by_rows([Measurement("a", [answer()]), Measurement("b", [answer(scale=3.0)])])
    assert found == [{"rows": 1, "steps": 2, "step_ms": 400.0}, {"rows": 4, "steps": 4, "step_ms": 200.0}]


def test_percentiles_and_spread() -> None:
    assert percentiles(range(101)) == {"mean": 50.0, "p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}
    assert spread(range(101)) == {"p25": 25.0, "p50": 50.0, "p75": 75.0}
    assert set(percentiles([]).values()) == {None}
    assert variation([9.0, 11.0]) == pytest.approx(np.sqrt(2) / 10, abs=1e-4)
    assert variation([1.0]) is variation([]) is None


def test_totals_add_up_by_prompt() -> None:
    totals = Totals.of([("a", 10, 1.0), ("b", 30, 2.0), ("a", 20, 2.0)])
    assert totals.amount.tolist() == [30, 30]
    assert totals.seconds.tolist() == [3.0, 2.0]
    assert totals.rate == 12.0
    assert Totals.of([]).rate == 0.0


def test_the_interval_covers_the_true_ratio() -> None:
    """Of 300 experiments with a known speed-up the 95 % interval misses it about 15 times."""
    rng, missed, count = np.random.default_rng(0), 0, 24
    for _ in range(300):
        tokens = rng.integers(20, 64, count).astype(float)
        plain = Totals(tokens, tokens * 0.010 * rng.lognormal(0, 0.05, count))
        fast = Totals(tokens, tokens * 0.008 * rng.lognormal(0, 0.20, count))
        expected = 0.010 * np.exp(0.05**2 / 2) / (0.008 * np.exp(0.20**2 / 2))
        ratio, interval = rate_ratio(fast, plain)
        assert interval is not None
        assert interval[0] <= ratio <= interval[1]
        missed += not interval[0] <= expected <= interval[1]
    assert 5 <= missed <= 35


def test_the_interval_of_two_runs_knows_slow_stretches() -> None:
    """Pairs of runs of one program: few count as different, where prompts drawn again would find many that do."""
    rng = np.random.default_rng(1)

    def run(stretch: float) -> Totals:
        """30 answers on a machine with fast and slow stretches of three to seven answers."""
        weather = np.resize(np.repeat(rng.normal(0, stretch, 10), rng.integers(3, 8, 10)), 30)
        return Totals(tokens, tokens * 0.01 * np.exp(weather + rng.normal(0, 0.02, 30)))

    def differ(stretch: float) -> tuple[float, float]:
        found = [0, 0]
        for _ in range(300):
            pair = run(stretch), run(stretch)
            for i, judge in enumerate((rate_ratio_of_runs, rate_ratio)):
                _, interval = judge(*pair)
                assert interval is not None
                found[i] += not interval[0] <= 1 <= interval[1]
        return found[0] / 300, found[1] / 300

    tokens = rng.integers(20, 64, 30).astype(float)
    calm, stormy = differ(0.0), differ(0.08)
    assert calm[0] < 0.03
    assert stormy[0] < 0.05
    assert stormy[1] > 0.3


def test_a_slower_program_is_found_in_a_calm_machine() -> None:
    rng = np.random.default_rng(2)
    tokens = rng.integers(20, 64, 30).astype(float)
    old, new = (Totals(tokens, tokens * each * rng.lognormal(0, 0.02, 30)) for each in (0.010, 0.011))
    ratio, interval = rate_ratio_of_runs(new, old)
    assert ratio == pytest.approx(1 / 1.1, rel=0.02)
    assert interval is not None
    assert interval[1] < 0.95


def test_few_prompts_say_nothing_of_others() -> None:
    few = Totals.of([("a", 10, 1.0), ("b", 10, 2.0)])
    assert rate_ratio(few, few) == (1.0, None)
    more = Totals.of([(name, 10, 1.0) for name in "abcdefghijk"])  # not three stretches of four
    assert rate_ratio_of_runs(few, few) == rate_ratio_of_runs(more, more) == (1.0, None)
    nothing = Totals.of([(name, 0, 0.0) for name in "abcdefghijklm"])
    assert rate_ratio(nothing, nothing) == rate_ratio_of_runs(nothing, nothing) == (0.0, None)


@pytest.mark.parametrize(
    ("ratio", "interval", "limit", "verdict"),
    [
        (0.9, (0.85, 0.95), 0.05, "slower"),
        (0.9, (0.85, 0.95), 0.15, "same"),
        (0.9, (0.75, 1.05), 0.05, "same"),  # within chance
        (0.9, None, 0.05, "unknown"),
        (1.2, (1.1, 1.3), 0.05, "faster"),
        (1.2, (0.9, 1.5), 0.0, "same"),
        (1.0, (1.0, 1.0), 0.0, "same"),
    ],
)
def test_verdicts(ratio: float, interval: tuple[float, float] | None, limit: float, verdict: str) -> None:
    assert Ratio("none", "pp512", 1.0, ratio, ratio, interval).verdict(limit) == verdict


def test_answers_take_turns(model: Model) -> None:
    """Each prompt with every drafter before the next; another one begins each time; warm-up is not counted."""
    prompts = [Prompt(turns=("the fox",), id="a"), Prompt(turns=("the dog", "a cat"), id="b")]
    wanted = [Options(max_new_tokens=4, ignore_eos=True, draft=name) for name in ("none", "lookup")]
    heard: list[str] = []
    found = measure(
        model,
        prompts,
        wanted,
        repeat=2,
        before=lambda: heard.append("before"),
        advance=lambda: heard.append("answered"),
    )
    assert heard == ["before", "answered", "answered"] * 4
    assert found.stopped_by is None
    places = [("a", 0, 0), ("b", 0, 0), ("b", 1, 0), ("a", 0, 1), ("b", 0, 1), ("b", 1, 1)]
    for row in found.rows:
        assert [(one.prompt, one.turn, one.repeat) for one in row.answers] == places
        assert all(one.generation.draft == row.draft for one in row.answers)
    starts = [[one.timeline.start for one in row.answers if one.turn == 0] for row in found.rows]
    assert [plain < lookup for plain, lookup in zip(*starts, strict=True)] == [True, False, False, True]


def test_prompts_with_one_name_are_told_apart(model: Model) -> None:
    prompts = [Prompt(turns=("the fox",), id="x"), Prompt(turns=("the dog",), id="x")]
    found = measure(model, prompts, [Options(max_new_tokens=2)], warm_up=0)
    assert [one.prompt for one in found.rows[0].answers] == ["1", "2"]


def test_an_interrupt_keeps_what_all_have(model: Model) -> None:
    """It comes when one of two drafters has played the second prompt."""
    prompts = [Prompt(turns=(text,), id=text) for text in ("the fox", "the dog", "a cat")]
    wanted = [Options(max_new_tokens=2, draft=name) for name in ("none", "lookup")]
    played: list[int] = []

    def advance() -> None:
        played.append(1)
        if len(played) == 3:
            raise KeyboardInterrupt

    found = measure(model, prompts, wanted, advance=advance)
    assert isinstance(found.stopped_by, KeyboardInterrupt)
    assert [[one.prompt for one in row.answers] for row in found.rows] == [["the fox"], ["the fox"]]


def test_a_prompt_that_does_not_fit_loses_no_other(model: Model) -> None:
    prompts = [Prompt(turns=(text,), id=text[:9]) for text in ("the fox", "the dog " * 2000)]
    wanted = [Options(max_new_tokens=2, draft=name) for name in ("none", "lookup")]
    found = measure(model, prompts, wanted)
    assert "shorten it" in str(found.stopped_by)
    assert [[one.prompt for one in row.answers] for row in found.rows] == [["the fox"], ["the fox"]]
    with pytest.raises(RequestError, match="shorten it"):
        measure(model, prompts[1:], wanted)


def test_an_interrupt_before_anything_was_measured(model: Model) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(model, [Prompt(turns=("the fox",))], [Options(max_new_tokens=2)], advance=interrupt)


def test_the_tests_of_llama_bench(model: Model) -> None:
    tests = Throughput(model, 40, 20)
    tests.warm_up()
    assert tests.rows == []
    for _ in range(3):
        tests.once()
    assert [(row["test"], row["repeats"]) for row in tests.rows] == [("pp40", 3), ("tg20", 3)]
    assert all(row["tokens_per_second"] > 0 and row["stddev"] >= 0 for row in tests.rows)
    none = Throughput(model, 0, 0)
    none.once()
    assert none.rows == []


@pytest.mark.parametrize(("prompts", "repeat"), [(1, 1), (3, 1), (3, 4)])
def test_the_tests_of_llama_bench_are_spread_over_a_profile(model: Model, prompts: int, repeat: int) -> None:
    asked = [Prompt(turns=(f"the {number} fox",), id=str(number)) for number in range(prompts)]
    made = profile(model, asked, [Options(max_new_tokens=2)], Amount(repeat=repeat, pp=8, tg=4))
    assert [(row["test"], row["repeats"]) for row in made.document["tests"]] == [("pp8", 5), ("tg4", 5)]
    assert made.document["complete"]
    assert made.document["stability"]["beats"] == prompts * repeat
