"""A loaded bundle that reads words in images.

With a batch of one, images are read one after the other, each as soon as it can be. With larger batches another thread
decodes and prepares the images of the next batch while the engine reads this one: more words a second, later each.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from seqrt.errors import BundleError, RequestError
from seqrt.runtime.backends import Engines
from seqrt.runtime.bundle import CHARACTERS, Bundle
from seqrt.runtime.cppd import OnePass, Read
from seqrt.runtime.images import Floats, choose_size, prepare, read_image
from seqrt.runtime.loaded import Loaded, collected, load_as
from seqrt.runtime.nrtr import Autoregressive
from seqrt.runtime.probe import Probe

if TYPE_CHECKING:
    from seqrt.runtime.images import Source

STAGES: Final = ("preprocess", "engine", "decode")
MOST_BATCH: Final = 64


def load(path: str | Path, *, backend: str = "cpu", threads: int = 0, operators: bool = False) -> "Recognizer":
    """Loads a bundle that reads images; arguments and errors are those of `seqrt.load`."""
    return load_as(Recognizer, "ocr", path, backend, threads, operators)


@dataclass(frozen=True, slots=True)
class Recognition:
    """What was read in an image: `text`, "" if nothing, and the mean probability of its characters, `confidence`."""

    text: str
    confidence: float


class Reader(Protocol):
    """A way to read a batch: `OnePass` or `Autoregressive`."""

    def images(self, count: int, height: int, width: int) -> Floats:
        """Where the images of the next batch are to be written."""

    def read(self, count: int, probe: Probe) -> Read:
        """Reads the batch that was written."""


@dataclass(frozen=True, slots=True)
class _Ready:
    """An image made ready, or why it cannot be read.

    Attributes:
        number: its place among those given.
        size: place of its size among the bundle's.
    """

    number: int
    size: int
    pixels: Floats | None
    error: RequestError | None = None


class Recognizer(Loaded):
    """A loaded bundle that reads words in images."""

    def __init__(self, bundle: Bundle, engines: Engines) -> None:
        super().__init__(bundle, engines)
        self.info = bundle.manifest.reader
        self._characters = _characters(bundle)
        self._readers: dict[int, Reader] = {}
        if len(self.info.sizes) == 1:
            self._reader(0)  # of several sizes, each is loaded when an image asks for it

    def recognize(self, images: "Iterable[Source]", *, batch: int = 1) -> list[Recognition]:
        """Reads words, one an image.

        Args:
            images: paths, bytes of files, Pillow images, or arrays uint8 `[H, W, 3]`, red first.
            batch: images that are read at once.

        Raises:
            RequestError: an image cannot be read, or the batch is out of range.
        """
        if isinstance(images, (str, Path, bytes)) or getattr(images, "ndim", 4) < 4 or hasattr(images, "getpixel"):
            raise RequestError(f"recognize takes several images, not one {type(images).__name__}; give [image]")
        return collected(self.each(images, batch=batch))

    def each(
        self, images: "Iterable[Source]", *, batch: int = 1
    ) -> Generator[tuple[int, Recognition | RequestError], None, None]:
        """The same as images are read, with their numbers: in batches of a size, not in the order given.

        What cannot be read comes as its error, and the others are read all the same.

        Raises:
            RequestError: the batch is out of range.
        """
        self.require_open()
        most = max(self.engines[self.info.roles[0]].buckets, default=MOST_BATCH)
        if not 1 <= batch <= most:
            raise RequestError(f"--batch is {batch}; give 1 to {most}")
        waiting: dict[int, list[_Ready]] = {}
        with closing(self._prepared(images, batch)) as prepared:
            for ready in prepared:
                if ready.error is not None:
                    yield ready.number, ready.error
                    continue
                held = waiting.setdefault(ready.size, [])
                held.append(ready)
                if len(held) == batch:
                    yield from self._read(waiting.pop(ready.size))
        for held in waiting.values():
            yield from self._read(held, batch)

    def _prepared(self, images: "Iterable[Source]", batch: int) -> Generator[_Ready, None, None]:
        """Images made ready, by another thread where there are batches."""
        numbered = enumerate(images)
        if batch == 1:
            for number, source in numbered:
                self.probe.stage(STAGES[0])
                yield self._ready(number, source)
            return
        pool, ahead = ThreadPoolExecutor(1, "seqrt-images"), deque[Future[_Ready]]()
        try:
            while True:
                for number, source in islice(numbered, 2 * batch - len(ahead)):
                    ahead.append(pool.submit(self._ready, number, source))
                if not ahead:
                    return
                self.probe.stage(STAGES[0])
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)  # of an interrupted command, nobody waits for what is left

    def _ready(self, number: int, source: "Source") -> _Ready:
        try:
            image = read_image(source)
        except RequestError as error:
            return _Ready(number, 0, None, error)
        size = choose_size(image, self.info.sizes)
        pixels = np.empty((3, *self.info.sizes[size]), np.float32)
        prepare(image, self.info.recipe, self.info.sizes[size], pixels)
        return _Ready(number, size, pixels)

    def _read(self, held: Sequence[_Ready], batch: int = 0) -> Iterator[tuple[int, Recognition]]:
        """Reads images of one size; off the CPU, a batch that is not full is filled up: shapes stay the same."""
        reader, size = self._reader(held[0].size), self.info.sizes[held[0].size]
        count = len(held) if self.backend == "cpu" else max(batch, len(held))
        if buckets := self.engines[self.info.roles[held[0].size]].buckets:
            count = next((rows for rows in sorted(buckets) if rows >= len(held)), count)
        images = reader.images(count, *size)
        for place, ready in enumerate(held):
            assert ready.pixels is not None
            images[place] = ready.pixels
        images[len(held) :] = 0.0
        read = reader.read(count, self.probe)
        words = [read.word(place) for place in range(len(held))]
        found = ["".join(self._characters[character - 1] for character in classes) for classes, _ in words]
        self.probe.end()
        for ready, text, (_, confidence) in zip(held, found, words, strict=True):
            yield ready.number, Recognition(text, confidence)

    def _reader(self, size: int) -> Reader:
        if size not in self._readers:
            places, classes, roles = self.bundle.manifest.capacity + 1, self.info.num_classes, self.info.roles
            if self.info.kind == "nrtr":
                encoder, step = (self.engines[role] for role in roles)
                self._readers[size] = Autoregressive(encoder, step, places, classes)
            else:
                self._readers[size] = OnePass(self.engines[roles[size]], places, classes)
        return self._readers[size]


def _characters(bundle: Bundle) -> list[str]:
    """Of each class after the first.

    Raises:
        BundleError: they are not as many as the graphs have classes.
    """
    text, wanted = bundle.text(CHARACTERS) or "", bundle.manifest.reader.num_classes - 1
    found = text.removesuffix("\n").split("\n")
    if len(found) != wanted:
        raise BundleError(
            f"{bundle.path / CHARACTERS} has {len(found)} characters, the recogniser knows {wanted}; export again"
        )
    return found
