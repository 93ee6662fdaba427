"""Streaming text against decoding everything at once, for the kinds of vocabulary in use."""

from __future__ import annotations

import functools

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from seqrt.errors import RequestError
from seqrt.runtime.text import Detokenizer, StopMatcher

CORPUS = [
    "the cat sat on the mat",
    "naïve café — déjà vu",
    "日本語のテキスト",
    "😀 😃 emoji 👍🏽",
    "don't, you'll see.",
] * 3
SPECIAL = ["<|end|>", "<|user|>"]


@functools.cache
def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens(["  héllo ", "日"])
    return tokenizer


def llama_vocabulary() -> dict[str, int]:
    """Specials, all bytes, then pieces with the mark that stands for a space."""
    pieces = ["▁", "▁the", "▁cat", "cat", "s", "▁▁", "é", "日", "<", "▁."]
    names = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    return {name: i for i, name in enumerate(names)}


@functools.cache
def llama() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(llama_vocabulary(), [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return tokenizer


@functools.cache
def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(llama_vocabulary(), [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return tokenizer


@functools.cache
def word_piece() -> Tokenizer:
    names = ["[UNK]", *SPECIAL, "the", "cat", "##s", "don", "'", "t", ".", "##é", "日"]
    tokenizer = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return tokenizer


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.feed(token) for token in ids), detokenizer.flush()]


def check(tokenizer: Tokenizer, ids: list[int]) -> None:
    pieces = stream(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids, skip_special_tokens=True)


def ids_below(count: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, count - 1), max_size=30)


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=20) | st.sampled_from(CORPUS), st.sampled_from([byte_level, llama]))
def test_text_comes_back_and_never_ends_within_a_character(text: str, build: object) -> None:
    tokenizer = build()  # type: ignore[operator]
    ids = tokenizer.encode(text).ids
    check(tokenizer, ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in stream(tokenizer, ids))


@settings(deadline=None, max_examples=300)
@given(ids_below(302))
def test_any_byte_level_tokens_stream_to_their_text(ids: list[int]) -> None:
    check(byte_level(), ids)


@settings(deadline=None, max_examples=200)
@given(ids_below(13 + 256))
@example([259 + 1, 259 + 5, 259 + 2])
def test_any_metaspace_tokens_stream_to_their_text(ids: list[int]) -> None:
    check(metaspace(), ids)


@settings(deadline=None, max_examples=200)
@given(ids_below(12))
def test_any_word_pieces_stream_to_their_text(ids: list[int]) -> None:
    check(word_piece(), ids)


LLAMA_PIECES = [[token] for token in range(259, 269)] + [[1], [2]]


@settings(deadline=None, max_examples=300)
@given(
    st.lists(
        st.sampled_from(LLAMA_PIECES)
        | st.characters(codec="utf-8").map(lambda character: [3 + byte for byte in character.encode()]),
        max_size=20,
    )
)
@example([[3 + byte for byte in "\ufffd".encode()], [3 + byte for byte in "\x80".encode()]])
def test_any_valid_byte_fallback_tokens_stream_to_their_text(groups: list[list[int]]) -> None:
    check(llama(), [token for group in groups for token in group])


@settings(deadline=None, max_examples=300)
@given(ids_below(269))
def test_broken_byte_fallback_runs_end_and_lose_no_other_text(ids: list[int]) -> None:
    def kept(text: str) -> str:
        return "".join(c for c in text if c in "thecas .<" and ord(c) < 128)

    only_pieces = [token for token in ids if token < 3 or token >= 259 or token >= 3 + 0x80]
    pieces = stream(llama(), only_pieces)
    assert kept("".join(pieces)) == kept(llama().decode(only_pieces, skip_special_tokens=True))


def test_a_complete_character_stays_when_the_run_after_it_breaks() -> None:
    euro = [3 + byte for byte in "€".encode()]
    ids = [*euro, 3 + 0xFF, 262]
    assert "".join(stream(llama(), ids)) == "€\ufffdcat"
    assert llama().decode(ids) == "\ufffd" * 4 + "cat"  # the documented difference


@pytest.mark.parametrize("build", [byte_level, llama])
def test_broken_bytes_do_not_hold_the_text_up(build: object) -> None:
    tokenizer = build()  # type: ignore[operator]
    bad = next(tokenizer.token_to_id(name) for name in ("<0xFF>", "ÿ") if name in tokenizer.get_vocab())
    detokenizer = Detokenizer(tokenizer)
    text = "".join(detokenizer.feed(bad) for _ in range(100))
    assert 100 - 3 <= len(text) <= 100
    assert len(text + detokenizer.flush()) == 100


def test_work_per_token_does_not_grow() -> None:
    class Counting:
        def __init__(self, tokenizer: Tokenizer) -> None:
            self.tokenizer, self.decoded = tokenizer, 0

        def __getattr__(self, name: str) -> object:
            return getattr(self.tokenizer, name)

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            self.decoded += len(ids)
            text: str = self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
            return text

    for ids in ([260] * 500, [1] * 500, [3 + 0xE2] * 500, [9_999] * 500, [260, 1] * 250):
        counting = Counting(llama())
        stream(counting, ids)  # type: ignore[arg-type]
        assert counting.decoded <= 20 * len(ids)


def test_flush_starts_a_new_text() -> None:
    for tokenizer, word in ((llama(), 260), (byte_level(), byte_level().encode("t").ids[0])):
        detokenizer = Detokenizer(tokenizer)
        first = detokenizer.feed(word) + detokenizer.flush()
        assert detokenizer.feed(word) + detokenizer.flush() == first == tokenizer.decode([word])


def cut(stops: list[str], text: str) -> tuple[str, str | None]:
    """Where a text must end, by looking at all of it."""
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not ends:
        return text, None
    end, minus_length, stop = min(ends)
    return text[: end + minus_length], stop


@settings(max_examples=400)
@given(
    st.lists(st.text("ab ", min_size=1, max_size=4), max_size=3),
    st.lists(st.text("ab ", max_size=5), max_size=12),
)
def test_stop_strings_cut_as_on_the_whole_text(stops: list[str], pieces: list[str]) -> None:
    matcher, shown = StopMatcher(stops), ""
    expected, matched = cut(stops, "".join(pieces))
    for piece in pieces:
        shown += matcher.feed(piece)
        assert expected.startswith(shown)
    if not matcher.stopped:
        # whatever is held back might still become a stop string
        held = expected[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)
    assert shown + matcher.flush() == expected
    assert matcher.matched == matched
    assert matcher.stopped == (matched is not None)


def test_nothing_follows_a_stop() -> None:
    matcher = StopMatcher(["END"])
    assert [matcher.feed(piece) for piece in ("one E", "N", "D two", " three")] == ["one ", "", "", ""]
    assert matcher.flush() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestError, match="--stop is an empty string"):
        StopMatcher(["a", ""])
