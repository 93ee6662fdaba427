"""A picture of images with what a recogniser reads in them, wrong ones in red: docs/ocr.jpg.

    python -m tools.ocr.sheet BUNDLE DIR --out docs/ocr.jpg --count 32

DIR holds images and labels.tsv, as `python -m tools.ocr.words` writes them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from tools.bench.ocr import plain, words_of

from seqrt.runtime.images import read_image
from seqrt.runtime.recognizer import load

_WIDE, _TALL, _FONT, _GAP = 260, 60, 14, 6
_COLUMNS = 4


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=32)
    arguments = parser.parse_args(argv)
    words = words_of(arguments.images)[: arguments.count]
    with load(arguments.bundle) as reader:
        found = reader.recognize([word.data for word in words])
    wide, tall = _WIDE + 2 * _GAP, _TALL + _FONT + 3 * _GAP
    rows = -(-len(words) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * wide, rows * tall), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT)
    for place, (word, read) in enumerate(zip(words, found, strict=True)):
        x, y = place % _COLUMNS * wide + _GAP, place // _COLUMNS * tall + _GAP
        picture = read_image(word.data)
        scale = min(_WIDE / picture.width, _TALL / picture.height)
        size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
        sheet.paste(picture.resize(size, Image.Resampling.BICUBIC), (x, y))
        is_right = plain(read.text) == plain(word.label)
        told = f"{read.text}  {read.confidence:.2f}" + ("" if is_right else f"  ({word.label})")
        draw.text((x, y + _TALL + _GAP // 2), told, "black" if is_right else "red", font)
    sheet.save(arguments.out, quality=82)


if __name__ == "__main__":
    main()
