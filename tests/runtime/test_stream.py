"""Streams over given tokens: text, stops, limits and the report, without a model."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from seqrt.runtime.generate import Loop, Trace
from seqrt.runtime.options import Options
from seqrt.runtime.probe import OFF, Probe
from seqrt.runtime.stream import Stream

BYTES = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
END = len(BYTES)


def byte_tokenizer() -> Any:
    """One token a byte, and one that ends a text."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({b: i for i, b in enumerate(BYTES)} | {"</s>": END}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    return tokenizer


TOKENIZER = byte_tokenizer()


@dataclass(slots=True)
class Played:
    """A loop that has decided everything already."""

    log_probabilities: list[float] | None = None
    trace: Trace = field(default_factory=Trace)
    probe: Probe = OFF


def stream_of(
    steps: Iterable[list[int]],
    *,
    options: Options | None = None,
    stop_ids: Iterable[int] = (END,),
    limit: int = 1000,
    has_tokenizer: bool = True,
    log_probabilities: list[float] | None = None,
) -> Stream:
    loop = Played(log_probabilities)

    def played() -> Iterator[list[int]]:
        for number, tokens in enumerate(steps):
            if number == 0:
                loop.trace.prefill_seconds = 2.0
                loop.trace.arrival_seconds.append(2.0)
            else:
                loop.trace.rows.append(len(tokens))
                loop.trace.emitted.append(len(tokens))
                loop.trace.arrival_seconds += [2.0 + number] * len(tokens)
            yield tokens

    return Stream(
        loop=cast(Loop, loop),
        tokens=played(),
        tokenizer=TOKENIZER if has_tokenizer else None,
        options=options or Options(),
        stop_ids=frozenset(stop_ids),
        limit=limit,
        num_prompt=3,
        load_seconds=0.5,
    )


def ids(text: str) -> list[int]:
    found: list[int] = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(found) == text
    return found


def cut(tokens: list[int], sizes: list[int]) -> list[list[int]]:
    """The first token alone, as the prompt decides it, then steps of these sizes in turn."""
    steps, place = [tokens[:1]], 1
    while place < len(tokens):
        size = sizes[len(steps) % len(sizes)]
        steps.append(tokens[place : place + size])
        place += size
    return steps


sizes = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@given(text=st.text(min_size=1, max_size=40), sizes=sizes)
def test_the_text_does_not_depend_on_the_steps(text: str, sizes: list[int]) -> None:
    tokens = ids(text)
    stream = stream_of([*cut(tokens, sizes), [END, 5, 6]])
    pieces = list(stream)
    result = stream.result
    assert "".join(pieces) == result.text == text
    assert all(pieces)
    assert (result.token_ids, result.new_tokens) == ([*tokens, END], len(tokens) + 1)
    assert result.finish_reason == "stop"


