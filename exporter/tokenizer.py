"""The tokenizer of a GGUF file as a `tokenizer.json` of the `tokenizers` library, in a second or two.

GGUF files carry a vocabulary and merges but only the name of the text splitting that the merges were learned
under (`tokenizer.ggml.pre`); the rules behind the names stand in llama.cpp's src/llama-vocab.cpp.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.models import BPE
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

from seqrt.errors import CheckpointError

_UNKNOWN, _CONTROL, _USER_DEFINED = 2, 3, 4  # values of tokenizer.ggml.token_type
_SPACE: Final = "\u2581"  # how SentencePiece writes a space

_CONTRACTIONS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS: Final = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _split(pattern: str) -> PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated")


# Each list is applied in turn, every rule to the pieces of the one before.
_SPLITS: Final[dict[str, Callable[[], list[PreTokenizer]]]] = {
    "gpt-2": lambda: [_split(_GPT2)],
    "smollm": lambda: [pre_tokenizers.Digits(individual_digits=True), _split(_GPT2)],
    "llama-bpe": lambda: [_split(_WORDS % r"\p{N}{1,3}")],
    "qwen2": lambda: [_split(_WORDS % r"\p{N}")],
    "default": lambda: [
        _split(r"[\p{P}\$\+<=>\^~\|]+"),
        _split(_GPT2),
        _split(r"\p{N}+"),
        _split("[0-9][0-9][0-9]"),
    ],
}


def tokenizer_json(metadata: Mapping[str, Any]) -> str | None:
    """Contents of a `tokenizer.json` for a GGUF file's metadata; None when it has no tokenizer.

    Raises:
        CheckpointError: the kind of tokenizer or of text splitting is unknown, or its lists contradict one
            another.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None:
        return None
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders:
        raise CheckpointError(f"GGUF tokenizer {kind!r} is not supported; use one of {', '.join(builders)}")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens:
        raise CheckpointError("the GGUF file has no tokenizer.ggml.tokens; convert the model again")
    tokenizer = builders[kind](metadata, tokens)
    _add_tokens(tokenizer, metadata, tokens)
    _add_ends(tokenizer, metadata, tokens)
    return tokenizer.to_str()


def _byte_level(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    """BPE over bytes, as GPT-2 has it."""
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre not in _SPLITS:
        raise CheckpointError(f"GGUF pre-tokenizer {pre!r} is not supported; use one of {', '.join(_SPLITS)}")
    parts = (merge.partition(" ") for merge in metadata.get("tokenizer.ggml.merges", ()))
    merges = [(left, right) for left, _, right in parts]
    # Llama 3 takes a whole word that is a token as it is, even where the merges would not reach it.
    tokenizer = _bpe(tokens, merges, ignore_merges=pre == "llama-bpe")
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*_SPLITS[pre](), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    """BPE over characters with bytes for what the vocabulary lacks; merges follow from the pieces' scores."""
    pieces = [_SPACE * len(token) if token.strip(" ") == "" else token for token in tokens]
    if str(metadata.get("general.architecture")).startswith("gemma"):
        scores: Sequence[float] = range(0, -len(pieces), -1)  # its whitespace pieces all have score 0
    else:
        scores = metadata.get("tokenizer.ggml.scores", ())
    if len(scores) != len(pieces):
        raise CheckpointError(f"the GGUF tokenizer has {len(scores)} scores for {len(pieces)} tokens")
    unknown = _token(pieces, metadata.get("tokenizer.ggml.unknown_token_id", 0))
    tokenizer = _bpe(pieces, _merges(pieces, scores), unk_token=unknown, fuse_unk=True, byte_fallback=True)
    to_pieces: list[Normalizer] = [normalizers.Replace(" ", _SPACE)]
    to_text = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        to_pieces.insert(0, normalizers.Prepend(_SPACE))
        to_text.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(to_pieces)
    tokenizer.decoder = decoders.Sequence(to_text)
    return tokenizer


def _bpe(tokens: list[str], merges: list[tuple[str, str]], **options: Any) -> Tokenizer:
    vocab = {token: index for index, token in enumerate(tokens)}
    try:
        return Tokenizer(BPE(vocab=vocab, merges=merges, **options))
    except Exception as error:  # the library raises bare Exception for a merge outside the vocabulary
        raise CheckpointError(
            f"the GGUF tokenizer's merges do not fit its tokens ({error}); convert it again"
        ) from error


def _merges(pieces: list[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to put a piece together from two others, the best-scored piece first."""
    ids = {piece: index for index, piece in enumerate(pieces)}
    found = []
    for piece, score in zip(pieces, scores, strict=True):
        for cut in range(1, len(piece)):
            left, right = ids.get(piece[:cut]), ids.get(piece[cut:])
            if left is not None and right is not None:
                found.append((-score, left, right))
    found.sort()
    return [(pieces[left], pieces[right]) for _, left, right in found]


def _add_tokens(tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: list[str]) -> None:
    """Tokens that are found whole in the text before any splitting."""
    types = metadata.get("tokenizer.ggml.token_type", ())
    marked = [
        (token, kind) for token, kind in zip(tokens, types, strict=False) if tokenizer.token_to_id(token) is not None
    ]
    special = {_CONTROL, _UNKNOWN}
    for kinds, is_special in ((special, True), ({_USER_DEFINED}, False)):
        added = [AddedToken(token, special=is_special, normalized=False) for token, kind in marked if kind in kinds]
        if is_special:
            tokenizer.add_special_tokens(added)
        else:
            tokenizer.add_tokens(added)


def _add_ends(tokenizer: Tokenizer, metadata: Mapping[str, Any], tokens: list[str]) -> None:
    """Begin and end tokens that the model expects around every text."""
    begins = metadata.get("tokenizer.ggml.model") == "llama" or metadata.get("tokenizer.ggml.pre") == "llama-bpe"
    ends = {}
    for name, default in (("bos", begins), ("eos", False)):
        token_id = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if metadata.get(f"tokenizer.ggml.add_{name}_token", default) and token_id is not None:
            ends[name] = (_token(tokens, token_id), token_id)
    if ends:
        single = [ends[name][0] if name in ends else None for name in ("bos", "eos")]
        template = " ".join(part for part in (single[0], "$A", single[1]) if part)
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=list(ends.values()))


def _token(tokens: list[str], token_id: int) -> str:
    if not 0 <= token_id < len(tokens):
        raise CheckpointError(
            f"the GGUF tokenizer names token {token_id} but has {len(tokens)} tokens; convert it again"
        )
    return tokens[token_id]
