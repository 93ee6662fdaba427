"""Conversations as they are played: turns of a user, each answered before the next."""

import dataclasses
from collections.abc import Iterator, Sequence

from seqrt.errors import RequestError
from seqrt.runtime.bundle import Bundle
from seqrt.runtime.chat import Message
from seqrt.runtime.model import Model
from seqrt.runtime.options import Options
from seqrt.runtime.prompts import Prompt
from seqrt.runtime.stream import Stream

_TEMPLATE = "chat_template.jinja"


class Conversation:
    """What was said so far.

    Attributes:
        messages: `{"role": ..., "content": ...}` each, oldest first.
    """

    def __init__(self, messages: Sequence[Message] = ()) -> None:
        self.messages: list[Message] = list(messages)

    def ask(self, text: str) -> None:
        """The user says something."""
        self.messages.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        """The model's answer becomes part of the conversation."""
        self.messages.append({"role": "assistant", "content": text})

    def stream(self, model: Model, options: Options) -> Stream:
        """Answers the conversation as it stands, which stays as it is.

        Without a chat template, or with `options.raw`, answers follow their prompts directly and each further
        prompt begins a new line.

        Raises:
            RequestError: it cannot be served.
        """
        for message in self.messages:
            _check_text(message["content"])
        if options.raw or not _has_template(model.bundle):
            return model.stream(self._raw_text(), dataclasses.replace(options, raw=True))
        return model.stream_chat(self.messages, options)

    def _raw_text(self) -> str:
        parts: list[str] = []
        for message in self.messages:
            is_answer = message["role"] == "assistant"
            parts += [message["content"]] if is_answer or not parts else ["\n", message["content"]]
        return "".join(parts)


def play(model: Model, prompt: Prompt, options: Options) -> Iterator[Stream]:
    """One stream a turn; each must have been run to its end when the next is asked for."""
    conversation = Conversation(prompt.messages)
    for turn in prompt.turns or (None,):
        if turn is not None:
            conversation.ask(turn)
        stream = conversation.stream(model, options)
        yield stream
        conversation.answer(stream.result.text)


def _has_template(bundle: Bundle) -> bool:
    return _TEMPLATE in bundle.manifest.files


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the prompt has half a character ({text[error.start]!r}) at {error.start}; give text that UTF-8 can hold"
        ) from error
