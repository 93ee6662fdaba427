"""The benches run, and count what they say they count."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tools.bench import host, tasks, units

from seqrt.runtime.generate import Trace
from seqrt.runtime.stream import Generation


def answer(token_ids: list[int], steps: int, decode_seconds: float, margins: list[float] | None = None) -> Generation:
    return Generation(
        text="",
        token_ids=token_ids,
        prompt_tokens=3,
        new_tokens=len(token_ids),
        finish_reason="length",
        draft="none",
        steps=steps,
        tokens_per_step=(len(token_ids) - 1) / steps,
        seconds={"load": 0.0, "prefill": 0.5, "decode": decode_seconds},
        tokens_per_second=(len(token_ids) - 1) / decode_seconds,
        log_probabilities=None,
        trace=Trace(margins=margins or [1.0] * len(token_ids)),
    )


def test_host_work_is_measured_on_whole_trees(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host, "STEPS", 20)
    host.main()
    *lines, last = capsys.readouterr().out.splitlines()[1:]
    assert last.startswith("a plain step: ")
    assert [line[:16].strip() for line in lines] == ["medusa", "medusa, dynamic", "hydra", "recycling"]
    assert all(line.endswith("  64 nodes") for line in lines)


def test_tasks_count_mismatches_and_ties_apart() -> None:
    plain = answer([5, 6, 7], 2, 0.2, margins=[1.0, 1.0, 1e-4])
    sums = tasks.Sums()
    sums.add(plain, plain)
    sums.add(answer([5, 6, 8], 1, 0.1), plain)  # parts where the plain run saw a tie
    sums.add(answer([5, 9, 7], 1, 0.1), plain)
    assert (sums.prompts, sums.tokens, sums.steps) == (3, 6, 4)
    assert (sums.mismatches, sums.ties) == (1, 1)
    assert sums.tokens_per_second == pytest.approx(6 / 0.4)


def test_tasks_table_compares_with_plain_decoding_of_the_same_task() -> None:
    plain, drafted = tasks.Sums(), tasks.Sums()
    once = answer([1, 2, 3, 4, 5], 4, 1.0)
    plain.add(once, once)
    drafted.add(answer([1, 2, 3, 4, 5], 2, 0.5), once)
    console = Console(width=200, record=True, quiet=True)
    with console.capture() as capture:
        console.quiet = False
        console.print(
            tasks.show(
                {"rag": {"none": plain, "lookup": drafted}, "all": {"none": plain, "lookup": drafted}},
                ["none", "lookup"],
            )
        )
    row = next(line for line in capture.get().splitlines() if "rag" in line)
    assert "2.00  2.00x" in row
    assert "4.0" in row


def test_units_are_swept_and_drawn(tmp_path: Path) -> None:
    at = (4, 0.9)
    wanted = units.ways([2, 3], [0.5], at, 8)
    assert set(wanted) == {
        *("none", "verify k=2", "verify k=3"),
        *("paper k=4 beta=0.9", "paper k=2 beta=0.9", "paper k=3 beta=0.9", "paper k=4 beta=0.5"),
    }
    plain = replace(answer([5, 6, 7, 8], 3, 0.3), log_probabilities=[-0.1] * 4)
    other = replace(answer([5, 6, 9, 8], 1, 0.2), log_probabilities=[-0.3] * 4)
    for one in (plain, other):
        one.trace.emitted.append(3)
    sums = {name: units.Sums() for name in wanted}
    for name, each in sums.items():
        each.add(plain if name == "none" else other, plain)
    row = sums["verify k=2"].row(sums["none"])
    assert (row["tokens_per_step"], row["same_answers"], row["agreed_share"]) == (3.0, 0.0, 0.5)
    assert row["speedup"] == pytest.approx(1.5)
    assert row["perplexity"] == pytest.approx(math.exp(0.3), abs=1e-3)
    rows = {kind: {name: each.row(sums["none"]) for name, each in sums.items()} for kind in ("prose", "code")}
    units.draw(rows, at, tmp_path / "units.svg")
    assert (tmp_path / "units.svg").read_text().count("<svg") == 1
    Console(quiet=True).print(units.show(rows))
