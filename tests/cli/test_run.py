import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqrt.runtime.generate import Loop

Seqrt = Callable[..., Any]
KEYS = {
    *("text", "token_ids", "prompt_tokens", "new_tokens", "finish_reason", "draft", "steps", "tokens_per_step"),
    *("seconds", "tokens_per_second"),
}


@pytest.mark.parametrize("draft", ["none", "lookup", "recycling", "medusa"])
def test_json_is_one_document_and_the_same_text_with_every_drafter(seqrt: Seqrt, bundle: Path, draft: str) -> None:
    arguments = ("run", bundle, "--prompt", "the quick fox", "--max-new-tokens", 24, "--json")
    plain = seqrt(*arguments)
    result = seqrt(*arguments, "--draft", draft, "--no-adaptive")
    document = json.loads(result.out)
    assert result.code == 0
    assert document.keys() >= KEYS
    assert document["draft"] == draft
    assert document["new_tokens"] == len(document["token_ids"]) == 24
    assert document["seconds"].keys() == {"load", "prefill", "decode"}
    assert document["token_ids"] == json.loads(plain.out)["token_ids"]


def test_text_streams_to_stdout_and_figures_to_stderr(seqrt: Seqrt, bundle: Path) -> None:
    arguments = ("run", bundle, "--prompt", "the quick fox", "--max-new-tokens", 8)
    document = json.loads(seqrt(*arguments, "--json").out)
    result = seqrt(*arguments)
    assert result.out == document["text"] + "\n"
    assert result.err.startswith("seqrt: 8 tokens (length), ")
    assert "1.00 tokens per step (none)" in result.err


def test_prompts_give_a_result_for_each_turn(seqrt: Seqrt, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"id": "a", "turns": ["the fox", "the dog"]}\n{"prompt": "the user"}\n')
    results = json.loads(seqrt("run", bundle, "--prompts", file, "--max-new-tokens", 4, "--json").out)["results"]
    assert [(result["prompt"], result["turn"]) for result in results] == [("a", 0), ("a", 1), ("2", 0)]
    assert all(result.keys() >= KEYS for result in results)
    assert results[1]["prompt_tokens"] > results[0]["prompt_tokens"] + results[0]["new_tokens"]


def test_raw_prompts_go_without_the_template(seqrt: Seqrt, bundle: Path) -> None:
    arguments = ("run", bundle, "--prompt", "fox", "--max-new-tokens", 1, "--json")
    raw, templated = (json.loads(seqrt(*arguments, *more).out)["prompt_tokens"] for more in (["--raw"], []))
    assert raw < templated


