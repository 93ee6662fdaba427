import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqrt.cli.session import prompts_of
from seqrt.runtime.model import load
from seqrt.runtime.stream import Stream

Seqrt = Callable[..., Any]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"id": "a", "turns": ["the fox", "the dog"]}\n{"id": "b", "prompt": "the lazy user"}\n')
    return file


def test_drafting_changes_nothing(seqrt: Seqrt, bundle: Path, prompts: Path) -> None:
    result = seqrt("verify", bundle, "--prompts", prompts, "--max-new-tokens", 24, "--no-adaptive", "--json")
    document = json.loads(result.out)
    assert result.code == 0
    assert [row["draft"] for row in document["rows"]] == ["lookup", "recycling", "medusa"]
    assert document | {"rows": None} == {
        "prompts": 2,
        "tokens": 3 * 3 * 24,
        "mismatches": 0,
        "ties": 0,
        "rate": 0.0,
        "first_mismatch": None,
        "rows": None,
    }


def test_our_own_prompts_are_a_dozen_over_many_tasks() -> None:
    prompts = prompts_of(None)
    assert len(prompts) == len({prompt.id for prompt in prompts}) == 12
    assert len({prompt.task for prompt in prompts}) >= 8
    assert any(len(prompt.turns) > 1 for prompt in prompts)


def falsify(monkeypatch: pytest.MonkeyPatch, margin: float) -> None:
    """Gives drafted answers another fourth token, and plain ones this margin there."""
    finish = Stream.finish

    def wrong(stream: Stream) -> Any:
        generation = finish(stream)
        if generation.draft != "none":
            generation.token_ids[3] += 1
        else:
            generation.trace.margins[3] = margin
        return generation

    monkeypatch.setattr(Stream, "finish", wrong)


def test_a_mismatch_is_told_and_fails(
    seqrt: Seqrt, bundle: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    falsify(monkeypatch, 2e-3)
    result = seqrt(*("verify", bundle, "--prompts", prompts, "--draft", "lookup", "--max-new-tokens", 8, "--json"))
    document = json.loads(result.out)
    assert result.code == 1
    assert result.error == "2 of 2 answers differ from plain decoding"
    # A prompt is judged at its first divergence: its second turn is not counted.
    assert (document["prompts"], document["tokens"], document["mismatches"], document["ties"]) == (2, 6, 2, 0)
    first = document["first_mismatch"]
    assert (first["draft"], first["prompt"], first["turn"], first["position"]) == ("lookup", "a", 0, 3)
    assert first["got"] == first["expected"] + 1
    assert first["margin"] == 2e-3


def test_ties_are_counted_apart(seqrt: Seqrt, bundle: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    falsify(monkeypatch, 1e-3)
    result = seqrt("verify", bundle, "--prompts", prompts, "--draft", "lookup", "--max-new-tokens", 8)
    assert result.code == 0
    assert [line.split() for line in result.out.splitlines() if "lookup" in line] == [
        ["lookup", "2", "6", "0", "0.00%", "2"]
    ]


def test_margins_are_those_of_the_plain_run(bundle: Path) -> None:
    model = load(bundle)
    prompt = model.encode("the fox")
    answer = model.generate(prompt, log_probabilities=True, max_new_tokens=5)
    for position, token in enumerate(answer.token_ids):
        before = [*prompt, *answer.token_ids[:position]]
        # The best two, by banning the best one.
        best = model.generate(before, max_new_tokens=1, log_probabilities=True)
        second = model.generate(before, max_new_tokens=1, log_probabilities=True, logit_bias={token: -1e9})
        assert best.token_ids == [token]
        assert best.log_probabilities is not None
        assert second.log_probabilities is not None
        gap = best.log_probabilities[0] - second.log_probabilities[0]
        assert answer.trace.margins[position] == pytest.approx(gap, abs=1e-4)


def test_repeat_and_draft_names_are_checked_before_anything_runs(seqrt: Seqrt, bundle: Path) -> None:
    result = seqrt("verify", bundle, "--draft", "lookup", "--draft", "hydra")
    assert result.code == 2
    assert "--draft hydra is not in this bundle" in result.error
    assert seqrt("verify", bundle, "--temperature", 1).code == 2
    result = seqrt("verify", bundle, "--draft", "none")
    assert result.code == 2
    assert result.error == "--draft none leaves nothing to compare; name a drafter"
