"""Writes held-out words as image files with labels: what recognisers are measured on.

    python -m tools.ocr.words DIR --fonts DIR... --words FILE... --backgrounds DIR... --count 1000 [--kind words]

Kinds: words (of the dictionary), all (numbers and codes too, as in training), digits (numbers of scikit-learn's
handwritten digits that were not trained on; --digits). Fonts, words, numbers and digits are held-out ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tools.ocr.data import add_sources, renderers
from tools.ocr.render import KINDS


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_sources(parser)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--kind", choices=KINDS, default=KINDS[0])
    parser.add_argument("--seed", type=int, default=2)
    arguments = parser.parse_args(argv)
    _, held_out = renderers(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(arguments.count):
        image, label = held_out.sample(np.random.default_rng((arguments.seed, number)), kind=arguments.kind)
        file = arguments.out / f"{number:04d}.png"
        image.save(file)
        lines.append(f"{file.name}\t{label}\n")
    (arguments.out / "labels.tsv").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