def test_options_reach_the_model(seqrt: Seqrt, bundle: Path) -> None:
    arguments = ("run", bundle, "--prompt", "the fox", "--max-new-tokens", 6, "--json")
    plain = json.loads(seqrt(*arguments, "--log-probabilities").out)
    first, third = plain["token_ids"][0], plain["token_ids"][2]
    assert len(plain["log_probabilities"]) == 6
    banned = json.loads(seqrt(*arguments, "--logit-bias", f"{first}=-inf").out)
    assert banned["token_ids"][0] != first
    stopped = json.loads(seqrt(*arguments, "--stop-ids", third).out)
    assert stopped["finish_reason"] == "stop"
    assert stopped["token_ids"][-1] == third
    sampled = [json.loads(seqrt(*arguments, "--temperature", 1, "--seed", seed).out)["token_ids"] for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_answers_end_at_the_capacity_with_and_without_drafts(seqrt: Seqrt, bundle: Path) -> None:
    arguments = ("run", bundle, "--prompt", "the fox " * 55, "--max-new-tokens", 1000, "--ignore-eos", "--json")
    plain, drafted = (json.loads(seqrt(*arguments, "--draft", draft).out) for draft in ("none", "medusa"))
    assert plain["finish_reason"] == drafted["finish_reason"] == "length"
    assert plain["prompt_tokens"] + plain["new_tokens"] == 256
    assert plain["token_ids"] == drafted["token_ids"]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--prompt", ""], 1, "the prompt is empty; give some text"),
        (["--prompt", "  \n"], 1, "the prompt is empty; give some text"),
        (["--prompt", "fox " * 300], 1, "tokens, the bundle's capacity is 256 with the answer; shorten it"),
        (["--prompt", "\udcff"], 2, r"--prompt is not valid UTF-8: '\\udcff'; give it in UTF-8"),
        (["--prompt", "x", "--stop", "\udcff"], 2, "--stop is not valid UTF-8"),
        (["--prompt", "x", "--stop", ""], 2, "--stop is empty"),
        ([], 2, "give either --prompt TEXT or --prompts FILE"),
        (["--prompt", "x", "--prompts", "y"], 2, "give either --prompt TEXT or --prompts FILE"),
        (["--prompts", "/nowhere/prompts.txt"], 1, "/nowhere/prompts.txt cannot be read: No such file"),
        (["--prompt", "x", "--tempreature", "1"], 2, "No such option: --tempreature"),
        (["--prompt", "x", "--temperature", "warm"], 2, "Invalid value for '--temperature'"),
        (["--prompt", "x", "--temperature", "-1"], 2, "--temperature is -1.0; give 0 (greedy) or 0.001 or more"),
        (["--prompt", "x", "--temperature", "nan"], 2, "--temperature is nan; give"),
        (["--prompt", "x", "--top-p", "1.5"], 2, "--top-p is 1.5; give"),
        (["--prompt", "x", "--top-k", "-3"], 2, "--top-k is -3; give"),
        (["--prompt", "x", "--min-p", "nan"], 2, "--min-p is nan; give"),
        (["--prompt", "x", "--repetition-penalty", "nan"], 2, "--repetition-penalty is nan; give"),
        (["--prompt", "x", "--max-new-tokens", "0"], 2, "--max-new-tokens is 0; give 1 or more"),
        (["--prompt", "x", "--logit-bias", "cat=1"], 2, "--logit-bias is 'cat=1'; give TOKEN=BIAS"),
        (["--prompt", "x", "--draft", "eagle"], 2, "--draft eagle is not in this bundle; choose one of none, lookup,"),
        (["--prompt", "x", "--accept", "maybe"], 2, "--accept is 'maybe'; choose one of greedy, match"),
        (["--prompt", "x", "--draft", "lookup", "--accept", "reject"], 2, "--accept reject needs drafts that were"),
        (["--prompt", "x", "--backend", "abacus"], 2, "--backend abacus is unknown; choose one of cpu"),
        (["--prompt", "x", "--threads", "-2"], 2, "--threads is -2; give 0"),
        (["--prompt", "x", "--draft", "medusa", "--tree", "01"], 2, "--tree '01': path 01 of the tree has no parent"),
        (
            ["--prompt", "x", "--draft", "medusa", "--tree", "0 00 000 0000"],
            2,
            "--tree '0 00 000 0000': the tree is 4 deep but there are 3 draft heads; choose one no deeper",
        ),
        (["--prompt", "x", "--draft", "medusa", "--tree", "12."], 2, "--tree '12.': the tree asks for candidate 12"),
        (["--prompt", "x", "--draft", "medusa", "--tree", "oak"], 2, "--tree 'oak': no tree is called 'oak'"),
        (["--prompt", "x", "--draft", "lookup", "--tree", "0"], 2, "--tree is of no use to --draft lookup; choose"),
    ],
)
def test_bad_requests_are_one_line(seqrt: Seqrt, bundle: Path, arguments: list[str], code: int, text: str) -> None:
    result = seqrt("run", bundle, *arguments, "--json")
    assert result.code == code, result.err
    assert text in result.error
    assert result.out == ""


