"""CPPD's loop, which is none: one run of the engine reads every character of every word of a batch."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from seqrt.runtime.engines import Engine
from seqrt.runtime.images import Floats
from seqrt.runtime.probe import Probe

END: Final = 0  # the class that ends a word


@dataclass(frozen=True, slots=True)
class Read:
    """Words as classes: `classes` and `confidence`, the probability of each, `[words, places]`."""

    classes: npt.NDArray[np.int64]
    confidence: Floats

    def word(self, i: int) -> tuple[npt.NDArray[np.int64], float]:
        """Classes of word i up to its end, and their mean confidence, 0 of an empty word."""
        ends = np.flatnonzero(self.classes[i] == END)
        length = int(ends[0]) if len(ends) else self.classes.shape[1]
        return self.classes[i, :length], float(self.confidence[i, :length].mean()) if length else 0.0


class OnePass:
    """Reads with one graph: image `[B, 3, H, W]` to probabilities `[B, places, C]`.

    Args:
        engine: of the graph.
        places: characters and the end.
        num_classes: C.
    """

    def __init__(self, engine: Engine, places: int, num_classes: int) -> None:
        self._engine, self._shape = engine, (places, num_classes)

    def images(self, count: int, height: int, width: int) -> Floats:
        """Where the images of the next batch are to be written."""
        return self._engine.input("image", (count, 3, height, width))

    def read(self, count: int, probe: Probe) -> Read:
        """Reads the batch that was written."""
        probe.stage("engine")
        probabilities = self._engine.output("probabilities", (count, *self._shape))
        self._engine.run()
        probe.stage("decode")
        best = probabilities.argmax(2)
        return Read(best, np.take_along_axis(probabilities, best[..., None], 2)[..., 0])
