from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from seqrt.errors import RequestError
from seqrt.runtime.conversation import Conversation, play
from seqrt.runtime.options import Options
from seqrt.runtime.prompts import Prompt


class Echo:
    """A model that answers every conversation with its number, and notes what it was asked."""

    def __init__(self, *files: str) -> None:
        self.bundle = SimpleNamespace(manifest=SimpleNamespace(files=dict.fromkeys(files)))
        self.asked: list[Any] = []

    def stream(self, prompt: str, options: Options) -> Any:
        self.asked.append(prompt)
        return SimpleNamespace(result=SimpleNamespace(text=f"[{len(self.asked)}]"))

    def stream_chat(self, messages: Sequence[Any], options: Options) -> Any:
        return self.stream([(message["role"], message["content"]) for message in messages], options)  # type: ignore[arg-type]


def played(model: Any, prompt: Prompt, options: Options) -> list[Any]:
    assert [stream.result.text for stream in play(model, prompt, options)]
    return list(model.asked)


def test_turns_follow_each_other() -> None:
    model = Echo("chat_template.jinja")
    assert played(model, Prompt(turns=("a", "b")), Options()) == [
        [("user", "a")],
        [("user", "a"), ("assistant", "[1]"), ("user", "b")],
    ]


def test_messages_come_first_and_alone_are_answered_once() -> None:
    system, user = {"role": "system", "content": "s"}, {"role": "user", "content": "u"}
    model = Echo("chat_template.jinja")
    assert played(model, Prompt(messages=(system, user)), Options()) == [[("system", "s"), ("user", "u")]]
    model = Echo("chat_template.jinja")
    assert played(model, Prompt(messages=(system,), turns=("a",)), Options()) == [[("system", "s"), ("user", "a")]]


def test_raw_answers_follow_their_prompts() -> None:
    model = Echo("chat_template.jinja")
    assert played(model, Prompt(turns=("a", "b")), Options(raw=True)) == ["a", "a[1]\nb"]


def test_without_a_template_a_single_prompt_is_raw() -> None:
    assert played(Echo(), Prompt(turns=("a",)), Options()) == ["a"]


def test_without_a_template_further_turns_are_raw_too() -> None:
    assert played(Echo(), Prompt(turns=("a", "b")), Options()) == ["a", "a[1]\nb"]
    system, user = {"role": "system", "content": "s"}, {"role": "user", "content": "u"}
    assert played(Echo(), Prompt(messages=(system, user)), Options()) == ["s\nu"]


def test_half_a_character() -> None:
    conversation = Conversation()
    conversation.ask("ab\ud83d")
    with pytest.raises(RequestError, match=r"the prompt has half a character \('\\ud83d'\) at 2; give text"):
        conversation.stream(Echo(), Options())  # type: ignore[arg-type]
