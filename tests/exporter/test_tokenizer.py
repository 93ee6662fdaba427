"""GGUF tokenizers: against byte-pair encodings written out here, over any text."""

import itertools
import unicodedata
from typing import Any

import pytest
import regex  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from seqrt.errors import CheckpointError
from seqrt.exporter.tokenizer import tokenizer_json

NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
SPLITS = {
    "gpt-2": [GPT2],
    "smollm": [r"\p{N}", GPT2],
    "llama-bpe": [LLAMA3],
    "qwen2": [QWEN2],
    "default": [r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
}
# Any characters, often those that the splitting rules and merges are about.
TEXTS = st.text(st.one_of(st.sampled_from("the 'sTRe12349  \n\r\t.,!é½中"), st.characters(exclude_categories=["Cs"])))


def byte_alphabet() -> list[str]:
    """GPT-2's visible stand-ins for the 256 bytes, by byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte if byte in visible else 256 + hidden.index(byte)) for byte in range(256)]


ALPHABET = byte_alphabet()
MERGES = [
    "t h",
    "th e",
    "Ġ the",
    "Ġ t",
    "Ġ Ġ",
    "ĠĠ ĠĠ",
    "1 2",
    "12 3",
    "3 4",
    "' s",
    "r e",
    "Ċ Ċ",
    "Ã ©",
    ". ,",
    "Ġ 1",
]
TOKENS = [*ALPHABET, *(merge.replace(" ", "") for merge in MERGES), "<|end|>", "<think>"]
BYTE_LEVEL: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [NORMAL] * (len(TOKENS) - 2) + [CONTROL, USER],
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.bos_token_id": len(TOKENS) - 2,
    "tokenizer.ggml.eos_token_id": len(TOKENS) - 2,
}

PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
SCORED = {
    "▁t": -1.0,
    "he": -2.0,
    "▁the": -3.0,
    "th": -4.0,
    "the": -5.0,
    "▁▁": -6.0,
    "▁▁▁▁": -7.0,
    "st": -8.0,
    "▁th": -9.0,
}
LETTERS = ["▁", *"thes12.é中"]
SENTENCEPIECE: dict[str, Any] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": [*PIECES, *SCORED, *LETTERS],
    "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(SCORED) + len(LETTERS)),
    "tokenizer.ggml.scores": [0.0] * len(PIECES)
    + [*SCORED.values()]
    + [-100.0 - index for index in range(len(LETTERS))],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
}


def convert(metadata: dict[str, Any], **changes: Any) -> Tokenizer:
    changed = metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    text = tokenizer_json({key: value for key, value in changed.items() if value is not None})
    assert text is not None
    return Tokenizer.from_str(text)


def pieces_of(text: str, patterns: list[str]) -> list[str]:
    """Every pattern in turn cuts what the one before left: its matches, and what lies between them."""
    pieces = [text]
    for pattern in patterns:
        cut: list[str] = []
        for piece in pieces:
            end = 0
            for match in regex.finditer(pattern, piece):
                cut += [piece[end : match.start()], match[0]]
                end = match.end()
            cut.append(piece[end:])
        pieces = [piece for piece in cut if piece]
    return pieces


def merged(symbols: list[str], ranks: dict[tuple[str, str], float]) -> list[str]:
    """Textbook byte-pair encoding: join the best-ranked pair, leftmost first, until none is left."""
    while True:
        pairs = [(ranks[pair], index) for index, pair in enumerate(itertools.pairwise(symbols)) if pair in ranks]
        if not pairs:
            return symbols
        _, index = min(pairs)
        symbols = [*symbols[:index], symbols[index] + symbols[index + 1], *symbols[index + 2 :]]


def byte_level_ids(text: str, pre: str) -> list[int]:
    if pre == "qwen2":
        text = unicodedata.normalize("NFC", text)
    parts = [merge.split(" ") for merge in MERGES]
    ranks = {(left, right): float(rank) for rank, (left, right) in enumerate(parts)}
    ids: list[int] = []
    for piece in pieces_of(text, SPLITS[pre]):
        symbols = [ALPHABET[byte] for byte in piece.encode()]
        whole = "".join(symbols)
        found = [whole] if pre == "llama-bpe" and whole in TOKENS else merged(symbols, ranks)
        ids += [TOKENS.index(symbol) for symbol in found]
    return ids


@pytest.mark.parametrize("pre", SPLITS)
def test_byte_level(pre: str) -> None:
    tokenizer = convert(BYTE_LEVEL, pre=pre, add_bos_token=False)

    @given(TEXTS)
    def check(text: str) -> None:
        ids = tokenizer.encode(text).ids
        assert ids == byte_level_ids(text, pre)
        if pre != "qwen2":
            assert tokenizer.decode(ids) == text

    check()


def test_smollm_splits_every_digit_and_the_space_before_it() -> None:
    """The first rule isolates digits, so that neither merges nor the space of a word reach across them."""
    tokens = convert(BYTE_LEVEL).encode("the  1234 the").tokens
    assert tokens == ["the", "ĠĠ", "1", "2", "3", "4", "Ġthe"]
    assert convert(BYTE_LEVEL, pre="gpt-2").encode("the  1234").tokens == ["the", "Ġ", "Ġ", "123", "4"]


def test_added_tokens_are_found_whole() -> None:
    tokenizer = convert(BYTE_LEVEL)
    encoding = tokenizer.encode("the<|end|><think>the")
    assert encoding.tokens == ["the", "<|end|>", "<think>", "the"]
    assert tokenizer.decode(encoding.ids) == "the<think>the"
    assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == "the<|end|><think>the"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ["the"]),
        ({"add_bos_token": True}, ["<|end|>", "the"]),
        ({"add_bos_token": True, "add_eos_token": True}, ["<|end|>", "the", "<|end|>"]),
        ({"add_eos_token": True}, ["the", "<|end|>"]),
        ({"pre": "llama-bpe"}, ["<|end|>", "the"]),
        ({"pre": "llama-bpe", "add_bos_token": False}, ["the"]),
        ({"add_bos_token": True, "bos_token_id": None}, ["the"]),
    ],
)
def test_begin_and_end_tokens(changes: dict[str, Any], expected: list[str]) -> None:
    tokenizer = convert(BYTE_LEVEL, **changes)
    assert tokenizer.encode("the").tokens == expected
    assert tokenizer.encode("the", add_special_tokens=False).tokens == ["the"]


def sentencepiece_ids(text: str, *, prefix: bool) -> list[int]:
    """Join the best-scored neighbours; what is left and not in the vocabulary falls apart into bytes."""
    tokens = SENTENCEPIECE["tokenizer.ggml.tokens"]
    ranks = {
        (piece[:cut], piece[cut:]): -score
        for piece, score in SCORED.items()
        for cut in range(1, len(piece))
        if piece[:cut] in tokens and piece[cut:] in tokens
    }
    symbols = list(("▁" if prefix and text else "") + text.replace(" ", "▁"))
    ids: list[int] = []
    for symbol in merged(symbols, ranks):
        if symbol in tokens:
            ids.append(tokens.index(symbol))
        else:
            ids += [tokens.index(f"<0x{byte:02X}>") for byte in symbol.encode()]
    return ids


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(prefix: bool) -> None:
    tokenizer = convert(SENTENCEPIECE, add_space_prefix=prefix, add_bos_token=False)

    @given(TEXTS.filter(lambda text: "▁" not in text))
    def check(text: str) -> None:
        ids = tokenizer.encode(text).ids
        assert ids == sentencepiece_ids(text, prefix=prefix)
        assert tokenizer.decode(ids) == text

    check()


def test_sentencepiece_prefixes_a_space_after_special_tokens_too() -> None:
    encoding = convert(SENTENCEPIECE).encode("the</s>the")
    assert encoding.tokens == ["<s>", "▁the", "</s>", "▁the"]


def test_gemma_merges_in_the_order_of_its_vocabulary() -> None:
    """Its file spells whitespace pieces with real spaces and scores them all 0."""
    tokens = ["<pad>", "<unk>", "▁", "a", "  ", "   ", "▁a", "aa"]
    metadata = {
        "general.architecture": "gemma3",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL, UNKNOWN, NORMAL, NORMAL, USER, USER, NORMAL, NORMAL],
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.add_bos_token": False,
    }
    tokenizer = convert(metadata)
    assert tokenizer.encode("   aa a").ids == [5, 7, 6]
    assert tokenizer.decode([5, 7, 6]) == "   aa a"


def test_no_tokenizer() -> None:
    assert tokenizer_json({"general.architecture": "llama"}) is None


@pytest.mark.parametrize(
    ("metadata", "changes", "message"),
    [
        (
            BYTE_LEVEL,
            {"pre": "tekken"},
            "pre-tokenizer 'tekken' is not supported; use one of gpt-2, smollm, llama-bpe",
        ),
        (BYTE_LEVEL, {"model": "bert"}, "GGUF tokenizer 'bert' is not supported; use one of gpt2, llama"),
        (BYTE_LEVEL, {"tokens": None}, r"has no tokenizer.ggml.tokens; convert the model again"),
        (BYTE_LEVEL, {"merges": ["t h", "th q"]}, r"merges do not fit its tokens \(.*\); convert it again"),
        (BYTE_LEVEL, {"add_bos_token": True, "bos_token_id": 9999}, "token 9999 .* has 273 tokens"),
        (SENTENCEPIECE, {"scores": [0.0]}, r"has 1 scores for \d+ tokens"),
        (SENTENCEPIECE, {"unknown_token_id": 9999}, r"token 9999 .* has \d+ tokens"),
    ],
)
def test_tokenizers_that_are_refused(metadata: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert(metadata, **changes)
