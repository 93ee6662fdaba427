import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from seqrt.errors import EngineError
from seqrt.runtime.generate import Loop
from seqrt.runtime.model import Model

Seqrt = Callable[..., Any]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets what the user types."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, str]]]:
    """The conversations that the model was asked to continue."""
    found: list[list[dict[str, str]]] = []
    stream = Model.stream_chat

    def noting(model: Model, messages: list[dict[str, str]], *arguments: Any) -> Any:
        found.append([dict(message) for message in messages])
        return stream(model, messages, *arguments)

    monkeypatch.setattr(Model, "stream_chat", noting)
    return found


def test_history_grows_until_reset(
    seqrt: Seqrt, bundle: Path, say: Callable[[str], None], heard: list[list[dict[str, str]]]
) -> None:
    say("the fox\n\nthe dog\n/reset\nthe user\n/exit\nnever read\n")
    result = seqrt("chat", bundle, "--system", "be brief", "--max-new-tokens", 3, "--draft", "lookup")
    assert result.code == 0
    assert [[message["role"] for message in messages] for messages in heard] == [
        ["system", "user"],
        ["system", "user", "assistant", "user"],
        ["system", "user"],
    ]
    assert heard[1][2]["content"] == result.out.split("\n")[0]
    assert heard[2][1]["content"] == "the user"


def test_second_turn_reuses_the_cache(seqrt: Seqrt, bundle: Path, say: Callable[[str], None]) -> None:
    say("the fox\nthe dog\n")
    results = json.loads(seqrt("chat", bundle, "--max-new-tokens", 5, "--json").out)["results"]
    say("the fox\n")
    alone = json.loads(seqrt("chat", bundle, "--max-new-tokens", 5, "--json").out)["results"]
    assert len(results) == 2
    assert results[0]["token_ids"] == alone[0]["token_ids"]
    assert results[1]["prompt_tokens"] > results[0]["prompt_tokens"] + 5


def test_a_message_that_does_not_fit_is_forgotten(
    seqrt: Seqrt, bundle: Path, say: Callable[[str], None], heard: list[list[dict[str, str]]]
) -> None:
    say("fox " * 300 + "\nthe dog\n")
    result = seqrt("chat", bundle, "--max-new-tokens", 2)
    assert result.code == 0
    assert "capacity is 256" in result.error
    assert "/reset" in result.error
    assert [message["content"] for message in heard[-1]] == ["the dog"]


def test_an_answer_that_fails_on_its_way_is_forgotten(
    seqrt: Seqrt,
    bundle: Path,
    say: Callable[[str], None],
    heard: list[list[dict[str, str]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step, left = Loop._step, [3]

    def failing(loop: Loop, *arguments: Any) -> list[int]:
        left[0] -= 1
        if left[0] == 0:
            raise EngineError("the engine failed")
        return step(loop, *arguments)

    monkeypatch.setattr(Loop, "_step", failing)
    say("the fox\nthe dog\n")
    result = seqrt("chat", bundle, "--ignore-eos", "--max-new-tokens", 6, "--json")
    assert result.code == 0
    assert result.err.count("seqrt: error: the engine failed (/reset forgets the conversation)\n") == 1
    assert [answer["new_tokens"] for answer in json.loads(result.out)["results"]] == [6]
    assert [message["content"] for message in heard[-1]] == ["the dog"]


def test_unknown_commands_are_explained(seqrt: Seqrt, bundle: Path, say: Callable[[str], None]) -> None:
    say("/quit\n")
    result = seqrt("chat", bundle)
    assert result.out == ""
    assert "/quit is no command: /reset forgets" in result.err


def test_interrupt_stops_the_answer_not_the_program(
    seqrt: Seqrt,
    bundle: Path,
    say: Callable[[str], None],
    heard: list[list[dict[str, str]]],
    interrupt_at: Callable[[int], None],
) -> None:
    interrupt_at(3)
    say("the fox\nthe dog\n")
    result = seqrt("chat", bundle, "--ignore-eos", "--max-new-tokens", 6, "--json")
    results = json.loads(result.out)["results"]
    assert result.code == 0
    assert [result["new_tokens"] for result in results] == [3, 6]
    assert len(heard[-1]) == 3  # what there was of the first answer is remembered


def test_interrupt_at_the_prompt_ends(seqrt: Seqrt, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    result = seqrt("chat", bundle)
    assert result.code == 130
    assert result.error == "interrupted"


def test_input_that_is_not_utf8(seqrt: Seqrt, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"fox \xff\n"), encoding="utf-8"))
    result = seqrt("chat", bundle)
    assert result.code == 1
    assert result.error == "the input is not valid UTF-8 (byte 0xff); type or pipe UTF-8"
