"""Recognisers side by side: how many words each reads, and how long an image takes it.

    python -m tools.bench.ocr BUNDLE... --set words=DIR --set photos=DIR [--ctc v6=PP-OCRv6_rec_small.onnx] [--json]

DIR holds images and labels.tsv, a file and its word a line (`python -m tools.ocr.words` makes such). Bundles are CPPDs
or autoregressive recognisers of `seqrt export`; --ctc takes the ONNX files that rapidocr carries, which are run as it
runs them. All read the bytes of one file after the other, taking turns image by image, with the same engine and
threads. A word counts if its letters and digits are right, whatever their case.

With --batch, bundles also read all images in batches of that size, in turn; that is throughput.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from seqrt.runtime.recognizer import Recognizer, load

Read = Callable[[bytes], str]
_PAUSE_S = 0.05  # the last one's threads spin a little while before they sleep
_CTC_HEIGHT, _CTC_WIDTH = 48, 320  # of PP-OCR: images are as high, and at least as wide


@dataclass(frozen=True, slots=True)
class Word:
    """An image file and what it says."""

    data: bytes
    label: str


def words_of(folder: Path) -> list[Word]:
    """Images of a folder with their labels.

    Raises:
        ValueError: it has no labels.tsv, or one that is not such.
    """
    try:
        lines = (folder / "labels.tsv").read_text(encoding="utf-8").splitlines()
        pairs = [line.split("\t") for line in lines if line.strip()]
        return [Word((folder / file).read_bytes(), label) for file, label in pairs]
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: {error}; give a folder of tools.ocr.words") from error


def plain(text: str) -> str:
    """Its letters and digits, in lower case: what benchmarks of scene text compare."""
    return "".join(character for character in text.lower() if character.isascii() and character.isalnum())


class Ctc:
    """A recogniser of PP-OCR as rapidocr 3.10 runs it: 48 pixels high, padded to at least 320, greedy CTC."""

    def __init__(self, file: Path, threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 4
        self.session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        characters = self.session.get_modelmeta().custom_metadata_map["character"].splitlines()
        self.characters = ["", *characters, " "]
        self.input = self.session.get_inputs()[0].name

    def read(self, data: bytes) -> str:
        """The text of an image file."""
        import cv2

        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None, "no image"
        height, width = image.shape[:2]
        wide = max(_CTC_WIDTH, int(_CTC_HEIGHT * width / height))
        own = min(wide, math.ceil(_CTC_HEIGHT * width / height))
        values = np.zeros((1, 3, _CTC_HEIGHT, wide), np.float32)
        resized = cv2.resize(image, (own, _CTC_HEIGHT)).astype(np.float32).transpose(2, 0, 1) / 255
        values[0, :, :, :own] = (resized - 0.5) / 0.5
        best = self.session.run(None, {self.input: values})[0][0].argmax(1)
        kept = [value for value, before in zip(best, [-1, *best[:-1]], strict=True) if value and value != before]
        return "".join(self.characters[value] for value in kept)


def accuracies(readers: Mapping[str, Read], words: Sequence[Word]) -> dict[str, float]:
    """Share of words that each reads."""
    return {
        name: sum(plain(read(word.data)) == plain(word.label) for word in words) / len(words)
        for name, read in readers.items()
    }


def in_turn(readers: Mapping[str, Read], words: Sequence[Word], repeats: int) -> dict[str, float]:
    """Milliseconds an image: the median over images of each one's best time."""
    names = list(readers)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number, word in enumerate(words):
        best = dict.fromkeys(names, math.inf)
        for _ in range(repeats):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                sleep(_PAUSE_S)
                start = perf_counter()
                readers[name](word.data)
                best[name] = min(best[name], perf_counter() - start)
        for name in names:
            times[name].append(1e3 * best[name])
    return {name: statistics.median(values) for name, values in times.items()}


def batched(models: Mapping[str, Recognizer], words: Sequence[Word], batch: int, repeats: int) -> dict[str, float]:
    """Milliseconds an image of passes over all images, in turn; medians."""
    images = [word.data for word in words]
    times: dict[str, list[float]] = {name: [] for name in models}
    for repeat in range(repeats + 1):
        for name, model in models.items():
            sleep(_PAUSE_S)
            start = perf_counter()
            model.recognize(images, batch=batch)
            if repeat:  # the first warms up
                times[name].append(1e3 * (perf_counter() - start) / len(images))
    return {name: statistics.median(values) for name, values in times.items()}


def show(results: Mapping[str, Any]) -> None:
    """As a table."""
    for name, found in results.items():
        table = Table(title=f"{name}: {found['images']} images")
        for heading in ("recogniser", "words read", "ms an image", *(f"batch {size}" for size in found["batches"])):
            table.add_column(heading, justify="left" if heading == "recogniser" else "right")
        for reader, accuracy in found["accuracy"].items():
            passes = [f"{times[reader]:.2f}" if reader in times else "-" for times in found["batches"].values()]
            table.add_row(reader, f"{accuracy:.1%}", f"{found['ms'][reader]:.2f}", *passes)
        Console().print(table)


def named(text: str) -> tuple[str, Path]:
    """`NAME=PATH`."""
    name, _, path = text.partition("=")
    return name, Path(path)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--set", type=named, action="append", required=True, metavar="NAME=DIR")
    parser.add_argument("--ctc", type=named, action="append", default=[], metavar="NAME=FILE")
    parser.add_argument("--batch", type=int, action="append", default=[])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--timed", type=int, default=100, help="images of a set that times are taken of")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    models = {bundle.name: load(bundle, threads=arguments.threads) for bundle in arguments.bundles}
    readers: dict[str, Read] = {
        name: lambda data, model=model: model.recognize([data])[0].text  # type: ignore[misc]
        for name, model in models.items()
    }
    readers |= {name: Ctc(file, arguments.threads).read for name, file in arguments.ctc}
    results = {}
    for name, folder in arguments.set:
        words = words_of(folder)
        results[name] = {
            "images": len(words),
            "accuracy": accuracies(readers, words),
            "ms": in_turn(readers, words[: arguments.timed], arguments.repeats),
            "batches": {
                size: batched(models, words[: arguments.timed], size, arguments.repeats) for size in arguments.batch
            },
        }
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        show(results)


if __name__ == "__main__":
    main()
