"""From tokens to text, piece by piece: nothing is printed that a later token could change."""

from __future__ import annotations

import codecs
from collections.abc import Collection
from typing import TYPE_CHECKING

from seqrt.errors import RequestError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

REPLACEMENT = "\ufffd"
_REPLACEMENT_BYTES = ["<0xEF>", "<0xBF>", "<0xBD>"]
MAX_BYTES_HELD = 3  # an unfinished UTF-8 character has at most that many bytes


class Detokenizer:
    """Turns tokens into text as they come.

    All pieces and `flush` together are `tokenizer.decode(ids)` without special tokens, and no piece ends
    within a character. A call costs O(1) tokens of decoding, whatever came before. One difference is meant: a
    SentencePiece decoder shows a whole run of byte tokens as U+FFFD when the run does not end as UTF-8, even
    characters in it that were complete; those have been printed by then and stay.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Start a text. `tokenizer` is a tokenizers.Tokenizer; its decoder decides how tokens join."""
        from tokenizers import decoders

        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token for token, content in added.items() if content.special}
        # Byte-level tokens are bytes: decoding them ourselves is exact and ten times as fast as asking twice.
        is_byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)
        self._join: _Bytes | _Window = _Bytes(tokenizer) if is_byte_level else _Window(tokenizer)

    def feed(self, token: int) -> str:
        """The text that is certain after one more token; often one word, "" within a character."""
        return "" if token in self._special else self._join.feed(token)

    def flush(self) -> str:
        """What is left at the end: U+FFFD where a character stayed unfinished. Starts a new text."""
        return self._join.flush()


class _Bytes:
    """Joins the tokens of a byte-level vocabulary (GPT-2, Llama 3, Qwen)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._byte_of = _byte_of_character()
        self._bytes: dict[int, bytes] = {}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        content = self._bytes.get(token)
        if content is None:
            content = self._bytes[token] = self._content(token)
        return self._decoder.decode(content)

    def flush(self) -> str:
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest

    def _content(self, token: int) -> bytes:
        text = self._tokenizer.id_to_token(token) or ""
        if all(character in self._byte_of for character in text):
            return bytes(self._byte_of[character] for character in text)
        return text.encode()  # an added token, which is not written in byte characters


class _Window:
    """Joins tokens of any other vocabulary by decoding the newest few together with the few before them.

    The few before are there because decoders treat the first token differently (a leading space is dropped).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []  # the tokens of the last piece
        self._context_text = ""
        self._pending: list[int] = []
        self._num_broken = 0  # last tokens of _pending that end in an unfinished character

    def feed(self, token: int) -> str:
        if self._tokenizer.id_to_token(token) is None:
            return ""
        self._pending.append(token)
        piece = self._piece()
        is_broken = piece.endswith(REPLACEMENT) and not self._ends_in_literal()
        self._num_broken = self._num_broken + 1 if is_broken else 0
        if not piece or 0 < self._num_broken <= MAX_BYTES_HELD:
            return ""
        self._context, self._pending, self._num_broken = self._pending, [], 0
        self._context_text = self._decode(self._context)
        return piece

    def flush(self) -> str:
        piece = self._piece() if self._pending else ""
        self._context, self._context_text, self._pending, self._num_broken = [], "", [], 0
        return piece

    def _ends_in_literal(self) -> bool:
        """Whether the last tokens are the bytes of U+FFFD itself: a character that is complete."""
        return [self._tokenizer.id_to_token(token) for token in self._pending[-3:]] == _REPLACEMENT_BYTES

    def _piece(self) -> str:
        text = self._decode(self._context + self._pending)
        if text.startswith(self._context_text):
            return text[len(self._context_text) :]
        return self._decode(self._pending)  # a byte that is no UTF-8 changed how the context decodes

    def _decode(self, tokens: list[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=False)
        return text


def _byte_of_character() -> dict[str, int]:
    """The characters by which byte-level vocabularies write bytes (GPT-2's encoder, bytes_to_unicode)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


class StopMatcher:
    """Cuts a text, coming in pieces, before the first stop string that completes.

    The longest of several that complete at the same character counts. Text that may be the start of a stop
    string is held back until it is not, so how the text was cut into pieces makes no difference.

    Attributes:
        matched: the stop string that was found, or None.
    """

    def __init__(self, stops: Collection[str]) -> None:
        """Look for these strings; none at all is allowed. RequestError when one is empty."""
        if "" in stops:
            raise RequestError("--stop is an empty string, which would stop at once; give the text to stop at")
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._held = ""
        self.matched: str | None = None

    @property
    def stopped(self) -> bool:
        """A stop string was found; everything after it is dropped."""
        return self.matched is not None

    def feed(self, piece: str) -> str:
        """The text that may be shown after one more piece."""
        if self.stopped:
            return ""
        if not self._stops:
            return piece
        text = self._held + piece
        ends = [(text.find(stop) + len(stop), stop) for stop in self._stops if stop in text]
        if ends:
            end, self.matched = min(ends, key=lambda found: found[0])  # the first of equals is the longest
            self._held = ""
            return text[: end - len(self.matched)]
        held = self._unsure(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        rest, self._held = self._held, ""
        return rest

    def _unsure(self, text: str) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = min(len(self._stops[0]) - 1, len(text))
        for length in range(longest, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
