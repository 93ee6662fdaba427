"""Rendered words as batches of a model's inputs and labels; picture i is drawn from seed i, whoever draws it."""

from __future__ import annotations

import argparse
import csv
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tools.ocr.fonts import split_fonts, split_words
from tools.ocr.model import CHARACTERS
from tools.ocr.render import Floats, Renderer
from torch import Tensor

from seqrt.graphs.cppd import EOS, IGNORED, MAX_LENGTH, CppdConfig
from seqrt.runtime.images import read_image

_STAGES = 12


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Adds the options that name what is rendered."""
    parser.add_argument("--fonts", type=Path, nargs="+", required=True, help="folders of fonts")
    parser.add_argument("--words", type=Path, nargs="+", required=True, help="word lists, one word a line")
    parser.add_argument("--backgrounds", type=Path, nargs="+", required=True, help="folders of photos without text")
    parser.add_argument("--digits", type=Path, help="digits.csv.gz of scikit-learn: numbers of handwritten digits")


def renderers(arguments: argparse.Namespace) -> tuple[Renderer, Renderer]:
    """One that draws what is trained on, one that draws held-out words in held-out fonts.

    Raises:
        ValueError: no fonts, words or backgrounds in a source.
    """
    fonts, words = split_fonts(arguments.fonts), split_words(arguments.words)
    files = sorted(file for folder in arguments.backgrounds for file in folder.iterdir() if file.is_file())
    photos = [np.asarray(read_image(file)) for file in files]
    if not photos:
        raise ValueError("no photo in --backgrounds")
    digits = handwritten(arguments.digits) if arguments.digits else ((), ())
    return (
        Renderer(fonts.train, words.train, photos, digits[0], held_out=False),
        Renderer(fonts.held_out, words.held_out, photos, digits[1], held_out=True),
    )


def handwritten(file: Path) -> tuple[list[list[Floats]], list[list[Floats]]]:
    """Of scikit-learn's digits, those to train on and every fifth, which is held out; each by digit, 0 to 1."""
    train: list[list[Floats]] = [[] for _ in range(10)]
    held_out: list[list[Floats]] = [[] for _ in range(10)]
    with gzip.open(file, "rt") as lines:
        for i, row in enumerate(csv.reader(lines)):
            values = np.array(row, np.float32)
            (held_out if i % 5 == 0 else train)[int(values[-1])].append(values[:-1].reshape(8, 8) / np.float32(16))
    return train, held_out


@dataclass(frozen=True, slots=True)
class Batches(torch.utils.data.IterableDataset[tuple[Tensor, Tensor]]):
    """Batches of images uint8 `[B, 3, H, W]` and labels `[B, places]`, from batch `first` on, without end.

    It begins with single printed characters. Words may be a character longer every `lengthen` batches, and fewer
    pictures are plain; after twelve times as many, or from the start if that is 0, all is as hard as it gets.
    """

    renderer: Renderer
    config: CppdConfig
    size: int
    seed: int
    first: int = 0
    lengthen: int = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        step = self.first
        while True:
            stage = step // self.lengthen if self.lengthen else _STAGES
            longest, plain = (MAX_LENGTH, 0.0) if stage >= _STAGES else (1 + stage, 1 - stage / _STAGES)
            seeds = ((self.seed, step, i) for i in range(self.size))
            made = [self.renderer.sample(np.random.default_rng(seed), longest, plain) for seed in seeds]
            yield (
                torch.stack([pixels(image, self.config) for image, _ in made]),
                torch.stack([label_of(text, self.config) for _, text in made]),
            )
            step += 1

    def loader(self) -> Any:
        """The same, drawn by a process of its own."""
        return torch.utils.data.DataLoader(self, batch_size=None, num_workers=1, prefetch_factor=4)


def fixed(renderer: Renderer, count: int, config: CppdConfig) -> tuple[Tensor, list[str]]:
    """The same `count` pictures each time, and their words."""
    made = [renderer.sample(np.random.default_rng((1, i))) for i in range(count)]
    return torch.stack([pixels(image, config) for image, _ in made]), [text for _, text in made]


def pixels(image: Image.Image, config: CppdConfig) -> Tensor:
    """The image as the recogniser gets it, before it is scaled to -1 ... 1: uint8 `[3, H, W]`."""
    size = config.encoder.width, config.encoder.height
    return torch.from_numpy(np.asarray(image.resize(size, Image.Resampling.BICUBIC)).transpose(2, 0, 1).copy())


def scaled(images: Tensor) -> Tensor:
    """Bytes as the recogniser wants them, -1 to 1."""
    return images.float() / 127.5 - 1


def label_of(text: str, config: CppdConfig) -> Tensor:
    """Classes of a word's characters, the end, and IGNORED in the places behind."""
    classes = [CHARACTERS.index(character) + 1 for character in text]
    return torch.tensor(classes + [EOS] + [IGNORED] * (config.num_places - len(classes) - 1))


def read(classes: Tensor) -> list[str]:
    """The words that classes `[B, places]` say, up to the first end."""
    words = []
    for row in classes.tolist():
        length = row.index(EOS) if EOS in row else len(row)
        words.append("".join(CHARACTERS[value - 1] for value in row[:length]))
    return words
