"""Prompt files, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrt.errors import RequestError
from seqrt.runtime.prompts import Prompt, read_prompts


def write(tmp_path: Path, content: bytes | str, name: str = "prompts.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_every_kind_of_line_is_read(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    records = [
        {"id": 81, "task": "writing", "turns": ["Write.", "Again."]},
        {"prompt": "One\u2028line\n"},
        {"id": "m", "messages": messages},
    ]
    text = "\n\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\r\n"
    assert read_prompts(write(tmp_path, text)) == [
        Prompt(turns=("Write.", "Again."), id="81", task="writing"),
        Prompt(turns=("One\u2028line\n",), id="3"),
        Prompt(messages=tuple(messages), id="m"),
    ]


def test_plain_text_is_a_prompt_on_each_line(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbffirst \xe2\x80\xa8 one\r\n\n second\n", "prompts.txt")
    assert read_prompts(path) == [
        Prompt(turns=("first \u2028 one",), id="1"),
        Prompt(turns=(" second",), id="3"),
    ]


def test_json_lines_are_known_by_name_or_by_their_brace(tmp_path: Path) -> None:
    assert read_prompts(write(tmp_path, '\n {"prompt": "hi"}', "any.txt")) == [Prompt(turns=("hi",), id="2")]
    with pytest.raises(RequestError, match=r"prompts\.jsonl line 1 is not JSON"):
        read_prompts(write(tmp_path, "plain text"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"prompt": "ok"}\n{"prompt": "caf\xe9"}', r"line 2 is not UTF-8 \(byte 16, 0xe9\); save the file"),
        ('{"prompt": "ok"}\n{"prompt": ', r"line 2 is not JSON: .+; write one object on each line"),
        ("[" * 100_000, r"line 1 is not JSON"),
        ("[1]", r"line 1 must be an object with one of prompt, turns, messages; it has none"),
        ('{"text": "hi"}', r"it has none"),
        ('{"prompt": "hi", "turns": ["a"]}', r"it has \['prompt', 'turns'\]"),
        ('{"prompt": ""}', r"line 1: a prompt is ''; give a text that is not empty"),
        ('{"prompt": 5}', r"line 1: a prompt is 5; "),
        ('{"turns": []}', r"line 1: turns is \[\]; give a list of at least one text"),
        ('{"turns": "hi"}', r"line 1: turns is 'hi'"),
        ('{"turns": ["a", null]}', r"line 1: a prompt is None"),
        ('{"messages": {"role": "user"}}', r"line 1: messages is \{'role': 'user'\}; give a list"),
        ('{"messages": []}', r"line 1: the conversation has no messages"),
        ('{"messages": [{"role": "user"}]}', r"line 1: message 0 is "),
        ("", r"is empty; put a prompt on each line"),
        ("\n \r\n", r"is empty"),
    ],
)
def test_bad_lines_are_refused_by_number(tmp_path: Path, content: bytes | str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        read_prompts(write(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"nowhere\.txt cannot be read: No such file or directory"):
        read_prompts(tmp_path / "nowhere.txt")
    with pytest.raises(RequestError, match="cannot be read: Is a directory"):
        read_prompts(tmp_path)


@given(content=st.binary(max_size=80))
def test_any_bytes_give_prompts_or_one_clear_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = write(tmp_path_factory.mktemp("any"), content, "any.txt")
    prompts, message = [], ""
    try:
        prompts = read_prompts(path)
    except RequestError as error:
        message = str(error)
    assert bool(prompts) != bool(message)
    assert "\n" not in message
    assert all(prompt.turns or prompt.messages for prompt in prompts)
