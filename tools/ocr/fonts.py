"""Fonts and words to render: those to train on and those that are held out, the same on every machine.

Whole families of fonts are held out, and words by their hash. Families that are near twins of one that is trained on
(Roboto and Roboto Condensed, Open Sans and Droid Sans) are trained on.
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

from fontTools.ttLib import TTFont, TTLibError

HELD_OUT_FAMILIES: Final = re.compile(
    r"Sansation|Amatic|LiberationSerif|Caladea|Quicksand|Lobster|Courier.?Prime|Vollkorn",
    re.I,
)
_UNREADABLE: Final = re.compile(
    r"fraktur|futhark|klingon|tnua|isabella|elusive|jsmath|symbol|dingbat|blankenburg|math|fallback|radisnoir|havana"
    r"|rufscript|essays|oldania|harquebus|conakry|nafees|lexi|SEASRN|IMFePIrm|RichStyle|humor|keyb|_K\.|wasn|kristi",
    re.I,
)
_CHARACTERS: Final = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_WORD: Final = re.compile(r"[A-Za-z0-9]{1,25}")
_HELD_OUT_SHARE: Final = 20  # one word in so many

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Split(Generic[T]):
    """What is trained on and what is held out."""

    train: list[T]
    held_out: list[T]


def split_fonts(folders: Iterable[Path]) -> Split[Path]:
    """Every TrueType or OpenType font below `folders` that has all letters and digits, each file name once.

    Raises:
        ValueError: there are none to train on, or none to hold out.
    """
    files = {file.name: file for folder in folders for file in sorted(folder.rglob("*")) if _is_font(file)}
    readable = [files[name] for name in sorted(files) if _has_characters(files[name])]
    held_out = [file for file in readable if HELD_OUT_FAMILIES.search(file.name)]
    split = Split([file for file in readable if file not in set(held_out)], held_out)
    if not split.train or not split.held_out:
        raise ValueError(f"{len(split.train)} fonts to train on and {len(split.held_out)} to hold out; add --fonts")
    return split


def split_words(files: Iterable[Path]) -> Split[str]:
    """The words of letters and digits in text files, one a line, in lower case, each once.

    Raises:
        ValueError: there are none.
    """
    lines = (line.strip() for file in files for line in file.read_text(encoding="utf-8").splitlines())
    words = sorted({line.lower() for line in lines if _WORD.fullmatch(line)})
    if not words:
        raise ValueError("no word of letters and digits in the word lists; add --words")
    return Split([word for word in words if not is_held_out(word)], [word for word in words if is_held_out(word)])


def is_held_out(word: str) -> bool:
    """Whether a word, or number, is never trained on."""
    return hashlib.sha256(word.encode()).digest()[0] % _HELD_OUT_SHARE == 0


def _is_font(file: Path) -> bool:
    return file.suffix.lower() in (".ttf", ".otf") and not _UNREADABLE.search(file.name)


def _has_characters(file: Path) -> bool:
    try:
        with file.open("rb") as opened, TTFont(opened, lazy=True) as font:
            return all(ord(character) in font.getBestCmap() for character in _CHARACTERS)
    except (TTLibError, TypeError, OSError):
        return False
