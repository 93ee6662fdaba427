"""What one answer leaves in the cache: the next one computes only the rest, and gives the same text."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from seqrt.errors import RequestError
from seqrt.runtime.decoder import Decoder, StepOutput
from seqrt.runtime.model import Model, load

Prophesied = Callable[[Model, list[int]], dict[str, Any]]

DRAFTS = [
    ("none", True),
    ("lookup", True),
    ("lookup", False),
    ("recycling", False),
    ("medusa", True),
    ("medusa", False),
]
CHAT = ("the ring", "of the tin", "to the sea")


def conversation(answers: Sequence[str]) -> list[dict[str, str]]:
    """All turns so far, and the next question."""
    messages = []
    for question, reply in zip(CHAT, answers, strict=False):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return [*messages, {"role": "user", "content": CHAT[len(answers)]}]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the prompt parts that decoders really compute, in order."""
    lengths: list[int] = []
    original = Decoder.prefill

    def counted(self: Decoder, tokens: Sequence[int]) -> list[StepOutput]:
        lengths.append(len(tokens))
        return original(self, tokens)

    monkeypatch.setattr(Decoder, "prefill", counted)
    return lengths


@pytest.mark.parametrize(("draft", "adaptive"), DRAFTS)
def test_turns_of_a_chat_reuse_the_cache(
    model: Model, llama_bundle: Path, computed: list[int], draft: str, adaptive: bool
) -> None:
    options: dict[str, Any] = {"draft": draft, "adaptive": adaptive, "max_new_tokens": 20}
    answers: list[str] = []
    for _ in CHAT:
        messages = conversation(answers)
        made = model.chat(messages, **options)
        whole, reused = made.prompt_tokens, made.prompt_tokens - computed[-1]
        fresh = load(llama_bundle, threads=1).chat(messages, **options)
        assert computed[-1] == whole
        assert (made.text, made.token_ids) == (fresh.text, fresh.token_ids)
        assert (reused > 0) == bool(answers)
        answers.append(made.text)


def test_token_ids_are_reused_to_the_last_computed_row(
    model: Model, prompt: list[int], answer: list[int], computed: list[int], prophesied: Prophesied
) -> None:
    for options in ({}, prophesied(model, answer)):
        model.generate([9, 9], max_new_tokens=1)
        model.generate(prompt, max_new_tokens=20, ignore_eos=True, **options)
        made = model.generate(prompt + answer[:20] + [7], max_new_tokens=4, ignore_eos=True)
        assert computed[-1] <= 2, "the last token of an answer has not been computed, the new one neither"
        model.generate([9, 9], max_new_tokens=1)
        again = model.generate(prompt + answer[:20] + [7], max_new_tokens=4, ignore_eos=True)
        assert computed[-1] == len(prompt) + 21
        assert made.token_ids == again.token_ids


def test_the_same_prompt_again(model: Model, prompt: list[int], answer: list[int], computed: list[int]) -> None:
    for _ in range(2):
        assert model.generate(prompt, max_new_tokens=30, ignore_eos=True).token_ids == answer[:30]
    assert computed == [len(prompt), 1]


@pytest.mark.parametrize("is_drafted", [False, True])
@pytest.mark.parametrize("num_pieces", [0, 1, 5])
def test_an_abandoned_stream_leaves_a_usable_cache(
    model: Model, prompt: list[int], answer: list[int], num_pieces: int, is_drafted: bool, prophesied: Prophesied
) -> None:
    options = prophesied(model, answer) if is_drafted else {}
    stream = model.stream(prompt, max_new_tokens=60, ignore_eos=True, **options)
    pieces = iter(stream)
    for _ in range(num_pieces):
        next(pieces)
    assert stream.result.token_ids == answer[: stream.result.new_tokens]
    assert "".join(answer_pieces(model, answer)).startswith(stream.result.text)
    pieces.close()  # type: ignore[attr-defined]
    longer = prompt + answer[:25]
    assert model.generate(longer, max_new_tokens=20, ignore_eos=True).token_ids == answer[25:45]


def answer_pieces(model: Model, answer: list[int]) -> Iterator[str]:
    yield model.tokenizer.decode(answer)


def test_an_answer_that_was_overtaken_says_so(model: Model, prompt: list[int], answer: list[int]) -> None:
    """And what it leaves behind, whenever that is, does not disturb the one that overtook it."""
    first = iter(model.stream([7, 8, 9], max_new_tokens=60, ignore_eos=True))
    next(first)
    second = iter(model.stream(prompt, max_new_tokens=30, ignore_eos=True))
    next(second)
    with pytest.raises(RequestError, match=r"^another answer was begun before this one ended.*load the bundle twice$"):
        for _ in first:
            pass
    for _ in second:
        pass
    made = model.generate(prompt + answer[:30], max_new_tokens=20, ignore_eos=True)
    assert made.token_ids == answer[30:50]


def test_scoring_between_answers(model: Model, prompt: list[int], answer: list[int]) -> None:
    model.generate(prompt, max_new_tokens=10)
    model.score(prompt + answer)
    assert model.generate(prompt, max_new_tokens=10, ignore_eos=True).token_ids == answer[:10]
