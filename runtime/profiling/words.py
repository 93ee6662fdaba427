"""A profile of reading images: batch sizes in turn, stages of every batch, the machine's pulse, the document.

A pass reads all images with one batch size. Passes with other sizes follow before the next round, another size first
each time, so that a busy moment of the machine meets all of them. With batches, the images of the next one are made
ready while the engine reads: what "preprocess" takes is then how long the engine waits for them.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from seqrt.errors import SeqrtError
from seqrt.runtime.probe import Recorder, Timeline, nvtx_ranges
from seqrt.runtime.profiling.measure import rotated
from seqrt.runtime.profiling.report import Row, shares
from seqrt.runtime.profiling.run import Document, Watch, document
from seqrt.runtime.profiling.statistics import percentiles, spread
from seqrt.runtime.recognizer import STAGES, Recognizer

if TYPE_CHECKING:
    from seqrt.runtime.images import Source

DEFAULT_BATCHES: Final = (1, 16)
_FULL_BATCHES: Final = 4  # of each size in a pass, at least: few images are read several times


class _Batches(Recorder):
    """Keeps the timeline of every batch."""

    __slots__ = ("timelines",)

    def __init__(self) -> None:
        super().__init__(nvtx_ranges())
        self.timelines: list[Timeline] = []

    def end(self) -> None:
        """A batch was read."""
        if self._is_open:
            super().end()
            self.timelines.append(self.take())


@dataclass(frozen=True, slots=True)
class Pass:
    """All images read once: when the pass began and how long it took, its batches, and what was read."""

    seconds: float
    timelines: Sequence[Timeline]
    texts: Sequence[str]
    confidences: Sequence[float]

    @property
    def text(self) -> str:
        """What was read, in short: the same for the same words."""
        return hashlib.sha256(repr(list(self.texts)).encode()).hexdigest()[:12]


@dataclass(slots=True)
class Passes:
    """What was measured of one batch size."""

    batch: int
    passes: list[Pass] = field(default_factory=list)

    def row(self, num_images: int, model: Recognizer) -> Row:
        """Its row of the document."""
        timelines = [timeline for one in self.passes for timeline in one.timelines]
        seconds = sum(one.seconds for one in self.passes)
        weights = {role: model.bundle.info(role, model.engines.variant).weight_bytes for role in model.engines}
        read = sum(weights.get(run.name, 0) for timeline in timelines for run in timeline.runs)
        return {
            "batch": self.batch,
            "images": num_images,
            "images_per_second": round(num_images * len(self.passes) / seconds, 3),
            "images_per_second_of_passes": spread(num_images / one.seconds for one in self.passes),
            "batch_ms": percentiles(1e3 * timeline.seconds for timeline in timelines),
            "image_ms": percentiles(1e3 * one.seconds / num_images for one in self.passes),
            "runs_per_batch": round(sum(len(timeline.runs) for timeline in timelines) / len(timelines), 3),
            "characters": sum(map(len, self.passes[0].texts)),
            "confidence": round(sum(self.passes[0].confidences) / num_images, 4),
            "gb_per_second": round(read / seconds / 1e9, 3),
            "passes": [
                {
                    "repeat": repeat,
                    "images": num_images,
                    "seconds": round(one.seconds, 6),
                    "batch_seconds": [round(timeline.seconds, 6) for timeline in one.timelines],
                    "text": one.text,
                }
                for repeat, one in enumerate(self.passes)
            ],
        } | shares(timelines, (), STAGES)


def profile(
    model: Recognizer,
    images: "Sequence[Source]",
    batches: Sequence[int],
    *,
    repeat: int,
    warm_up: int = 1,
    threads: int = 0,
    settings: Mapping[str, Any] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> tuple[Document, BaseException | None]:
    """Measures a recogniser; an interrupt or a failure ends it early, with the rounds that are whole by then.

    Args:
        model: what reads.
        images: of which all can be read; repeated until there are several full batches of each size.
        batches: sizes.
        repeat: rounds.
        warm_up: passes with each size before, which are not counted.
        threads: the model's.
        settings: what was asked for otherwise, for the document.
        advance: called after each pass that counts.

    Returns:
        The document, and what ended the measurement early, if anything did.

    Raises:
        KeyboardInterrupt, SeqrtError: before a round was whole.
    """
    found, recorder, stopped_by = [Passes(batch) for batch in batches], _Batches(), None
    images = list(images) * math.ceil(_FULL_BATCHES * max(batches) / len(images))
    watch = Watch.of(model, threads)
    try:
        for one in found:
            for _ in range(warm_up):
                _pass(model, images, one.batch, recorder)
        for round_ in range(repeat):
            watch.pulse.beat()
            made: dict[int, Pass] = {}
            for at in rotated(len(found), round_):
                made[at] = _pass(model, images, found[at].batch, recorder)
                advance()
            for at, one in enumerate(found):
                one.passes.append(made[at])
    except (KeyboardInterrupt, SeqrtError) as error:
        if not found[0].passes:
            raise
        stopped_by = error
    rows = [one.row(len(images), model) for one in found]
    return document(model, threads, settings, watch, rows, complete=stopped_by is None), stopped_by


def _pass(model: Recognizer, images: "Sequence[Source]", batch: int, recorder: _Batches) -> Pass:
    recorder.timelines = []
    recorder.clear()
    with model.attached(recorder):
        start = perf_counter()
        read = model.recognize(images, batch=batch)
        seconds = perf_counter() - start
    recorder.end()
    return Pass(seconds, recorder.timelines, [one.text for one in read], [one.confidence for one in read])