def test_what_recycling_learns_is_kept_where_the_user_says(seqrt: Seqrt, bundle: Path, tmp_path: Path) -> None:
    memory = tmp_path / "learnt.npy"
    arguments = ("run", bundle, "--prompt", "the fox", "--draft", "recycling", "--max-new-tokens", 12, "--json")
    plain = json.loads(seqrt(*arguments[:4], *arguments[6:]).out)
    assert seqrt(*arguments).code == 0
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        result = seqrt(*arguments, "--memory", memory)
        assert result.code == 0
        assert json.loads(result.out)["token_ids"] == plain["token_ids"]
        assert list(tmp_path.iterdir()) == [memory]
    memory.write_bytes(b"not an array")
    result = seqrt(*arguments, "--memory", memory)
    assert result.code == 2
    assert result.error == f"--memory {memory} is no file that seqrt wrote; choose another file"


def test_a_corpus_is_a_text_file(seqrt: Seqrt, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "corpus.txt"
    arguments = ("run", bundle, "--prompt", "the fox", "--draft", "corpus", "--max-new-tokens", 12, "--json")
    result = seqrt(*arguments, "--corpus", file)
    assert (result.code, f"--corpus {file} cannot be read: No such file" in result.error) == (2, True)
    file.write_text("the quick brown fox jumps over the lazy dog")
    result = seqrt(*arguments, "--corpus", file)
    plain = seqrt(*arguments[:4], *arguments[6:])
    assert result.code == 0
    assert json.loads(result.out)["token_ids"] == json.loads(plain.out)["token_ids"]


def test_bad_prompt_files_name_the_line(seqrt: Seqrt, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    for content, text in (
        (b'{"prompt": "fine"}\n{"prompt": "\xff"}\n', "line 2 is not UTF-8"),
        (b'{"prompt": "fine"}\n{"prompt"\n', "line 2 is not JSON"),
        (b'{"question": "fine"}\n', "line 1 must be an object with one of prompt, turns, messages"),
        (b"\n", "is empty"),
        (b'{"prompt": "\\ud83d"}\n', "half a character"),
    ):
        file.write_bytes(content)
        result = seqrt("run", bundle, "--prompts", file)
        assert result.code == 1
        assert text in result.error


def test_typical_says_that_it_is_lossy(seqrt: Seqrt, bundle: Path) -> None:
    result = seqrt(
        *("run", bundle, "--prompt", "the fox", "--draft", "medusa", "--accept", "typical"),
        *("--temperature", 1, "--max-new-tokens", 4, "--json"),
    )
    assert result.code == 0
    assert result.err == "seqrt: warning: --accept typical is lossy: the text does not keep the model's distribution\n"


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C after four tokens."""
    step = Loop._step

    def interrupt(loop: Loop, *arguments: Any) -> list[int]:
        if len(loop.trace.rows) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(loop, *arguments)

    monkeypatch.setattr(Loop, "_step", interrupt)


@pytest.mark.usefixtures("interrupted")
def test_interrupt_prints_what_there_is(seqrt: Seqrt, bundle: Path) -> None:
    arguments = ("run", bundle, "--prompt", "the fox", "--ignore-eos")
    result = seqrt(*arguments)
    assert result.code == 130
    assert result.err.startswith("seqrt: 4 tokens (length), ")
    result_json = seqrt(*arguments, "--json")
    document = json.loads(result_json.out)
    assert result_json.code == 130
    assert document["interrupted"] is True
    assert document["new_tokens"] == len(document["token_ids"]) == 4
    assert result.out == document["text"] + "\n"


@pytest.mark.usefixtures("interrupted")
def test_interrupt_ends_a_file_of_prompts(seqrt: Seqrt, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("the fox\nthe dog\n")
    result = seqrt("run", bundle, "--prompts", file, "--ignore-eos", "--json")
    document = json.loads(result.out)
    assert result.code == 130
    assert [answer["new_tokens"] for answer in document["results"]] == [4]
    assert document["interrupted"] is True