@given(
    text=st.text(alphabet="abc", min_size=1, max_size=30),
    stops=st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    sizes=sizes,
)
def test_stop_texts(text: str, stops: list[str], sizes: list[int]) -> None:
    """The earliest end of any stop text ends the answer, the stop text is not part of it."""
    ends = [(text.index(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    expected = text[: min(ends)[0] + min(ends)[1]] if ends else text
    stream = stream_of(cut(ids(text), sizes), options=Options(stop=tuple(stops)), limit=len(text))
    assert stream.finish().text == expected
    assert stream.result.finish_reason == ("stop" if ends else "length")
    assert stream.result.new_tokens == (min(ends)[0] if ends else len(text))


@given(text=st.text(alphabet="abcd", min_size=1, max_size=30), limit=st.integers(1, 40), sizes=sizes)
def test_the_limit_may_fall_within_a_step(text: str, limit: int, sizes: list[int]) -> None:
    result = stream_of(cut(ids(text + "x" * 40), sizes), limit=limit).finish()
    assert result.token_ids == ids(text + "x" * 40)[:limit]
    assert result.finish_reason == "length"


def test_an_end_token_at_the_limit_is_a_stop() -> None:
    result = stream_of([ids("a"), [*ids("b"), END]], limit=3).finish()
    assert (result.text, result.finish_reason, result.new_tokens) == ("ab", "stop", 3)


def test_other_stop_ids_are_not_text() -> None:
    result = stream_of([ids("a"), ids("bcd")], stop_ids=ids("c")).finish()
    assert (result.text, result.finish_reason) == ("ab", "stop")
    assert result.token_ids == ids("abc")


def test_an_unfinished_character_at_the_limit() -> None:
    tokens = ids("aé")
    result = stream_of([tokens[:1], tokens[1:]], limit=2).finish()
    assert (result.text, result.finish_reason) == ("a\ufffd", "length")


def test_a_stop_text_within_what_is_flushed() -> None:
    tokens = ids("aé")
    result = stream_of([tokens[:1], tokens[1:]], limit=2, options=Options(stop=("\ufffd",))).finish()
    assert (result.text, result.finish_reason) == ("a", "stop")


def test_without_a_tokenizer_there_are_tokens_only() -> None:
    result = stream_of([[7], [8, 9], [END]], has_tokenizer=False).finish()
    assert (result.text, result.token_ids, result.finish_reason) == ("", [7, 8, 9, END], "stop")


def test_figures() -> None:
    """First token after 2 s, then a step a second: three steps decide six tokens, two of them beyond the limit."""
    steps = [ids("a"), ids("bc"), ids("d"), ids("efg")]
    result = stream_of(steps, limit=5, log_probabilities=[-1.0] * 7).finish()
    assert result.seconds == {"load": 0.5, "prefill": 2.0, "decode": 3.0}
    assert (result.steps, result.new_tokens, result.prompt_tokens) == (3, 5, 3)
    assert result.tokens_per_step == 2.0
    assert result.tokens_per_second == pytest.approx(4 / 3)
    assert result.log_probabilities == [-1.0] * 5
    assert result.to_dict() == {
        "text": "abcde",
        "token_ids": ids("abcde"),
        "prompt_tokens": 3,
        "new_tokens": 5,
        "finish_reason": "length",
        "draft": "none",
        "steps": 3,
        "tokens_per_step": 2.0,
        "seconds": {"load": 0.5, "prefill": 2.0, "decode": 3.0},
        "tokens_per_second": 1.333,
        "log_probabilities": [-1.0] * 5,
    }


def test_a_single_token_has_no_rate() -> None:
    result = stream_of([ids("a"), ids("b")], limit=1).finish()
    assert (result.steps, result.tokens_per_step, result.tokens_per_second) == (0, 1.0, 0.0)


def test_result_before_and_during_the_stream() -> None:
    stream = stream_of([ids("a"), ids("bc"), ids("d")], options=Options(log_probabilities=True), log_probabilities=[])
    assert (stream.result.text, stream.result.new_tokens, stream.result.log_probabilities) == ("", 0, [])
    pieces = iter(stream)
    assert next(pieces) == "a"
    assert stream.result.text == "a"
    assert next(pieces) == "b"
    assert stream.result.token_ids == ids("ab")


def test_leaving_early_closes_the_loop() -> None:
    """The model must learn at once what is left in its cache."""
    closed = []

    def steps() -> Iterator[list[int]]:
        try:
            for token in ids("abc"):
                yield [token]
        finally:
            closed.append(True)

    stream = stream_of(())
    stream.tokens = steps()
    for piece in stream:
        assert piece == "a"
        break
    del piece
    assert stream.result.text == "a"
    assert closed == [True]


def test_errors_of_the_loop_come_through() -> None:
    def steps() -> Iterator[list[int]]:
        yield ids("a")
        raise KeyboardInterrupt

    stream = stream_of(())
    stream.tokens = steps()
    with pytest.raises(KeyboardInterrupt):
        stream.finish()
    assert stream.result.text == "a"
