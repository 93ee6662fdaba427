"""Files of prompts: JSON lines with `prompt`, `turns` or `messages`, or plain text, a prompt on each line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqrt.errors import RequestError
from seqrt.runtime.chat import Message, check_messages


@dataclass(frozen=True, slots=True)
class Prompt:
    """One conversation to be played.

    Attributes:
        turns: what the user says, turn after turn, each answered before the next; may be empty.
        messages: what was said before the first turn; without turns, what is to be answered.
        id: the line's `id`, else its number in the file, from 1.
        task: the line's `task`, by which benchmarks group.
    """

    turns: tuple[str, ...] = ()
    messages: tuple[Message, ...] = ()
    id: str = ""
    task: str | None = None


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file: JSON lines if its name ends in .jsonl or its text begins with a brace.

    Raises:
        RequestError: the file cannot be read, holds no prompt, or a line (named by its number) is not UTF-8,
            not JSON, or not a prompt.
    """
    try:
        content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except OSError as error:
        raise RequestError(f"prompts file {path} cannot be read: {error.strerror}; give a readable file") from error
    # Not splitlines: prompts may hold the other line ends of Unicode.
    lines = [(number, line) for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()]
    if not lines:
        raise RequestError(f"prompts file {path} is empty; put a prompt on each line")
    is_json = path.suffix == ".jsonl" or lines[0][1].lstrip().startswith(b"{")
    return [_prompt(line, is_json, number, path) for number, line in lines]


def prompts_sha256(prompts: Iterable[Prompt]) -> str:
    """Of everything that they say."""
    texts = json.dumps([dataclasses.asdict(prompt) for prompt in prompts], sort_keys=True)
    return hashlib.sha256(texts.encode(errors="surrogatepass")).hexdigest()


def _prompt(line: bytes, is_json: bool, number: int, path: Path) -> Prompt:
    where = f"{path} line {number}"
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise RequestError(
            f"{where} is not UTF-8 (byte {error.start + 1}, 0x{line[error.start]:02x}); save the file as UTF-8"
        ) from error
    if not is_json:
        return Prompt(turns=(text.removesuffix("\r"),), id=str(number))
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise RequestError(f"{where} is not JSON: {why}; write one object on each line") from error
    return _from_record(record, number, where)


def _from_record(record: Any, number: int, where: str) -> Prompt:
    kinds = [kind for kind in _READERS if kind in record] if isinstance(record, dict) else []
    if len(kinds) != 1:
        raise RequestError(f"{where} must be an object with one of {', '.join(_READERS)}; it has {kinds or 'none'}")
    try:
        told = _READERS[kinds[0]](record[kinds[0]])
    except RequestError as error:
        raise RequestError(f"{where}: {error}") from error
    task = record.get("task")
    return Prompt(**told, id=str(record.get("id", number)), task=None if task is None else str(task))


def _read_prompt(value: Any) -> dict[str, Any]:
    return _read_turns([value])


def _read_turns(value: Any) -> dict[str, Any]:
    if not isinstance(value, list) or not value:
        raise RequestError(f"turns is {value!r:.60}; give a list of at least one text")
    for turn in value:
        if not isinstance(turn, str) or not turn:
            raise RequestError(f"a prompt is {turn!r:.60}; give a text that is not empty")
    return {"turns": tuple(value)}


def _read_messages(value: Any) -> dict[str, Any]:
    if not isinstance(value, list):
        raise RequestError(f"messages is {value!r:.60}; give a list of objects with role and content")
    check_messages(value)
    return {"messages": tuple(value)}


_READERS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "prompt": _read_prompt,
    "turns": _read_turns,
    "messages": _read_messages,
}
